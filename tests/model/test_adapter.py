"""Task adapters as values, as bytes, and as folders on disk."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from builders import normal, random_lora, same_adapter, small_decoder, small_t5, small_tagi, token_batch, trained
from tagi.backbones.base import Backbone
from tagi.backbones.encoded import EncodedInstruction
from tagi.backbones.language_model import LanguageModel
from tagi.backbones.sites import Factors
from tagi.backbones.t5.model import T5
from tagi.errors import CheckpointError
from tagi.model import adapter as adapters
from tagi.model.adapter import Origin, TaskAdapter
from tagi.model.tagi import neutral

ORIGIN = Origin(checkpoint="abc", method="tagi", definition="Größe: “x”", demonstrations=(("in", "out"),))


def test_controls_take_one_part_away_and_leave_the_rest() -> None:
    t5 = small_t5()
    one, other = random_adapter(t5, seed=0), random_adapter(t5, seed=500)
    assert one.without_modules().modules == {}
    assert one.without_modules().instruction is one.instruction
    assert one.without_instruction().instruction.hidden.shape == (2, 0, 32)
    assert one.without_instruction().instruction.mask.shape == (2, 0)
    assert one.without_instruction().modules is one.modules
    mixed = one.with_modules_of(other)
    assert mixed.instruction is one.instruction
    assert mixed.modules is other.modules


def test_select_takes_tasks_in_the_given_order() -> None:
    adapter = random_adapter(small_t5(), seed=0)
    swapped = adapter.select(torch.tensor([1, 0, 1]))
    assert swapped.tasks == 3
    same_adapter(adapters.stack([swapped.select(torch.tensor([1])), swapped.select(torch.tensor([0]))]), adapter)


def random_adapter(t5: T5, *, seed: int, tasks: int = 2, length: int = 5) -> TaskAdapter:
    mask = torch.arange(length) < torch.arange(length, length - tasks, -1)[:, None]
    encoded = EncodedInstruction(normal(tasks, length, 32, seed=seed), mask)
    return TaskAdapter(random_lora(t5, tasks, seed=seed), encoded)


def write(adapter: TaskAdapter, folder: Path) -> Path:
    replace(adapter, origins=(ORIGIN,)).save_pretrained(folder / "a")
    return folder / "a"


def read(folder: Path, backbone: Backbone, *, attends: bool = True) -> TaskAdapter:
    """As `Tagi.load_adapter` does."""
    adapter = TaskAdapter.from_pretrained(folder)
    adapters.check_fits(adapter, backbone, folder / "adapter.safetensors", attends=attends)
    return adapter


@pytest.mark.parametrize(
    "change",
    [lambda a: a, TaskAdapter.without_modules, TaskAdapter.without_instruction],
    ids=["whole", "without lora", "without instruction"],
)
def test_saved_adapter_loads_exactly(change: Callable[[TaskAdapter], TaskAdapter], tmp_path: Path) -> None:
    t5 = small_t5()
    adapter = change(random_adapter(t5, seed=0, tasks=1))
    loaded = read(write(adapter, tmp_path), t5)
    same_adapter(loaded, adapter)
    assert loaded.origins == (ORIGIN,)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["README.md", "adapter.safetensors"]
    assert "> Größe: “x”" in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")


T5_METHODS = ("tagi", "hint", "hypter", "fusion_only")
DECODER_METHODS = ("tagi", "lora_only", "lora_concat", "hint", "hypter", "hypertuning_lora", "hypertuning_prefix")


@pytest.mark.parametrize(
    ("backbone", "method"),
    [*((small_t5, method) for method in T5_METHODS), *((small_decoder, method) for method in DECODER_METHODS)],
)
def test_every_method_s_adapter_fits_its_model(
    backbone: Callable[[], LanguageModel], method: str, tmp_path: Path
) -> None:
    model = trained(small_tagi(method, backbone=backbone()))
    adapter = model.adapt(*token_batch([5], seed=0))
    for part in (adapter, adapter.without_modules(), adapter.without_instruction()):
        same_adapter(read(write(part, tmp_path), model.backbone, attends=model.method.fuses_decoder), part)
    held = adapter.instruction.attended is not None
    assert held is (model.method.fuses_decoder and not model.backbone.has_encoder), "what is attended to, and no more"


def decoder_adapter(seed: int = 0) -> TaskAdapter:
    """Of one task, of a model that `small_decoder` built."""
    return trained(small_tagi(backbone=small_decoder())).adapt(*token_batch([5], seed=seed))


def test_a_decoder_s_adapter_keeps_keys_values_and_positions(tmp_path: Path) -> None:
    adapter = decoder_adapter()
    again = read(write(adapter, tmp_path), small_decoder()).instruction.attended
    attended = adapter.instruction.attended
    assert attended is not None and again is not None and len(attended.layers) == 2
    for one, other in zip(attended.layers, again.layers, strict=True):
        assert torch.equal(one.k, other.k) and torch.equal(one.v, other.v)
    assert (again.start.tolist(), again.positions.tolist()) == ([5], [[0, 1, 2, 3, 4]])
    assert adapter.nbytes == adapters.from_bytes(adapters.to_bytes(adapter), Path("x")).nbytes


def test_a_decoder_s_adapters_stack_and_unstack() -> None:
    model = trained(small_tagi(backbone=small_decoder()))
    each = [model.adapt(*token_batch([length], seed=length)) for length in (5, 2, 8)]
    each.append(each[0].without_instruction())
    for one, again in zip(each[:3], adapters.unstack(adapters.stack(each)), strict=False):
        same_adapter(again, one)
    last = adapters.unstack(adapters.stack(each))[3]
    assert last.instruction.mask.shape == (1, 0) and last.instruction.attended is None
    assert adapters.stack(each).select(torch.tensor([1])) != each[1], "padded as long as the longest"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"instruction.1.k": None, "instruction.1.v": None}, "holds keys and values of 1 blocks, but this model needs"),
        ({"instruction.1.v": None}, "tensor instruction.1.k belongs to no site that has a scale"),
        ({"instruction.0.k": torch.zeros(1, 2, 4, 6)}, "instruction.0.k has shape (1, 2, 4, 6), not (1, heads, 5, wi"),
        ({"instruction.0.k": torch.zeros(1, 4, 5, 6)}, "instruction.0.k has shape (1, 4, 5, 6), not (1, 2, 5, 6)"),
        ({"instruction.0.v": torch.full((1, 2, 5, 6), torch.inf)}, "tensor instruction.0.v holds values that are no f"),
    ],
)
def test_keys_and_values_that_do_not_belong_are_refused(
    changed: dict[str, Tensor | None], sentence: str, tmp_path: Path
) -> None:
    folder = write(decoder_adapter(), tmp_path)
    retensor(**changed)(folder)
    with pytest.raises(CheckpointError) as caught:
        read(folder, small_decoder())
    assert str(caught.value).startswith(f"{folder}/adapter.safetensors: ") and sentence in str(caught.value)


def test_adapters_of_another_family_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"site decoder\.self\.0\.q has|holds keys and values of 2 blocks|A has shape"
    ):
        read(write(decoder_adapter().without_modules(), tmp_path), small_t5())
    bare = random_adapter(small_t5(), seed=0, tasks=1).without_modules()
    with pytest.raises(CheckpointError, match="holds keys and values of 0 blocks, but this model needs them of 2"):
        read(write(bare, tmp_path), small_decoder())


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
    "later format": (edit(lambda c: c.update(format=4)), "{0}/adapter.safetensors: format: Input should be 3"),
    "unknown key": (edit(lambda c: c["origin"].update(metod="x")), "metod: unknown key, did you mean method?"),
    "half the weights": (lambda d: cut(d / "adapter.safetensors"), "{0}/adapter.safetensors: is no task adapter, or"),
    "an empty file": (lambda d: (d / "adapter.safetensors").write_bytes(b""), "{0}/adapter.safetensors: is no task"),
    "a folder in its place": (as_folder, "{0}/adapter.safetensors: cannot be read (Is a directory)"),
    "a tensor missing": (retensor(**NO_TENSOR), f"{{0}}/adapter.safetensors: tensor {SITE}.A is missing"),
    "a tensor too many": (edit(lambda c: c["scales"].pop(SITE)), f"tensor {SITE}.A belongs to no site"),
    "a mismatched's name": (
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
    "narrow instruction": (
        retensor(instruction=torch.zeros(1, 5, 31)),
        "instruction has shape (1, 5, 31), not (1, tokens, 32)",
    ),
    "no rank": (
        retensor(**{f"{SITE}.A": torch.zeros(1, 0, 32), f"{SITE}.B": torch.zeros(1, 24, 0)}),
        f"tensor {SITE}.A has rank 0",
    ),
    "whole numbers": (
        retensor(instruction=torch.ones(1, 5, 32, dtype=torch.long)),
        "instruction has the type torch.int64",
    ),
    "doubles beyond fp32": (
        retensor(instruction=torch.full((1, 5, 32), 1e300, dtype=torch.float64)),
        "tensor instruction holds values that are no finite numbers",
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
    "the instruction": (
        lambda value: retensor(instruction=spoilt((1, 5, 32), value)),
        "tensor instruction holds values that are",
    ),
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
    folder = write(TaskAdapter(lora, neutral(t5, 1).instruction), tmp_path)
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
        replace(adapter, instruction=replace(adapter.instruction, hidden=adapter.instruction.hidden + 1)),
        replace(adapter, instruction=replace(adapter.instruction, mask=~adapter.instruction.mask)),
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
        same_adapter(again, adapter)
        assert again.origins == known
    with pytest.raises(CheckpointError, match="x: is no task adapter, or is damaged"):
        adapters.from_bytes(adapters.to_bytes(adapter)[:-1], Path("x"))
