"""A teacher's logits, computed once and kept on disk (Eq. 5).

A cache is a folder of `cache.json` (which teacher, temperature, how many tokens) and shards of safetensors. A row is
found by a hash of exactly what the teacher reads, has applied and predicts, so rows whose text or LoRA changed are
computed anew; a cache of another teacher or another setting is refused.
"""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tagi.backbones.files import read_safetensors
from tagi.config import Frozen, Positive
from tagi.config.files import parse
from tagi.data.collate import Batch
from tagi.errors import CheckpointError, ConfigError
from tagi.files import atomic_file, write_text
from tagi.losses import TokenDistribution, truncate, valid_positions
from tagi.train.objectives.distill import TaskIdentity, Teacher, same_for_all

MANIFEST = "cache.json"
FORMAT = 2
"""Of keys and shards; 1 left a task's LoRA out of its rows' keys."""
SHARD_VALUES = 4_000_000
"""Log-probabilities that are gathered in memory before a shard is written."""
_KEY = 16


class CacheIdentity(Frozen):
    """`cache.json`: everything besides a row's own text that its numbers depend on."""

    format: int = FORMAT
    teacher: str
    """Fingerprint of the teacher's tensors."""
    temperature: float
    top_k: Positive
    vocabulary: Positive


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one row lies: O target tokens from `start`."""

    file: Path
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class _Row:
    """One row in memory: (O, K), (O, K) or None, (O,) or None."""

    log_p: Tensor
    index: Tensor | None
    tail: Tensor | None


class LogitCache:
    """A teacher that asks another one only for rows that are not on disk yet."""

    def __init__(
        self, folder: Path, identity: CacheIdentity, teacher: Teacher, of_task: TaskIdentity = same_for_all
    ) -> None:
        """Open or begin a cache.

        Args:
            of_task: what a task's rows depend on besides their text.

        Raises:
            CheckpointError: the folder holds another teacher's logits, or is damaged.
            DiskError: it cannot be written.
        """
        self.folder, self.identity, self.teacher, self.of_task = folder, identity, teacher, of_task
        _check_or_begin(folder, identity)
        self._shards = {file: _shard(file, identity.top_k) for file in sorted(folder.glob("*.safetensors"))}
        self._places = dict(place for file, tensors in self._shards.items() for place in _places(file, tensors))
        self._new: dict[bytes, _Row] = {}

    def __call__(self, batch: Batch) -> TokenDistribution:
        """The distributions of a batch's rows, (R, O, K), zeros where no target is."""
        found = keys(batch, self.of_task)
        if any(key not in self._places and key not in self._new for key in found):
            self._add(batch, found)
        rows = [self._new[key] if key in self._new else self._read(self._places[key]) for key in found]
        return _padded(rows, batch.labels.shape[1])

    def flush(self) -> None:
        """Write what is in memory as a shard.

        Raises:
            DiskError: the disk is full or cannot be written.
        """
        if self._new:
            file = _write_shard(self.folder, self._new)
            self._shards[file] = _shard(file, self.identity.top_k)
            self._places |= dict(_places(file, self._shards[file]))
            self._new = {}

    @property
    def bytes_on_disk(self) -> int:
        """Size of all shards."""
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))

    def _add(self, batch: Batch, found: list[bytes]) -> None:
        """Ask the teacher for the whole batch; keep the rows that were missing."""
        kept = truncate(self.teacher(batch), self.identity.top_k).to(torch.device("cpu"))
        for number, (key, valid) in enumerate(zip(found, valid_positions(batch.labels).cpu(), strict=True)):
            if key not in self._places and key not in self._new:
                parts = (None if x is None else x[number][valid].clone() for x in (kept.log_p, kept.index, kept.tail))
                self._new[key] = _Row(*parts)  # type: ignore[arg-type]
        if sum(row.log_p.numel() for row in self._new.values()) >= SHARD_VALUES:
            self.flush()

    def _read(self, place: _Place) -> _Row:
        shard, tokens = self._shards[place.file], slice(place.start, place.start + place.length)
        if "index" not in shard:
            return _Row(shard["log_p"][tokens], None, None)
        return _Row(shard["log_p"][tokens], shard["index"][tokens].long(), shard["tail"][tokens])


