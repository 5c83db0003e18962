"""Learning from tasks: hypernetwork finetuning, and metatraining where the instruction is in the prompt (§3.2.4)."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tagi.config import DataConfig, RunConfig
from tagi.data.collate import Batch, Collator
from tagi.data.micro_splits import Split, splits
from tagi.data.microtasks import MicroTask
from tagi.data.mixture import FixedTasks, Mixture, TaskSource
from tagi.data.sni import SniDataset, meta_split
from tagi.data.types import Task
from tagi.train.stage import task_batches


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
