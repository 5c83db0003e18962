"""The program `tagi`: its commands, and what becomes of their errors."""

import io
import os
import sys
from collections.abc import Sequence

import typer
from rich.markup import escape

import tagi
from tagi.cli import adapt, bench, data, demo, doctor, methods, train
from tagi.cli import eval as evaluation
from tagi.cli import export as export_command
from tagi.cli import run as run_command
from tagi.cli import runs as runs_command
from tagi.cli.common import stderr
from tagi.errors import TagiError

MISTAKE, INTERRUPTED = 2, 130

app = typer.Typer(
    name="tagi",
    help="Read a task's instruction once, write a task adapter, solve any number of its inputs.",
    epilog='Example: tagi run "Keep only the animals, then reverse the list." --input "red wolf saw dog plum"',
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo", epilog=demo.EXAMPLE)(demo.demo)
app.command("run", epilog=run_command.EXAMPLE)(run_command.run)
app.command("adapt", epilog=adapt.EXAMPLE)(adapt.adapt)
app.command("train", epilog=train.EXAMPLE)(train.train)
app.command("runs", epilog=runs_command.EXAMPLE)(runs_command.runs)
app.add_typer(evaluation.app, name="eval")
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(export_command.app, name="export")
app.command("methods", epilog=methods.EXAMPLE)(methods.methods)
app.command("doctor", epilog=doctor.EXAMPLE)(doctor.doctor)


@app.callback()
def _root(context: typer.Context, version: bool = typer.Option(False, "--version", help="Show the version.")) -> None:
    if version:
        typer.echo(f"tagi {tagi.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run() -> None:
    """The entry point of the installed program."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy machine, threads that spin stop each other
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one command; gives its exit code: 2 for a user's mistake, 130 for Ctrl-C."""
    try:
        code = app(list(arguments), prog_name="tagi", standalone_mode=False)
    except typer.TyperException as error:
        return _mistake(_usage(error))
    except TagiError as error:
        return _mistake(str(error))
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        stderr().print("interrupted")
    return code if isinstance(code, int) else 0


def _usage(error: typer.TyperException) -> str:
    """What is wrong with the command line, and where its help is."""
    context: typer.Context | None = getattr(error, "ctx", None)
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    if context is None or message.endswith("?"):
        return message
    return f"{message}; see {context.command_path} --help"


def _mistake(message: str) -> int:
    stderr().print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", soft_wrap=True)
    return MISTAKE
