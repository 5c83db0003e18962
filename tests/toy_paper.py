"""What the paper's runs read, small enough for seconds: language models by their published names, SNI, P3 and C4.

All lies under one folder in the places that the named runs speak of, relative to the current folder.
"""

import json
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path

from test_p3 import RTE, write

from builders import seeded, small_decoder
from sni_folders import write_sni
from tagi.backbones.language_model import save_language_model
from tagi.backbones.t5.model import T5, initialise
from tagi.config import T5Shape
from tagi.data import tokenizers
from tagi.data.types import Demonstration, Example, Instruction, Task
from tagi.repro.runs import C4, P3, SNI, T0, TK_INSTRUCT, fid_icl, language_model

_WORDS = """
rain snow sun wind cloud storm river sea hill tree stone road house wolf dog plum
is the a of and so it wet name what say more premise hypothesis definition input output positive example
now complete following yes no 0 1 2 . , - : ? { }
"""
WORDS = _WORDS.split()
EXTRA_ROWS = 4
"""Rows of T5-LM's embedding that no token has; Tk-Instruct is published without them."""
SHAPE = {
    "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2,
    "activation": "gelu_new", "gated": True, "tied": False, "scale_outputs": False, "dropout_rate": 0.1,
    "vocab_size": len(tokenizers.SPECIAL_TOKENS) + len(WORDS) + EXTRA_ROWS,
}  # fmt: skip
"""Stands for every `t5-v1_1-*`: gated, untied, with dropout, as they are."""
SMOLLM2 = "toy-smollm2"
"""Stands for the bundled default's language model."""
DATA_SETS = ("imdb", "ag_news", "rotten_tomatoes", "samsum", "xsum")
"""Of P3's training part, one more than a chunk holds."""


def write_paper(folder: Path) -> None:
    """Everything that the named runs read, under a folder."""
    published = [language_model(size).path for size in ("base", "large", "xl", "xxl")]
    published += [*T0.values(), *(fid_icl(size, family) for size in T0 for family in ("t5lm", "t0"))]
    for seed, name in enumerate(published):
        _write_t5(folder / str(name), seed, SHAPE["vocab_size"])
    for seed, name in enumerate(TK_INSTRUCT.values(), len(published)):
        _write_t5(folder / name, seed, SHAPE["vocab_size"] - EXTRA_ROWS)
    decoder = small_decoder(vocab_size=SHAPE["vocab_size"], max_positions=2048)
    save_language_model(decoder, folder / SMOLLM2)
    tokenizers.save(tokenizers.word_level(WORDS), folder / SMOLLM2)
    write_sni(folder / SNI, _tasks("train", 30), _tasks("test", 3), instances=6)
    _write_p3(folder / P3)
    lines = [json.dumps({"text": " ".join(WORDS[(7 * i + j) % len(WORDS)] for j in range(20))}) for i in range(40)]
    write(folder / C4 / "c4-train.00000-of-00001.json", "\n".join(lines))


def _write_t5(folder: Path, seed: int, vocabulary: int) -> None:
    model = T5(T5Shape.model_validate(SHAPE | {"vocab_size": vocabulary}))
    initialise(model, seeded(seed))
    save_language_model(model, folder)
    tokenizers.save(tokenizers.word_level(WORDS), folder)


def _tasks(part: str, count: int) -> Iterator[Task]:
    """Tasks of six categories; instruction and input together are longer than Table 6's limit in one of them."""
    for number in range(count):
        examples = [Example(f"{i}", f"the {a} and the {b}", (b,)) for i, (a, b) in enumerate(pairwise(WORDS[:12]))]
        shown = tuple(Demonstration(f"the {a}", a) for a in WORDS[12:14])
        told = Instruction(f"say the {WORDS[number % 16]} . " * (number + 1), shown)
        yield Task(f"{part}{number:02}", told, (f"category {number % 6}",), examples)


def _write_p3(folder: Path) -> None:
    for data_set in DATA_SETS:
        write(folder / f"templates/{data_set}/templates.yaml", RTE)
        rows = [
            {"inputs_pretokenized": f"the {a} . so the {b} ?", "targets_pretokenized": b}
            for a, b in product(WORDS[:6], repeat=2)
        ]
        write(folder / f"train/{data_set}_say_more.jsonl", "\n".join(map(json.dumps, rows)))
    write(folder / "templates/super_glue/rte/templates.yaml", RTE)
    rows = [{"premise": f"the {word} .", "hypothesis": "it is", "label": i % 2} for i, word in enumerate(WORDS[:5])]
    write(folder / "eval/super_glue_rte.jsonl", "\n".join(map(json.dumps, rows)))
