"""Time and weigh preparing tasks as long as SNI's test tasks, against plain passes of the language model."""

from argparse import Namespace
from collections.abc import Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.command import parser, run, show
from benchmarks.inference import READING
from benchmarks.lengths import sni_tasks
from benchmarks.models import DTYPES, TOKEN, Setup, prepared, shape_of
from benchmarks.timing import Case, Comparison, alternate
from tagi.backbones.encoded import EncodedInstruction
from tagi.data.collate import pad
from tagi.model.adapter import to_bytes
from tagi.model.tagi import TagiModel

TOGETHER = 16
"""Instructions in a pass, those of similar length together."""


def preparing(model: TagiModel, lengths: Sequence[int]) -> Comparison:
    """Preparing tasks with instructions of these lengths, all of them held until the last is there, against plain
    passes over the same batches, each padded to its longest."""
    batches = [pad([[TOKEN] * n for n in lengths[i : i + TOGETHER]]) for i in range(0, len(lengths), TOGETHER)]

    @torch.inference_mode()
    def read() -> list[EncodedInstruction]:
        return [model.backbone.read(ids, mask) for ids, mask in batches]

    def prepare() -> list[object]:
        return [prepared(model, ids, len(ids), mask) for ids, mask in batches]

    cases = {READING: read, model.method.name: prepare}
    return Comparison(f"preparing tasks: {len(lengths):,}", cases, len(lengths), "tasks")


def spread(lengths: Sequence[int], count: int) -> list[int]:
    """So many of the given lengths, evenly over all of them, the shortest first; one is the median."""
    ordered = sorted(lengths)
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def allocated(case: Case) -> tuple[int, int]:
    """Bytes that a case allocates above what was there before, temporaries included, as torch's allocator on the
    processor reports them: at the worst moment, and still held by the result."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        result = case()
    del result
    assert run.profiler is not None and run.profiler.kineto_results is not None
    events = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # type: ignore[attr-defined]
        peak = max(peak, held)
    return peak, held


@torch.inference_mode()
def file_bytes(model: TagiModel, length: int) -> int:
    """Size of the file of one task's adapter whose instruction has so many tokens."""
    ids = torch.full((1, length), TOKEN)
    return len(to_bytes(model.adapt(ids, torch.ones_like(ids))))


def main(asked: Namespace) -> None:
    """Compare numbers of tasks."""
    setup = Setup(shape_of(asked.shape), hidden=asked.hidden, dtype=DTYPES[asked.dtype])
    (model,) = setup.models("tagi")
    told = [one.instruction + one.shots * one.demonstration for one in sni_tasks(asked.shots)]
    compared = [preparing(model, spread(told, count)) for count in asked.tasks]
    alternate(compared, asked.rounds)
    memory: list[dict[str, object]] = []
    for one in compared:
        for name, case in one.cases.items():
            peak, kept = allocated(case)
            memory.append({"": one.title, "case": name, "at most": peak / 2**20, "kept of it": kept / 2**20})
    disk = [{"": "median instruction", "MiB": file_bytes(model, spread(told, 1)[0]) / 2**20}]
    show(asked, compared, {"memory, MiB": memory, "the adapter's file": disk})


OPTIONS = parser(__doc__, shape="t5-small", shots=0, hidden=128, tasks=(1, 16, 256), dtype="fp32", rounds=5)
if __name__ == "__main__":
    run(main, OPTIONS)
