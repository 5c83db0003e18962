"""`tagi demo`: everyday tasks that no training has seen: adapter, prompt, and a mismatched instruction side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from random import Random
from statistics import fmean, median
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from tagi.cli.common import Checkpoint, Json, bar, mark, open_tagi, print_json, stdout, table, waiting

if TYPE_CHECKING:
    from rich.console import Console

    from tagi.data.types import Task
    from tagi.eval.evaluate import Evaluation
    from tagi.infer.engine import Tagi

EXAMPLE = "Example: tagi demo --tasks 10"
SEED = 0
"""Chooses the tasks that are shown, and whose instruction is another's; no result is looked at."""
SHOWN_TASKS, INSTANCES = 5, 3
LONGEST_ANSWER = 24
"""Tokens of an answer; untrained, the language model seldom comes to an end."""
TIMED, TIMED_TOKENS = 5, 8
"""Inputs that are timed, and tokens of every answer in it: untrained answers are longer, not slower."""
LONGEST = 40
COLUMNS = {"adapter": "adapter", "prompt": "prompt, untrained", "mismatched": "mismatched instruction"}
NEXT = (
    'tagi run "Name the product that the customer is talking about." --input "My new kettle leaks from the lid."',
    'tagi adapt "Say whether the message is urgent: yes or no." -o urgent',
    'tagi run --adapter urgent --input "The server room is on fire!" --choice yes --choice no',
)


def demo(
    tasks: Annotated[int, typer.Option(min=2, help="Unseen tasks to score.")] = 40,
    checkpoint: Checkpoint = None,
    as_json: Json = False,
) -> None:
    """Watch a language model solve everyday tasks that it has never seen, by adapters written from instructions."""
    began = time.perf_counter()
    tagi = open_tagi(checkpoint)
    drawn, partners = _draw(tasks)
    with bar(f"solving {len(drawn)} unseen tasks") as report:
        found = _evaluate(tagi, drawn, partners, report)
    scores = _scores(found) | {"tasks": len(drawn), "shown": _shown(found, drawn, partners)}
    with waiting("timing"):
        scores["costs"] = _costs(tagi, drawn[:TIMED])
    scores["seconds"] = time.perf_counter() - began
    if as_json:
        print_json(scores)
    else:
        _print(stdout(), tagi, scores)


def _draw(count: int) -> tuple[list[Task], list[int]]:
    """The first test tasks in random order with their first instances, and for each the number of another."""
    from tagi.bundled import everyday
    from tagi.config import DataConfig
    from tagi.data.sources.everyday import Everyday
    from tagi.eval.evaluate import draw_partners

    tasks = Everyday(DataConfig(source="everyday", path=str(everyday()))).test(0)
    chosen = Random(SEED).sample(tasks, len(tasks))[:count]
    return [task.first(INSTANCES) for task in chosen], draw_partners(chosen, SEED)


def _evaluate(
    tagi: Tagi, tasks: Sequence[Task], partners: Sequence[int], report: Callable[[int, int], None]
) -> dict[str, Evaluation]:
    """Every column.

    A decoder-only model that attends to what it read of an instruction itself, and has no adapter, is that model with
    the instruction in its prompt: its answers are the same. Not so where the adapted model read the instruction.
    """
    import torch

    from tagi.eval.evaluate import predictions, prompted, score
    from tagi.infer.search import GenerationConfig

    own = [task.instruction for task in tasks]
    adapters = tagi.adapt_all(own)
    asking, untrained = tagi, adapters.without_modules()
    if tagi.model.backbone.has_encoder or tagi.model.reads_again or not tagi.model.method.fuses_decoder:
        asking, untrained = prompted(tagi), own
    ways = {
        "adapter": (tagi, adapters, own),
        "prompt": (asking, untrained, own),
        "mismatched": (tagi, adapters.select(torch.tensor(partners)), [own[partner] for partner in partners]),
    }
    short = GenerationConfig(max_new_tokens=min(LONGEST_ANSWER, tagi.config.prompt.max_target))
    found: dict[str, Evaluation] = {}
    for part, (name, (model, told, shown)) in enumerate(ways.items()):

        def done(ready: int, total: int, part: int = part) -> None:
            report(part * total + ready, len(ways) * total)

        found[name] = score(predictions(model, tasks, told, shown, generation=short, progress=done))
    return found


