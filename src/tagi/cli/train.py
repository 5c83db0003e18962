"""`tagi train`: run one training stage from its config file, or a named run's stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tagi.cli.common import Json, bar, note, print_json, stderr, stdout, table, waiting
from tagi.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from tagi.config import CorpusConfig, RunConfig
    from tagi.data.sources import Sources
    from tagi.infer.engine import Tagi
    from tagi.train.plan import Plan
    from tagi.train.stage import Stage as TrainingStage

EXAMPLE = (
    "Example: tagi train finetune --config configs/default.yaml training.steps=500 --dry-run, or all of a named run: "
    "tagi train all --config sni-base-24gb --dry-run"
)
ALL = "all"

Stage = Literal["backbone", "metatrain", "teachers", "pretrain", "finetune", "all"]


def train(
    stage: Annotated[Stage, typer.Argument(help="The stage that the config describes; all stages of a named run.")],
    config_name: Annotated[str, typer.Option("--config", metavar="FILE|NAME", help="The run: YAML, or its name.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STAGE.]KEY=VALUE",
            help="Config fields to set, such as training.steps=500; of one stage of a named run: "
            "finetune.training.steps=500.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be trained; write nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Run one training stage, or all of a named run; prints the folder of the trained checkpoint.

    Stage `all` skips what is finished and goes on with what is half done. `tagi runs` lists the named runs.
    """
    from tagi.cli.pretraining import every_source
    from tagi.train.interrupt import Interrupted
    from tagi.train.plan import can_be_timed, seconds_per_step

    run, sources = _configs(stage, config_name, overrides or ()), every_source()
    chosen = list(run) if stage == ALL else [stage]
    if dry_run:
        plans = {key: _plan(run, key, draw=True, sources=sources) for key in chosen}
        seconds = None
        if stage != ALL and can_be_timed(run[stage], plans[stage]):
            with waiting("timing steps"):
                seconds = seconds_per_step(run[stage], sources)
        if as_json:
            print_json({"dry_run": True, "seconds_per_step": seconds, **_as_json(plans, stage)})
            return
        for plan in plans.values():
            stdout().print(_table(plan))
        if seconds is not None:
            whole = seconds * run[stage].training.steps / 60
            note(f"a step takes {seconds:.2g} s on this machine, all of them about {whole:,.0f} minutes")
        return
    try:
        done = [_run_stage(run, key, resume or stage == ALL, sources, skip=stage == ALL) for key in chosen]
    except Interrupted as stopped:
        note(str(stopped))
        raise
    if as_json:
        plans = {key: _plan(run, key, draw=False) for key in chosen}
        print_json({"checkpoint": str(done[-1]), **_as_json(plans, stage)})
    else:
        typer.echo(done[-1])


def _configs(stage: str, name: str, overrides: Sequence[str]) -> Mapping[str, RunConfig]:
    """The configs that a command speaks of: one file's, or a named run's with all of its stages."""
    from tagi.config.files import load
    from tagi.repro.runs import named

    file = Path(name)
    if not (file.is_file() or file.suffix in (".yaml", ".yml") or file.name != name):
        return named(name, overrides, stage=None if stage == ALL else stage)
    config = load(file, overrides)
    if stage == ALL:
        raise ConfigError(f"{file}: describes one stage ({config.stage}); `all` takes a named run, see tagi runs")
    if config.stage != stage:
        raise ConfigError(f"{file}: stage: is {config.stage}, but the command says {stage}")
    return {stage: config}


def _plan(run: Mapping[str, RunConfig], stage: str, *, draw: bool, sources: Sources | None = None) -> Plan:
    from tagi.train.plan import plan

    before = list(run.values())[: list(run).index(stage)]
    with bar("drawing batches") as report:
        made = plan(run[stage], before, draw=draw, report=report, sources=sources)
    note(*made.notes)
    return made


def _as_json(plans: Mapping[str, Plan], stage: str) -> dict[str, object]:
    if stage != ALL:
        return asdict(plans[stage])
    return {
        "stages": {key: asdict(plan) for key, plan in plans.items()},
        "flops": sum(plan.flops for plan in plans.values()),
        "memory": max(plan.memory.total for plan in plans.values()),
    }


