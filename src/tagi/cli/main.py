"""The program `tagi`: its commands, and what becomes of their errors."""

import gc
import io
import os
import sys
from collections.abc import Sequence
from itertools import pairwise

import typer
from rich.text import Text

import tagi
from tagi.cli import adapt, data, demo, doctor, export, harness, methods, pretraining, repro, runs, serve, train
from tagi.cli import eval as evaluation
from tagi.cli import run as run_command
from tagi.cli.common import stderr
from tagi.errors import InputError, TagiError

MISTAKE, INTERRUPTED, BROKEN_PIPE = 2, 130, 141
"""Exit codes: the last two are what a shell gives to programs that SIGINT and SIGPIPE end."""

_TEXTS = ("--input", "--example", "--stop")
"""Options that say better themselves why they are not empty."""

app = typer.Typer(
    name="tagi",
    help="Read a task's instruction once, write a task adapter, solve any number of its inputs.",
    epilog='Example: tagi run "Name the city in the text." --input "We met in Oslo last May."',
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo", rich_help_panel="Use", epilog=demo.EXAMPLE)(demo.demo)
app.command("run", rich_help_panel="Use", epilog=run_command.EXAMPLE)(run_command.run)
app.command("adapt", rich_help_panel="Use", epilog=adapt.EXAMPLE)(adapt.adapt)
app.command("serve", rich_help_panel="Use", epilog=serve.EXAMPLE)(serve.serve)
app.command("key", rich_help_panel="Use", epilog=serve.KEY_EXAMPLE)(serve.key)
app.command("train", rich_help_panel="Train", epilog=train.EXAMPLE)(train.train)
evaluation.app.command("lm", epilog=harness.EXAMPLE)(harness.lm)
evaluation.app.command("text", epilog=pretraining.TEXT_EXAMPLE)(pretraining.text)
evaluation.app.command("probes", epilog=pretraining.PROBES_EXAMPLE)(pretraining.probes)
app.add_typer(evaluation.app, name="eval", rich_help_panel="Measure")
app.add_typer(data.app, name="data", rich_help_panel="Train")
app.add_typer(export.app, name="export", rich_help_panel="Use")
app.command("runs", rich_help_panel="Reproduce", epilog=runs.EXAMPLE)(runs.runs)
app.command("repro", rich_help_panel="Reproduce", epilog=repro.EXAMPLE)(repro.repro)
app.command("methods", rich_help_panel="Reproduce", epilog=methods.EXAMPLE)(methods.methods)
app.command("doctor", rich_help_panel="Use", epilog=doctor.EXAMPLE)(doctor.doctor)


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
    if sys.stderr is None:  # closed by who started us
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.exit(_mistake("standard output is closed"))
    code = main(sys.argv[1:])
    gc.freeze()  # or Python searches all that is loaded for garbage, before the system frees it anyway
    sys.exit(_flushed(code))


def _flushed(code: int) -> int:
    """The exit code, when all that was printed has been written; what cannot be written is not tried again."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = BROKEN_PIPE
    except OSError as error:
        code = _mistake(f"standard output cannot be written ({error.strerror})")
    else:
        if code != BROKEN_PIPE:
            return code
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def main(arguments: Sequence[str]) -> int:
    """Run one command; gives its exit code: 2 for a user's mistake, 130 for Ctrl-C, 141 where nobody reads on."""
    try:
        _check_encoding(arguments)
        _check_places(arguments)
        code = app(list(arguments), prog_name="tagi", standalone_mode=False)
    except typer.TyperException as error:
        message = error.format_message().replace("Value error, ", "").rstrip(".")
        context: typer.Context | None = getattr(error, "ctx", None)
        where = "" if context is None or message.endswith("?") else f"; see {context.command_path} --help"
        return _mistake(message + where)
    except TagiError as error:
        return _mistake(str(error))
    except OSError as error:
        reason, name = error.strerror or str(error) or type(error).__name__, error.filename
        return _mistake(f"{os.fsdecode(name)}: {reason}" if isinstance(name, str | bytes) else reason)
    except MemoryError:
        return _mistake("the memory of this machine does not suffice")
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit:  # so typer and rich leave when the reader of a pipe has gone; nothing of ours does
        code = BROKEN_PIPE
    if code == INTERRUPTED:
        stderr().print("interrupted")
    return code if isinstance(code, int) else 0


def _check_encoding(arguments: Sequence[str]) -> None:
    """Refuse bytes that are no characters: Python hands them on as halves of surrogate pairs."""
    for number, one in enumerate(arguments):
        try:
            one.encode()
        except UnicodeEncodeError as error:
            before = arguments[number - 1] if number else ""
            option = one.partition("=")[0] if one.startswith("--") else before
            name = option if option.startswith("-") and option != "-" else f"argument {number + 1}"
            raise InputError(f"{name}: {one.encode(errors='replace').decode()!r} is not UTF-8") from error


def _check_places(arguments: Sequence[str]) -> None:
    """Refuse options without a value, as a shell makes of a variable that is not set: of an empty name of a checkpoint
    the bundled one would be made, of an empty folder the working directory."""
    for before, one in pairwise(("", *arguments)):
        name, value = (one.removesuffix("="), "") if one.startswith("--") and one.endswith("=") else (before, one)
        if name.startswith("-") and name not in _TEXTS and not value.strip():
            raise InputError(f"{name}: is empty")


def _mistake(message: str) -> int:
    stderr().print(Text.assemble(("error:", "bold red"), f" {' '.join(message.split())}"), soft_wrap=True)
    return MISTAKE
