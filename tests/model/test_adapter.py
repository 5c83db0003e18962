"""Task adapters: the neutral element, mixed batches, merging, controls, and the folder on disk."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from builders import SMALL_HYPERNETWORK, greedy, normal, random_lora, small_t5, small_tagi, token_batch, trained, worst
from tagi import methods
from tagi.backbones.language_model import as_t5
from tagi.backbones.rows import Rows
from tagi.backbones.sites import Factors
from tagi.backbones.t5.model import T5
from tagi.config import HypernetworkConfig
from tagi.errors import CheckpointError
from tagi.methods import Method
from tagi.model import adapter as adapters
from tagi.model.adapter import Origin, TaskAdapter
from tagi.model.tagi import TagiModel, neutral, shift_right

ALONE = 2e-5  # worst 5.3e-6, logits up to 5
MERGED = 1e-5  # worst 1.7e-6, logits up to 4
ORIGIN = Origin(checkpoint="abc", method="tagi", definition="Größe: “x”", positives=(("in", "out"),))

LAYOUTS = [
    pytest.param([0, 0, 1, 1, 2, 2], id="groups"),
    pytest.param([0, 1, 2], id="a task per row"),
    pytest.param([2, 0, 1, 0, 2], id="mixed"),
    pytest.param([1, 1, 1], id="a stack of which one is worn"),
]


def wear(model: TagiModel, adapter: TaskAdapter, ids: Tensor, mask: Tensor, decoder_ids: Tensor, rows: Rows) -> Tensor:
    prepared = model.prepare(adapter)
    context = model.encode_input(ids, mask, prepared, rows)
    return model.backbone.decode(decoder_ids, context, modules=adapter.modules, rows=rows)[0]


def bare(t5: T5, ids: Tensor, mask: Tensor, decoder_ids: Tensor) -> Tensor:
    rows = Rows(1, len(ids))
    hidden = t5.encode(ids, mask, modules={}, rows=rows)
    context = t5.context(hidden, mask, modules={}, rows=rows, memory=None)
    return t5.decode(decoder_ids, context, modules={}, rows=rows)[0]


def inputs(lengths: Sequence[int] = (7, 3, 5)) -> tuple[Tensor, Tensor, Tensor]:
    """Input ids, their mask, and decoder ids."""
    return *token_batch(lengths, seed=10), token_batch([6] * len(lengths), seed=11)[0]


def assert_equal(one: TaskAdapter, other: TaskAdapter) -> None:
    assert torch.equal(one.memory, other.memory)
    assert torch.equal(one.mask, other.mask)
    assert one.modules.keys() == other.modules.keys()
    for site, factors in one.modules.items():
        assert torch.equal(factors.a, other.modules[site].a)
        assert torch.equal(factors.b, other.modules[site].b)
        assert factors.scale == other.modules[site].scale


@torch.no_grad()
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("method", [m for m in methods.METHODS if not m.decoder_only], ids=lambda method: method.name)
def test_neutral_adapter_changes_no_bit(method: Method, tasks: int) -> None:
    model = trained(small_tagi(method.name))
    batch = inputs()
    found = wear(model, neutral(model.backbone, tasks), *batch, Rows(tasks, 3))
    assert torch.equal(found, bare(as_t5(model.backbone), *batch))


@torch.no_grad()
@pytest.mark.parametrize("generator", ["rankwise", "flat"])
def test_untrained_lora_with_empty_memory_changes_no_bit(generator: str) -> None:
    config = HypernetworkConfig.model_validate({"generator": generator, "rank": 3, "hidden": 8})
    model = small_tagi(hypernetwork=config)
    adapter = model.adapt(*token_batch([4, 2, 6], seed=0)).without_instruction()
    assert all(factors.a.any() for factors in adapter.modules.values()), "A is not zero"
    batch = inputs()
    for index in ([0, 1, 2], [2, 0, 0]):
        found = wear(model, adapter, *batch, Rows.of(torch.tensor(index), 3))
        assert torch.equal(found, bare(as_t5(model.backbone), *batch))


@torch.no_grad()
def test_untrained_fusion_changes_no_bit_of_the_encoder() -> None:
    model = small_tagi("fusion_only")
    (ids, mask, _), rows = inputs(), Rows(1, 3)
    prepared = model.prepare(model.adapt(*token_batch([4], seed=0)))
    fused = model.encode_input(ids, mask, prepared, rows)
    hidden = model.backbone.encode(ids, mask, modules={}, rows=rows)
    plain = model.backbone.context(hidden, mask, modules={}, rows=rows, memory=None)
    for one, other in zip(fused.layers, plain.layers, strict=True):
        assert torch.equal(one.k, other.k)
        assert torch.equal(one.v, other.v)


@torch.no_grad()
@pytest.mark.parametrize("owner", LAYOUTS)
@pytest.mark.parametrize("method", ["tagi", "lora_only", "fusion_only", "hypter", "hypertuning_prefix", "hint"])
def test_batch_of_different_tasks_equals_each_task_alone(method: str, owner: list[int]) -> None:
    """Logits and greedy tokens, instructions and inputs of different lengths padded together."""
    model = trained(small_tagi(method))
    instruction_lengths, input_lengths = [4, 9, 2], [7, 3, 5, 1, 6, 4][: len(owner)]
    instruction_ids, instruction_mask = token_batch(instruction_lengths, seed=0)
    ids, mask, decoder_ids = inputs(input_lengths)
    adapter = model.adapt(instruction_ids, instruction_mask)
    rows = Rows.of(torch.tensor(owner), 3)
    together = wear(model, adapter, ids, mask, decoder_ids, rows)
    tokens = greedy(model, ids, mask, model.prepare(adapter), rows, 8)
    for row, (task, length) in enumerate(zip(owner, input_lengths, strict=True)):
        own_ids = instruction_ids[task : task + 1, : instruction_lengths[task]]
        alone = model.adapt(own_ids, torch.ones_like(own_ids))
        one = slice(row, row + 1)
        expected = wear(model, alone, ids[one, :length], mask[one, :length], decoder_ids[one], Rows(1, 1))
        assert worst(together[one], expected) < ALONE
        own_tokens = greedy(model, ids[one, :length], mask[one, :length], model.prepare(alone), Rows(1, 1), 8)
        assert torch.equal(tokens[row, : own_tokens.shape[1]], own_tokens[0])
        assert not tokens[row, own_tokens.shape[1] :].any()


@torch.no_grad()
@pytest.mark.parametrize("owner", LAYOUTS)
def test_other_tasks_and_rows_change_no_bit(owner: list[int]) -> None:
    """Everything about the other tasks and rows is replaced; row 1 and its task stay as they were."""
    model = trained(small_tagi())
    instruction_ids, instruction_mask = token_batch([9, 9, 9], seed=0)
    ids, mask, decoder_ids = inputs([7] * len(owner))
    kept_rows = torch.tensor([[row == 1] for row in range(len(owner))])
    kept_tasks = torch.tensor([[task == owner[1]] for task in range(3)])
    other_ids, _, other_decoder_ids = (tensor.flip(0).flip(1) for tensor in (ids, mask, decoder_ids))
    rows = Rows.of(torch.tensor(owner), 3)
    before = model(instruction_ids, instruction_mask, ids, mask, decoder_ids, rows).logits
    after = model(
        torch.where(kept_tasks, instruction_ids, instruction_ids.flip(1)),
        instruction_mask,
        torch.where(kept_rows, ids, other_ids),
        mask,
        torch.where(kept_rows, decoder_ids, other_decoder_ids),
        rows,
    ).logits
    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[0], before[0]), "row 0 should have changed"


@torch.no_grad()
def test_stacked_adapters_equal_each_alone() -> None:
    model = trained(small_tagi())
    each = [model.adapt(*token_batch([length], seed=length)) for length in (2, 8, 5)]
    each.append(each[0].without_instruction())
    stacked = adapters.stack(each)
    assert stacked.tasks == 4
    assert stacked.mask.sum(1).tolist() == [2, 8, 5, 0]
    owner = [3, 1, 0, 2, 1]
    ids, mask, decoder_ids = inputs([7, 3, 5, 2, 4])
    together = wear(model, stacked, ids, mask, decoder_ids, Rows.of(torch.tensor(owner), 4))
    for row, task in enumerate(owner):
        one = slice(row, row + 1)
        alone = wear(model, each[task], ids[one], mask[one], decoder_ids[one], Rows(1, 1))
        assert worst(together[one], alone) < ALONE


@torch.no_grad()
def test_forward_is_adapt_then_wear() -> None:
    model = trained(small_tagi())
    instruction, batch, rows = token_batch([4, 6], seed=0), inputs(), Rows.of(torch.tensor([1, 0, 1]), 2)
    output = model(*instruction, *batch, rows)
    assert torch.equal(output.logits, wear(model, model.adapt(*instruction), *batch, rows))
    assert_equal(output.adapter, model.adapt(*instruction))


@torch.no_grad()
@pytest.mark.parametrize("method", methods.METHODS, ids=lambda method: method.name)
def test_instruction_matters_exactly_where_the_method_says(method: Method) -> None:
    model = trained(small_tagi(method.name))
    one, other = (model.adapt(*token_batch([5], seed=seed)) for seed in (0, 1))
    batch, rows = inputs(), Rows(1, 3)
    parts = {
        "modules": (one.without_instruction(), other.without_instruction()),
        "memory": (one.without_modules(), other.without_modules()),
    }
    found = {
        name: not torch.equal(wear(model, a, *batch, rows), wear(model, b, *batch, rows))
        for name, (a, b) in parts.items()
    }
    assert found == {"modules": bool(method.writes), "memory": method.fuses_encoder or method.fuses_decoder}
    encoded = [model.encode_input(*batch[:2], model.prepare(a), rows).layers[0].k for a in parts["memory"]]
    assert torch.equal(*encoded) is not method.fuses_encoder


@torch.no_grad()
def test_memory_is_the_instruction_read_without_adapter_and_fusion() -> None:
    model = trained(small_tagi())
    ids, mask = token_batch([5, 3], seed=0)
    expected = model.backbone.encode(ids, mask, modules={}, rows=Rows(2, 2))
    assert torch.equal(model.adapt(ids, mask).memory, expected)


@torch.no_grad()
def test_separate_instruction_encoder_starts_as_the_backbone_and_is_its_own() -> None:
    config = HypernetworkConfig(rank=3, hidden=8, instruction_encoder="separate")
    model = small_tagi(hypernetwork=config)
    instruction = token_batch([5, 3], seed=0)
    assert model.instruction_encoder is not None
    names = {name.split(".")[0] for name, _ in model.instruction_encoder.named_parameters()}
    assert names == {"embedding", "encoder", "encoder_position", "encoder_norm"}, "no decoder, which would not be used"
    before = model.adapt(*instruction).memory
    assert torch.equal(before, model.backbone.encode(*instruction, modules={}, rows=Rows(2, 2)))
    for parameter in model.backbone.parameters():
        parameter.zero_()
    assert torch.equal(model.adapt(*instruction).memory, before)


@pytest.mark.parametrize("method", ["hypter", "hypertuning_prefix", "hypertuning_lora"])
def test_own_encoder_is_part_of_hypter_and_hypertuning(method: str) -> None:
    """Ye and Ren (2021) and Phang et al. (2022) train a hypermodel; a config may still share the language model's."""
    model = small_tagi(method)
    assert model.instruction_encoder in model.part("hypernetwork")
    shared = small_tagi(method, hypernetwork=SMALL_HYPERNETWORK.model_copy(update={"instruction_encoder": "lm"}))
    assert shared.instruction_encoder is None


