"""The English of microtasks: the words of their lists, and the wordings of every operation."""

CATEGORIES: dict[str, tuple[str, ...]] = {
    plural: tuple(words.split())
    for plural, words in {
        "animals": "wolf dog cat lion horse tiger rabbit camel",
        "colors": "red blue pink gray green yellow black white",
        "tools": "saw axe rake jack hammer drill wrench pliers",
        "fruits": "plum pear lime fig apple banana cherry grape",
        "countries": "peru cuba iran mali france spain italy japan",
        "vehicles": "car bus van boat truck train bicycle ferry",
    }.items()
}
SINGULAR = {plural: plural.removesuffix("s") for plural in CATEGORIES} | {"countries": "country"}
CATEGORY_OF = {word: plural for plural, words in CATEGORIES.items() for word in words}
WORDS = tuple(CATEGORY_OF)
INSERTED_WORDS = tuple(word for words in CATEGORIES.values() for word in (words[0], words[-1]))
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen"),
)
ORDINALS = ("first", "second", "third")

# Clauses that stand at the start of a sentence or after "then"; the last of each is held out of training.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "reverse": ("reverse the list", "put the words in the opposite order", "write the list backwards",
        "put the list in reverse order"),
    "sort": ("sort the words alphabetically", "put the words in alphabetical order", "order the words from a to z",
        "sort the list in alphabetical order"),
    "keep_first": ("keep the {first}", "take only the {first}", "drop everything after the {first}",
        "remove everything except the {first}"),
    "keep_last": ("keep the {last}", "take only the {last}", "drop everything before the {last}",
        "remove everything except the {last}"),
    "drop_first": ("drop the {first}", "remove the {first}", "leave out the {first}", "delete the {first}"),
    "drop_last": ("drop the {last}", "delete the {last}", "cut off the {last}", "leave out the {last}"),
    "keep_only": ("keep only the {plural}", "drop everything that is not {a}", "remove every word that is not {a}",
        "delete all words except the {plural}"),
    "remove": ("remove the {plural}", "drop every {singular}", "keep everything except the {plural}",
        "delete all {plural}"),
    "replace": ("replace every {singular} with {word}", "replace all {plural} by {word}",
        "write {word} in place of every {singular}", "put {word} in place of all {plural}"),
    "append": ("add {word} at the end", "append the word {word} to the list", "put {word} after the last word",
        "write {word} at the end of the list"),
    "prepend": ("add {word} at the start", "prepend the word {word} to the list", "put {word} before the first word",
        "write {word} at the start of the list"),
    "swap_ends": ("swap the first and the last word", "exchange the first word and the last word",
        "let the first and the last word trade places", "exchange the places of the first and the last word"),
    "first_to_end": ("move the first word to the end", "take the first word and put it at the end",
        "put the first word behind all other words", "move the first word behind the last word"),
    "last_to_front": ("move the last word to the front", "take the last word and put it at the start",
        "put the last word before all other words", "move the last word before the first word"),
    "deduplicate": ("remove repeated words", "keep each word only once", "drop every word that already came before",
        "delete all repeated words"),
    "double": ("write every word twice", "say each word two times", "double each word", "write each word two times"),
    "every_other": ("keep every other word starting with the first", "drop every second word",
        "leave out every second word", "remove every second word"),
    "categorize": ("replace every word by its category", "write the category of each word",
        "turn each word into its category", "say the category of every word"),
    "count_words": ("count the words", "say how many words there are", "give the number of words",
        "count how many words there are"),
    "count": ("count the {plural}", "say how many {plural} there are", "give the number of {plural}",
        "count how many {plural} there are"),
    "any": ("say whether there is any {singular}", "answer yes if there is {a} and no if not",
        "tell whether the list has {a}", "say yes if the list has {a} and no if not"),
    "pick": ("pick the {ordinal} word", "give the {ordinal} word", "answer with the {ordinal} word",
        "say the {ordinal} word of the list"),
    "pick_last": ("pick the last word", "give the last word", "answer with the last word",
        "say the last word of the list"),
}  # fmt: skip
