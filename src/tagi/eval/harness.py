"""lm-evaluation-harness: a task's description becomes an adapter, the rest of its prompt is the input.

The harness, which the extra `eval` brings, knows the model as `tagi`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

from lm_eval.api.group import Group  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.api.registry import model_registry  # pyright: ignore[reportMissingImports]
from lm_eval.api.task import Task  # pyright: ignore[reportMissingImports]
from lm_eval.models.utils import (  # pyright: ignore[reportMissingImports]
    has_bos_prefix,
    normalize_gen_kwargs,
)
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from tagi.data.tokenizers import encode
from tagi.data.types import named
from tagi.errors import ConfigError, InputError
from tagi.infer.choices import continuations
from tagi.infer.engine import Prompts, Tagi
from tagi.infer.search import GenerationConfig
from tagi.model.adapter import TaskAdapter

Reads = Literal["adapter", "prompt", "both", "mismatched", "empty"]
"""What is made of a task's description: an adapter; nothing, it stays in the prompt of the bare model; an adapter, and
it stays; another task's adapter; nothing at all."""
PACKAGED = Path(__file__).parent / "tasks"
"""The everyday tasks and Super-NaturalInstructions as the harness's YAML files."""
TASKS = 64
"""Adapters that are held at once."""
KNOWN = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "num_beams")
"""What a task's `generation_kwargs` may say."""