@pytest.mark.parametrize("method", ["tagi", "hint", "lora_only", "metatrain", "fid_icl"])
def test_own_encoder_is_of_no_other_method(method: str) -> None:
    assert small_tagi(method).instruction_encoder is None


@torch.no_grad()
def test_merged_weights_equal_the_worn_adapter() -> None:
    t5 = small_t5()
    lora = random_lora(t5, 1, seed=0)
    before = {name: tensor.clone() for name, tensor in t5.state_dict().items()}
    batch, rows = inputs(), Rows(1, 3)
    hidden = t5.encode(*batch[:2], modules=lora, rows=rows)
    context = t5.context(hidden, batch[1], modules=lora, rows=rows, memory=None)
    worn, _ = t5.decode(batch[2], context, modules=lora, rows=rows)
    merged = adapters.merge(t5, lora)
    assert worst(bare(merged, *batch), worn) < MERGED
    assert worst(bare(t5, *batch), worn) > 0.1, "the LoRA should move the logits"
    assert not merged.training, "a copy of an evaluated model must not drop out"
    for name, tensor in t5.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@torch.no_grad()
@pytest.mark.parametrize("method", ["tagi", "lora_concat"])
def test_merged_weights_beside_the_memory_equal_the_worn_adapter(method: str) -> None:
    """The instruction's keys and values pass through the adapted projections too, as (I; F) is one sequence."""
    model = trained(small_tagi(method))
    adapter, batch, rows = model.adapt(*token_batch([5], seed=0)), inputs(), Rows(1, 3)
    worn = wear(model, adapter, *batch, rows)
    merged = small_tagi(method, backbone=adapters.merge(as_t5(model.backbone), adapter.modules))
    if merged.fusion is not None and model.fusion is not None:
        merged.fusion.load_state_dict(model.fusion.state_dict())
    assert worst(wear(merged, adapter.without_modules(), *batch, rows), worn) < MERGED
    assert worst(wear(model, adapter.without_modules(), *batch, rows), worn) > 0.1, "the LoRA should move the logits"


