"""Where tasks and text come from: one class a source, and the table that opens them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from tagi.config import DataConfig, DataPart
from tagi.data.mixture import TaskSource, WeightedSources, undemonstrated
from tagi.data.sources.base import Group, Source
from tagi.data.sources.c4 import C4
from tagi.data.sources.everyday import Everyday
from tagi.data.sources.micro import Micro
from tagi.data.sources.p3 import P3
from tagi.data.sources.sni import Sni
from tagi.data.types import Task
from tagi.errors import ConfigError

SOURCES: Mapping[str, type[Source]] = {
    "micro": Micro,
    "sni": Sni,
    "p3": P3,
    "c4": C4,
    "everyday": Everyday,
}
"""By their name in a config."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What a process has opened for its runs; hand it on to all that read the same data, and each file is read once."""

    table: Mapping[str, type[Source]] = field(default_factory=lambda: SOURCES)
    _opened: dict[str, Source] = field(default_factory=dict, init=False)

    def of(self, data: DataConfig) -> Source:
        """The source that a config names; a ConfigError where the table has none of that name."""
        if data.source not in self.table:
            raise ConfigError(f"data.source: {data.source} has no tasks or text of its own here")
        return self._opened.setdefault(data.model_dump_json(), self.table[data.source](data))

    def train(self, data: DataConfig, shown: int, seed: int) -> WeightedSources:
        """The training tasks as they take turns: of every part of a mixture, of every category (`balance`), or all.

        Args:
            shown: demonstrations that an instruction brings along.
            seed: of the turns on which they are left out (`zero_shot`).

        Raises:
            ConfigError: a part without tasks.
            TagiError: a file cannot be used.
        """
        sources: list[TaskSource] = []
        shares: list[float] = []
        for name, part in data.by_field.items():
            if part.balance == "category":
                own = list(self.groups(part, "category", shown, seed).values())
            else:
                own = [undemonstrated(self.of(part).train(shown), part.zero_shot, seed)]
            if not any(map(len, own)):
                raise ConfigError(f"{name}: has no task to train on")
            sources += own
            shares += [(part.weight if isinstance(part, DataPart) else 1.0) / len(own)] * len(own)
        return WeightedSources(sources, shares)

    def groups(self, data: DataConfig, by: Group, shown: int, seed: int) -> dict[str, TaskSource]:
        """The training tasks by category or each by itself; see `Source.groups` and `train`."""
        each = self.of(data).groups(by, shown)
        return {name: undemonstrated(one, data.zero_shot, seed) for name, one in each.items()}

    def valid(self, data: DataConfig, shown: int) -> list[Task]:
        """The tasks held out of training, those of every part; none beside target tasks that are trained on."""
        each = (part for part in data.by_field.values() if part.part == "train")
        return [task for part in each for task in self.of(part).valid(shown)]

    def texts(self, data: DataConfig) -> Iterator[str]:
        """What a tokenizer is trained on, of every part."""
        return chain.from_iterable(self.of(part).texts() for part in data.by_field.values())
