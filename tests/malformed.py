"""Malformed files: valid ones with bytes or values changed, and what a reader says of them."""

from collections.abc import Callable

from tagi.errors import TagiError


def refusal(read: Callable[[], object]) -> str:
    """The sentence that a reader refuses something with; empty where it takes it. Every other error passes."""
    try:
        read()
    except TagiError as error:
        return str(error)
    return ""
