"""What a newcomer does at the command line, and what must come of it."""

import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from test_cli import COMMANDS

from cli_runs import INSTRUCTION, Run, mistake
from tagi import Tagi
from tagi.cli import common, solving
from tagi.data.types import Instruction
from tagi.errors import CheckpointError
from tagi.infer.answers import AnswerTexts

OTHER = "Remove the fruits."
INPUTS = ["red wolf saw dog plum", "cat", "lion plum", "cat dog"]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
PROGRAM = [sys.executable, "-c", "from tagi.cli.main import run; run()"]


def lines(folder: Path, *each: Mapping[str, object]) -> Path:
    file = folder / "inputs.jsonl"
    file.write_text("".join(f"{json.dumps(one)}\n" for one in each), encoding="utf-8")
    return file


@pytest.mark.parametrize("command", [*COMMANDS, "eval", "data", "export", "data fetch"])
def test_newcomer_asks_for_help_with_h(tagi: Run, command: str) -> None:
    assert tagi(*command.split(), "-h") == tagi(*command.split(), "--help")
    assert tagi(*command.split(), "-h").code == 0


# --- a line's own instruction -----------------------------------------------------------------------------


@pytest.mark.parametrize("adapts", [True, False])
def test_newcomer_gives_each_line_its_own_instruction(
    tagi: Run, checkpoint: Path, metatrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapts: bool
) -> None:
    folder = checkpoint if adapts else metatrained
    monkeypatch.setattr(solving, "TOGETHER", 3)  # so that parts have one task, and several
    told = [OTHER, None, INSTRUCTION, None]
    each = [{"input": text} | ({"instruction": one} if one else {}) for text, one in zip(INPUTS, told, strict=True)]
    model = Tagi.from_pretrained(folder)
    expected = [model.solve(Instruction(one or INSTRUCTION), [text])[0] for text, one in zip(INPUTS, told, strict=True)]
    asked = ["--inputs", lines(tmp_path, *each), "--checkpoint", folder]
    assert tagi("run", INSTRUCTION, *asked).out == "".join(f"{one}\n" for one in expected)
    found = tagi("run", INSTRUCTION, *asked, "--json").json
    assert found["answers"] == expected and found["n"] == 4
    assert found["adapt_seconds"] >= 0 < found["generate_seconds"]


