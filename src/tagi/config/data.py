"""What is learned from."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tagi.config.base import Frozen, P3Instruction, Place, Positive, Seed

SourceName = Literal["micro", "sni", "c4", "p3", "everyday", "corpus", "text", "mixture"]


class CorpusConfig(Frozen):
    """Plain text that a language model is trained on from scratch, and how it is cut into rows."""

    c4: Place | None = None
    """Folder of documents in C4's format."""
    sni: Place | None = None
    """Folder of Super-NaturalInstructions, whose training inputs are read."""
    p3: Place | None = None
    """Folder of P3, whose training inputs are read."""
    valid_documents: Annotated[int, Field(ge=0)] = 200
    """Documents of C4's validation part that a checkpoint's bits per byte are measured on."""
    length: Annotated[int, Field(ge=8)] = 512
    """Input tokens of a packed row."""
    target_length: Annotated[int, Field(ge=8)] = 128
    """Target tokens of a packed row of span corruption; a row of prefix LM has `length` of them too."""
    adapt: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Share of the steps, the last ones, that are prefix language modelling (LM adaptation)."""

    @model_validator(mode="after")
    def _some_text(self) -> Self:
        if self.c4 is None and self.sni is None and self.p3 is None:
            raise ValueError("names no text; give c4, sni or p3 (folders)")
        return self


class DataConfig(Frozen):
    """Training and validation tasks."""

    source: SourceName
    """`corpus`: plain text of several kinds, `corpus`; `text`: tasks over the documents of a folder in C4's format;
    `mixture`: several sources of tasks, `parts`."""
    path: Place | None = None
    """Folder of the data set (sni, c4, p3, everyday, text)."""
    parts: dict[str, "DataPart"] = Field(default_factory=dict)
    """Sources that share the turns of a mixture, by any name: `data.parts.NAME.path=…` addresses a field."""
    split: str = "default"
    """A folder of `splits/` (sni); 5, 10, 20, 36 (the default) or all (p3)."""
    language: str = "English"
    """Only tasks of this language, as their files name it; `non-english` or `all` (sni)."""
    part: Literal["train", "test"] = "train"
    """Whose tasks: `test` are the target tasks themselves, for Full FT."""
    only: tuple[str, ...] = ()
    """Only these tasks of that part; empty means all."""
    skip: Annotated[int, Field(ge=0)] = 0
    """Instances at the beginning of every task that are left out, since it is scored on them (part=test)."""
    instruction: P3Instruction = "template"
    """What a hypernetwork reads (p3)."""
    max_instances: Positive | None = 100
    """Instances per training task (sni) or template (p3)."""
    categories: Positive | None = None
    """Only the training tasks of so many categories, those with the most tasks (sni, Table 10: 6, 15, 30, 60;
    micro: families of last operations)."""
    balance: Literal["task", "category"] = "task"
    """What has equally many turns: every task, or every category, its tasks in turn (sni, p3, everyday)."""
    support: Literal["given", "drawn"] = "given"
    """Demonstrations of a training task: the examples that its file gives (Def + 2 Pos), or so many rows of its own
    as `prompt.demonstrations` says, drawn anew on every visit and then not asked (A.1's k support beside m query
    examples, which are `training.rows_per_task`); sni. The files of p3 and everyday give none, so that theirs are
    always drawn."""
    zero_shot: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of a training task's turns on which its demonstrations are left out, where any are shown."""
    valid_tasks: Annotated[int, Field(ge=0)] = 0
    """Validation tasks held out of training; data sets (p3); at least so many, in whole families (everyday)."""
    valid_instances: Positive = 10
    """Instances of each validation task that a checkpoint is scored on."""
    compositions: Positive = 2500
    """Two-step compositions in the training set (micro)."""
    max_documents: Positive | None = None
    """Documents of plain text (c4, text); None means all (c4) or the first 10,000 (text)."""
    seed: Seed = 0
    """Seed of the splits and of the generated tasks; the order of training has its own."""
    corpus: CorpusConfig | None = None
    """Plain text (corpus)."""

    @property
    def by_field(self) -> dict[str, "DataConfig"]:
        """The sources that tasks come from, by the fields that describe them: a mixture's parts, or this one."""
        return {f"data.parts.{name}": part for name, part in self.parts.items()} or {"data": self}

    def of_source(self, name: SourceName) -> "DataConfig | None":
        """What it says of one source; None where that is not among its own."""
        return next((one for one in self.by_field.values() if one.source == name), None)

    @model_validator(mode="after")
    def _has_folder(self) -> Self:
        if (self.source == "corpus") != (self.corpus is not None):
            raise ValueError("corpus: source=corpus and data.corpus belong together")
        if self.source not in ("micro", "corpus", "mixture") and self.path is None:
            raise ValueError(f"data.path is required for source={self.source}")
        if (self.source == "mixture") != bool(self.parts):
            raise ValueError("source=mixture needs parts, and nothing else has any")
        if self.balance == "category" and self.source not in ("sni", "p3", "everyday"):
            raise ValueError(f"balance=category needs a data set with categories, not source={self.source}")
        if self.zero_shot and self.source in ("c4", "corpus", "mixture"):
            raise ValueError(f"zero_shot is of tasks; source={self.source} has none (a mixture's parts have)")
        if self.support == "drawn" and self.source not in ("sni", "p3"):
            raise ValueError(f"support=drawn draws from a task's own rows, of sni or p3, not source={self.source}")
        if self.language != "English" and self.source != "sni":
            raise ValueError(f"language={self.language} chooses tasks of sni; source={self.source} states no languages")
        if self.part == "test" and not self.skip:
            raise ValueError("part=test trains on the target tasks; skip says how many instances are kept for scoring")
        return self


class DataPart(DataConfig):
    """One source of a mixture."""

    weight: Annotated[float, Field(gt=0.0)]
    """Of the turns, relative to the other parts; kept to a thousandth."""

    @model_validator(mode="after")
    def _can_be_mixed(self) -> Self:
        if self.source in ("c4", "mixture"):
            raise ValueError(f"source={self.source} cannot be part of a mixture; micro, sni, p3, everyday and text can")
        if self.part == "test":
            raise ValueError("part=test cannot be part of a mixture")
        return self


DataConfig.model_rebuild()
