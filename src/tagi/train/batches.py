"""Batches of a run's data: tasks with their rows, or plain text cut into a | b | c (Eq. 3, §3.2.3)."""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from tagi.config import RunConfig
from tagi.data.collate import Batch, Collator, assemble
from tagi.data.mixture import Mixture
from tagi.data.segments import MAX_LENGTH, SEGMENTS, Cut, TokenStore, pretraining_segments
from tagi.data.sources import Sources
from tagi.errors import DataError


def batches(
    config: RunConfig, collator: Collator, processes: int = 1, sources: Sources | None = None
) -> Callable[[int], Batch]:
    """Batch number i of a run's data, a pure function of the run's seed, the number of batches of a step, and i; so
    many processes share these."""
    sources = sources or Sources()
    if config.stage == "pretrain":
        return text_batches(config, collator.tokenizer, sources)
    training, shown = config.training, config.demonstrations
    by_prompt = training.bucket == "prompt"
    mixture = Mixture(
        sources.train(config.data, config.demonstrations, config.training.seed),
        tasks=training.tasks_per_batch,
        rows=training.rows_per_task,
        seed=training.seed,
        length=(lambda group: group.prompt_length(shown)) if by_prompt else (lambda group: group.length),
        batches_per_step=training.accumulation * processes,
    )
    return lambda index: collator(mixture.batch(index))


def text_batches(config: RunConfig, tokenizer: PreTrainedTokenizerBase, sources: Sources) -> Callable[[int], Batch]:
    """Batches of cut documents, of those that are long enough; batch i holds T·k of them."""
    source, training = sources.of(config.data), config.training
    store = TokenStore.of(source.documents(), tokenizer, longest=MAX_LENGTH)
    if not len(store):
        raise DataError(source.folder, "text", f"no document has {SEGMENTS} tokens or more")
    rows = training.tasks_per_batch * training.rows_per_task

    def batch(index: int) -> Batch:
        numbers = range(index * rows, (index + 1) * rows)
        items = [pretraining_segments(store, number, training.seed) for number in numbers]
        return segment_batch(items, tokenizer)

    return batch


def segment_batch(items: Sequence[Cut], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """a to the hypernetwork, b to the language model, c to predict (Eq. 3); every row is a task of its own.

    The end token stands where a document ends, and nowhere where it was cut: never behind a or b.
    """
    end: list[int] = [tokenizer.eos_token_id]  # type: ignore[list-item]
    a, b = [item.a.tolist() for item in items], [item.b.tolist() for item in items]
    c = [item.c.tolist() + end * item.ends for item in items]
    return assemble(a, b, c, torch.arange(len(items)))
