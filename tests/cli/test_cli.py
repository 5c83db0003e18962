"""The command line: help, usage, `run` and `adapt`, and every mistake that a user can make with them."""

import ast
import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from cli_runs import INSTRUCTION, Run, mistake
from tagi import GenerationConfig, Tagi, bundled
from tagi.data.types import Demonstration, Instruction
from tagi.model.adapter import TaskAdapter

COMMANDS = (
    *(
        "",
        "demo",
        "run",
        "adapt",
        "train",
        "runs",
        "eval sni",
        "eval micro",
        "eval everyday",
        "eval lm",
        "eval compare",
        "methods",
        "doctor",
    ),
    *("export peft", "export gguf", "export merged"),
)


# --- help and usage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(tagi: Run, command: str) -> None:
    result = tagi(*command.split(), "--help")
    assert result.code == 0
    assert f"Example: tagi {command}".rstrip() in " ".join(result.out.split())


def test_no_command_is_help(tagi: Run) -> None:
    result = tagi()
    assert result.code == 0
    assert "Usage: tagi" in result.out


def test_help_loads_no_heavy_library() -> None:
    code = "import sys; from tagi.cli.main import main; main(['--help']); print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(ast.literal_eval(out.splitlines()[-1]))
    assert "typer" in loaded
    assert loaded & {"torch", "transformers", "numpy", "datasets", "pydantic"} == set()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("runn x", ["runn", "run"]),
        ("run x --inpt y", ["--inpt", "--input"]),
        ("run x --nothing-like-it", ["--nothing-like-it", "tagi run --help"]),
        ("eval", ["Missing command", "tagi eval --help"]),
        ("eval macro", ["macro", "micro"]),
        ("eval micro --tasks none", ["--tasks", "integer"]),
        ("eval micro --tasks 0", ["--tasks", "1"]),
        ("eval micro --instruction other", ["instruction", "'other'", "shuffled"]),
        ("train", ["Missing", "stage", "metatrain"]),
        ("train finetune", ["Missing", "--config"]),
        ("train dance --config x", ["dance", "metatrain"]),
        ("adapt x", ["Missing", "--output"]),
    ],
)
def test_usage_errors(tagi: Run, arguments: str, words: list[str]) -> None:
    mistake(tagi(*arguments.split()), *words)


# --- run --------------------------------------------------------------------------------------------------


def test_run_prints_one_answer_a_line(tagi: Run, checkpoint: Path) -> None:
    inputs = ["red wolf saw dog plum", "cat", "lion plum"]
    model = Tagi.from_pretrained(checkpoint)
    expected = model.generate(inputs, model.adapt(INSTRUCTION))
    options = [option for text in inputs for option in ("--input", text)]
    assert any(expected)
    assert tagi("run", INSTRUCTION, *options, "--checkpoint", checkpoint) == (0, "\n".join([*expected, ""]), "")


def test_run_prints_json(tagi: Run, checkpoint: Path) -> None:
    text = "red wolf saw dog plum"
    plain = tagi("run", INSTRUCTION, "--input", text, "--checkpoint", checkpoint).out
    found = tagi("run", INSTRUCTION, "--input", text, "--checkpoint", checkpoint, "--json").json
    assert found.pop("adapt_seconds") > 0 and found.pop("generate_seconds") > 0
    assert found.pop("ended") in (["end"], ["length"])
    model, answer = Tagi.from_pretrained(checkpoint), plain.rstrip("\n")
    assert [found.pop("confidence")] == model.score_choices(INSTRUCTION, [text], [answer])
    assert found == {"answers": [plain.rstrip("\n")], "n": 1, "notes": [], "method": "tagi"}


def test_run_searches_as_told(tagi: Run, checkpoint: Path) -> None:
    model = Tagi.from_pretrained(checkpoint)
    adapter = model.adapt(INSTRUCTION)
    inputs = ["red wolf saw dog plum", "cat dog"]
    options = ["--input", inputs[0], "--input", inputs[1], "--checkpoint", checkpoint]
    drawn = GenerationConfig(temperature=3.0, top_p=0.9, seed=5, max_new_tokens=6)
    expected = model.generate(inputs, adapter, generation=drawn)
    how = ["--temperature", "3", "--top-p", "0.9", "--seed", "5", "--max-tokens", "6"]
    assert tagi("run", INSTRUCTION, *options, *how) == (0, "\n".join([*expected, ""]), "")
    expected = model.generate(inputs, adapter, generation=GenerationConfig(beams=3))
    assert tagi("run", INSTRUCTION, *options, "--beams", "3").out == "\n".join([*expected, ""])


