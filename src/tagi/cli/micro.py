"""The microtasks that a checkpoint has never seen."""

from tagi.backbones.files import locate
from tagi.bundled import default_checkpoint
from tagi.cli.common import note
from tagi.config import DataConfig
from tagi.config.files import RUN_FILE, load
from tagi.data.sources.micro import Micro
from tagi.data.synthetic.microtasks import MicroTask
from tagi.errors import InputError


def trained_on(checkpoint: str | None) -> DataConfig:
    """The data of the run that trained a checkpoint: what it was not, its test tasks, depends on all of it."""
    file = locate(checkpoint or default_checkpoint()) / RUN_FILE
    if not file.is_file():
        note(f"the checkpoint has no {RUN_FILE} that says what it was trained on; some tasks may not be unseen")
    known = load(file).data.of_source("micro") if file.is_file() else None
    return known or DataConfig(source="micro")


def unseen(data: DataConfig, count: int) -> tuple[MicroTask, ...]:
    """The first `count` test tasks, which are in random order but for the first."""
    test = Micro(data).split.test
    if count > len(test):
        raise InputError(f"--tasks {count}: there are {len(test)} unseen tasks")
    return test[:count]
