"""A language model from scratch: what it may read, that it goes on where it stopped, and how its text is measured."""

import json
import lzma
import math
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
import torch
from test_checkpoint import file_size_limit
from transformers import AutoTokenizer, T5ForConditionalGeneration

from builders import model_config, small_t5, small_tagi
from cli_runs import Run, mistake
from tagi.backbones.t5.model import T5
from tagi.config import CorpusConfig, RunConfig
from tagi.config.files import dump, parse
from tagi.data.tokenizers import sentinels, unigram
from tagi.errors import CheckpointError, ConfigError, DataError
from tagi.files import DiskError
from tagi.infer.engine import Tagi
from tagi.pretraining import corpus as corpora
from tagi.pretraining.backbone import DROPPED, TEXT, read_text
from tagi.pretraining.bits import bits_per_byte, kinds, piece_bytes
from tagi.pretraining.stage import PackedT5, build_stage
from tagi.train.trainer import train
from training_runs import furthest, in_two_processes, losses

WORDS = (
    *("river", "stone", "light", "walk", "green", "paper", "house", "cloud"),
    *("sing", "winter", "table", "honest", "garden", "music", "silver", "road"),
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def sentence(rng: Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) + rng.choice(LETTERS) for _ in range(words)) + "."


def write_c4(folder: Path, train: Sequence[str], valid: Sequence[str] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, texts in (("train", train), ("validation", valid)):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"c4-{part}.00000-of-00001.json").write_text(lines, encoding="utf-8")
    return folder


def write_sni(folder: Path, **inputs: Sequence[str]) -> Path:
    """Tasks by name; those whose name begins with `test` are test tasks."""
    (folder / "tasks").mkdir(parents=True)
    (folder / "splits" / "default").mkdir(parents=True)
    for name, texts in inputs.items():
        rows = [{"id": f"{name}-{i}", "input": text, "output": ["an answer"]} for i, text in enumerate(texts)]
        task = {"Categories": ["C"], "Definition": ["Do it."], "Positive Examples": [], "Instances": rows}
        (folder / "tasks" / f"{name}.json").write_text(json.dumps(task), encoding="utf-8")
    for part in ("train", "test"):
        names = [name for name in inputs if name.startswith("test") == (part == "test")]
        (folder / "splits" / "default" / f"{part}_tasks.txt").write_text("\n".join(names), encoding="utf-8")
    return folder


@pytest.fixture
def texts() -> list[str]:
    rng = Random(0)
    return [sentence(rng, 40) for _ in range(60)]


@pytest.fixture
def c4(tmp_path: Path, texts: list[str]) -> Path:
    return write_c4(tmp_path / "c4", texts[:50], texts[50:])


def settings(output: Path, c4: Path, *, corpus: dict[str, Any] | None = None, **training: Any) -> RunConfig:
    values: dict[str, Any] = {
        "stage": "backbone",
        "method": "no_instruction",
        "backbone": {
            "tokenizer": "unigram",
            "shape": {
                "vocab_size": 180, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 1,
                "num_heads": 2, "activation": "gelu_new", "gated": True,
            },
        },
        "data": {
            "source": "corpus",
            "corpus": {"c4": str(c4), "length": 48, "target_length": 24, "adapt": 0.5, "valid_documents": 4}
            | (corpus or {}),
        },
        "training": {
            "steps": 8, "tasks_per_batch": 4, "rows_per_task": 1, "optimizer": "adamw_rms", "lr": 0.02,
            "trainable": ["backbone"], "checkpoint_every": 2, "keep": 10,
        } | training,
        "output": str(output),
    }  # fmt: skip
    return parse(RunConfig, values, source="test")


# --- the corpus


