"""What every source of tasks or text can be asked, and what several of them share."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Generic, Literal, TypeVar

from tagi.config import DataConfig
from tagi.data.mixture import TaskSource, demonstrated
from tagi.data.types import Generated, Task
from tagi.errors import ConfigError

Group = Literal["category", "task"]
T = TypeVar("T")
AnyTask = TypeVar("AnyTask", bound=Task)


@dataclass(frozen=True)
class Source:
    """What a data config names. Files are read when they are asked for, and each of them once.

    A source has some of this and refuses the rest (ConfigError); files that cannot be used are a TagiError.
    `shown` is how many demonstrations an instruction brings along, where the source draws them.
    """

    data: DataConfig

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return Path(self.data.path or "")

    def train(self, shown: int) -> TaskSource:
        """The training tasks; with `part=test` the target tasks, without the instances that they are scored on."""
        raise self._lacks("tasks to train on")

    def groups(self, by: Group, shown: int) -> dict[str, TaskSource]:
        """The training tasks by their first category, or each by itself, in a fixed order."""
        raise self._lacks("groups of tasks")

    def valid(self, shown: int) -> list[Task]:
        """The tasks held out of training, with their first `valid_instances` instances."""
        return []

    def test(self, shown: int) -> list[Task]:
        """The tasks that are scored, with all of their instances; of those named by `only`, where any are."""
        raise self._lacks("test tasks")

    def documents(self) -> Iterator[str]:
        """Plain text for hypernetwork pretraining, the first `max_documents` of it."""
        raise self._lacks("plain text")

    def texts(self) -> Iterator[str]:
        """What a tokenizer is trained on."""
        raise self._lacks("text to train a tokenizer on")

    def files(self) -> list[Path]:
        """What is read of the folder in training."""
        return []

    def _lacks(self, what: str) -> ConfigError:
        return ConfigError(f"data.source: {self.data.source} has no {what}")


class TaskList(Source, Generic[AnyTask]):
    """A source that lists its training tasks."""

    @cached_property
    def tasks(self) -> Sequence[AnyTask]:
        """The training tasks, without the held-out ones."""
        raise NotImplementedError

    def turns(self, tasks: Sequence[AnyTask], shown: int) -> TaskSource:
        """Some of them as they take turns; they show rows of their own, unless their files give demonstrations."""
        return demonstrated(tasks, shown)

    def train(self, shown: int) -> TaskSource:
        return self.turns(self.tasks, shown)

    def groups(self, by: Group, shown: int) -> dict[str, TaskSource]:
        groups = grouped(self.tasks, lambda task: task.name if by == "task" else task.categories[0])
        return {name: self.turns(own, shown) for name, own in groups.items()}

    def texts(self) -> Iterator[str]:
        """Definitions, inputs and targets."""
        for task in self.tasks:
            yield task.instruction.definition
            for example in task.examples:
                yield example.input
                yield from example.targets


def meta_split(names: Sequence[str], valid: int, seed: int) -> tuple[list[str], list[str]]:
    """Hold out `valid` whole tasks of the training part for model selection: (meta-train, validation).

    The choice depends on the seed and the set of names only; a smaller `valid` gives a subset of a larger one's. It is
    not stratified, for many categories have a single task: a held-out task may share its category with training tasks,
    so its scores compare checkpoints and say little about unseen categories.

    Raises:
        ConfigError: no training task would be left.
    """
    if valid >= len(names):
        raise ConfigError(f"valid_tasks {valid} leaves no training task: there are {len(names)}")
    shuffled = sorted(names)
    Random(seed).shuffle(shuffled)
    held_out = set(shuffled[:valid])
    return [name for name in names if name not in held_out], [name for name in names if name in held_out]


def grouped(things: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    """Things by a key, the keys in order."""
    groups: dict[str, list[T]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return dict(sorted(groups.items()))


def later(task: AnyTask, skip: int) -> AnyTask:
    """A task without its first instances; a ConfigError where it has no others."""
    if len(task.examples) <= skip:
        raise ConfigError(f"data.skip: {task.name} has no more than {skip} instances; none is left to train on")
    whole = task.examples
    return replace(task, examples=Generated(len(whole) - skip, lambda index: whole[skip + index]))
