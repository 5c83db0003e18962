"""The LoRA bank: equal to separate runs of `peft`, whole after interruptions, refused where it does not fit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, T5ForConditionalGeneration

from builders import worst
from tagi.backbones.sites import Site
from tagi.config import RunConfig
from tagi.config.files import parse
from tagi.data import tokenizers
from tagi.data.collate import Batch
from tagi.data.synthetic.microtasks import micro_vocabulary
from tagi.errors import CheckpointError, ConfigError
from tagi.infer.export import from_bank
from tagi.losses import IGNORE
from tagi.model import bank as banks
from tagi.model import checkpoint
from tagi.model.bank import Bank
from tagi.train import optim
from tagi.train.build import build_stage
from tagi.train.objectives.distill import own_lora, same_for_all
from tagi.train.objectives.logits import keys
from tagi.train.teachers import BankStage, Plan, bank_stage, plan_teachers, train_teachers
from tagi.train.trainer import train
from training_runs import BACKBONES, BOTH, SHORT, logged
from training_runs import config as student_config

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
CLIPPED = 0.05
"""A norm that every step of these runs exceeds."""
GROUPS = ("any", "count", "reverse")


@pytest.fixture(scope="module", params=BACKBONES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose backbone the teachers are trained on."""
    settings = student_config(tmp_path_factory.mktemp("base") / "run", request.param, training__steps=1)
    return train(build_stage(settings), settings.training, Path(settings.output))


def settings(base: Path, output: Path, **teachers: Any) -> RunConfig:
    values: dict[str, Any] = {
        "stage": "teachers",
        "method": "no_instruction",
        "start_from": str(base),
        "prompt": {"style": "plain"} | SHORT,
        "data": {"source": "micro", "compositions": 20, "valid_tasks": 2},
        "teachers": {"rank": 2, "alpha": 4.0, "only": GROUPS, **teachers},
        "training": {
            "steps": 6, "tasks_per_batch": 1, "rows_per_task": 2, "lr": 1e-2, "checkpoint_every": 2,
            "warmup": 0.5,
        },
        "output": str(output),
    }  # fmt: skip
    return parse(RunConfig, values, source="test")


def run(chosen: RunConfig, **options: Any) -> Bank:
    plan = plan_teachers(chosen)
    folder = train_teachers(plan, **options)
    return banks.load(folder, plan.base.backbone)


def peft_run(plan: Plan, group: str, folder: Path) -> dict[Site, tuple[Tensor, Tensor]]:
    """The same teacher as an ordinary run of its own: `transformers`, `peft`, torch's AdamW and clipping."""
    torch.manual_seed(0)
    names, seq2seq = {site: plan.base.backbone.site_name(site) for site in plan.a0}, plan.base.backbone.has_encoder
    opened = (T5ForConditionalGeneration if seq2seq else AutoModelForCausalLM).from_pretrained(folder)
    model: Any = get_peft_model(opened, LoraConfig(r=2, lora_alpha=4, target_modules=list(names.values())))
    modules = {site: dict(model.base_model.model.named_modules())[name] for site, name in names.items()}
    with torch.no_grad():
        for site, a0 in plan.a0.items():
            modules[site].lora_A["default"].weight.copy_(a0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    training = plan.config.training
    optimizer = torch.optim.AdamW(parameters, lr=training.lr, betas=optim.BETAS, weight_decay=0.0)
    batches = bank_stage(plan, (group,)).batch
    for step in range(training.steps):
        for part in optimizer.param_groups:
            part["lr"] = training.lr * optim.learning_rate(step, training)
        batch: Batch = batches(step)
        logits = seq2seq_logits(model, batch) if seq2seq else causal_logits(model, batch)
        F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE).backward()
        assert float(torch.nn.utils.clip_grad_norm_(parameters, CLIPPED)) > CLIPPED  # clipping is at work
        optimizer.step()
        optimizer.zero_grad()
    return {s: (m.lora_A["default"].weight.detach(), m.lora_B["default"].weight.detach()) for s, m in modules.items()}


def seq2seq_logits(model: Any, batch: Batch) -> Tensor:
    return model(input_ids=batch.input_ids, attention_mask=batch.input_mask, labels=batch.labels).logits


def causal_logits(model: Any, batch: Batch) -> Tensor:
    """Of every target, each row by itself: input and target as one text."""
    rows: list[Tensor] = []
    for ids, mask, labels in zip(batch.input_ids, batch.input_mask, batch.labels, strict=True):
        text = torch.cat((ids[mask], labels[labels != IGNORE]))[None]
        logits = model(input_ids=text).logits[0, int(mask.sum()) - 1 : -1]
        rows.append(F.pad(logits, (0, 0, 0, len(labels) - len(logits))))
    return torch.stack(rows)


