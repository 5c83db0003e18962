"""The LoRA of the task at hand, merged into the language model's weights where that pays."""

from tagi.backbones.base import Prepared
from tagi.model.adapter import TaskAdapter
from tagi.model.tagi import TagiModel

MERGED_FROM = 3
"""Inputs of one task from which on merging its LoRA into the weights saves more than it costs."""


class LastMerged:
    """Keeps the merged weights of one task, whose inputs may come one by one, until another task's are merged.

    They take the memory of the target modules' weights once more: so never more than one task is kept.
    """

    def __init__(self) -> None:
        self._adapter: TaskAdapter | None = None
        self._inputs = 0
        self._prepared: Prepared | None = None

    def prepare(self, model: TagiModel, adapter: TaskAdapter, inputs: int) -> Prepared:
        """What so many more inputs share: merged as soon as that pays for all that came of the task."""
        if adapter.tasks > 1 or not adapter.adapts:
            return model.prepare(adapter)
        if adapter is not self._adapter:
            self._adapter, self._inputs, self._prepared = adapter, 0, None
        self._inputs += inputs
        if self._prepared is None and self._inputs >= MERGED_FROM:
            self._prepared = model.prepare(adapter, merge=True)
        return model.prepare(adapter) if self._prepared is None else self._prepared
