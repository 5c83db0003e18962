"""The paper's tables and figures by their rows: the system, what the paper prints of it, and our runs of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from tagi.data.synthetic.micro_ops import FAMILIES
from tagi.errors import ConfigError
from tagi.repro import paper
from tagi.repro.beds import STEPS_SHOWN, Bed, Entry, Stage
from tagi.repro.scales import BEDS, Beds, Scale

Seeds = Sequence[int]
Cell = tuple[Entry, ...]
"""The runs of one score, one a seed; none where we have no such run."""
Make = Callable[[Bed, int], Entry | None]
HEADLINE = {"micro": "exact_match", "sni": "rouge_l", "p3": "mtest11"}


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a system, the paper's numbers and our runs."""

    label: str
    paper: paper.Values
    ours: tuple[Cell, ...]
    metric: tuple[str, ...]
    """What is read of each of our scores; see `tables.value`."""


@dataclass(frozen=True, slots=True)
class Block:
    """A table, or a part of one with columns of its own."""

    title: str
    paper_columns: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a figure."""

    label: str
    points: tuple[tuple[int, Cell], ...]
    """Where each stands, and its runs."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A part of a figure with axes of its own."""

    title: str
    x_label: str
    metric: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Experiment:
    """What one command shows."""

    title: str
    parts: tuple[Block, ...] | tuple[Panel, ...]
    notes: tuple[str, ...] = ()

    def entries(self) -> Iterator[Entry]:
        """Every run that it shows."""
        for part in self.parts:
            if isinstance(part, Block):
                cells = [cell for row in part.rows for cell in row.ours]
            else:
                cells = [cell for line in part.lines for _, cell in line.points]
            yield from chain.from_iterable(cells)

    def stages(self) -> list[Stage]:
        """Every stage that leads to them, each once, as they can run; a ConfigError where two have one output."""
        found: dict[str, Stage] = {}
        for entry in self.entries():
            for stage in entry.stages:
                if found.setdefault(stage.output, stage) != stage:
                    raise ConfigError(f"{stage.output}: two runs are to be written there")
        return list(found.values())


def experiment(name: str, scale: Scale, data: str, seeds: Seeds) -> Experiment:
    """A table or figure that is made of runs, as Tables 1 and 8 are not; `data` holds `sni`, `p3` and `c4`.

    Raises:
        ConfigError: a config file is not there.
    """
    return MADE[name](BEDS[scale](data), seeds)


def _cell(make: Make, bed: Bed, seeds: Seeds) -> Cell:
    return tuple(entry for seed in seeds if (entry := make(bed, seed)) is not None)


def _row(label: str, make: Make, beds: Sequence[Bed], seeds: Seeds, values: paper.Values) -> Row:
    cells = tuple(_cell(make, bed, seeds) for bed in beds)
    return Row(label, values, cells, tuple(HEADLINE[bed.benchmark] for bed in beds))


def _system(method: str) -> Make:
    return lambda bed, seed: bed.hypernetwork(method, seed)


def _icl(method: str) -> Make:
    return lambda bed, seed: bed.prompted(seed, *bed.many, method=method, what=method)


MAIN: Mapping[str, Make] = {
    "No FT": Bed.untrained,
    "Tk-Instruct": Bed.prompted,
    "Hypter": _system("hypter"),
    "HyperTuning": _system("hypertuning_lora"),
    "HINT": _system("hint"),
    "TAGI": Bed.tagi,
}
IN_CONTEXT: Mapping[str, Make] = {
    "Zero-shot": Bed.untrained,
    "Full FT": Bed.full_ft,
    "Metatrain": Bed.prompted,
    "Concat-ICL": _icl("concat_icl"),
    # a decoder-only model cannot encode demonstrations apart
    "FiD-ICL": lambda bed, seed: bed.hypernetwork("fid_icl", seed, *bed.many) if bed.has_encoder else None,
    "Ensemble-ICL": _icl("ensemble_icl"),
    "Hypter": _system("hypter"),
    "HINT": _system("hint"),
    "TAGI": Bed.tagi,
}
ABLATIONS: Mapping[str, Make] = {
    "HyperTuning": _system("hypertuning_lora"),
    "HINT": _system("hint"),
    "TAGI": Bed.tagi,
    "w/o pretraining": lambda bed, seed: bed.tagi(seed, pretrain=False, what="no-pretraining"),
    "w/o Instr. Fus.": lambda bed, seed: bed.tagi(seed, method="lora_only", what="no-fusion"),
    "w/o L_ce": lambda bed, seed: bed.tagi(seed, "objective.labels=false", what="no-ce"),
    "w/o L_kl": lambda bed, seed: bed.tagi(seed, "objective.lambda_kl=0", what="no-kl"),
    "w/o L_ins": Bed.unaligned,
}


