"""What things cost, as ratios measured side by side: `python -m benchmarks.NAME`. Every figure of `docs/results` that
says how it was timed comes from here.

All models have random weights and all texts random tokens, which cost what real ones cost. What a measurement needs of
tagi's insides is in `models`.
"""
