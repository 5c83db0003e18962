"""`tagi eval lm`: tasks of lm-evaluation-harness, their descriptions turned into adapters."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tagi.cli.common import Backbone, Checkpoint, Json, note, open_tagi, stderr, waiting
from tagi.cli.eval import Output
from tagi.errors import ConfigError

EXAMPLE = "Example: tagi eval lm --tasks everyday_calm_title,everyday_bag_reason --instruction adapter --limit 10"
Reads = Literal["adapter", "prompt", "both", "mismatched", "empty"]


def lm(
    tasks: Annotated[
        str, typer.Option(metavar="NAME[,NAME…]", help="Tasks and groups of the harness; ours are everyday and sni.")
    ],
    instruction: Annotated[
        Reads,
        typer.Option(
            help="What a task's description becomes: an adapter; the bare model's prompt; both; another task's "
            "adapter; nothing."
        ),
    ] = "adapter",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows of each task.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples that the harness puts into prompts.")] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="With the instruction prompt: turns by the model's template.")
    ] = False,
    include_path: Annotated[Path | None, typer.Option(metavar="DIR", help="More task files.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Super-NaturalInstructions, which the task sni reads.")
    ] = None,
    checkpoint: Checkpoint = None,
    backbone: Backbone = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Run tasks of lm-evaluation-harness; a task's description is its instruction."""
    if find_spec("lm_eval") is None:
        raise ConfigError("lm-evaluation-harness is not installed: pip install '.[eval]' in a checkout brings it")
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    with waiting("opening lm-evaluation-harness"):
        import lm_eval  # pyright: ignore[reportMissingImports]
        from lm_eval.utils import make_table  # pyright: ignore[reportMissingImports]

        from tagi.eval.harness import TagiLM, check_template, load_tasks
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every default that a task takes
    check_template(instruction, apply_chat_template)
    with waiting("reading tasks"):
        manager, loaded, asked_for = load_tasks(names, include_path, sni=data)
    model = TagiLM(open_tagi(checkpoint, backbone), instruction=instruction, tasks=loaded)
    model.check()
    evaluate: Any = lm_eval.simple_evaluate  # whose decorator hides its parameters
    found = evaluate(
        model,
        tasks=asked_for,
        task_manager=manager,
        num_fewshot=num_fewshot,
        limit=limit,
        apply_chat_template=apply_chat_template,
        log_samples=output is not None,
    )
    results: dict[str, Any] = dict(found)
    for name, count in results["config"]["inputs_cut"].items():
        most = model.tagi.config.prompt.max_input
        note(f"{name}: {count:,} inputs are longer than the {most} tokens that the checkpoint reads, and were cut")
    samples = results.pop("samples", {})
    if output is not None:
        _write(output, results, samples)
    if as_json:
        typer.echo(_dumped(results, indent=2))
        return
    for part in ("results", *(["groups"] if "groups" in results else [])):
        typer.echo(make_table(results, part))


def _write(folder: Path, results: Mapping[str, Any], samples: Mapping[str, Any]) -> None:
    from tagi.files import write_text

    write_text(folder / "results.json", _dumped(results, indent=2) + "\n")
    for name, rows in samples.items():
        write_text(folder / f"samples_{name}.jsonl", "".join(f"{_dumped(row)}\n" for row in rows))
    stderr().print(f"wrote results.json and the samples of {len(samples)} tasks to {folder}", soft_wrap=True)


def _dumped(value: Any, indent: int | None = None) -> str:
    from lm_eval.utils import handle_non_serializable  # pyright: ignore[reportMissingImports]

    return json.dumps(value, indent=indent, default=handle_non_serializable)
