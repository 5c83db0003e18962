"""Fill an adapter store and time a hit in memory, a hit on disk and a regeneration."""

import resource
import sys
import tempfile
import time
from argparse import Namespace
from dataclasses import asdict
from random import Random

from benchmarks.command import parser, run, show
from benchmarks.models import Setup, shape_of
from benchmarks.timing import Comparison
from tagi.cli.common import bar
from tagi.config import FusionConfig, HypernetworkConfig, PromptConfig
from tagi.data.synthetic.microtasks import micro_vocabulary
from tagi.data.tokenizers import word_level
from tagi.infer.engine import Tagi
from tagi.model.checkpoint import BACKBONE, ModelConfig, fingerprint
from tagi.serve.store import AdapterStore

WORDS = 79
"""Of an instruction."""
REGISTERED_TOGETHER = 1_000
MIB = 2**20


def engine(setup: Setup) -> Tagi:
    """TAGI with random weights, that reads words."""
    (model,) = setup.models("tagi")
    config = ModelConfig(
        method="tagi",
        hypernetwork=HypernetworkConfig(rank=setup.rank),
        fusion=FusionConfig(),
        prompt=PromptConfig(style="plain"),
        backbone=BACKBONE,
        backbone_fingerprint=fingerprint(model.backbone),
    )
    return Tagi(model, word_level(micro_vocabulary()), config)


def fill(store: AdapterStore, texts: list[str], asked: int) -> dict[str, object]:
    """Register instructions, ask for some at random; what is there then."""
    rng, keys = Random(1), list[str]()
    began = time.perf_counter()
    for start in range(0, len(texts), REGISTERED_TOGETHER):
        keys += store.register_all(texts[start : start + REGISTERED_TOGETHER])
    each = (time.perf_counter() - began) / len(texts)
    with bar("asking for adapters") as progress:
        for number in range(asked):
            store.get(rng.choice(keys))
            progress(number + 1, asked)
    kept = sum(store.instruction(key).definition == text for key, text in zip(keys, texts, strict=True))
    files = sum(file.stat().st_size for file in store.folder.rglob("*") if file.is_file())
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "instructions registered": len(store.keys()),
        "of them come back word for word": kept,
        "adapters in memory, MiB": store.held_bytes / MIB,
        "everything on disk, MiB": files / MIB,
        "the whole process at its largest, MiB": largest / MIB,
        "registering one, µs": each * 1e6,
    } | {f"given out: {name}": count for name, count in asdict(store.use).items()}


def three_ways(store: AdapterStore, unseen: list[str]) -> Comparison:
    """Seconds of a generation, of the same adapter from disk, and from memory; by turns."""
    seconds: dict[str, list[float]] = {"generated": [], "from disk": [], "from memory": []}
    for text in unseen:
        key = store.register(text)
        for way, each in seconds.items():
            if way == "from disk":
                store.forget(key)
            began = time.perf_counter()
            store.get(key)
            each.append(time.perf_counter() - began)
    return Comparison("one adapter", {}, seconds=seconds)


def main(asked: Namespace) -> None:
    """Fill a store in a temporary folder."""
    tasks, rng = asked.tasks, Random(0)
    texts = [" ".join(rng.choices(micro_vocabulary(), k=WORDS)) for _ in range(tasks + asked.rounds)]
    with tempfile.TemporaryDirectory() as folder, AdapterStore(engine(Setup(shape_of(asked.shape))), folder) as store:
        filled = fill(store, texts[:tasks], asked.asked)
        times = three_ways(store, texts[tasks:])
    show(asked, [times], {"the store": [{"": name, " ": value} for name, value in filled.items()]})


OPTIONS = parser(__doc__, shape="t5-small", tasks=100_000, asked=1_000, rounds=7)
if __name__ == "__main__":
    run(main, OPTIONS)
