"""Learning from tasks: hypernetwork finetuning, and metatraining where the instruction is in the prompt (§3.2.4)."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar, overload

from tagi.config import DataConfig, RunConfig
from tagi.data.collate import Batch, Collator
from tagi.data.mixture import FixedTasks, Mixture, Shares, TaskSource, Undemonstrated
from tagi.data.sources.p3_files import TrainSet, with_demonstrations
from tagi.data.sources.sni_files import SniDataset, largest_categories, meta_split
from tagi.data.synthetic.micro_splits import Split, splits
from tagi.data.synthetic.microtasks import MicroTask
from tagi.data.types import Example, Task, named
from tagi.errors import ConfigError
from tagi.pretraining import text_tasks
from tagi.train.datasets import Datasets
from tagi.train.stage import task_batches

G = TypeVar("G")


@dataclass(frozen=True, slots=True)
class Later(Sequence[Example]):
    """Examples without the first ones, read or generated on demand like the whole."""

    examples: Sequence[Example]
    first: int

    def __len__(self) -> int:
        return max(len(self.examples) - self.first, 0)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.examples[self.first + range(len(self))[index]]


@dataclass(frozen=True, slots=True)
class MicroSource:
    """Microtasks, worded anew on every visit."""

    tasks: tuple[MicroTask, ...]
    positives: int
    skip: int = 0

    def __len__(self) -> int:
        return len(self.tasks)

    def task(self, number: int, visit: int) -> Task:
        task = self.tasks[number].task(wording_seed=visit, positives=self.positives)
        return replace(task, examples=Later(task.examples, self.skip)) if self.skip else task


def micro_split(data: DataConfig) -> Split:
    """The microtask split of a data config; training and evaluation ask for it in the same words."""
    return splits(data.seed, train_compositions=data.compositions, valid=data.valid_tasks)


def training_batches(
    config: RunConfig, collator: Collator, processes: int = 1, datasets: Datasets | None = None
) -> Callable[[int], Batch]:
    """Batches of a run's training tasks.

    Args:
        processes: how many share the batches of a step.

    Raises:
        TagiError: the data cannot be used, or holds no task.
    """
    training, shown = config.training, config.demonstrations
    by_prompt = training.bucket == "prompt"
    mixture = Mixture(
        task_source(config, datasets),
        tasks=training.tasks_per_batch,
        rows=training.rows_per_task,
        seed=training.seed,
        length=(lambda group: group.prompt_length(shown)) if by_prompt else (lambda group: group.length),
        abreast=training.accumulation * processes,
    )
    return task_batches(mixture, collator)


def task_source(config: RunConfig, datasets: Datasets | None = None) -> TaskSource | Shares:
    """The training tasks of a run, or of each part of its mixture, or of each of their categories (`data.balance`).

    Raises:
        ConfigError: a part without tasks.
    """
    parts = config.data.parts
    if not parts and config.data.balance == "task":
        return _equal_sources(config, datasets)[0]
    sources: list[TaskSource] = []
    shares: list[float] = []
    weighed = {f"data.parts.{name}": (part, part.share) for name, part in parts.items()}
    for field, (part, share) in (weighed or {"data": (config.data, 1.0)}).items():
        own = _equal_sources(of_part(config, part), datasets)
        if not any(map(len, own)):
            raise ConfigError(f"{field}: has no task to train on")
        sources += own
        shares += [share / len(own)] * len(own)
    return Shares(tuple(sources), tuple(shares))


def _equal_sources(config: RunConfig, datasets: Datasets | None) -> list[TaskSource]:
    """What has equally many turns of the run's data, or of a part: the whole of it, or its categories."""
    if config.data.balance == "category":
        return list(grouped_sources(config, "category", datasets).values())
    return [_shown(config, _SOURCES[config.data.source](config, datasets or Datasets()))]


def _shown(config: RunConfig, source: TaskSource) -> TaskSource:
    """The source, some of its turns without demonstrations (`data.zero_shot`)."""
    share = config.data.zero_shot
    return Undemonstrated(source, share, config.training.seed) if share else source


def of_part(config: RunConfig, part: DataConfig) -> RunConfig:
    """The run as if a part of its mixture were all of its data."""
    return config.model_copy(update={"data": part})