def test_run_chooses_among_given_answers(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    """By the likelihood that the engine gives them, with an instruction as with a saved adapter."""
    model, choices, inputs = Tagi.from_pretrained(checkpoint), ["cat", "dog wolf", "plum"], ["cat dog", "lion"]
    adapter = model.adapt(INSTRUCTION)
    scores = model.score_choices(adapter, inputs, choices)
    expected = [choices[each.index(max(each))] for each in scores]
    asked = ["--input", inputs[0], "--input", inputs[1], "--checkpoint", checkpoint]
    asked += [word for choice in choices for word in ("--choice", choice)]
    assert tagi("run", INSTRUCTION, *asked).out.splitlines() == expected
    adapter.save_pretrained(tmp_path / "adapter")
    found = tagi("run", "--adapter", tmp_path / "adapter", *asked, "--json").json
    assert found == {"answers": expected, "scores": scores, "choices": choices, "n": 2, "notes": []}
    mistake(tagi("run", INSTRUCTION, *asked, "--beams", "2"), "--choice", "options of the search")
    mistake(tagi("run", INSTRUCTION, *asked, "--choice", " "), "--choice: is empty")


def test_run_streams_and_says_that_a_stop_string_did_not_come(tagi: Run, checkpoint: Path) -> None:
    asked = ["run", INSTRUCTION, "--input", "cat dog", "--checkpoint", checkpoint]
    assert tagi(*asked, "--stream").out == tagi(*asked).out
    found = tagi(*asked, "--stop", "zzz", "--max-tokens", "1")
    assert found.code == 0 and "1 of 1 answers were cut at their last token before a stop string came" in found.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--beams", "0"], ["beams: 0"]),
        (["--beams", "2", "--temperature", "1"], ["beam search does not sample"]),
        (["--top-p", "2"], ["top_p: 2.0"]),
        (["--max-tokens", "0"], ["max_new_tokens: 0"]),
        (["--stop", ""], ["stop string is empty"]),
        (["--checkpoint", ""], ["--checkpoint: is empty"]),
        (["--backbone="], ["--backbone: is empty"]),
        (["--inputs", " "], ["--inputs: is empty"]),
        (["--stream", "--json"], ["--stream", "single input"]),
        (["--stream", "--input", "dog"], ["--stream", "single input"]),
    ],
)
def test_a_search_that_makes_no_sense(tagi: Run, options: list[str], words: list[str]) -> None:
    mistake(tagi("run", INSTRUCTION, "--input", "cat", *options), *words)


def test_run_with_the_instruction_in_the_prompt(tagi: Run, metatrained: Path) -> None:
    expected = Tagi.from_pretrained(metatrained).solve(Instruction(INSTRUCTION), ["cat dog"])
    assert tagi("run", INSTRUCTION, "--input", "cat dog", "--checkpoint", metatrained).out == f"{expected[0]}\n"


