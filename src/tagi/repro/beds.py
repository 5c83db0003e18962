"""Test beds: a language model, a data set and a setting, on which every system of the paper can be trained.

A stage is what `tagi train` is asked for, so that a command can be shown before it is run. Outputs are named by what is
in them, so that tables share their runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from tagi import methods
from tagi.config import RunConfig
from tagi.config.files import load
from tagi.repro import runs

Benchmark = Literal["micro", "sni", "p3"]
STEPS_SHOWN = 5
"""Checkpoints of the run whose score is shown by step (Figure 4)."""


@dataclass(frozen=True)
class Stage:
    """One training stage, as `tagi train` is asked for it."""

    stage: str
    config: str
    """A file, or a named run."""
    overrides: tuple[str, ...]
    output: str

    @property
    def arguments(self) -> list[str]:
        """Of the command line."""
        named = f"{self.stage}." if self.config in runs.RUNS else ""  # there `output` would move the whole run
        return ["train", self.stage, "--config", self.config, *self.overrides, f"{named}output={self.output}"]

    @cached_property
    def run(self) -> RunConfig:
        """The config that the command gives; a ConfigError where the file is not there, or an override does not fit."""
        overrides = self.arguments[4:]
        if self.config in runs.RUNS:
            return runs.named(self.config, overrides, stage=self.stage)[self.stage]
        return load(Path(self.config), overrides)


@dataclass(frozen=True, slots=True)
class Entry:
    """A trained system, and how it is scored."""

    stages: tuple[Stage, ...]
    """In the order in which they run; the last one's checkpoint is scored."""
    evaluation: tuple[str, ...]
    """Arguments of `tagi eval`."""
    checkpoint: str = "final"


