"""What the paper's tables say, as printed (Liao et al., 2024), in percent. None: the paper has a dash.

Of Figures 3 and 4 it prints no numbers, so that none stand here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Values = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """A table: its columns, and a row for every system."""

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, Values]

    def row(self, label: str) -> Values:
        """A row; dashes where the paper has none of that label."""
        return self.rows.get(label, (None,) * len(self.columns))


TABLE_2 = Published(
    "RougeL on Super-Natural Instructions",
    (
        "Def, Base", "Def, XL", "Def, XXL", "Def + 2 Pos., Base", "Def + 2 Pos., XL", "Def + 2 Pos., XXL",
        "relative FLOPs",
    ),
    {
        "No FT": (8.8, 14.3, 26.2, 9.4, 13.6, 30.5, 1.0),
        "Tk-Instruct": (35.3, 48.0, 53.6, 42.1, 54.0, 62.0, 1.0),
        "GPT-2 XL (1.5B)": (None, 38.2, None, None, 45.3, None, 0.33),
        "OPT (13B)": (None, None, 44.8, None, None, 51.5, 0.36),
        "Hypter": (12.1, 16.8, 15.5, 10.6, 14.2, 13.4, 0.35),
        "HyperTuning": (None, 38.9, None, None, 48.6, None, 0.34),
        "HINT": (33.3, 47.2, 51.1, 41.8, 53.2, 56.4, 0.37),
        "TAGI": (35.3, 48.4, 52.3, 42.5, 56.3, 58.4, 0.39),
    },
)  # fmt: skip
"""TAGI's XXL columns are without alignment."""

_P3_SIZES = ("T5-LM Base", "T5-LM Large", "T5-LM XL", "T0 Base", "T0 Large", "T0 XL")
TABLE_3 = Published(
    "Accuracy on P3's held-out tasks, average over MTest11",
    (*_P3_SIZES, "relative time"),
    {
        "Zero-shot": (43.9, 41.5, 42.6, 49.1, 52.4, 57.6, 1.0),
        "Full FT": (44.6, 45.5, 47.2, 51.9, 56.6, 61.4, 1.0),
        "Metatrain": (44.1, 52.4, 53.1, 50.1, 52.4, 56.8, 1.0),
        "Concat-ICL": (44.2, 47.6, None, 48.6, 53.2, None, 4.1),
        "FiD-ICL": (47.0, 55.2, 60.0, 51.0, 53.4, 58.2, 1.9),
        "Ensemble-ICL": (44.6, 54.5, 52.6, 49.9, 53.7, 57.7, 13.2),
        "Hypter": (None, None, None, None, None, 56.2, None),
        "HINT": (None, None, None, None, None, 60.3, None),
        "TAGI": (45.6, 54.7, 58.9, 50.8, 53.8, 58.8, 0.88),
    },
)
TABLE_3_HYPERT5 = Published(
    "The same, average over HyperT5's tasks (without StoryCloze)",
    (*_P3_SIZES, "relative time"),
    {
        "FiD-ICL": (46.9, 55.8, 60.6, 51.7, 53.9, 58.5, 1.9),
        "HyperTuning": (None, 54.6, 59.6, None, None, None, None),
        "TAGI": (46.7, 56.0, 59.8, 51.7, 54.6, 59.2, 0.88),
    },
)

TABLE_4 = Published(
    "Ablations, T5-LM-XL",
    ("Def", "Def + 2 Pos.", "P3"),
    {
        "HyperTuning": (38.9, 48.6, 59.6),
        "HINT": (47.2, 53.2, 60.3),
        "TAGI": (48.4, 56.3, 60.6),
        "w/o pretraining": (47.1, 55.6, 58.3),
        "w/o Instr. Fus.": (35.1, 40.6, 44.2),
        "w/o L_ce": (47.6, 55.4, 59.8),
        "w/o L_kl": (45.7, 53.9, 57.3),
        "w/o L_ins": (47.5, 55.2, 59.4),
    },
)

TABLE_7 = Published(
    "Hyperparameters, T5-LM-Base",
    (
        "learning rate 5e-5", "learning rate 1e-4", "learning rate 3e-4", "learning rate 1e-3",
        "rank 16", "rank 32", "rank 64", "steps 15000", "steps 20000", "steps 25000",
        "warmup 0.01", "warmup 0.02", "warmup 0.03",
    ),
    {
        "SNI, Def + 2 Pos., Tk-Instruct": (
            41.3, 41.8, 42.2, 38.9, None, None, None, 41.4, 41.8, 42.1, 41.5, 41.8, 40.6),
        "SNI, Def + 2 Pos., TAGI": (42.1, 42.5, 40.3, 39.7, 41.8, 42.5, 42.3, 41.8, 42.5, 42.4, 42.3, 42.5, 41.9),
        "SNI, Def, Tk-Instruct": (35.0, 34.2, 32.6, 31.7, None, None, None, 34.4, 34.2, 34.5, 35.0, 34.2, 34.3),
        "SNI, Def, TAGI": (34.3, 35.3, 33.5, 31.8, 34.8, 35.3, 35.4, 34.2, 35.3, 35.4, 34.8, 35.3, 34.9),
        "P3, Metatrain": (43.3, 44.1, 43.6, 40.9, None, None, None, 44.0, 44.1, 44.3, 44.2, 44.1, 43.6),
        "P3, TAGI": (44.0, 45.6, 44.0, 41.6, 44.8, 45.6, 45.5, 44.3, 45.6, 45.2, 45.1, 45.6, 44.8),
    },
)  # fmt: skip

