"""Learning from tasks: hypernetwork finetuning, and metatraining where the instruction is in the prompt (§3.2.4)."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from tagi.config import DataConfig, RunConfig
from tagi.data.collate import Batch, Collator
from tagi.data.micro_splits import Split, splits
from tagi.data.microtasks import MicroTask
from tagi.data.mixture import FixedTasks, Mixture, TaskSource
from tagi.data.sni import SniDataset, meta_split
from tagi.data.types import Task
from tagi.errors import ConfigError
from tagi.train.stage import task_batches

G = TypeVar("G")


@dataclass(frozen=True, slots=True)
class MicroSource:
    """Microtasks, worded anew on every visit."""

    tasks: tuple[MicroTask, ...]
    positives: int

    def __len__(self) -> int:
        return len(self.tasks)

    def task(self, number: int, visit: int) -> Task:
        return self.tasks[number].task(wording_seed=visit, positives=self.positives)


def micro_split(data: DataConfig) -> Split:
    """The microtask split of a data config; training and evaluation ask for it in the same words."""
    return splits(data.seed, train_compositions=data.compositions, valid=data.valid_tasks)


def micro_batches(config: RunConfig, collator: Collator) -> Callable[[int], Batch]:
    """Batches of microtasks: compositions once an epoch, single operations as often as the config says."""
    split = micro_split(config.data)
    tasks = repeated_singles(split.singles, config.data.single_visits) + split.compositions
    return task_batches(_mixture(config, MicroSource(tasks, config.prompt.positives)), collator)


def repeated_singles(singles: tuple[MicroTask, ...], visits: int) -> tuple[MicroTask, ...]:
    """Each single operation at least once, and so often that every family has about `visits` turns."""
    sizes = Counter(task.operations[0].family for task in singles)
    return tuple(task for task in singles for _ in range(max(visits // sizes[task.operations[0].family], 1)))


def sni_batches(config: RunConfig, collator: Collator) -> Callable[[int], Batch]:
    """Batches of the meta-train tasks of Super-NaturalInstructions."""
    return task_batches(_mixture(config, FixedTasks(sni_tasks(config.data))), collator)


def grouped_sources(config: RunConfig) -> dict[str, TaskSource]:
    """The meta-train tasks by category or each by itself, in a fixed order: what teachers are trained on.

    Raises:
        ConfigError: data without tasks.
    """
    data, by_task = config.data, config.teachers.group == "task"
    if data.source == "micro":
        split = micro_split(data)
        micro = _grouped(split.singles + split.compositions, lambda t: t.name if by_task else t.operations[-1].family)
        return {name: MicroSource(tuple(tasks), config.prompt.positives) for name, tasks in micro.items()}
    if data.source == "sni":
        sni = _grouped(sni_tasks(data), lambda t: t.name if by_task else t.categories[0])
        return {name: FixedTasks(tasks) for name, tasks in sni.items()}
    raise ConfigError(f"data.source: {data.source} has no tasks to train teachers on")


def _grouped(things: Iterable[G], key: Callable[[G], str]) -> dict[str, list[G]]:
    groups: dict[str, list[G]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return dict(sorted(groups.items()))


def _mixture(config: RunConfig, source: TaskSource) -> Mixture:
    training = config.training
    return Mixture(source, tasks=training.tasks_per_batch, rows=training.rows_per_task, seed=training.seed)


def valid_tasks(config: RunConfig) -> list[Task]:
    """The meta-valid tasks held out of training, with their first instances."""
    data = config.data
    if data.source == "micro":
        worded = [task.task(positives=config.prompt.positives) for task in micro_split(data).valid]
        return [replace(task, examples=task.examples[: data.valid_instances]) for task in worded]
    if data.source == "sni":
        dataset, (_, names) = _sni_names(data)
        return [dataset.load(name, limit=data.valid_instances) for name in names]
    return []


def sni_tasks(data: DataConfig) -> list[Task]:
    """The meta-train tasks of the split, without the meta-valid ones."""
    dataset, (names, _) = _sni_names(data)
    return [dataset.load(name, limit=data.max_instances, seed=data.seed) for name in names]


def _sni_names(data: DataConfig) -> tuple[SniDataset, tuple[list[str], list[str]]]:
    """The data set, and the names of its meta-train and meta-valid tasks."""
    dataset = SniDataset(Path(data.path or ""), data.split)
    return dataset, meta_split(dataset.english(dataset.names("train")), data.valid_tasks, data.seed)
