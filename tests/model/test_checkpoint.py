"""Checkpoints: what is written, what is only referred to, and every way in which a folder can be wrong."""

import errno
import hashlib
import json
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, T5ForConditionalGeneration

from builders import model_config, save_checkpoint, small_decoder, small_t5, small_tagi, token_batch, trained
from tagi import methods
from tagi.backbones.base import Prepared
from tagi.backbones.language_model import LanguageModel
from tagi.backbones.rows import Rows
from tagi.backbones.t5.weights import load_t5, save_t5
from tagi.errors import CheckpointError
from tagi.files import DiskError
from tagi.methods import Method
from tagi.model import checkpoint
from tagi.model.checkpoint import BACKBONE, ModelConfig, fingerprint, fingerprint_tensors
from tagi.model.tagi import TagiModel

Damage = Callable[[Path], None]


def assert_same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A whole checkpoint with its backbone inside."""
    model = trained(small_tagi())
    save_checkpoint(model, model_config(model), tmp_path / "ckpt")
    return tmp_path / "ckpt"


@pytest.fixture
def frozen(tmp_path: Path) -> tuple[TagiModel, ModelConfig, Path]:
    """A model on a frozen backbone that lies in a folder of its own, and where its checkpoint is."""
    save_t5(small_t5(seed=5), tmp_path / "llm")
    model = trained(small_tagi(backbone=load_t5(tmp_path / "llm")))
    config = model_config(model, backbone=str(tmp_path / "llm"))
    save_checkpoint(model, config, tmp_path / "ckpt")
    return model, config, tmp_path / "ckpt"


@pytest.mark.parametrize(
    ("backbone", "method"),
    [
        *((small_t5, method) for method in methods.METHODS),
        *((small_decoder, one) for one in methods.METHODS if one.name not in ("fid_icl", "lora_fusion")),
    ],
)
def test_round_trip_is_exact(backbone: Callable[[], LanguageModel], method: Method, tmp_path: Path) -> None:
    model = trained(small_tagi(method.name, backbone=backbone()))
    config = model_config(model)
    save_checkpoint(model, config, tmp_path / "ckpt")
    loaded = checkpoint.load(tmp_path / "ckpt")
    assert loaded.config == config
    assert loaded.folder == tmp_path / "ckpt"
    assert loaded.model.method is method
    assert loaded.model.backbone.shape == model.backbone.shape
    assert loaded.fingerprint == fingerprint(model)
    assert not loaded.model.training
    assert_same_tensors(loaded.model.state_dict(), model.state_dict())


@pytest.mark.parametrize("encoder", ["lm", "separate"])
def test_round_trip_keeps_a_separate_instruction_encoder(encoder: str, tmp_path: Path) -> None:
    settings = model_config(small_tagi()).hypernetwork.model_copy(update={"instruction_encoder": encoder})
    model = trained(small_tagi(hypernetwork=settings))
    with torch.no_grad():
        for parameter in model.part("hypernetwork")[-1].parameters():
            parameter.add_(0.25)
    config = model_config(model).model_copy(update={"hypernetwork": settings})
    save_checkpoint(model, config, tmp_path / "ckpt")
    loaded = checkpoint.load(tmp_path / "ckpt")
    assert_same_tensors(loaded.model.state_dict(), model.state_dict())
    assert loaded.fingerprint == fingerprint(model)


def test_loaded_model_answers_to_the_last_bit(saved: Path) -> None:
    first, second = trained(small_tagi()), checkpoint.load(saved).model
    instruction, inputs = token_batch([5, 2], seed=0), token_batch([4, 7], seed=1)
    one, other = (model(*instruction, *inputs, inputs[0], Rows(2, 2)).logits for model in (first, second))
    assert torch.equal(one, other)


def test_transformers_opens_the_backbone_of_a_checkpoint(saved: Path) -> None:
    theirs = T5ForConditionalGeneration.from_pretrained(saved / BACKBONE).eval()
    ours = load_t5(saved / BACKBONE).eval()
    ids, mask = token_batch([6, 3], seed=0)
    expected = theirs(input_ids=ids, attention_mask=mask, labels=ids).logits
    found = ours.score(ids, mask, ids, prepared=Prepared(1, {}), rows=Rows(1, 2))
    assert torch.allclose(found, expected, atol=1e-5, rtol=0)  # worst 1.0e-6


def test_frozen_backbone_is_referred_to_and_not_copied(frozen: tuple[TagiModel, ModelConfig, Path]) -> None:
    model, _, folder = frozen
    assert files_in(folder) == ["model.safetensors", "tagi.json"]
    tensors = load_file(folder / "model.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"hypernetwork", "fusion"}
    assert_same_tensors(tensors, {name: model.state_dict()[name] for name in tensors})
    loaded = checkpoint.load(folder)
    assert_same_tensors(loaded.model.state_dict(), model.state_dict())
    assert loaded.fingerprint == fingerprint(model)


def test_backbone_that_moved_is_found_where_the_caller_says(
    frozen: tuple[TagiModel, ModelConfig, Path], tmp_path: Path
) -> None:
    model, _, folder = frozen
    (tmp_path / "llm").rename(tmp_path / "elsewhere")
    loaded = checkpoint.load(folder, backbone=str(tmp_path / "elsewhere"))
    assert_same_tensors(loaded.model.state_dict(), model.state_dict())


def test_another_backbone_is_refused_naming_both(frozen: tuple[TagiModel, ModelConfig, Path], tmp_path: Path) -> None:
    _, config, folder = frozen
    other = small_t5(seed=6)
    save_t5(other, tmp_path / "other")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder, backbone=str(tmp_path / "other"))
    assert str(caught.value) == (
        f"{folder}: belongs to another backbone (fingerprint {config.backbone_fingerprint}, "
        f"but {tmp_path / 'other'} has {fingerprint(other)})"
    )


@pytest.mark.parametrize("family", [small_t5, small_decoder])
def test_fingerprint_is_the_hash_that_adapters_on_disk_name(family: Callable[[], LanguageModel]) -> None:
    """As it has been taken since the first adapter was written: one tensor after another, in the order of names."""
    model, digest = small_tagi(backbone=family()), hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(hashlib.sha256(tensor.contiguous().numpy().tobytes()).digest())
    assert fingerprint(model) == digest.hexdigest()[:16]


def test_fingerprint_sees_every_value_type_and_shape() -> None:
    """One bit of any tensor, the first, the last or one between, and what no value says: name, type and shape."""
    model = small_t5()
    before = fingerprint(model)
    assert fingerprint(small_t5()) == before
    assert fingerprint(small_t5(seed=1)) != before
    assert fingerprint(small_t5().double()) != before
    for name, parameter in model.named_parameters():
        bits = parameter.detach().view(-1).view(torch.int32)
        for place in {0, len(bits) // 3, len(bits) - 1}:
            bits[place] ^= 1
            assert fingerprint(model) != before, (name, place)
            bits[place] ^= 1
    assert fingerprint(model) == before


@given(st.integers(0, 4000), st.integers(1, 4000), st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
def test_fingerprint_of_tensors_sees_any_zeroed_part(first: int, count: int, dtype: torch.dtype) -> None:
    whole = torch.ones(5000).to(dtype)
    cut = whole.clone()
    cut[first : first + count] = 0
    assert fingerprint_tensors({"w": cut}) != fingerprint_tensors({"w": whole})


def test_fingerprint_needs_no_order_nor_contiguous_tensors() -> None:
    one, other = torch.arange(6.0).view(2, 3), torch.tensor(2.0)
    whole = fingerprint_tensors({"a": one, "b": other, "c": torch.zeros(0, 3)})
    assert fingerprint_tensors({"c": torch.zeros(0, 3), "b": other, "a": one.T.contiguous().T}) == whole
    for changed in ({"a": one.view(3, 2)}, {"a": one.T}, {"b": other[None]}, {"c": torch.zeros(3, 0)}, {"d": other}):
        assert fingerprint_tensors({"a": one, "b": other, "c": torch.zeros(0, 3)} | changed) != whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fingerprint_of_a_backbone_inside_is_of_what_is_written(dtype: torch.dtype, tmp_path: Path) -> None:
    model = small_tagi()
    save_checkpoint(model, model_config(model), tmp_path / "saved", dtype=dtype)
    loaded = checkpoint.load(tmp_path / "saved")
    assert loaded.config.backbone_fingerprint == fingerprint(loaded.model.backbone)


def test_bfloat16_checkpoint_opens_with_rounded_values(saved: Path, tmp_path: Path) -> None:
    model = checkpoint.load(saved).model
    save_checkpoint(model, model_config(model), tmp_path / "half", dtype=torch.bfloat16)
    for name, tensor in checkpoint.load(tmp_path / "half").model.state_dict().items():
        expected = model.state_dict()[name]
        if expected.is_floating_point():
            expected = expected.to(torch.bfloat16).float()
        assert torch.equal(tensor, expected), name


def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change one JSON file of a checkpoint."""

    def damage(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return damage


def retensor(name: str, change: Callable[[dict[str, Tensor]], Any]) -> Damage:
    """Change the tensors of one safetensors file of a checkpoint."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return damage


def cut(name: str) -> Damage:
    """Keep the first half of a file, as an interrupted copy does."""

    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def remove(name: str) -> Damage:
    """Delete one file."""
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Damage:
    """Overwrite one file with text."""

    def damage(folder: Path) -> None:
        (folder / name).write_text(text)

    return damage


def instead_of_weights(index: str) -> Damage:
    """An index in the place of the backbone's single file, which would stand before it."""

    def damage(folder: Path) -> None:
        (folder / "backbone/model.safetensors").unlink()
        (folder / "backbone/model.safetensors.index.json").write_text(index)

    return damage


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no config": (remove("tagi.json"), "{0}: is no TAGI checkpoint (tagi.json is missing)"),
    "half a config": (cut("tagi.json"), "{0}/tagi.json: is damaged or of another version"),
    "config is a list": (write("tagi.json", "[]"), "{0}/tagi.json: is damaged or of another version"),
    "unknown key": (edit("tagi.json", lambda c: c.update(metod="tagi")), "metod: unknown key, did you mean method?"),
    "key missing": (edit("tagi.json", lambda c: c.pop("prompt")), "{0}/tagi.json: prompt: Field required"),
    "wrong type": (edit("tagi.json", lambda c: c["fusion"].update(heads="two")), "{0}/tagi.json: fusion.heads:"),
    "later format": (edit("tagi.json", lambda c: c.update(format=3)), "{0}/tagi.json: format: 3 is not 2"),
    "unknown method": (
        edit("tagi.json", lambda c: c.update(method="tagy")),
        "{0}/tagi.json: method: 'tagy' is unknown",
    ),
    "odd fusion": (edit("tagi.json", lambda c: c["fusion"].update(heads=3)), "{0}/tagi.json: fusion.width: 8 is no"),
    "no weights": (remove("model.safetensors"), "{0}/model.safetensors: is missing"),
    "half the weights": (cut("model.safetensors"), "{0}/model.safetensors: is damaged or half-written"),
    "empty weights": (write("model.safetensors", ""), "{0}/model.safetensors: is damaged or half-written"),
    "a pickle": (write("model.safetensors", "\x80\x04K\x01."), "{0}/model.safetensors: is damaged or half-written"),
    "tensor missing": (
        retensor("model.safetensors", lambda t: t.pop("hypernetwork.groups.0.head_a.32")),
        "{0}/model.safetensors: tensor hypernetwork.groups.0.head_a.32 is missing",
    ),
    "tensor of another shape": (
        retensor("model.safetensors", lambda t: t.update({"hypernetwork.groups.0.a0_0": torch.zeros(1)})),
        "{0}/model.safetensors: tensor hypernetwork.groups.0.a0_0 has another shape than tagi.json says",
    ),
    "no backbone": (lambda folder: shutil.rmtree(folder / "backbone"), "{0}/backbone: no such folder"),
    "no backbone config": (remove("backbone/config.json"), "{0}/backbone/config.json: is missing"),
    "half a backbone config": (cut("backbone/config.json"), "{0}/backbone/config.json: is missing or is no model"),
    "backbone config of wrong type": (
        edit("backbone/config.json", lambda c: c.update(d_model="x")),
        "{0}/backbone/config.json: is missing or is no model config",
    ),
    "backbone of an unknown activation": (
        edit("backbone/config.json", lambda c: c.update(feed_forward_proj="tanh", dense_act_fn="tanh")),
        "{0}/backbone/config.json: activation: Input should be",
    ),
    "backbone of another family": (
        lambda folder: BertConfig().save_pretrained(folder / "backbone"),
        "{0}/backbone/config.json: model_type: 'bert' is none of ",
    ),
    "no backbone weights": (remove("backbone/model.safetensors"), "{0}/backbone/model.safetensors: is missing"),
    "half the backbone": (cut("backbone/model.safetensors"), "{0}/backbone/model.safetensors: is damaged"),
    "backbone tensor missing": (
        retensor("backbone/model.safetensors", lambda t: t.pop("decoder.final_layer_norm.weight")),
        "{0}/backbone: tensor decoder.final_layer_norm.weight is missing",
    ),
    "backbone tensor of another shape": (
        edit("backbone/config.json", lambda c: c.update(d_ff=41)),
        "{0}/backbone: tensor encoder.block.0.layer.1.DenseReluDense.wi.weight has shape (40, 32), not (41, 32)",
    ),
    "backbone index damaged": (
        instead_of_weights('{"weight_map": []}'),
        "{0}/backbone/model.safetensors.index.json: is damaged",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoint_is_refused_in_one_sentence(name: str, saved: Path) -> None:
    damage, message = DAMAGES[name]
    damage(saved)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(saved)
    assert message.format(saved) in str(caught.value)
    assert str(saved) in str(caught.value)


def test_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is no TAGI checkpoint \(tagi.json is missing\)"):
        checkpoint.load(tmp_path)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the system refuse to write any file beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def old_and_new(folder: Path) -> tuple[dict[str, Tensor], TagiModel]:
    """Tensors of the checkpoint that is there, and a different model to write in its place."""
    old = {name: tensor.clone() for name, tensor in checkpoint.load(folder).model.state_dict().items()}
    return old, trained(small_tagi(seed=9))


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DiskError, "ckpt: no space left on the disk"),
        (SafetensorError("I/O error: (os error 28)"), DiskError, r"ckpt: cannot be written \(I/O error"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
    ids=["disk full", "disk full as safetensors says it", "Ctrl-C"],
)
def test_interrupted_save_leaves_the_old_checkpoint(
    error: BaseException,
    expected: type[BaseException],
    message: str | None,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The backbone's weights come last: everything else has been written by then."""

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise error

    old, model = old_and_new(saved)
    monkeypatch.setattr("tagi.backbones.t5.weights.save_file", fail)
    with pytest.raises(expected, match=message):
        save_checkpoint(model, model_config(model), saved)
    assert [path.name for path in saved.parent.iterdir()] == ["ckpt"]
    assert_same_tensors(checkpoint.load(saved).model.state_dict(), old)


def test_system_that_refuses_the_bytes_leaves_the_old_checkpoint(saved: Path) -> None:
    old, model = old_and_new(saved)
    with pytest.raises(DiskError, match="ckpt: cannot be written"), file_size_limit(5000):
        save_checkpoint(model, model_config(model), saved)
    assert [path.name for path in saved.parent.iterdir()] == ["ckpt"]
    assert_same_tensors(checkpoint.load(saved).model.state_dict(), old)


def test_first_save_that_fails_leaves_nothing(tmp_path: Path) -> None:
    model = small_tagi()
    with pytest.raises(DiskError), file_size_limit(5000):
        save_checkpoint(model, model_config(model), tmp_path / "new" / "ckpt")
    assert files_in(tmp_path) == []


def test_saving_over_a_checkpoint_leaves_nothing_of_the_old_one(saved: Path, tmp_path: Path) -> None:
    save_t5(small_t5(seed=5), tmp_path / "llm")
    model = trained(small_tagi(backbone=load_t5(tmp_path / "llm")))
    save_checkpoint(model, model_config(model, backbone=str(tmp_path / "llm")), saved)
    assert files_in(saved) == ["model.safetensors", "tagi.json"]
