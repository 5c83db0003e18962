"""What the adapter store costs with many registered tasks: a hit in memory, a hit on disk, a regeneration."""

import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from tagi.bench.models import Setup
from tagi.bench.timing import Comparison, Progress, Timing
from tagi.config import FusionConfig, HypernetworkConfig, PromptConfig, T5Shape
from tagi.data.synthetic import microtasks
from tagi.data.tokenizers import word_level
from tagi.infer.engine import Tagi
from tagi.infer.store import AdapterStore, StoreUse
from tagi.methods import get
from tagi.model.checkpoint import BACKBONE, ModelConfig, fingerprint

REGISTERED_TOGETHER = 1_000


@dataclass(frozen=True, slots=True)
class StoreBench:
    """A store after everything was registered and some of it was asked for."""

    tasks: int
    asked: int
    """Gets in all, at random."""
    register_s: float
    """Seconds to register one instruction, on average, a thousand together."""
    adapter_bytes: int
    memory_bytes: int
    """Of adapters in memory at the end."""
    disk_bytes: int
    """Of every file in the folder at the end."""
    process_bytes: int
    """Largest memory of the whole process, model included."""
    kept: int
    """Registered instructions that come back word for word."""
    use: StoreUse
    times: Comparison

    def as_json(self) -> dict[str, Any]:
        """All but the times as plain values."""
        return {name: value for name, value in asdict(self).items() if name != "times"}


def store_bench(
    shape: T5Shape,
    folder: Path,
    *,
    tasks: int,
    length: int,
    asked: int,
    rounds: int,
    rank: int,
    bounds: tuple[int, int],
    seed: int = 0,
    progress: Progress | None = None,
) -> StoreBench:
    """Register random instructions of `length` words, ask for some, then time each way to an adapter in turn.

    Args:
        bounds: bytes in memory and on disk.
    """
    rng = Random(seed)
    texts = [_text(rng, length) for _ in range(tasks)]
    with AdapterStore(_tagi(shape, rank), folder, memory_bytes=bounds[0], disk_bytes=bounds[1]) as store:
        began = time.perf_counter()
        keys: list[str] = []
        for start in range(0, tasks, REGISTERED_TOGETHER):
            keys += store.register_all(texts[start : start + REGISTERED_TOGETHER])
        each = (time.perf_counter() - began) / tasks
        for number in range(asked):
            store.get(keys[rng.randrange(tasks)])
            if progress is not None:
                progress(number + 1, asked)
        registered = len(store)
        times = _times(store, [_text(rng, length) for _ in range(rounds)])
        kept = sum(store.instruction(key).definition == text for key, text in zip(keys, texts, strict=True))
        return StoreBench(
            tasks=registered,
            asked=asked,
            register_s=each,
            adapter_bytes=store.get(keys[0]).nbytes,
            memory_bytes=store.held_bytes,
            disk_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            process_bytes=_largest(),
            kept=kept,
            use=store.use,
            times=times,
        )


def _text(rng: Random, length: int) -> str:
    return " ".join(rng.choices(microtasks.micro_vocabulary(), k=length))


def _times(store: AdapterStore, unseen: list[str]) -> Comparison:
    """Seconds of a generation, of the same adapter from disk, and from memory; by turns."""
    seconds: dict[str, list[float]] = {"generated": [], "from disk": [], "from memory": []}
    for text in unseen:
        key = store.register(text)
        seconds["generated"].append(_timed(store, key))
        store.forget(key)
        seconds["from disk"].append(_timed(store, key))
        seconds["from memory"].append(_timed(store, key))
    return Comparison("one adapter", tuple(Timing(name, tuple(each)) for name, each in seconds.items()))


def _timed(store: AdapterStore, key: str) -> float:
    began = time.perf_counter()
    store.get(key)
    return time.perf_counter() - began


def _tagi(shape: T5Shape, rank: int) -> Tagi:
    """TAGI of a shape with random weights, that reads words."""
    tokenizer = word_level(microtasks.micro_vocabulary())
    hypernetwork, fusion = HypernetworkConfig(rank=rank), FusionConfig()
    (model,) = Setup(shape, hypernetwork, fusion).models([get("tagi")])
    config = ModelConfig(
        method="tagi",
        hypernetwork=hypernetwork,
        fusion=fusion,
        prompt=PromptConfig(style="plain"),
        backbone=BACKBONE,
        backbone_fingerprint=fingerprint(model.backbone),
    )
    return Tagi(model, tokenizer, config)


def _largest() -> int:
    """Largest resident memory of this process so far; Linux counts in kilobytes, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
