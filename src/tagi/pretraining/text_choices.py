"""Text tasks with few possible answers by a rule in the instruction: one of the options in the input, or yes and no."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tagi.pretraining.passages import Passage, bare, places
from tagi.pretraining.text_kinds import LETTERS, PLACES, Draw, Kinds, Row, inner_names, listed, need, once

LONGEST_OPTION = 14
"""Words of a sentence that is an option."""

KINDS = Kinds()
"""Choosing, and yes or no."""


class Offer(NamedTuple):
    """The right option, wrong ones, and the text that they are about, if any."""

    right: str
    wrong: Sequence[str]
    about: Passage | None = None


Options = Callable[[Draw], Offer]
Rule = Callable[[Draw, Passage], bool]


def _choose(*clauses: str, name: str = "") -> Callable[[Options], Options]:
    """A kind by what draws its options; rows have the right one at every place equally often."""

    def added(make: Options) -> Options:
        @KINDS.add("choose", *clauses, name=name or make.__name__.lstrip("_"), also=("options", "layout"))
        def _chosen(draw: Draw) -> Row:
            offer, count = make(draw), draw.values.options
            need(len(offer.wrong) == count - 1)
            options = list(offer.wrong)
            options.insert(draw.want % count, offer.right)
            need(len({option.lower() for option in options}) == count)
            return _row(draw, options, draw.want % count, offer.about)

        return make

    return added


def _row(draw: Draw, options: list[str], right: int, about: Passage | None) -> Row:
    plain = draw.values.layout == "list" and not any(" " in option for option in options)
    text = listed(options) if plain else lettered(options)
    choices = tuple(LETTERS[: len(options)]) if draw.values.layout == "letters" else tuple(options)
    said = f"Text: {about.text} Options: {text}" if about is not None else f"Options: {text}"
    return Row(said, choices[right], about.run if about is not None else draw.passage().run, choices)


def lettered(options: Sequence[str]) -> str:
    """(A) a (B) b (C) c"""
    return " ".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))


# --- choose -----------------------------------------------------------------------------------------------


def _extreme(draw: Draw, best: Callable[..., str], key: Callable[[str], object] = str) -> Offer:
    """Of some words the one at the end of an order, if no other stands there too."""
    words = draw.words(draw.values.options)
    right = best(words, key=key)
    need(sum(key(word) == key(right) for word in words) == 1)
    return Offer(right, [word for word in words if word != right])


_choose("is the longest", "has the most letters", name="longest")(lambda draw: _extreme(draw, max, len))
_choose("is the shortest", "has the fewest letters", name="shortest")(lambda draw: _extreme(draw, min, len))
_choose("comes first in the alphabet", "stands first in a dictionary", name="first_in_alphabet")(
    lambda draw: _extreme(draw, min)
)
_choose("comes last in the alphabet", "stands last in a dictionary", name="last_in_alphabet")(
    lambda draw: _extreme(draw, max)
)


def _with_letter(draw: Draw, holds: Callable[[str, str], bool]) -> Offer:
    """One word with the named letter where it should stand, and others without it there."""
    words = draw.words(30)
    right = [word for word in words if holds(word, draw.values.letter)]
    need(right)
    return Offer(right[0], [word for word in words if word not in right][: draw.values.options - 1])


_choose('begins with the letter "{letter}"', 'has "{letter}" as its first letter', name="begins_with")(
    lambda draw: _with_letter(draw, str.startswith)
)
_choose('ends with the letter "{letter}"', 'has "{letter}" as its last letter', name="ends_with")(
    lambda draw: _with_letter(draw, str.endswith)
)
_choose('has the letter "{letter}" in it', 'contains the letter "{letter}"', name="has_letter")(
    lambda draw: _with_letter(draw, str.__contains__)
)


@_choose("is a number", "is written in digits")
def _is_number(draw: Draw) -> Offer:
    return Offer(str(draw.rng.randint(2, 2000)), draw.words(draw.values.options - 1))


@_choose("begins with a capital letter", "is a name")
def _is_name(draw: Draw) -> Offer:
    names = inner_names(draw.passage())
    need(names)
    return Offer(draw.rng.choice(names), draw.words(draw.values.options - 1))


@_choose("occurs in the text", "is a word of the text")
def _in_text(draw: Draw) -> Offer:
    """Wrong options are words of another passage, so that they are as common as the right one."""
    passage, other = draw.passage(1, 2), draw.passage(2, 3)
    right = _some(draw, passage, 1)
    return Offer(right[0], _some(draw, other, draw.values.options - 1, without=passage), passage)


@_choose("does not occur in the text", "is no word of the text")
def _not_in_text(draw: Draw) -> Offer:
    passage, other = draw.passage(1, 2), draw.passage(2, 3)
    right = _some(draw, other, 1, without=passage)
    return Offer(right[0], _some(draw, passage, draw.values.options - 1), passage)


@_choose('comes right after "{word}" in the text', 'follows the word "{word}" in the text')
def _follows(draw: Draw) -> Offer:
    """The word after the named one; the wrong ones stand elsewhere in the text."""
    passage = draw.with_word(1, 2)
    place = once(passage.words, draw.values.word)
    need(place + 1 < len(passage.words) and passage.words[place][-1].isalnum())
    right = bare(passage.words[place + 1])
    need(right.islower() and right.isalpha())
    others = [word for word in _some(draw, passage, 8, shortest=1) if word not in (right, draw.values.word)]
    return Offer(right, others[: draw.values.options - 1], passage)


@_choose('contains the word "{word}"', 'has the word "{word}" in it')
def _holds_word(draw: Draw) -> Offer:
    right = _short(draw.with_word())
    wrong = _wrong_sentences(draw)
    need(not any(places(one.split(), draw.values.word) for one in wrong))
    return Offer(right, wrong)


@_choose("is a question", "asks something")
def _asks(draw: Draw) -> Offer:
    right = _short(draw.one_of(draw.passages.questions))
    wrong = _wrong_sentences(draw)
    need(not any(one.endswith("?") for one in wrong))
    return Offer(right, wrong)


@_choose("continues the text", "is the sentence that comes right after the text")
def _continues(draw: Draw) -> Offer:
    """The sentence that follows in the document; the wrong ones come from anywhere."""
    passage = draw.passage(2, 2)
    text, right = (Passage([sentence], passage.run) for sentence in passage.sentences)
    return Offer(_short(right), _wrong_sentences(draw), text)


@KINDS.add("choose", "comes {place}", "is the {place} of them", also=("options",))
def _nth_option(draw: Draw) -> Row:
    """The named place, among enough options to have it."""
    place = PLACES[draw.values.place]
    options = draw.words(max(draw.values.options, place + 1))
    return _row(draw, options, place % len(options), None)


def _wrong_sentences(draw: Draw) -> list[str]:
    """From anywhere, as many as there are wrong options."""
    return [_short(draw.passage()) for _ in range(draw.values.options - 1)]


def _short(passage: Passage) -> str:
    need(len(passage.words) <= LONGEST_OPTION)
    return passage.text


def _some(draw: Draw, passage: Passage, count: int, *, shortest: int = 4, without: Passage | None = None) -> list[str]:
    """Up to `count` of a passage's lower-case words, in random order, but for those of another passage."""
    absent = {bare(word).lower() for word in without.words} if without is not None else set[str]()
    held = {bare(word) for word in passage.words} - absent
    found = sorted(word for word in held if word.islower() and word.isalpha() and len(word) >= shortest)
    need(found)
    return draw.rng.sample(found, min(count, len(found)))