def test_runs_of_words_are_found_whatever_stands_between_them() -> None:
    runs = set(corpora.word_runs("The cat, it SAT\non the mat today.", 5))
    assert len(runs) == 4
    assert runs & {*corpora.word_runs("And so the cat it sat... ON a wall", 5)} == {("the", "cat", "it", "sat", "on")}
    assert not runs & {*corpora.word_runs("the cat it lay on the mat", 5)}
    assert not list(corpora.word_runs("cat it sat on", 5))


def test_a_corpus_holds_each_text_once_and_none_that_shares_words_with_a_test_row(
    tmp_path: Path, texts: list[str], c4: Path
) -> None:
    copied = " ".join(texts[3].split()[5:20])
    sni = write_sni(
        tmp_path / "sni", task1=["a short input", f"quoting {copied} here", "a short input"], test1=[texts[7], copied]
    )
    found = corpora.read(CorpusConfig(c4=str(c4), sni=str(sni)))
    assert [(one.source, one.name) for one in found.dropped] == [
        ("c4", "4 of c4-train.00000-of-00001.json"),
        ("c4", "8 of c4-train.00000-of-00001.json"),
        ("sni", "task1 task1-1"),
    ]
    assert found.dropped[0].shared == " ".join(copied.split()[:13])
    assert found.counts() == {
        "c4": {"documents": 48, "characters": sum(map(len, texts[:50])) - len(texts[3]) - len(texts[7]),
               "dropped": 2, "repeated": 0},
        "sni": {"documents": 1, "characters": len("a short input"), "dropped": 1, "repeated": 1},
    }  # fmt: skip
    assert texts[50] not in [one.text for one in found.documents]


def test_real_text_that_shares_words_with_real_test_rows_is_dropped(shared_data: Path, tmp_path: Path) -> None:
    """Every third training task, whole."""
    real, some = shared_data / "sni", tmp_path / "sni"
    (some / "splits" / "default").mkdir(parents=True)
    (some / "tasks").symlink_to(real / "tasks")
    shutil.copy(real / "splits/default/test_tasks.txt", some / "splits/default")
    names = (real / "splits/default/train_tasks.txt").read_text(encoding="utf-8").split()[::3]
    (some / "splits/default/train_tasks.txt").write_text("\n".join(names), encoding="utf-8")
    config = CorpusConfig(sni=str(some))
    found = corpora.read(config)
    tested = SniTexts(real).runs(corpora.OVERLAP)
    kept = (" ".join(run) for one in found.documents for run in corpora.word_runs(one.text))
    assert found.dropped and tested.isdisjoint(kept)
    assert {one.shared for one in found.dropped} <= tested


class SniTexts:
    """All words of the test tasks, read without the project's own loader."""

    def __init__(self, folder: Path) -> None:
        names = (folder / "splits" / "default" / "test_tasks.txt").read_text(encoding="utf-8").split()
        files = [json.loads((folder / "tasks" / f"{name}.json").read_text(encoding="utf-8")) for name in names]
        self.texts = [x for f in files for row in f["Instances"] for x in (row["input"], *row["output"])]

    def runs(self, length: int) -> set[str]:
        each = [re.findall(r"\w+", text.lower()) for text in self.texts]
        return {" ".join(words[i : i + length]) for words in each for i in range(len(words) - length + 1)}


# --- training


def test_a_run_is_a_t5_that_transformers_opens_and_says_what_it_stands_on(tmp_path: Path, c4: Path) -> None:
    config = settings(tmp_path / "runs", c4)
    final = train(build_stage(config), config.training, tmp_path / "runs")
    reference = T5ForConditionalGeneration.from_pretrained(final / "backbone").eval()
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert reference.config.vocab_size == len(tokenizer) == 180
    tagi = Tagi.from_pretrained(final)
    ids = torch.tensor(tokenizer(["riverb <extra_id_0> stonex"])["input_ids"])
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") in ids[0].tolist()
    with torch.no_grad():
        ours = PackedT5(cast(T5, tagi.model.backbone))(ids, torch.ones_like(ids), ids, torch.ones_like(ids))
        theirs = reference(input_ids=ids, labels=ids).logits
    assert float((ours - theirs).abs().max()) < 1e-5  # 0 measured
    about = json.loads((final / "corpus.json").read_text(encoding="utf-8"))
    assert about["sources"]["c4"]["documents"] == 50
    assert (tmp_path / "runs" / TEXT / DROPPED).read_text(encoding="utf-8") == ""


