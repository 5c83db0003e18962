"""Probes by the command line, and what guessing scores."""

from pathlib import Path

import pytest
from test_text_tasks import write_c4

from cli_runs import Run
from tagi.data.types import Example, Instruction, Task
from tagi.pretraining.probes import chances


@pytest.fixture(scope="module")
def c4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_c4(tmp_path_factory.mktemp("c4"))


def test_probes_are_scored_beside_chance(c4: Path, tagi: Run, metatrained: Path) -> None:
    asked = ("eval", "probes", "--data", c4, "--checkpoint", metatrained, "--tasks", 4, "--instances", 12)
    scores = tagi(*asked, "--json").json
    assert list(scores["probes"]) == ["copy", "choose", "yes_no"]
    assert scores["n"] == 3 * 8 * 12
    assert scores["probes"]["yes_no"]["chance"] == 0.5
    assert 0.25 <= scores["probes"]["choose"]["guesses"]["random_option"] <= 0.5
    for probe in scores["probes"].values():
        assert list(probe["exact_match"]) == ["aligned", "shuffled", "empty"]
        assert set(probe["by_values"]) == {"seen", "new"}
    table = tagi(*asked)
    assert table.code == 0 and "yes or no" in table.out


def test_probes_show_as_many_demonstrations_as_asked(c4: Path, tagi: Run, metatrained: Path) -> None:
    asked = ("eval", "probes", "--data", c4, "--checkpoint", metatrained, "--tasks", 2, "--instances", 2)
    none, two = (tagi(*asked, "--demonstrations", shown, "--json").json for shown in (0, 2))
    assert [one["command"]["demonstrations"] for one in (none, two)] == [0, 2]


def test_chance_is_what_guessing_scores() -> None:
    def task(*rows: Example) -> Task:
        return Task("t", Instruction("x"), (), rows)

    copied = task(Example("1", "a b a c", ("a",)), Example("2", "d e", ("d e",)))
    assert chances("copy", [copied]) == {"copy_input": 0.5, "random_span": (2 / 4 + 1) / 2}
    offered = task(*(Example("1", "x", (one,), tuple("AB")) for one in "AAB"), Example("2", "x", ("C",), tuple("ABCD")))
    assert chances("choose", [offered]) == {"random_option": (3 / 2 + 1 / 4) / 4, "majority": 0.5}
    assert chances("yes_no", [task(*(Example("1", "x", (one,)) for one in ("no", "no", "yes")))]) == {"majority": 2 / 3}