@dataclass(frozen=True)
class Bed:
    """What all systems of one column share. Overrides are of `tagi train`."""

    name: str
    """Its runs are in runs/NAME."""
    column: str
    benchmark: Benchmark
    evaluation: tuple[str, ...]
    templates: Mapping[str, tuple[str, tuple[str, ...]]]
    """By stage: its config and overrides."""
    shots: int = 0
    """Demonstrations beside the definition: 0 is Def, 2 is Def + 2 Pos."""
    lambda_ins: float = 1.0
    base: tuple[Stage, ...] = ()
    """What every system starts from, where that is trained by us."""
    bank: Stage | None = None
    bank_base: str | None = None
    """The language model under the bank, where that is not the student's."""
    kl: tuple[str, ...] = ()
    """Makes finetuning learn from a teacher's logits, where its config does not say so already."""
    teacher: Stage | None = None
    """The stage that trains this teacher, where that is not the base."""
    plain: tuple[str, ...] = ()
    """Makes finetuning learn from labels alone, where its config says otherwise."""
    unpretrained: tuple[str, ...] = ()
    """Makes finetuning start from the language model, where its config says otherwise."""
    pretrained: tuple[str, ...] = ()
    """What starting from a pretrained hypernetwork changes beside `start_from`."""
    many: tuple[str, ...] = ("prompt.demonstrations=16",)
    """Makes a method of in-context learning read so many demonstrations."""
    has_encoder: bool = True
    variant: str = ""
    """What its bank and pretraining differ in from those of the bed's name."""
    held_out: int = 0
    """Rows of a target task that are scored, and that Full FT leaves out; 0: there is no Full FT."""

    def stage(self, stage: str, what: str, seed: int, *changes: str) -> Stage:
        """A stage of this bed with overrides on its template's."""
        config, overrides = self.templates[stage]
        seeded = (f"training.seed={seed}",) if seed else ()
        return Stage(stage, config, (*overrides, *changes, *seeded), self.output(what, seed))

    def output(self, what: str, seed: int = 0) -> str:
        """Where something of this bed lies."""
        return f"runs/{self.name}/{what}" + (f"-{seed}" if seed else "")

    def entry(self, *stages: Stage | None, evaluation: tuple[str, ...] = ()) -> Entry:
        """A system by its stages, those that all start from before them."""
        return Entry((*self.base, *filter(None, stages)), (*self.evaluation, *evaluation))

    def untrained(self, seed: int) -> Entry:
        """The language model as it starts: the base, or the one under TAGI, whose checkpoint holds it unchanged."""
        if self.base:
            return self.entry(evaluation=("--demonstrations", f"{self.shots}"))
        return replace(self.tagi(seed), evaluation=(*self.evaluation, "--instruction", "prompt"))

    def prompted(self, seed: int, *changes: str, method: str = "", what: str = "") -> Entry:
        """A system that reads its instruction in the prompt; by default the one that stands for metatraining."""
        asked = _method(method) if method else ()
        return self.entry(self.stage("metatrain", what or "metatrain", seed, *asked, *changes))

    def full_ft(self, seed: int) -> Entry | None:
        """Trained on the target tasks' other rows, all tasks together."""
        if not self.held_out:
            return None
        target = "data.part=test", f"data.skip={self.held_out}"
        return self.prompted(seed, *target, method="full_ft", what="full-ft")

    def hypernetwork(self, method: str, seed: int, *changes: str) -> Entry:
        """A system that reads its instruction once and learns from labels alone; pretrained if it is defined so."""
        known, pretrain, start = methods.get(method), None, self.unpretrained
        if known.pretrained:
            parts = tuple(part for part in known.trainable if part != "backbone")
            off = (f"method={method}", "bank=null", "bank_base=null", _trainable(parts))
            pretrain = self.stage("pretrain", f"pretrain-{method}", seed, *off)
            start = self._from(pretrain)
        finetune = self.stage("finetune", method, seed, *_method(method), *self.plain, *start, *changes)
        return self.entry(pretrain, finetune)

    def tagi(
        self,
        seed: int,
        *changes: str,
        what: str = "finetune",
        method: str = "tagi",
        pretrain: bool = True,
        aligned: int | None = None,
    ) -> Entry:
        """TAGI with all of Eq. 6, or what overrides leave of it; `aligned` with the LoRAs of so many groups alone."""
        before = None
        if pretrain:
            name, own = (f"pretrain{self.variant}", ()) if method == "tagi" else (f"pretrain-{method}", _method(method))
            before = self.stage("pretrain", name, seed, *own)
        start = self._from(before) if before else self.unpretrained
        few = None
        if aligned is not None:
            few = self.stage("teachers", f"teachers-{aligned}", 0, *self.groups(aligned))
        ins, kept = self._alignment(few or self.bank), () if self.bank or few else self._kept
        finetune = self.stage("finetune", what, seed, *_method(method), *self.kl, *ins, *start, *kept, *changes)
        return self.entry(self.teacher, self.bank, few, before, finetune)

    def unaligned(self, seed: int) -> Entry:
        """TAGI without L_ins, its checkpoints kept, whose scores Figure 4 shows by step."""
        if self.bank is None:
            return self.tagi(seed)
        return self.tagi(seed, "objective.lambda_ins=0", *self._kept, what="no-ins")

    @cached_property
    def _kept(self) -> tuple[str, ...]:
        """Makes a run keep the checkpoints that Figure 4 scores."""
        every = max(1, self.stage("finetune", "finetune", 0).run.training.steps // STEPS_SHOWN)
        return f"training.checkpoint_every={every}", f"training.keep={STEPS_SHOWN}"

    def ranked(self, rank: int) -> "Bed":
        """The bed with LoRA of another rank: in the bank, in pretraining and in finetuning."""
        variant, size, bank = f"-rank-{rank}", f"hypernetwork.rank={rank}", self.bank
        if bank is not None:
            overrides = *bank.overrides, f"teachers.rank={rank}"
            bank = replace(bank, overrides=overrides, output=f"{bank.output}{variant}")
        (config, pretrain), (other, finetune) = self.templates["pretrain"], self.templates["finetune"]
        from_bank = () if bank is None else (f"bank={bank.output}/final",)
        changed = {"pretrain": (config, (*pretrain, size, *from_bank)), "finetune": (other, (*finetune, size))}
        return replace(self, bank=bank, templates={**self.templates, **changed}, variant=variant)

    def groups(self, count: int) -> tuple[str, ...]:
        """Makes a run learn from the tasks of so many groups, the largest."""
        return (f"data.split='{count}'",) if self.benchmark == "p3" else (f"data.categories={count}",)

    def _from(self, before: Stage) -> tuple[str, ...]:
        return *self.pretrained, f"start_from={before.output}/final"

    def _alignment(self, bank: Stage | None) -> tuple[str, ...]:
        if bank is None:
            return ()
        base = () if self.bank_base is None else (f"bank_base={self.bank_base}",)
        return f"bank={bank.output}/final", *base, f"objective.lambda_ins={self.lambda_ins}"


def _method(name: str) -> tuple[str, str]:
    """Makes a run train what a method trains."""
    return f"method={name}", _trainable(methods.get(name).trainable)


def _trainable(parts: tuple[str, ...]) -> str:
    return f"training.trainable=[{','.join(parts)}]"
