"""The training loop: plain, exact on resume, ignorant of what a stage is."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tagi.config import TrainingConfig
from tagi.data.collate import Batch
from tagi.errors import TagiError
from tagi.files import atomic_folder, explained
from tagi.losses import Loss
from tagi.train import checkpoints, optim, precision
from tagi.train.checkpoints import FINAL, State, check_output
from tagi.train.distributed.team import Team, assemble
from tagi.train.interrupt import Interrupted, interrupts
from tagi.train.precision import Weights
from tagi.train.report import Report
from tagi.train.stage import Metrics, Stage

Evaluate = Callable[[Path], Mapping[str, float]]
Numbered = tuple[int, Batch]
__all__ = ["TrainingError", "check_output", "train"]


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


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did, in all processes together."""

    losses: dict[str, float]  # nats per target token
    tokens: int
    grad_norm: float
    stop: bool  # some process was told to


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
    check_output(folder, resume=resume)
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
    with interrupts() as told_to_stop, Report(config.steps, folder, main=team.main) as report:
        run = _begin(stage, config, folder, team, newest, evaluate, told_to_stop)
        if team.main:  # nothing is removed before what is gone on from proves to be whole
            checkpoints.tidy(folder, config.keep)
            checkpoints.cut_log(folder, start)
        for step in range(start, config.steps):
            _one(run, report, step)
    return folder / FINAL


def _begin(
    stage: Stage,
    config: TrainingConfig,
    folder: Path,
    team: Team,
    newest: Path | None,
    evaluate: Evaluate | None,
    told_to_stop: Callable[[], bool],
) -> Run:
    """Model and optimizer as they were after a checkpoint, or at the start."""
    torch.manual_seed(config.seed)
    optim.freeze(stage.model, stage.parts)
    if newest is not None:
        stage.read(newest)
    names = precision.part_names(stage.model, stage.parts)
    model, weights = team.equip(stage.model, names, config, stage.groups)
    if newest is not None:
        weights.restore(checkpoints.read_optimizer(newest), dict(checkpoints.read_state(newest).numbers))
    stage.model.train()
    return Run(stage, config, folder, team, model, weights, evaluate, told_to_stop)


def _one(run: Run, report: Report, step: int) -> None:
    """One step of training with everything that is due after it."""
    config, began = run.config, time.perf_counter()
    optim.set_learning_rate(run.weights.optimizer, optim.learning_rate(step, config))
    result = _step(run, step)
    done, speed = step + 1, result.tokens / (time.perf_counter() - began)
    report.advance(done, result.losses, speed)
    entry = {"step": done, **result.losses, "tokens_per_s": round(speed), "grad_norm": result.grad_norm}
    if done % config.checkpoint_every == 0 or done == config.steps:
        _save(run, report, entry, run.evaluate)
    elif result.stop:
        _save(run, report, entry, None)
    else:
        report.log(entry)
    if result.stop and done < config.steps:
        raise Interrupted(checkpoints.place(run.folder, done, config.steps))


def _save(run: Run, report: Report, entry: Mapping[str, Any], evaluate: Evaluate | None) -> None:
    """Write the checkpoint after a step, and its log entry just before it takes its name.

    A run that is killed between the two forgets the entry when it goes on; the other way round it would lack it.
    """
    step, config = entry["step"], run.config
    target = checkpoints.place(run.folder, step, config.steps)
    values, (tensors, numbers) = run.weights.values(), run.weights.state()
    if run.team.main:
        with atomic_folder(target) as draft:
            with precision.holding(run.stage.model, values):
                run.stage.write(draft)
            if target.name != FINAL:
                checkpoints.write_optimizer(draft, tensors)
            scores = dict(evaluate(draft)) if evaluate is not None else {}
            checkpoints.write_state(
                draft, State(step=step, scores=scores, numbers=numbers if target.name != FINAL else {})
            )
            report.log({**entry, **scores})
        checkpoints.keep_best(target)
        checkpoints.prune(run.folder, config.keep)
    run.team.wait()


def _step(run: Run, step: int) -> StepResult:
    """One optimizer step over `accumulation` batches, normalised by all of their target tokens together."""
    stage, team = run.stage, run.team
    batches = _draw(run, step)
    counts = team.total(_summed([stage.counts(batch) for _, batch in batches]))
    metrics = [_backward(run, one, counts, last=one is batches[-1]) for one in batches]
    losses = _mean(team, metrics)
    norm = run.weights.update() if all(map(math.isfinite, losses.values())) else math.nan
    if not math.isfinite(norm):
        raise TrainingError(_explain(team, step + 1, batches, metrics))
    tokens, stop = _agree(team, sum(batch.tokens for _, batch in batches), run.told_to_stop())
    return StepResult(losses, tokens, norm, stop)


def _agree(team: Team, tokens: int, stop: bool) -> tuple[int, bool]:
    """All processes' tokens, and whether any was told to stop, in one exchange: all stop after the same step."""
    device = team.accelerator.device
    totals = team.total({"tokens": torch.tensor(tokens, device=device), "stop": torch.tensor(int(stop), device=device)})
    return int(totals["tokens"]), bool(totals["stop"])


def _draw(run: Run, step: int) -> list[Numbered]:
    """This process's batches of a step: every `size`-th of them."""
    size, each = run.team.size, run.config.accumulation
    first = step * each * size + run.team.rank
    numbers = [first + i * size for i in range(each)]
    return [(number, run.stage.batch(number).to(run.team.accelerator.device)) for number in numbers]


def _backward(run: Run, numbered: Numbered, counts: Mapping[str, Tensor], *, last: bool) -> Metrics:
    """Add one batch's share of the step's gradient; processes meet after the last one only."""
    number, batch = numbered
    torch.manual_seed(hash((run.config.seed, number)) & 0x7FFFFFFF)  # dropout is a function of the batch
    with run.team.backward(run.model, meet=last) as backward:
        terms = run.stage.loss(run.model, batch)
        backward(_objective(terms, run.stage.weights, counts) * run.team.size)
    return {name: Loss(term.total.detach(), term.count) for name, term in terms.items()}


def _objective(terms: Metrics, weights: Mapping[str, float], counts: Mapping[str, Tensor]) -> Tensor:
    """Σ weight · total / count (Eq. 6), summed over the models in lock-step where there are several."""
    means = [weights[name] * (term.total / counts[name].clamp(min=1)).sum() for name, term in terms.items()]
    return torch.stack(means).sum()


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


def _mean(team: Team, metrics: Iterable[Metrics]) -> dict[str, float]:
    """Each term's mean over all batches of a step, and over the models in lock-step where there are several."""
    listed = list(metrics)
    totals = team.total(_summed([{name: term.total for name, term in terms.items()} for terms in listed]))
    counts = team.total(_summed([{name: term.count for name, term in terms.items()} for terms in listed]))
    return {name: float((total / counts[name].clamp(min=1)).mean()) for name, total in totals.items()}
