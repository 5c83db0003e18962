"""The results as HTML. Every text of a person's is escaped; colours are of the style sheet."""

import base64
import csv
import io
from collections.abc import Sequence
from html import escape

from tagi.backbones.sites import Site
from tagi.data.types import Instruction
from tagi.infer.looking import Norms
from tagi.serve.page.asking import LONGEST, WAYS, Asked, Cell, Cells, Way
from tagi.serve.page.costs import TOKENS, Costs

NAMES: dict[Way, str] = {
    "adapter": "Adapter",
    "prompt": "Instruction in the prompt",
    "mismatched": "Mismatched instruction",
}
LOOKED = "Where the answer looked in the instruction"
SHOWN = 20
"""Inputs whose answers are shown; the file has all."""
SQUARE = 10
"""Of the heat map, in its own units."""


def error(text: str) -> str:
    """What a person has to mend, or what went wrong."""
    return f'<p class="problem" role="alert">{escape(text)}</p>'


def note(text: str) -> str:
    """A remark."""
    return f'<p class="note" role="status">{escape(text)}</p>'


def task(instruction: Instruction, choices: Sequence[str]) -> str:
    """A registered task."""
    lines = [f"<p>{escape(instruction.definition)}</p>"]
    for one in instruction.demonstrations:
        lines.append(f"<p class='note'>{escape(one.input)} → {escape(one.output)}</p>")
    if choices:
        lines.append(f"<p class='note'>Chooses from: {escape(', '.join(choices))}</p>")
    return f'<div class="task">{"".join(lines)}</div>'


def answers(asked: Asked, cells: Cells) -> str:
    """Every input with its answers in three columns; with a file of them when all are there."""
    ready = sum(cell.done for own in cells for cell in own.values())
    total = len(WAYS) * len(cells)
    parts = [f'<p class="note" role="status">{"Done" if ready == total else "Answering"}: {ready} of {total}.']
    if ready == total:
        parts.append(f' <a class="file" download="answers.csv" href="{_file(asked, cells)}">Download the answers</a>')
    parts.append("</p>")
    for text, own in list(zip(asked.texts, cells, strict=True))[:SHOWN]:
        columns = "".join(_cell(way, own[way]) for way in WAYS)
        parts.append(f'<article class="answered"><p class="input">{escape(text)}</p>{columns}</article>')
    if len(cells) > SHOWN:
        parts.append(f'<p class="note">The first {SHOWN} of {len(cells)} inputs are shown; the file has all.</p>')
    parts.append(
        f'<p class="note">In the prompt: the same language model, untrained, reads the instruction with every input. '
        f"Mismatched: the adapter of “{escape(asked.mismatched_definition)}” "
        + (
            "Bars: mean log-likelihood a token of every choice, as shares.</p>"
            if asked.choices
            else f"Answers end after {LONGEST} tokens.</p>"
        )
    )
    return "".join(parts)


def _cell(way: Way, cell: Cell) -> str:
    if cell.error is not None:
        said = f'<p class="problem">{escape(cell.error)}</p>'
    elif cell.shares:
        said = "".join(_share(choice, share, choice == cell.text) for choice, share in cell.shares.items())
    elif cell.done:
        said = f"<p>{escape(cell.text)}</p>" if cell.text else '<p class="note">(nothing)</p>'
    else:
        said = f'<p>{escape(cell.text)}<span class="caret" aria-hidden="true"></span></p>'
    return f'<div class="cell {way}"><h4>{NAMES[way]}</h4>{said}</div>'


def _share(choice: str, share: float, best: bool) -> str:
    percent = f"{100 * share:.0f} %"
    return (
        f'<div class="share{" best" if best else ""}"><span>{escape(choice)}</span><span>{percent}</span>'
        f'<div class="bar"><div style="width:{100 * share:.1f}%"></div></div></div>'
    )