def text_source(config: RunConfig, datasets: Datasets) -> TaskSource:
    """Tasks over the training documents of a folder."""
    del datasets
    data = config.data
    return text_tasks.text_source(Path(data.path or ""), data.seed, config.demonstrations, data.max_documents)


def micro_source(config: RunConfig, datasets: Datasets) -> TaskSource:
    """Microtasks: compositions once an epoch, single operations as often as the config says."""
    del datasets
    data, split = config.data, micro_split(config.data)
    if data.part == "test":
        targets = named(split.test, lambda task: task.name, data.only)
        return MicroSource(tuple(targets), config.demonstrations, data.skip)
    tasks = repeated_singles(split.singles, data.single_visits) + split.compositions
    chosen = named(tasks, lambda task: task.name, data.only)
    return MicroSource(tuple(chosen), config.demonstrations)


def repeated_singles(singles: tuple[MicroTask, ...], visits: int) -> tuple[MicroTask, ...]:
    """Each single operation at least once, and so often that every family has about `visits` turns."""
    sizes = Counter(task.operations[0].family for task in singles)
    return tuple(task for task in singles for _ in range(max(visits // sizes[task.operations[0].family], 1)))


def sni_source(config: RunConfig, datasets: Datasets) -> TaskSource:
    """The meta-train tasks of Super-NaturalInstructions."""
    return _of_tasks(config, sni_tasks(config.data, datasets))


@dataclass(frozen=True, slots=True)
class P3Source:
    """P3's templates, or tasks; demonstrations, where they are shown, are other rows of the task on every visit.

    They are A.1's k support examples: none of them is among the visit's examples, of which the mixture draws m to ask.
    """

    tasks: tuple[Task, ...]
    positives: int

    def __len__(self) -> int:
        return len(self.tasks)

    def task(self, number: int, visit: int) -> Task:
        task = self.tasks[number]
        count = min(self.positives, len(task.examples) - 1)
        return with_demonstrations(task, count, visit) if count else task


def p3_source(config: RunConfig, datasets: Datasets) -> TaskSource:
    """The templates of P3's training sets, without those of the held-out data sets."""
    return _of_tasks(config, p3_tasks(config.data, datasets))


_SOURCES: dict[str, Callable[[RunConfig, Datasets], TaskSource]] = {
    "micro": micro_source,
    "sni": sni_source,
    "p3": p3_source,
    "text": text_source,
}


def p3_tasks(data: DataConfig, datasets: Datasets | None = None) -> list[Task]:
    """The tasks of P3's meta-train data sets; templates of which no row asks and answers something are left out."""
    datasets = datasets or Datasets()
    if data.part == "test":
        names = named(datasets.p3(data).eval_names(), str, data.only)
        return [_later(task, data.skip) for name in names for task in datasets.p3_eval(data, name)]
    sets, (names, _) = _p3_sets(data, datasets)
    chosen = named([one for one in sets if one.data_set in names], lambda one: one.name, data.only)
    tasks = [task for one in chosen for task in datasets.p3_train(data, one, limit=data.max_instances, seed=data.seed)]
    return [task for task in tasks if task.examples]


def _p3_sets(data: DataConfig, datasets: Datasets) -> tuple[list[TrainSet], tuple[list[str], list[str]]]:
    """P3's row files, and the names of its meta-train and meta-valid data sets."""
    sets = datasets.p3(data).train_sets()
    return sets, meta_split(sorted({one.data_set for one in sets}), data.valid_tasks, data.seed)


def _p3_valid(config: RunConfig, datasets: Datasets) -> list[Task]:
    """The first template of every held-out data set."""
    data = config.data
    sets, (_, names) = _p3_sets(data, datasets)
    first = {one.data_set: one for one in reversed(sets) if one.data_set in names}
    tasks = [task for one in first.values() for task in datasets.p3_train(data, one, limit=data.valid_instances)]
    source = P3Source(tuple(task for task in tasks if task.examples), config.prompt.positives)
    return [source.task(number, 0) for number in range(len(source))]


def grouped_sources(
    config: RunConfig, group: Literal["category", "task"], datasets: Datasets | None = None
) -> dict[str, TaskSource]:
    """The meta-train tasks by category or each by itself, in a fixed order: what teachers are trained on, and what
    takes turns where categories are balanced.

    Raises:
        ConfigError: data without tasks.
    """
    data, by_task = config.data, group == "task"
    if data.source not in ("micro", "sni", "p3"):
        raise ConfigError(f"data.source: {data.source} has no tasks to train teachers on")
    sources: dict[str, TaskSource]
    if data.source == "micro":
        split = micro_split(data)
        micro = _grouped(split.singles + split.compositions, lambda t: t.name if by_task else t.operations[-1].family)
        sources = {name: MicroSource(tuple(tasks), config.demonstrations) for name, tasks in micro.items()}
    else:
        tasks = sni_tasks(data, datasets) if data.source == "sni" else p3_tasks(data, datasets)
        fixed = _grouped(tasks, lambda t: t.name if by_task else t.categories[0])
        sources = {name: _of_tasks(config, own) for name, own in fixed.items()}
    return {name: _shown(config, source) for name, source in sources.items()}


def _of_tasks(config: RunConfig, tasks: Sequence[Task]) -> TaskSource:
    """Tasks of SNI, or templates of P3, as they take turns."""
    given = config.data.source == "sni" and config.data.support == "given"
    return FixedTasks(tasks) if given else P3Source(tuple(tasks), config.demonstrations)


def _grouped(things: Iterable[G], key: Callable[[G], str]) -> dict[str, list[G]]:
    groups: dict[str, list[G]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return dict(sorted(groups.items()))


def valid_tasks(config: RunConfig, datasets: Datasets | None = None) -> list[Task]:
    """The meta-valid tasks held out of training, with their first instances; none beside the target tasks themselves.

    Those of a mixture are its parts'. With microtasks `valid_tasks` says even then which tasks are the unseen ones.
    """
    data, datasets = config.data, datasets or Datasets()
    if data.part == "test":
        return []
    if data.source == "micro":
        worded = [task.task(positives=config.prompt.positives) for task in micro_split(data).valid]
        return [replace(task, examples=task.examples[: data.valid_instances]) for task in worded]
    if data.source == "sni":
        dataset, (_, names) = _sni_names(data, datasets)
        return [dataset.load(name, limit=data.valid_instances) for name in names]
    if data.source == "p3":
        return _p3_valid(config, datasets)
    if data.source == "text" and data.valid_tasks:
        folder, shown = Path(data.path or ""), config.prompt.positives
        return text_tasks.valid_tasks(folder, data.seed, data.valid_tasks, data.valid_instances, shown)
    return [task for part in data.parts.values() for task in valid_tasks(of_part(config, part), datasets)]


def sni_tasks(data: DataConfig, datasets: Datasets | None = None) -> list[Task]:
    """The meta-train tasks of the split, without the meta-valid ones, the same for any number of categories."""
    datasets = datasets or Datasets()
    if data.part == "test":
        return _target_tasks(data, datasets)
    dataset, (names, _) = _sni_names(data, datasets)
    chosen = named(names, str, data.only)
    tasks = [dataset.load(name, limit=data.max_instances, seed=data.seed) for name in chosen]
    if data.categories is None:
        return tasks
    kept = set(largest_categories(tasks, data.categories))
    return [task for task in tasks if task.categories[0] in kept]


def _target_tasks(data: DataConfig, datasets: Datasets) -> list[Task]:
    """The test tasks without the instances that they are scored on.

    Raises:
        ConfigError: a task has no others.
    """
    dataset = datasets.sni(data)
    names = dataset.chosen("test", data.only)[0]
    return [_later(dataset.load(name), data.skip) for name in names]


def _later(task: Task, skip: int) -> Task:
    if len(task.examples) <= skip:
        raise ConfigError(f"data.skip: {task.name} has no more than {skip} instances; none is left to train on")
    return replace(task, examples=Later(task.examples, skip))


def _sni_names(data: DataConfig, datasets: Datasets) -> tuple[SniDataset, tuple[list[str], list[str]]]:
    """The data set, and the names of its meta-train and meta-valid tasks."""
    dataset = datasets.sni(data)
    return dataset, meta_split(dataset.english(dataset.names("train")), data.valid_tasks, data.seed)
