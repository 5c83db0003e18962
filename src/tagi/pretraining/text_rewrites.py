"""Text tasks whose answer is the input itself, unchanged or with something changed that the instruction names."""

from collections.abc import Callable
from itertools import pairwise

from tagi.pretraining.passages import Passage, bare
from tagi.pretraining.text_kinds import PLACES, Draw, Kind, Row, answered, need, once, one_name

LONGEST_SMALL_WORD = 3
"""Letters of a lower-case word that a sentence is made around."""
LONGEST_SENTENCE = 16
"""Words of a sentence that is made of some of its words."""


def _any(draw: Draw) -> Passage:
    return draw.passage(1, 2)


def _question(draw: Draw) -> Passage:
    return draw.one_of(draw.passages.questions)


def _changed(change: Callable[[str], str], drawn: Callable[[Draw], Passage] = _any) -> Callable[[Draw], Row]:
    def row(draw: Draw) -> Row:
        passage = drawn(draw)
        return answered(passage, change(passage.text))

    return row


def _swapped_word(passage: Passage, old: str, new: str) -> Row:
    """Every `old` becomes `new`; what stands there in another case, or inside another word, is no row."""
    pieces = [bare(word) for word in passage.words]
    need(new not in pieces and all(old.lower() not in piece.lower() or piece == old for piece in pieces))
    words = [
        word.replace(old, new) if piece == old else word for word, piece in zip(passage.words, pieces, strict=True)
    ]
    return answered(passage, " ".join(words))


def _replace(draw: Draw) -> Row:
    return _swapped_word(draw.with_word(1, 2), draw.values.word, draw.values.other)


def _rename(draw: Draw) -> Row:
    passage, name = one_name(draw)
    return _swapped_word(passage, name, draw.values.name)


def _remove(draw: Draw) -> Row:
    passage = draw.with_word(1, 2)
    words, place = passage.words, once(passage.words, draw.values.word)
    need(words[place] == draw.values.word)  # no capital to give to the next word, no punctuation to keep
    return answered(passage, " ".join(words[:place] + words[place + 1 :]))


def _without_first_words(draw: Draw) -> Row:
    passage, count = draw.passage(), draw.values.count
    need(len(passage.words) > count + 2)
    return answered(passage, " ".join(passage.words[count:]))


def _without_sentence(draw: Draw) -> Row:
    passage, place = draw.passage(2, 3), PLACES[draw.values.place]
    need(len(passage.sentences) > place)
    kept = list(passage.sentences)
    del kept[place]
    return answered(passage, " ".join(kept))


def _other_order(draw: Draw) -> Row:
    passage = draw.passage(2, 2)
    need(passage.sentences[0] != passage.sentences[1])
    return answered(passage, " ".join(reversed(passage.sentences)))


def _add_word(draw: Draw) -> Row:
    passage = draw.passage()
    return answered(passage, f"{passage.text} {draw.values.word}")


def _joined(answer_first: bool) -> Callable[[Draw], Row]:
    def row(draw: Draw) -> Row:
        passage = draw.starting(draw.passages.questions, 2, 2)
        question, answer = passage.sentences
        need(not answer.endswith("?"))
        joined = f"{answer} {question}" if answer_first else f"{question} {answer}"
        return answered(passage, joined, f"Question: {question} Answer: {answer}")

    return row


def _spoiled(
    spoil: Callable[[Draw, list[str]], list[str]], drawn: Callable[[Draw], Passage] = _any
) -> Callable[[Draw], Row]:
    """Rows whose answer is the passage, and whose input is the passage with something wrong in it."""

    def row(draw: Draw) -> Row:
        passage = drawn(draw)
        text = " ".join(spoil(draw, list(passage.words)))
        need(text != passage.text)
        return answered(passage, passage.text, text)

    return row


def _some_doubled(draw: Draw, words: list[str]) -> list[str]:
    need(all(one.lower() != other.lower() for one, other in pairwise(words)))
    doubled = set(draw.rng.sample(range(len(words)), min(3, len(words) - 1)))
    return [word for place, word in enumerate(words) for _ in range(2 if place in doubled else 1)]


def _with_stranger(draw: Draw, words: list[str]) -> list[str]:
    (mismatched,) = draw.words(1, *map(bare, words))
    place = draw.rng.randrange(1, len(words))
    return [*words[:place], mismatched, *words[place:]]


