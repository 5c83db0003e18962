"""T5 folders as others publish them: what `transformers` reads is read the same, the rest is refused."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_checkpoint import model_config, retensor
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from builders import save_checkpoint, small_t5, small_tagi, token_batch
from tagi.backbones.base import Prepared
from tagi.backbones.files import INDEX, WEIGHTS, check_finite
from tagi.backbones.rows import Rows
from tagi.backbones.t5.weights import config_of, load_t5, read_shape, save_t5
from tagi.errors import CheckpointError
from tagi.infer.search import Limits
from tagi.model import checkpoint

LOGITS = 1e-5  # worst 1.4e-6, fp32
EMBEDDINGS = ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A random T5 of version 1.1 as `transformers` saves it."""
    torch.manual_seed(0)
    values: dict[str, Any] = {"vocab_size": 48, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4}
    values |= {"relative_attention_num_buckets": 8, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}
    config = T5Config(**values)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def theirs(folder: Path) -> Tensor:
    ids, mask = token_batch([6, 3], seed=0)
    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return model(input_ids=ids, attention_mask=mask, labels=ids).logits.detach()


def ours(folder: Path) -> Tensor:
    ids, mask = token_batch([6, 3], seed=0)
    return load_t5(folder).eval().score(ids, mask, ids, prepared=Prepared(1, {}), rows=Rows(1, 2))


def assert_read_the_same(folder: Path) -> None:
    torch.testing.assert_close(ours(folder), theirs(folder), atol=LOGITS, rtol=0)


def edit(folder: Path, **values: Any) -> None:
    """Change keys of the config; an ellipsis takes one out."""
    file = folder / "config.json"
    changed = json.loads(file.read_text()) | values
    file.write_text(json.dumps({name: value for name, value in changed.items() if value is not ...}))


def split(folder: Path, below: str = "", seed: int | None = None) -> None:
    """Write the weights, or random ones, as two shards with their index."""
    tensors = load_file(folder / WEIGHTS)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        tensors = {name: torch.randn(one.shape, generator=generator) for name, one in tensors.items()}
    names = sorted(tensors)
    shards = {f"{below}a.safetensors": names[::2], f"{below}b.safetensors": names[1::2]}
    for file, each in shards.items():
        (folder / file).parent.mkdir(exist_ok=True)
        save_file({name: tensors[name] for name in each}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, each in shards.items() for name in each}}
    (folder / INDEX).write_text(json.dumps(index))


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_t5(folder)
    assert [word for word in (str(folder), *words) if word not in str(caught.value)] == []


def test_a_single_file_stands_before_an_older_index(published: Path) -> None:
    split(published, seed=3)
    assert_read_the_same(published)


def test_an_index_beside_no_single_file(published: Path) -> None:
    split(published)
    (published / WEIGHTS).unlink()
    assert_read_the_same(published)


def test_shards_in_a_folder_below(published: Path) -> None:
    split(published, "parts/")
    (published / WEIGHTS).unlink()
    assert_read_the_same(published)


def test_shards_that_are_links_as_in_the_cache_of_a_hub(published: Path, tmp_path: Path) -> None:
    split(published)
    (published / WEIGHTS).unlink()
    blob = tmp_path / "blob"
    shutil.move(published / "a.safetensors", blob)
    (published / "a.safetensors").symlink_to(blob)
    assert_read_the_same(published)


@pytest.mark.parametrize("name", ["../a.safetensors", "parts/../../a.safetensors", "/a.safetensors"])
def test_shards_outside_of_the_folder_are_refused(published: Path, name: str) -> None:
    shutil.move(published / WEIGHTS, published.parent / "a.safetensors")
    (published / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"shared.weight": name}}))
    refused(published, INDEX, name, "does not lie in the folder")


def test_a_shard_that_is_missing(published: Path) -> None:
    split(published)
    (published / WEIGHTS).unlink()
    (published / "b.safetensors").unlink()
    refused(published, "b.safetensors", "is missing")


@pytest.mark.parametrize("there", [set(s) for n in range(1, 5) for s in itertools.combinations(EMBEDDINGS, n)])
@pytest.mark.parametrize("alike", [True, False])
def test_the_embedding_goes_by_four_names(published: Path, there: set[str], alike: bool) -> None:
    """MADLAD has no `shared.weight`; older files repeat it in the stacks."""
    tensors = {name: t for name, t in load_file(published / WEIGHTS).items() if name[:-7] not in EMBEDDINGS}
    shared = torch.randn(48, 32)
    copies = [one for one in EMBEDDINGS if one in there]
    for one in copies:
        own = one == "lm_head" or (not alike and one != copies[0])
        tensors[f"{one}.weight"] = torch.randn(48, 32) if own else shared.clone()
    save_file(tensors, published / WEIGHTS, {"format": "pt"})
    if not alike and len([one for one in copies if one != "lm_head"]) > 1:
        refused(published, "differ")  # transformers keeps them apart
    else:
        assert_read_the_same(published)


