"""The page without a browser: what it asks the service, what it says, and what it leaves behind."""

import asyncio
import gzip
import json
import os
import re
import sys
import time
import zipfile
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import BASE, FIRST, SECOND, message, served
from test_engine import INPUTS, make

pytest.importorskip("gradio", reason="the page needs gradio")

from gradio import processing_utils

from tagi import Tagi
from tagi.data.types import Demonstration, Instruction
from tagi.errors import InputError
from tagi.eval.evaluate import prompted
from tagi.infer.looking import Norms
from tagi.serve.guard import Settings, hashed, new_key
from tagi.serve.page import mount, render
from tagi.serve.page.asking import GENERATION, WAYS, Asked, Cell, answers, ask, written
from tagi.serve.page.layout import NEW, Page
from tagi.serve.service import Service

EXAMPLES = ("", "", "", "")


@pytest.fixture(scope="module")
def tagi() -> Tagi:
    return make("tagi", family="decoder")


@pytest.fixture
def page(tagi: Tagi, tmp_path: Path) -> Iterator[Page]:
    files = tmp_path / "files"
    files.mkdir()
    service = Service(tagi, tmp_path / "store", Settings(most_inputs=8), base=BASE)
    with service.worker:
        yield Page(service, files)
    service.tasks.close()
    service.store.close()


def listed(updates: AsyncIterator[dict[Any, Any]]) -> dict[Any, Any]:
    """What every part of the page shows in the end."""

    async def all_of_them() -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        async for one in updates:
            found |= one
        return found

    return asyncio.run(all_of_them())


def said(html: str) -> str:
    """What of it is to be mended."""
    found = re.search('<p class="problem" role="alert">(.*)</p>', html)
    assert found is not None, html
    return found[1]


def test_three_columns_are_the_engine_s_answers(page: Page, tagi: Tagi) -> None:
    own = (Instruction(FIRST), ())
    asked = ask(page.service, NEW, own, INPUTS)

    async def last() -> Any:
        return [cells async for cells in answers(page.service, asked)][-1]

    cells = asyncio.run(last())
    found = {way: [one[way].text for one in cells] for way in WAYS}
    assert found["adapter"] == tagi.solve(FIRST, INPUTS, generation=GENERATION)
    assert found["prompt"] == prompted(tagi).solve(FIRST, INPUTS, generation=GENERATION)
    assert found["mismatched"] == tagi.solve(asked.mismatched_definition, INPUTS, generation=GENERATION)
    assert all(cell.done and cell.tokens for one in cells for cell in one.values())
    assert page.service.worker.waiting == 0


def test_a_run_shows_all_of_its_panels(page: Page) -> None:
    shown = listed(page.answer(f"{INPUTS[0]}\n\n{INPUTS[1]}\n", None, NEW, FIRST, "", *EXAMPLES))
    assert "Done: 6 of 6" in shown[page.answers] and shown[page.message] == ""
    assert shown[page.attention].count("<mark") >= len(FIRST.split())
    assert shown[page.norms].count("<rect") == len(page.service.tagi.model.sites())
    numbers = [float(one) for one in re.findall(r"<td>(\d+)</td>", shown[page.costs])]
    assert len(numbers) == 4 and numbers[2] > numbers[0] > 0, "the prompt reads the instruction too"
    (file,) = re.findall('href="data:text/csv;charset=utf-8;base64,([^"]+)"', shown[page.answers])
    lines = b64decode(file).decode().splitlines()
    assert lines[0] == "input,adapter,prompt,mismatched" and [one.split(",")[0] for one in lines[1:]] == [*INPUTS[:2]]


def test_choices_are_bars(page: Page, tagi: Tagi) -> None:
    shown = listed(page.answer(INPUTS[0], None, NEW, FIRST, "a b\nc\n", *EXAMPLES))
    scores = tagi.score_choices(FIRST, [INPUTS[0]], ["a b", "c"])[0]
    best = ("a b", "c")[scores[1] > scores[0]]
    first = shown[page.answers].split('<div class="cell adapter">')[1].split('<div class="cell')[0]
    assert re.findall('share best"><span>([^<]+)<', first) == [best]
    assert sum(int(one) for one in re.findall(r"(\d+) %", first)) in (99, 100, 101)
    assert "<mark" in shown[page.attention]


def test_an_encoder_decoder_says_that_it_does_not_show_attention(tmp_path: Path) -> None:
    service = Service(make("tagi"), tmp_path / "store", Settings(), base=BASE)
    page = Page(service, tmp_path)
    with service.worker:
        shown = listed(page.answer(INPUTS[0], None, NEW, FIRST, "", *EXAMPLES))
    assert "do not attend" in shown[page.attention] and "encoder.self q" in shown[page.norms]
    assert "<td>" in shown[page.costs]


