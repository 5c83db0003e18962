"""`tagi eval`: score a checkpoint on unseen tasks, with the right instruction or under a control."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tagi.cli.common import Backbone, Checkpoint, Json, bar, note, open_tagi, waiting
from tagi.cli.compare import EXAMPLE as COMPARE_EXAMPLE
from tagi.cli.compare import compare
from tagi.errors import InputError

if TYPE_CHECKING:
    from tagi.data.types import Task
    from tagi.infer.engine import Tagi

app = typer.Typer(help="Score a checkpoint on unseen tasks, with the right instruction or under a control.")

app.command("compare", epilog=COMPARE_EXAMPLE)(compare)

InstructionControl = Literal["aligned", "shuffled", "random", "empty", "prompt"]
AdapterControl = Literal["full", "lora_only", "memory_only", "other_lora"]

InstructionOption = Annotated[
    InstructionControl,
    typer.Option(
        help="The task's own instruction, another test task's, random words, none; or the bare language model's prompt."
    ),
]
AdapterOption = Annotated[
    AdapterControl,
    typer.Option(help="All of it, LoRA alone, memory and fusion alone, or with another task's LoRA."),
]
Instances = Annotated[int, typer.Option(min=1, help="Instances of each task, the first ones.")]
Examples = Annotated[
    int | None, typer.Option(min=0, help="Demonstrations shown: 0 is Def, 2 is Def+2Pos (default: as in training).")
]
Only = Annotated[list[str] | None, typer.Option("--task", help="Only this task; may be given several times.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the controls and the bootstrap.")]


def _folder(output: Path | None) -> Path | None:
    if output is not None and output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file, not a folder")
    return output


Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="DIR", callback=_folder, help="Write predictions.jsonl, scores.json and scores.md."
    ),
]


@dataclass(frozen=True, slots=True)
class Setting:
    """What both benchmarks are asked alike."""

    instruction: InstructionControl
    adapter: AdapterControl
    output: Path | None
    as_json: bool

    @property
    def needs_partners(self) -> bool:
        return self.instruction == "shuffled" or self.adapter == "other_lora"


@app.command("sni", epilog="Example: tagi eval sni --data natural-instructions --checkpoint runs/sni/final -o scores")
def sni(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Super-NaturalInstructions: tasks/ and splits/.")],
    split: Annotated[str, typer.Option(help="A folder of splits/.")] = "default",
    language: Annotated[
        str, typer.Option(help="Only tasks of this language, as their files name it; non-english, or all.")
    ] = "English",
    only: Only = None,
    instances: Instances = 100,
    drop_seen: Annotated[
        bool, typer.Option("--drop-seen", help="Leave out rows whose input a training task has.")
    ] = False,
    demonstrations: Examples = None,
    checkpoint: Checkpoint = None,
    backbone: Backbone = None,
    instruction: InstructionOption = "aligned",
    adapter: AdapterOption = "full",
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Score the test tasks of Super-NaturalInstructions: ROUGE-L and exact match by category."""
    from tagi.data.sources.sni_files import SniDataset, without_overlap

    setting = Setting(instruction, adapter, output, as_json)
    dataset = SniDataset(data, split, language)
    with waiting("reading tasks"):
        tasks, left_out = dataset.chosen("test", only or (), instances)
        kept = without_overlap(tasks, (dataset.load(name) for name in dataset.names("train"))) if drop_seen else tasks
    _say_left_out(language, left_out, tasks, kept)
    tagi = open_tagi(checkpoint, backbone, demonstrations)
    asked = {"benchmark": "sni", "data": str(data), "split": split, "language": language}
    asked |= {"instances": instances, "drop_seen": drop_seen, "left_out": len(left_out)}
    asked |= {"demonstrations": tagi.config.prompt.demonstrations, "checkpoint": checkpoint}
    _score(tagi, kept, None, setting, asked)