def test_a_run_that_stops_goes_on_to_the_same_weights_across_the_turn_to_prefixes(tmp_path: Path, c4: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    config = settings(whole, c4)
    train(build_stage(config), config.training, whole)
    shutil.copytree(whole / TEXT, broken / TEXT)
    again = settings(broken, c4)
    train(build_stage(again), again.training, broken)
    for step in (8, 6, 4):  # what a kill after step 2 would have left
        shutil.rmtree(broken / (f"step-{step:08d}" if step < 8 else "final"))
    train(build_stage(again), again.training, broken, resume=True)
    assert losses(whole) == losses(broken)
    assert furthest(whole / "final" / "backbone", broken / "final" / "backbone") == 0.0


def test_the_last_steps_are_prefix_lm(tmp_path: Path, c4: Path) -> None:
    stage = build_stage(settings(tmp_path / "runs", c4, accumulation=2))
    marks = set(sentinels(AutoTokenizer.from_pretrained(tmp_path / "runs" / TEXT)))
    shown = [bool(marks & set(stage.batch(index).input_ids.flatten().tolist())) for index in range(16)]
    assert shown == [True] * 8 + [False] * 8
    assert stage.batch(0).labels.shape == (4, 24) and stage.batch(15).labels.shape == (4, 48)


@pytest.mark.slow
def test_two_processes_read_the_text_once_and_turn_to_prefixes_at_the_same_step(tmp_path: Path, c4: Path) -> None:
    """By the command line, from an empty folder; worst difference of weights measured 0."""
    one, two = settings(tmp_path / "one", c4, accumulation=2), settings(tmp_path / "two", c4)
    alone = train(build_stage(one), one.training, tmp_path / "one")
    (tmp_path / "two.yaml").write_text(dump(two), encoding="utf-8")
    tagi = Path(sys.executable).with_name("tagi")
    in_two_processes("--no-python", tagi, "train", "backbone", "--config", tmp_path / "two.yaml")
    assert furthest(alone / "backbone", tmp_path / "two" / "final" / "backbone") <= 1e-6
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


def test_the_tokenizer_is_trained_on_training_text_only(tmp_path: Path, texts: list[str]) -> None:
    c4 = write_c4(tmp_path / "c4", texts[:50], ["zzyzx " * 50])
    text = read_text(settings(tmp_path / "runs", c4))
    assert "z" not in "".join(piece for piece in text.tokenizer.get_vocab() if piece.startswith("▁zz"))
    assert len(sentinels(text.tokenizer)) == 100 and len(text.tokenizer) == 180


def test_loss_falls(tmp_path: Path, c4: Path) -> None:
    config = settings(tmp_path / "runs", c4, steps=60, checkpoint_every=100)
    train(build_stage(config), config.training, tmp_path / "runs")
    found = [loss for _, loss in losses(tmp_path / "runs")]
    assert sum(found[20:30]) / 10 < 0.9 * found[0]  # 0.77 of it measured


# --- bits per byte


@pytest.fixture
def reader(texts: list[str]) -> Tagi:
    tokenizer = unigram(texts[:50], 80, extra_ids=20)
    model = small_tagi("no_instruction", backbone=small_t5(vocab_size=len(tokenizer)))
    return Tagi(model, tokenizer, model_config(model))


def test_a_model_that_knows_nothing_needs_log_v_bits_a_token(reader: Tagi, texts: list[str]) -> None:
    """Uniform logits: the measure is then (tokens said) · log2 V / (bytes said), counted here from the text."""
    with torch.no_grad():
        reader.model.backbone.embedding.weight.zero_()
    config = CorpusConfig(c4="-", length=400, target_length=400)
    text = texts[50]
    ids = reader.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert kinds(reader) == ("spans", "prefix")
    measured = bits_per_byte(reader, [text], config, "prefix")
    vocabulary = reader.model.backbone.shape.vocab_size
    cuts = [(len(ids) - cut + 1, len(str(reader.tokenizer.decode(ids[cut:])).encode())) for cut in range(1, len(ids))]
    possible = [tokens * math.log2(vocabulary) / size for tokens, size in cuts]
    spaced = [tokens * math.log2(vocabulary) / (size + 1) for tokens, size in cuts]  # a piece that begins with a space
    assert min(abs(measured - one) for one in possible + spaced) < 1e-6  # 1.8e-7 measured


def test_pieces_have_the_bytes_of_their_text(reader: Tagi, texts: list[str]) -> None:
    sizes = piece_bytes(reader.tokenizer)
    for text in [*texts, "naïve – ünïcode, 漢"]:
        ids = reader.tokenizer(text, add_special_tokens=False)["input_ids"]
        known = [i for i in ids if i != reader.tokenizer.unk_token_id]
        unknown = len(ids) - len(known)
        pieces = "".join(reader.tokenizer.convert_ids_to_tokens(known)).replace("▁", " ")
        assert int(sizes[ids].sum()) == len(pieces.encode()) + unknown
    assert int(sizes[[0, 1, *sentinels(reader.tokenizer)]].sum()) == 0


def test_eval_text(tagi: Run, tmp_path: Path, c4: Path) -> None:
    config = settings(tmp_path / "runs", c4, steps=2)
    final = train(build_stage(config), config.training, tmp_path / "runs")
    result = tagi("eval", "text", "--data", c4, "--checkpoint", final, "--documents", 5, "--length", 48, "--json")
    assert result.code == 0
    assert set(result.json["bits_per_byte"]) == {"spans", "prefix"} and result.json["documents"] == 5
    shown = tagi("eval", "text", "--data", c4, "--checkpoint", final, "--documents", 5, "--length", 48)
    assert f"{result.json['bits_per_byte']['spans']:.3f}" in shown.out


# --- mistakes


def config_file(config: RunConfig, folder: Path) -> Path:
    file = folder / "run.yaml"
    file.write_text(dump(config), encoding="utf-8")
    return file


def test_the_command_line_trains_and_plans(tagi: Run, tmp_path: Path, c4: Path) -> None:
    file = config_file(settings(tmp_path / "runs", c4, steps=2), tmp_path)
    planned = tagi("train", "backbone", "--config", file, "--dry-run", "--json")
    assert planned.code == 0 and planned.json["tokens_per_step"] == 4 * (48 + 24)
    assert not (tmp_path / "runs").exists()
    result = tagi("train", "backbone", "--config", file)
    assert result.code == 0 and Path(result.out.strip()) == tmp_path / "runs" / "final"
    logged = [json.loads(line) for line in (tmp_path / "runs" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"valid_bits_spans", "valid_bits_prefix"} <= logged[-1].keys()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["holds no text"]),
        (lzma.compress(b"text"), ["c4-train", "line 1", "is no text"]),
        (b'{"text": "fine"}\nnot json\n', ["c4-train", "line 2", "is not JSON"]),
        (b'{"words": "fine"}\n', ["c4-train", "line 1", "text", "is missing"]),
    ],
)
def test_files_that_are_no_text(tagi: Run, tmp_path: Path, content: bytes, words: list[str]) -> None:
    c4 = write_c4(tmp_path / "c4", [])
    (c4 / "c4-train.00000-of-00001.json").write_bytes(content)
    mistake(tagi("train", "backbone", "--config", config_file(settings(tmp_path / "runs", c4), tmp_path)), *words)
    assert not (tmp_path / "runs" / TEXT).exists()