def test_only_one_task_merges_into_the_weights() -> None:
    t5 = small_t5()
    with pytest.raises(ValueError, match="only one task"):
        adapters.merge(t5, random_lora(t5, 2, seed=0))


def test_controls_take_one_part_away_and_leave_the_rest() -> None:
    t5 = small_t5()
    one, other = random_adapter(t5, seed=0), random_adapter(t5, seed=500)
    assert one.without_modules().modules == {}
    assert one.without_modules().memory is one.memory
    assert one.without_instruction().memory.shape == (2, 0, 32)
    assert one.without_instruction().mask.shape == (2, 0)
    assert one.without_instruction().modules is one.modules
    mixed = one.with_modules_of(other)
    assert mixed.memory is one.memory
    assert mixed.mask is one.mask
    assert mixed.modules is other.modules


def test_select_takes_tasks_in_the_given_order() -> None:
    adapter = random_adapter(small_t5(), seed=0)
    swapped = adapter.select(torch.tensor([1, 0, 1]))
    assert swapped.tasks == 3
    assert_equal(adapters.stack([swapped.select(torch.tensor([1])), swapped.select(torch.tensor([0]))]), adapter)


def random_adapter(t5: T5, *, seed: int, tasks: int = 2, length: int = 5) -> TaskAdapter:
    mask = (torch.arange(length) < torch.arange(length, length - tasks, -1)[:, None]).long()
    return TaskAdapter(random_lora(t5, tasks, seed=seed), normal(tasks, length, 32, seed=seed), mask)


