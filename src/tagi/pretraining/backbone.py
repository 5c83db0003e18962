"""A language model from scratch: its tokenizer, its corpus, and the batches that it learns from (span corruption, then
prefix language modelling)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random

from filelock import FileLock
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from tagi.backbones.files import read_safetensors
from tagi.config import CorpusConfig, Frozen, RunConfig
from tagi.config.files import read_json
from tagi.data import tokenizers
from tagi.data.segments import TokenStore
from tagi.errors import CheckpointError, ConfigError
from tagi.files import atomic_folder, explained
from tagi.pretraining import corpus as corpora
from tagi.pretraining.corpus import Corpus
from tagi.pretraining.packing import PackedBatch, PackedText, prefix_lm, span_corruption

TEXT, TOKENS, ABOUT, DROPPED = "text", "tokens.safetensors", "corpus.json", "dropped.jsonl"
EXTRA_IDS = 100
"""Sentinels of T5's vocabularies."""
TOKENIZER_DOCUMENTS = 40_000
"""Documents that a tokenizer is trained on, at most."""


class About(Frozen):
    """`corpus.json`: what text a run or a checkpoint stands on."""

    corpus: CorpusConfig
    files: str
    """Hash of the names and sizes of all files."""
    sources: dict[str, dict[str, int]]
    """Documents and characters kept, documents dropped and repeated, by source."""
    tokens: int
    tokenizer: str
    """Hash of the vocabulary."""


@dataclass(frozen=True, slots=True)
class Text:
    """A corpus in tokens."""

    about: About
    tokenizer: PreTrainedTokenizerBase
    store: TokenStore


def read_text(config: RunConfig) -> Text:
    """The corpus of a run, read once and then kept in its output: `text/` holds tokenizer, tokens and what was dropped.

    Raises:
        TagiError: text or tokenizer cannot be used, the kept text is another than the config's, or the disk is full.
    """
    folder, chosen = Path(config.output) / TEXT, _corpus(config)
    if not folder.exists():
        with explained(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            held = FileLock(folder.parent / f".{TEXT}.lock").acquire()
        with held:  # one of several processes reads, the others wait for it
            if not folder.exists():
                with atomic_folder(folder) as draft:
                    _keep(config, chosen, draft)
    about, tokenizer = read_about(folder), tokenizers.load(folder)
    if corpora.files_hash(chosen) != about.files:  # how they are cut into rows may change
        raise CheckpointError(f"{folder}: the files of data.corpus have changed since; choose another output")
    kept = read_safetensors(folder / TOKENS)
    return Text(about, tokenizer, TokenStore(kept["tokens"].numpy(), kept["offsets"].numpy()))


def read_about(folder: Path) -> About:
    """What text a run's `text/`, or a checkpoint, stands on; a CheckpointError where that is missing or damaged."""
    return read_json(About, folder / ABOUT, "text or checkpoint of stage backbone")


def text_batches(config: RunConfig, text: Text, processes: int = 1) -> Callable[[int], PackedBatch]:
    """Batch number i of all `processes`: span corruption at first, prefix LM in the last `adapt` of the steps."""
    training = config.training
    rows = training.tasks_per_batch * training.rows_per_task
    spans = PackedText(text.store, span_corruption(_corpus(config), text.tokenizer), training.seed)
    prefixes = PackedText(text.store, prefix_lm(_corpus(config), text.tokenizer), training.seed + 1)
    turn = round(training.steps * (1.0 - _corpus(config).adapt)) * training.accumulation * processes

    def batch(index: int) -> PackedBatch:
        drawn, number = (spans, index) if index < turn else (prefixes, index - turn)
        return drawn.batch(number * rows, rows)

    return batch


def write_about(about: About, folder: Path) -> None:
    """What text a checkpoint stands on, into its folder."""
    (folder / ABOUT).write_text(about.model_dump_json(indent=2), encoding="utf-8")


def check_tokenizer(text: Text, checkpoint: Path) -> None:
    """Refuse (CheckpointError) a checkpoint with another tokenizer or corpus than this, or that does not say."""
    found = read_about(checkpoint)
    if (found.tokenizer, found.files, found.tokens) != (text.about.tokenizer, text.about.files, text.about.tokens):
        raise CheckpointError(f"{checkpoint / ABOUT}: tells of another tokenizer or corpus; go on with its own {TEXT}/")


def _corpus(config: RunConfig) -> CorpusConfig:
    assert config.data.corpus is not None
    return config.data.corpus


def _keep(config: RunConfig, chosen: CorpusConfig, folder: Path) -> None:
    """Read, choose, tokenize: everything that training needs of the text, into a folder."""
    corpus = corpora.read(chosen)
    dropped = "".join(json.dumps(one._asdict(), ensure_ascii=False) + "\n" for one in corpus.dropped)
    (folder / DROPPED).write_text(dropped, encoding="utf-8")
    tokenizer = _tokenizer(config, corpus)
    tokenizers.save(tokenizer, folder)
    store = TokenStore.of((one.text for one in corpus.documents), tokenizer)
    save_file({"tokens": store.tokens, "offsets": store.offsets}, folder / TOKENS)
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    about = About(
        corpus=chosen,
        files=corpora.files_hash(chosen),
        sources=corpus.counts(),
        tokens=len(store.tokens),
        tokenizer=sha256(vocabulary.encode()).hexdigest()[:16],
    )
    write_about(about, folder)


def _tokenizer(config: RunConfig, corpus: Corpus) -> PreTrainedTokenizerBase:
    """The one of the checkpoint that a run starts from, the config's, or one trained on the corpus."""
    if config.start_from is not None:
        return tokenizers.load(Path(config.start_from))
    assert config.backbone is not None
    if config.backbone.tokenizer == "unigram":
        assert config.backbone.shape is not None
        pieces = config.backbone.shape.vocab_size - EXTRA_IDS
        if pieces <= 0:
            raise ConfigError(f"backbone.shape.vocab_size: {EXTRA_IDS} of it are sentinels; it must be larger")
        count = len(corpus.documents)
        drawn = Random(0).sample(range(count), min(count, TOKENIZER_DOCUMENTS))
        return tokenizers.unigram((corpus.documents[i].text for i in drawn), pieces, extra_ids=EXTRA_IDS)
    return tokenizers.load(Path(str(config.backbone.tokenizer or config.backbone.path)))
