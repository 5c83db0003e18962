"""P3 as a source of tasks: every template in every data set is one."""

from functools import cached_property
from pathlib import Path

from tagi.data.mixture import demonstrated
from tagi.data.sources.base import TaskList, later, meta_split
from tagi.data.sources.p3_files import P3Dataset, TrainSet
from tagi.data.types import Task, named


class P3(TaskList[Task]):
    """T0's training templates and held-out tasks; demonstrations are other rows of a task, drawn on every visit."""

    @cached_property
    def dataset(self) -> P3Dataset:
        """The files of the config's split."""
        split = "36" if self.data.split == "default" else self.data.split
        return P3Dataset(self.folder, split, self.data.instruction)

    @cached_property
    def tasks(self) -> list[Task]:
        """The tasks of the meta-train data sets, without templates of which no row asks and answers something."""
        data = self.data
        if data.part == "test":
            return [later(task, data.skip) for task in self.test(0)]
        chosen = named(self._sets[0], lambda one: one.name, data.only)
        tasks = [
            task for one in chosen for task in self.dataset.train_tasks(one, limit=data.max_instances, seed=data.seed)
        ]
        return [task for task in tasks if task.examples]

    def valid(self, shown: int) -> list[Task]:
        """The first template of every held-out data set."""
        first = {one.data_set: one for one in reversed(self._sets[1])}
        limit = self.data.valid_instances
        tasks = (task for one in first.values() for task in self.dataset.train_tasks(one, limit=limit))
        return demonstrated([task for task in tasks if task.examples], shown).first()

    def test(self, shown: int) -> list[Task]:
        names = named(self.dataset.eval_names(), str, self.data.only)
        return [task for name in names for task in self.dataset.eval_tasks(name, shots=shown, seed=self.data.seed)]

    def files(self) -> list[Path]:
        templates = sorted({one.source for each in self.dataset.templates.values() for one in each})
        if self.data.part == "test":
            return [*templates, *(self.folder / "eval" / f"{name}.jsonl" for name in self.dataset.eval_names())]
        return [*templates, *(one.path for one in self.dataset.train_sets())]

    @cached_property
    def _sets(self) -> tuple[list[TrainSet], list[TrainSet]]:
        """The row files of the meta-train and of the validation data sets."""
        sets = self.dataset.train_sets()
        names, held_out = meta_split(sorted({one.data_set for one in sets}), self.data.valid_tasks, self.data.seed)
        return [one for one in sets if one.data_set in names], [one for one in sets if one.data_set in held_out]
