"""What the page looks like, and what its buttons do. All that touches the model goes through the service."""

import functools
import io
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Base, Font

from tagi.data.inputs import read_inputs
from tagi.errors import InputError, TagiError
from tagi.infer import looking
from tagi.model.adapter import TaskAdapter
from tagi.serve.adapters import SUFFIX, Form, packed
from tagi.serve.page import render
from tagi.serve.page.asking import Asked, Cells, answers, ask, written
from tagi.serve.page.costs import measured
from tagi.serve.registry import made_name
from tagi.serve.service import Service

NEW = "A task of my own"
INSTRUCTION = "Name the product that the customer is talking about."
INPUT = "The kettle I bought leaks at the lid."
GZIP = b"\x1f\x8b"
FORMS: list[tuple[str, Form]] = [("PEFT (zip)", "peft"), ("llama.cpp (GGUF)", "gguf")]
HEAD = (
    '<div class="tagi-head"><h1>tagi</h1><p>Write what to do. A hypernetwork reads it once and writes an adapter, with '
    "which {} solves any number of inputs. It is a small model and makes mistakes: check its answers.</p></div>"
)
HINT = render.note('A CSV has a column “input”; JSONL has lines {"input": "…"}.')
CLICK = "() => setTimeout(() => document.querySelector('#adapter-file').click(), 50)"
Updates = dict[Any, Any]
SYSTEM = ("system-ui", "sans-serif")
MONO = ("ui-monospace", "monospace")


