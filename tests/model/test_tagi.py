"""The whole model on a T5 and on a decoder-only model: the neutral element, mixed batches, merging, what matters."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from builders import (
    SMALL_FUSION,
    SMALL_HYPERNETWORK,
    greedy,
    random_lora,
    same_adapter,
    small_decoder,
    small_t5,
    small_tagi,
    token_batch,
    trained,
    worst,
)
from tagi import methods
from tagi.backbones import lora
from tagi.backbones.base import Prepared
from tagi.backbones.language_model import LanguageModel
from tagi.backbones.rows import Rows
from tagi.config import HypernetworkConfig, Target
from tagi.errors import ConfigError
from tagi.methods import Method
from tagi.model import adapter as adapters
from tagi.model.adapter import TaskAdapter
from tagi.model.tagi import TagiModel, neutral

ALONE = 2e-5  # worst 5.3e-6, logits up to 5
MERGED = 1e-5  # worst 1.7e-6, logits up to 4
DOUBLE = 1e-11  # worst 8.2e-14, logits up to 16
EVERY: tuple[Target, ...] = ("q", "k", "v", "o", "gate", "up", "down")
LAYOUTS = [
    pytest.param([0, 0, 1, 1, 2, 2], id="groups"),
    pytest.param([0, 1, 2], id="a task per row"),
    pytest.param([2, 0, 1, 0, 2], id="mixed"),
    pytest.param([1, 1, 1], id="a stack of which one is applied"),
]
BACKBONES = {"t5": small_t5, "decoder": small_decoder}
REFUSED = ("fid_icl", "lora_fusion")
"""Methods that need an encoder."""
EACH = [
    pytest.param(small, method, id=f"{name}-{method.name}")
    for name, small in BACKBONES.items()
    for method in methods.METHODS
    if name == "t5" or method.name not in REFUSED
]


def on_t5(method: str = "tagi") -> TagiModel:
    return trained(small_tagi(method))


def on_decoder(
    method: str = "tagi", *, prefix: str = "base", targets: tuple[Target, ...] = ("q", "v"), untrained: bool = False
) -> TagiModel:
    """In double precision, for adapters of every projection make rounding grow; and with larger embeddings than random
    initialisation gives, of which logits are as large as those of the T5."""
    model = small_tagi(
        method,
        hypernetwork=SMALL_HYPERNETWORK.model_copy(update={"target_modules": targets}),
        fusion=SMALL_FUSION.model_copy(update={"prefix": prefix}),
        backbone=small_decoder(),
    )
    with torch.no_grad():
        model.backbone.embedding.weight.mul_(25.0)
    return (model if untrained else trained(model)).double()


MODELS: dict[str, Callable[[], TagiModel]] = {
    **{
        f"t5-{method}": (lambda method=method: on_t5(method))
        for method in ("tagi", "lora_only", "fusion_only", "hypter", "hypertuning_prefix", "hint")
    },
    **{
        f"decoder-{method}": (lambda method=method: on_decoder(method))
        for method in ("tagi", "lora_only", "lora_concat", "hypter", "hint", "metatrain", "no_instruction")
    },
    "decoder-prompt_lora": lambda: on_decoder("prompt_lora"),
    "decoder-shared_lora": lambda: on_decoder("shared_lora"),
    "decoder-shared_lora-adapted": lambda: on_decoder("shared_lora", prefix="adapted"),
    "decoder-adapted": lambda: on_decoder(prefix="adapted"),
    "decoder-hint-adapted": lambda: on_decoder("hint", prefix="adapted"),
    "decoder-every": lambda: on_decoder(targets=EVERY),
    "decoder-every-adapted": lambda: on_decoder(prefix="adapted", targets=EVERY),
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def respond(
    model: TagiModel, adapter: TaskAdapter, ids: Tensor, mask: Tensor, targets: Tensor, rows: Rows, **how: Any
) -> Tensor:
    prepared = model.prepare(adapter, **how)
    return model.backbone.score(ids, mask, targets, prepared=prepared, rows=rows)


def bound(model: TagiModel, single: float) -> float:
    return DOUBLE if model.backbone.embedding.weight.dtype == torch.float64 else single


def bare(backbone: LanguageModel, ids: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
    return backbone.score(ids, mask, targets, prepared=Prepared(1, {}), rows=Rows(1, len(ids)))


def inputs(lengths: Sequence[int] = (7, 3, 5)) -> tuple[Tensor, Tensor, Tensor]:
    """Input ids, their mask, and targets."""
    return *token_batch(lengths, seed=10), token_batch([6] * len(lengths), seed=11)[0]


@torch.no_grad()
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize(("backbone", "method"), EACH)
def test_neutral_adapter_changes_no_bit(backbone: Callable[[], LanguageModel], method: Method, tasks: int) -> None:
    model = trained(small_tagi(method.name, backbone=backbone()))
    found = respond(model, neutral(model.backbone, tasks), *inputs(), Rows(tasks, 3))
    assert torch.equal(found, bare(model.backbone, *inputs()))


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_untrained_lora_with_empty_instruction_changes_no_bit(backbone: Callable[[], LanguageModel]) -> None:
    model = small_tagi(hypernetwork=HypernetworkConfig(rank=3, hidden=8), backbone=backbone())
    adapter = model.adapt(*token_batch([4, 2, 6], seed=0)).without_instruction()
    assert all(factors.a.any() for factors in adapter.modules.values()), "A is not zero"
    for index in ([0, 1, 2], [2, 0, 0]):
        found = respond(model, adapter, *inputs(), Rows.of(torch.tensor(index), 3))
        assert torch.equal(found, bare(model.backbone, *inputs()))


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["base", "adapted"])
@pytest.mark.parametrize("targets", [("q", "v"), EVERY])
def test_untrained_lora_changes_no_bit_beside_the_instruction_of_a_decoder(
    targets: tuple[Target, ...], prefix: str
) -> None:
    model = on_decoder(prefix=prefix, targets=targets, untrained=True)
    told, rows = token_batch([4, 2, 6], seed=0), Rows.of(torch.tensor([2, 0, 0]), 3)
    alone = replace(neutral(model.backbone, 3), instruction=model.backbone.read(*told))
    expected = respond(model, alone, *inputs(), rows)
    assert torch.equal(respond(model, model.adapt(*told), *inputs(), rows), expected)
    assert worst(expected, bare(model.backbone, *inputs())) > 0.1, "the instruction should move the logits"


@torch.no_grad()
def test_untrained_fusion_changes_no_bit_of_the_encoder() -> None:
    backbone = small_t5()
    model = small_tagi("fusion_only", backbone=backbone)
    (ids, mask, _), rows = inputs(), Rows(1, 3)
    fused = backbone.inputs(ids, mask, model.prepare(model.adapt(*token_batch([4], seed=0))), rows)
    plain = backbone.inputs(ids, mask, Prepared(1, {}), rows)
    for one, other in zip(fused.layers, plain.layers, strict=True):
        assert torch.equal(one.k, other.k)
        assert torch.equal(one.v, other.v)


@torch.no_grad()
@pytest.mark.parametrize("owner", LAYOUTS)
@every_model
def test_batch_of_different_tasks_equals_each_task_alone(build: Callable[[], TagiModel], owner: list[int]) -> None:
    """Logits and greedy tokens, instructions and inputs of different lengths padded together."""
    model = build()
    instruction_lengths, input_lengths = [4, 9, 2], [7, 3, 5, 1, 6, 4][: len(owner)]
    instruction_ids, instruction_mask = token_batch(instruction_lengths, seed=0)
    ids, mask, targets = inputs(input_lengths)
    adapter = model.adapt(instruction_ids, instruction_mask)
    rows = Rows.of(torch.tensor(owner), 3)
    together = model.respond(adapter, ids, mask, targets, rows).logits
    tokens = greedy(model, ids, mask, model.prepare(adapter), rows, 8)
    for row, (task, length) in enumerate(zip(owner, input_lengths, strict=True)):
        own_ids = instruction_ids[task : task + 1, : instruction_lengths[task]]
        alone = model.adapt(own_ids, torch.ones_like(own_ids))
        one = slice(row, row + 1)
        expected = model.respond(alone, ids[one, :length], mask[one, :length], targets[one], Rows(1, 1)).logits
        assert worst(together[one], expected) < bound(model, ALONE)
        own_tokens = greedy(model, ids[one, :length], mask[one, :length], model.prepare(alone), Rows(1, 1), 8)
        assert torch.equal(tokens[row, : own_tokens.shape[1]], own_tokens[0])
        assert not tokens[row, own_tokens.shape[1] :].any()


@torch.no_grad()
@pytest.mark.parametrize("owner", LAYOUTS)
@pytest.mark.parametrize("build", [on_t5, on_decoder, MODELS["decoder-adapted"]])
def test_other_tasks_and_rows_change_no_bit(build: Callable[[], TagiModel], owner: list[int]) -> None:
    """Everything about the other tasks and rows is replaced; row 1 and its task stay as they were."""
    model = build()
    instruction_ids, instruction_mask = token_batch([9, 9, 9], seed=0)
    ids, mask, targets = inputs([7] * len(owner))
    kept_rows = torch.tensor([[row == 1] for row in range(len(owner))])
    kept_tasks = torch.tensor([[task == owner[1]] for task in range(3)])
    other_ids, other_targets = (tensor.flip(0).flip(1) for tensor in (ids, targets))
    rows = Rows.of(torch.tensor(owner), 3)
    before = model(instruction_ids, instruction_mask, ids, mask, targets, rows).logits
    after = model(
        torch.where(kept_tasks, instruction_ids, instruction_ids.flip(1)),
        instruction_mask,
        torch.where(kept_rows, ids, other_ids),
        mask,
        torch.where(kept_rows, targets, other_targets),
        rows,
    ).logits
    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[0], before[0]), "row 0 should have changed"


@torch.no_grad()
@pytest.mark.parametrize("build", [on_t5, on_decoder, MODELS["decoder-adapted"], MODELS["decoder-hint-adapted"]])
def test_stacked_adapters_equal_each_alone(build: Callable[[], TagiModel]) -> None:
    model = build()
    each = [model.adapt(*token_batch([length], seed=length)) for length in (2, 8, 5)]
    each.append(each[0].without_instruction())
    stacked = adapters.stack(each)
    assert stacked.tasks == 4
    assert stacked.instruction.mask.sum(1).tolist() == [2, 8, 5, 0]
    owner = [3, 1, 0, 2, 1]
    ids, mask, targets = inputs([7, 3, 5, 2, 4])
    together = respond(model, stacked, ids, mask, targets, Rows.of(torch.tensor(owner), 4))
    for row, task in enumerate(owner):
        one = slice(row, row + 1)
        alone = respond(model, each[task], ids[one], mask[one], targets[one], Rows(1, 1))
        assert worst(together[one], alone) < bound(model, ALONE)


@torch.no_grad()
@pytest.mark.parametrize("build", [on_t5, on_decoder, MODELS["decoder-adapted"]])
def test_forward_is_adapt_then_respond(build: Callable[[], TagiModel]) -> None:
    model = build()
    instruction, batch, rows = token_batch([4, 6], seed=0), inputs(), Rows.of(torch.tensor([1, 0, 1]), 2)
    output = model(*instruction, *batch, rows)
    assert torch.equal(output.logits, respond(model, model.adapt(*instruction), *batch, rows))
    same_adapter(output.adapter, model.adapt(*instruction))
    read = model(*instruction, *batch, rows, model.read(*instruction))
    assert torch.equal(read.logits, output.logits)


@torch.no_grad()
@pytest.mark.parametrize(("backbone", "method"), EACH)
def test_instruction_matters_exactly_where_the_method_says(
    backbone: Callable[[], LanguageModel], method: Method
) -> None:
    model = trained(small_tagi(method.name, backbone=backbone()))
    one, other = (model.adapt(*token_batch([5], seed=seed)) for seed in (0, 1))
    batch, rows = inputs(), Rows(1, 3)
    parts = {
        "modules": (one.without_instruction(), other.without_instruction()),
        "instruction": (one.without_modules(), other.without_modules()),
    }
    found = {
        name: not torch.equal(respond(model, a, *batch, rows), respond(model, b, *batch, rows))
        for name, (a, b) in parts.items()
    }
    assert found == {"modules": bool(method.writes), "instruction": method.fuses_encoder or method.fuses_decoder}
    if backbone is small_t5:
        t5: Any = model.backbone
        encoded = [t5.inputs(*batch[:2], model.prepare(a), rows).layers[0].k for a in parts["instruction"]]
        assert torch.equal(*encoded) is not method.fuses_encoder


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_the_instruction_is_read_without_adapter_and_fusion(backbone: Callable[[], LanguageModel]) -> None:
    model = trained(small_tagi(backbone=backbone()))
    ids, mask = token_batch([5, 3], seed=0)
    same_adapter(
        replace(neutral(model.backbone, 2), instruction=model.adapt(ids, mask).instruction),
        replace(neutral(model.backbone, 2), instruction=model.backbone.read(ids, mask)),
    )


@torch.no_grad()
@pytest.mark.parametrize("targets", [("q", "v"), EVERY])
def test_an_adapted_prefix_is_the_instruction_in_the_prompt_of_the_adapted_model(targets: tuple[Target, ...]) -> None:
    """So that any engine serves it as LoRA and a prompt whose beginning is cached; one of the base model is not."""
    ids, mask, outputs = inputs()
    told, _ = token_batch([5], seed=0)
    prompts = torch.cat((told.expand(3, -1), ids), dim=1)
    real = torch.cat((torch.ones(3, 5, dtype=torch.bool), mask), dim=1)
    for prefix in ("adapted", "base"):
        model = on_decoder(prefix=prefix, targets=targets)
        adapter = model.adapt(told, torch.ones_like(told))
        whole = respond(model, adapter.without_instruction(), prompts, real, outputs, Rows(1, 3))
        difference = worst(respond(model, adapter, ids, mask, outputs, Rows(1, 3)), whole)
        assert difference < DOUBLE if prefix == "adapted" else difference > 0.01


@torch.no_grad()
def test_separate_instruction_encoder_starts_as_the_backbone_and_is_its_own() -> None:
    config = HypernetworkConfig(rank=3, hidden=8, instruction_encoder="separate")
    model = small_tagi(hypernetwork=config)
    instruction = token_batch([5, 3], seed=0)
    assert model.instruction_encoder is not None
    names = {name.split(".")[0] for name, _ in model.instruction_encoder.named_parameters()}
    assert names == {"embedding", "encoder", "encoder_position", "encoder_norm"}, "no decoder, which would not be used"
    before = model.adapt(*instruction).instruction.hidden
    assert torch.equal(before, model.backbone.read(*instruction).hidden)
    for parameter in model.backbone.parameters():
        parameter.zero_()
    assert torch.equal(model.adapt(*instruction).instruction.hidden, before)


@torch.no_grad()
def test_separate_instruction_reader_of_a_decoder_writes_and_the_model_itself_is_attended_to() -> None:
    config = SMALL_HYPERNETWORK.model_copy(update={"instruction_encoder": "separate"})
    model = trained(small_tagi(hypernetwork=config, backbone=small_decoder()))
    instruction = token_batch([5, 3], seed=0)
    assert model.instruction_encoder is not None
    same_adapter(model.adapt(*instruction), trained(small_tagi(backbone=small_decoder())).adapt(*instruction))
    for parameter in model.instruction_encoder.parameters():
        parameter.add_(0.1)
    moved, own = model.adapt(*instruction), model.backbone.read(*instruction)
    assert worst(moved.instruction.hidden, own.hidden) > 0.01
    assert moved.instruction.attended is not None and own.attended is not None
    assert torch.equal(moved.instruction.attended.layers[1].v, own.attended.layers[1].v)


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
@pytest.mark.parametrize("method", ["hypter", "hypertuning_prefix", "hypertuning_lora"])
def test_own_encoder_is_part_of_hypter_and_hypertuning(method: str, backbone: Callable[[], LanguageModel]) -> None:
    """Ye and Ren (2021) and Phang et al. (2022) train a hypermodel; a config may still share the language model's."""
    model = small_tagi(method, backbone=backbone())
    assert model.instruction_encoder in model.part("hypernetwork")
    shared = SMALL_HYPERNETWORK.model_copy(update={"instruction_encoder": "lm"})
    assert small_tagi(method, hypernetwork=shared, backbone=backbone()).instruction_encoder is None


