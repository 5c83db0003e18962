"""Rows and tokens of a training step: drawn from the data where it is at hand, else what the limits allow."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tagi import methods
from tagi.backbones.language_model import hugging_face
from tagi.config import RunConfig, Shape
from tagi.cost.step import Lengths
from tagi.data.collate import Batch, Collator
from tagi.data.segments import MAX_LENGTH
from tagi.data.sources import Sources
from tagi.errors import CheckpointError
from tagi.model import checkpoint
from tagi.train.batches import batches
from tagi.train.start import random_tokenizer

MEASURED_STEPS = 4
"""Steps whose batches are drawn."""
MEASURED_DOCUMENTS = 2_000
"""Documents of plain text that are tokenized for them, at most."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One step of a run. Lengths are of a whole batch, padding included; a step has `accumulation` of them."""

    batch: Lengths
    rows: float
    tokens: float
    prompt: int
    """Length of instruction and input in one text, which a teacher reads."""
    from_data: bool


def tokenizer_at_hand(config: RunConfig, shape: Shape, sources: Sources) -> PreTrainedTokenizerBase | None:
    """The run's tokenizer if it lies on this machine; nothing is downloaded."""
    backbone = config.backbone
    if backbone is not None and backbone.path is None:
        return random_tokenizer(backbone, shape, config.data, sources)
    source = config.start_from or (backbone.path if backbone is not None else None)
    try:
        return AutoTokenizer.from_pretrained(hugging_face(str(source)), local_files_only=True)
    except (OSError, ValueError, ImportError, CheckpointError):
        return None


def data_at_hand(config: RunConfig) -> bool:
    """Whether the run's data can be read here; a corpus need not be, for its rows have a fixed length."""
    each = config.data.by_field.values()
    return config.data.corpus is None and all(one.path is None or Path(one.path).is_dir() for one in each)


def from_data(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    report: Callable[[int, int], None],
    sources: Sources,
    *,
    joined: bool,
) -> Measured:
    """Draw the first steps' batches; `joined` as of `Collator`."""
    limit = min(config.data.max_documents or MEASURED_DOCUMENTS, MEASURED_DOCUMENTS)
    short = config.model_copy(update={"data": config.data.model_copy(update={"max_documents": limit})})
    collator = Collator(tokenizer, config.prompt, methods.get(config.method), joined)
    draw = batches(short if config.stage == "pretrain" else config, collator, sources=sources)
    accumulation, steps = config.training.accumulation, min(MEASURED_STEPS, config.training.steps)
    drawn: list[Batch] = []
    for number in range(steps * accumulation):
        drawn.append(draw(number))
        report(number + 1, steps * accumulation)

    def mean(length: Callable[[Batch], int]) -> int:
        return round(fmean(map(length, drawn)))

    tasks, rows = mean(lambda b: b.instruction_ids.shape[0]), mean(lambda b: len(b.task_index))
    s, n = mean(lambda b: b.instruction_ids.shape[1]), mean(lambda b: b.input_ids.shape[1])
    lengths = Lengths(tasks, rows, s, n, mean(lambda b: b.labels.shape[1]))
    all_rows, tokens = sum(len(batch.task_index) for batch in drawn), sum(batch.tokens for batch in drawn)
    prompt = min(s + n, config.prompt.longest_prompt)
    return Measured(lengths, all_rows / steps, tokens / steps, prompt, from_data=True)


def from_limits(config: RunConfig) -> Measured:
    """The longest that the prompt's limits allow; of plain text, full documents, padded as batches mostly are."""
    training, prompt = config.training, config.prompt
    method = methods.get(config.method)
    rows = training.tasks_per_batch * training.rows_per_task
    if config.data.corpus is not None:
        corpus = config.data.corpus
        lengths = Lengths(1, rows, 0, corpus.length, corpus.target_length)
        tokens = rows * (corpus.length + corpus.target_length)
    elif config.stage == "pretrain":
        part = longest_part(rows)
        lengths, tokens = Lengths(rows, rows, part, part, part), rows * MAX_LENGTH
    else:
        s = prompt.max_instruction if method.reads_instruction_once else 0
        n = prompt.longest_prompt if method.prompt else prompt.max_input
        lengths = Lengths(training.tasks_per_batch, rows, s, n, prompt.max_target)
        tokens = lengths.tasks * s + rows * (n + prompt.max_target)
    steps = training.accumulation
    return Measured(lengths, rows * steps, tokens * steps, prompt.longest_prompt, from_data=False)


def longest_part(rows: int) -> int:
    """Expected length of the longest of so many a (or b, or c), each a part of a full document under two uniform
    cuts: P(part <= x) = 1 - (1 - x)²."""
    points = np.linspace(0.0, 1.0, MAX_LENGTH + 1)
    return round(float(np.sum(1.0 - (1.0 - (1.0 - points) ** 2) ** rows)))


def is_checkpoint(folder: str | None) -> bool:
    """Whether an earlier stage's output lies there already."""
    return folder is not None and (Path(folder) / checkpoint.CONFIG).is_file()