def test_a_vocabulary_too_large_for_the_text(tagi: Run, tmp_path: Path, c4: Path) -> None:
    file = config_file(settings(tmp_path / "runs", c4), tmp_path)
    result = tagi("train", "backbone", "--config", file, "backbone.shape.vocab_size=30000")
    mistake(result, "vocabulary_size 29900 is too large")
    mistake(tagi("train", "backbone", "--config", file, "backbone.shape.vocab_size=90"), "vocab_size", "sentinels")
    assert not (tmp_path / "runs" / TEXT).exists()


def test_going_on_with_another_corpus_or_tokenizer(tmp_path: Path, c4: Path, texts: list[str]) -> None:
    config = settings(tmp_path / "runs", c4, steps=4)
    train(build_stage(config), config.training, tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "final")
    other = write_c4(tmp_path / "other", texts[:40], texts[50:])
    with pytest.raises(CheckpointError, match=r"files of data\.corpus have changed"):
        build_stage(settings(tmp_path / "runs", other, steps=4))
    fresh = settings(tmp_path / "fresh", other, steps=4)
    read_text(fresh)
    shutil.rmtree(tmp_path / "runs" / TEXT)
    shutil.copytree(tmp_path / "fresh" / TEXT, tmp_path / "runs" / TEXT)
    swapped = settings(tmp_path / "runs", other, steps=4)
    with pytest.raises(CheckpointError, match="another tokenizer or corpus"):
        train(build_stage(swapped), swapped.training, tmp_path / "runs", resume=True)


