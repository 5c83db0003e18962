"""What one batch of training costs: forward and backward pass of the loss, on meta tensors (Eqs. 3, 5 and 6)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from tagi import methods
from tagi.backbones.language_model import build
from tagi.backbones.rows import Rows
from tagi.config import BankConfig, FusionConfig, HypernetworkConfig, Part, Shape
from tagi.cost.counting import Memory, Meta, flops
from tagi.losses import cross_entropy, distillation, soften
from tagi.methods import Method
from tagi.model.bank import BankModel, LoraBank
from tagi.model.tagi import TagiModel

STEADY = 3
"""Blocks from which on memory grows evenly: two already add up what reaches all of them, as a position bias."""
TEACHER = methods.get("metatrain")
"""Of Eq. 5: it reads the instruction in the prompt."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Sizes of one batch, padding included."""

    tasks: int
    rows: int
    instruction: int
    input: int
    target: int
    pieces: int = 1
    """Equal parts of the instruction that are encoded apart (FiD)."""


@dataclass(frozen=True, slots=True)
class Work:
    """A batch of training, in all that its cost depends on."""

    shape: Shape
    method: Method
    hypernetwork: HypernetworkConfig
    fusion: FusionConfig
    lengths: Lengths
    trainable: tuple[Part, ...]
    dtype: torch.dtype = torch.float32
    checkpointing: bool = False
    """Activation checkpointing."""
    bank: BankConfig | None = None
    """Of per-task LoRAs, one for each task of the batch, which are trained instead of any part."""
    taught: int | None = None
    """Tokens of instruction and input in one text, for an online teacher of the same shape that reads it (Eq. 5)."""


class BatchCost(NamedTuple):
    """Of a forward and a backward pass."""

    flops: int
    activations: int
    """Bytes at the peak, beside weights and their gradients."""


@cache
def batch_cost(work: Work) -> BatchCost:
    """FLOPs and memory of a batch, from shallow models of the same widths."""
    unit, meta = work.fusion.every, torch.device("meta")
    operations, *_ = by_depth(work.shape, partial(count_flops, work, device=meta), 1, unit)
    peaks = by_depth(work.shape, partial(count_memory, work, device=meta), STEADY, unit)
    return BatchCost(operations, max(peaks))


def by_depth(shape: Shape, count: Callable[[Shape], tuple[int, ...]], first: int = 1, unit: int = 1) -> tuple[int, ...]:
    """What `count` gives for a shape, each number linear in the blocks that all stacks have more.

    Args:
        first: blocks of the shallowest stack from which on that is so.
        unit: blocks after which they repeat.
    """
    spare = (min(shape.depths) - first) // unit
    if spare < 2:
        return count(shape)
    less, more = (
        count(shape.with_depths([depth - left_out * unit for depth in shape.depths])) for left_out in (spare, spare - 1)
    )
    return tuple(one + spare * (two - one) for one, two in zip(less, more, strict=True))


def count_flops(work: Work, shape: Shape, device: torch.device) -> tuple[int]:
    """FLOPs of a batch's forward and backward pass."""
    _, loss = built(work, shape, device)
    return flops(lambda: loss().backward())[:1]


def count_memory(work: Work, shape: Shape, device: torch.device) -> tuple[int, ...]:
    """Bytes at the peak of every part of a batch; gradients lie there already, as from a batch before.

    Memory grows or shrinks evenly while a pass goes through a stack of blocks, so that its peak is at either end: the
    parts begin behind the first and the last block of each, on the way forward and on the way back.
    """
    models, loss = built(work, shape, device)
    own = [x for model in models for x in (*model.parameters(), *model.buffers())]
    for tensor in own:
        tensor.grad = torch.zeros_like(tensor) if tensor.requires_grad else None
    held = [x for tensor in own for x in (tensor, tensor.grad) if x is not None]
    stacks = [module for model in models for module in model.modules() if isinstance(module, nn.ModuleList)]
    watched = [*models, *(block for stack in stacks for block in (stack[0], stack[-1]))]
    memory = Memory(held, 1 + 2 * len(watched))
    hooks = [block.register_forward_hook(partial(_behind, memory, 2 * i + 1)) for i, block in enumerate(watched)]
    with sdpa_kernel(SDPBackend.MATH), memory:
        total = loss()
        for hook in hooks:
            hook.remove()  # what is computed again is on the way back
        total.backward()
    return tuple(memory.peaks)


def _behind(memory: Memory, part: int, block: nn.Module, given: object, output: object) -> None:
    """Begin a part, and the next one when the gradient of the block's output is there."""
    memory.begin(part)
    hidden = tree_leaves(output)[0]
    if isinstance(hidden, Tensor) and hidden.requires_grad:
        hidden.register_hook(lambda _: memory.begin(part + 1))


def built(work: Work, shape: Shape, device: torch.device) -> tuple[list[nn.Module], Callable[[], Tensor]]:
    """Student, the trained parameters alone with gradients, and teacher; and the loss of a batch without padding."""

    def model(method: Method) -> TagiModel:
        with device:
            return TagiModel(build(shape), method, work.hypernetwork, work.fusion).to(work.dtype).requires_grad_(False)

    student = model(work.method).train()
    models: list[nn.Module] = [student] if work.taught is None else [student, model(TEACHER).eval()]
    if work.bank is not None:
        models = [bank_model(student, work.bank, work.lengths.tasks).to(work.dtype)]
    else:
        for module in (module for part in work.trainable for module in student.part(part)):
            module.requires_grad_(True)
    return models, lambda: _loss(models, work, device)


def bank_model(base: TagiModel, bank: BankConfig, groups: int) -> BankModel:
    """A language model with so many per-task LoRAs, their numbers left open."""
    backbone = base.backbone
    shapes = {site: backbone.site_shape(site) for site in backbone.sites("lora", bank.target_modules)}
    with backbone.embedding.weight.device:
        a0 = {site: torch.empty(bank.rank, wide) for site, (wide, _) in shapes.items()}
        return BankModel(base, LoraBank(a0, {site: out for site, (_, out) in shapes.items()}, groups, bank.scale))


def _loss(models: Sequence[nn.Module], work: Work, device: torch.device) -> Tensor:
    """L_pred, and L_kl of Eq. 5 where there is a teacher behind the student."""

    def text(*shape: int) -> tuple[Tensor, Tensor]:
        ids = torch.ones(shape, dtype=torch.long, device=device)
        return ids, torch.ones_like(ids, dtype=torch.bool)

    (student, *teachers), sizes, rows = models, work.lengths, Rows(work.lengths.tasks, work.lengths.rows)
    targets = text(sizes.rows, sizes.target)[0]
    told: tuple[Tensor, ...] = ()
    if work.bank is None and work.method.apart:
        told = text(sizes.tasks, sizes.pieces, sizes.instruction // sizes.pieces)
    elif work.bank is None:
        told = text(sizes.tasks, sizes.instruction)
    inputs = text(sizes.rows, sizes.input)
    logits = student(*told, *inputs, targets, rows, checkpointing=work.checkpointing).logits
    total = cross_entropy(logits, targets).total
    for teacher in teachers:
        with torch.no_grad():
            read = teacher(*text(sizes.tasks, 0), *text(sizes.rows, work.taught or 0), targets, rows)
            known = soften(read.logits, 1.0)
        total = total + distillation(logits, known, torch.ones_like(targets, dtype=torch.bool), 1.0).total
    return total


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """State of an optimizer over meta parameters after a step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    with Meta():
        optimizer.step()
    states = (state.values() for state in optimizer.state.values())
    return sum(x.nbytes for values in states for x in values if isinstance(x, Tensor))