def test_examples_reach_the_model(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    """All of them, though the checkpoint shows one; compared as adapters, whose instruction has one row a token."""
    pairs = [("cat red", "cat"), ("dog", "dog")]
    examples = [word for one, other in pairs for word in ("--example", f"{one} => {other}")]
    result = tagi("adapt", INSTRUCTION, *examples, "-o", tmp_path / "a", "--checkpoint", checkpoint)
    assert (result.code, result.err) == (0, "")
    model = Tagi.from_pretrained(checkpoint)
    found, expected = model.load_adapter(tmp_path / "a").instruction, model.adapt(INSTRUCTION, pairs).instruction
    assert torch.equal(found.hidden, expected.hidden)
    fewer = model.adapt(Instruction(INSTRUCTION, tuple(Demonstration(*pair) for pair in pairs))).instruction
    assert fewer.mask.shape[1] < found.mask.shape[1]


@pytest.mark.parametrize("stdin", [False, True])
def test_inputs_from_a_file(
    tagi: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdin: bool
) -> None:
    lines = '{"input": "cat dog", "id": 7}\n\n{"input": "lion plum"}\n'
    file = tmp_path / "inputs.jsonl"
    file.write_text(lines, encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    expected = tagi("run", INSTRUCTION, "--input", "cat dog", "--input", "lion plum", "--checkpoint", checkpoint)
    assert tagi("run", INSTRUCTION, "--inputs", "-" if stdin else file, "--checkpoint", checkpoint) == expected


def test_notes_go_to_stderr(tagi: Run, checkpoint: Path) -> None:
    result = tagi("run", INSTRUCTION, "--input", "cat xyzzy " * 9, "--checkpoint", checkpoint, "--json")
    assert result.json["notes"] == [
        "input 1 has 19 tokens and was cut to its first 16",
        "the model does not know xyzzy",
    ]
    assert result.err == "".join(f"note: {text}\n" for text in result.json["notes"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["", "--input", "cat"], ["instruction is empty"]),
        (["  ", "--input", "cat"], ["instruction is empty"]),
        (["Sort.", "--input", " "], ["input is empty"]),
        (["Sort."], ["--input", "--inputs"]),
        (["--input", "cat"], ["instruction", "--adapter"]),
        (["Sort.", "--adapter", "x", "--input", "cat"], ["instruction", "--adapter"]),
        (["--adapter", "x", "--input", "cat", "--example", "a => b"], ["--example"]),
        (["Sort.", "--input", "cat", "--example", "a, b"], ["--example", "'a, b'", "input => output"]),
        (["Sort.", "--input", "cat", "--example", "a =>"], ["--example", "'a =>'"]),
    ],
)
def test_run_mistakes(tagi: Run, checkpoint: Path, arguments: Sequence[str], words: list[str]) -> None:
    mistake(tagi("run", *arguments, "--checkpoint", checkpoint), *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["holds no input"]),
        ('{"input": "cat"}\nno JSON\n', ["line 2", "is not JSON"]),
        ('{"inputs": "cat"}\n', ["line 1", "input", "is missing"]),
        ('{"input": 3}\n', ["line 1", "input", "must be a string"]),
        ('\n{"input": " "}\n', ["line 2", "input", "is empty"]),
        ('["cat"]\n', ["line 1", "must be a JSON object"]),
    ],
)
def test_bad_inputs_file(tagi: Run, tmp_path: Path, content: str, words: list[str]) -> None:
    file = tmp_path / "inputs.jsonl"
    file.write_text(content, encoding="utf-8")
    mistake(tagi("run", "Sort.", "--inputs", file), str(file), *words)


def test_inputs_from_a_table(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    """A CSV with an instruction per row, one of them empty, answers as the same lines of JSON do."""
    rows = [("cat, dog", "Reverse it."), ('red\n"wolf"', ""), ("lion", "Reverse it.")]
    table, lines = tmp_path / "rows.csv", tmp_path / "rows.jsonl"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "input", "instruction"), *((1, *row) for row in rows)])
    lines.write_text("".join(json.dumps({"input": a, "instruction": b or None}) + "\n" for a, b in rows))
    asked = ("run", INSTRUCTION, "--checkpoint", checkpoint, "--inputs")
    assert tagi(*asked, table).out == tagi(*asked, lines).out != ""
    table.write_text("text\ncat\n")
    mistake(tagi(*asked, table), str(table), "line 1", "no column named input")
    table.write_text("input\ncat\n \n")
    mistake(tagi(*asked, table), str(table), "line 3", "input", "is empty")


def test_missing_inputs_file(tagi: Run, tmp_path: Path) -> None:
    mistake(tagi("run", "Sort.", "--inputs", tmp_path / "none.jsonl"), "none.jsonl", "cannot be read")


# --- checkpoints ------------------------------------------------------------------------------------------


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_config(folder: Path) -> None:
    (folder / "tagi.json").write_text('{"format": 1', encoding="utf-8")


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def drop_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def drop_backbone(folder: Path) -> None:
    shutil.rmtree(folder / "backbone")