# --- yes or no --------------------------------------------------------------------------------------------


def _judge(
    clauses: tuple[str, ...],
    negated: tuple[str, ...],
    likely: Callable[[Draw], Passage] = lambda draw: draw.passage(1, 3),
    sentences: tuple[int, int] = (1, 3),
) -> Callable[[Rule], Rule]:
    """A kind by its rule. Every second row is true; what may be true is `likely`, the rest drawn from all passages."""

    def added(holds: Rule) -> Rule:
        @KINDS.add("yes_no", *clauses, name=holds.__name__.lstrip("_"), also=("negated",), negated=negated)
        def _judged(draw: Draw) -> Row:
            true = draw.want % 2 == 0
            passage = likely(draw) if true else draw.passage(*sentences)
            need(holds(draw, passage) == true)
            return Row(passage.text, "yes" if true != draw.values.negated else "no", passage.run, ("yes", "no"))

        return holds

    return added


@_judge(
    ('contains the word "{word}"', 'has the word "{word}" in it'),
    ('does not contain the word "{word}"', 'is without the word "{word}"'),
    lambda draw: draw.with_word(1, 3),
)
def _has_word(draw: Draw, passage: Passage) -> bool:
    return bool(places(passage.words, draw.values.word))


@_judge(
    ("contains a number in digits", "has a number written in digits in it"),
    ("contains no number in digits", "is without digits"),
    lambda draw: draw.one_of(draw.passages.with_number, 1, 3),
)
def _has_number(draw: Draw, passage: Passage) -> bool:
    return any(map(str.isdigit, passage.text))


@_judge(
    ("has more than {length} words", "is longer than {length} words"),
    ("has no more than {length} words", "is at most {length} words long"),
)
def _is_long(draw: Draw, passage: Passage) -> bool:
    """No row is a matter of one or two words."""
    need(abs(len(passage.words) - draw.values.length - 0.5) > 2)
    return len(passage.words) > draw.values.length


@_judge(
    ('begins with the letter "{letter}"', 'has "{letter}" as its first letter'),
    ('does not begin with the letter "{letter}"', 'begins with another letter than "{letter}"'),
    lambda draw: draw.starting(draw.passages.by_initial.get(draw.values.letter, ()), 1, 3),
)
def _begins(draw: Draw, passage: Passage) -> bool:
    return bare(passage.text)[0].lower() == draw.values.letter


@_judge(
    ("has exactly {sentences}", "is {sentences} long"),
    ("does not have exactly {sentences}", "is more or less than {sentences} long"),
    lambda draw: draw.passage(draw.values.sentences, draw.values.sentences),
)
def _has_sentences(draw: Draw, passage: Passage) -> bool:
    return len(passage.sentences) == draw.values.sentences


@_judge(
    ("ends with a question", "ends with a question mark"),
    ("does not end with a question", "ends with something other than a question mark"),
    lambda draw: draw.ending(draw.passages.questions, 1, 3),
)
def _ends_in_question(draw: Draw, passage: Passage) -> bool:
    return passage.text.endswith("?")


@_judge(
    ("has more words in its first sentence than in its second", "has a first sentence longer than its second"),
    ("has fewer words in its first sentence than in its second", "has a first sentence shorter than its second"),
    lambda draw: draw.passage(2, 2),
    sentences=(2, 2),
)
def _falls(draw: Draw, passage: Passage) -> bool:
    """No row is a matter of one word."""
    first, second = (len(sentence.split()) for sentence in passage.sentences)
    need(abs(first - second) > 1)
    return first > second


@_judge(("contains a comma", "has at least one comma"), ("contains no comma", "is without commas"))
def _has_comma(draw: Draw, passage: Passage) -> bool:
    return "," in passage.text
