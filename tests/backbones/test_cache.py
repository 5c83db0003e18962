"""Keys and values of rows that come and go: each row reads what it read, whoever stood in its place before."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tagi.backbones.cache import KeyValue, Past

HEADS, WIDTH = 1, 2
Told = list[float]


def past(rows: list[Told], room: int) -> Past:
    """A past of rows of the given numbers, all ending at the same place, in one layer."""
    length = max(map(len, rows))
    k = torch.zeros(len(rows), HEADS, length, WIDTH)
    for number, row in enumerate(rows):
        k[number, :, length - len(row) :] = torch.tensor(row)[:, None]
    first = torch.tensor([length - len(row) for row in rows])
    return Past((KeyValue(k, -k),), length, first).with_room(room)


def read(held: Past) -> list[Told]:
    """Every row's own numbers, from its first place to the last."""
    assert held.first is not None
    k, v = held.layers[0].k, held.layers[0].v
    spans = [(row, int(start)) for row, start in enumerate(held.first)]
    assert all(start >= 0 for _, start in spans)
    assert all(bool((v[row, 0, start : held.length] == -k[row, 0, start : held.length]).all()) for row, start in spans)
    return [k[row, 0, start : held.length, 0].tolist() for row, start in spans]


ROW = st.lists(st.floats(1, 9, width=16), min_size=1, max_size=12)
ROWS = st.lists(ROW, min_size=1, max_size=4)


@settings(max_examples=300)
@given(ROWS, st.lists(st.tuples(ROWS, st.integers(0, 5)), max_size=5), st.data())
def test_rows_that_join_and_leave_keep_what_they_read(
    rows: list[Told], joining: list[tuple[list[Told], int]], data: st.DataObject
) -> None:
    """New rows longer or shorter than all that are left of the others, with and without room."""
    held, expected = past(rows, room=2), list(rows)
    for new, room in joining:
        if len(new) > len(expected):
            held, expected = held.stack(past(new, 0), room), expected + new
            continue
        chosen = st.lists(st.integers(0, len(expected) - 1), min_size=len(new), max_size=len(new), unique=True)
        places = data.draw(chosen)
        held = held.put(torch.tensor(places), past(new, 1), room)
        for place, row in zip(places, new, strict=True):
            expected[place] = row
    assert read(held) == expected
