"""Complete runs by name: the paper's (Table 6), and one for a single 24 GB GPU.

A run is an ordered mapping of stage -> config; a later stage finds an earlier one's output under the run's own
folder. What the paper leaves open is taken from the authors' released scripts where they say it: the teachers'
names, λ1 = 5 and temperature 3. λ2 is 1. "Batch size" is read as rows of different tasks in one batch, and steps
as optimizer steps; "-" under warmup steps as none. "Max Input Len" is of whatever one encoder reads at once: of the
instruction and of the input where they are read apart, of both together where they are one prompt, a teacher's too.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

from tagi.config import (
    BackboneConfig,
    BankConfig,
    DataConfig,
    HypernetworkConfig,
    ObjectiveConfig,
    PromptConfig,
    RunConfig,
    TeacherConfig,
    TrainingConfig,
)
from tagi.config.files import override, parse
from tagi.errors import ConfigError

Run = Mapping[str, RunConfig]
"""Stage -> config, in the order in which they run."""
Setting = Literal["def", "def2pos"]
SniSize = Literal["base", "xl", "xxl"]
P3Size = Literal["base", "large", "xl"]
Family = Literal["t5lm", "t0"]
SNI, P3, C4 = "data/sni", "data/p3", "data/c4"
"""Where the data lies unless `data.path` says otherwise."""
GENERATOR_HIDDEN = {"base": 128, "large": 128, "xl": 256, "xxl": 256}


Batches = tuple[float, int, int]
"""Learning rate, batch size and accumulation."""
BATCHES: dict[str, Batches] = {"base": (1e-4, 8, 2), "large": (1e-4, 4, 4), "xl": (5e-5, 2, 4), "xxl": (5e-5, 1, 2)}
"""Table 6's finetuning half."""
TK_INSTRUCT: dict[tuple[SniSize, Setting], str] = {
    ("base", "def2pos"): "allenai/tk-instruct-base-def-pos",
    ("xl", "def"): "allenai/tk-instruct-3b-def",
    ("xl", "def2pos"): "allenai/tk-instruct-3b-def-pos",
    ("xxl", "def"): "allenai/tk-instruct-11b-def",
    ("xxl", "def2pos"): "allenai/tk-instruct-11b-def-pos",
}
"""Published instruct models (Wang et al., 2022); base with Def was never published, so that run trains its own."""
T0: dict[P3Size, str] = {"base": "qinyuany/my-t0-base", "large": "qinyuany/my-t0-large", "xl": "qinyuany/my-t0-3b"}
"""T0 as FiD-ICL trained it again (A.5)."""


def fid_icl(size: P3Size, family: Family) -> str:
    """The hub's FiD-ICL of a size, trained from T5-LM or from T0 (Ye et al., 2023)."""
    if family == "t0":
        return f"qinyuany/fid-icl-t0-{'3b' if size == 'xl' else size}"
    return f"qinyuany/fid-icl-t5-lm-{size}"


def language_model(size: str) -> BackboneConfig:
    """T5-LM of a size."""
    return _published(f"google/t5-{size}-lm-adapt", size)


def sni(size: SniSize, setting: Setting, output: str) -> Run:
    """TAGI on Super-NaturalInstructions (Tables 2 and 6).

    Per-task LoRAs on Tk-Instruct, one for each of 60 categories; XXL goes without them and without alignment, as in
    the paper. Then pretraining on C4, then finetuning from labels, Tk-Instruct's logits and the LoRAs.
    """
    demonstrations = 2 if setting == "def2pos" else 0
    data = DataConfig(source="sni", path=SNI)
    both = PromptConfig(demonstrations=demonstrations, max_instruction=512, max_input=512)
    instruct = TK_INSTRUCT.get((size, setting))
    taught = instruct or f"{output}/metatrain/final"
    run: dict[str, RunConfig] = {}
    if instruct is None:
        run["metatrain"] = metatraining(size, both, data, f"{output}/metatrain")
    if size != "xxl":
        base = {"backbone": _published(instruct, size)} if instruct else {"start_from": taught}
        run["teachers"] = teacher_loras(size, "metatrain", both, data, f"{output}/teachers", base)
    bank = _bank(run, taught)
    run["pretrain"] = pretraining(size, bank, f"{output}/pretrain", language_model(size))
    prompt = PromptConfig(demonstrations=demonstrations, max_prompt=1024)
    teacher = TeacherConfig(kind="instruct", checkpoint=taught)
    run["finetune"] = finetuning(size, BATCHES[size], prompt, data, teacher, bank, output)
    return run


