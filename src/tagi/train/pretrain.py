"""Hypernetwork pretraining on plain text: a to the hypernetwork, b to the model, c to predict (Eq. 3, §3.2.3)."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from tagi.config import DataConfig, RunConfig
from tagi.data.c4 import MAX_LENGTH, Cut, TokenStore, list_files, pretraining_segments
from tagi.data.collate import Batch, Collator, assemble
from tagi.data.mixture import epoch_order
from tagi.train.finetune import micro_split

MICRO_DOCUMENTS = 20_000
"""Documents of text about microtasks, where the config does not say otherwise."""
_MICRO_EXAMPLES = 4


def text_batches(config: RunConfig, collator: Collator) -> Callable[[int], Batch]:
    """Batches of cut documents; batch i holds T·k of them."""
    store = _store(config, collator.tokenizer)
    training = config.training
    rows = training.tasks_per_batch * training.rows_per_task

    def batch(index: int) -> Batch:
        numbers = range(index * rows, (index + 1) * rows)
        items = [pretraining_segments(store, number, training.seed) for number in numbers]
        return segment_batch(items, collator.tokenizer)

    return batch


def _store(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> TokenStore:
    data = config.data
    if data.source == "micro":
        return TokenStore.of(micro_text(data), tokenizer, longest=MAX_LENGTH)
    return TokenStore.build(list_files(Path(data.path or ""), "train"), tokenizer, limit=data.max_documents)


def micro_text(data: DataConfig) -> Iterator[str]:
    """Plain text in the microtasks' language: a training task's definition, then worked examples, as sentences."""
    split = micro_split(data)
    tasks = split.singles + split.compositions
    for number in range(data.max_documents or MICRO_DOCUMENTS):
        visit, place = divmod(number, len(tasks))
        task = tasks[epoch_order(data.seed, visit, len(tasks))[place]].task(wording_seed=visit)
        shown = task.examples[visit * _MICRO_EXAMPLES : (visit + 1) * _MICRO_EXAMPLES]
        sentences = [f"{example.input}. {example.targets[0]}." for example in shown]
        yield " ".join([task.instruction.definition, *sentences])


def segment_batch(items: Sequence[Cut], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """a to the hypernetwork, b to the language model, c to predict (Eq. 3); every row is a task of its own.

    The end token stands where a document ends, and nowhere where it was cut: never behind a or b.
    """
    end: list[int] = [tokenizer.eos_token_id]  # type: ignore[list-item]
    a, b = [item.a.tolist() for item in items], [item.b.tolist() for item in items]
    c = [item.c.tolist() + end * item.ends for item in items]
    return assemble(a, b, c, torch.arange(len(items)))
