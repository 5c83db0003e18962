"""`tagi bench`: what things cost, as ratios measured side by side."""

import typer

from tagi.cli.bench import adapt, inference, mixed, store, training

app = typer.Typer(help="Measure what things cost, as ratios of alternating runs.", no_args_is_help=True)
app.command("train", epilog=training.TRAIN_EXAMPLE)(training.train)
app.command("logits", epilog=training.LOGITS_EXAMPLE)(training.logits)
app.command("flops", epilog=inference.FLOPS_EXAMPLE)(inference.flops)
app.command("inference", epilog=inference.EXAMPLE)(inference.inference)
app.command("mixed", epilog=mixed.EXAMPLE)(mixed.mixed)
app.command("adapt", epilog=adapt.EXAMPLE)(adapt.adapt)
app.command("store", epilog=store.EXAMPLE)(store.store)
