"""The test beds of the three scales: synthetic tasks in minutes, small models on the real data, the paper's sizes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from tagi.repro import runs
from tagi.repro.beds import Bed, Benchmark, Entry, Stage

Scale = Literal["paper", "nano", "micro"]
Pair = tuple[Bed, Bed]
"""Def and Def + 2 Pos. of one language model."""
SETTINGS: Mapping[runs.Setting, int] = {"def": 0, "def2pos": 2}
SHOWN = {0: "Def", 2: "Def + 2 Pos."}
SYNTHETIC = "micro", "--instances", "10"
"""How `tagi eval` scores on synthetic tasks."""
NANO_STEPS = {"base": 1000, "teachers": 40, "pretrain": 50, "finetune": 200}
"""Of the T5 that all start from, and of SmolLM2's stages, which are meant to take an hour of two cores at most."""
_EVERY_MODULE = "[q, k, v, o, gate, up, down]"


@dataclass(frozen=True, slots=True)
class Beds:
    """Which beds stand for the paper's columns."""

    sni: tuple[Pair, ...]
    """Table 2, by language model."""
    p3: tuple[Bed, ...]
    """Tables 3 and 9; synthetic tasks at micro scale."""
    ablated: tuple[Bed, ...]
    """Table 4."""
    tuned: tuple[Bed, ...]
    """Table 7."""
    varied: tuple[tuple[Bed, tuple[int, ...]], ...]
    """Figure 3, each with its numbers of groups, the last of which are all."""
    trend: Bed
    """Figure 4."""
    notes: tuple[str, ...]
    decoders: Mapping[str, Entry] = field(default_factory=dict)
    """Table 2's decoder-only model, by column."""


def micro(data: str) -> Beds:
    """Synthetic tasks on a small T5 from scratch: the configs of docs/results/systems.md and training.md."""
    base = Stage("metatrain", "configs/micro/metatrain.yaml", (), "runs/micro-metatrain-0")
    bank = Stage("teachers", "configs/ablation/teachers.yaml", (), "runs/ablation-bank")
    systems = "configs/micro/systems.yaml"

    def bed(setting: runs.Setting) -> Bed:
        shots = SETTINGS[setting]
        shown = (f"prompt.demonstrations={shots}",) if shots else ()
        sizes = "hypernetwork.prefix=8", "hypernetwork.bottleneck=16"  # as in the config of what follows
        return Bed(
            f"micro-{setting}",
            SHOWN[shots],
            "micro",
            SYNTHETIC,
            {
                "metatrain": (
                    systems,
                    ("stage=metatrain", "method=metatrain", "training.trainable=[backbone]", *shown),
                ),
                "teachers": ("configs/ablation/teachers.yaml", ("teachers.group=category", "data.compositions=4000")),
                "pretrain": ("configs/ablation/pretrain.yaml", sizes),
                "finetune": (systems, shown),
            },
            shots=shots,
            lambda_ins=0.5,
            base=(base,),
            bank=bank,
            kl=_instructed(f"{base.output}/final"),
            held_out=10,
        )

    pair = bed("def"), bed("def2pos")
    decoder = Stage("metatrain", "configs/micro/decoder-only.yaml", (), "runs/micro-decoder-only")
    return Beds(
        sni=(pair,),
        p3=(replace(pair[0], column="synthetic tasks"),),
        ablated=pair,
        tuned=pair,
        varied=((pair[0], (6, 15, 23)),),
        trend=pair[0],
        notes=(
            "Ours are exact match on synthetic tasks, which the paper has not: compare the order of rows, no number.",
            "What stands for the untrained language model was metatrained on the synthetic tasks, from scratch.",
        ),
        decoders={"Def": Entry((decoder,), SYNTHETIC)},
    )


def nano(data: str) -> Beds:
    """The real data on the small T5 of docs/results/nano.md, and on SmolLM2 with the default's config."""
    t5, smollm2 = _pair(_nano_t5, data), _pair(_nano_smollm2, data)
    p3 = _nano_t5(data, "p3", "def"), _nano_smollm2(data, "p3", "def")
    return Beds(
        sni=(t5, smollm2),
        p3=p3,
        ablated=(*t5, p3[0], *smollm2, p3[1]),
        tuned=(*t5, p3[0]),
        varied=((smollm2[0], (6, 15, 30, 33)), (p3[1], (5, 10, 20, 36))),
        trend=smollm2[0],
        notes=(
            "Ours are of small models and few steps: T5 from scratch (its untrained row is metatrained for 1,000 "
            "steps), and SmolLM2-135M-Instruct, frozen, whose metatrained row is one LoRA for all tasks.",
            "The teacher of L_kl reads the instruction in its prompt, on P3 too, where the paper has FiD-ICL.",
        ),
    )


