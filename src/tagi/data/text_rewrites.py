"""Text tasks whose answer is the input itself, unchanged or with something changed that the instruction names."""

from collections.abc import Callable

from tagi.data.passages import Passage, bare
from tagi.data.text_kinds import PLACES, Draw, Kind, Row, answered, need, once, one_name


def _changed(change: Callable[[str], str]) -> Callable[[Draw], Row]:
    def row(draw: Draw) -> Row:
        passage = draw.passage(1, 2)
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
)
"""Repeating and rewriting."""
