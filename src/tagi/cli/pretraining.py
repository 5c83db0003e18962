"""The commands of a language model of one's own: `tagi eval text`, `tagi eval probes`, and the source `text`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tagi.cli.common import Backbone, Checkpoint, Json, bar, open_tagi, print_json, stdout, table, waiting
from tagi.cli.eval import Examples, Seed

if TYPE_CHECKING:
    from tagi.data.sources import Sources

TEXT_EXAMPLE = "Example: tagi eval text --data data/c4 --checkpoint runs/backbone/final"
PROBES_EXAMPLE = "Example: tagi eval probes --data c4 --checkpoint runs/backbone-metatrain/final"


def every_source() -> Sources:
    """All sources that a config can name, tasks over plain text among them."""
    from tagi.data.sources import SOURCES, Sources
    from tagi.pretraining.text_tasks import Text

    return Sources({**SOURCES, "text": Text})


def text(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Documents in C4's format, of its validation part.")],
    documents: Annotated[int, typer.Option(min=1, help="Documents, the first ones.")] = 200,
    length: Annotated[int, typer.Option(min=8, help="Input tokens of a row.")] = 256,
    checkpoint: Checkpoint = None,
    backbone: Backbone = None,
    as_json: Json = False,
) -> None:
    """Bits per byte that a language model needs for text it was not trained on, without any instruction."""
    from tagi.config import CorpusConfig
    from tagi.pretraining.corpus import held_out

    corpus = CorpusConfig(c4=str(data), valid_documents=documents, length=length, target_length=length)
    texts = held_out(corpus)
    tagi = open_tagi(checkpoint, backbone)
    from tagi.pretraining.bits import bits_per_byte, kinds

    found: dict[str, float] = {}
    with bar("reading") as report:
        for number, kind in enumerate(kinds(tagi), 1):
            found[kind] = bits_per_byte(tagi, texts, corpus, kind)
            report(number, len(kinds(tagi)))
    if as_json:
        print_json({"bits_per_byte": found, "documents": len(texts), "bytes": sum(len(x.encode()) for x in texts)})
        return
    made = table("bits per byte of held-out text", ("what is said", "bits per byte"))
    for name, bits in found.items():
        made.add_row(name, f"{bits:.3f}")
    stdout().print(made)


def probes(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Text in C4's format: c4-validation.*.json.gz.")],
    tasks: Annotated[int, typer.Option(min=2, help="Tasks of each probe, and as many that name new values.")] = 24,
    instances: Annotated[
        int, typer.Option(min=1, help="Rows of each task; with 12 every answer stands at every place equally often.")
    ] = 12,
    demonstrations: Examples = None,
    checkpoint: Checkpoint = None,
    backbone: Backbone = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Copying what the instruction names, choosing an option, yes or no by a rule: exact match beside chance.

    Each with the right instruction, with another task's of the same probe, and with none.
    """
    from tagi.cli import probes as probes_cli
    from tagi.pretraining.text_tasks import probes as draw

    tagi = open_tagi(checkpoint, backbone, demonstrations)
    shown = tagi.config.prompt.demonstrations
    with waiting("drawing tasks"):
        drawn = draw(data, seed, tasks=tasks, instances=instances, demonstrations=shown)
    asked = {"benchmark": "probes", "data": str(data), "tasks": tasks, "instances": instances, "demonstrations": shown}
    scores = probes_cli.score(tagi, drawn, seed, asked | {"seed": seed, "checkpoint": checkpoint})
    print_json(scores) if as_json else stdout().print(probes_cli.score_table(scores))