class TagiLM(TemplateLM):
    """A TAGI checkpoint, or its bare language model, as the harness's model.

    Examples:
        >>> lm_eval.simple_evaluate("tagi", model_args="instruction=both", tasks=["bbh_zeroshot_navigate"])
    """

    def __init__(
        self,
        checkpoint: str | Path | Tagi | None = None,
        *,
        instruction: Reads = "adapter",
        tasks: Mapping[str, Task] | None = None,
        backbone: str | None = None,
        include_path: str | None = None,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """
        Args:
            checkpoint: by default the bundled one.
            tasks: those of the run by name, for their descriptions; those that are not given are looked up by name.
            include_path: where tasks are looked up besides the harness's own folder.
            batch_size: as `max_batch_size` of no effect, for the engine fills its batches by itself.

        Raises:
            ConfigError: an unknown `instruction`.
            CheckpointError: see `Tagi.from_pretrained`.
        """
        super().__init__()
        if instruction not in get_args(Reads):
            raise ConfigError(f"instruction: {instruction!r} is none of {', '.join(get_args(Reads))}")
        opened = checkpoint if isinstance(checkpoint, Tagi) else None
        self.tagi = opened or Tagi.from_pretrained(checkpoint, backbone=backbone, device=device)  # type: ignore[arg-type]
        self.instruction: Reads = instruction
        self.tasks, self.include_path = dict(tasks or {}), include_path
        self.tokenizer = self.tagi.tokenizer
        self.backend = "seq2seq" if self.tagi.model.backbone.has_encoder else "causal"
        self._device = self.tagi.device
        self._cut: dict[str, set[str]] = {}

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of every continuation its log-likelihood in nats, and whether greedy search would write it.

        As answers to an adapter's input, continuations are read without the white space around them, as in training.

        Raises:
            InputError: see `describe`; a prompt without its description, an empty input or continuation.
        """
        if self.instruction == "prompt":
            return super().loglikelihood(requests, disable_tqdm=True)
        prompts, answers = self._inputs(requests), [encode(self.tokenizer, one.args[1].strip()) for one in requests]
        return self._scored(self._told(requests), prompts, answers, [one.task_name for one in requests])

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Refused by an InputError: a text by itself has no instruction."""
        raise InputError(
            f"{requests[0].task_name}: scores plain text, which has no instruction; take the model hf for it"
        )

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Of every prompt its answer, without white space around it; errors as `loglikelihood`, and unknown kwargs."""
        wanted: dict[GenerationConfig, list[int]] = {}
        for number, one in enumerate(requests):
            wanted.setdefault(_generation(one.task_name, one.args[1]), []).append(number)
        found = [""] * len(requests)
        with tqdm(total=len(requests), desc="Answering", disable=disable_tqdm) as bar:
            for generation, numbers in wanted.items():
                some = [requests[number] for number in numbers]
                inputs = self._prompts(some, generation) if self.instruction == "prompt" else self._inputs(some)
                for adapter, places, owners in self._adapters(self._told(some)):
                    chosen = cast(Prompts, [inputs[place] for place in places])

                    def report(done: int, _all: int, before: int = bar.n) -> None:
                        bar.update(before + done - bar.n)

                    answers = self.tagi.answer(adapter, chosen, tasks=owners, generation=generation, progress=report)
                    for place, answer in zip(places, answers, strict=True):
                        found[numbers[place]] = answer.text
        return found

    def check(self) -> None:
        """Refuse tasks that cannot be run in this way, before anything is built of them.

        Raises:
            ConfigError: `mismatched` with a single description.
            InputError: a task without a description, if one is needed.
        """
        if self.instruction in ("adapter", "both", "mismatched"):
            for name, task in self.tasks.items():
                self.describe(name, task.eval_docs[0])
        if self.instruction == "mismatched":
            self._partners()

    def describe(self, name: str, doc: Any) -> str:
        """What a task says of itself before a document; an InputError where an adapter needs what is not said."""
        if name not in self.tasks:
            self.tasks |= load_tasks([name], self.include_path)[1]
        task = self.tasks[name]
        found = task.resolve_field(doc, task.config.description) or ""
        if not found.strip() and self.instruction not in ("prompt", "empty"):
            raise InputError(f"{name}: has no description to write an adapter from; the instruction prompt needs none")
        return found

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The harness's turns as the tokenizer's template has them, for the bare model; see `check_template`."""
        check_template(self.instruction, True)
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def get_model_info(self) -> dict[str, Any]:
        """What the results say of the model, asked for when all is answered."""
        own = {"instruction": self.instruction, "method": self.tagi.model.method.name}
        cut = {name: len(inputs) for name, inputs in self._cut.items()}
        return own | {"checkpoint_fingerprint": self.tagi.fingerprint(), "inputs_cut": cut}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids as the harness's `hf` has them: no second start token where the text begins with one."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode([self.prefix_token_id]))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return int(self.tokenizer.eos_token_id)  # type: ignore[arg-type]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a continuation without a context: the start token, or if there is none the end token."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)  # type: ignore[arg-type]

    @property
    def max_length(self) -> int | None:
        """Tokens that the language model has positions for."""
        return self.tagi.model.backbone.max_positions

    @property
    def tokenizer_name(self) -> str:
        """What the harness tells its cached prompts apart by."""
        return self.tagi.fingerprint()

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Of the bare model: of prompts that are too long the end is read, as by `hf`."""
        most = None if self.max_length is None or self.backend == "seq2seq" else self.max_length + 1
        prompts = [tuple(before if most is None else before[-(most - len(own)) :]) for _, before, own in requests]
        return self._scored([None] * len(requests), prompts, [own for *_, own in requests], [None] * len(requests))

    def _scored(
        self,
        told: Sequence[str | None],
        inputs: Prompts,
        answers: Sequence[Sequence[int]],
        names: Sequence[str | None],
    ) -> list[tuple[float, bool]]:
        """Continuations of one input share its reading, as the choices of a question do."""
        if (empty := next((i for i, own in enumerate(answers) if not own), None)) is not None:
            raise InputError(f"{names[empty] or 'a request'}: a continuation is empty")
        found: list[tuple[float, bool]] = [(0.0, False)] * len(answers)
        with tqdm(total=len(answers), desc="Scoring") as bar:
            for adapter, places, owners in self._adapters(told):
                alike: dict[tuple[int, str | tuple[int, ...]], list[int]] = {}
                for place, owner in zip(places, owners, strict=True):
                    alike.setdefault((owner, inputs[place]), []).append(place)
                tasks, texts = zip(*alike, strict=True)
                _, prompts, _ = self.tagi.read(adapter, texts, tasks)
                scores = continuations(
                    self.tagi.model.backbone,
                    self.tagi.prepare(adapter, len(texts)),
                    [prompt for (prompt,) in prompts],
                    [[answers[place] for place in own] for own in alike.values()],
                    tasks,
                    bar.update,
                )
                for own, each in zip(alike.values(), scores, strict=True):
                    for place, pair in zip(own, each, strict=True):
                        found[place] = pair
        return found

    def _adapters(self, told: Sequence[str | None]) -> Iterator[tuple[TaskAdapter, list[int], list[int]]]:
        """Adapters of some requests, which requests these are, and which adapter each has; not all of them at once."""
        distinct = list(dict.fromkeys(told))
        for start in range(0, len(distinct), TASKS):
            here = {text: place for place, text in enumerate(distinct[start : start + TASKS])}
            places = [place for place, text in enumerate(told) if text in here]
            written = [text for text in here if text is not None]
            adapter = self.tagi.adapt_all(written) if written else self.tagi.neutral()
            yield adapter, places, [here[told[place]] for place in places]

    def _told(self, requests: Sequence[Any]) -> list[str | None]:
        """What the adapter of each request is written from; None is the bare model."""
        if self.instruction in ("prompt", "empty"):
            return [None] * len(requests)
        own = [self.describe(one.task_name, one.doc).strip() for one in requests]
        if self.instruction != "mismatched":
            return list(own)
        partners = self._partners()
        return [partners[text] for text in own]

    def _partners(self) -> dict[str, str]:
        """Every description of the run and the one that is half of them further on."""
        each = (self.describe(name, doc).strip() for name, task in self.tasks.items() for doc in task.eval_docs)
        distinct = list(dict.fromkeys(each))
        if len(distinct) < 2:
            raise ConfigError("mismatched: needs at least two tasks whose descriptions differ")
        half = len(distinct) // 2
        return dict(zip(distinct, distinct[half:] + distinct[:half], strict=True))

    def _inputs(self, requests: Sequence[Any]) -> list[str]:
        """What the prompts hold behind the descriptions, or with `both` all of it."""
        found: list[str] = []
        for one in requests:
            description, prompt = self.describe(one.task_name, one.doc), one.args[0]
            if not prompt.startswith(description):
                raise InputError(f"{one.task_name}: a prompt does not begin with the task's description")
            text = prompt if self.instruction == "both" else prompt[len(description) :]
            if not text.strip():
                raise InputError(f"{one.task_name}: a prompt has no input behind the task's description")
            if any(map(self.tagi.collator.dropped, self.tagi.collator.read_with(None, text))):
                self._cut.setdefault(one.task_name, set()).add(text)
            found.append(text)
        return found

    def _prompts(self, requests: Sequence[Any], generation: GenerationConfig) -> list[tuple[int, ...]]:
        """The harness's prompts as `hf` reads them: of those that are too long for the answer, too, the end."""
        room = None if self.max_length is None else self.max_length - (generation.max_new_tokens or 0)
        if room is not None and room < 1:
            raise InputError(
                f"{requests[0].task_name}: max_gen_toks: {generation.max_new_tokens} tokens leave no room for a "
                f"prompt: the language model has {self.max_length} positions"
            )
        return [tuple(self.tok_encode(one.args[0])[-(room or 0) :]) for one in requests]


def check_template(instruction: Reads, applied: bool) -> None:
    """Refuse (ConfigError) the harness's chat template where there is an adapter."""
    if applied and instruction != "prompt":
        raise ConfigError(
            "apply_chat_template: goes with the instruction prompt only; all others put an input into the frame "
            "that the checkpoint was trained with"
        )


def load_tasks(
    names: Sequence[str], include_path: str | Path | None = None, *, sni: Path | None = None
) -> tuple[TaskManager, dict[str, Task], list[Task | Group]]:
    """The harness's manager, the tasks of some names by their own, and what was asked for: tasks and groups.

    Args:
        include_path: a folder of task files, besides the packaged ones and the harness's own.
        sni: where Super-NaturalInstructions lies, for the task `sni`.

    Raises:
        ConfigError: no name, one that no task, group or tag has, or names that share a task.
        TagiError: data of a packaged task that cannot be read.
    """
    if not names:
        raise ConfigError("tasks: none is named")
    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError(f"{include_path}: is no folder of task files")
    folders: list[str | Path] = [PACKAGED, *([] if include_path is None else [Path(include_path)])]
    metadata: dict[str, Any] = {} if sni is None else {"sni": str(sni)}
    manager = TaskManager(include_path=folders, include_defaults=False, metadata=metadata)
    if not {*names} <= {"everyday", *manager.all_subtasks}:  # to read the harness's own folder takes seconds
        manager = TaskManager(include_path=folders, metadata=metadata)
    tasks, asked_for = dict[str, Task](), list[Task | Group]()
    for name in named(manager.all_tasks, str, names):
        loaded: Mapping[str, Mapping[str, Any]] = dict(manager.load([name]))  # type: ignore[arg-type]
        if doubled := tasks.keys() & loaded["tasks"].keys():
            raise ConfigError(f"tasks: {name} holds {min(doubled)}, which is asked for already")
        tasks |= loaded["tasks"]
        asked_for += [loaded["groups"][name]] if name in loaded["groups"] else loaded["tasks"].values()
    return manager, tasks, asked_for


def _generation(name: str, said: Mapping[str, Any]) -> GenerationConfig:
    """A task's `generation_kwargs` for the engine; what they leave open is as with `hf`."""
    found: dict[str, Any] = dict(normalize_gen_kwargs(dict(said)))
    if unknown := [one for one in found if one not in KNOWN]:
        raise InputError(f"{name}: generation_kwargs: {unknown[0]} is none of {', '.join(KNOWN)}")
    sampled = bool(found["do_sample"])
    return GenerationConfig(
        beams=int(found.get("num_beams", 1)),
        temperature=float(found.get("temperature", 1.0)) if sampled else 0.0,
        top_p=float(found.get("top_p", 1.0)) if sampled else 1.0,
        max_new_tokens=found["max_gen_toks"],
        stop=found["until"],
    )


if "tagi" not in model_registry:  # a harness that finds plugins has it already
    model_registry.register("tagi", target=TagiLM)
