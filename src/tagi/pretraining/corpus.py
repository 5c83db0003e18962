"""Plain text to train a language model on: C4-format documents and the inputs of training tasks, each text once,
without those that share words with a test row."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tagi.config import CorpusConfig
from tagi.data.sources.c4 import documents, list_files
from tagi.data.sources.p3_files import P3Dataset
from tagi.data.sources.sni_files import SniDataset
from tagi.errors import DataError

OVERLAP = 13
"""A document that shares so many words in a row with a test row is dropped (Brown et al., 2020, appendix C)."""
_WORD = re.compile(r"\w+")


class Document(NamedTuple):
    """One text and where it comes from."""

    source: str
    """c4, sni or p3."""
    name: str
    """Which of the source's texts: `3 of c4-train.…`, or a task's name and the row's id."""
    text: str


class Dropped(NamedTuple):
    """A document that shares words with a test row."""

    source: str
    name: str
    shared: str
    """The first run of words that it shares."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """The texts that are trained on, and what was left out."""

    documents: Sequence[Document]
    dropped: Sequence[Dropped]
    repeated: dict[str, int]
    """Texts by source that stood there before, word for word."""

    def counts(self) -> dict[str, dict[str, int]]:
        """Documents and characters kept, documents dropped and repeated, by source."""
        sources = {one.source for one in (*self.documents, *self.dropped)} | self.repeated.keys()
        found = {source: dict.fromkeys(("documents", "characters", "dropped"), 0) for source in sorted(sources)}
        for one in self.documents:
            found[one.source]["documents"] += 1
            found[one.source]["characters"] += len(one.text)
        for one in self.dropped:
            found[one.source]["dropped"] += 1
        return {source: counts | {"repeated": self.repeated.get(source, 0)} for source, counts in found.items()}


def read(config: CorpusConfig) -> Corpus:
    """Everything that a corpus config names; a DataError where a folder or file cannot be used, or no text is left."""
    tested = {run for text in test_texts(config) for run in word_runs(text)}
    seen: set[bytes] = set()
    kept: list[Document] = []
    dropped: list[Dropped] = []
    repeated: Counter[str] = Counter()
    for one in _documents(config):
        digest = hashlib.blake2b(one.text.encode(), digest_size=16).digest()
        if digest in seen:
            repeated[one.source] += 1
            continue
        seen.add(digest)
        shared = next((run for run in word_runs(one.text) if run in tested), None)
        if shared is None:
            kept.append(one)
        else:
            dropped.append(Dropped(one.source, one.name, " ".join(shared)))
    if not kept:
        raise DataError(Path(config.c4 or config.sni or config.p3 or "."), "", "holds no text to train on")
    return Corpus(kept, dropped, dict(repeated))


def word_runs(text: str, length: int = OVERLAP) -> Iterable[tuple[str, ...]]:
    """Every run of so many words of a text; case and everything between words are ignored."""
    words = _WORD.findall(text.lower())
    return zip(*(words[start:] for start in range(length)), strict=False)


def files_hash(config: CorpusConfig) -> str:
    """Hash of the names and sizes of all files in a corpus's folders: cheap, and a changed data set shows in it."""
    folders = [Path(folder) for folder in (config.c4, config.sni, config.p3) if folder is not None]
    files = [(folder, path) for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    said = [f"{path.relative_to(folder)} {path.stat().st_size}" for folder, path in files]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]


def test_texts(config: CorpusConfig) -> Iterator[str]:
    """Every text of the test rows: inputs and targets of SNI's test tasks, the fields of P3's held-out rows."""
    if config.sni is not None:
        dataset = SniDataset(Path(config.sni))
        for name in dataset.names("test"):
            for example in dataset.load(name).examples:
                yield example.input
                yield from example.targets
    if config.p3 is not None:
        yield from P3Dataset(Path(config.p3)).eval_texts()


def held_out(config: CorpusConfig) -> list[str]:
    """The first documents of C4's validation part, never trained on; none where there is no C4; see `list_files`."""
    if config.c4 is None or not config.valid_documents:
        return []
    files = list_files(Path(config.c4), "validation")
    return list(islice(documents(files), config.valid_documents))


def _documents(config: CorpusConfig) -> Iterator[Document]:
    if config.c4 is not None:
        for path in list_files(Path(config.c4), "train"):
            for number, text in enumerate(documents([path]), 1):
                yield Document("c4", f"{number} of {path.name}", text)
    if config.sni is not None:
        sni = SniDataset(Path(config.sni))
        rows = ((name, row) for name in sni.by_language(sni.names("train"))[0] for row in sni.load(name).examples)
        yield from (Document("sni", f"{name} {row.id}", row.input) for name, row in rows)
    if config.p3 is not None:
        p3 = P3Dataset(Path(config.p3))
        tasks = (task for one in p3.train_sets() for task in p3.train_tasks(one, limit=None))
        yield from (Document("p3", f"{task.name} {row.id}", row.input) for task in tasks for row in task.examples)