def test_newcomer_gives_instructions_in_the_file_alone(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    file = lines(tmp_path, {"input": "cat dog", "instruction": OTHER}, {"input": "cat", "instruction": INSTRUCTION})
    alone = [
        tagi("run", told, "--input", text, "--checkpoint", checkpoint).out
        for told, text in ((OTHER, "cat dog"), (INSTRUCTION, "cat"))
    ]
    assert tagi("run", "--inputs", file, "--checkpoint", checkpoint).out == "".join(alone)


def test_newcomer_mixes_tasks_in_one_batch(
    tagi: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    answer = Tagi.answer

    def counted(self: Tagi, told: object, inputs: list[str], **more: object) -> object:
        calls.append(len(inputs))
        return answer(self, told, inputs, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Tagi, "answer", counted)
    each = [{"input": text, "instruction": one} for text in INPUTS for one in (OTHER, INSTRUCTION)]
    assert tagi("run", "--inputs", lines(tmp_path, *each), "--checkpoint", checkpoint).code == 0
    assert calls == [8]


@pytest.mark.parametrize(
    ("arguments", "line", "words"),
    [
        ([], {"input": "cat"}, ["line 2", "instruction", "is missing", "command line"]),
        ([], {"input": "cat", "instruction": None}, ["line 2", "instruction", "is missing"]),
        (["Sort."], {"input": "cat", "instruction": " "}, ["line 2", "instruction", "is empty"]),
        (["Sort."], {"input": "cat", "instruction": 3}, ["line 2", "instruction", "must be a string"]),
        (["--adapter", "x"], {"input": "cat", "instruction": "Sort."}, ["line 1", "--adapter", "leave out"]),
        (["--example", "a => b"], {"input": "cat", "instruction": "Sort."}, ["--example", "there is none"]),
    ],
)
def test_newcomer_leaves_a_line_without_instruction(
    tagi: Run, tmp_path: Path, arguments: list[str], line: dict[str, object], words: list[str]
) -> None:
    file = lines(tmp_path, {"input": "dog", "instruction": "Sort."}, line)
    mistake(tagi("run", *arguments, "--inputs", file), *words)


def test_newcomer_draws_for_equal_inputs_in_one_go(
    tagi: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn depends on how many equal inputs came before, wherever the parts begin."""
    file = lines(tmp_path, *[{"input": "cat dog"}] * 6)
    asked = ["run", INSTRUCTION, "--inputs", file, "--checkpoint", checkpoint, "--temperature", "5"]
    whole = tagi(*asked).out
    assert len(set(whole.splitlines())) > 1
    monkeypatch.setattr(solving, "TOGETHER", 2)
    assert tagi(*asked).out == whole


# --- what is printed, and when ----------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [*"\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", "\r\n"])
def test_newcomer_counts_lines(tagi: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, sign: str) -> None:
    monkeypatch.setattr(AnswerTexts, "_decoded", lambda *_: f"one{sign}two [red] \\n")
    asked = ["run", INSTRUCTION, "--input", "cat", "--input", "dog", "--checkpoint", checkpoint]
    written = sign.encode("unicode_escape").decode()
    assert tagi(*asked).out.splitlines() == [f"one{written}two [red] \\n"] * 2
    assert tagi(*asked, "--json").json["answers"] == [f"one{sign}two [red] \\n"] * 2
    assert tagi(*asked[:4], *asked[6:], "--stream").out.splitlines() == [f"one{written}two [red] \\n"]


def test_newcomer_pipes_answers_and_sees_them_come(
    checkpoint: Path, tagi: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part is written out before the next is begun."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    seen: list[int] = []
    answer = Tagi.answer

    def watched(self: Tagi, *arguments: object, **more: object) -> object:
        seen.append(out.buffer.getvalue().count(b"\n"))  # type: ignore[attr-defined]
        return answer(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Tagi, "answer", watched)
    monkeypatch.setattr(solving, "TOGETHER", 2)
    monkeypatch.setattr(sys, "stdout", out)
    file = lines(tmp_path, *[{"input": text} for text in INPUTS])
    assert tagi("run", INSTRUCTION, "--inputs", file, "--checkpoint", checkpoint).code == 0
    assert seen == [0, 2]


def test_newcomer_pipes_and_sees_how_far_it_is(
    tagi: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "LINE_EVERY", 0.0)
    monkeypatch.setattr(solving, "TOGETHER", 2)
    file = lines(tmp_path, *[{"input": text} for text in INPUTS])
    told = tagi("run", INSTRUCTION, "--inputs", file, "--checkpoint", checkpoint).err.splitlines()
    assert [line.partition(",")[0] for line in told] == [f"solving: {done} of 4" for done in (1, 2, 3, 4)]
    assert all(line.endswith("s left") for line in told)


def test_newcomer_waits_for_no_model_class_of_other_families(checkpoint: Path) -> None:
    """They take longer to import than everything else together, and no T5 needs them; a decoder-only model needs no
    list of families either."""
    code = "import sys, tagi.infer.engine; print(*sys.modules); from tagi.cli.main import main; "
    code += "main(sys.argv[1:]); print(*sys.modules)"
    asked = ["run", "Sort.", "--input", "cat", "--checkpoint", str(checkpoint)]
    out = subprocess.run([sys.executable, "-c", code, *asked], capture_output=True, text=True, check=True).stdout
    opened, loaded = (set(out.splitlines()[place].split()) for place in (0, -1))
    assert "tagi.backbones.decoder.weights" in opened and "transformers.models.auto.configuration_auto" not in opened
    heavy = {"transformers.modeling_utils", "transformers.generation.utils", "torch._dynamo", "sympy", "accelerate"}
    heavy |= {"transformers.models.auto.tokenization_auto", "datasets", "pandas", "matplotlib", "sklearn"}
    assert "transformers" in loaded and not loaded & heavy


@pytest.mark.parametrize("on", [True, False])
def test_newcomer_python_searches_for_garbage_again_once_the_model_is_open(
    checkpoint: Path, tmp_path: Path, on: bool
) -> None:
    was = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        common.open_tagi(str(checkpoint))
        assert gc.isenabled() is on
        with pytest.raises(CheckpointError):
            common.open_tagi(str(tmp_path))
        assert gc.isenabled() is on
        with common.uncollected():
            assert not gc.isenabled()
    finally:
        (gc.enable if was else gc.disable)()


# --- the terminal and the system --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["run", "Remove caf\udce9.", "--input", "dog"], "argument 2"),
        (["run", "Sort.", "--input", "caf\udce9 dog"], "--input"),
        (["run", "Sort.", "--input=caf\udce9 dog"], "--input"),
        (["run", "Sort.", "--input", "dog", "--stop", "\udce9"], "--stop"),
        (["run", "Sort.", "--inputs", "caf\udce9.jsonl"], "--inputs"),
        (["run", "Sort.", "--inputs", "-", "caf\udce9"], "argument 5"),
        (["adapt", "Remove caf\udce9.", "-o", "x"], "argument 2"),
        (["adapt", "Sort.", "-o", "caf\udce9"], "-o"),
        (["train", "finetune", "--config", "x", "seed=\udce9"], "argument 5"),
        (["caf\udce9"], "argument 1"),
    ],
)
def test_newcomer_types_in_another_encoding(tagi: Run, arguments: list[str], name: str) -> None:
    mistake(tagi(*arguments), f"error: {name}: ", "is not UTF-8")


@pytest.mark.parametrize(
    "name", ["[red]", "[/]", "[link=file:x]", ":cat:", "a[bold]b[/bold]", "[not markup", "\\[red]", "[@click=x]"]
)
def test_newcomer_names_things_with_brackets(tagi: Run, tmp_path: Path, name: str) -> None:
    mistake(tagi("run", "Sort.", "--input", "cat", "--checkpoint", tmp_path / name), name)
    mistake(tagi(name), name)
    console = common.stdout()
    made = common.table(name, ["", name])
    made.add_row(name, name)
    with console.capture() as captured:
        console.print(made)
        console.print(name, common.mark(console, good=True))
    assert captured.get().count(name) == 5


def test_newcomer_reads_notes_with_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    common.note("the model does not know [red], :cat:, [/]")
    assert capsys.readouterr().err == "note: the model does not know [red], :cat:, [/]\n"


def closed(_: Path) -> str:
    return "1>&-"


def full(_: Path) -> str:
    return "> /dev/full"


@pytest.mark.parametrize(
    ("output", "sentence"),
    [(closed, "standard output is closed"), (full, "cannot be written (No space left on device)|No space left")],
)
@pytest.mark.parametrize("command", ["methods", "runs --json", "--version"])
def test_newcomer_has_nowhere_to_write(
    tmp_path: Path, output: Callable[[Path], str], sentence: str, command: str
) -> None:
    shell = f'exec "$@" {output(tmp_path)}'
    done = subprocess.run(
        ["bash", "-c", shell, "tagi", *PROGRAM, *command.split()],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and any(one in done.stderr for one in sentence.split("|"))


@pytest.mark.parametrize("command", ["methods", "runs --json"])
def test_newcomer_reads_the_head_of_a_long_answer(command: str) -> None:
    shell = '"$@" | head -c 1 > /dev/null; echo "${PIPESTATUS[0]}"'
    many = ["bash", "-c", shell, "tagi", sys.executable, "-c", _PATIENT, *command.split()]
    done = subprocess.run(many, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.stdout, done.stderr) == ("141\n", "")


_PATIENT = """
import sys, time
from tagi.cli import main
inner = main.main
def slow(arguments):
    sys.stdout.write("x")
    sys.stdout.flush()
    time.sleep(1)  # until `head` has gone
    return inner(arguments)
main.main = slow
main.run()
"""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_newcomer_may_not_read_a_checkpoint(tagi: Run, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0)
    mistake(tagi("run", "Sort.", "--input", "cat", "--checkpoint", folder), str(folder))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(13, "Permission denied", "[red]/x"), "error: [red]/x: Permission denied\n"),
        (IsADirectoryError(21, "Is a directory", b"/y"), "error: /y: Is a directory\n"),
        (OSError("no\nreason"), "error: no reason\n"),
        (MemoryError(), "error: the memory of this machine does not suffice\n"),
    ],
)
def test_newcomer_is_told_what_the_system_refused(
    tagi: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, sentence: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("tagi.cli.methods._table", fail)
    assert tagi("methods") == (2, "", sentence)


def test_newcomer_presses_ctrl_c(tagi: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tagi.cli.methods._table", interrupt)
    assert tagi("methods") == (130, "", "interrupted\n")


def test_newcomer_closes_standard_input(tagi: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    mistake(tagi("run", "Sort.", "--inputs", "-"), "standard input: is closed")


@pytest.mark.parametrize(
    "content", [b'{"input": "caf\xe9 dog"}\n', b"\xff\xfe{\x00", b'{"input": "\\ud83d"}', b"[" * 99_999]
)
@pytest.mark.parametrize("stdin", [True, False])
def test_newcomer_pipes_inputs_in_another_encoding(
    tagi: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, stdin: bool
) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    mistake(tagi("run", "Sort.", "--inputs", "-" if stdin else tmp_path / "in.jsonl"), "in" if stdin else "in.jsonl")