def _two_swapped(draw: Draw, words: list[str]) -> list[str]:
    place = draw.rng.randrange(len(words) - 1)
    return [*words[:place], words[place + 1], words[place], *words[place + 2 :]]


def _small_letters(draw: Draw, words: list[str]) -> list[str]:
    del draw
    return [word.lower() for word in words]


def _somehow(draw: Draw, words: list[str]) -> list[str]:
    spoil = draw.rng.choice((_some_doubled, _with_stranger, _two_swapped, _small_letters))
    return spoil(draw, words)


def _content_words(draw: Draw) -> Row:
    passage = draw.passage()
    kept = [bare(word) for word in passage.words if len(bare(word)) > LONGEST_SMALL_WORD or not word.islower()]
    need(2 < len(kept) < len(passage.words) <= LONGEST_SENTENCE)
    return answered(passage, passage.text, ", ".join(kept))


KINDS = (
    Kind(
        "repeat",
        "rewrite",
        ("copy the text exactly as it is", "repeat the text word for word", "write the same text again"),
        _changed(str),
    ),
    Kind(
        "lower_case",
        "rewrite",
        ("write the text in lower case", "turn all capital letters into small letters"),
        _changed(str.lower),
    ),
    Kind(
        "replace",
        "rewrite",
        (
            'replace the word "{word}" by "{other}"',
            'write the text with "{other}" in place of "{word}"',
            'change "{word}" to "{other}" in the text',
        ),
        _replace,
        ("word", "other"),
    ),
    Kind(
        "rename",
        "rewrite",
        ("replace the name in the text by {name}", "write {name} where the text has another name"),
        _rename,
        ("name",),
    ),
    Kind(
        "remove",
        "rewrite",
        ('leave out the word "{word}"', 'write the text without the word "{word}"', 'delete "{word}" from the text'),
        _remove,
        ("word",),
    ),
    Kind(
        "without_first_words",
        "rewrite",
        ("leave out the first {count} words", "write the text without its first {count} words"),
        _without_first_words,
        ("count",),
    ),
    Kind(
        "without_sentence",
        "rewrite",
        ("leave out the {place} sentence", "write the text without its {place} sentence"),
        _without_sentence,
        ("place",),
    ),
    Kind(
        "other_order",
        "rewrite",
        ("write the two sentences in the other order", "put the second sentence before the first"),
        _other_order,
    ),
    Kind(
        "add_word",
        "rewrite",
        ('write the text and, after it, the word "{word}"', 'add the word "{word}" at the end of the text'),
        _add_word,
        ("word",),
    ),
    Kind(
        "question_answer",
        "rewrite",
        ("write the question and then the answer", "join question and answer into one text, the question first"),
        _joined(answer_first=False),
    ),
    Kind(
        "answer_question",
        "rewrite",
        ("write the answer and then the question", "join answer and question into one text, the answer first"),
        _joined(answer_first=True),
    ),
    Kind(
        "undoubled",
        "rewrite",
        ("write every word once that stands there twice in a row", "leave out what is said twice in a row"),
        _spoiled(_some_doubled),
    ),
    Kind(
        "without_stranger",
        "rewrite",
        ("leave out the word that does not belong there", "write the text without the word that came in by mistake"),
        _spoiled(_with_stranger),
    ),
    Kind(
        "swapped_back",
        "rewrite",
        ("put the two words right that have changed places", "swap the two neighbouring words that are out of order"),
        _spoiled(_two_swapped),
    ),
    Kind(
        "capitals",
        "rewrite",
        ("write the text with capital letters where they belong", "put the missing capital letters in"),
        _spoiled(_small_letters),
    ),
    Kind(
        "repeat_question",
        "rewrite",
        ("write the question again without an answer to it", "repeat the question instead of answering it"),
        _changed(str, _question),
    ),
    Kind(
        "mended_question",
        "rewrite",
        ("rewrite the question as it should be", "write the same question without the mistake in it"),
        _spoiled(_somehow, _question),
    ),
    Kind(
        "sentence_of",
        "rewrite",
        ("write a sentence with these words in this order", "make a whole sentence of the words, in their order"),
        _content_words,
    ),
)
"""Repeating and rewriting."""
