"""The data sets of a run, opened once: tokenizer, batches, plan and validation together read each file once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tagi.config import DataConfig
from tagi.data.sources.p3_files import P3Dataset, TrainSet
from tagi.data.sources.sni_files import SniDataset
from tagi.data.types import Task


@dataclass(frozen=True, slots=True)
class Datasets:
    """What a process has opened and read for its runs; hand one on to all that read the same data."""

    _sni: dict[tuple[object, ...], SniDataset] = field(default_factory=dict)
    _p3: dict[tuple[object, ...], P3Dataset] = field(default_factory=dict)
    _tasks: dict[tuple[object, ...], list[Task]] = field(default_factory=dict)

    def sni(self, data: DataConfig) -> SniDataset:
        """The benchmark in a config's folder; keeps what training and validation take of a task."""
        views = ((data.max_instances, data.seed), (data.valid_instances, None))
        if data.part == "test":
            views = ((None, None),)
        key = (data.path, data.split, views)
        if key not in self._sni:
            self._sni[key] = SniDataset(Path(data.path or ""), data.split, views)
        return self._sni[key]

    def p3(self, data: DataConfig) -> P3Dataset:
        """P3 in a config's folder, and of it the config's split."""
        key = (data.path, data.split, data.instruction)
        if key not in self._p3:
            split = "36" if data.split == "default" else data.split
            self._p3[key] = P3Dataset(Path(data.path or ""), split, data.instruction)
        return self._p3[key]

    def p3_train(self, data: DataConfig, one: TrainSet, *, limit: int | None, seed: int | None = None) -> list[Task]:
        """The tasks of one template; see `P3Dataset.train_tasks`."""
        key = (data.path, data.instruction, one.name, limit, seed)
        return self._once(key, lambda: self.p3(data).train_tasks(one, limit=limit, seed=seed))

    def p3_eval(self, data: DataConfig, name: str) -> list[Task]:
        """One held-out task under each of its prompts; see `P3Dataset.eval_tasks`."""
        return self._once((data.path, data.instruction, name), lambda: self.p3(data).eval_tasks(name))

    def _once(self, key: tuple[object, ...], read: Callable[[], list[Task]]) -> list[Task]:
        if key not in self._tasks:
            self._tasks[key] = read()
        return self._tasks[key]