def test_a_data_set_that_moved_is_the_same_corpus(tmp_path: Path, c4: Path) -> None:
    config = settings(tmp_path / "runs", c4, steps=2)
    first = build_stage(config).batch(0)
    moved = shutil.copytree(c4, tmp_path / "elsewhere" / "c4")
    assert torch.equal(build_stage(settings(tmp_path / "runs", moved, steps=2)).batch(0).input_ids, first.input_ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "tagi"}, "stage backbone needs no_instruction"),
        ({"method": "metatrain"}, "stage backbone needs no_instruction"),
        ({"data": {"source": "micro"}}, "micro does not suit stage backbone"),
        ({"stage": "finetune", "method": "tagi"}, "corpus does not suit stage finetune"),
    ],
)
def test_what_stage_backbone_is_not(tmp_path: Path, c4: Path, changes: dict[str, Any], message: str) -> None:
    values = settings(tmp_path / "runs", c4).model_dump(mode="json") | changes
    with pytest.raises(ConfigError, match=message):
        build_stage(parse(RunConfig, values, source="test"))


def test_a_config_that_names_no_text_or_a_folder_that_is_not_there(tmp_path: Path, c4: Path) -> None:
    with pytest.raises(ConfigError, match="names no text"):
        settings(tmp_path / "runs", c4, corpus={"c4": None})
    with pytest.raises(DataError, match="nowhere"):
        read_text(settings(tmp_path / "runs", tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"source=corpus and data\.corpus belong together"):
        parse(RunConfig, settings(tmp_path, c4).model_dump(mode="json") | {"data": {"source": "corpus"}}, source="x")


def test_a_full_disk_leaves_no_half_read_text(tmp_path: Path, c4: Path) -> None:
    with pytest.raises(DiskError, match="text: cannot be written"), file_size_limit(3000):
        read_text(settings(tmp_path / "runs", c4))
    assert not (tmp_path / "runs" / TEXT).exists()
    read_text(settings(tmp_path / "runs", c4))


def test_damaged_tokens_are_named(tmp_path: Path, c4: Path) -> None:
    read_text(settings(tmp_path / "runs", c4))
    (tmp_path / "runs" / TEXT / "tokens.safetensors").write_bytes(b"no tokens")
    with pytest.raises(CheckpointError, match=r"tokens\.safetensors"):
        read_text(settings(tmp_path / "runs", c4))
