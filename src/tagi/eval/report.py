"""What an evaluation leaves behind: predictions on disk, means by group, intervals, tables."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from tagi.data.languages import UNSTATED, Languages, WithLanguages
from tagi.data.records import Record, parse_json
from tagi.data.sources.sni_files import Positive
from tagi.data.types import Demonstration, Example, Instruction
from tagi.files import write_text
from tagi.reading import read_lines


@dataclass(frozen=True, slots=True)
class Prediction:
    """One example with all that the model was told of its task, and the model's answer."""

    task: str
    categories: tuple[str, ...]
    instruction: Instruction
    example: Example
    text: str
    languages: Languages = UNSTATED


def write_predictions(path: str | Path, predictions: Iterable[Prediction]) -> None:
    """Write one JSON object a line, in Tk-Instruct's format; the file appears whole or not at all (DiskError)."""
    write_text(Path(path), "".join(f"{json.dumps(_to_json(prediction))}\n" for prediction in predictions))


def read_predictions(path: str | Path) -> list[Prediction]:
    """What `write_predictions` or Tk-Instruct wrote; a DataError names the line and the field that cannot be used."""
    read = (parse_json(_Line, line, Path(path), f"line {number}") for number, line in read_lines(Path(path)))
    return [
        Prediction(
            task=line.task,
            categories=line.categories,
            instruction=Instruction(
                line.definition[0], tuple(Demonstration(one.input, one.output) for one in line.demonstrations)
            ),
            example=Example(line.instance.id, line.instance.input, tuple(line.instance.output)),
            text=line.prediction,
            languages=line.languages,
        )
        for line in read
    ]


class _Instance(Record):
    id: str
    input: str
    output: Annotated[list[str], Field(min_length=1)]


class _Line(WithLanguages):
    """A line of predictions.jsonl: the example as `ni_dataset.py` yields it, plus `Prediction`."""

    task: str = Field(alias="Task")
    categories: tuple[str, ...] = Field(alias="Categories")
    definition: Annotated[list[str], Field(alias="Definition", min_length=1)]
    demonstrations: list[Positive] = Field(alias="Positive Examples")
    instance: _Instance = Field(alias="Instance")
    prediction: str = Field(alias="Prediction")


def _to_json(prediction: Prediction) -> dict[str, Any]:
    instruction, example = prediction.instruction, prediction.example
    languages = prediction.languages
    return {
        "id": example.id,
        "Task": prediction.task,
        "Categories": prediction.categories,
        "Definition": [instruction.definition],
        "Positive Examples": [{"input": demo.input, "output": demo.output} for demo in instruction.demonstrations],
        "Input_language": languages.input,
        "Output_language": languages.output,
        "Instruction_language": languages.instruction,
        "Instance": {"id": example.id, "input": example.input, "output": example.targets},
        "Prediction": prediction.text,
    }


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, or a difference of means, over examples, with its 95 % bootstrap percentile interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: ArrayLike, clusters: Sequence[str], *, samples: int = 10_000, seed: int) -> Interval:
    """Interval for the mean of `values` over examples, resampling whole clusters with replacement.

    Examples of one task resemble each other, so the task is what was sampled; a resample's mean is over its examples,
    whatever the sizes of the clusters it drew.

    Args:
        values: (n,) one score for each example, or the difference of two systems on it; several seeds are concatenated.
        clusters: (n,) the task of each example, the same under every seed.

    Raises:
        ValueError: the lengths differ, or there are fewer than two clusters.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(clusters),):
        raise ValueError(f"one value for each example: values {values.shape}, clusters ({len(clusters)},)")
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"an interval needs at least two clusters, not {len(names)}")
    sums, counts = np.bincount(index, values), np.bincount(index)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(samples, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high))


def verdict(difference: Interval) -> Literal["better", "worse", "unresolved"]:
    """What the interval of a difference a - b says of a; unresolved where it holds 0."""
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "unresolved"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A GitHub markdown table that ends in a newline; first column left-aligned, the others right-aligned."""
    lines: list[str] = []
    for row in (header, ["---", *["---:"] * (len(header) - 1)], *rows):
        cells = (" ".join(cell.split()).replace("|", "\\|") for cell in row)
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)