def p3(size: P3Size, family: Family, output: str) -> Run:
    """TAGI on the T0 split of P3 (Tables 3 and 6), the template to the hypernetwork.

    Per-task LoRAs for each of 36 tasks on the student's own backbone, pretraining on C4, then finetuning with
    FiD-ICL over 16 demonstrations as the teacher.
    """
    backbone = language_model(size) if family == "t5lm" else _published(T0[size], size)
    data = DataConfig(source="p3", path=P3, max_instances=1000)
    whole = PromptConfig(style="t0", max_input=1024)
    run: dict[str, RunConfig] = {}
    base = {"backbone": backbone}
    run["teachers"] = teacher_loras(size, "no_instruction", whole, data, f"{output}/teachers", base)
    run["pretrain"] = pretraining(size, _bank(run), f"{output}/pretrain", backbone)
    prompt = PromptConfig(style="t0", max_instruction=512, max_input=512, max_prompt=512, max_target=64)
    teacher = TeacherConfig(kind="fid", checkpoint=fid_icl(size, family))
    run["finetune"] = finetuning(size, BATCHES[size], prompt, data, teacher, _bank(run), output)
    return run


def metatraining(size: str, prompt: PromptConfig, data: DataConfig, output: str) -> RunConfig:
    """Tk-Instruct: the whole language model, the instruction in the prompt."""
    return RunConfig(
        stage="metatrain",
        method="metatrain",
        backbone=language_model(size),
        prompt=prompt,
        data=data,
        training=_training((1e-4, 8, 2), trainable=("backbone",)),
        output=output,
    )


def teacher_loras(
    size: str,
    method: Literal["metatrain", "no_instruction"],
    prompt: PromptConfig,
    data: DataConfig,
    output: str,
    base: Mapping[str, Any],
) -> RunConfig:
    """Table 6, "LoRA tuning": 10,000 steps of 8 rows, accumulated twice, for every teacher, on `base`."""
    return RunConfig(
        stage="teachers",
        method=method,
        prompt=prompt,
        data=data,
        teachers=BankConfig(group="category", parallel=4 if size == "base" else 1),
        training=_training((1e-4, 8, 2), steps=10_000, warmup=0.0, activation_checkpointing=True),
        output=output,
        **base,
    )


def pretraining(size: str, bank: Mapping[str, Any], output: str, backbone: BackboneConfig) -> RunConfig:
    """Table 6, "pretraining": 50,000 steps of 8 documents of 1,024 tokens, Adafactor at 1e-3, fp32."""
    return RunConfig(
        stage="pretrain",
        method="tagi",
        backbone=backbone,
        hypernetwork=HypernetworkConfig(rank=32, hidden=GENERATOR_HIDDEN[size]),
        data=DataConfig(source="c4", path=C4, max_documents=400_000),
        training=_training(
            (1e-3, 8, 1),
            steps=50_000,
            optimizer="adafactor",
            warmup=0.0,
            schedule="constant",
            precision="fp32",
            activation_checkpointing=size != "base",
            checkpoint_every=5000,
        ),
        output=output,
        **bank,
    )


def finetuning(
    size: str,
    batches: Batches,
    prompt: PromptConfig,
    data: DataConfig,
    teacher: TeacherConfig,
    bank: Mapping[str, Any],
    output: str,
) -> RunConfig:
    """Table 6, "finetuning": 20,000 steps with Eq. 6; without a bank, without its last term."""
    return RunConfig(
        stage="finetune",
        method="tagi",
        start_from=f"{output}/pretrain/final",
        hypernetwork=HypernetworkConfig(rank=32, hidden=GENERATOR_HIDDEN[size]),
        prompt=prompt,
        data=data,
        objective=ObjectiveConfig(lambda_kl=5.0, temperature=3.0, teacher=teacher, lambda_ins=1.0 if bank else 0.0),
        training=_training(batches, activation_checkpointing=size in ("xl", "xxl")),
        output=f"{output}/finetune",
        **bank,
    )


def _training(batches: Batches, **changes: Any) -> TrainingConfig:
    """Rows of different tasks, bf16 and 20,000 steps, but for changes."""
    values: dict[str, Any] = {"steps": 20_000, "precision": "bf16", "checkpoint_every": 2000} | changes
    lr, rows, accumulation = batches
    return TrainingConfig(lr=lr, tasks_per_batch=rows, rows_per_task=1, accumulation=accumulation, **values)


def _published(path: str, size: str) -> BackboneConfig:
    return parse(BackboneConfig, {"path": path, "shape": f"t5-v1_1-{size}"}, source=path)