def _run_stage(run: Mapping[str, RunConfig], key: str, go_on: bool, sources: Sources, *, skip: bool) -> Path:
    """Train one stage; with `skip`, only if it is not finished."""
    from tagi.files import check_folder
    from tagi.train import checkpoints, resume
    from tagi.train.distributed.team import launched
    from tagi.train.trainer import train as run_stage

    config = run[key]
    output = Path(config.output)
    final = output / checkpoints.FINAL
    bank = config.stage == "teachers"
    if bank:
        check_folder(output)
        finished = final.exists()
    else:
        checkpoints.check_output(output, resume=go_on)
        note(*resume.check(config, launched(), output, sources))
        finished = checkpoints.finished(output, config.training.steps)
    if skip and finished:
        note(f"{key}: {final} is there already")
        return final
    if bank:
        return _train_bank(config, go_on, sources)
    with waiting("preparing model and data"):
        if config.stage == "backbone":
            from tagi.pretraining import stage as pretraining

            built: TrainingStage = pretraining.build_stage(config)
        else:
            from tagi.train.build import build_stage

            built = build_stage(config, sources)
    stderr().print(_table(_plan(run, key, draw=False)))
    return run_stage(built, config.training, output, resume=go_on, evaluate=_validator(config, sources))


def _train_bank(config: RunConfig, resume: bool, sources: Sources) -> Path:
    """Train a bank of per-task LoRAs, or add single teachers to it."""
    from accelerate import PartialState

    from tagi.train.teachers import plan_teachers, train_teachers

    with waiting("preparing model and data"):
        plan = plan_teachers(config, PartialState().num_processes, sources)
    note(f"{sum(map(len, plan.chunks))} teachers in {len(plan.chunks)} chunks of {config.training.steps} steps")
    return train_teachers(plan, resume=resume)


def _validator(config: RunConfig, sources: Sources) -> Callable[[Path], dict[str, float]] | None:
    """Scores of a checkpoint on the validation tasks or, of stage `backbone`, on text; None where none is held out."""
    from tagi import methods
    from tagi.eval.evaluate import InstructionControl, draw_partners, evaluate, instructions, target_loss

    if config.data.corpus is not None:
        return _text_validator(config.data.corpus)
    tasks, method = sources.valid(config.data, config.prompt.demonstrations), methods.get(config.method)
    told: dict[str, InstructionControl] = {"": "aligned"}
    if method.reads_instruction_once or method.prompt:
        told["_mismatched"] = "shuffled"
    partners = draw_partners(tasks, seed=0)

    def score(folder: Path) -> dict[str, float]:
        tagi = _where_training_runs(folder)
        scores = evaluate(tagi, tasks)
        found = {f"valid_{metric}": fmean(getattr(scores, metric)) for metric in ("rouge_l", "exact_match")}
        for name, control in told.items():
            found[f"valid_loss{name}"] = target_loss(tagi, tasks, instructions(tasks, control, partners, seed=0))
        return found

    return score if tasks else None


def _where_training_runs(folder: Path) -> Tagi:
    """A checkpoint on this process's own device."""
    from accelerate import PartialState

    from tagi.infer.engine import Tagi

    return Tagi.from_pretrained(folder, device=str(PartialState().device))


def _text_validator(corpus: CorpusConfig) -> Callable[[Path], dict[str, float]] | None:
    """Bits per byte of a checkpoint on held-out documents."""
    from tagi.pretraining.bits import bits_per_byte, kinds
    from tagi.pretraining.corpus import held_out

    texts = held_out(corpus)

    def score(folder: Path) -> dict[str, float]:
        tagi = _where_training_runs(folder)
        return {f"valid_bits_{kind}": bits_per_byte(tagi, texts, corpus, kind) for kind in kinds(tagi)}

    return score if texts else None


def _table(plan: Plan) -> Table:
    made = table(f"{plan.stage}: {plan.method}", ("part", "parameters", ""))
    for part, size in plan.parameters.items():
        if size:
            made.add_row(part, f"{size:,}", "trained" if part in plan.trainable else "frozen")
    made.add_section()
    if plan.hypernetwork_share:
        made.add_row("hypernetwork / backbone", f"{plan.hypernetwork_share:.1%}")
    made.add_row("steps", f"{plan.steps:,}")
    made.add_row("rows per step", f"{plan.rows_per_step:,.0f}")
    made.add_row("tokens per step", f"{plan.tokens_per_step:,.0f}", plan.tokens_are)
    made.add_row("FLOPs per step", f"{plan.flops_per_step:.2e}", plan.tokens_are)
    made.add_row("FLOPs in all", f"{plan.flops:.2e}", plan.tokens_are)
    made.add_section()
    for name in ("weights", "gradients", "optimizer", "activations", "total"):
        made.add_row(f"memory: {name}", f"{getattr(plan.memory, name) / 1e9:,.2f} GB", "estimate")
    return made
