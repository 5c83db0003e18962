"""What the packaged task files of lm-evaluation-harness refer to: the data of our sources, and our two scores."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from datasets import Dataset

from tagi import bundled
from tagi.config import DataConfig
from tagi.data.sources.everyday import Everyday
from tagi.data.sources.sni_files import SniDataset
from tagi.data.types import Example, Task
from tagi.errors import InputError
from tagi.eval.rouge import exact_match, rouge_l

Splits = dict[str, Dataset]
INSTANCES = 100
"""Rows of a test task that are scored, as in the benchmark."""


def everyday(name: str, **_: Any) -> Splits:
    """The rows of one everyday test task, with its first wording; see `Everyday.test`."""
    source = Everyday(DataConfig(source="everyday", path=str(bundled.everyday()), only=(name,)))
    return _splits((task, row) for task in source.test(0) for row in task.examples)


def sni(sni: str | None = None, **_: Any) -> Splits:
    """The first rows of every English test task of Super-NaturalInstructions, of all in turn: a limit takes of each.

    Raises:
        InputError: `sni`, the folder of the data, is not said.
        TagiError: see `SniDataset`.
    """
    if sni is None:
        raise InputError(
            "sni: give the folder of Super-NaturalInstructions by --data (to lm_eval by --metadata sni=DIR)"
        )
    tasks, _left_out = SniDataset(Path(sni)).chosen("test", (), INSTANCES)
    turns = zip_longest(*([(task, row) for row in task.examples] for task in tasks))
    return _splits(one for turn in turns for one in turn if one is not None)


def scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """ROUGE-L and exact match of an answer, as `tagi eval` has them."""
    return {"rouge_l": rouge_l(results[0], doc["output"]), "exact_match": exact_match(results[0], doc["output"])}


def _splits(rows: Iterable[tuple[Task, Example]]) -> Splits:
    docs = [
        {
            "id": row.id,
            "task": task.name,
            "instruction": task.instruction.definition,
            "input": row.input,
            "output": list(row.targets),
        }
        for task, row in rows
    ]
    return {"test": Dataset.from_list(docs)}
