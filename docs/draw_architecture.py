"""Draws docs/architecture.svg: python docs/draw_architecture.py"""

from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, ROW, GAP = 1120, 58, 20
INK, PALE = "#1f2937", "#6b7280"
FILLS = {"text": "#fef3c7", "model": "#dbeafe", "value": "#dcfce7", "loss": "#fee2e2"}


@dataclass(frozen=True, slots=True)
class Box:
    """One station of a way: what it is, where it is written down, and of which sort."""

    title: str
    place: str
    sort: str


INSTRUCTION = (
    Box("instruction, as text", "data/prompts, data/collate", "text"),
    Box("read: one pass", "Backbone.read", "model"),
    Box("encoded instruction", "EncodedInstruction", "value"),
    Box("hypernetwork (Eq. 2)", "model/hypernetwork", "model"),
    Box("task adapter", "model/adapter: TaskAdapter", "value"),
    Box("prepare: once per task", "model/tagi: TagiModel.prepare", "model"),
)
INPUT = (
    Box("input, as text", "data/collate: Collator.input", "text"),
    Box("request", "infer/tasks: Request", "value"),
    Box("scheduler", "infer/scheduler: submit, step", "model"),
    Box("begin: first logits", "Backbone.begin", "model"),
    Box("step: next logits", "Backbone.step", "model"),
    Box("answer", "infer/answers", "text"),
)
TRAINING = (
    Box("task of a data source", "data/sources", "text"),
    Box("T tasks × k rows each", "data/mixture", "value"),
    Box("batch of token ids", "data/collate: Batch", "value"),
    Box("forward pass", "TagiModel.forward", "model"),
    Box("loss (Eq. 6)", "losses, train/objectives", "loss"),
    Box("step of the optimizer", "train/trainer, train/optim", "model"),
)
WAYS = (
    ("An instruction becomes a task adapter, once", INSTRUCTION),
    ("An input becomes an answer, without the instruction", INPUT),
    ("A training row becomes a gradient", TRAINING),
)
LAYERS = (
    ("commands", ("cli", "repro", "serve")),
    ("work", ("train", "eval", "export", "cost")),
    ("answers", ("infer",)),
    ("the method", ("model",)),
    ("language models", ("backbones: T5, decoder, GGUF",)),
    ("text and sums", ("data", "losses", "methods")),
    ("ground", ("config", "hub", "files", "reading", "errors")),
)


def main() -> None:
    """Write the picture beside this file."""
    Path(__file__).with_name("architecture.svg").write_text(picture(), encoding="utf-8")


def picture() -> str:
    """The SVG."""
    parts: list[str] = []
    top = 20
    for title, way in WAYS:
        parts.append(text(20, top + 14, title, size=15, weight="bold"))
        parts += row(way, top + 26)
        top += 26 + ROW + 34
    parts.append(text(20, top + 14, "Rooms of src/tagi: imports point down", size=15, weight="bold"))
    top += 26
    for name, rooms in LAYERS:
        parts += layer(name, rooms, top)
        top += 34
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 10}" font-family="sans-serif">'
    arrow = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{PALE}"/></marker></defs>'
    )
    ground = f'<rect width="{WIDTH}" height="{top + 10}" fill="white"/>'
    return "\n".join([head, arrow, ground, *parts, "</svg>", ""])


def row(way: tuple[Box, ...], top: int) -> list[str]:
    """Boxes side by side with arrows between them."""
    width = (WIDTH - 40 - GAP * (len(way) - 1)) / len(way)
    parts: list[str] = []
    for number, box in enumerate(way):
        left = 20 + number * (width + GAP)
        parts.append(rectangle(left, top, width, ROW, FILLS[box.sort]))
        parts.append(text(left + width / 2, top + 24, box.title, size=11.5, anchor="middle", weight="bold"))
        parts.append(text(left + width / 2, top + 42, box.place, size=9.5, anchor="middle", fill=PALE))
        if number:
            y = top + ROW / 2
            parts.append(
                f'<path d="M{left - GAP + 2:.0f} {y} H{left - 2:.0f}" stroke="{PALE}" marker-end="url(#tip)"/>'
            )
    return parts


def layer(name: str, rooms: tuple[str, ...], top: int) -> list[str]:
    """The rooms of one layer."""
    width = (WIDTH - 190 - 8 * (len(rooms) - 1)) / len(rooms)
    parts = [text(20, top + 18, name, size=12, fill=PALE)]
    for number, room in enumerate(rooms):
        left = 170 + number * (width + 8)
        parts.append(rectangle(left, top, width, 26, "#f3f4f6"))
        parts.append(text(left + width / 2, top + 17, room, size=11.5, anchor="middle"))
    return parts


def rectangle(left: float, top: float, width: float, height: float, fill: str) -> str:
    """A box with round corners."""
    return (
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{height:.0f}" rx="6" fill="{fill}" '
        f'stroke="{PALE}" stroke-width="0.7"/>'
    )


def text(
    x: float, y: float, words: str, *, size: float, anchor: str = "start", weight: str = "normal", fill: str = INK
) -> str:
    """One line of text."""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{fill}">{escape(words)}</text>'
    )


if __name__ == "__main__":
    main()