def test_no_embedding_at_all(published: Path) -> None:
    retensor(WEIGHTS, lambda t: [t.pop(name) for name in list(t) if name[:-7] in EMBEDDINGS])(published)
    refused(published, "tensor shared.weight is missing")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves(published: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(published / WEIGHTS).items()}
    save_file(tensors, published / WEIGHTS, {"format": "pt"})
    assert_read_the_same(published)


def test_no_number_of_decoder_layers(published: Path) -> None:
    edit(published, num_decoder_layers=...)
    assert_read_the_same(published)
    assert load_t5(published).shape.num_decoder_layers == 2


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (0, (1,), 0)),
        ({"pad_token_id": ..., "eos_token_id": ..., "decoder_start_token_id": ...}, (0, (1,), 0)),
        ({"decoder_start_token_id": None, "pad_token_id": 4}, (4, (1,), 4)),
        ({"pad_token_id": None, "eos_token_id": 3}, (3, (3,), 0)),
        ({"decoder_start_token_id": 5}, (0, (1,), 5)),
        ({"eos_token_id": [7]}, (0, (7,), 0)),
    ],
)
def test_ids_of_a_config(published: Path, values: dict[str, Any], expected: tuple[int, tuple[int, ...], int]) -> None:
    edit(published, **values)
    shape = load_t5(published).shape
    assert (shape.pad_token_id, shape.eos_token_ids, shape.decoder_start_token_id) == expected
    assert read_shape(published).eos_token_ids == expected[1]


def test_an_answer_may_end_in_one_of_several_tokens(published: Path, tmp_path: Path) -> None:
    edit(published, eos_token_id=[7, 9])
    model = load_t5(published)
    assert model.end_ids == model.shape.eos_token_ids == (7, 9)
    limits = Limits((7, 9), 5, min_new_tokens=2)
    assert [limits.finish_reason([3, last]) for last in (7, 9, 8)] == ["end", "end", None]
    assert limits.allowed(torch.zeros(12), 1).isinf().nonzero().flatten().tolist() == [7, 9]
    save_t5(model, tmp_path / "again")
    assert load_t5(tmp_path / "again").shape == model.shape
    assert config_of(model.shape)["eos_token_id"] == [7, 9]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"eos_token_id": None}, ["eos_token_id", "is missing"]),
        ({"eos_token_id": []}, ["eos_token_id", "is missing"]),
        ({"eos_token_id": [1, 48]}, ["eos_token_id: 48"]),
        ({"decoder_start_token_id": None, "pad_token_id": None}, ["decoder_start_token_id"]),
        ({"decoder_start_token_id": 48}, ["decoder_start_token_id: 48", "48 ids"]),
        ({"decoder_start_token_id": "0"}, ["decoder_start_token_id: '0'"]),
        ({"decoder_start_token_id": True}, ["decoder_start_token_id: True"]),
        ({"pad_token_id": -1}, ["pad_token_id: -1"]),
        ({"model_type": ["t5"]}, ["config.json"]),
        ({"vocab_size": 0}, ["config.json"]),
    ],
)
def test_ids_that_no_model_can_have(published: Path, values: dict[str, Any], words: list[str]) -> None:
    edit(published, **values)
    refused(published, *words)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_shape(published)


@pytest.mark.parametrize("text", ["", "[]", "3", "[" * 100_000, '{"model_type": "t5", "d_model": null}'])
def test_a_config_that_is_none(published: Path, text: str) -> None:
    (published / "config.json").write_text(text)
    refused(published, "config.json")


ODD = (float("nan"), -float("nan"), float("inf"), -float("inf"), 1e300, -1e300, 1e38, 0.0)
"""Some of them are numbers in some types only."""


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_non_finite_weights_are_refused_when_they_are_read(published: Path, value: float, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(published / WEIGHTS).items()}
    name = "decoder.block.1.layer.0.SelfAttention.q.weight"
    tensors[name][3, 0] = value
    save_file(tensors, published / WEIGHTS, {"format": "pt"})
    refused(published, WEIGHTS, f"tensor {name} holds values that are no finite numbers")


FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2)


@given(st.sampled_from(FLOATS), st.integers(1, 300), st.integers(0), st.sampled_from(ODD), st.booleans())
def test_one_value_that_is_no_finite_number_is_found_wherever_it_stands(
    dtype: torch.dtype, size: int, place: int, value: float, turned: bool
) -> None:
    """Against the reference: every value of a copy in fp32, in which a tensor is used."""
    wide = torch.linspace(-7, 7, 2 * size).view(2, size)
    wide.view(-1)[place % (2 * size)] = 1.0
    check_finite(Path("f"), "w", wide.to(dtype))
    tensor = wide.double()
    tensor.view(-1)[place % (2 * size)] = value
    tensor = tensor.to(dtype).T if turned else tensor.to(dtype)
    if tensor.float().isfinite().all():
        check_finite(Path("f"), "w", tensor)
    else:
        with pytest.raises(CheckpointError, match="f: tensor w holds values that are no finite numbers"):
            check_finite(Path("f"), "w", tensor)


