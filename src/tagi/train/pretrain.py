"""Hypernetwork pretraining on plain text: a to the hypernetwork, b to the model, c to predict (Eq. 3, §3.2.3)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from tagi.config import RunConfig
from tagi.data.c4 import Segments, TokenStore, list_files, pretraining_segments
from tagi.data.collate import Batch, Collator, assemble


def c4_batches(config: RunConfig, collator: Collator) -> Callable[[int], Batch]:
    """Batches of cut documents; batch i holds T·k of them."""
    files = list_files(Path(config.data.path or ""), "train")
    store = TokenStore.build(files, collator.tokenizer, limit=config.data.max_documents)
    training = config.training
    rows = training.tasks_per_batch * training.rows_per_task

    def batch(index: int) -> Batch:
        numbers = range(index * rows, (index + 1) * rows)
        items = [pretraining_segments(store, number, training.seed) for number in numbers]
        return segment_batch(items, collator.tokenizer)

    return batch


def segment_batch(items: Sequence[Segments], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """a to the hypernetwork, b to the language model, c to predict (Eq. 3); every row is a task of its own."""
    end = [tokenizer.eos_token_id]
    a, b, c = ([[*part.tolist(), *end] for part in parts] for parts in zip(*items, strict=True))
    return assemble(a, b, c, torch.arange(len(items)))