@app.command("everyday", epilog="Example: tagi eval everyday --instruction shuffled -o scores")
def everyday(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Everyday tasks: train/ and test/ (default: the bundled ones).")
    ] = None,
    wording: Annotated[
        int | None, typer.Option(min=0, help="0 is the definition, 1, 2, … its paraphrases (default: all, one by one).")
    ] = None,
    only: Only = None,
    instances: Instances = 100,
    demonstrations: Examples = None,
    checkpoint: Checkpoint = None,
    backbone: Backbone = None,
    instruction: InstructionOption = "aligned",
    adapter: AdapterOption = "full",
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Score the everyday test tasks, whose instructions are worded in several ways: ROUGE-L and exact match."""
    from tagi import bundled
    from tagi.config import DataConfig
    from tagi.data.sources.everyday import Everyday
    from tagi.eval.evaluate import draw_partners

    setting = Setting(instruction, adapter, output, as_json)
    folder = data or bundled.everyday()
    source = Everyday(DataConfig(source="everyday", path=str(folder), only=tuple(only or ())))
    tagi = open_tagi(checkpoint, backbone, demonstrations)
    shown = tagi.config.prompt.demonstrations
    with waiting("reading tasks"):
        chosen = range(source.wordings()) if wording is None else [wording]
        worded = [[task.first(instances) for task in source.test(shown, w)] for w in chosen]
    count, partners = len(worded[0]), draw_partners(worded[0], 0) if setting.needs_partners else None
    if partners is not None:  # of the same wording
        partners = [w * count + partner for w in range(len(worded)) for partner in partners]
    asked = {"benchmark": "everyday", "data": str(folder), "wording": wording, "instances": instances}
    asked |= {"demonstrations": shown, "checkpoint": checkpoint}
    _score(tagi, list(chain.from_iterable(worded)), partners, setting, asked, wordings=len(worded))


@app.command("micro", epilog="Example: tagi eval micro --tasks 100 --instruction shuffled")
def micro(
    tasks: Annotated[int, typer.Option(min=1, help="Unseen tasks, the first ones.")] = 500,
    only: Only = None,
    instances: Instances = 20,
    phrasings: Annotated[
        Literal["seen", "new"], typer.Option(help="Instructions in the wordings of training, or in held-out ones.")
    ] = "seen",
    demonstrations: Examples = None,
    checkpoint: Checkpoint = None,
    backbone: Backbone = None,
    instruction: InstructionOption = "aligned",
    adapter: AdapterOption = "full",
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Score compositions of list operations that were not trained on."""
    setting = Setting(instruction, adapter, output, as_json)
    tagi = open_tagi(checkpoint, backbone, demonstrations)
    from tagi.cli.micro import trained_on, unseen
    from tagi.data.synthetic.micro_splits import shuffled_partner
    from tagi.data.types import named

    data = trained_on(checkpoint)
    with waiting("drawing tasks"):
        chosen = named(unseen(data, tasks), lambda task: task.name, only or ())
        if setting.needs_partners and len(chosen) < 2:
            raise InputError("somebody else's instruction needs at least two tasks")
        partners = shuffled_partner(chosen, seed=0) if setting.needs_partners else None
        shown, held_out = tagi.config.prompt.demonstrations, phrasings == "new"
        drawn = [task.task(held_out=held_out, demonstrations=shown).first(instances) for task in chosen]
    asked = {"benchmark": "micro", "tasks": tasks, "instances": instances, "phrasings": phrasings}
    asked |= {"demonstrations": shown, "data_seed": data.seed, "checkpoint": checkpoint}
    _score(tagi, drawn, partners, setting, asked)