def write(adapter: TaskAdapter, folder: Path) -> Path:
    replace(adapter, origins=(ORIGIN,)).save_pretrained(folder / "a")
    return folder / "a"


def read(folder: Path, t5: T5) -> TaskAdapter:
    """As `Tagi.load_adapter` does."""
    adapter = TaskAdapter.from_pretrained(folder)
    adapters.check_fits(adapter, t5, folder / "adapter.safetensors")
    return adapter


@pytest.mark.parametrize(
    "change",
    [lambda a: a, TaskAdapter.without_modules, TaskAdapter.without_instruction],
    ids=["whole", "without lora", "without memory"],
)
def test_saved_adapter_loads_exactly(change: Callable[[TaskAdapter], TaskAdapter], tmp_path: Path) -> None:
    t5 = small_t5()
    adapter = change(random_adapter(t5, seed=0, tasks=1))
    loaded = read(write(adapter, tmp_path), t5)
    assert_equal(loaded, adapter)
    assert loaded.origins == (ORIGIN,)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["README.md", "adapter.safetensors"]
    assert "> Größe: “x”" in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", ["tagi", "hint", "hypter", "fusion_only"])
def test_every_method_s_adapter_fits_its_model(method: str, tmp_path: Path) -> None:
    model = trained(small_tagi(method))
    adapter = model.adapt(*token_batch([5], seed=0))
    assert_equal(read(write(adapter, tmp_path), as_t5(model.backbone)), adapter)