def unknown_method(folder: Path) -> None:
    values = json.loads((folder / "tagi.json").read_text())
    (folder / "tagi.json").write_text(json.dumps(values | {"method": "taggi"}), encoding="utf-8")


@pytest.mark.parametrize(
    "damage", [cut_weights, cut_config, drop_weights, drop_tokenizer, drop_backbone, unknown_method]
)
def test_half_written_checkpoint(tagi: Run, checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    damage(broken)
    mistake(tagi("run", "Sort.", "--input", "cat", "--checkpoint", broken), str(broken))


def test_folder_that_is_no_checkpoint(tagi: Run, tmp_path: Path) -> None:
    mistake(tagi("run", "Sort.", "--input", "cat", "--checkpoint", tmp_path), str(tmp_path), "is no TAGI checkpoint")


def test_checkpoint_of_another_backbone(tagi: Run, checkpoint: Path, metatrained: Path) -> None:
    other = metatrained / "backbone"
    result = tagi("run", "Sort.", "--input", "cat", "--checkpoint", checkpoint, "--backbone", other)
    mistake(result, str(checkpoint), "another backbone", str(other))


def test_installation_without_default(tagi: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundled, "_ASSETS", tmp_path)
    mistake(tagi("run", "Sort.", "--input", "cat"), "bundles no checkpoint", "--checkpoint")


def test_bundled_checkpoints_have_names(
    tagi: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path
) -> None:
    """A name stands for the bundled one, unless a folder has it."""
    shutil.copytree(checkpoint, tmp_path / "assets" / "lora-alone")
    monkeypatch.setattr(bundled, "_ASSETS", tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    asked = ("run", INSTRUCTION, "--input", "cat dog", "--checkpoint")
    assert tagi(*asked, "lora-alone") == tagi(*asked, checkpoint)
    (tmp_path / "lora-alone").mkdir()
    mistake(tagi(*asked, "lora-alone"), "lora-alone", "is no TAGI checkpoint")


# --- adapt ------------------------------------------------------------------------------------------------


def test_saved_adapter_solves_like_its_instruction(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    written = tagi("adapt", INSTRUCTION, "-o", folder, "--checkpoint", checkpoint)
    assert written.code == 0
    assert f"tagi run --adapter {folder} --checkpoint {checkpoint}" in written.out
    direct = tagi("run", INSTRUCTION, "--input", "cat dog xyzzy", "--checkpoint", checkpoint)
    assert tagi("run", "--adapter", folder, "--input", "cat dog xyzzy", "--checkpoint", checkpoint) == direct


def test_adapt_json_and_force(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    tagi("adapt", "Sort.", "-o", folder, "--checkpoint", checkpoint)
    mistake(tagi("adapt", INSTRUCTION, "-o", folder, "--checkpoint", checkpoint), str(folder), "--force")
    found = tagi("adapt", INSTRUCTION, "-o", folder, "--checkpoint", checkpoint, "--force", "--json").json
    assert found["adapter"] == str(folder)
    assert found["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    assert TaskAdapter.from_pretrained(folder).origins[0].definition == INSTRUCTION


def test_adapt_overwrites_nothing_else(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("years")
    mistake(tagi("adapt", "Sort.", "-o", tmp_path, "--checkpoint", checkpoint, "--force"), "is no task adapter")
    mistake(tagi("adapt", "Sort.", "-o", precious, "--checkpoint", checkpoint, "--force"), "is no task adapter")
    mistake(tagi("adapt", "Sort.", "-o", precious / "a", "--checkpoint", checkpoint), "cannot be written")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    assert precious.read_text() == "years"


def test_adapter_of_another_checkpoint(tagi: Run, checkpoint: Path, metatrained: Path, tmp_path: Path) -> None:
    tagi("adapt", "Sort.", "-o", tmp_path / "a", "--checkpoint", checkpoint)
    result = tagi("run", "--adapter", tmp_path / "a", "--input", "cat", "--checkpoint", metatrained)
    mistake(result, str(tmp_path / "a"))
    mistake(tagi("run", "--adapter", tmp_path, "--input", "cat", "--checkpoint", checkpoint), "is no task adapter")
    mistake(tagi("adapt", "Sort.", "-o", tmp_path / "b", "--checkpoint", metatrained), "metatrain", "no adapter")
