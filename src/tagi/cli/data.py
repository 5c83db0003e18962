"""`tagi data`: getting the data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tagi.cli.common import bar, note

if TYPE_CHECKING:
    from tagi.data.fetch import Source

EXAMPLE = "Example: tagi data fetch sni -o data/sni"
STORY_CLOZE = (
    "StoryCloze may not be redistributed: ask for it at https://cs.rochester.edu/nlp/rocstories, and write its rows to "
    "eval/story_cloze.jsonl, one JSON object a line with the fields of its templates (input_sentence_1 to _4, "
    "sentence_quiz1, sentence_quiz2, answer_right_ending)."
)
app = typer.Typer(help="Get the data sets.", no_args_is_help=True)
app.callback()(lambda: None)  # or `fetch`, the only command, would stand for them all


@app.command("fetch", epilog=f"{EXAMPLE}\n\n{STORY_CLOZE}")
def fetch(
    name: Annotated[Literal["sni", "p3", "c4"], typer.Argument(help="Super-NaturalInstructions, P3 or C4.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where it lies afterwards.")],
    shards: Annotated[int, typer.Option(min=1, max=1024, help="Training shards of C4, 350,000 documents each.")] = 1,
    split: Annotated[str, typer.Option(help="Training sets of P3: 5, 10, 20, 36 or all.")] = "36",
    rows: Annotated[int, typer.Option(min=1, help="Rows of each of P3's templates, at most.")] = 1000,
    rows_from: Annotated[
        str, typer.Option("--rows-from", metavar="NAME", help="P3's rows: a hub name or a copy on this machine.")
    ] = "bigscience/P3",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be downloaded.")] = False,
) -> None:
    """Download a data set, going on where an earlier download broke off.

    A file's SHA-256 is recorded at its first download and compared from then on.
    """
    from tagi.data import fetch as fetching

    sources = {"sni": fetching.SNI, "p3": fetching.P3, "c4": fetching.c4(shards)}[name]
    for source in sources:
        if dry_run:
            typer.echo(f"{source.url} -> {output / source.path}")
        else:
            _one(source, output)
    if name == "p3":
        _p3_rows(output, rows_from, split, rows, dry_run=dry_run)
        note(STORY_CLOZE)


def _p3_rows(output: Path, source: str, split: str, rows: int, *, dry_run: bool) -> None:
    from tagi.data.fetch_p3 import HELD_OUT, fetch_held_out_rows, fetch_training_rows

    if dry_run:
        typer.echo(f"{source}, split {split}, up to {rows:,} rows a template -> {output / 'train'}")
        for name, one in HELD_OUT.items():
            typer.echo(f"{one.repository}, {one.split} -> {output / 'eval' / name}.jsonl")
        return
    with bar("training rows") as report:
        files, missing = fetch_training_rows(output, repository=source, split=split, rows=rows, report=report)
    typer.echo(f"{output / 'train'}: rows of {len(files):,} templates")
    if missing:
        note(f"{source} has no template of {', '.join(missing)}")
    with bar("held-out rows") as report:
        scored = fetch_held_out_rows(output, HELD_OUT, report=report)
    typer.echo(f"{output / 'eval'}: rows of {len(scored):,} held-out tasks")


def _one(source: Source, output: Path) -> None:
    from tagi.data import fetch as fetching

    with bar(source.path) as report:
        archive = fetching.fetch(source, output, report)
    if source.unpack:
        count = fetching.unpack(archive, output, source.unpack)
        typer.echo(f"{archive}: {count:,} files unpacked to {output}")
    else:
        typer.echo(f"{archive}")