def _pair(make: Callable[[str, Benchmark, runs.Setting], Bed], data: str) -> Pair:
    return make(data, "sni", "def"), make(data, "sni", "def2pos")


def _nano_t5(data: str, benchmark: Benchmark, setting: runs.Setting) -> Bed:
    config, shots = f"configs/{benchmark}/systems.yaml", SETTINGS[setting]
    path, name = f"data.path={data}/{benchmark}", _name("nano-t5", benchmark, setting)
    shown = (f"prompt.demonstrations={shots}", "prompt.max_instruction=384") if shots else ()
    start = (
        "stage=metatrain", "method=metatrain", "training.trainable=[backbone]",
        f"training.steps={NANO_STEPS['base']}", path,
    )  # fmt: skip
    base = Stage("metatrain", f"configs/{benchmark}/tagi-nano.yaml", start, f"runs/{benchmark}-base")
    bank = (
        "stage=teachers", "method=no_instruction", "teachers={group: category, rank: 8, parallel: 16}",
        "training.tasks_per_batch=1", "training.lr=3.0e-3", path,
    )  # fmt: skip
    alone = Stage("teachers", config, bank, f"runs/{benchmark}-bank")
    pretrain = (
        "stage=pretrain", "method=tagi", "training.trainable=[hypernetwork,fusion]", _c4(data),
        f"bank={alone.output}/final", "training.rows_per_task=1", "training.hypernetwork_lr_scale=0.6",
    )  # fmt: skip
    return Bed(
        name,
        _column("T5", benchmark, shots),
        benchmark,
        _evaluation(data, benchmark, 50),
        {
            "metatrain": (config, (path, *shown)),
            "teachers": (config, bank),
            "pretrain": (config, pretrain),
            "finetune": (config, ("stage=finetune", path, *shown)),
        },
        shots=shots,
        lambda_ins=0.5,
        base=(base,),
        bank=alone,
        kl=_instructed(f"{base.output}/final"),
        many=("prompt.demonstrations=16", "prompt.max_instruction=512"),
        held_out=40,
    )


def _nano_smollm2(data: str, benchmark: Benchmark, setting: runs.Setting) -> Bed:
    config, shots = "configs/default.yaml", SETTINGS[setting]
    name = _name("nano-smollm2", benchmark, setting)
    held_out = 8 if benchmark == "sni" else 2
    source = f"{{source: {benchmark}, path: {data}/{benchmark}, max_instances: 100, valid_tasks: {held_out}}}"
    generator = "hypernetwork.generator=mlp", "hypernetwork.rank=8"  # as the paper's, which a bank can teach
    common = *generator, f"data={source}", "data.valid_instances=3", f"training.steps={NANO_STEPS['finetune']}"
    shown = (f"prompt.demonstrations={shots}", "prompt.max_instruction=512") if shots else ()
    bank = (
        "stage=teachers", "method=no_instruction", *common, f"training.steps={NANO_STEPS['teachers']}",
        f"teachers={{group: category, rank: 8, parallel: 4, target_modules: {_EVERY_MODULE}}}",
        "training.tasks_per_batch=1",
    )  # fmt: skip
    alone = Stage("teachers", config, bank, f"runs/nano-smollm2-{benchmark}-bank")
    pretrain = (
        "stage=pretrain", "method=tagi", *generator, _c4(data), f"bank={alone.output}/final",
        f"training.steps={NANO_STEPS['pretrain']}", "training.rows_per_task=1", "training.lr=3.0e-4",
    )  # fmt: skip
    bed = Bed(
        name,
        _column("SmolLM2", benchmark, shots),
        benchmark,
        _evaluation(data, benchmark, 20),
        {
            "metatrain": (
                config,
                ("stage=metatrain", "method=prompt_lora", "training.trainable=[hypernetwork]", *common, *shown),
            ),
            "teachers": (config, bank),
            "pretrain": (config, pretrain),
            "finetune": (config, (*common, *shown)),
        },
        shots=shots,
        lambda_ins=0.5,
        bank=alone,
        pretrained=("backbone=null",),
        has_encoder=False,
        many=("prompt.demonstrations=16", "prompt.max_instruction=1024"),
        held_out=20,
    )
    teacher = bed.stage("metatrain", "metatrain", 0)
    return replace(bed, teacher=teacher, kl=_instructed(f"{teacher.output}/final"))


