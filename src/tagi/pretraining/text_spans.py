"""Text tasks whose answer is a part of the input that the instruction names."""

from functools import partial

from tagi.pretraining.passages import Passage, bare, places
from tagi.pretraining.text_kinds import (
    MARKS,
    PLACES,
    POOLS,
    Draw,
    Kinds,
    Row,
    answered,
    inner_names,
    need,
    once,
    one_name,
)

_FIELDS = 3, 4

KINDS = Kinds()
"""Copying and extracting."""
_copy, _extract = partial(KINDS.add, "copy"), partial(KINDS.add, "extract")


def span(words: list[str]) -> str:
    """Words as one text, without the comma that follows it."""
    return " ".join(words).rstrip(",;:")


# --- copy -------------------------------------------------------------------------------------------------


@_copy("the first {count} words of the text", "the {count} words that the text begins with")
def _first_words(draw: Draw) -> Row:
    passage, count = draw.passage(1, 2), draw.values.count
    need(len(passage.words) > count + 2)
    return answered(passage, span(passage.words[:count]))


@_copy("the last {count} words of the text", "the {count} words that the text ends with")
def _last_words(draw: Draw) -> Row:
    passage, count = draw.passage(1, 2), draw.values.count
    need(len(passage.words) > count + 2)
    return answered(passage, span(passage.words[-count:]))


@_copy("the {nth} word of the text", "only the {nth} word")
def _nth_word(draw: Draw) -> Row:
    passage = draw.passage(1, 2)
    need(len(passage.words) > draw.values.nth + 2)
    return answered(passage, bare(passage.words[draw.values.nth]))


@_copy("the last word of the text", "the word that the text ends with")
def _last_word(draw: Draw) -> Row:
    passage = draw.passage(1, 2)
    return answered(passage, bare(passage.words[-1]))


@_copy("the {place} sentence", "the {place} sentence of the text", "the whole {place} sentence")
def _sentence(draw: Draw) -> Row:
    passage, place = draw.passage(2, 3), PLACES[draw.values.place]
    need(len(passage.sentences) > place)
    return answered(passage, passage.sentences[place])


@_copy('the sentence that contains the word "{word}"', 'the sentence with the word "{word}" in it')
def _sentence_with(draw: Draw) -> Row:
    passage = draw.with_word(2, 3)
    found = [sentence for sentence in passage.sentences if places(sentence.split(), draw.values.word)]
    need(len(found) == 1)
    return answered(passage, found[0])


@_copy("the sentence with the fewest words", "the shortest sentence, counted in words")
def _shortest_sentence(draw: Draw) -> Row:
    passage = draw.passage(2, 3)
    lengths = sorted(len(sentence.split()) for sentence in passage.sentences)
    need(lengths[0] < lengths[1])
    return answered(passage, min(passage.sentences, key=lambda sentence: len(sentence.split())))


@_copy("the question that the text asks", "the sentence that is a question")
def _question(draw: Draw) -> Row:
    passage = draw.one_of(draw.passages.questions, 2, 3)
    found = [sentence for sentence in passage.sentences if sentence.endswith("?")]
    need(len(found) == 1)
    return answered(passage, found[0])


@_copy('everything that comes after the word "{word}"', 'the text from behind the word "{word}" to the end')
def _after(draw: Draw) -> Row:
    passage = draw.with_word()
    words, place = passage.words, once(passage.words, draw.values.word)
    need(place + 1 < len(words))
    return answered(passage, " ".join(words[place + 1 :]))


@_copy('everything that comes before the word "{word}"', 'the text from the beginning to just before the word "{word}"')
def _before(draw: Draw) -> Row:
    passage = draw.with_word()
    return answered(passage, span(passage.words[: once(passage.words, draw.values.word)]))


@_copy("what stands between {mark}", "the words in {mark}", "the part of the text that is in {mark}")
def _between_marks(draw: Draw) -> Row:
    """One to five words of a passage stand between marks that it does not have by itself."""
    passage, (opened, closed) = draw.passage(1, 2), MARKS[draw.values.mark]
    need(opened not in passage.text)
    words, count = list(passage.words), draw.rng.randint(1, 5)
    need(len(words) > count + 2)
    start = draw.rng.randrange(len(words) - count)
    marked = words[start : start + count]
    need(all(word[-1].isalnum() and word[0].isalnum() for word in marked))
    text = " ".join(marked)
    whole = [*words[:start], f"{opened}{text}{closed}", *words[start + count :]]
    return answered(passage, text, " ".join(whole))