@pytest.mark.parametrize("positives", [True, False], ids=["with demonstrations", "before these were kept"])
def test_an_adapter_whose_origin_lay_in_a_file_of_its_own_still_opens(positives: bool, tmp_path: Path) -> None:
    adapter = random_adapter(small_t5(), seed=0, tasks=1)
    folder = write(adapter, tmp_path)
    values = said(folder)
    origin = values["origin"] if positives else {k: v for k, v in values["origin"].items() if k != "positives"}
    (folder / "adapter.json").write_text(json.dumps({"format": 1, "scales": values["scales"]} | origin))
    save_file(load_file(folder / "adapter.safetensors"), folder / "adapter.safetensors")
    loaded = TaskAdapter.from_pretrained(folder)
    assert_equal(loaded, adapter)
    assert loaded.origins == (ORIGIN if positives else ORIGIN.model_copy(update={"positives": ()}),)
    loaded.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "adapter.safetensors"]


def test_what_cannot_be_saved_is_said(tmp_path: Path) -> None:
    t5 = small_t5()
    with pytest.raises(CheckpointError, match="does not say which checkpoint"):
        random_adapter(t5, seed=0, tasks=1).save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match="holds one task, not 2"):
        replace(random_adapter(t5, seed=0), origins=(ORIGIN, ORIGIN)).save_pretrained(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_origins_follow_their_tasks() -> None:
    t5 = small_t5()
    other = ORIGIN.model_copy(update={"definition": "other"})
    first, second = random_adapter(t5, seed=0, tasks=1), random_adapter(t5, seed=1, tasks=1)
    stacked = adapters.stack([replace(first, origins=(ORIGIN,)), replace(second, origins=(other,))])
    assert stacked.origins == (ORIGIN, other)
    assert stacked.select(torch.tensor([1, 1])).origins == (other, other)
    assert adapters.unstack(stacked)[1].origins == (other,)
    assert adapters.stack([replace(first, origins=(ORIGIN,)), second]).origins == ()


def said(folder: Path) -> dict[str, Any]:
    """What the metadata of adapter.safetensors say."""
    with safe_open(folder / "adapter.safetensors", "pt") as opened:
        return json.loads(opened.metadata()["adapter"])


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change what adapter.safetensors says of itself."""

    def damage(folder: Path) -> None:
        values = said(folder)
        change(values)
        metadata = {"adapter": json.dumps(values)}
        save_file(load_file(folder / "adapter.safetensors"), folder / "adapter.safetensors", metadata)

    return damage


def retell(text: str) -> Callable[[Path], None]:
    """Put that text in the place of what it says."""

    def damage(folder: Path) -> None:
        save_file(load_file(folder / "adapter.safetensors"), folder / "adapter.safetensors", {"adapter": text})

    return damage


def retensor(**changed: Tensor | None) -> Callable[[Path], None]:
    """Replace tensors of adapter.safetensors, or leave them out."""

    def damage(folder: Path) -> None:
        metadata = {"adapter": json.dumps(said(folder))}
        tensors = load_file(folder / "adapter.safetensors") | changed
        save_file({name: x for name, x in tensors.items() if x is not None}, folder / "adapter.safetensors", metadata)

    return damage


def spoilt(shape: tuple[int, ...], value: float) -> Tensor:
    """Zeros but for one value."""
    tensor = torch.zeros(shape)
    tensor.view(-1)[1] = value
    return tensor


def as_folder(folder: Path) -> None:
    (folder / "adapter.safetensors").unlink()
    (folder / "adapter.safetensors").mkdir()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SITE = "decoder.cross.1.v"
NO_TENSOR: dict[str, Tensor | None] = {f"{SITE}.A": None}
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda d: (d / "adapter.safetensors").unlink(), "{0}: is no task adapter (adapter.safetensors is m"),
    "nothing said": (
        lambda d: save_file(load_file(d / "adapter.safetensors"), d / "adapter.safetensors"),
        "{0}/adapter.safetensors: is no task adapter (its metadata do not say whose it is)",
    ),
    "half of it said": (retell('{"scales": '), "{0}/adapter.safetensors: is no task adapter, or is damaged"),
    "a list": (retell("[]"), "{0}/adapter.safetensors: Input should be a valid dictionary"),
    "nested too deep": (retell("[" * 100_000), "{0}/adapter.safetensors: is no task adapter, or is damaged"),
    "no scales": (edit(lambda c: c.pop("scales")), "{0}/adapter.safetensors: scales: Field required"),
    "no checkpoint": (
        edit(lambda c: c["origin"].pop("checkpoint")),
        "{0}/adapter.safetensors: origin.checkpoint: Field required",
    ),
    "a scale of words": (edit(lambda c: c["scales"].update({SITE: "x"})), f"{{0}}/adapter.safetensors: scales.{SITE}:"),
    "later format": (edit(lambda c: c.update(format=3)), "{0}/adapter.safetensors: format: Input should be 2"),
    "unknown key": (edit(lambda c: c["origin"].update(metod="x")), "metod: unknown key, did you mean method?"),
    "half the weights": (lambda d: cut(d / "adapter.safetensors"), "{0}/adapter.safetensors: is no task adapter, or"),
    "an empty file": (lambda d: (d / "adapter.safetensors").write_bytes(b""), "{0}/adapter.safetensors: is no task"),
    "a folder in its place": (as_folder, "{0}/adapter.safetensors: cannot be read (Is a directory)"),
    "a tensor missing": (retensor(**NO_TENSOR), f"{{0}}/adapter.safetensors: tensor {SITE}.A is missing"),
    "a tensor too many": (edit(lambda c: c["scales"].pop(SITE)), f"tensor {SITE}.A belongs to no site"),
    "a stranger's name": (
        lambda d: (edit(lambda c: c["scales"].update({"../x": 1.0}))(d), retensor(**STRANGERS)(d)),
        "{0}/adapter.safetensors: ../x: is no site of a module",
    ),
    "two tasks": (
        retensor(**{f"{SITE}.A": torch.zeros(2, 3, 32)}),
        f"{SITE}.A has shape (2, 3, 32), not (1, rank, in)",
    ),
    "two ranks": (retensor(**{f"{SITE}.B": torch.zeros(1, 24, 2)}), f"{SITE}.B has shape (1, 24, 2), not (1, out, 3)"),
    "a flat factor": (retensor(**{f"{SITE}.A": torch.zeros(3, 32)}), f"{SITE}.A has shape (3, 32), not (1, rank, in)"),
    "narrow A": (retensor(**{f"{SITE}.A": torch.zeros(1, 3, 31)}), f"{SITE}.A has shape (1, 3, 31), not (1, rank, 32)"),
    "narrow B": (retensor(**{f"{SITE}.B": torch.zeros(1, 23, 3)}), f"{SITE}.B has shape (1, 23, 3), not (1, 24, rank)"),
    "narrow memory": (retensor(memory=torch.zeros(1, 5, 31)), "memory has shape (1, 5, 31), not (1, tokens, 32)"),
    "no rank": (
        retensor(**{f"{SITE}.A": torch.zeros(1, 0, 32), f"{SITE}.B": torch.zeros(1, 24, 0)}),
        f"tensor {SITE}.A has rank 0",
    ),
    "whole numbers": (retensor(memory=torch.ones(1, 5, 32, dtype=torch.long)), "memory has the type torch.int64"),
    "doubles beyond fp32": (
        retensor(memory=torch.full((1, 5, 32), 1e300, dtype=torch.float64)),
        "tensor memory holds values that are no finite numbers",
    ),
    "short mask": (retensor(mask=torch.ones(1, 4)), "mask has shape (1, 4), not (1, 5)"),
}
NON_FINITE = {
    "a scale": (
        lambda value: edit(lambda c: c["scales"].update({SITE: value})),
        f"scales.{SITE}: Input should be a fi",
    ),
    "no scale": (lambda _: edit(lambda c: c["scales"].update({SITE: None})), f"scales.{SITE}: Input should be a valid"),
    "A": (lambda value: retensor(**{f"{SITE}.A": spoilt((1, 3, 32), value)}), f"tensor {SITE}.A holds values that are"),
    "B": (lambda value: retensor(**{f"{SITE}.B": spoilt((1, 24, 3), value)}), f"tensor {SITE}.B holds values that are"),
    "the memory": (lambda value: retensor(memory=spoilt((1, 5, 32), value)), "tensor memory holds values that are"),
    "the mask": (lambda value: retensor(mask=spoilt((1, 5), value)), "tensor mask holds something else than 0 and 1"),
    "half precision": (
        lambda value: retensor(**{f"{SITE}.A": spoilt((1, 3, 32), value).to(torch.bfloat16)}),
        f"tensor {SITE}.A holds values that are",
    ),
}
STRANGERS = {f"../x.{factor}": torch.ones(1, 1, 1) for factor in "AB"}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_adapter_is_refused_by_name(name: str, tmp_path: Path) -> None:
    t5, (damage, message) = small_t5(), DAMAGES[name]
    folder = write(random_adapter(t5, seed=0, tasks=1), tmp_path)
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        read(folder, t5)
    assert message.format(folder) in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", NON_FINITE)
def test_a_non_finite_part_of_an_adapter_is_refused_by_name(part: str, value: float, tmp_path: Path) -> None:
    """In a folder, and in the bytes that a store keeps."""
    damage, message = NON_FINITE[part]
    folder = write(random_adapter(small_t5(), seed=0, tasks=1), tmp_path)
    damage(value)(folder)
    file = folder / "adapter.safetensors"
    for opened in (lambda: TaskAdapter.from_pretrained(folder), lambda: adapters.from_bytes(file.read_bytes(), file)):
        with pytest.raises(CheckpointError) as caught:
            opened()
        assert str(caught.value).startswith(f"{file}: {message}")


def test_adapter_of_a_deeper_model_is_refused(tmp_path: Path) -> None:
    folder = write(random_adapter(small_t5(num_layers=3), seed=0, tasks=1), tmp_path)
    with pytest.raises(CheckpointError, match=r"site encoder.self.2.q does not exist in this model"):
        read(folder, small_t5())


def test_scale_survives_the_disk_to_the_last_bit(tmp_path: Path) -> None:
    t5 = small_t5()
    site = t5.sites()[0]
    lora = {site: Factors(normal(1, 3, 32, seed=0), normal(1, 24, 3, seed=1), 16 / 3)}
    folder = write(TaskAdapter(lora, torch.zeros(1, 0, 32), torch.zeros(1, 0, dtype=torch.long)), tmp_path)
    assert said(folder)["scales"] == {"encoder.self.0.q": 16 / 3}
    assert TaskAdapter.from_pretrained(folder).modules[site].scale == 16 / 3


def test_adapters_are_equal_by_value_and_have_no_hash(tmp_path: Path) -> None:
    t5 = small_t5()
    adapter = replace(random_adapter(t5, seed=0, tasks=1), origins=(ORIGIN,))
    same, site = TaskAdapter.from_pretrained(write(adapter, tmp_path)), next(iter(adapter.modules))
    assert adapter == same and adapter == adapters.unstack(adapters.stack([adapter, same]))[1]
    factors = adapter.modules[site]
    others: list[object] = [
        random_adapter(t5, seed=0, tasks=1),
        replace(adapter, origins=()),
        replace(adapter, memory=adapter.instruction.hidden + 1),
        replace(adapter, mask=1 - adapter.instruction.mask),
        adapter.without_instruction(),
        adapter.without_modules(),
        adapter.to(torch.device("cpu"), torch.bfloat16),
        replace(adapter, modules={**adapter.modules, site: replace(factors, scale=factors.scale * 2)}),
        replace(adapter, modules={**adapter.modules, site: replace(factors, a=factors.a * 2)}),
        adapters.stack([adapter, adapter]),
        "adapter",
        None,
    ]
    assert all(adapter != other for other in others)
    with pytest.raises(TypeError, match="unhashable"):
        hash(adapter)


def test_an_adapter_prints_in_a_line() -> None:
    t5 = small_t5()
    long = ORIGIN.model_copy(update={"definition": "Keep only\nthe animals, " * 20})
    adapter = replace(random_adapter(t5, seed=0, tasks=1), origins=(long,))
    assert repr(adapter) == (
        "TaskAdapter(method='tagi', tasks=1, rank=3, sites=12, tokens=[5], "
        "instruction='Keep only the animals, Keep only the animals, Keep [...]')"
    )
    many = adapters.stack([replace(adapter, origins=())] * 40)
    assert "tasks=40" in repr(many) and len(repr(many)) < 120
    assert len(repr(neutral(t5, 1))) < 120


def test_bytes_and_back() -> None:
    adapter = random_adapter(small_t5(), seed=0, tasks=1)
    for known in ((), (ORIGIN,)):
        again = adapters.from_bytes(adapters.to_bytes(replace(adapter, origins=known)), Path("x"))
        assert_equal(again, adapter)
        assert again.origins == known
    with pytest.raises(CheckpointError, match="x: is no task adapter, or is damaged"):
        adapters.from_bytes(adapters.to_bytes(adapter)[:-1], Path("x"))


def test_shift_right_starts_with_the_start_token_and_pads_ignored_labels() -> None:
    labels = torch.tensor([[5, 6, 1], [7, 1, -100]])
    assert shift_right(labels, start=9, pad=0).tolist() == [[9, 5, 6], [9, 7, 1]]
    assert shift_right(torch.tensor([[1, -100, -100]]), start=9, pad=0).tolist() == [[9, 1, 0]]
    assert labels.tolist() == [[5, 6, 1], [7, 1, -100]], "the labels themselves stay as they are"


def test_parameters_stand_in_the_order_that_optimizer_states_were_saved_in() -> None:
    """Adam's moments of a run that is resumed are matched by place."""
    parts = dict.fromkeys(name.split(".")[0] for name, _ in small_t5(tied=False).named_parameters())
    tables = ["encoder_position", "decoder_position", "encoder_norm", "decoder_norm"]
    assert list(parts) == ["embedding", "encoder", "decoder", *tables, "output"]
