"""FLOPs of a task: equal to what torch counts when the task is solved."""

from typing import cast

import pytest
import torch
from torch import Tensor

from builders import SMALL_FUSION, SMALL_HYPERNETWORK, VOCABULARY, counter, small_decoder, small_t5, small_tagi
from tagi import methods
from tagi.backbones.base import Backbone
from tagi.backbones.language_model import LanguageModel, build
from tagi.backbones.rows import Rows
from tagi.cost.task import TaskFlops, TaskLengths, count_task
from tagi.errors import ConfigError
from tagi.methods import Method
from tagi.model.tagi import TagiModel

TASK = TaskLengths(instruction=9, demonstration=4, shots=2, input=7, target=5, examples=6)
BACKBONES: dict[str, LanguageModel] = {
    "t5": small_t5(gated=True, activation="gelu_new", num_layers=5, num_decoder_layers=4),
    "decoder": small_decoder(num_layers=5),
}
SYSTEMS = [
    (name, method)
    for name, backbone in BACKBONES.items()
    for method in methods.METHODS
    if backbone.has_encoder or method.name not in ("fid_icl", "lora_fusion")
]


def ids(*shape: int) -> Tensor:
    return torch.randint(2, VOCABULARY, shape)


def instruction_of(method: Method, task: TaskLengths) -> Tensor:
    if method.apart:
        return ids(1, task.shots, task.demonstration)
    return ids(1, task.instruction + task.shots * task.demonstration if method.reads_instruction_once else 0)


def prompts_of(method: Method, task: TaskLengths) -> Tensor:
    if not method.prompt:
        return ids(task.examples, task.input)
    alone = task.instruction + task.input
    if method.apart:
        return ids(task.examples, alone)
    if method.demonstrations == "averaged":
        return ids(task.examples * task.shots, alone + task.demonstration)
    return ids(task.examples, alone + task.shots * task.demonstration)


@torch.inference_mode()
def counted(model: TagiModel, task: TaskLengths) -> tuple[int, int]:
    """Adapting and answering, step by step with a cache, every answer of full length."""
    told, prompts = instruction_of(model.method, task), prompts_of(model.method, task)
    with counter() as adapting:
        prepared = model.prepare(model.adapt(told, torch.ones_like(told, dtype=torch.bool)))
    backbone = cast(Backbone, model.backbone)
    with counter() as answering:
        mask, rows = torch.ones_like(prompts, dtype=torch.bool), Rows(1, len(prompts))
        _, cache = backbone.begin(prompts, mask, prepared=prepared, rows=rows)
        for _ in range(task.target - 1):
            _, cache = backbone.step(ids(len(prompts)), cache)
    return adapting.get_total_flops(), answering.get_total_flops()


def found(backbone: LanguageModel, name: str, task: TaskLengths = TASK) -> TaskFlops:
    with torch.device("meta"):
        model = TagiModel(build(backbone.shape), methods.get(name), SMALL_HYPERNETWORK, SMALL_FUSION)
    return count_task(model.eval(), task)


@pytest.mark.parametrize(("name", "method"), SYSTEMS, ids=lambda one: getattr(one, "name", one))
def test_a_task_costs_what_torch_counts(name: str, method: Method) -> None:
    backbone = BACKBONES[name]
    assert found(backbone, method.name) == counted(small_tagi(method.name, backbone=backbone), TASK)


def test_the_instruction_is_paid_for_once() -> None:
    twice = TaskLengths(9, 4, 2, 7, 5, examples=12)
    for backbone in BACKBONES.values():
        one, two = found(backbone, "tagi"), found(backbone, "tagi", twice)
        assert (two.adaptation, two.answering) == (one.adaptation, 2 * one.answering)
        assert sum(found(backbone, "no_instruction")) < sum(two) < sum(found(backbone, "metatrain", twice))


@pytest.mark.parametrize("target", [1, 2])
def test_short_answers(target: int) -> None:
    task = TaskLengths(9, 4, 2, 7, target, examples=3)
    assert found(BACKBONES["decoder"], "tagi", task) == counted(small_tagi(backbone=BACKBONES["decoder"]), task)


def test_without_demonstrations_icl_costs_what_metatraining_costs() -> None:
    none = TaskLengths(9, 4, 0, 7, 5)
    names = ("metatrain", "concat_icl", "fid_icl", "ensemble_icl")
    assert len({sum(found(BACKBONES["t5"], name, none)) for name in names}) == 1


def test_a_method_that_a_decoder_cannot_have() -> None:
    with pytest.raises(ConfigError, match="fid_icl encodes demonstrations apart"):
        found(BACKBONES["decoder"], "fid_icl")