def test_the_bank_equals_separate_peft_runs(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three teachers, six clipped steps, changes of up to 4e-2; worst difference measured 3.3e-5 (in fp64 2.6e-5).

    AdamW divides by the gradient's own size, so that where a gradient is all but zero its rounding is what is left.
    """
    monkeypatch.setattr(optim, "MAX_NORM", CLIPPED)
    plan = plan_teachers(settings(base, tmp_path / "bank"))
    trained = banks.load(train_teachers(plan), plan.base.backbone)
    for group_index, group in enumerate(GROUPS):
        for site, (a, b) in peft_run(plan, group, base / "backbone").items():
            assert worst(trained.lora[site].a[group_index], a) < 1e-4
            assert worst(trained.lora[site].b[group_index], b) < 1e-4
            assert worst(a, plan.a0[site]) > 5e-3  # least measured 1.8e-2
            assert b.abs().max() > 5e-3  # least measured 2.9e-2


def test_waves_and_company_change_nothing(base: Path, tmp_path: Path) -> None:
    """All at once, one at a time, and added to a bank later; worst difference measured 2.5e-6, for the reason above."""
    together = run(settings(base, tmp_path / "one"))
    chunks = run(settings(base, tmp_path / "chunks", parallel=1))
    run(settings(base, tmp_path / "grown", only=GROUPS[:1]))
    grown = run(settings(base, tmp_path / "grown", only=GROUPS[1:]))
    assert [t.group for t in grown.manifest.teachers] == list(GROUPS)
    assert not (tmp_path / "chunks" / "chunks").exists()
    for other in (chunks, grown):
        for entry, expected in zip(other.manifest.teachers, together.manifest.teachers, strict=True):
            assert entry.tasks == expected.tasks
            assert entry.data_fingerprint == expected.data_fingerprint
            assert entry.loss == pytest.approx(expected.loss, rel=1e-6)  # worst 9.3e-8
        for site, factors in together.lora.items():
            assert worst(other.lora[site].a, factors.a) < 2e-5
            assert worst(other.lora[site].b, factors.b) < 2e-5


def test_retraining_one_teacher_leaves_the_others_alone(base: Path, tmp_path: Path) -> None:
    before = run(settings(base, tmp_path / "bank"))
    again = settings(base, tmp_path / "bank", only=["count"])
    after = run(again.model_copy(update={"training": again.training.model_copy(update={"steps": 3})}))
    assert {t.group: t.steps for t in after.manifest.teachers} == {"any": 6, "count": 3, "reverse": 6}
    for site in before.lora:
        for group in ("any", "reverse"):
            assert torch.equal(after.teacher(group)[site].b, before.teacher(group)[site].b)
        assert not torch.equal(after.teacher("count")[site].b, before.teacher("count")[site].b)


class Stop(Exception):
    """Stands for a crash."""


def test_an_interrupted_bank_goes_on_to_the_bit(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(settings(base, tmp_path / "whole", parallel=2))
    plan = plan_teachers(settings(base, tmp_path / "broken", parallel=2))
    steps = iter(range(100))
    ordinary = BankStage.counts

    def crash(self: BankStage, batch: Batch) -> dict[str, torch.Tensor]:
        if next(steps) == 9:  # in the second chunk
            raise Stop
        return ordinary(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(BankStage, "counts", crash)
        with pytest.raises(Stop):
            train_teachers(plan)
    assert not (tmp_path / "broken" / "final").exists()
    resumed = run(settings(base, tmp_path / "broken", parallel=2), resume=True)
    assert resumed.manifest == whole.manifest
    for site, factors in whole.lora.items():
        assert torch.equal(resumed.lora[site].a, factors.a)
        assert torch.equal(resumed.lora[site].b, factors.b)


def test_the_base_does_not_move_and_gradients_never_mix(base: Path, tmp_path: Path) -> None:
    stage = bank_stage(plan_teachers(settings(base, tmp_path / "x")), GROUPS)
    optim.freeze(stage.model, stage.parts)
    stage.loss(stage.model, stage.batch(0))["ce"].total[1].backward()
    assert all(p.grad is None for p in stage.model.base.parameters())
    for parameter in stage.model.bank.b:
        assert parameter.grad is not None
        assert float(parameter.grad[1].abs().max()) > 0
        assert float(parameter.grad[[0, 2]].abs().max()) == 0


@pytest.fixture
def bank(base: Path, tmp_path: Path) -> Path:
    run(settings(base, tmp_path / "bank"))
    return tmp_path / "bank" / "final"


def student(base: Path, bank: Path, output: Path, **changes: Any) -> RunConfig:
    objective = {"lambda_ins": 0.5, "lambda_kl": 1.0, "teacher": {"kind": "lora", "checkpoint": str(base)}}
    return student_config(
        output,
        backbone=None,
        start_from=str(base),
        bank=str(bank),
        **{"hypernetwork": {"rank": 2, "alpha": 4.0, "hidden": 4}, "objective": objective, **changes},
    )


def test_a_student_learns_from_labels_teachers_and_weights(base: Path, bank: Path, tmp_path: Path) -> None:
    """All three terms have a count of their own, and all are logged at every step."""
    chosen = student(base, bank, tmp_path / "student", method="lora_only")  # a new generator takes the bank's A₀
    stage = build_stage(chosen)
    assert [term.name for term in stage.terms] == ["ce", "kl", "ins"]
    assert stage.model.hypernetwork is not None
    start = banks.load(bank, stage.model.backbone).a0
    assert all(torch.equal(stage.model.hypernetwork.a0[site], start[site]) for site in stage.model.hypernetwork.sites)
    batch = stage.batch(0)
    terms = stage.loss(stage.model, batch)
    assert {name: int(term.count) for name, term in terms.items()} == {
        n: int(c) for n, c in stage.counts(batch).items()
    }
    train(stage, chosen.training, tmp_path / "student")
    assert all({"ce", "kl", "ins"} <= line.keys() for line in logged(tmp_path / "student"))


@pytest.mark.parametrize(
    ("name", "objective"),
    [("ce", {}), ("kl", {"labels": False, "lambda_kl": 1.0}), ("ins", {"labels": False, "lambda_ins": 1.0})],
)
def test_each_term_falls_when_it_is_trained_on_alone(
    name: str, objective: dict[str, Any], base: Path, bank: Path, tmp_path: Path
) -> None:
    """On one batch, before and after 30 steps, or 90 smaller ones of a decoder, which moves too far by large ones."""
    teacher = {"teacher": {"kind": "lora", "checkpoint": str(base)}} if name == "kl" else {}
    count, lr = (30, 1e-2) if checkpoint.load(base).model.backbone.has_encoder else (90, 3e-3)
    steps: dict[str, Any] = {"training__steps": count, "training__lr": lr, "training__checkpoint_every": count}
    chosen = student(base, bank, tmp_path / "run", method="lora_only", objective=objective | teacher, **steps)
    stage, taught = build_stage(chosen), banks.load(bank, checkpoint.load(base).model.backbone).group_of_task()
    batch = next(batch for batch in map(stage.batch, range(99)) if set(batch.names) & taught.keys())

    def loss() -> float:
        with torch.inference_mode():
            term = stage.loss(stage.model.eval(), batch)[name]
        assert int(term.count) > 0
        return float(term.total / term.count)

    before = loss()
    train(stage, chosen.training, tmp_path / "run")
    assert loss() < 0.9 * before  # measured 0.78 (ce), 0.48 (kl), 0.62 (ins); of a decoder 0.40 (kl), 0.65 (ins)


def test_a_cached_teacher_trains_the_same_student_to_the_bit(base: Path, bank: Path, tmp_path: Path) -> None:
    def final(name: str, cache: Path | None) -> dict[str, Tensor]:
        teacher = {"kind": "lora", "checkpoint": str(base), "cache": None if cache is None else str(cache)}
        objective = {"lambda_kl": 1.0, "temperature": 2.0, "teacher": teacher}
        chosen = student(base, bank, tmp_path / name, objective=objective)
        folder = train(build_stage(chosen), chosen.training, tmp_path / name)
        return checkpoint.load(folder).model.state_dict()

    online = final("online", None)
    for name in ("filling", "filled"):
        cached = final(name, tmp_path / "cache")
        assert all(torch.equal(online[key], cached[key]) for key in online)
    assert list((tmp_path / "cache").glob("*.safetensors"))


@BOTH
def test_an_instruct_teacher_reads_the_instruction(family: str, tmp_path: Path) -> None:
    metatrain = student_config(
        tmp_path / "instruct", family, stage="metatrain", method="metatrain", training__trainable=["backbone"]
    )
    instruct = train(build_stage(metatrain), metatrain.training, tmp_path / "instruct")
    objective = {"labels": False, "lambda_kl": 5.0, "temperature": 3.0}
    objective["teacher"] = {"kind": "instruct", "checkpoint": str(instruct)}
    stage = build_stage(student_config(tmp_path / "student", family, objective=objective))
    batch = stage.batch(0)
    assert batch.prompt_ids is not None
    assert batch.prompt_ids.shape[1] > batch.input_ids.shape[1]
    first = stage.loss(stage.model, batch)["kl"]
    other = stage.loss(stage.model, replace(batch, prompt_ids=batch.prompt_ids.roll(1, 0)))["kl"]
    assert list(stage.weights.items()) == [("kl", 5.0)]
    assert first.total > 0
    assert first.total != other.total


@pytest.mark.parametrize("kind", ["instruct", "fid", "lora"])
def test_a_teacher_of_another_vocabulary_is_refused(kind: str, base: Path, bank: Path, tmp_path: Path) -> None:
    """As many tokens, in another order: its distributions would be read as those of other words."""
    fid_on_a_decoder = kind == "fid" and not checkpoint.load(base).model.backbone.has_encoder
    sentence = "encodes demonstrations apart" if fid_on_a_decoder else "another vocabulary than the student"
    shutil.copytree(base / "backbone", tmp_path / "teacher")
    tokenizers.save(tokenizers.word_level(list(reversed(micro_vocabulary()))), tmp_path / "teacher")
    objective = {"lambda_kl": 1.0, "teacher": {"kind": kind, "checkpoint": str(tmp_path / "teacher")}}
    with pytest.raises(ConfigError, match=sentence):
        build_stage(student(base, bank, tmp_path / "run", objective=objective))


def test_a_bank_that_does_not_fit_is_refused(base: Path, bank: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"rank 2, but this run has rank 3|rank 2, the generator's 3"):
        build_stage(student(base, bank, tmp_path / "a", method="lora_only", hypernetwork={"rank": 3, "hidden": 4}))
    other = student_config(tmp_path / "other", training__steps=1, training__seed=7)
    elsewhere = train(build_stage(other), other.training, tmp_path / "other")
    with pytest.raises(CheckpointError, match="another language model"):
        build_stage(student(elsewhere, bank, tmp_path / "b"))
    objective = {"lambda_kl": 1.0, "teacher": {"kind": "lora", "checkpoint": str(elsewhere)}}
    with pytest.raises(CheckpointError, match="another model than"):
        build_stage(student(base, bank, tmp_path / "c", objective=objective))
    with pytest.raises(CheckpointError, match="another A₀"):
        build_stage(student(base, bank, tmp_path / "d", objective={"lambda_ins": 1.0, "align": "factors"}))
    with pytest.raises(ConfigError, match="generates no LoRA"):
        build_stage(student(base, bank, tmp_path / "e", method="fusion_only", objective={"lambda_ins": 1.0}))
    with pytest.raises(CheckpointError, match=r"bank\.json is missing"):
        build_stage(student(base, base, tmp_path / "f"))


def test_a_bank_for_none_of_the_tasks_is_refused(base: Path, bank: Path, tmp_path: Path) -> None:
    manifest = json.loads((bank / banks.MANIFEST).read_text())
    for teacher in manifest["teachers"]:
        teacher["tasks"] = [f"another {name}" for name in teacher["tasks"]]
    (bank / banks.MANIFEST).write_text(json.dumps(manifest))
    for objective in ({"lambda_ins": 1.0}, {"lambda_kl": 1.0, "teacher": {"kind": "lora", "checkpoint": str(base)}}):
        with pytest.raises(ConfigError, match=r"bank: .* has no LoRA for any of this run's training tasks"):
            build_stage(student(base, bank, tmp_path / "d", objective=objective))


def test_nothing_of_a_bank_depends_on_the_working_directory(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made of a relative path, exported from elsewhere, and after bank and language model were moved together."""
    shutil.copytree(base, tmp_path / "one/base")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    train_teachers(plan_teachers(settings(Path("base"), Path("bank"))))
    monkeypatch.chdir(tmp_path / "other")
    for root in (tmp_path / "one", tmp_path / "moved"):
        (tmp_path / "one").replace(root)
        (group, *_) = banks.read_manifest(root / "bank/final").teachers
        assert Path(from_bank(root / "bank/final", group.group, None).base) == root / "base/backbone"


def test_non_finite_or_unfit_banks_are_refused(base: Path, bank: Path, tmp_path: Path) -> None:
    """A bank whose files are another one's, of another rank or width, or damaged by a training that diverged."""
    model = checkpoint.load(base).model.backbone
    manifest = json.loads((bank / "bank.json").read_text())
    file = bank / "teachers" / manifest["teachers"][1]["file"]
    tensors = load_file(file)
    name = sorted(tensors)[0]
    for changed, message in (
        (tensors[name].repeat(2, 1), "has shape"),
        (tensors[name][:, :-1].contiguous(), "has shape"),
        (torch.full_like(tensors[name], torch.nan), "finite|NaN"),
        (tensors[name].index_fill(1, torch.tensor([0]), torch.inf), "finite|NaN"),
    ):
        save_file(tensors | {name: changed}, file)
        with pytest.raises(CheckpointError, match=f"{file.name}: tensor {name} .*({message})"):
            banks.load(bank, model)
    save_file(tensors, file)
    for changes, message in (
        ({"rank": 1}, "has shape"),
        ({"rank": 0}, "rank"),
        ({"scale": float("nan")}, "NaN"),
        ({"scale": -1.0}, "scale"),
        ({"teachers": []}, "teachers: there is none"),
    ):
        (bank / "bank.json").write_text(json.dumps(manifest | changes))
        with pytest.raises(CheckpointError, match=message):
            banks.load(bank, model)


def test_a_teacher_of_another_scale_or_reading_is_not_added_to_a_bank(base: Path, tmp_path: Path) -> None:
    """The manifest has one scale and one way of reading for all; the teachers that are there would be misread."""
    run(settings(base, tmp_path / "bank", only=GROUPS[:1]))
    with pytest.raises(CheckpointError, match=r"scale: is 2\.0, but this run has 4\.0"):
        plan_teachers(settings(base, tmp_path / "bank", only=GROUPS[1:], alpha=8.0))
    other = settings(base, tmp_path / "bank", only=GROUPS[1:])
    with pytest.raises(CheckpointError, match="reads: is no_instruction, but this run has metatrain"):
        plan_teachers(other.model_copy(update={"method": "metatrain"}))


def test_cached_logits_are_of_the_lora_of_the_task(base: Path, bank: Path, tmp_path: Path) -> None:
    """Rows of one text differ where another task has them, its LoRA was trained again, or it has none."""
    teacher = {"kind": "lora", "checkpoint": str(base), "cache": str(tmp_path / "cache")}
    chosen = student(base, bank, tmp_path / "x", objective={"lambda_kl": 1.0, "teacher": teacher})
    stage, model = build_stage(chosen), checkpoint.load(base).model.backbone
    loaded = banks.load(bank, model)
    groups = loaded.group_of_task()
    other = {
        group_index: next(task for task, own in groups.items() if own != group_index) for group_index in groups.values()
    }
    named = next(i for i in range(99) if any(name in groups for name in stage.batch(i).names))
    batch = stage.batch(named)
    whole = keys(batch, own_lora(loaded))
    swapped = tuple(other[groups[name]] if name in groups else name for name in batch.names)
    bare = tuple("nobody" for _ in batch.names)
    again = replace(loaded, lora={s: replace(f, b=f.b + 1e-3) for s, f in loaded.lora.items()})
    scaled = replace(loaded, manifest=loaded.manifest.model_copy(update={"scale": 1.0}))
    has_lora = [name in groups for name in batch.names]
    for found in (
        keys(replace(batch, names=swapped), own_lora(loaded)),
        keys(replace(batch, names=bare), own_lora(loaded)),
        keys(batch, own_lora(again)),
        keys(batch, own_lora(scaled)),
    ):
        changed = [one != two for one, two in zip(found, whole, strict=True)]
        assert changed == [has_lora[task] for task in batch.task_index.tolist()]
    assert keys(replace(batch, names=tuple(reversed(batch.names))), same_for_all) == keys(batch, same_for_all)


def test_requests_that_cannot_be_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="4 processes for 3 groups"):
        plan_teachers(settings(base, tmp_path / "a"), processes=4)
    with pytest.raises(ConfigError, match="'nothing' is no group"):
        plan_teachers(settings(base, tmp_path / "b", only=["nothing"]))
    run(settings(base, tmp_path / "c"))
    whole = settings(base, tmp_path / "c", only=[])
    with pytest.raises(CheckpointError, match="already holds a bank"):
        plan_teachers(whole)
    for field, values in (
        ("lambda_kl", {"lambda_kl": -1.0}),
        ("needs a teacher", {"lambda_kl": 1.0}),
        ("needs a LoRA bank", {"lambda_ins": 1.0}),
        ("every term is switched off", {"labels": False}),
        ("does not read", {"lambda_kl": 1.0, "teacher": {"kind": "fid", "checkpoint": str(base)}}),
    ):
        with pytest.raises(ConfigError, match=field):
            build_stage(student_config(tmp_path / "d", objective=values))
