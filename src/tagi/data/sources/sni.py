"""Super-NaturalInstructions as a source of tasks."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from tagi.data.mixture import TaskSource, fixed
from tagi.data.sources.base import TaskList, later, meta_split
from tagi.data.sources.sni_files import SniDataset, largest_categories
from tagi.data.types import Task, named


class Sni(TaskList[Task]):
    """The tasks of the benchmark in one of its splits, those of a language."""

    @cached_property
    def dataset(self) -> SniDataset:
        """The files."""
        return SniDataset(self.folder, self.data.split, self.data.language)

    @cached_property
    def tasks(self) -> list[Task]:
        """The training tasks without the held-out ones, which are the same for any number of categories."""
        data = self.data
        if data.part == "test":
            return [later(task, data.skip) for task in self.test(0)]
        tasks = [self._views[name][0] for name in named(self._names[0], str, data.only)]
        if data.categories is None:
            return tasks
        kept = set(largest_categories(tasks, data.categories))
        return [task for task in tasks if task.categories[0] in kept]

    def turns(self, tasks: Sequence[Task], shown: int) -> TaskSource:
        return fixed(tasks) if self.data.support == "given" else super().turns(tasks, shown)

    def valid(self, shown: int) -> list[Task]:
        return [self._views[name][1] for name in self._names[1]]

    def test(self, shown: int) -> list[Task]:
        return self.dataset.chosen("test", self.data.only)[0]

    def files(self) -> list[Path]:
        return [self.folder / "tasks" / f"{name}.json" for name in self.dataset.names(self.data.part)]

    @cached_property
    def _views(self) -> dict[str, list[Task]]:
        """What training, and what validation, take of a training task; each file is read once for both."""
        views = (self.data.max_instances, self.data.seed), (self.data.valid_instances, None)
        return self.dataset.by_language(self.dataset.names("train"), *views)[0]

    @cached_property
    def _names(self) -> tuple[list[str], list[str]]:
        """Of the meta-train and the validation tasks."""
        return meta_split(list(self._views), self.data.valid_tasks, self.data.seed)
