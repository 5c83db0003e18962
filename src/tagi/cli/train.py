"""`tagi train`: run one training stage from its config file."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from tagi.cli.common import RUN_FILE, Json, bar, note, print_json, stderr, stdout, table, waiting
from tagi.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from tagi.config import RunConfig
    from tagi.train.stage import ModelStage

EXAMPLE = "Example: tagi train finetune --config configs/default.yaml training.steps=500 --dry-run"
MEASURED_STEPS = 4
"""Steps whose batches a dry run draws to measure rows and tokens."""

Stage = Literal["metatrain", "teachers", "pretrain", "finetune"]


def train(
    stage: Annotated[Stage, typer.Argument(help="The stage that the config describes.")],
    config_file: Annotated[Path, typer.Option("--config", metavar="FILE", help="The run, as YAML.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Config fields to set, such as training.steps=500."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be trained; write nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Train in fp16 all the same.")] = False,
    as_json: Json = False,
) -> None:
    """Run one training stage; prints the folder of the trained checkpoint."""
    from tagi.config import load

    config = load(config_file, overrides or ())
    if config.stage != stage:
        raise ConfigError(f"{config_file}: stage: is {config.stage}, but the command says {stage}")
    if config.training.precision == "fp16" and not force:
        raise ConfigError("training.precision: T5 overflows in fp16; use bf16, or add --force to try it all the same")
    if not dry_run:
        from tagi.train.trainer import check_output

        check_output(Path(config.output), resume=resume)
    built = _build(config)
    plan = _plan(built, config)
    if dry_run:
        plan |= _measure(built, config)
        print_json({"dry_run": True, **plan}) if as_json else stdout().print(_table(plan))
        return
    stderr().print(_table(plan))
    folder = _train(built, config, resume)
    print_json({"checkpoint": str(folder), **plan}) if as_json else typer.echo(folder)


def _build(config: RunConfig) -> ModelStage:
    with waiting("preparing model and data"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        from tagi.train.build import build_stage

        stage = build_stage(config)
    for warning in caught:
        note(str(warning.message))
    return stage


def _train(stage: ModelStage, config: RunConfig, resume: bool) -> Path:
    """Train; every checkpoint tells by which run."""
    from tagi.config import dump
    from tagi.train.trainer import train as run_stage

    def write(folder: Path) -> None:
        stage.write(folder)
        (folder / RUN_FILE).write_text(dump(config), encoding="utf-8")

    wrapped = replace(stage, write=write)
    return run_stage(wrapped, config.training, Path(config.output), resume=resume, evaluate=_validator(config))


def _validator(config: RunConfig) -> Callable[[Path], dict[str, float]] | None:
    """Scores of a checkpoint on the meta-valid tasks; None where a config holds out none."""
    from tagi.eval.evaluate import evaluate
    from tagi.infer.engine import Tagi
    from tagi.train.finetune import valid_tasks

    tasks = valid_tasks(config)

    def score(folder: Path) -> dict[str, float]:
        scores = evaluate(Tagi.from_pretrained(folder), tasks)
        return {f"valid_{metric}": fmean(getattr(scores, metric)) for metric in ("rouge_l", "exact_match")}

    return score if tasks else None


def _plan(stage: ModelStage, config: RunConfig) -> dict[str, Any]:
    """What is trained, in numbers."""
    from tagi.config import Part
    from tagi.model.hypernetwork import parameter_count

    sizes = {part: sum(map(parameter_count, stage.model.part(part))) for part in get_args(Part)}
    trained = {part for part in config.training.trainable if sizes[part]}
    return {
        "stage": config.stage,
        "method": config.method,
        "parameters": sizes,
        "trainable": [part for part in sizes if part in trained],
        "hypernetwork_share": sizes["hypernetwork"] / sizes["backbone"],
        "steps": config.training.steps,
        "output": config.output,
    }


def _measure(stage: ModelStage, config: RunConfig) -> dict[str, Any]:
    """Rows and tokens of a step, the mean over the first few."""
    per_step = config.training.accumulation
    steps = min(MEASURED_STEPS, config.training.steps)
    rows = tokens = 0
    with bar("drawing batches") as report:
        for number in range(steps * per_step):
            batch = stage.batch(number)
            rows, tokens = rows + len(batch.task_index), tokens + batch.tokens
            report(number + 1, steps * per_step)
    return {"rows_per_step": rows / steps, "tokens_per_step": tokens / steps}


def _table(plan: dict[str, Any]) -> Table:
    made = table(f"{plan['stage']}: {plan['method']}", ("part", "parameters", ""))
    for part, size in plan["parameters"].items():
        if size:
            made.add_row(part, f"{size:,}", "trained" if part in plan["trainable"] else "frozen")
    made.add_section()
    made.add_row("hypernetwork / backbone", f"{plan['hypernetwork_share']:.1%}")
    made.add_row("steps", f"{plan['steps']:,}")
    for name in ("rows_per_step", "tokens_per_step"):
        if name in plan:
            made.add_row(name.replace("_", " "), f"{plan[name]:,.0f}")
    return made