def test_the_largest_numbers_and_no_numbers_at_all_are_finite() -> None:
    for dtype in FLOATS[:3]:
        limits = torch.finfo(dtype)
        check_finite(Path("f"), "w", torch.tensor([limits.min, 0.0, limits.max], dtype=dtype).repeat(50))
        check_finite(Path("f"), "w", torch.zeros(0, 3, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool, torch.complex64])
def test_non_finite_and_packed_weights_are_no_weights(published: Path, dtype: torch.dtype) -> None:
    """Of weights in 8 bits without their scales, other answers would come without a word."""
    tensors = load_file(published / WEIGHTS)
    name = "decoder.block.1.layer.0.SelfAttention.q.weight"
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, published / WEIGHTS, {"format": "pt"})
    refused(published, f"tensor {name} has the type {dtype}, which is none of weights")


HEAD = "hypernetwork.groups.0.head_a.32"


def test_non_finite_and_packed_parts_of_a_checkpoint_are_no_weights(tmp_path: Path) -> None:
    model = small_tagi()
    save_checkpoint(model, model_config(model), tmp_path / "ckpt")
    retensor("model.safetensors", lambda t: t.update({HEAD: t[HEAD].to(torch.int8)}))(tmp_path / "ckpt")
    with pytest.raises(CheckpointError, match=rf"tensor {HEAD} has the type torch.int8"):
        checkpoint.load(tmp_path / "ckpt")


def test_non_finite_values_of_a_checkpoint_are_refused(tmp_path: Path) -> None:
    model = small_tagi()
    save_checkpoint(model, model_config(model), tmp_path / "ckpt")
    retensor("model.safetensors", lambda t: t[HEAD].view(-1)[-1:].fill_(torch.nan))(tmp_path / "ckpt")
    sentence = rf"model.safetensors: tensor {HEAD} holds values that are no finite numbers"
    with pytest.raises(CheckpointError, match=sentence):
        checkpoint.load(tmp_path / "ckpt")


def test_tensors_that_the_config_knows_nothing_of(tmp_path: Path) -> None:
    model = small_tagi()
    save_checkpoint(model, model_config(model), tmp_path / "ckpt")
    retensor("model.safetensors", lambda t: t.update({"fusion.9.gate": torch.zeros(1)}))(tmp_path / "ckpt")
    with pytest.raises(CheckpointError, match=r"fusion.9.gate is no part of the model that tagi.json describes"):
        checkpoint.load(tmp_path / "ckpt")


# --- a backbone elsewhere ---------------------------------------------------------------------------------


@pytest.fixture
def side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `work` with a backbone and a checkpoint that was saved from there by relative paths."""
    work = tmp_path / "work"
    save_t5(small_t5(seed=5), work / "models" / "llm")
    monkeypatch.chdir(work)
    model = small_tagi(backbone=load_t5("models/llm"))
    save_checkpoint(model, model_config(model, backbone="models/llm"), Path("runs/ckpt"))
    return work


def assert_opens(folder: Path) -> None:
    assert checkpoint.load(folder).config.method == "tagi"
    assert Path(checkpoint.base_source(folder)).is_dir()


def there(work: Path) -> Path:
    return work / "runs" / "ckpt"


def moved_away(work: Path) -> Path:
    return there(work).rename(work.parent / "only-it")


def moved_together(work: Path) -> Path:
    return there(work.rename(work.parent / "elsewhere"))


def copied_together(work: Path) -> Path:
    """The first backbone is another by now."""
    shutil.copytree(work, work.parent / "copy")
    save_t5(small_t5(seed=6), work / "models" / "llm")
    return there(work.parent / "copy")


def by_a_link(work: Path) -> Path:
    (work.parent / "latest").symlink_to(there(work))
    return work.parent / "latest"


@pytest.mark.parametrize("place", [there, moved_away, moved_together, copied_together, by_a_link])
def test_a_backbone_by_a_relative_path_is_found_from_another_folder(
    side_by_side: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Callable[[Path], Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = place(side_by_side)
    assert_opens(folder)
    monkeypatch.chdir(folder)
    assert_opens(Path("."))


def test_a_backbone_by_a_hub_name_stays_a_name(tmp_path: Path) -> None:
    model = small_tagi()
    config = model_config(model, backbone="google/t5-small")
    save_checkpoint(model, config, tmp_path / "ckpt")
    assert checkpoint.read_config(tmp_path / "ckpt") == config
    assert checkpoint.base_source(tmp_path / "ckpt") == "google/t5-small"