def _table2(beds: Beds, seeds: Seeds) -> Experiment:
    published = paper.TABLE_2
    chosen = [pair[place] for place in (0, 1) for pair in beds.sni]
    rows = [_row(label, make, chosen, seeds, published.row(label)) for label, make in MAIN.items()]
    metric = rows[0].metric
    if beds.decoders:
        cells = tuple((beds.decoders[bed.column],) if bed.column in beds.decoders else () for bed in chosen)
        rows.insert(2, Row("decoder-only, from scratch", published.row(""), cells, metric))
    for label in ("OPT (13B)", "GPT-2 XL (1.5B)"):
        rows.insert(2, Row(label, published.row(label), ((),) * len(chosen), metric))
    block = Block(published.title, published.columns, tuple(bed.column for bed in chosen), tuple(rows))
    return Experiment("Table 2", (block,), (*beds.notes, "The paper's TAGI has no alignment in its XXL columns."))


def _table3(beds: Beds, seeds: Seeds) -> Experiment:
    columns = tuple(bed.column for bed in beds.p3)
    first = paper.TABLE_3
    rows = tuple(_row(label, make, beds.p3, seeds, first.row(label)) for label, make in IN_CONTEXT.items())
    blocks = [Block(first.title, first.columns, columns, rows)]
    if beds.p3[0].benchmark == "p3":
        second, systems = paper.TABLE_3_HYPERT5, {**IN_CONTEXT, **MAIN}
        made = [_row(label, systems[label], beds.p3, seeds, second.row(label)) for label in second.rows]
        hypert5 = ("hypert5",) * len(columns)
        blocks.append(Block(second.title, second.columns, columns, tuple(replace(one, metric=hypert5) for one in made)))
    return Experiment("Table 3", tuple(blocks), beds.notes)


def _table4(beds: Beds, seeds: Seeds) -> Experiment:
    published, chosen = paper.TABLE_4, beds.ablated
    rows = (_row(label, make, chosen, seeds, published.row(label)) for label, make in ABLATIONS.items())
    metric = tuple("hypert5" if bed.benchmark == "p3" else HEADLINE[bed.benchmark] for bed in chosen)
    made = tuple(replace(row, metric=metric) for row in rows)
    block = Block(published.title, published.columns, tuple(bed.column for bed in chosen), made)
    return Experiment("Table 4", (block,), beds.notes)


TUNED: Mapping[str, tuple[float, ...]] = {
    "training.lr": (0.5, 1.0, 3.0, 10.0),
    "hypernetwork.rank": (0.5, 1.0, 2.0),
    "training.steps": (0.75, 1.0, 1.25),
    "training.warmup": (0.5, 1.0, 1.5),
}
"""Table 7's columns, in their order, as multiples of the default."""


def _table7(beds: Beds, seeds: Seeds) -> Experiment:
    blocks: list[Block] = []
    multiples = [(field, factor) for field, factors in TUNED.items() for factor in factors]
    for bed in beds.tuned:
        setting = "P3" if bed.benchmark == "p3" else f"SNI, {'Def + 2 Pos.' if bed.shots else 'Def'}"
        labels = ("Metatrain" if bed.benchmark == "p3" else "Tk-Instruct"), "TAGI"
        published = [paper.TABLE_7.rows[f"{setting}, {label}"] for label in labels]
        rows: list[Row] = []
        for place, (column, (field, factor)) in enumerate(zip(paper.TABLE_7.columns, multiples, strict=True)):
            cells = (
                () if field == "hypernetwork.rank" else _cell(_tuned(Bed.prompted, field, factor), bed, seeds),
                _cell(_tuned_tagi(field, factor), bed, seeds),
            )
            label = f"{column} (×{factor:g})"
            rows.append(Row(label, tuple(one[place] for one in published), cells, (HEADLINE[bed.benchmark],) * 2))
        blocks.append(Block(f"{bed.column}; the paper's {setting}", labels, labels, tuple(rows)))
    said = "The labels are the paper's values; ours are the same multiples of our configs' own, underlined there: ×1."
    return Experiment("Table 7", tuple(blocks), (*beds.notes, said))


def _tuned(make: Make, field: str, factor: float) -> Make:
    """The last stage of a system with one of its numbers multiplied."""

    def made(bed: Bed, seed: int) -> Entry | None:
        entry = make(bed, seed)
        if entry is None or factor == 1.0:
            return entry
        return replace(entry, stages=(*entry.stages[:-1], multiplied(entry.stages[-1], field, factor)))

    return made


def _tuned_tagi(field: str, factor: float) -> Make:
    """Another rank needs a bank and pretraining of that rank."""
    if field != "hypernetwork.rank" or factor == 1.0:
        return _tuned(Bed.tagi, field, factor)

    def made(bed: Bed, seed: int) -> Entry:
        rank = int(bed.stage("pretrain", "pretrain", 0).run.hypernetwork.rank * factor)
        return bed.ranked(rank).tagi(seed, what=f"rank-{rank}")

    return made