@pytest.mark.parametrize("method", ["tagi", "hint", "lora_only", "metatrain", "fid_icl"])
def test_own_encoder_is_of_no_other_method(method: str) -> None:
    assert small_tagi(method).instruction_encoder is None


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_merged_weights_equal_the_applied_adapter(backbone: Callable[[], LanguageModel]) -> None:
    """As factors that hold the sum, and added into the weights of a copy."""
    own = backbone()
    own.embedding.weight.mul_(1.0 if own.has_encoder else 25.0)
    applied = random_lora(own, 1, seed=0)
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    expected = own.score(*inputs(), prepared=Prepared(1, applied), rows=Rows(1, 3))
    merged = lora.merged(applied, own.site_weights())
    assert worst(own.score(*inputs(), prepared=Prepared(1, merged), rows=Rows(1, 3)), expected) < MERGED
    added = copy.deepcopy(own)
    for site, weight in added.site_weights().items():
        if site in applied:
            weight.add_(lora.delta(applied[site])[0])
    assert worst(bare(added, *inputs()), expected) < MERGED
    assert worst(bare(own, *inputs()), expected) > 0.1, "the LoRA should move the logits"
    for name, tensor in own.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@torch.no_grad()
@pytest.mark.parametrize(
    "build",
    [
        *(MODELS[name] for name in ("t5-tagi", "decoder-lora_concat", "decoder-every-adapted")),
        lambda: on_t5("lora_concat"),
    ],
)
def test_merged_weights_beside_the_instruction_equal_the_applied_adapter(build: Callable[[], TagiModel]) -> None:
    """A T5's instruction passes through the adapted projections too, as (I; F) is one sequence."""
    model = build()
    adapter, batch, rows = model.adapt(*token_batch([5], seed=0)), inputs(), Rows(1, 3)
    applied = respond(model, adapter, *batch, rows)
    assert worst(respond(model, adapter, *batch, rows, merge=True), applied) < bound(model, MERGED)
    assert worst(respond(model, adapter.without_modules(), *batch, rows), applied) > 0.1, "the LoRA moves the logits"


