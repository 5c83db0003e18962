"""`tagi demo`: unseen tasks, each with its own adapter, without one, and with somebody else's instruction."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from tagi.cli.common import Checkpoint, Json, bar, mark, open_tagi, print_json, stdout, waiting

if TYPE_CHECKING:
    from rich.console import Console

    from tagi.data.types import Example, Instruction, Task
    from tagi.eval.evaluate import Evaluation, InstructionControl
    from tagi.infer.engine import Tagi

EXAMPLE = "Example: tagi demo --tasks 20"
SEED = 0
"""Chooses the tasks that are shown, and the strangers; no result is looked at."""
SHOWN_TASKS, SHOWN_INPUTS, INSTANCES = 4, 2, 10
BAR_WIDTH, LONGEST_ANSWER = 20, 60
README_INSTRUCTION = "Keep only the animals, then reverse the list."
README_INPUT, README_ANSWER = "red wolf saw dog plum", "dog wolf"
CONDITIONS: dict[InstructionControl, str] = {
    "aligned": "with its own adapter",
    "empty": "without an adapter",
    "shuffled": "with somebody else's instruction",
}
NEXT = (
    'tagi run "Sort the words alphabetically, then keep the first two words." --input "plum wolf red saw"',
    'tagi adapt "Remove the fruits." -o no-fruits',
    'tagi run --adapter no-fruits --input "plum wolf red saw"',
)


@dataclass(frozen=True, slots=True)
class Answered:
    """One input, what is right, and every condition's answer with whether it is right."""

    input: str
    expected: str
    answers: dict[str, str]
    right: dict[str, bool]


@dataclass(frozen=True, slots=True)
class Shown:
    """One task in full: its instruction, its adapter and some of its inputs."""

    instruction: str
    somebody_elses: str
    adapter_parameters: int
    adapt_seconds: float
    inputs: list[Answered]


def demo(
    tasks: Annotated[int, typer.Option(min=2, help="Unseen tasks to score.")] = 60,
    checkpoint: Checkpoint = None,
    as_json: Json = False,
) -> None:
    """Watch a model read instructions it has never seen, write an adapter for each, and solve their inputs."""
    began = time.perf_counter()
    tagi = open_tagi(checkpoint)
    drawn, strangers = _draw(tagi, checkpoint, tasks)
    console = stdout()
    if not as_json:
        _print_model(console, tagi)
    shown: list[Shown] = []
    for number in _chosen(len(drawn)):
        task = drawn[number] if number else _as_in_readme(drawn[number])
        shown.append(_show(tagi, task, drawn[strangers[number]].instruction))
        if not as_json:
            _print_task(console, shown[-1], len(shown))
    scores = _scores(_evaluate(tagi, drawn, strangers))
    scores |= {"tasks": len(drawn), "shown": [asdict(one) for one in shown]}
    scores["seconds"] = time.perf_counter() - began
    if as_json:
        print_json(scores)
    else:
        _print_scores(console, scores)


def _draw(tagi: Tagi, checkpoint: str | None, count: int) -> tuple[list[Task], list[int]]:
    """Unseen tasks, and for each the number of the one whose instruction is somebody else's."""
    from tagi.cli import micro

    data = micro.trained_on(checkpoint)
    with waiting("drawing unseen tasks"):
        chosen = micro.unseen(data, count)
        demonstrations = tagi.config.prompt.demonstrations
        return micro.with_instances(chosen, INSTANCES, demonstrations=demonstrations), micro.strangers(chosen, SEED)


def _chosen(count: int) -> list[int]:
    """The tasks to show: the first, which the README shows too, and others at random."""
    return [0, *sorted(Random(SEED).sample(range(1, count), min(count, SHOWN_TASKS) - 1))]


def _as_in_readme(task: Task) -> Task:
    """The first test task in the README's wording, the README's input first."""
    from tagi.data.types import Example, Instruction

    example = Example("readme", README_INPUT, (README_ANSWER,))
    return replace(task, instruction=Instruction(README_INSTRUCTION), examples=[example, *task.examples])


