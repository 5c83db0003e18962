"""Fusion (Eq. 1) and attention over (I; F) against literal loops over rows and heads."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from builders import normal, random_lora, seeded, small_t5, small_tagi, token_batch, worst
from tagi.backbones.attention import attend, attend_concatenated, padding_bias
from tagi.backbones.base import Prepared
from tagi.backbones.cache import KeyValue
from tagi.backbones.encoded import EncodedInstruction
from tagi.backbones.rows import Rows
from tagi.backbones.t5.cache import Inputs
from tagi.config import FusionConfig
from tagi.errors import ConfigError
from tagi.model.fusion import CrossAttentionLayer, Fusion, initialise
from tagi.model.tagi import TagiModel

D_MODEL, LAYERS = 32, 3
LITERAL = 5e-6  # worst 1.1e-6, values up to 4
LAYOUTS = [
    pytest.param(Rows(2, 4), [0, 0, 1, 1], id="groups"),
    pytest.param(Rows(1, 3), [0, 0, 0], id="one task"),
    pytest.param(Rows(3, 3), [0, 1, 2], id="a task per row"),
    pytest.param(Rows.of(torch.tensor([2, 0, 1, 0, 2]), 3), [2, 0, 1, 0, 2], id="mixed"),
]
LENGTHS = [4, 1, 6]
OPTIONS = [
    pytest.param(FusionConfig(), id="default"),
    pytest.param(FusionConfig(width=8, heads=2), id="width and heads"),
    pytest.param(FusionConfig(width=12, heads=1, every=2), id="every second"),
]
"""Every field of the config is changed in one of them."""


def small_fusion(config: FusionConfig, *, trained: bool = True) -> Fusion:
    """Three blocks of fusion with random norms and, if trained, open gates."""
    fusion, generator = Fusion(D_MODEL, LAYERS, config), seeded(0)
    initialise(fusion, generator)
    with torch.no_grad():
        for layer in layers_of(fusion):
            layer.norm.weight.uniform_(0.5, 1.5, generator=generator)
            layer.gate.fill_(0.7 if trained else 0.0)
    return fusion


def layers_of(fusion: Fusion) -> list[CrossAttentionLayer]:
    return cast(list[CrossAttentionLayer], list(fusion.layers.values()))


def instructions(lengths: Sequence[int], *, seed: int = 0) -> EncodedInstruction:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return EncodedInstruction(normal(len(lengths), max(lengths), D_MODEL, seed=seed), mask)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean() + 1e-6) * weight


def literal_fusion(layer: CrossAttentionLayer, token: Tensor, instruction: Tensor) -> Tensor:
    """Eq. 1 for one token (D,) of S_l and one unpadded instruction (S, D), head by head."""
    query = rms(token, layer.norm.weight)
    width = layer.q.out_features // layer.heads
    heads: list[Tensor] = []
    for head in range(layer.heads):
        part = slice(head * width, (head + 1) * width)
        q, k, v = (
            layer.q.weight[part] @ query,
            instruction @ layer.k.weight[part].T,
            instruction @ layer.v.weight[part].T,
        )
        scores = torch.stack([q @ key / math.sqrt(width) for key in k])
        heads.append(torch.softmax(scores, dim=0) @ v)
    return token + layer.gate * (layer.o.weight @ torch.cat(heads))


@pytest.mark.parametrize(("rows", "owner"), LAYOUTS)
@pytest.mark.parametrize("config", OPTIONS)
@torch.no_grad()
def test_equation_1_literally(config: FusionConfig, rows: Rows, owner: list[int]) -> None:
    fusion, encoded = small_fusion(config), instructions(LENGTHS[: rows.tasks])
    x = normal(rows.count, 5, D_MODEL, seed=1)
    fuse = fusion.prepare(encoded)
    for block in range(LAYERS):
        found = fuse(block, x, rows)
        if block % config.every:
            assert found is x
            continue
        layer = cast(CrossAttentionLayer, fusion.layers[str(block)])
        for row, task in enumerate(owner):
            own = encoded.hidden[task, : LENGTHS[task]]
            expected = [literal_fusion(layer, token, own) for token in x[row]]
            assert worst(found[row], torch.stack(expected)) < LITERAL


def test_width_is_a_quarter_of_the_model_unless_told_otherwise() -> None:
    assert layers_of(Fusion(D_MODEL, 1, FusionConfig()))[0].q.out_features == 8
    assert layers_of(Fusion(D_MODEL, 1, FusionConfig(width=20)))[0].q.out_features == 20


@pytest.mark.parametrize(("every", "blocks"), [(1, ["0", "1", "2"]), (2, ["0", "2"]), (3, ["0"])])
def test_every_nth_block_has_a_layer(every: int, blocks: list[str]) -> None:
    assert list(Fusion(D_MODEL, LAYERS, FusionConfig(every=every)).layers) == blocks


def test_width_must_divide_into_heads() -> None:
    with pytest.raises(ConfigError, match=r"fusion.width: 8 is no multiple of fusion.heads \(3\)"):
        Fusion(D_MODEL, 1, FusionConfig(heads=3))


def logits(model: TagiModel, instruction: tuple[Tensor, Tensor], *, gate: float) -> Tensor:
    """Of two rows of each of two tasks, every norm random and every gate as given."""
    assert model.fusion is not None
    for layer in layers_of(model.fusion):
        layer.norm.weight.copy_(torch.linspace(0.5, 1.5, len(layer.norm.weight)))
        layer.gate.fill_(gate)
    ids, mask = token_batch([6, 3, 5, 4], seed=1)
    adapter = model.adapt(*instruction)
    return model.respond(adapter, ids, mask, token_batch([4] * 4, seed=2)[0], Rows(2, 4)).logits


@pytest.mark.parametrize("config", OPTIONS)
@torch.no_grad()
def test_closed_gates_and_empty_instructions_change_no_bit_of_the_logits(config: FusionConfig) -> None:
    """For every option, against the language model without any fusion; open gates with an instruction do."""
    model = small_tagi("lora_fusion", fusion=config)
    told, padding = token_batch([5, 2], seed=0), torch.zeros(2, 5, dtype=torch.bool)
    batch = *token_batch([6, 3, 5, 4], seed=1), token_batch([4] * 4, seed=2)[0]
    expected = model.backbone.score(*batch, prepared=Prepared(2, {}), rows=Rows(2, 4))
    assert torch.equal(logits(model, told, gate=0.0), expected)
    assert torch.equal(logits(model, (told[0], padding), gate=0.7), expected), "an instruction of padding alone"
    assert torch.equal(logits(model, (told[0][:, :0], padding[:, :0]), gate=0.7), expected), "one without any length"
    assert worst(logits(model, told, gate=0.7), expected) > 0.01


def test_every_option_is_tested() -> None:
    """An option that is added to the config belongs into `OPTIONS`."""
    changed = {field for option in OPTIONS for field in cast(FusionConfig, option.values[0]).model_fields_set}
    assert changed == set(FusionConfig.model_fields) - {"prefix"}, "which is of decoder-only models, see test_tagi.py"


@torch.no_grad()
def test_content_of_padding_changes_no_bit() -> None:
    fusion, encoded = small_fusion(FusionConfig()), instructions(LENGTHS)
    other = replace(encoded, hidden=torch.where(encoded.mask[..., None], encoded.hidden, 50.0))
    x, rows = normal(6, 5, D_MODEL, seed=1), Rows(3, 6)
    one, two = (fusion.prepare(each)(0, x, rows) for each in (encoded, other))
    assert torch.equal(one, two)


@torch.no_grad()
def test_an_instruction_is_projected_once_per_task_and_layer() -> None:
    """Six rows of three tasks: keys see each task's instruction once, and never again while rows are fused."""
    fusion, encoded = small_fusion(FusionConfig()), instructions(LENGTHS)
    seen: list[tuple[int, ...]] = []

    def note(_module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        seen.append(tuple(inputs[0].shape))

    for layer in layers_of(fusion):
        layer.k.register_forward_hook(note)
        layer.v.register_forward_hook(note)
    fuse = fusion.prepare(encoded)
    for block in range(LAYERS):
        fuse(block, normal(6, 5, D_MODEL, seed=1), Rows(3, 6))
    assert seen == [tuple(encoded.hidden.shape)] * (2 * LAYERS)


@torch.no_grad()
def test_instructions_stack_and_part_as_their_tasks_do() -> None:
    fusion, x = small_fusion(FusionConfig()), normal(3, 5, D_MODEL, seed=1)
    one, other = (fusion.prepare(instructions(lengths, seed=seed)) for lengths, seed in (([4, 1], 0), ([6], 1)))
    together = one.stack([other])
    apart = torch.cat((one(0, x[:2], Rows(2, 2)), other(0, x[2:], Rows(1, 1))))
    assert worst(together(0, x, Rows(3, 3)), apart) < LITERAL
    picked = torch.tensor([2, 0])
    assert worst(together.select(picked)(0, x[picked], Rows(2, 2)), apart[picked]) < LITERAL


def test_gate_opens_first_and_then_everything_learns() -> None:
    fusion, encoded = small_fusion(FusionConfig(), trained=False), instructions([4])
    x = normal(2, 5, D_MODEL, seed=1)

    def step() -> set[str]:
        fusion.zero_grad()
        fusion.prepare(encoded)(0, x, Rows(1, 2)).pow(2).sum().backward()
        first = layers_of(fusion)[0]
        return {name for name, p in first.named_parameters() if p.grad is not None and p.grad.any()}

    assert step() == {"gate"}
    with torch.no_grad():
        layers_of(fusion)[0].gate.add_(0.1)
    assert step() == {"gate", "norm.weight", "q.weight", "k.weight", "v.weight", "o.weight"}


@pytest.mark.parametrize(("rows", "owner"), LAYOUTS)
def test_attending_beside_an_instruction_equals_attending_to_the_concatenation(rows: Rows, owner: list[int]) -> None:
    heads, width, queries, length = 2, 4, 3, 5
    lengths = LENGTHS[: rows.tasks]
    told = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    instruction = KeyValue(
        normal(rows.tasks, heads, max(lengths), width, seed=0),
        normal(rows.tasks, heads, max(lengths), width, seed=1),
    )
    own = KeyValue(normal(rows.count, heads, length, width, seed=2), normal(rows.count, heads, length, width, seed=3))
    q = normal(rows.count, heads, queries, width, seed=4)
    input_mask = torch.arange(length) < torch.arange(1, rows.count + 1)[:, None]
    bias, told_bias = (padding_bias(mask, q.dtype) for mask in (input_mask, told))
    found = attend_concatenated(q, own, bias, instruction, told_bias, rows)
    for row, task in enumerate(owner):
        tokens = input_mask[row]
        k = torch.cat((instruction.k[task, :, : lengths[task]], own.k[row][:, tokens]), dim=1)
        v = torch.cat((instruction.v[task, :, : lengths[task]], own.v[row][:, tokens]), dim=1)
        expected = attend(q[row][None], KeyValue(k[None], v[None]), torch.zeros(1))
        assert worst(found[row], expected[0]) < LITERAL


@torch.no_grad()
def test_decoder_beside_an_instruction_equals_decoder_over_concatenated_hidden_states() -> None:
    """(I; F) of the paper, literally: one sequence of hidden states for the cross-attention, LoRA applied."""
    t5 = small_t5()
    rows, owner = Rows.of(torch.tensor([1, 0, 1]), 2), [1, 0, 1]
    lora = random_lora(t5, 2, seed=0)
    told, own = instructions([4, 2]), instructions([3, 5, 1], seed=1)
    decoder_ids, _ = token_batch([6, 6, 6], seed=2)

    def inputs(hidden: Tensor, mask: Tensor) -> Inputs:
        return Inputs(t5.cross_key_values(hidden, lora, rows), padding_bias(mask, hidden.dtype))

    joined = inputs(
        *(torch.cat(pair, dim=1) for pair in ((told.hidden[owner], own.hidden), (told.mask[owner], own.mask)))
    )
    expected, _ = t5.decode(decoder_ids, joined, Prepared(2, lora), rows)
    prepared, alone = t5.prepare(told, lora), inputs(own.hidden, own.mask)
    assert prepared.attended is not None
    for beside in (alone, alone.with_instruction(prepared.attended, rows)):
        found, _ = t5.decode(decoder_ids, beside, prepared, rows)
        assert worst(found, expected) < LITERAL
