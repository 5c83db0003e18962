"""Count what the package is made of: lines, functions, config fields, options."""

import ast
from argparse import Namespace
from pathlib import Path
from statistics import median, quantiles

from typer.main import get_command

from benchmarks.command import parser, run, show
from tagi.cli.main import app
from tagi.config import RunConfig


def lengths(file: Path) -> list[int]:
    """Lines of every function of a file."""
    found = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    functions = [one for one in found if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(one.end_lineno or one.lineno) - one.lineno + 1 for one in functions]


def options(command: object) -> int:
    """Options of a command and of those below it."""
    below = getattr(command, "commands", None)
    if below is not None:
        return sum(map(options, below.values()))
    return sum(one.param_type_name == "option" for one in getattr(command, "params", ()))


def main(asked: Namespace) -> None:
    """Print the counts."""
    files = {file: file.read_text(encoding="utf-8").count("\n") for file in Path("src").rglob("*.py")}
    functions = [length for file in files for length in lengths(file)]
    schema = RunConfig.model_json_schema()
    counts = {
        "lines of src": sum(files.values()),
        "longest file": max(files.values()),
        "functions": len(functions),
        "median function": median(functions),
        "p90 function": quantiles(functions, n=10)[-1],
        "config fields": sum(len(one.get("properties", ())) for one in (schema, *schema["$defs"].values())),
        "options": options(get_command(app)),
    }
    show(asked, [], {"house": [{"": name, "count": count} for name, count in counts.items()]})


OPTIONS = parser(__doc__)
if __name__ == "__main__":
    run(main, OPTIONS)