def test_only_one_task_merges_into_the_weights() -> None:
    t5 = small_t5()
    with pytest.raises(ValueError, match="only one task"):
        lora.merged(random_lora(t5, 2, seed=0), t5.site_weights())


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("fid_icl", "method: fid_icl encodes demonstrations apart; llama is a decoder-only model without an encoder"),
        (
            "lora_fusion",
            "method: lora_fusion fuses the instruction into an encoder; llama is a decoder-only model without one",
        ),
    ],
)
def test_methods_that_need_an_encoder_are_refused_in_one_sentence(method: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        small_tagi(method, backbone=small_decoder())
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("backbone", "target", "sentence"),
    [
        (small_t5, "up", "target_modules: up: LoRA of a T5 adapts q and v only"),
        (
            lambda: small_decoder(gated=False),
            "gate",
            "target_modules: gate: the MLP of this language model has no gate",
        ),
    ],
)
def test_target_modules_that_a_language_model_has_not_are_refused(
    backbone: Callable[[], LanguageModel], target: Target, sentence: str
) -> None:
    config = SMALL_HYPERNETWORK.model_copy(update={"target_modules": ("q", target)})
    with pytest.raises(ConfigError) as caught:
        small_tagi(hypernetwork=config, backbone=backbone())
    assert str(caught.value) == sentence


def test_a_decoder_has_no_fusion_layers() -> None:
    """Its blocks attend to the instruction's own keys and values, and that is all: no new parameters."""
    assert small_tagi("tagi", backbone=small_decoder()).fusion is None
    assert small_tagi("tagi").fusion is not None


@pytest.mark.parametrize("build", [MODELS["decoder-tagi"], MODELS["decoder-every-adapted"], MODELS["t5-tagi"]])
def test_gradients_do_not_depend_on_whether_activations_are_kept(build: Callable[[], TagiModel]) -> None:
    found: list[list[Tensor]] = []
    for checkpointing in (False, True):
        model, rows = build(), Rows(2, 4)
        batch = inputs([7, 3, 5, 4])
        output = model(*token_batch([5, 3], seed=0), *batch, rows, checkpointing=checkpointing)
        output.logits.log_softmax(-1)[..., 3].sum().backward()
        found.append(
            [p.grad for module in model.part("hypernetwork") for p in module.parameters() if p.grad is not None]
        )
    assert len(found[0]) == len(found[1]) > 5
    for kept, again in zip(*found, strict=True):
        assert worst(kept, again) <= 1e-5 * max(1.0, float(kept.abs().max()))
