"""Super-NaturalInstructions folders that tests write."""

import json
from collections.abc import Iterable
from pathlib import Path

from tagi.data.types import Task


def write_sni(folder: Path, train: Iterable[Task], test: Iterable[Task], instances: int) -> None:
    """Tasks in the official layout, `tasks/` and `splits/default/`, each with its first instances."""
    (folder / "splits/default").mkdir(parents=True)
    (folder / "tasks").mkdir()
    for split, tasks in (("train", train), ("test", test)):
        names: list[str] = []
        for task in tasks:
            record = {
                "Categories": list(task.categories),
                "Definition": [task.instruction.definition],
                "Input_language": ["English"],
                "Output_language": ["English"],
                "Positive Examples": [{"input": d.input, "output": d.output} for d in task.instruction.demonstrations],
                "Negative Examples": [],
                "Instances": [
                    {"id": row.id, "input": row.input, "output": list(row.targets)} for row in task.examples[:instances]
                ],
            }
            (folder / "tasks" / f"{task.name}.json").write_text(json.dumps(record), encoding="utf-8")
            names.append(task.name)
        (folder / "splits/default" / f"{split}_tasks.txt").write_text("\n".join(names), encoding="utf-8")