def _show(tagi: Tagi, task: Task, mismatched: Instruction) -> Shown:
    began = time.perf_counter()
    adapter = tagi.adapt(task.instruction)
    seconds = time.perf_counter() - began
    size = adapter.instruction.hidden.numel() + sum(f.a.numel() + f.b.numel() for f in adapter.modules.values())
    worn = {"aligned": adapter, "empty": tagi.neutral(), "shuffled": tagi.adapt(mismatched)}
    examples = task.examples[:SHOWN_INPUTS]
    answers = {name: tagi.generate([one.input for one in examples], each) for name, each in worn.items()}
    answered = [
        _answered(example, {name: texts[i] for name, texts in answers.items()}) for i, example in enumerate(examples)
    ]
    return Shown(task.instruction.definition, mismatched.definition, size, seconds, answered)


def _answered(example: Example, answers: dict[str, str]) -> Answered:
    from tagi.eval.rouge import exact_match

    right = {name: exact_match(text, example.targets) == 1 for name, text in answers.items()}
    return Answered(example.input, example.targets[0], answers, right)


def _evaluate(tagi: Tagi, tasks: Sequence[Task], strangers: Sequence[int]) -> dict[str, Evaluation]:
    from tagi.eval.evaluate import evaluate

    found: dict[str, Evaluation] = {}
    with bar(f"scoring {len(tasks)} unseen tasks") as report:
        for i, condition in enumerate(CONDITIONS):
            found[condition] = evaluate(
                tagi,
                tasks,
                instruction=condition,
                partners=strangers,
                progress=lambda done, total, i=i: report(i * total + done, len(CONDITIONS) * total),
            )
    return found


def _scores(found: dict[str, Evaluation]) -> dict[str, Any]:
    """The headline figures: those of the own adapter, and the other conditions' exact match beside them."""
    from tagi.cli.scores import interval

    own = found["aligned"]
    n = len(own.exact_match)
    return {
        "exact_match": sum(own.exact_match) / n,
        "rouge_l": sum(own.rouge_l) / n,
        "n": n,
        "interval": interval(own, "exact_match", SEED),
        "exact_match_by_instruction": {name: sum(one.exact_match) / n for name, one in found.items()},
    }


def _print_model(console: Console, tagi: Tagi) -> None:
    from tagi.model.hypernetwork import parameter_count

    size = parameter_count(tagi.model) / 1e6
    console.print(
        f"A model of {size:.1f} million parameters ({tagi.model.method.title}) reads each instruction once and writes "
        "an adapter. With it, it solves the task's inputs without reading the instruction again.\n"
    )


def _print_task(console: Console, shown: Shown, number: int) -> None:
    from rich.rule import Rule
    from rich.table import Table

    console.print(Rule(f"unseen task {number}", align="left", style="dim"))
    console.print(shown.instruction, style="bold")
    size, milliseconds = shown.adapter_parameters, 1000 * shown.adapt_seconds
    console.print(f"adapter written: {size:,} numbers in {milliseconds:.0f} ms", style="cyan")
    console.print(f"somebody else's instruction: {shown.somebody_elses}\n", style="dim")
    for answered in shown.inputs:
        grid = Table.grid(padding=(0, 1))
        grid.add_row("", "input", answered.input)
        grid.add_row("", "expected", Text(answered.expected, style="bold"))
        for name, label in CONDITIONS.items():
            colour = "green" if answered.right[name] else "red"
            text = shorten(answered.answers[name], LONGEST_ANSWER, placeholder=" ...")
            grid.add_row(mark(console, answered.right[name]), label, Text(text, style=colour))
        console.print(grid)
        console.print()


def _print_scores(console: Console, scores: dict[str, Any]) -> None:
    from rich.rule import Rule
    from rich.table import Table

    from tagi.cli.scores import percent

    what = f"exact match on {scores['n']} inputs of {scores['tasks']} unseen tasks"
    console.print(Rule(what, align="left", style="dim"))
    block = "#" if console.options.ascii_only else "█"
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(justify="right")
    for name, label in CONDITIONS.items():
        score = scores["exact_match_by_instruction"][name]
        colour = "green" if name == "aligned" else "red"
        grid.add_row(label, f"{percent(score)} %", Text(block * round(score * BAR_WIDTH), style=colour))
    console.print(grid)
    low, high = (percent(end) for end in scores["interval"])
    console.print(f"95 % interval of the first: {low} to {high} (bootstrap over tasks)\n", style="dim")
    console.print(Rule("try next", align="left", style="dim"))
    for command in NEXT:
        console.print(f"  {command}", soft_wrap=True)