def theme() -> Base:
    """Calm, and with the fonts of the system: none is fetched."""
    return Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=[Font(name) for name in SYSTEM],
        font_mono=[Font(name) for name in MONO],
    ).set(body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500")


class Page:
    """The page of a service."""

    def __init__(self, service: Service, folder: Path) -> None:
        """Files of adapters lie in `folder` until they are taken; somebody else removes them."""
        self.service, self.folder = service, folder
        with gr.Blocks(title="tagi", analytics_enabled=False) as self.blocks:
            gr.HTML(HEAD.format(service.base))
            with gr.Row():
                with gr.Column(scale=4, min_width=320):
                    self._task()
                    self._inputs()
                with gr.Column(scale=7, min_width=320):
                    self._results()
            self._wire()
        self.blocks.queue(default_concurrency_limit=16, max_size=64)

    # --- what is there ---------------------------------------------------------------------------------------

    def _task(self) -> None:
        gr.HTML("<h2>1. The task</h2>", elem_classes="step")
        self.task = gr.Dropdown([NEW], value=NEW, label="Task", info="Write one, or choose one that is registered.")
        self.about = gr.HTML(visible=False)
        with gr.Column() as self.own:
            self.instruction = gr.Textbox(
                INSTRUCTION, label="Instruction", info="What to do with every input.", placeholder=INSTRUCTION, lines=2
            )
            with gr.Accordion("Examples and choices, if you like", open=False):
                self.examples = []
                for number in (1, 2):
                    with gr.Row():
                        self.examples += [
                            gr.Textbox("", label=f"Example {number}: {side}", lines=1, min_width=140)
                            for side in ("input", "output")
                        ]
                self.choices = gr.Textbox(
                    "", label="Choices", info="One a line: the likeliest is the answer.", placeholder="yes\nno", lines=2
                )
            with gr.Accordion("Keep this task under a name", open=False):
                self.name = gr.Textbox("", label="Name", info="If empty, it is made of the instruction's words.")
                self.keep = gr.Button("Register the task", size="sm")

    def _inputs(self) -> None:
        gr.HTML("<h2>2. The inputs</h2>", elem_classes="step")
        self.texts = gr.Textbox(INPUT, label="Inputs", info="One a line.", placeholder=INPUT, lines=3, max_lines=12)
        self.file = gr.File(
            label="Or drop a CSV or JSONL file",
            file_types=[".csv", ".jsonl"],
            height=120,
            elem_id="inputs-file",
        )
        self.read = gr.HTML(HINT, elem_id="inputs-read")
        self.rows = gr.State(None, time_to_live=3600)
        with gr.Row():
            self.go = gr.Button("Answer", variant="primary", scale=3, elem_id="answer")
            self.stop = gr.Button("Stop", scale=1, min_width=80)

    def _results(self) -> None:
        gr.HTML("<h2>3. The answers</h2>", elem_classes="step")
        self.message = gr.HTML(elem_id="message")
        self.answers = gr.HTML(render.note("Press “Answer”."), elem_id="answers")
        with gr.Row():
            with gr.Column(min_width=280):
                self.attention = gr.HTML(elem_id="attention")
            with gr.Column(min_width=280):
                self.costs = gr.HTML(elem_id="costs")
        self.norms = gr.HTML(elem_id="norms")
        with gr.Row():
            self.form = gr.Dropdown(FORMS, value="peft", label="Adapter for other engines", min_width=200)
            self.take = gr.Button("Download the adapter", elem_id="take", min_width=200)
        self.taken = gr.DownloadButton("The file", visible="hidden", elem_id="adapter-file")

    def _wire(self) -> None:
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        written = [self.task, self.instruction, self.choices, *self.examples]
        results = [self.message, self.answers, self.attention, self.costs, self.norms]
        self.blocks.load(self.listed, None, self.task, **quiet)
        self.task.change(self.chosen, self.task, [self.about, self.own, self.message], **quiet)
        self.file.upload(self.took, self.file, [self.read, self.rows, self.file], **quiet)
        self.file.clear(lambda: (HINT, None), None, [self.read, self.rows], **quiet)
        self.keep.click(self.register, [self.name, *written], [self.message, self.task], **quiet)
        asked = [self.texts, self.rows, *written]
        runs: list[Any] = [
            one(self.answer, asked, results, **quiet) for one in (self.go.click, self.instruction.submit)
        ]
        self.stop.click(None, None, None, cancels=runs, **quiet)
        taken = self.take.click(self.adapter, [self.form, *written], [self.message, self.taken], **quiet)
        taken.then(None, None, None, js=CLICK, **quiet)

    # --- what the buttons do ---------------------------------------------------------------------------------

    def listed(self) -> Any:
        """The tasks that can be chosen now."""
        return gr.update(choices=[NEW, *(one.name for one in self.service.tasks.all())])

    def chosen(self, name: str) -> Updates:
        """A registered task is shown, and nothing of it can be written."""
        if name == NEW:
            return {self.about: gr.update(visible=False), self.own: gr.update(visible=True), self.message: ""}
        try:
            task = self.service.tasks.get(name)
        except TagiError as error:
            return {self.message: render.error(str(error))}
        about = render.task(self.service.store.instruction(task.key), task.choices)
        shown = gr.update(value=about, visible=True)
        return {self.about: shown, self.own: gr.update(visible=False), self.message: ""}

    def took(self, path: str) -> Updates:
        """A file of inputs that was dropped; it is read at once and not kept."""
        file = Path(path)
        try:
            content = file.read_bytes()
            file.unlink()
            if content.startswith(GZIP):  # a small one may hold very much
                raise InputError(f"{file.name}: is packed; unpack it first")
            lines = read_inputs(Path(file.name), io.BytesIO(content))
            told = next((number for number, line in lines if line.instruction is not None), None)
            if told is not None:
                raise InputError(
                    f"{file.name}: line {told}: instruction: all inputs are of one task here; leave it out"
                )
            texts = self.service.inputs([line.input for _, line in lines])
        except TagiError as error:
            return {self.read: render.error(str(error)), self.rows: None, self.file: None}
        said = f"{len(texts)} inputs of {file.name} are answered, in place of those above."
        return {self.read: render.note(said), self.rows: texts}

    async def register(self, name: str, *task: str) -> Updates:
        """Give the task that is written a name."""
        try:
            own = _written(*task)
            if own is None:
                raise InputError(f"{task[0]} is registered already")
            found, new = await self.service.register(None, own[0], name.strip() or made_name(*own), own[1])
        except TagiError as error:
            return {self.message: render.error(str(error))}
        said = render.note(f"{found.name} is registered{'' if new else ' already'}.")
        return {self.message: said, self.task: self.listed()}

    async def answer(self, typed: str, rows: list[str] | None, *task: str) -> AsyncIterator[Updates]:
        """The answers as they grow, then what there is to see of the first."""
        texts = rows or [line for line in typed.splitlines() if line.strip()]
        panels = (self.attention, self.costs, self.norms)
        try:
            asked = ask(self.service, task[0], _written(*task), texts)
            yield {self.message: "", **dict.fromkeys(panels, "")}
            cells: Cells = []
            async for cells in answers(self.service, asked):
                yield {self.answers: render.answers(asked, cells)}
            async for update in self._seen(asked, cells):
                yield update
        except TagiError as error:
            yield {self.message: render.error(str(error))}

    async def _seen(self, asked: Asked, cells: Cells) -> AsyncIterator[Updates]:
        service, tagi = self.service, self.service.tagi
        adapter = await service.on_model(None, functools.partial(self._adapter, asked))
        first = cells[0]["adapter"].tokens
        seen = await service.on_model(
            None, lambda: looking.attention(tagi, adapter, asked.instruction, asked.texts[0], first)
        )
        yield {self.attention: render.attention(seen)}
        found = await service.on_model(None, lambda: looking.norms(tagi, adapter))
        yield {self.norms: render.norms(found)}
        yield {self.costs: render.costs(await measured(service, asked, adapter))}

    def _adapter(self, asked: Asked) -> TaskAdapter:
        if isinstance(asked.told, str):
            return self.service.store.get(asked.told)
        return self.service.tagi.adapt_all([asked.instruction])

    async def adapter(self, form: Form, *task: str) -> Updates:
        """The adapter of the task that is chosen or written, as a file."""
        service = self.service
        try:
            asked = ask(service, task[0], _written(*task), [INPUT])
            name = f"adapter.{SUFFIX[form]}" if task[0] == NEW else f"{task[0]}.{SUFFIX[form]}"
            make: Callable[[], bytes] = lambda: packed(service.tagi, self._adapter(asked), service.base, form)  # noqa: E731
            content = await service.on_model(None, make)
        except TagiError as error:
            return {self.message: render.error(str(error)), self.taken: None}
        path = Path(tempfile.mkdtemp(dir=self.folder)) / name
        path.write_bytes(content)
        return {self.message: "", self.taken: str(path)}


def _written(name: str, instruction: str, choices: str, *examples: str) -> Any:
    """What was written, or None where a registered task was chosen."""
    return written(instruction, examples, choices) if name == NEW else None
