"""Learning from tasks: hypernetwork finetuning, and metatraining where the instruction is in the prompt (§3.2.4)."""

from collections.abc import Callable
from dataclasses import dataclass
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
    """Batches of microtasks, single operations visited `single_repeats` times an epoch."""
    split = micro_split(config.data)
    tasks = split.singles * config.data.single_repeats + split.compositions
    return task_batches(_mixture(config, MicroSource(tasks, config.prompt.positives)), collator)


def sni_batches(config: RunConfig, collator: Collator) -> Callable[[int], Batch]:
    """Batches of the meta-train tasks of Super-NaturalInstructions."""
    return task_batches(_mixture(config, FixedTasks(sni_tasks(config.data))), collator)


def _mixture(config: RunConfig, source: TaskSource) -> Mixture:
    training = config.training
    return Mixture(source, tasks=training.tasks_per_batch, rows=training.rows_per_task, seed=training.seed)


def sni_tasks(data: DataConfig) -> list[Task]:
    """The meta-train tasks of the split, without the meta-valid ones."""
    dataset = SniDataset(Path(data.path or ""), data.split)
    names, _ = meta_split(dataset.english(dataset.names("train")), data.valid_tasks, data.seed)
    return [dataset.load(name, limit=data.max_instances, seed=data.seed) for name in names]