# --- extract ----------------------------------------------------------------------------------------------


@_extract('the word right after "{word}"', 'the one word that follows the word "{word}"')
def _word_after(draw: Draw) -> Row:
    passage = draw.with_word(1, 2)
    words, place = passage.words, once(passage.words, draw.values.word)
    need(place + 1 < len(words) and words[place][-1].isalnum())
    return answered(passage, bare(words[place + 1]))


@_extract('the word right before "{word}"', 'the one word that the word "{word}" follows')
def _word_before(draw: Draw) -> Row:
    passage = draw.with_word(1, 2)
    words, place = passage.words, once(passage.words, draw.values.word)
    need(place > 0 and words[place - 1][-1].isalnum())
    return answered(passage, bare(words[place - 1]))


@_extract("the number in the text", "the number that the text mentions, as it is written there")
def _number(draw: Draw) -> Row:
    passage = draw.one_of(draw.passages.with_number, 1, 2)
    found = [bare(word) for word in passage.words if any(map(str.isdigit, word))]
    need(len(found) == 1 and found[0].replace(",", "").replace(".", "").isdigit())
    return answered(passage, found[0])


@_extract(
    "the name in the text, a word with a capital letter that does not begin a sentence",
    "the only word inside a sentence that is written with a capital letter",
)
def _name(draw: Draw) -> Row:
    return answered(*one_name(draw))


@_extract(
    'the only word that begins with the letter "{letter}"', 'the word in the text whose first letter is "{letter}"'
)
def _with_initial(draw: Draw) -> Row:
    passage = draw.passage()
    found = [bare(word) for word in passage.words if bare(word).lower().startswith(draw.values.letter)]
    need(len(found) == 1 and len(found[0]) > 1)
    return answered(passage, found[0])


@_extract("the longest word of the text", "the word with the most letters")
def _longest_word(draw: Draw) -> Row:
    passage = draw.passage()
    words = sorted(map(bare, passage.words), key=len)
    need(len(words[-1]) > len(words[-2]) and words[-1].isalpha())
    return answered(passage, words[-1])


def _blank(passage: Passage, word: str) -> Row:
    """The last place of a word that the passage has elsewhere too becomes a blank."""
    found = [place for place, one in enumerate(passage.words) if bare(one) == word]
    need(len(found) > 1 and "_" not in passage.text)
    place = found[-1]
    words = [*passage.words[:place], passage.words[place].replace(word, "_"), *passage.words[place + 1 :]]
    return answered(passage, word, " ".join(words))


@_extract("the name in the text that belongs in the blank (_)", 'the name of the text for which "_" stands')
def _blank_name(draw: Draw) -> Row:
    passage = draw.passage(1, 3)
    names = inner_names(passage)
    need(names)
    return _blank(passage, draw.rng.choice(names))


@_extract("the word of the text that belongs in the blank (_)", 'the word of the text for which "_" stands')
def _blank_word(draw: Draw) -> Row:
    """A word of four letters or more; shorter ones are mostly grammar."""
    passage = draw.passage(1, 3)
    plain = [word for word in map(bare, passage.words) if len(word) > 3 and word.islower() and word.isalpha()]
    twice = sorted({word for word in plain if plain.count(word) > 1})
    need(twice)
    return _blank(passage, draw.rng.choice(twice))


@_extract('what is written after "{key}:"', "the {key} that is given", 'the entry under "{key}"')
def _field(draw: Draw) -> Row:
    """Names, numbers and short spans of several passages under headings, one of which the instruction names."""
    own = draw.values.key
    pool = [key for part in POOLS["key"] for key in part if key != own]
    keys = [own, *map(str, draw.rng.sample(pool, draw.rng.randint(*_FIELDS) - 1))]
    draw.rng.shuffle(keys)
    passages = [draw.passage() for _ in keys]
    entries = [_entry(draw, passage) for passage in passages]
    text = "; ".join(f"{key}: {entry}" for key, entry in zip(keys, entries, strict=True))
    return answered(passages[0], entries[keys.index(own)], text)


def _entry(draw: Draw, passage: Passage) -> str:
    names = inner_names(passage)
    if names and draw.rng.random() < 0.5:
        return draw.rng.choice(names)
    count = draw.rng.randint(1, 4)
    need(len(passage.words) > count)
    start = draw.rng.randrange(len(passage.words) - count)
    words = passage.words[start : start + count]
    need(all(word[-1].isalnum() and word[0].isalnum() for word in words))
    return " ".join(words)
