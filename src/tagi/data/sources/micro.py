"""Synthetic tasks as a source: single list operations and compositions of two, worded anew on every visit."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

from tagi.data.mixture import TaskSource, epoch_order
from tagi.data.sources.base import Group, Source, grouped, later
from tagi.data.synthetic.micro_splits import Split, splits
from tagi.data.synthetic.microtasks import MicroTask
from tagi.data.types import Task, named

SINGLE_VISITS = 100
"""Turns that each family of single operations has in an epoch, shared by its operations."""
DOCUMENTS = 20_000
"""Documents of text about the tasks, where the config does not say otherwise."""
_EXAMPLES_SHOWN = 4


def turns(tasks: Sequence[MicroTask], shown: int, skip: int = 0) -> TaskSource:
    """Synthetic tasks as they take turns, without the first `skip` instances."""

    def task(number: int, visit: int) -> Task:
        task = tasks[number].task(wording_seed=visit, demonstrations=shown)
        return later(task, skip) if skip else task

    return TaskSource(len(tasks), task)


class Micro(Source):
    """Compositions of two operations, and the operations by themselves; the test tasks are other compositions."""

    @property
    def split(self) -> Split:
        """All of them; of the training part only the `categories` families of last operations with the most tasks."""
        data = self.data
        split = splits(data.seed, train_compositions=data.compositions, valid=data.valid_tasks)
        if data.categories is None:
            return split
        counts = Counter(task.operations[-1].family for task in split.train)
        kept = sorted(counts, key=lambda family: (-counts[family], family))[: data.categories]
        singles, compositions = (
            tuple(task for task in tasks if task.operations[-1].family in kept)
            for tasks in (split.singles, split.compositions)
        )
        return replace(split, singles=singles, compositions=compositions)

    def train(self, shown: int) -> TaskSource:
        """Compositions once an epoch, single operations as often as their family has turns."""
        data, split = self.data, self.split
        if data.part == "test":
            return turns(named(split.test, lambda task: task.name, data.only), shown, data.skip)
        sizes = Counter(task.operations[0].family for task in split.singles)
        repeated = ([task] * max(SINGLE_VISITS // sizes[task.operations[0].family], 1) for task in split.singles)
        tasks = [*chain.from_iterable(repeated), *split.compositions]
        return turns(named(tasks, lambda task: task.name, data.only), shown)

    def groups(self, by: Group, shown: int) -> dict[str, TaskSource]:
        """By the family of the last operation, or each by itself."""
        each = grouped(self.split.train, lambda t: t.name if by == "task" else t.operations[-1].family)
        return {name: turns(own, shown) for name, own in each.items()}

    def valid(self, shown: int) -> list[Task]:
        return [task.task(demonstrations=shown).first(self.data.valid_instances) for task in self.split.valid]

    def test(self, shown: int) -> list[Task]:
        chosen = named(self.split.test, lambda task: task.name, self.data.only)
        return [task.task(demonstrations=shown) for task in chosen]

    def documents(self) -> Iterator[str]:
        """Plain text in the tasks' language: a training task's definition, then worked examples, as sentences."""
        tasks = self.split.train
        for number in range(self.data.max_documents or DOCUMENTS):
            visit, place = divmod(number, len(tasks))
            task = tasks[epoch_order(self.data.seed, visit, len(tasks))[place]].task(wording_seed=visit)
            shown = task.examples[visit * _EXAMPLES_SHOWN : (visit + 1) * _EXAMPLES_SHOWN]
            sentences = [f"{example.input}. {example.targets[0]}." for example in shown]
            yield " ".join([task.instruction.definition, *sentences])

    texts = documents
