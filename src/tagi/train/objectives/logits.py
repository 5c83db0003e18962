"""A teacher's logits, computed once and kept on disk (Eq. 5).

A cache is a folder of `cache.json` (which teacher, temperature, how many tokens) and shards of safetensors. A row is
found by a hash of exactly what the teacher reads, has applied and predicts, so rows whose text or LoRA changed are
computed anew; a cache of another teacher or another setting is refused.
"""

import uuid
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tagi.backbones.files import read_safetensors
from tagi.config import Frozen, Positive
from tagi.config.files import read_json
from tagi.data.collate import Batch
from tagi.errors import CheckpointError
from tagi.files import atomic_file, write_text
from tagi.losses import TokenDistribution, truncate, valid_positions
from tagi.train.objectives.distill import TaskIdentity, Teacher, same_for_all

MANIFEST = "cache.json"
FORMAT = 2
"""Of keys and shards; 1 left a task's LoRA out of its rows' keys."""
SHARD_VALUES = 4_000_000
"""Log-probabilities that are gathered in memory before a shard is written."""


class CacheIdentity(Frozen):
    """`cache.json`: everything besides a row's own text that its numbers depend on."""

    format: int = FORMAT
    teacher: str
    """Fingerprint of the teacher's tensors."""
    temperature: float
    top_k: Positive
    vocabulary: Positive


class LogitCache:
    """A teacher that asks another one only for rows that are not on disk yet."""

    def __init__(
        self, folder: Path, identity: CacheIdentity, teacher: Teacher, of_task: TaskIdentity = same_for_all
    ) -> None:
        """Open or begin a cache; one of another teacher is a `CheckpointError`. `of_task` gives what the rows of a task
        depend on besides their text."""
        self.folder, self.identity, self.teacher, self.of_task = folder, identity, teacher, of_task
        self._kept: dict[bytes, tuple[dict[str, Tensor], slice]] = {}  # a row's shard, and its tokens there
        self._new: dict[bytes, TokenDistribution] = {}  # a row's (O, K), (O, K) or None, (O,) or None
        path = folder / MANIFEST
        if not path.exists():
            write_text(path, identity.model_dump_json(indent=2))
        there = read_json(CacheIdentity, path, "cache of logits")
        for name, asked in identity:
            if (found := getattr(there, name)) != asked:
                raise CheckpointError(
                    f"{path}: {name}: is {found}, but this run needs {asked}; name another cache folder"
                )
        for file in sorted(folder.glob("*.safetensors")):
            self._open(file)

    def __call__(self, batch: Batch) -> TokenDistribution:
        """The distributions of a batch's rows, (R, O, K), zeros where no target is."""
        found = keys(batch, self.of_task)
        if any(key not in self._kept and key not in self._new for key in found):
            self._add(batch, found)
        return _padded([self._row(key) for key in found], batch.labels.shape[1])

    def flush(self) -> None:
        """Write what is in memory as a shard."""
        if not self._new:
            return
        file, rows = self.folder / f"{uuid.uuid4().hex}.safetensors", list(self._new.values())
        tensors = {
            "keys": torch.tensor([list(key) for key in self._new], dtype=torch.uint8),
            "lengths": torch.tensor([len(row.log_p) for row in rows]),
            "log_p": torch.cat([row.log_p for row in rows]),
        }
        if rows[0].index is not None:
            tensors["index"] = torch.cat([row.index for row in rows if row.index is not None]).int()
            tensors["tail"] = torch.cat([row.tail for row in rows if row.tail is not None])
        with atomic_file(file) as draft:
            save_file(tensors, draft)
        self._open(file)
        self._new = {}

    def _open(self, file: Path) -> None:
        """Take in the rows of one shard, mapped from disk rather than read into memory."""
        tensors = read_safetensors(file)
        again = "remove this shard, it is computed again"
        if missing := {"keys", "lengths", "log_p"} - tensors.keys():
            raise CheckpointError(f"{file}: tensor {min(missing)} is missing; {again}")
        lengths, log_p = tensors["lengths"], tensors["log_p"]
        if len(tensors["keys"]) != len(lengths) or log_p.shape != (int(lengths.sum()), self.identity.top_k):
            raise CheckpointError(f"{file}: its keys, lengths and log_p do not fit each other; {again}")
        start = 0
        for key, length in zip(tensors["keys"], lengths.tolist(), strict=True):
            self._kept[key.numpy().tobytes()] = tensors, slice(start, start + length)
            start += length

    def _add(self, batch: Batch, found: list[bytes]) -> None:
        """Ask the teacher for the whole batch; keep the rows that were missing."""
        given = truncate(self.teacher(batch), self.identity.top_k).to(torch.device("cpu"))
        for number, (key, valid) in enumerate(zip(found, valid_positions(batch.labels).cpu(), strict=True)):
            if key not in self._kept and key not in self._new:
                parts = (None if x is None else x[number][valid] for x in (given.log_p, given.index, given.tail))
                self._new[key] = TokenDistribution(*parts)  # type: ignore[arg-type]
        if sum(row.log_p.numel() for row in self._new.values()) >= SHARD_VALUES:
            self.flush()

    def _row(self, key: bytes) -> TokenDistribution:
        if key in self._new:
            return self._new[key]
        shard, tokens = self._kept[key]
        if "index" not in shard:
            return TokenDistribution(shard["log_p"][tokens])
        return TokenDistribution(shard["log_p"][tokens], shard["index"][tokens].long(), shard["tail"][tokens])


def keys(batch: Batch, of_task: TaskIdentity) -> list[bytes]:
    """A hash for every row of what the teacher reads, has applied and predicts, padding left out."""
    prompt, applied = batch.as_prompt(), [of_task(name) for name in batch.names]
    tasks, ids, masks = batch.task_index.tolist(), prompt.input_ids.cpu(), prompt.input_mask.bool().cpu()
    labels, valid = batch.labels.cpu(), valid_positions(batch.labels).cpu()
    found: list[bytes] = []
    for row, task in enumerate(tasks):
        read, predicted = ids[row][masks[row]], labels[row][valid[row]]
        lengths = f"{applied[task]} {len(read)} {len(predicted)} "  # where one part ends and the next begins
        content = lengths.encode() + read.numpy().tobytes() + predicted.numpy().tobytes()
        found.append(blake2b(content, digest_size=16).digest())
    return found


def _padded(rows: list[TokenDistribution], length: int) -> TokenDistribution:
    """Rows of different lengths as one batch (R, O, K)."""

    def padded(each: list[Tensor]) -> Tensor:
        return torch.stack([torch.cat([x, x.new_zeros(length - len(x), *x.shape[1:])]) for x in each])

    log_p = padded([row.log_p for row in rows])
    if rows[0].index is None:
        return TokenDistribution(log_p)
    index = padded([row.index for row in rows if row.index is not None])
    return TokenDistribution(log_p, index, padded([row.tail for row in rows if row.tail is not None]))