def _file(asked: Asked, cells: Cells) -> str:
    """The answers as a table, in the address itself: nothing is kept on the server."""
    table = io.StringIO(newline="")
    rows = csv.writer(table)
    rows.writerow(["input", *WAYS])
    for text, own in zip(asked.texts, cells, strict=True):
        rows.writerow([text, *(own[way].text for way in WAYS)])
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(table.getvalue().encode()).decode()}"


def _panel(title: str, body: str) -> str:
    return f'<section class="panel"><h3>{title}</h3>{body}</section>'


def norms(found: Norms) -> str:
    """A heat map: layers from left to right, target modules from top to bottom."""
    if not found.by_site:
        return _panel("What was generated", note("This method generates no LoRA."))
    kinds = len({site.kind for site in found.by_site if site.place in ("q", "v")}) > 1

    def row(site: Site) -> str:
        return f"{site.kind} {site.place}" if kinds else str(site.place)

    rows = list(dict.fromkeys(map(row, found.by_site)))
    layers = 1 + max(site.layer for site in found.by_site)
    most = max(found.by_site.values()) or 1.0
    left = 7 * max(map(len, rows)) + 6
    squares = [
        f'<rect class="heat" x="{left + SQUARE * site.layer}" y="{SQUARE * rows.index(row(site))}" '
        f'width="{SQUARE - 1}" height="{SQUARE - 1}" fill-opacity="{0.04 + 0.96 * value / most:.3f}">'
        f"<title>layer {site.layer}, {row(site)}: {value:.3g}</title></rect>"
        for site, value in found.by_site.items()
    ]
    names = [f'<text x="0" y="{SQUARE * number + 8}">{name}</text>' for number, name in enumerate(rows)]
    wide, high = left + SQUARE * layers, SQUARE * len(rows)
    numbers = [
        f'<text x="{left + SQUARE * layer + 4.5}" y="{high + 9}" text-anchor="middle">{layer}</text>'
        for layer in range(0, layers, max(layers // 6, 1))
    ]
    largest = max(found.by_site, key=found.by_site.__getitem__)
    said = f"largest {most:.3g}, at layer {largest.layer}, {row(largest)}"
    what = (
        "The norm of what this instruction adds to the LoRA that all tasks share"
        if found.beyond_shared
        else "The norm of ΔW"
    )
    return _panel(
        "What was generated",
        f'<svg class="map" role="img" aria-label="{what}: {said}" viewBox="0 0 {wide} {high + 12}">'
        f"{''.join(squares + names + numbers)}</svg>"
        f'<p class="note">{what}, by layer and target module; {said}.</p>',
    )


def attention(tokens: Sequence[tuple[str, float]] | None) -> str:
    """The instruction, each token as strongly marked as the answer attended to it."""
    if tokens is None:
        return _panel(LOOKED, note("This model's answers do not attend to the instruction's tokens one by one."))
    most = max((weight for _, weight in tokens), default=0.0) or 1.0
    marked = "".join(
        f'<mark style="--weight:{weight / most:.2f}" title="{100 * weight:.1f} %">{escape(text)}</mark>'
        for text, weight in tokens
    )
    total = 100 * sum(weight for _, weight in tokens)
    return _panel(
        LOOKED,
        f'<p class="attended">{marked}</p><p class="note">The first answer spent {total:.0f} % of its attention on '
        "these tokens: the mean over its own tokens, all layers and heads.</p>",
    )


def costs(found: Costs) -> str:
    """The two ways side by side."""
    rows = "".join(
        f'<tr><th scope="row">{NAMES[way]}</th><td>{tokens:.0f}</td><td>{milliseconds:.0f}</td></tr>'
        for way, (tokens, milliseconds) in found.each.items()
    )
    inputs = "the input" if found.inputs == 1 else f"the first {found.inputs} inputs"
    return _panel(
        "Cost against the prompt",
        '<table class="costs"><thead><tr><td></td><th scope="col">tokens read</th><th scope="col">ms</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
        f'<p class="note">Per input, measured now with {inputs}, one at a time, {TOKENS} tokens an answer. Before it, '
        f"once for the task: {found.once_tokens} tokens read and the adapter written in "
        f"{found.once_milliseconds:.0f} ms.</p>",
    )
