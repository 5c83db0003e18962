"""The page in a browser: a task is written, a file dropped, an adapter taken, by keyboard and on a phone."""

import json
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from serving import FIRST, served
from test_engine import INPUTS, make

pytest.importorskip("gradio", reason="the page needs gradio")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

from tagi.infer.running import Tokens
from tagi.infer.scheduler import Scheduler
from tagi.serve.guard import hashed, new_key

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]
MILLISECONDS = 60_000
"""Far more than anything takes: nothing here measures time."""


@pytest.fixture(scope="module")
def key() -> str:
    return new_key()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, key: str) -> Iterator[str]:
    tagi = make("tagi", family="decoder")
    with served(tmp_path_factory.mktemp("store"), tagi, page=True, keys=(hashed(key),)) as client:
        client.post(
            "/v1/tasks", json={"name": "kept", "instruction": FIRST}, headers={"Authorization": f"Bearer {key}"}
        )
        yield str(client.base_url)


@pytest.fixture(scope="module")
def browser(key: str) -> Iterator[BrowserContext]:
    """One for all tests: it keeps what it has loaded."""
    expect.set_options(timeout=MILLISECONDS)
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = opened.new_context(http_credentials={"username": "anyone", "password": key})
        context.set_default_timeout(MILLISECONDS)
        yield context
        opened.close()


@pytest.fixture
def page(browser: BrowserContext, address: str) -> Iterator[Page]:
    """The page as it was opened; in the end nothing has gone wrong in it, and no other host was asked for anything."""
    hosts: set[str | None] = set()
    problems: list[str] = []
    opened = browser.new_page()
    opened.set_viewport_size({"width": 1280, "height": 900})
    opened.on("request", lambda one: hosts.add(urlsplit(one.url).hostname))
    opened.on("pageerror", lambda one: problems.append(str(one)))
    opened.goto(address)
    opened.get_by_role("button", name="Answer", exact=True).wait_for()
    yield opened
    opened.close()
    assert hosts - {None} == {"127.0.0.1"} and problems == []


def answered(page: Page) -> None:
    """Press the button, and wait for all of it."""
    page.get_by_role("button", name="Answer", exact=True).click()
    page.locator("#answers").get_by_text("Done").wait_for()
    page.locator("#costs table").wait_for()


def test_a_task_is_written_and_answered(page: Page) -> None:
    page.get_by_label("Instruction").first.fill(FIRST)
    page.get_by_label("Inputs").first.fill("\n".join(INPUTS[:2]))
    answered(page)
    shown = page.locator("#answers")
    expect(shown.locator("article")).to_have_count(2)
    expect(shown.locator(".cell")).to_have_count(6)
    expect(page.locator("#attention mark").first).to_be_visible()
    expect(page.locator("#norms rect").first).to_be_visible()
    with page.expect_download() as taken:
        shown.get_by_text("Download the answers").click()
    lines = taken.value.path().read_text(encoding="utf-8").splitlines()
    assert lines[0] == "input,adapter,prompt,mismatched" and len(lines) == 3


def test_texts_are_never_run(page: Page) -> None:
    page.get_by_label("Inputs").first.fill("a <img src=x onerror='window.bad=1'> ${window.bad=1} {{b}}")
    answered(page)
    expect(page.locator("#answers .input")).to_contain_text("${window.bad=1} {{b}}")
    assert page.evaluate("window.bad") is None


def test_an_empty_instruction_is_said(page: Page) -> None:
    page.get_by_label("Instruction").first.fill("")
    page.get_by_role("button", name="Answer", exact=True).click()
    expect(page.get_by_role("alert").filter(has_text="the instruction is empty")).to_be_visible()


def test_an_adapter_is_downloaded(page: Page) -> None:
    page.get_by_label("Instruction").first.fill(FIRST)
    with page.expect_download() as taken:
        page.get_by_role("button", name="Download the adapter").click()
    assert taken.value.suggested_filename == "adapter.zip"
    with zipfile.ZipFile(taken.value.path()) as archive:
        assert json.loads(archive.read("adapter_config.json"))["peft_type"] == "LORA"


def test_a_file_is_dropped_and_another_refused(page: Page, tmp_path: Path) -> None:
    file, other = tmp_path / "texts.csv", tmp_path / "other.csv"
    file.write_text("input\na\nb c\nd\n")
    other.write_text("text\na\n")
    place = page.locator("#inputs-file input[type=file]")
    place.set_input_files(other)
    expect(page.get_by_role("alert").filter(has_text="other.csv: line 1: has no column named input")).to_be_visible()
    place.set_input_files(file)
    page.get_by_text("3 inputs of texts.csv").wait_for()
    answered(page)
    expect(page.locator("#answers article")).to_have_count(3)


def test_a_registered_task_is_chosen(page: Page) -> None:
    page.get_by_label("Task").first.click()
    page.get_by_role("option", name="kept").click()
    page.locator(".task").get_by_text(FIRST).wait_for()
    expect(page.get_by_label("Instruction").first).to_be_hidden()
    answered(page)


def test_it_works_by_keyboard_alone(page: Page) -> None:
    instruction = page.get_by_label("Instruction").first
    for _ in range(20):
        page.keyboard.press("Tab")
        if instruction.evaluate("one => one === document.activeElement"):
            break
    page.keyboard.press("Control+A")
    page.keyboard.type(FIRST)
    answer = page.get_by_role("button", name="Answer", exact=True)
    for _ in range(20):
        page.keyboard.press("Tab")
        if answer.evaluate("one => one === document.activeElement"):
            break
    page.keyboard.press("Enter")
    page.locator("#answers").get_by_text("Done").wait_for()


def test_a_phone_is_wide_enough(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    answered(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = [one.bounding_box() for one in page.locator("#answers .cell").all()]
    assert len({box["x"] for box in boxes if box is not None}) == 1, "one below the other"


def test_stop_ends_the_generation(browser: BrowserContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that would never end by itself; what is asked next is answered."""
    step, endless = Scheduler.step, threading.Event()
    endless.set()

    def held(self: Scheduler) -> Iterable[Tokens]:
        if not endless.is_set():
            return step(self)
        time.sleep(0.01)
        return []

    def until(true: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + MILLISECONDS / 1000
        while not true():
            assert time.monotonic() < end, what
            time.sleep(0.05)

    monkeypatch.setattr(Scheduler, "step", held)
    with served(tmp_path / "store", make("tagi", family="decoder"), page=True, seconds=3600) as client:
        page = browser.new_page()
        page.goto(str(client.base_url))
        page.get_by_label("Inputs").first.fill("\n".join(INPUTS))
        page.get_by_role("button", name="Answer", exact=True).click()
        try:
            until(lambda: "tagi_waiting 15.0" in client.get("/metrics").text, "nothing is generated")
            page.get_by_role("button", name="Stop", exact=True).click()
            until(lambda: "tagi_waiting 0.0" in client.get("/metrics").text, "it goes on")
            endless.clear()
            answered(page)
            expect(page.locator("#answers article")).to_have_count(len(INPUTS))
        finally:  # or the service never ends
            endless.clear()
            page.close()
