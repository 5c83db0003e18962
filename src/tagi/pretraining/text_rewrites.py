"""Text tasks whose answer is the input itself, unchanged or with something changed that the instruction names."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

from tagi.pretraining.passages import Passage, bare
from tagi.pretraining.text_kinds import PLACES, Draw, Kinds, Row, answered, need, once, one_name

LONGEST_SMALL_WORD = 3
"""Letters of a lower-case word that a sentence is made around."""
LONGEST_SENTENCE = 16
"""Words of a sentence that is made of some of its words."""

KINDS = Kinds()
"""Repeating and rewriting."""
_rewrite = partial(KINDS.add, "rewrite")
Spoil = Callable[[Draw, list[str]], list[str]]


def _any(draw: Draw) -> Passage:
    return draw.passage(1, 2)


def _question(draw: Draw) -> Passage:
    return draw.one_of(draw.passages.questions)


@_rewrite("copy the text exactly as it is", "repeat the text word for word", "write the same text again")
def _repeat(draw: Draw) -> Row:
    passage = _any(draw)
    return answered(passage, passage.text)


@_rewrite("write the text in lower case", "turn all capital letters into small letters")
def _lower_case(draw: Draw) -> Row:
    passage = _any(draw)
    return answered(passage, passage.text.lower())


def _swapped_word(passage: Passage, old: str, new: str) -> Row:
    """Every `old` becomes `new`; what stands there in another case, or inside another word, is no row."""
    pieces = [bare(word) for word in passage.words]
    need(new not in pieces and all(old.lower() not in piece.lower() or piece == old for piece in pieces))
    words = [
        word.replace(old, new) if piece == old else word for word, piece in zip(passage.words, pieces, strict=True)
    ]
    return answered(passage, " ".join(words))


@_rewrite(
    'replace the word "{word}" by "{other}"',
    'write the text with "{other}" in place of "{word}"',
    'change "{word}" to "{other}" in the text',
)
def _replace(draw: Draw) -> Row:
    return _swapped_word(draw.with_word(1, 2), draw.values.word, draw.values.other)


@_rewrite("replace the name in the text by {name}", "write {name} where the text has another name")
def _rename(draw: Draw) -> Row:
    passage, name = one_name(draw)
    return _swapped_word(passage, name, draw.values.name)


@_rewrite('leave out the word "{word}"', 'write the text without the word "{word}"', 'delete "{word}" from the text')
def _remove(draw: Draw) -> Row:
    passage = draw.with_word(1, 2)
    words, place = passage.words, once(passage.words, draw.values.word)
    need(words[place] == draw.values.word)  # no capital to give to the next word, no punctuation to keep
    return answered(passage, " ".join(words[:place] + words[place + 1 :]))


@_rewrite("leave out the first {count} words", "write the text without its first {count} words")
def _without_first_words(draw: Draw) -> Row:
    passage, count = draw.passage(), draw.values.count
    need(len(passage.words) > count + 2)
    return answered(passage, " ".join(passage.words[count:]))


@_rewrite("leave out the {place} sentence", "write the text without its {place} sentence")
def _without_sentence(draw: Draw) -> Row:
    passage, place = draw.passage(2, 3), PLACES[draw.values.place]
    need(len(passage.sentences) > place)
    kept = list(passage.sentences)
    del kept[place]
    return answered(passage, " ".join(kept))


@_rewrite("write the two sentences in the other order", "put the second sentence before the first")
def _other_order(draw: Draw) -> Row:
    passage = draw.passage(2, 2)
    need(passage.sentences[0] != passage.sentences[1])
    return answered(passage, " ".join(reversed(passage.sentences)))


@_rewrite('write the text and, after it, the word "{word}"', 'add the word "{word}" at the end of the text')
def _add_word(draw: Draw) -> Row:
    passage = draw.passage()
    return answered(passage, f"{passage.text} {draw.values.word}")


def _joined(draw: Draw, form: str) -> Row:
    passage = draw.starting(draw.passages.questions, 2, 2)
    question, answer = passage.sentences
    need(not answer.endswith("?"))
    return answered(passage, form.format(question=question, answer=answer), f"Question: {question} Answer: {answer}")


@_rewrite("write the question and then the answer", "join question and answer into one text, the question first")
def _question_answer(draw: Draw) -> Row:
    return _joined(draw, "{question} {answer}")


@_rewrite("write the answer and then the question", "join answer and question into one text, the answer first")
def _answer_question(draw: Draw) -> Row:
    return _joined(draw, "{answer} {question}")


def _mend(*clauses: str, name: str, drawn: Callable[[Draw], Passage] = _any) -> Callable[[Spoil], Spoil]:
    """A kind whose answer is a passage, and whose input is the passage with something wrong in it."""

    def added(spoil: Spoil) -> Spoil:
        @_rewrite(*clauses, name=name)
        def _mended(draw: Draw) -> Row:
            passage = drawn(draw)
            text = " ".join(spoil(draw, list(passage.words)))
            need(text != passage.text)
            return answered(passage, passage.text, text)

        return spoil

    return added


@_mend(
    "write every word once that stands there twice in a row", "leave out what is said twice in a row", name="undoubled"
)
def _some_doubled(draw: Draw, words: list[str]) -> list[str]:
    need(all(one.lower() != other.lower() for one, other in pairwise(words)))
    doubled = set(draw.rng.sample(range(len(words)), min(3, len(words) - 1)))
    return [word for place, word in enumerate(words) for _ in range(2 if place in doubled else 1)]


@_mend(
    "leave out the word that does not belong there",
    "write the text without the word that came in by mistake",
    name="without_stranger",
)
def _with_stranger(draw: Draw, words: list[str]) -> list[str]:
    (mismatched,) = draw.words(1, *map(bare, words))
    place = draw.rng.randrange(1, len(words))
    return [*words[:place], mismatched, *words[place:]]


@_mend(
    "put the two words right that have changed places",
    "swap the two neighbouring words that are out of order",
    name="swapped_back",
)
def _two_swapped(draw: Draw, words: list[str]) -> list[str]:
    place = draw.rng.randrange(len(words) - 1)
    return [*words[:place], words[place + 1], words[place], *words[place + 2 :]]


@_mend("write the text with capital letters where they belong", "put the missing capital letters in", name="capitals")
def _small_letters(draw: Draw, words: list[str]) -> list[str]:
    del draw
    return [word.lower() for word in words]


@_rewrite("write the question again without an answer to it", "repeat the question instead of answering it")
def _repeat_question(draw: Draw) -> Row:
    passage = _question(draw)
    return answered(passage, passage.text)


@_mend(
    "rewrite the question as it should be",
    "write the same question without the mistake in it",
    name="mended_question",
    drawn=_question,
)
def _somehow(draw: Draw, words: list[str]) -> list[str]:
    spoil = draw.rng.choice((_some_doubled, _with_stranger, _two_swapped, _small_letters))
    return spoil(draw, words)


@_rewrite("write a sentence with these words in this order", "make a whole sentence of the words, in their order")
def _sentence_of(draw: Draw) -> Row:
    passage = draw.passage()
    kept = [bare(word) for word in passage.words if len(bare(word)) > LONGEST_SMALL_WORD or not word.islower()]
    need(2 < len(kept) < len(passage.words) <= LONGEST_SENTENCE)
    return answered(passage, passage.text, ", ".join(kept))
