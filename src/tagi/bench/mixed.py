"""A batch with a different task in every row: against one task, against one task after another, against `peft`."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from tagi.backbones.language_model import as_t5
from tagi.backbones.t5.weights import save_t5
from tagi.bench.inference import answer, ways
from tagi.bench.models import Setup
from tagi.bench.timing import Case, Comparison, Group, Progress, Series, alternate
from tagi.errors import ConfigError
from tagi.infer.compiled import Compiled
from tagi.infer.engine import prepare
from tagi.methods import get
from tagi.model import adapter as adapters
from tagi.model.adapter import TaskAdapter
from tagi.model.costs import TaskLengths, reading
from tagi.model.peft_files import save_peft
from tagi.model.tagi import TagiModel

SAME, DIFFERENT, IN_TURN, LORA, PEFT = (
    "tagi, one task",
    "tagi, different tasks",
    "tagi, one task after another",
    "LoRA alone, different tasks",
    "peft adapter_names",
)


def warm(
    setup: Setup,
    task: TaskLengths,
    tasks: int,
    rounds: int,
    *,
    peft: bool,
    in_turn: bool = True,
    compiled: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """One example of each of so many tasks, all adapters at hand; first, as many examples of a single task.

    Args:
        in_turn: also answer one task after another.
        compiled: time batches of different tasks once more with the decoder's steps compiled.

    Raises:
        ConfigError: `peft` is asked for and not installed, or nothing can be compiled here.
    """
    full, lora = setup.models([get("tagi"), get("lora_only")])
    many, one = _adapted(full, task, tasks), _adapted(full, task, 1)
    cases: dict[str, Case] = {
        SAME: _answering(full, one, task, tasks),
        **_both(DIFFERENT, full, many, task, compiled),
        **({IN_TURN: _in_turn(full, many, task)} if in_turn else {}),
        **_both(LORA, lora, _adapted(lora, task, tasks), task, compiled),
    }
    with tempfile.TemporaryDirectory() as folder:
        if peft:
            base = _written(lora, task, tasks, Path(folder))
            cases[PEFT] = _by_names(_load(base, Path(folder), tasks, setup.dtype), task, tasks)
        return _compared("tasks with adapters at hand", cases, tasks, rounds, progress)


def cold(
    setup: Setup, task: TaskLengths, tasks: int, rounds: int, *, peft: bool, progress: Progress | None = None
) -> Comparison:
    """From tasks never seen to one answer of each: we generate their adapters, `peft` loads its own from disk.

    Raises:
        ConfigError: `peft` is asked for and not installed.
    """
    full, lora = setup.models([get("tagi"), get("lora_only")])
    cases: dict[str, Case] = {
        DIFFERENT: lambda: _answering(full, _adapted(full, task, tasks), task, tasks)(),
        LORA: lambda: _answering(lora, _adapted(lora, task, tasks), task, tasks)(),
    }
    with tempfile.TemporaryDirectory() as folder:
        if peft:
            base = _written(lora, task, tasks, Path(folder))
            cases[PEFT] = lambda: _by_names(_load(base, Path(folder), tasks, setup.dtype), task, tasks)()
        return _compared("tasks never seen", cases, tasks, rounds, progress)


def _compared(what: str, cases: dict[str, Case], tasks: int, rounds: int, progress: Progress | None) -> Comparison:
    group = Group(f"{what}: {tasks:,}", cases, answers=tasks, series=Series(what, tasks))
    return alternate(group, rounds, progress)


@torch.inference_mode()
def _adapted(model: TagiModel, task: TaskLengths, tasks: int) -> TaskAdapter:
    told = torch.randint(2, model.backbone.shape.vocab_size, (tasks, reading(model.method, task).once))
    return model.adapt(told, torch.ones_like(told))


def _both(name: str, model: TagiModel, adapter: TaskAdapter, task: TaskLengths, compiled: bool) -> dict[str, Case]:
    """An example of each of the adapter's tasks, without and perhaps with compiled steps."""
    each = ways(name, model, compiled=compiled).items()
    return {name: _answering(model, adapter, task, adapter.tasks, steps) for name, steps in each}


def _answering(
    model: TagiModel, adapter: TaskAdapter, task: TaskLengths, examples: int, compiled: Compiled | None = None
) -> Callable[[], None]:
    with torch.inference_mode():
        worn = prepare(model, adapter, examples)
    return answer(model, worn, reading(model.method, task), examples, task.target, compiled)


def _in_turn(model: TagiModel, adapter: TaskAdapter, task: TaskLengths) -> Callable[[], None]:
    each = [_answering(model, one, task, 1) for one in adapters.unstack(adapter)]

    def case() -> None:
        for one in each:
            one()

    return case


def _written(model: TagiModel, task: TaskLengths, tasks: int, folder: Path) -> Path:
    """The language model, and every task's LoRA as `peft` reads it."""
    base = folder / "base"
    save_t5(as_t5(model.backbone), base)
    for number, one in enumerate(adapters.unstack(_adapted(model, task, tasks))):
        save_peft(one.modules, str(base), folder / f"{number}", "For a measurement.")
    return base


def _load(base: Path, folder: Path, tasks: int, dtype: torch.dtype) -> Any:
    """A `peft` model with an adapter for every task, everything in the same number format."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ConfigError("this comparison needs peft: pip install peft, or --no-peft") from error
    plain: Any = T5ForConditionalGeneration.from_pretrained(base)
    model = PeftModel.from_pretrained(plain.to(dtype), folder / "0", adapter_name="0", autocast_adapter_dtype=False)
    for number in range(1, tasks):
        model.load_adapter(folder / f"{number}", adapter_name=f"{number}", autocast_adapter_dtype=False)
    return model.eval()


def _by_names(model: Any, task: TaskLengths, tasks: int) -> Callable[[], Tensor]:
    ids = torch.full((tasks, task.input), 2)
    names = [f"{number}" for number in range(tasks)]
    steps = {"max_new_tokens": task.target, "min_new_tokens": task.target, "do_sample": False}

    @torch.inference_mode()
    def case() -> Tensor:
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=names, **steps)

    return case