@app.command("p3", epilog="Example: tagi eval p3 --data p3 --checkpoint runs/p3/final --instances 60 -o scores")
def p3(
    data: Annotated[Path, typer.Option(metavar="DIR", help="P3: eval/ and templates/.")],
    tasks: Only = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="Only the first prompts of each task.")] = None,
    instances: Annotated[int | None, typer.Option(min=1, help="Only the first rows of each task.")] = None,
    norm: Annotated[
        Literal["mean", "sum"], typer.Option(help="Score of a choice: by token, or of the whole.")
    ] = "mean",
    reads: Annotated[
        Literal["template", "full"],
        typer.Option(help="What a hypernetwork reads: the template, or each row's whole prompt."),
    ] = "template",
    demonstrations: Examples = None,
    checkpoint: Checkpoint = None,
    backbone: Backbone = None,
    instruction: InstructionOption = "aligned",
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Score the held-out tasks of P3 by rank classification: accuracy by prompt, task and on average."""
    from tagi.cli import ranks

    tagi = open_tagi(checkpoint, backbone, demonstrations)
    shots = tagi.config.prompt.demonstrations
    with waiting("rendering prompts"):
        found, missing = ranks.held_out(data, tasks, reads=reads, prompts=prompts, instances=instances, shots=shots)
    for name, reason in missing.items():
        note(f"{name}: {reason}")
    asked = {"benchmark": "p3", "data": str(data), "prompts": prompts, "instances": instances, "norm": norm}
    asked |= {"demonstrations": shots, "reads": reads, "checkpoint": checkpoint}
    ranks.score(tagi, found, instruction, norm, asked, output=output, as_json=as_json)


def _say_left_out(language: str, left_out: Mapping[str, str], tasks: Sequence[Task], kept: Sequence[Task]) -> None:
    """What is not scored of Super-NaturalInstructions, and what is scored without an answer."""
    if left_out:
        some = "; ".join(f"{name}: {languages}" for name, languages in islice(left_out.items(), 3))
        more = "; …" if len(left_out) > 3 else ""
        reason = "are English" if set(left_out.values()) == {"English"} else f"are not {language}"
        note(f"{len(left_out)} tasks are left out, since they {reason} ({some}{more})")
    if not kept:
        raise InputError("nothing is left to score: a training task has every row of every test task")
    dropped = sum(len(task.examples) for task in tasks) - sum(len(task.examples) for task in kept)
    if dropped:
        note(f"{dropped:,} rows are left out, since a training task has them; {len(kept)} of {len(tasks)} tasks stay")
    blank = sum(not any(map(str.strip, row.targets)) for task in kept for row in task.examples)
    if blank:
        note(f"{blank:,} rows have an empty answer, as published; an empty answer is right there")


def _score(
    tagi: Tagi,
    tasks: Sequence[Task],
    partners: Sequence[int] | None,
    setting: Setting,
    asked: dict[str, Any],
    wordings: int = 1,
) -> None:
    """Solve, score, print and write; `tasks` are the same ones in so many wordings, one after another."""
    from tagi.cli.scores import HEADER, REMARK, by_part, collect, made_by, publish, shown
    from tagi.eval.evaluate import evaluate, reference_points

    began = time.perf_counter()
    with bar("solving") as report:
        evaluation = evaluate(
            tagi, tasks, instruction=setting.instruction, adapter=setting.adapter, partners=partners, progress=report
        )
    seconds = time.perf_counter() - began
    with waiting("scoring"):
        references = reference_points(tasks)
        if not any(task.instruction.demonstrations for task in tasks):
            del references["copy_demonstration"]
        scores = collect(evaluation, references)
    if wordings > 1:
        scores["by_wording"] = by_part(evaluation, wordings)
    scores["control"] = {"instruction": setting.instruction, "adapter": setting.adapter}
    scores["command"] = asked | {"solve_seconds": seconds} | made_by(tagi)
    title = (
        f"{asked['benchmark']}, {len(scores['by_task'])} tasks, {tagi.config.method} "
        f"(instruction {setting.instruction}, adapter {setting.adapter})"
    )
    publish(
        scores, title, HEADER, shown(scores), REMARK, evaluation.predictions, setting.output, as_json=setting.as_json
    )