def keys(batch: Batch, of_task: TaskIdentity) -> list[bytes]:
    """A hash for every row of what the teacher reads, has applied and predicts, padding left out."""
    prompt = batch.as_prompt()
    wears = [of_task(name) for name in batch.names]
    return [
        _key(wears[task], ids[mask.bool()], labels[valid])
        for task, ids, mask, labels, valid in zip(
            batch.task_index.tolist(),
            prompt.input_ids.cpu(),
            prompt.input_mask.cpu(),
            batch.labels.cpu(),
            valid_positions(batch.labels).cpu(),
            strict=True,
        )
    ]


def _key(wears: str, read: Tensor, predicted: Tensor) -> bytes:
    lengths = f"{wears} {len(read)} {len(predicted)} "  # where one part ends and the next begins
    content = lengths.encode() + read.numpy().tobytes() + predicted.numpy().tobytes()
    return blake2b(content, digest_size=_KEY).digest()


def _check_or_begin(folder: Path, identity: CacheIdentity) -> None:
    path = folder / MANIFEST
    if not path.exists():
        write_text(path, identity.model_dump_json(indent=2))
        return
    try:
        found = parse(CacheIdentity, json.loads(path.read_text(encoding="utf-8")), source=str(path))
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path}: is damaged or of another version ({error})") from error
    for name in CacheIdentity.model_fields:
        if (there := getattr(found, name)) != (asked := getattr(identity, name)):
            raise CheckpointError(f"{path}: {name}: is {there}, but this run needs {asked}; name another cache folder")


def _shard(file: Path, tokens: int) -> dict[str, Tensor]:
    """One shard, mapped from disk rather than read into memory."""
    tensors = read_safetensors(file)
    again = "remove this shard, it is computed again"
    if missing := {"keys", "lengths", "log_p"} - tensors.keys():
        raise CheckpointError(f"{file}: tensor {min(missing)} is missing; {again}")
    lengths, log_p = tensors["lengths"], tensors["log_p"]
    if len(tensors["keys"]) != len(lengths) or log_p.shape != (int(lengths.sum()), tokens):
        raise CheckpointError(f"{file}: its keys, lengths and log_p do not fit each other; {again}")
    return tensors


def _places(file: Path, tensors: dict[str, Tensor]) -> Iterator[tuple[bytes, _Place]]:
    start = 0
    for key, length in zip(tensors["keys"], tensors["lengths"].tolist(), strict=True):
        yield key.numpy().tobytes(), _Place(file, start, length)
        start += length


def _write_shard(folder: Path, rows: dict[bytes, _Row]) -> Path:
    file = folder / f"{uuid.uuid4().hex}.safetensors"
    lengths = [row.log_p.shape[0] for row in rows.values()]
    tensors = {
        "keys": torch.tensor([list(key) for key in rows], dtype=torch.uint8),
        "lengths": torch.tensor(lengths),
        "log_p": torch.cat([row.log_p for row in rows.values()]),
    }
    if all(row.index is not None for row in rows.values()):
        tensors["index"] = torch.cat([row.index for row in rows.values() if row.index is not None]).int()
        tensors["tail"] = torch.cat([row.tail for row in rows.values() if row.tail is not None])
    with atomic_file(file) as draft:
        save_file(tensors, draft)
    return file


def _padded(rows: list[_Row], length: int) -> TokenDistribution:
    """Rows of different lengths as one batch (R, O, K)."""
    log_p = torch.stack([_pad(row.log_p, length) for row in rows])
    indices = [row.index for row in rows if row.index is not None]
    tails = [row.tail for row in rows if row.tail is not None]
    if not indices:
        return TokenDistribution(log_p)
    index = torch.stack([_pad(one, length) for one in indices])
    return TokenDistribution(log_p, index, torch.stack([_pad(one, length) for one in tails]))


def _pad(x: Tensor, length: int) -> Tensor:
    return torch.cat([x, x.new_zeros(length - x.shape[0], *x.shape[1:])])
