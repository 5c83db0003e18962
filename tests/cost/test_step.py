"""A batch counted on meta tensors against the same batch on real ones, and shallow models against whole ones."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from builders import SMALL_FUSION, SMALL_HYPERNETWORK, VOCABULARY, counter, small_decoder, small_t5, small_tagi, trained
from tagi import methods
from tagi.backbones.language_model import LanguageModel
from tagi.backbones.rows import Rows
from tagi.config import BankConfig, FusionConfig, HypernetworkConfig, Part, T5Shape, TrainingConfig
from tagi.cost import step
from tagi.cost.step import Lengths, Work, batch_cost, by_depth, count_flops, count_memory, optimizer_bytes
from tagi.losses import cross_entropy
from tagi.model.tagi import TagiModel
from tagi.train import optim

CPU, META = torch.device("cpu"), torch.device("meta")
LENGTHS = Lengths(tasks=2, rows=6, instruction=8, input=5, target=3)
GATED = {"gated": True, "activation": "gelu_new", "tied": False, "scale_outputs": False}
BACKBONES: dict[str, LanguageModel] = {
    "t5": small_t5(num_layers=3, num_decoder_layers=2),
    "t5-v1_1": small_t5(**GATED),
    "dropout": small_t5(dropout_rate=0.1),
    "decoder": small_decoder(num_layers=3),
    "gpt2-like": small_decoder(num_kv_heads=4, rotary=None, learned={}, norm="layer", gated=False, activation="gelu"),
}
SYSTEMS: list[tuple[str, tuple[Part, ...]]] = [
    ("tagi", ("hypernetwork", "fusion")),
    ("tagi", ("backbone", "hypernetwork", "fusion")),
    ("lora_only", ("hypernetwork",)),
    ("lora_concat", ("hypernetwork",)),
    ("metatrain", ("backbone",)),
    ("hypter", ("hypernetwork",)),
    ("hypertuning_prefix", ("hypernetwork",)),
    ("hint", ("backbone", "hypernetwork")),
]
SYSTEM = pytest.mark.parametrize(("method", "parts"), SYSTEMS)
FEW = pytest.mark.parametrize(("method", "parts"), [SYSTEMS[0], SYSTEMS[4], SYSTEMS[7]])
"""TAGI, a trained language model, and both with further kinds of modules."""
WITHOUT_DROPOUT = {name: one for name, one in BACKBONES.items() if name != "dropout"}
"""Whose masks are floats on the CPU."""
BACKBONE = pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)


def work(backbone: LanguageModel, method: str, parts: tuple[Part, ...], **changes: Any) -> Work:
    lengths = LENGTHS if methods.get(method).reads_instruction_once else replace(LENGTHS, instruction=0)
    made = Work(backbone.shape, methods.get(method), SMALL_HYPERNETWORK, SMALL_FUSION, lengths, parts)
    return replace(made, **changes)


def text(*shape: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(2, VOCABULARY, shape)
    return ids, torch.ones_like(ids, dtype=torch.bool)


def real_loss(model: TagiModel, lengths: Lengths) -> Tensor:
    told, rows = text(lengths.tasks, lengths.instruction), Rows(lengths.tasks, lengths.rows)
    targets, _ = text(lengths.rows, lengths.target)
    logits = model(*told, *text(lengths.rows, lengths.input), targets, rows).logits
    return cross_entropy(logits, targets).total


def real_model(work: Work, backbone: LanguageModel) -> TagiModel:
    model = trained(small_tagi(work.method.name, fusion=work.fusion, backbone=backbone)).train().requires_grad_(False)
    for module in (module for part in work.trainable for module in model.part(part)):
        module.requires_grad_(True)
    return model


@SYSTEM
@BACKBONE
def test_flops_are_what_torch_counts_in_training(backbone: LanguageModel, method: str, parts: tuple[Part, ...]) -> None:
    asked = work(backbone, method, parts)
    model = real_model(asked, backbone)
    with counter() as counting:
        real_loss(model, asked.lengths).backward()
    assert batch_cost(asked).flops == counting.get_total_flops() > 0


@pytest.mark.parametrize(("dtype", "checkpointing"), [(torch.float32, False), (torch.bfloat16, True)])
@FEW
@BACKBONE
def test_memory_is_that_of_real_tensors(
    backbone: LanguageModel, method: str, parts: tuple[Part, ...], dtype: torch.dtype, checkpointing: bool
) -> None:
    asked = work(backbone, method, parts, checkpointing=checkpointing, dtype=dtype)
    ours, real = (count_memory(asked, asked.shape, device) for device in (META, CPU))
    # statistics of a layer norm are fp32 on accelerators, bf16 on the CPU; a decoder's tasks have one position each
    differs = 0.015 if backbone is BACKBONES["gpt2-like"] and dtype == torch.bfloat16 else 0.0
    assert ours == pytest.approx(real, rel=differs, abs=16)


@FEW
@pytest.mark.parametrize("backbone", WITHOUT_DROPOUT.values(), ids=WITHOUT_DROPOUT)
def test_the_peak_is_little_above_what_autograd_keeps(
    backbone: LanguageModel, method: str, parts: tuple[Part, ...]
) -> None:
    """Never below; above it are logits, their gradients and whatever one block computes: measured 1.05 to 1.70."""
    asked = work(backbone, method, parts, lengths=replace(LENGTHS, input=64))
    model = real_model(asked, backbone)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with sdpa_kernel(SDPBackend.MATH), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        real_loss(model, asked.lengths)
    bytes_kept = sum(x.untyped_storage().nbytes() for pointer, x in kept.items() if pointer not in own)
    ratio = batch_cost(asked).activations / bytes_kept
    assert 1.0 < ratio < 1.8


DEEP = {
    "t5": small_t5(num_layers=6, num_decoder_layers=6, dropout_rate=0.1).shape,
    "deep-encoder": small_t5(num_layers=7, num_decoder_layers=5, **GATED).shape,
    "decoder": small_decoder(num_layers=8).shape,
    "windows": small_decoder(num_layers=8, window=4, window_layers=(0, 1, 2, 3, 4, 5, 6, 7)).shape,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "parts", "changes"),
    [
        (*SYSTEMS[0], {}),
        (*SYSTEMS[0], {"checkpointing": True, "taught": 11}),
        (*SYSTEMS[4], {"checkpointing": True}),
        (*SYSTEMS[5], {"dtype": torch.bfloat16}),
        (*SYSTEMS[7], {}),
    ],
)
@pytest.mark.parametrize("shape", DEEP.values(), ids=DEEP)
def test_shallow_models_tell_what_the_whole_costs(
    shape: Any, method: str, parts: tuple[Part, ...], changes: dict[str, Any]
) -> None:
    asked = replace(work(BACKBONES["t5"], method, parts, **changes), shape=shape)
    whole = *count_flops(asked, shape, META), max(count_memory(asked, shape, META))
    assert batch_cost(asked) == whole


@pytest.mark.parametrize("depth", [5, 6])
def test_fusion_in_every_second_block(depth: int) -> None:
    shape = small_t5(num_layers=depth, num_decoder_layers=depth).shape
    asked = replace(work(BACKBONES["t5"], *SYSTEMS[0]), shape=shape, fusion=FusionConfig(width=8, heads=2, every=2))
    assert batch_cost(asked).flops == count_flops(asked, shape, META)[0]


def test_only_deep_models_are_counted_by_shallow_ones() -> None:
    counted: list[tuple[int, ...]] = []

    def count(shape: Any) -> tuple[int, ...]:
        counted.append(shape.depths)
        return (10 + 3 * shape.num_layers,)

    shape = T5Shape(vocab_size=8, num_layers=24, num_decoder_layers=20)
    assert by_depth(shape, count, first=3) == (10 + 3 * 24,)
    assert by_depth(shape.with_depths((2, 2)), count) == (16,)
    assert counted == [(7, 3), (8, 4), (2, 2)]


def test_lora_banks() -> None:
    """Lanes add up; frozen weights are neither given gradients nor kept for them."""
    backbone, bank = BACKBONES["t5"], BankConfig(rank=3)
    one, four = (
        batch_cost(work(backbone, "no_instruction", (), bank=bank, lengths=Lengths(n, 2 * n, 0, 5, 3))) for n in (1, 4)
    )
    assert four.flops == 4 * one.flops
    full = batch_cost(work(backbone, "no_instruction", ("backbone",), lengths=Lengths(4, 8, 0, 5, 3)))
    assert one.flops < full.flops and four.activations < full.activations


def test_activation_checkpointing_trades_memory_for_flops() -> None:
    plain = work(BACKBONES["decoder"], "lora_only", ("hypernetwork",), lengths=replace(LENGTHS, input=64))
    found, again = batch_cost(plain), batch_cost(replace(plain, checkpointing=True))
    assert again.flops > found.flops and again.activations < found.activations


def test_demonstrations_that_are_encoded_apart() -> None:
    lengths = replace(LENGTHS, instruction=8)
    whole, apart = (
        batch_cost(work(BACKBONES["t5"], "fid_icl", ("backbone",), lengths=replace(lengths, pieces=n))) for n in (1, 2)
    )
    assert apart.flops < whole.flops  # tokens of different demonstrations do not attend to each other


@pytest.mark.parametrize("name", ["adamw", "adamw_rms", "muon", "adafactor"])
def test_the_state_of_an_optimizer(name: str) -> None:
    config = TrainingConfig.model_validate(
        {"steps": 1, "optimizer": name, "trainable": ["backbone", "hypernetwork", "fusion"]}
    )
    sizes: dict[torch.device, int] = {}
    for device in (CPU, META):
        with device:
            model = TagiModel(small_t5().to(device), methods.get("tagi"), HypernetworkConfig(rank=3), FusionConfig())
        sizes[device] = optimizer_bytes(optim.build(optim.trainable(model, config), config))
    assert sizes[META] == sizes[CPU] > 0


def test_a_batch_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = work(small_t5(d_ff=44), "tagi", ("hypernetwork",))
    batch_cost(asked)
    monkeypatch.setattr(step, "count_flops", None)
    assert batch_cost(replace(asked)) == batch_cost(asked)