@pytest.mark.parametrize(
    ("typed", "instruction", "choices", "examples", "problem"),
    [
        ("a", " ", "", EXAMPLES, "the instruction is empty"),
        (" \n", FIRST, "", EXAMPLES, "inputs: there are none"),
        ("a\n" * 9, FIRST, "", EXAMPLES, "9 inputs are more than the 8"),
        ("a", FIRST, "yes", EXAMPLES, "choices: give at least two"),
        ("a", FIRST, "", ("a", "", "", ""), "example 1: fill in both"),
        ("a", FIRST, "", ("", "", "", "b"), "example 2: fill in both"),
    ],
)
def test_a_mistake_is_one_sentence(
    page: Page, typed: str, instruction: str, choices: str, examples: tuple[str, ...], problem: str
) -> None:
    shown = listed(page.answer(typed, None, NEW, instruction, choices, *examples))
    assert said(shown[page.message]).startswith(problem) and page.answers not in shown


def test_an_input_that_is_too_long_is_said_of_that_one(page: Page) -> None:
    shown = listed(page.answer("a\n" + "a b " * 400, None, NEW, FIRST, "", *EXAMPLES))
    assert "positions" in shown[page.answers] and "Done: 6 of 6" in shown[page.answers]


def test_a_task_is_registered_chosen_and_answers(page: Page, tagi: Tagi) -> None:
    done = asyncio.run(page.register("first", NEW, FIRST, "", "a b", "c", "", ""))
    assert "first is registered." in done[page.message] and done[page.task]["choices"] == [NEW, "first"]
    assert "already" in asyncio.run(page.register("first", NEW, FIRST, "", "a b", "c", "", ""))[page.message]
    taken = asyncio.run(page.register("first", NEW, SECOND, "", *EXAMPLES))
    assert "another task" in said(taken[page.message])
    assert "name: 1 to 64" in said(asyncio.run(page.register("../x", NEW, SECOND, "", *EXAMPLES))[page.message])
    assert "registered already" in said(asyncio.run(page.register("", "first", "", "", *EXAMPLES))[page.message])
    assert page.listed()["choices"] == [NEW, "first"]
    shown = page.chosen("first")
    assert FIRST in shown[page.about]["value"] and not shown[page.own]["visible"]
    right = tagi.task(FIRST, [("a b", "c")])(INPUTS[0], generation=GENERATION)
    assert f"<p>{right}</p>" in listed(page.answer(INPUTS[0], None, "first", "", "", *EXAMPLES))[page.answers]
    page.service.tasks.remove("first")
    assert "no task is named" in said(page.chosen("first")[page.message])
    assert "no task is named" in said(listed(page.answer("a", None, "first", "", "", *EXAMPLES))[page.message])