def _shown(found: Mapping[str, Evaluation], tasks: Sequence[Task], partners: Sequence[int]) -> list[dict[str, Any]]:
    """The first tasks: both instructions, and of every input each column's answer with whether it is right."""
    inputs = (
        {
            "input": predictions[0].example.input,
            "expected": predictions[0].example.targets[0],
            "answers": {name: one.text for name, one in zip(found, predictions, strict=True)},
            "right": {name: evaluation.exact_match[place] == 1 for name, evaluation in found.items()},
        }
        for place, predictions in enumerate(zip(*(one.predictions for one in found.values()), strict=True))
    )
    return [
        {
            "instruction": task.instruction.definition,
            "mismatched": tasks[partner].instruction.definition,
            "inputs": list(islice(inputs, len(task.examples))),
        }
        for task, partner in list(zip(tasks, partners, strict=True))[:SHOWN_TASKS]
    ]


def _costs(tagi: Tagi, tasks: Sequence[Task]) -> dict[str, dict[str, float]]:
    """Tokens that are read with every input, and the median time of answers of equal length, of three ways that take
    turns, one input at a time: with the adapter, behind a cached prompt, in a prompt."""
    from tagi.eval.evaluate import prompted
    from tagi.infer.search import GenerationConfig

    fixed = GenerationConfig(max_new_tokens=TIMED_TOKENS, min_new_tokens=TIMED_TOKENS)
    asking, ways = prompted(tagi), ("adapter", "cached prompt", "prompt")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for task in tasks:
        adapter, texts = tagi.adapt(task.instruction), [example.input for example in task.examples]
        told = {"adapter": adapter, "cached prompt": adapter.without_modules()}
        tagi.generate(texts, adapter, generation=fixed)  # a task that is kept, whose LoRA is merged by now
        for way in ways:
            began = time.perf_counter()
            if way == "prompt":
                asking.solve(task.instruction, texts[:1], generation=fixed)
            else:
                tagi.generate(texts[:1], told[way], generation=fixed)
            seconds[way].append(time.perf_counter() - began)

    def tokens(way: str) -> float:
        told, follows = (asking, False) if way == "prompt" else (tagi, tagi.model.method.fuses_decoder)
        prompts = (told.prompts(task.instruction, task.examples[0].input, follows=follows) for task in tasks)
        return sum(len(prompt) for (prompt,) in prompts) / len(tasks)

    return {way: {"tokens": tokens(way), "milliseconds": 1000 * median(own)} for way, own in seconds.items()}


def _scores(found: Mapping[str, Evaluation]) -> dict[str, Any]:
    """The headline figures: those of the adapter, and the other columns' beside them."""
    from tagi.cli.scores import interval

    own = found["adapter"]
    metrics = ("exact_match", "rouge_l")
    return {
        **{metric: fmean(getattr(own, metric)) for metric in metrics},
        "n": len(own.predictions),
        "interval": interval(own, "exact_match", SEED),
        **{
            f"{metric}_by_column": {name: fmean(getattr(one, metric)) for name, one in found.items()}
            for metric in metrics
        },
    }


def _print(console: Console, tagi: Tagi, scores: Mapping[str, Any]) -> None:
    from tagi.cli.scores import percent
    from tagi.model.hypernetwork import parameter_count

    backbone, own = parameter_count(tagi.model.backbone), sum(map(parameter_count, tagi.model.generators))
    console.print(
        f"A frozen language model of {backbone / 1e6:.0f} million parameters reads each instruction once, and a "
        f"hypernetwork of {own / 1e6:.1f} million ({tagi.model.method.title}) writes an adapter from it.\n"
    )
    for task in scores["shown"]:
        console.print(Text(task["instruction"], style="bold"))
        console.print(Text(f"mismatched: {task['mismatched']}", style="dim"))
        made = table("", ("input", "expected", *COLUMNS.values()), justify="left")
        for one in task["inputs"]:
            cells = [
                mark(console, right).append(f" {_short(one['answers'][name], LONGEST)}")
                for name, right in one["right"].items()
            ]
            made.add_row(_short(one["input"], 2 * LONGEST), one["expected"], *cells)
        console.print(made)
    made = table(f"{scores['n']} inputs of {scores['tasks']} unseen tasks", ("", "exact match", "ROUGE-L"))
    for name, label in COLUMNS.items():
        made.add_row(label, *(percent(scores[f"{metric}_by_column"][name]) for metric in ("exact_match", "rouge_l")))
    console.print(made)
    made = table(f"one input, an answer of {TIMED_TOKENS} tokens", ("", "tokens read", "ms"))
    for name, cost in scores["costs"].items():
        made.add_row(name, f"{cost['tokens']:.0f}", f"{cost['milliseconds']:.0f}")
    console.print(made)
    console.print("try next:", style="dim")
    for command in NEXT:
        console.print(f"  {command}", soft_wrap=True)


def _short(text: str, longest: int) -> str:
    return shorten(text, longest, placeholder=" ...")