def multiplied(stage: Stage, field: str, factor: float) -> Stage:
    """A stage with a number of its training multiplied, in a folder of its own."""
    before = getattr(stage.run.training, field.removeprefix("training."))
    after = max(1, round(before * factor)) if isinstance(before, int) else float(f"{before * factor:.4g}")
    name = field.rpartition(".")[2]
    return replace(stage, overrides=(*stage.overrides, f"{field}={after}"), output=f"{stage.output}-{name}-x{factor:g}")


def _table9(beds: Beds, seeds: Seeds) -> Experiment:
    blocks: list[Block] = []
    for bed in beds.p3:
        if bed.benchmark != "p3":  # by the family of a task's last operation, where the paper has nothing to compare
            columns = tuple(IN_CONTEXT)
            made = tuple(_cell(make, bed, seeds) for make in IN_CONTEXT.values())
            rows = [Row(name, (), made, (f"by_category.{name}",) * len(made)) for name in FAMILIES]
            blocks.append(Block(f"{bed.column}, by the last operation", (), columns, tuple(rows)))
            continue
        family, _, size = bed.column.partition(" ") if bed.column in paper.TABLE_3.columns else ("T5-LM", "", "Base")
        published = {
            "Zero-shot": family,
            "Full FT": f"{family} Full FT",
            "Metatrain": f"{family} Metatrain",
            "FiD-ICL": f"{family}-FiD",
            "TAGI": f"{family}-TAGI",
        }
        made = tuple(_cell(IN_CONTEXT[label], bed, seeds) for label in published)
        values = [paper.TABLE_9["", "Random"], *(paper.TABLE_9[size, name] for name in published.values())]
        rows = [
            Row(column, tuple(one[place] for one in values), made, (ours,) * len(made))
            for place, (column, ours) in enumerate(paper.TABLE_9_COLUMNS.items())
        ]
        title = f"{bed.column}; the paper's {family} {size}"
        blocks.append(Block(title, ("Random", *published), tuple(published), tuple(rows)))
    return Experiment("Table 9", tuple(blocks), beds.notes)


def _figure3(beds: Beds, seeds: Seeds) -> Experiment:
    panels: list[Panel] = []
    for bed, counts in beds.varied:
        with_all = {True: Bed.tagi, False: Bed.unaligned}
        lines: list[Line] = []
        for label, aligned in (("with alignment", True), ("without alignment", False)):
            some = ((count, _of_groups(count, aligned)) for count in counts[:-1])
            made = (*some, (counts[-1], with_all[aligned]))
            lines.append(Line(label, tuple((count, _cell(make, bed, seeds)) for count, make in made)))
        panels.append(Panel(bed.column, "groups of training tasks", HEADLINE[bed.benchmark], tuple(lines)))
    return Experiment("Figure 3", tuple(panels), (*beds.notes, _NO_NUMBERS))


def _of_groups(count: int, aligned: bool) -> Make:
    """TAGI on the tasks of so many groups."""
    changes, name = ((), "") if aligned else (("objective.lambda_ins=0",), "-no-ins")
    return lambda bed, seed: bed.tagi(seed, *bed.groups(count), *changes, what=f"groups-{count}{name}")


def _figure4(beds: Beds, seeds: Seeds) -> Experiment:
    bed = beds.trend
    metric, steps = HEADLINE[bed.benchmark], bed.unaligned(0).stages[-1].run.training.steps
    shown = [step for number in range(1, STEPS_SHOWN) if (step := steps // STEPS_SHOWN * number)]
    unaligned = _cell(Bed.unaligned, bed, seeds)
    by_step = [(step, tuple(replace(one, checkpoint=f"step-{step:08d}") for one in unaligned)) for step in shown]
    by_groups = [(n, tuple(bed.tagi(seed, aligned=n, what=f"aligned-{n}") for seed in seeds)) for n in (6, 15)]
    left = Line("without alignment", (*by_step, (steps, unaligned)))
    right = Line("TAGI", ((0, unaligned), *by_groups))
    panels = (
        Panel(f"{bed.column}, by step", "finetuning steps", metric, (left,)),
        Panel(f"{bed.column}, by alignment", "groups whose LoRAs are aligned with", metric, (right,)),
    )
    return Experiment("Figure 4", panels, (*beds.notes, _NO_NUMBERS))


_NO_NUMBERS = "The paper draws this figure without printing its numbers, so that none stand here."
MADE: Mapping[str, Callable[[Beds, Seeds], Experiment]] = {
    "table2": _table2,
    "table3": _table3,
    "table4": _table4,
    "table7": _table7,
    "table9": _table9,
    "figure3": _figure3,
    "figure4": _figure4,
}