def test_the_mismatched_task_is_another_one(page: Page) -> None:
    own = (Instruction(FIRST), ())
    assert ask(page.service, NEW, own, ["a"]).mismatched_definition != FIRST
    asyncio.run(page.service.register(None, Instruction(FIRST), "a", ()))
    key = asyncio.run(page.service.register(None, Instruction(SECOND), "b", ()))[0].key
    assert ask(page.service, "a", None, ["a"]).mismatched == key


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.csv", b"text\na\n", "x.csv: line 1: has no column named input"),
        ("x.jsonl", b'{"input": "a"}\n{"inptu": "b"}\n', "x.jsonl: line 2, input: is missing"),
        ("x.jsonl", b'{"input": "a", "instruction": "b"}\n', "x.jsonl: line 1: instruction: all inputs"),
        ("x.jsonl", gzip.compress(b'{"input": "a"}\n', mtime=0), "x.jsonl: is packed"),
        ("x.jsonl", b'{"input": "a"}\n' * 9, "9 inputs are more than the 8"),
        ("x.csv", b"", "x.csv: "),
    ],
)
def test_a_file_that_cannot_be_used(page: Page, tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    shown = page.took(str(file))
    assert said(shown[page.read].replace("&#x27;", "'")).startswith(problem) and shown[page.rows] is None
    assert str(tmp_path) not in shown[page.read] and not file.exists()


def test_a_file_is_read_and_removed(page: Page, tmp_path: Path) -> None:
    files = {"x.csv": b'input,more\n"a\nb",c\nd,\n', "x.jsonl": b'{"input": "a\\nb"}\n{"input": "d"}\n'}
    for name, content in files.items():
        file = tmp_path / name
        file.write_bytes(content)
        shown = page.took(str(file))
        assert shown[page.rows] == ["a\nb", "d"] and f"2 inputs of {name}" in shown[page.read] and not file.exists()
    run = listed(page.answer("c", ["a\nb", "d"], NEW, FIRST, "", *EXAMPLES))
    assert "Done: 6 of 6" in run[page.answers]


def test_an_adapter_is_a_file_until_it_is_old(page: Page) -> None:
    shown = asyncio.run(page.adapter("peft", NEW, FIRST, "", *EXAMPLES))
    file = Path(shown[page.taken])
    assert file.name == "adapter.zip" and file.is_relative_to(page.folder)
    assert json.loads(zipfile.ZipFile(file).read("adapter_config.json"))["base_model_name_or_path"] == BASE
    gguf = Path(asyncio.run(page.adapter("gguf", NEW, FIRST, "", *EXAMPLES))[page.taken])
    assert gguf.read_bytes().startswith(b"GGUF")
    os.utime(file, (0, 0))
    mount.remove_old(page.folder, time.time() - 600)
    assert not file.exists() and gguf.exists()
    empty = asyncio.run(page.adapter("peft", NEW, "", "", *EXAMPLES))
    assert said(empty[page.message]) == "the instruction is empty" and empty[page.taken] is None


def test_texts_are_never_markup() -> None:
    bad = "<img src=x onerror=alert(1)>"
    told = Instruction(bad, (Demonstration(bad, bad),))
    asked = Asked(told, told, (bad, "b"), [bad], told, bad)
    cells: list[Any] = [{way: Cell(bad, True, None, (1,), {bad: 0.5, "b": 0.5}) for way in WAYS}]
    errors: list[Any] = [{way: Cell(error=bad, done=True) for way in WAYS}]
    drawn = [render.answers(asked, cells), render.answers(asked, errors), render.error(bad), render.note(bad)]
    drawn += [render.task(told, (bad,)), render.attention([(bad, 0.5)])]
    assert not any("<img" in one for one in drawn) and all("&lt;img" in one for one in drawn)


def test_a_method_without_lora_has_no_map() -> None:
    assert "generates no LoRA" in render.norms(Norms({}, beyond_shared=False))


def test_what_was_written() -> None:
    told, choices = written("a", ("b", "c", "", ""), "x\n\n y \nx")
    assert told == Instruction("a", (Demonstration("b", "c"),)) and choices == ("x", "y")
    with pytest.raises(InputError, match="example 2"):
        written("a", ("b", "c", "d", " "), "")


def test_the_page_is_at_the_root_and_nothing_else_of_gradio_is(tmp_path: Path, tagi: Tagi) -> None:
    with served(tmp_path / "store", tagi, page=True) as client:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.is_dir() and '"title":"tagi"' in client.get("/").text.replace(" ", "")
        assert client.get("/v1/tasks").json() == {"tasks": []} and client.get("/docs").status_code == 200
        for path in ("/nope", "/v1/nope", "/gradio_api/file=https://example.org/", "/monitoring", "/login"):
            assert client.get(path).status_code == 404 and message(client.get(path))
        assert client.get("/gradio_api/file=/etc/passwd").status_code in (403, 404)
        assert client.get("/gradio_api/file=/../../etc/passwd").status_code in (403, 404)
    assert not folder.exists()


@pytest.mark.parametrize("by", ["file", "text", "twice", "not JSON"])
def test_an_event_cannot_make_the_page_ask_another_host(
    by: str, tmp_path: Path, tagi: Tagi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gradio fetches whatever address stands where a file should, in the value of any of its parts."""
    asked = list[str]()

    async def get(url: str) -> None:
        asked.append(url)
        raise OSError("there is no network")

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_get", get)
    bad = {"path": "http://203.0.113.1/x.csv", "meta": {"_type": "gradio.FileData"}}
    with served(tmp_path / "store", tagi, page=True) as client:
        config = client.get("/config").json()
        kind = {one["id"]: one["type"] for one in config["components"]}
        took, chosen = (
            next(one["id"] for one in config["dependencies"] if [kind[part] for part in one["inputs"]] == [inputs])
            for inputs in ("file", "dropdown")
        )
        event = {"data": [bad], "fn_index": chosen if by == "text" else took, "session_hash": "s"}
        body = json.dumps(event)
        if by == "twice":  # the last of one name counts, or the first
            body = body.replace('"path"', '"path": "/x.csv", "path"')
        if by == "not JSON":
            body += "}"
        answer = client.post("/gradio_api/queue/join", content=body, headers={"Content-Type": "application/json"})
        if answer.status_code == 200:  # it is done in the background
            client.get("/gradio_api/queue/data", params={"session_hash": "s"})
        assert asked == [] and answer.status_code == 400 and "file" in message(answer)
        allowed = client.post("/gradio_api/queue/join", json=event | {"data": [None], "fn_index": took})
        assert allowed.status_code == 200


def test_the_page_needs_the_key(tmp_path: Path, tagi: Tagi) -> None:
    key = new_key()
    with served(tmp_path / "store", tagi, page=True, keys=(hashed(key),)) as client:
        refused = client.get("/")
        assert refused.status_code == 401 and refused.headers["WWW-Authenticate"].startswith("Basic ")
        assert client.get("/config").status_code == client.post("/gradio_api/upload").status_code == 401
        assert client.get("/", auth=("anyone", key)).status_code == 200


def test_without_gradio_the_root_says_how_to_get_it(
    tmp_path: Path, tagi: Tagi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "tagi.serve.page.mount")
    with served(tmp_path / "store", tagi, page=True) as client:
        answer = client.get("/")
        assert answer.status_code == 501 and "pip install 'tagi[serve]'" in answer.text and "gradio" in answer.text
        assert client.get("/v1/tasks").status_code == 200


def test_only_the_page_imports_gradio() -> None:
    """It takes seconds."""
    sources = Path(mount.__file__).parents[2]
    early = re.compile(r"^(import gradio|from gradio|from tagi\.serve\.page)", re.MULTILINE)
    found = {file.parent.name for file in sources.rglob("*.py") if early.search(file.read_text(encoding="utf-8"))}
    assert found == {"page"}
