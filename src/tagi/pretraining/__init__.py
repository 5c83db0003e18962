"""A language model of one's own, from plain text. A room apart: only the commands import it."""
