"""FLOPs of a task: equal to what torch counts when the task is solved."""

import pytest
import torch
from torch import Tensor

from builders import SMALL_FUSION, SMALL_HYPERNETWORK, VOCABULARY, counter, small_t5, small_tagi
from tagi import methods
from tagi.backbones.rows import Rows
from tagi.methods import Method
from tagi.model import costs
from tagi.model.costs import TaskLengths
from tagi.model.tagi import TagiModel

TASK = TaskLengths(instruction=9, demonstration=4, shots=2, input=7, target=5, examples=6)
ALL = [method for method in methods.METHODS if not method.decoder_only]


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
    rows = Rows(1, len(prompts))
    with counter() as adapting:
        prepared = model.prepare(model.adapt(told, torch.ones_like(told)))
    with counter() as answering:
        context = model.encode_input(prompts, torch.ones_like(prompts), prepared, rows)
        past, token = None, ids(len(prompts), 1)
        for _ in range(task.target):
            _, past = model.backbone.decode(token, context, modules=prepared.adapter.modules, rows=rows, past=past)
    return adapting.get_total_flops(), answering.get_total_flops()


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
def test_a_task_costs_what_torch_counts(method: Method) -> None:
    backbone = small_t5(gated=True, activation="gelu_new", num_layers=3, num_decoder_layers=2)
    model = small_tagi(method.name, backbone=backbone)
    found = costs.task_flops(backbone.shape, method, SMALL_HYPERNETWORK, SMALL_FUSION, TASK)
    assert (found.adaptation, found.answering) == counted(model, TASK)


def test_the_floor_is_the_bare_model_on_the_inputs() -> None:
    backbone = small_t5()
    bare = costs.task_flops(backbone.shape, methods.get("no_instruction"), SMALL_HYPERNETWORK, SMALL_FUSION, TASK)
    assert costs.floor(backbone.shape, TASK) == bare.total == sum(counted(small_tagi("no_instruction"), TASK))


def test_without_demonstrations_icl_costs_what_metatraining_costs() -> None:
    shape, none = small_t5().shape, TaskLengths(9, 4, 0, 7, 5)
    each = {
        name: costs.task_flops(shape, methods.get(name), SMALL_HYPERNETWORK, SMALL_FUSION, none).total
        for name in ("metatrain", "concat_icl", "fid_icl", "ensemble_icl")
    }
    assert len(set(each.values())) == 1