def paper(data: str) -> Beds:
    """Table 6's runs (`tagi runs`), and the other systems by their configs."""
    sizes: tuple[runs.SniSize, ...] = ("base", "xl", "xxl")
    sni = tuple((_paper_sni(data, size, "def"), _paper_sni(data, size, "def2pos")) for size in sizes)
    families: tuple[runs.Family, ...] = ("t5lm", "t0")
    p3 = tuple(_paper_p3(data, size, family) for family in families for size in runs.T0)
    return Beds(
        sni=sni,
        p3=p3,
        ablated=(*sni[1], p3[2]),
        tuned=(*sni[0], p3[0]),
        varied=((sni[0][0], (6, 15, 30, 60)), (p3[0], (5, 10, 20, 36))),
        trend=sni[2][0],
        notes=(
            "Decoder-only models and Full FT are not among our runs at this scale.",
            "What the paper leaves open of a run is said in tagi.repro.runs.",
        ),
    )


def _paper_sni(data: str, size: runs.SniSize, setting: runs.Setting) -> Bed:
    name, shots, path = f"sni-{size}-{setting}", SETTINGS[setting], f"data.path={data}/sni"
    backbone, instruct = _published(str(runs.language_model(size).path), size), runs.TK_INSTRUCT.get((size, setting))
    # of XXL there are none in the paper but for Figure 4's few groups
    bank = ("sni-xl-def", (_published(str(instruct), size),)) if size == "xxl" else (name, ())
    bed = Bed(
        name,
        _column({"base": "Base", "xl": "XL", "xxl": "XXL"}[size], "sni", shots),
        "sni",
        _evaluation(data, "sni", None),
        {
            "metatrain": ("sni-base-def", (backbone, f"prompt.demonstrations={shots}", path)),
            "teachers": (bank[0], (*bank[1], f"prompt.demonstrations={shots}", path)),
            "pretrain": (name, (f"data.path={data}/c4",)),
            "finetune": (name, (path,)),
        },
        shots=shots,
        plain=("bank=null", "bank_base=null", "objective={}"),
        unpretrained=("start_from=null", backbone),
    )
    taught = None if instruct else bed.stage("metatrain", "metatrain", 0)
    bed = replace(bed, teacher=taught, bank_base=instruct or f"{bed.output('metatrain')}/final")
    return bed if size == "xxl" else replace(bed, bank=bed.stage("teachers", "teachers", 0))


def _paper_p3(data: str, size: runs.P3Size, family: runs.Family) -> Bed:
    name, path = f"p3-{size}-{family}", f"data.path={data}/p3"
    source = str(runs.language_model(size).path) if family == "t5lm" else runs.T0[size]
    lengths = "prompt={style: t0, max_instruction: 512, max_input: 512, max_prompt: 512, max_target: 64}"
    read = f"data={{source: p3, path: {data}/p3, max_instances: 1000}}", lengths
    bed = Bed(
        name,
        f"{'T5-LM' if family == 't5lm' else 'T0'} {'XL' if size == 'xl' else size.title()}",
        "p3",
        _evaluation(data, "p3", None),
        {
            "metatrain": ("sni-base-def", (_published(source, size), *read)),
            "teachers": (name, (path,)),
            "pretrain": (name, (f"data.path={data}/c4",)),
            "finetune": (name, (path,)),
        },
        plain=("bank=null", "objective={}"),
        unpretrained=("start_from=null", _published(source, size)),
        many=("prompt.demonstrations=16", "prompt.max_instruction=1024", "prompt.max_prompt=null"),
    )
    return replace(bed, bank=bed.stage("teachers", "teachers", 0))


def _name(kind: str, benchmark: Benchmark, setting: runs.Setting) -> str:
    return f"{kind}-{benchmark}" + (f"-{setting}" if benchmark == "sni" else "")


def _column(model: str, benchmark: Benchmark, shots: int) -> str:
    return f"{model}, P3" if benchmark == "p3" else f"{model}, {SHOWN[shots]}"


def _evaluation(data: str, benchmark: Benchmark, instances: int | None) -> tuple[str, ...]:
    """Arguments of `tagi eval`; at most so many rows of a task, and then three prompts of each of P3's."""
    few = ("--prompts", "3") if benchmark == "p3" and instances else ()
    rows = ("--instances", f"{min(instances, 40) if benchmark == 'p3' else instances}") if instances else ()
    return benchmark, "--data", f"{data}/{benchmark}", *few, *rows


def _instructed(checkpoint: str) -> tuple[str, ...]:
    """Eq. 5 from a model that reads the instruction in its prompt; weight and temperature as in configs/ablation."""
    return (
        "objective.lambda_kl=1.0",
        "objective.temperature=2.0",
        f"objective.teacher={{kind: instruct, checkpoint: {checkpoint}}}",
    )


def _c4(data: str) -> str:
    return f"data={{source: c4, path: {data}/c4, max_documents: 20000}}"


def _published(path: str, size: str) -> str:
    return f"backbone={{path: {path}, shape: t5-v1_1-{size}}}"


BEDS: Mapping[Scale, Callable[[str], Beds]] = {"micro": micro, "nano": nano, "paper": paper}
"""Given the folder that holds `sni`, `p3` and `c4`."""
