"""What the commands share: options, results as tables and as a JSON file, one sentence for a user's mistake."""

import json
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.timing import Comparison
from tagi.cli.common import stderr, stdout, table
from tagi.errors import TagiError
from tagi.files import check_writable, write_text

HELP = {
    "asked": "adapters asked for at random before the timing",
    "batch": "examples at a time",
    "batches": "training batches to take the loss over",
    "checkpoint": "this one on everyday tasks, in place of random weights of the shape",
    "clients": "callers at a time",
    "comparison": "what to compare",
    "dtype": "number format of every model that is compared",
    "generator": "what writes LoRA: mlp is Eq. 2, states is the bundled default's, of decoder-only models",
    "hidden": "hidden width of the adapter generator",
    "input": "tokens of an input",
    "instruction": "tokens of an instruction",
    "loras": "per-task LoRAs that train in lock-step",
    "requests": "requests in all, over all rounds",
    "rounds": "rounds in which the cases take turns",
    "rows": "rows of every task in a batch",
    "shape": "smollm2-135m, micro, a named shape such as t5-small, or a run's file, for its backbone",
    "shots": "demonstrations of every task: 0 is Def, 2 is Def+2Pos",
    "system": "what to compare; the first is what others are held to",
    "target": "tokens of an answer",
    "tasks": "how many tasks",
    "transformers": "compare with `transformers`: instruction in the prompt and, decoder-only, a cached prefix",
    "width": "width of fusion; 0 is d_model / 4",
}
CHOICES: dict[str, tuple[str, ...]] = {
    "comparison": ("bank", "metatraining", "peft", "transformers"),
    "dtype": ("fp32", "bf16"),
    "generator": ("mlp", "states"),
}
Rows = Sequence[Mapping[str, Any]]


def parser(about: str | None, **defaults: Any) -> ArgumentParser:
    """Options with the types of their defaults; a tuple takes several values, a number is at least 1 unless it is 0 by
    default."""
    made = ArgumentParser(description=about, formatter_class=ArgumentDefaultsHelpFormatter)
    for name, default in defaults.items():
        one = default[0] if isinstance(default, tuple) else default
        if isinstance(one, bool):
            made.add_argument(f"--{name}", action="store_true", help=HELP[name])
            continue
        kind = str if isinstance(one, str) else _at_least(min(one, 1))
        many = "+" if isinstance(default, tuple) else None
        made.add_argument(
            f"--{name}", type=kind, nargs=many, choices=CHOICES.get(name), default=default, help=HELP[name]
        )
    made.add_argument("--json-file", type=Path, help="write every round, and how it was measured, here")
    return made


def _at_least(smallest: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise ArgumentTypeError(f"{text!r} is no whole number from {smallest} on")
        return int(text)

    return number


def run(main: Callable[[Namespace], None], options: ArgumentParser, arguments: Sequence[str] | None = None) -> None:
    """Run a benchmark; a user's mistake is one sentence and exit code 2."""
    asked = options.parse_args(arguments)
    transformers_logging.disable_progress_bar()
    try:
        if asked.json_file is not None:
            check_writable(asked.json_file)  # before anything is measured for it
        main(asked)
    except TagiError as error:
        stderr().print(f"error: {error}", soft_wrap=True)
        sys.exit(2)


def show(asked: Namespace, compared: Sequence[Comparison], tables: Mapping[str, Rows] | None = None) -> None:
    """Print comparisons, and tables by their titles, and write the file if there is to be one (or DiskError)."""
    tables = tables or {}
    for title, rows in [*((one.title, one.rows()) for one in compared), *tables.items()]:
        if rows:
            made = table(title, tuple(rows[0]))
            for row in rows:
                made.add_row(*map(_cell, row.values()))
            stdout().print(made)
    if asked.json_file is not None:
        timed = [{"title": one.title, "rows": one.rows(), "seconds": one.seconds} for one in compared]
        result = {"arguments": vars(asked), "measured": _circumstances(), "comparisons": timed, "tables": tables}
        write_text(asked.json_file, json.dumps(result, indent=1, default=str))


def _cell(value: object) -> str:
    """Numbers with two digits at least that say something."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _circumstances() -> dict[str, Any]:
    """What a ratio depends on."""
    return {
        "command": sys.argv,
        "date": date.today().isoformat(),
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "versions": {
            name: metadata.version(name) for name in ("torch", "transformers", "peft") if util.find_spec(name)
        },
    }