def _bank(run: Run, base: str | None = None) -> dict[str, Any]:
    """The fields that name a run's bank, if it trains one; `base` where that is not on the student's own backbone."""
    return {"bank": f"{run['teachers'].output}/final", "bank_base": base} if "teachers" in run else {}


def sni_24gb(output: str) -> Run:
    """TAGI on Super-NaturalInstructions (Def) for one person with one 24 GB GPU and a day: T5-LM-base, bf16.

    T5-LM and not Flan-T5, whose training data holds the benchmark's test tasks. The run trains its own instruct
    teacher; its per-task LoRAs read the input alone, on the student's own backbone.

    How its size was chosen: `tagi train all --config sni-base-24gb --dry-run` estimates at most 10.2 GB for a stage
    with every row at its limit, less than half of the card, and 1.0e18 FLOPs in all as the upper bound: 19 hours at
    15 TFLOP/s, a fifth of what an RTX 3090 promises in bf16. Rows of the benchmark are mostly a good deal shorter
    than the limits, and a frozen backbone's instructions come from the cache. Estimated, not measured on such a card.
    """
    data = DataConfig(source="sni", path=SNI, valid_tasks=20)
    alone = PromptConfig(max_instruction=512, max_input=512)
    teacher = TeacherConfig(kind="instruct", checkpoint=f"{output}/metatrain/final")
    base = language_model("base")
    run: dict[str, RunConfig] = {}
    run["metatrain"] = metatraining("base", alone, data, f"{output}/metatrain")
    run["teachers"] = teacher_loras("base", "no_instruction", alone, data, f"{output}/teachers", {"backbone": base})
    run["pretrain"] = pretraining("base", _bank(run), f"{output}/pretrain", base)
    run["finetune"] = finetuning("base", (1e-4, 4, 4), alone, data, teacher, _bank(run), output)
    every = {
        "metatrain": "training.steps=10000 training.tasks_per_batch=4 training.accumulation=4 "
        "training.checkpoint_every=1000",
        "teachers": "training.steps=1000 training.accumulation=1 training.checkpoint_every=500",
        "pretrain": "training.steps=20000 training.precision=bf16 training.activation_checkpointing=true "
        "data.max_documents=160000",
        "finetune": "training.rows_per_task=2 training.instruction_cache_mb=1024 training.checkpoint_every=1000",
    }
    return {key: override(config, every[key].split(), source=config.output) for key, config in run.items()}


RUNS: dict[str, Callable[[str], Run]] = {
    **{
        f"sni-{size}-{setting}": partial(sni, size, setting)
        for size in get_args(SniSize)
        for setting in ("def", "def2pos")
    },
    **{f"p3-{size}-{family}": partial(p3, size, family) for size in T0 for family in ("t5lm", "t0")},
    "sni-base-24gb": sni_24gb,
}
"""Name -> the run, given the folder of its outputs."""


def named(name: str, overrides: Sequence[str] = (), *, stage: str | None = None) -> Run:
    """A run by name, its outputs under `runs/NAME`, with overrides.

    `key=value` goes to every stage, or to `stage` alone where that is given; `STAGE.key=value` to that stage.
    `output=DIR` moves the whole run.

    Raises:
        ConfigError: unknown name or stage, or an override that does not fit.
    """
    if name not in RUNS:
        near = difflib.get_close_matches(name, RUNS, n=1)
        hint = f", did you mean {near[0]}?" if near else ";"
        raise ConfigError(f"{name}: is neither a config file nor a named run{hint} `tagi runs` lists the runs")
    moved = [one.partition("=")[2] for one in overrides if one.startswith("output=")]
    run = RUNS[name](moved[-1] if moved else f"runs/{name}")
    if stage is not None and stage not in run:
        raise ConfigError(f"{name}: has no stage {stage}; it has {', '.join(run)}")
    several = stage is None and len({config.data.source for config in run.values()}) > 1
    chosen: dict[str, list[str]] = {key: [] for key in run}
    for one in overrides:
        first, _, field = one.partition("=")[0].partition(".")
        if first in run and field.partition(".")[0] in RunConfig.model_fields:
            chosen[first].append(one.removeprefix(f"{first}."))  # `teachers.rank=8` is the section, not the stage
        elif several and one.startswith("data.path="):
            raise ConfigError(f"{name}: {one}: the stages read different data; write pretrain.{one}")
        elif not one.startswith("output="):
            for key in run if stage is None else [stage]:
                chosen[key].append(one)
    return {key: override(run[key], chosen[key], source=f"{name}: {key}") for key in run}
