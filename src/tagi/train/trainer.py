"""The training loop: plain, exact on resume, ignorant of what a stage is."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor

from tagi.config import TrainingConfig
from tagi.errors import CheckpointError, TagiError
from tagi.files import atomic_folder
from tagi.losses import Loss
from tagi.model.t5_hf import read_safetensors
from tagi.train import optim
from tagi.train.stage import Metrics, Stage

LOG, OPTIMIZER, STATE, FINAL = "log.jsonl", "optimizer.safetensors", "trainer.json", "final"
_STEP = "step-"


class TrainingError(TagiError):
    """Training that cannot go on."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did."""

    losses: dict[str, float]  # nats per target token
    tokens: int
    grad_norm: float


def train(
    stage: Stage,
    config: TrainingConfig,
    folder: Path,
    *,
    resume: bool = False,
    evaluate: Callable[[Path], Mapping[str, float]] | None = None,
) -> Path:
    """Run a stage to its last step and write `folder/final`; gives that folder.

    Checkpoints `step-N` appear every `checkpoint_every` steps, the last `keep` stay. With `resume` the newest
    one is continued: same batches, same losses, to the bit on CPU.

    Args:
        evaluate: given each new checkpoint's folder, scores it; the scores are logged with the losses.

    Raises:
        TrainingError: a loss that is not finite (names the step; the last checkpoint stays).
        CheckpointError: `folder` already holds checkpoints and `resume` is off.
        DiskError: a checkpoint could not be written.
    """
    check_output(folder, resume=resume)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator()
    torch.manual_seed(config.seed)
    optim.freeze(stage.model, stage.parts)
    optimizer = optim.build(stage.parts, config)
    start = _resume(stage, optimizer, folder) if resume else 0
    model, prepared = accelerator.prepare(stage.model, optimizer)
    stage.model.train()
    with _progress() as progress:
        bar = progress.add_task("training", total=config.steps, completed=start, info="")
        for step in range(start, config.steps):
            began = time.perf_counter()
            optim.set_learning_rate(optimizer, optim.learning_rate(step, config))
            result = _step(stage, model, prepared, accelerator, config, step)
            speed = result.tokens / (time.perf_counter() - began)
            progress.update(bar, advance=1, info=_describe(result, speed))
            done = step + 1
            entry: dict[str, Any] = {"step": done, **result.losses, "tokens_per_s": round(speed)}
            if done % config.checkpoint_every == 0 and done < config.steps:
                newest = folder / f"{_STEP}{done:08d}"
                _save(stage, optimizer, done, newest)
                _prune(folder, config.keep)
                entry |= evaluate(newest) if evaluate is not None else {}
            if done % config.log_every == 0 or done % config.checkpoint_every == 0 or done == config.steps:
                _log(folder, entry | {"grad_norm": result.grad_norm})
    with atomic_folder(folder / FINAL) as draft:
        stage.write(draft)
    return folder / FINAL


def _step(
    stage: Stage,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    config: TrainingConfig,
    step: int,
) -> StepResult:
    """One optimizer step over `accumulation` batches, normalised by all of their target tokens together."""
    per_step = config.accumulation * accelerator.num_processes
    first = step * per_step + accelerator.process_index
    batches = [stage.batch(first + i * accelerator.num_processes) for i in range(config.accumulation)]
    batches = [batch.to(accelerator.device) for batch in batches]
    counts = accelerator.reduce(_summed([stage.counts(batch) for batch in batches]), "sum")
    metrics: list[Metrics] = []
    torch.manual_seed(hash((config.seed, first)) & 0x7FFFFFFF)  # dropout is a function of the step
    for batch in batches:
        terms = stage.loss(model, batch)
        accelerator.backward(_objective(terms, stage.weights, counts) * accelerator.num_processes)
        metrics.append({name: Loss(term.total.detach(), term.count) for name, term in terms.items()})
    norm = _clip(stage, accelerator, _parameters(optimizer), config.clip)
    losses = _mean(metrics)
    if not all(map(math.isfinite, (norm, *losses.values()))):
        raise TrainingError(f"step {step}: the loss or its gradient is not finite ({losses}); nothing was saved")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(losses, sum(batch.tokens for batch in batches), norm)


def _objective(terms: Metrics, weights: Mapping[str, float], counts: Mapping[str, Tensor]) -> Tensor:
    """Σ weight · total / count (Eq. 6), summed over the models in lock-step where there are several."""
    means = [weights[name] * (term.total / counts[name].clamp(min=1)).sum() for name, term in terms.items()]
    return torch.stack(means).sum()


def _clip(stage: Stage, accelerator: Accelerator, parameters: list[Tensor], limit: float) -> float:
    """Clip by the gradient's norm; gives that norm, the largest where several models train in lock-step."""
    if stage.lanes is None:
        return float(accelerator.clip_grad_norm_(parameters, limit))  # type: ignore[arg-type]
    return float(optim.clip_lanes(parameters, limit).max())


def _summed(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Entry-wise sum of dictionaries with the same keys."""
    first, *rest = parts
    return {name: sum((other[name] for other in rest), start=value) for name, value in first.items()}


def _mean(metrics: Iterable[Metrics]) -> dict[str, float]:
    """Each term's mean over several batches, and over the models in lock-step where there are several."""
    listed = list(metrics)
    totals = _summed([{name: term.total for name, term in terms.items()} for terms in listed])
    counts = _summed([{name: term.count for name, term in terms.items()} for terms in listed])
    return {name: float((total / counts[name].clamp(min=1)).mean()) for name, total in totals.items()}


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _save(stage: Stage, optimizer: torch.optim.Optimizer, step: int, folder: Path) -> None:
    tensors, numbers = optim.state_tensors(optimizer)
    with atomic_folder(folder) as draft:
        stage.write(draft)
        save_file(tensors, draft / OPTIMIZER)
        (draft / STATE).write_text(json.dumps({"step": step, "numbers": numbers}), encoding="utf-8")


def _resume(stage: Stage, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    """Continue from the newest checkpoint; gives the number of steps done."""
    found = checkpoints(folder)
    if not found:
        return 0
    newest = found[-1]
    state = json.loads((newest / STATE).read_text(encoding="utf-8"))
    stage.read(newest)
    optim.restore_state(optimizer, read_safetensors(newest / OPTIMIZER), state["numbers"])
    _cut_log(folder, state["step"])
    return state["step"]


def check_output(folder: Path, *, resume: bool) -> None:
    """Refuse to train over a run that is already there.

    Raises:
        CheckpointError: `folder` holds a run and `resume` is off.
    """
    if not resume and (checkpoints(folder) or (folder / FINAL).exists()):
        raise CheckpointError(f"{folder}: already holds a run; add --resume to go on, or choose another output")


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(folder.glob(f"{_STEP}*"))


def _prune(folder: Path, keep: int) -> None:
    for old in checkpoints(folder)[:-keep]:
        hidden = old.with_name(f".{old.name}")  # an interrupted removal leaves no half checkpoint behind
        old.rename(hidden)
        shutil.rmtree(hidden)


def _log(folder: Path, entry: Mapping[str, Any]) -> None:
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(entry)) + "\n")


def _cut_log(folder: Path, step: int) -> None:
    """Forget what was logged after the checkpoint, for those steps are done again."""
    path = folder / LOG
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(line for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}"),
        console=Console(stderr=True),
    )


def _describe(result: StepResult, speed: float) -> str:
    losses = "  ".join(f"{name} {value:.3f}" for name, value in result.losses.items())
    return f"{losses}  {speed:,.0f} tokens/s"