TABLE_8: Mapping[str, tuple[int, ...]] = {
    "Simple FT": (0, 0, 1, 1, 0, 0, 0, 0),
    "T0 / Tk-Instruct": (1, 0, 1, 1, 0, 0, 0, 3),
    "Hypter": (1, 0, 0, 0, 1, 1, 0, 1),
    "HyperTuning": (1, 1, 0, 0, 1, 1, 0, 1),
    "HINT": (1, 1, 1, 0, 1, 1, 0, 2),
    "TAGI": (1, 1, 1, 1, 1, 1, 1, 3),
}
"""Ticks, in the columns of `tagi.cli.methods.TABLE_8`. Table 1 is five of them."""

TABLE_9_COLUMNS = {
    "ANLI": "anli", "(R1)": "anli-r1", "(R2)": "anli-r2", "(R3)": "anli-r3", "HSwag": "hellaswag",
    "CB": "super_glue_cb", "COPA": "super_glue_copa", "RTE": "super_glue_rte", "WiC": "super_glue_wic",
    "WSC": "super_glue_wsc.fixed", "WGD": "winogrande_winogrande_xl", "SCloze": "story_cloze",
    "MTest11 avg.": "mtest11", "HyperT5 avg.": "hypert5",
}  # fmt: skip
"""As the paper and as `tagi eval p3` calls them."""
TABLE_9: Mapping[tuple[str, str], Values] = {
    ("", "Random"): (33.4, 33.4, 33.4, 33.4, 25.0, 50.0, 50.0, 52.7, 50.0, 63.5, 50.0, 50.0, 44.7, 46.8),
    ("Base", "T5-LM"): (33.4, 33.3, 33.5, 33.5, 24.7, 44.3, 54.3, 47.9, 49.7, 57.9, 49.8, 54.1, 43.9, 45.2),
    ("Base", "T5-LM Full FT"): (33.8, 34.5, 33.4, 33.5, 24.8, 66.5, 45.7, 51.1, 53.7, 46.3, 49.8, 50.9, 44.6, 46.5),
    ("Base", "T5-LM Metatrain"): (31.0, 30.3, 29.5, 33.1, 25.0, 40.5, 52.6, 51.2, 50.2, 58.4, 47.4, 66.6, 44.1, 44.6),
    ("Base", "T5-LM-FiD"): (33.0, 32.4, 33.1, 33.4, 26.7, 42.5, 58.8, 54.6, 51.1, 57.9, 50.3, 76.3, 47.0, 46.9),
    ("Base", "T5-LM-TAGI"): (32.1, 31.5, 31.7, 33.1, 25.0, 44.5, 54.7, 53.7, 52.3, 60.5, 50.8, 64.0, 45.6, 46.7),
    ("Base", "T0"): (32.3, 31.5, 32.4, 33.1, 26.5, 45.8, 65.9, 69.3, 51.6, 56.7, 51.2, 76.1, 49.1, 49.9),
    ("Base", "T0 Full FT"): (33.5, 32.6, 33.9, 33.9, 29.1, 73.2, 66.3, 68.0, 53.1, 50.9, 51.0, 79.0, 51.9, 53.1),
    ("Base", "T0 Metatrain"): (32.1, 31.5, 31.5, 33.2, 29.5, 50.4, 64.2, 68.2, 47.7, 61.6, 52.8, 80.8, 50.1, 50.8),
    ("Base", "T0-FiD"): (32.7, 31.7, 32.9, 33.6, 26.2, 54.9, 68.2, 68.1, 51.9, 60.3, 51.3, 82.3, 51.0, 51.7),
    ("Base", "T0-TAGI"): (32.7, 31.1, 31.9, 35.0, 29.8, 49.3, 67.1, 70.0, 49.0, 61.2, 54.4, 79.6, 50.8, 51.7),
    ("Large", "T5-LM"): (32.7, 32.1, 33.4, 32.7, 25.3, 33.8, 50.5, 49.0, 51.0, 50.4, 50.5, 47.8, 41.5, 42.9),
    ("Large", "T5-LM Full FT"): (34.1, 35.1, 33.6, 33.6, 26.1, 65.4, 47.1, 51.7, 53.5, 47.5, 49.9, 56.5, 45.5, 46.9),
    ("Large", "T5-LM Metatrain"): (31.3, 30.0, 30.5, 33.4, 27.0, 60.4, 77.6, 71.9, 47.0, 56.4, 54.8, 87.2, 52.4, 53.3),
    ("Large", "T5-LM-FiD"): (34.4, 33.9, 33.4, 35.8, 28.3, 60.2, 81.1, 72.6, 50.7, 63.7, 55.6, 91.6, 55.2, 55.8),
    ("Large", "T5-LM-TAGI"): (33.7, 33.5, 32.5, 35.1, 27.8, 62.9, 79.0, 76.1, 52.9, 57.9, 58.2, 86.2, 54.7, 56.0),
    ("Large", "T0"): (34.1, 32.2, 34.2, 36.0, 26.1, 56.8, 76.6, 65.3, 50.8, 56.4, 53.9, 88.4, 52.4, 52.5),
    ("Large", "T0 Full FT"): (35.3, 34.5, 35.4, 36.2, 33.1, 80.1, 80.8, 69.2, 54.1, 53.2, 56.3, 90.0, 56.6, 57.8),
    ("Large", "T0 Metatrain"): (32.9, 31.5, 31.8, 35.5, 24.5, 59.4, 77.0, 65.1, 48.8, 56.7, 57.6, 88.0, 52.4, 52.8),
    ("Large", "T0-FiD"): (33.4, 31.8, 32.8, 35.7, 26.1, 60.7, 77.6, 67.1, 52.1, 59.1, 54.7, 89.5, 53.4, 53.9),
    ("Large", "T0-TAGI"): (32.7, 31.5, 32.9, 36.6, 27.3, 61.3, 79.6, 68.7, 48.2, 59.9, 56.4, 89.4, 53.8, 54.6),
    ("Large", "HyperT5-Prefix"): (33.4, None, None, None, 32.3, 60.1, 73.9, 71.5, 51.1, 63.0, 51.1, None, None, 54.6),
    ("Large", "HyperT5-LoRA"): (33.6, None, None, None, 33.0, 49.5, 74.2, 67.4, 52.0, 64.0, 52.9, None, None, 53.3),
    ("XL", "T5-LM"): (32.7, 32.2, 33.4, 32.7, 24.6, 32.7, 53.1, 48.8, 50.8, 57.6, 50.9, 51.4, 42.6, 43.9),
    ("XL", "T5-LM Full FT"): (34.6, 35.5, 34.3, 33.9, 27.1, 67.8, 54.8, 50.7, 53.7, 47.7, 50.7, 63.3, 47.2, 48.4),
    ("XL", "T5-LM Metatrain"): (32.7, 31.5, 32.3, 34.3, 33.3, 59.5, 74.8, 69.5, 52.6, 53.8, 54.2, 88.4, 53.1, 53.8),
    ("XL", "T5-LM-FiD"): (39.3, 39.8, 37.6, 40.4, 31.4, 67.0, 92.3, 78.8, 50.4, 64.5, 61.2, 96.5, 60.0, 60.6),
    ("XL", "T5-LM-TAGI"): (37.7, 37.8, 36.1, 39.3, 32.0, 68.2, 89.4, 76.6, 53.6, 61.2, 59.6, 94.2, 58.9, 59.8),
    ("XL", "T0"): (38.0, 38.4, 35.7, 40.0, 26.5, 67.7, 82.2, 80.1, 53.5, 57.3, 57.8, 94.0, 57.6, 57.9),
    ("XL", "T0 Full FT"): (38.5, 37.5, 38.8, 39.2, 38.7, 81.9, 88.0, 80.1, 55.9, 59.5, 61.4, 95.0, 61.4, 63.0),
    ("XL", "T0 Metatrain"): (37.0, 37.3, 33.2, 40.4, 24.8, 66.9, 81.9, 78.9, 52.7, 60.2, 55.6, 92.8, 56.8, 57.3),
    ("XL", "T0-FiD"): (38.6, 39.0, 36.5, 40.5, 28.5, 62.9, 87.4, 74.6, 52.1, 62.7, 61.0, 95.5, 58.2, 58.5),
    ("XL", "T0-TAGI"): (38.7, 39.5, 35.6, 41.0, 26.5, 68.7, 87.8, 78.2, 52.2, 61.8, 59.8, 95.6, 58.8, 59.2),
    ("XL", "HyperT5-Prefix"): (38.7, None, None, None, 33.6, 69.6, 88.4, 79.5, 53.1, 57.6, 56.6, None, None, 59.6),
    ("XL", "HyperT5-LoRA"): (35.3, None, None, None, 30.8, 66.4, 83.3, 68.5, 50.3, 60.0, 56.1, None, None, 56.4),
}
"""By size and system; ANLI is the mean of its rounds but for HyperT5, which is quoted."""
