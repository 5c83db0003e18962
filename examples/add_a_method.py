"""A new system for comparison: one more point in the design space of `tagi.methods`, trained for two steps.

    python examples/add_a_method.py [OUTPUT]

To keep one, add it to METHODS in src/tagi/methods.py (CONTRIBUTING.md); here it is added for this process alone.
"""

import sys

from tagi import methods
from tagi.cli.main import main

# A LoRA and a prefix, both written from the instruction; no fusion, so nothing but modules carries the task.
lora_prefix = methods.Method(
    "lora_prefix", "LoRA and prefix, no fusion", writes=("lora", "prefix"), trainable=("hypernetwork",)
)
methods.METHODS = (*methods.METHODS, lora_prefix)

output = sys.argv[1] if len(sys.argv) > 1 else "runs/lora-prefix"
sizes = ["hypernetwork={rank: 4, hidden: 16, prefix: 4}", "training.steps=2", "data={source: micro, compositions: 20}"]
run = ["train", "finetune", "--config", "configs/micro/tagi.yaml", "method=lora_prefix", f"output={output}", *sizes]
sys.exit(main(run) or main(["methods"]))
