"""A batch with a different task in every row: against one task, against one task after another, against `peft`."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from tagi.bench.inference import answer, models_around
from tagi.bench.timing import Comparison, Progress, alternate
from tagi.config import FusionConfig, HypernetworkConfig, T5Shape
from tagi.errors import ConfigError
from tagi.infer.engine import prepare
from tagi.methods import get
from tagi.model import adapter as adapters
from tagi.model.adapter import TaskAdapter
from tagi.model.costs import TaskLengths, reading
from tagi.model.language_model import as_t5
from tagi.model.peft_files import save_peft
from tagi.model.t5_hf import save_t5
from tagi.model.tagi import TagiModel


def warm(
    shape: T5Shape,
    generator: HypernetworkConfig,
    task: TaskLengths,
    tasks: int,
    rounds: int,
    *,
    peft: bool,
    progress: Progress | None = None,
) -> Comparison:
    """One example of each of so many tasks, all adapters at hand; first, as many examples of a single task.

    Raises:
        ConfigError: `peft` is asked for and not installed.
    """
    full, lora = models_around(shape, [get("tagi"), get("lora_only")], generator, FusionConfig())
    many, one = _adapted(full, task, tasks), _adapted(full, task, 1)
    cases: dict[str, Callable[[], object]] = {
        "tagi, one task": _answering(full, one, task, tasks),
        f"tagi, {tasks} tasks": _answering(full, many, task, tasks),
        "tagi, one task after another": _in_turn(full, many, task),
        f"LoRA alone, {tasks} tasks": _answering(lora, _adapted(lora, task, tasks), task, tasks),
    }
    with tempfile.TemporaryDirectory() as folder:
        if peft:
            loaded = _load(_written(lora, task, tasks, Path(folder)), Path(folder), tasks)
            cases[f"peft adapter_names, {tasks} tasks"] = _by_names(loaded, task, tasks)
        return alternate(f"{tasks} examples, adapters at hand", cases, rounds, progress)


def cold(
    shape: T5Shape,
    generator: HypernetworkConfig,
    task: TaskLengths,
    tasks: int,
    rounds: int,
    *,
    peft: bool,
    progress: Progress | None = None,
) -> Comparison:
    """From tasks never seen to one answer of each: we generate their adapters, `peft` loads its own from disk.

    Raises:
        ConfigError: `peft` is asked for and not installed.
    """
    full, lora = models_around(shape, [get("tagi"), get("lora_only")], generator, FusionConfig())
    cases: dict[str, Callable[[], object]] = {
        f"tagi, {tasks} tasks": lambda: _answering(full, _adapted(full, task, tasks), task, tasks)(),
        f"LoRA alone, {tasks} tasks": lambda: _answering(lora, _adapted(lora, task, tasks), task, tasks)(),
    }
    with tempfile.TemporaryDirectory() as folder:
        if peft:
            base = _written(lora, task, tasks, Path(folder))
            name = f"peft adapter_names, {tasks} tasks"
            cases[name] = lambda: _by_names(_load(base, Path(folder), tasks), task, tasks)()
        return alternate(f"{tasks} examples, from tasks never seen", cases, rounds, progress)


@torch.inference_mode()
def _adapted(model: TagiModel, task: TaskLengths, tasks: int) -> TaskAdapter:
    told = torch.randint(2, model.backbone.shape.vocab_size, (tasks, reading(model.method, task).once))
    return model.adapt(told, torch.ones_like(told))


def _answering(model: TagiModel, adapter: TaskAdapter, task: TaskLengths, examples: int) -> Callable[[], None]:
    with torch.inference_mode():
        prepared = prepare(model, adapter, examples)
    return answer(model, prepared, reading(model.method, task), examples, task.target)


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


def _load(base: Path, folder: Path, tasks: int) -> Any:
    """A `peft` model with an adapter for every task."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ConfigError("this comparison needs peft: pip install peft, or --no-peft") from error
    plain: Any = T5ForConditionalGeneration.from_pretrained(base)
    model = PeftModel.from_pretrained(plain, folder / "0", adapter_name="0")
    for number in range(1, tasks):
        model.load_adapter(folder / f"{number}", adapter_name=f"{number}")
    return model.eval()


def _by_names(model: Any, task: TaskLengths, tasks: int) -> Callable[[], Tensor]:
    ids = torch.full((tasks, task.input), 2)
    names = [f"{number}" for number in range(tasks)]
    steps = {"max_new_tokens": task.target, "min_new_tokens": task.target, "do_sample": False}

    @torch.inference_mode()
    def case() -> Tensor:
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=names, **steps)

    return case
