"""The training loop: plain, exact on resume, ignorant of what a stage is."""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from tagi.backbones.files import read_safetensors
from tagi.config import TrainingConfig
from tagi.data.collate import Batch
from tagi.errors import TagiError
from tagi.files import append_line, atomic_folder, explained
from tagi.losses import Loss
from tagi.train import checkpoints, optim, precision
from tagi.train.checkpoints import FINAL, State
from tagi.train.distributed.team import Team, assemble
from tagi.train.interrupt import Interrupted, interrupts
from tagi.train.precision import Weights
from tagi.train.stage import Metrics, Stage

Evaluate = Callable[[Path], Mapping[str, float]]
Numbered = tuple[int, Batch]


class TrainingError(TagiError):
    """Training that cannot go on."""


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that stays the same from the first step to the last."""

    stage: Stage
    config: TrainingConfig
    folder: Path
    team: Team
    model: nn.Module  # the stage's, wrapped
    weights: Weights
    evaluate: Evaluate | None
    told_to_stop: Callable[[], bool]


def train(
    stage: Stage,
    config: TrainingConfig,
    folder: Path,
    *,
    resume: bool = False,
    evaluate: Evaluate | None = None,
) -> Path:
    """Run a stage to its last step and write `folder/final`; gives that folder.

    Checkpoints `step-N` appear every `checkpoint_every` steps and the last `keep` stay; `best` is the one with the
    highest score, `final` among them. With `resume` the newest is continued: same batches, same losses, same
    best, to the bit on CPU. Several processes share the batches of a step; the main one writes and evaluates. Ctrl-C
    or SIGTERM ends training after the step in hand, with a checkpoint.

    Args:
        evaluate: given the folder of each new checkpoint before it takes its name, scores it; the scores are logged.

    Raises:
        TrainingError: a loss that is not finite (names step, batch and tasks; the last checkpoint stays).
        CheckpointError: `folder` already holds checkpoints and `resume` is off; or they are damaged, or another run's.
        ConfigError: an optimizer that does not go with the way of sharing the work.
        DiskError: a checkpoint could not be written; the ones before it stay.
        Interrupted: a signal came; a checkpoint of the last step is there.
    """
    checkpoints.check_output(folder, resume=resume)
    team = assemble(config, stage.groups)
    if team.main:
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            checkpoints.clear(folder)
    team.wait()
    stage.check(folder)
    if checkpoints.finished(folder, config.steps):
        if team.main:
            checkpoints.tidy(folder, config.keep)
        return folder / FINAL
    newest = next(reversed(checkpoints.checkpoints(folder)), None)
    start = checkpoints.read_state(newest).step if newest is not None else 0
    with interrupts() as told_to_stop, _bar(visible=team.main) as bar:
        model, weights = _begin(stage, config, team, newest)
        run = Run(stage, config, folder, team, model, weights, evaluate, told_to_stop)
        if team.main:  # nothing is removed before what is gone on from proves to be whole
            checkpoints.tidy(folder, config.keep)
            checkpoints.cut_log(folder, start)
        task = bar.add_task("training", total=config.steps, info="")
        for step in range(start, config.steps):
            bar.update(task, completed=step + 1, info=_one(run, step))
    return folder / FINAL


def _bar(*, visible: bool) -> Progress:
    text, info = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[info]}", markup=False)
    columns = text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), info
    return Progress(*columns, console=Console(stderr=True), disable=not visible)


def _begin(stage: Stage, config: TrainingConfig, team: Team, newest: Path | None) -> tuple[nn.Module, Weights]:
    """Model, wrapped, and optimizer as they were after a checkpoint, or at the start."""
    torch.manual_seed(config.seed)
    optim.freeze(stage.model, stage.parts)
    if newest is not None:
        stage.read(newest)
    names = precision.part_names(stage.model, stage.parts)
    exact = precision.lower(stage.model, config.precision)
    model = team.wrap(stage.model)
    weights = precision.optimize(stage.model, names, exact, config, stage.groups)
    if newest is not None:
        tensors, numbers = read_safetensors(newest / checkpoints.OPTIMIZER), checkpoints.read_state(newest).numbers
        optim.restore_state(weights.optimizer, tensors, dict(numbers))
    stage.model.train()
    return model, weights


def _one(run: Run, step: int) -> str:
    """One step of training with everything that is due after it; gives losses and speed in words."""
    config, began = run.config, time.perf_counter()
    for group in run.weights.optimizer.param_groups:
        group["lr"] = group["base_lr"] * optim.learning_rate(step, config)
    losses, tokens, norm, stop = _step(run, step)
    done, speed = step + 1, tokens / (time.perf_counter() - began)
    entry = {"step": done, **losses, "tokens_per_s": round(speed), "grad_norm": norm}
    due = done % config.checkpoint_every == 0 or done == config.steps
    if due or stop:
        _save(run, entry, run.evaluate if due else None)
    elif run.team.main:
        append_line(run.folder / checkpoints.LOG, json.dumps(entry))
    if stop and done < config.steps:
        raise Interrupted(checkpoints.place(run.folder, done, config.steps))
    return f"{'  '.join(f'{name} {value:.3f}' for name, value in losses.items())}  {speed:,.0f} tokens/s"


def _save(run: Run, entry: dict[str, Any], evaluate: Evaluate | None) -> None:
    """Write the checkpoint after a step, and its log entry just before it takes its name.

    A run that is killed between the two forgets the entry when it goes on; the other way round it would lack it.
    """
    step, config = entry["step"], run.config
    target = checkpoints.place(run.folder, step, config.steps)
    values, (tensors, numbers) = run.weights.values(), optim.state_tensors(run.weights.optimizer)
    if target.name == FINAL:
        tensors, numbers = None, {}
    if run.team.main:
        with atomic_folder(target) as draft:
            with precision.holding(run.stage.model, values):
                run.stage.write(draft)
            scores = dict(evaluate(draft)) if evaluate is not None else {}
            checkpoints.complete(draft, State(step=step, scores=scores, numbers=numbers), tensors)
            append_line(run.folder / checkpoints.LOG, json.dumps(entry | scores))
        checkpoints.keep_best(target)
        checkpoints.prune(run.folder, config.keep)
    run.team.wait()


def _step(run: Run, step: int) -> tuple[dict[str, float], int, float, bool]:
    """One optimizer step over `accumulation` batches, normalised by all of their target tokens together.

    Gives what it did in all processes together: losses (nats per target token), tokens, the gradient's norm, and
    whether some process was told to stop.
    """
    stage, team, each = run.stage, run.team, run.config.accumulation
    numbers = range(step * each * team.size + team.rank, (step + 1) * each * team.size, team.size)  # every size-th
    batches = [(number, stage.batch(number).to(team.device)) for number in numbers]
    counts = team.total(_summed([stage.counts(batch) for _, batch in batches]))
    metrics = [_backward(run, one, counts, last=one is batches[-1]) for one in batches]
    losses = _mean(team, metrics)
    norm = run.weights.update() if all(map(math.isfinite, losses.values())) else math.nan
    if not math.isfinite(norm):
        raise TrainingError(_explain(team, step + 1, batches, metrics))
    told = {"tokens": sum(batch.tokens for _, batch in batches), "stop": int(run.told_to_stop())}
    found = team.total({name: torch.tensor(value, device=team.device) for name, value in told.items()})
    return losses, int(found["tokens"]), norm, bool(found["stop"])


def _backward(run: Run, numbered: Numbered, counts: Mapping[str, Tensor], *, last: bool) -> Metrics:
    """Add one batch's share of the gradient of Σ weight · total / count (Eq. 6), summed over models in lock-step.

    Processes meet after the last batch only.
    """
    number, batch = numbered
    torch.manual_seed(hash((run.config.seed, number)) & 0x7FFFFFFF)  # dropout is a function of the batch
    with run.team.backward(run.model, meet=last) as backward:
        terms, weights = run.stage.loss(run.model, batch), run.stage.weights
        means = [weights[name] * (term.total / counts[name].clamp(min=1)).sum() for name, term in terms.items()]
        backward(torch.stack(means).sum() * run.team.size)
    return {name: Loss(term.total.detach(), term.count) for name, term in terms.items()}


def _explain(team: Team, step: int, batches: list[Numbered], metrics: list[Metrics]) -> str:
    """Which batches of a step cannot be learned from, in all processes; every one where only the gradient says so."""
    finite = [all(bool(loss.total.isfinite().all()) for loss in terms.values()) for terms in metrics]
    bad = team.everyone([_name(one) for one, good in zip(batches, finite, strict=True) if not good])
    what = "the loss" if bad else "the gradient"
    named = "; ".join(bad or team.everyone([_name(one) for one in batches]))
    return f"step {step}: {what} is not finite in {named}; nothing was saved, the last checkpoint stays"


def _name(numbered: Numbered) -> str:
    number, batch = numbered
    return f"batch {number} (tasks {', '.join(dict.fromkeys(batch.names))})" if batch.names else f"batch {number}"


def _summed(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Entry-wise sum of dictionaries with the same keys."""
    first, *rest = parts
    return {name: sum((other[name] for other in rest), start=value) for name, value in first.items()}


def _mean(team: Team, metrics: list[Metrics]) -> dict[str, float]:
    """Each term's mean over all batches of a step, and over the models in lock-step where there are several."""
    totals = team.total(_summed([{name: term.total for name, term in terms.items()} for terms in metrics]))
    counts = team.total(_summed([{name: term.count for name, term in terms.items()} for terms in metrics]))
    return {name: float((total / counts[name].clamp(min=1)).mean()) for name, total in totals.items()}
