"""The model of the microtasks in `weights/`: what its card promises of it."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest

from tagi import Tagi
from tagi.cli.micro import trained_on, unseen
from tagi.config.files import RUN_FILE, load
from tagi.data.synthetic.micro_splits import shuffled_partner
from tagi.data.synthetic.microtasks import MicroTask
from tagi.eval.evaluate import AdapterControl, InstructionControl, evaluate
from tagi.model import checkpoint

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "weights" / "microtasks"


@pytest.fixture(scope="module")
def tagi() -> Tagi:
    return Tagi.from_pretrained(KEPT)


def exact_match(
    tagi: Tagi,
    tasks: Sequence[MicroTask],
    instances: int,
    instruction: InstructionControl = "aligned",
    adapter: AdapterControl = "full",
) -> float:
    drawn = [task.task().first(instances) for task in tasks]
    partners = shuffled_partner(tasks, seed=0)
    return fmean(evaluate(tagi, drawn, instruction=instruction, adapter=adapter, partners=partners).exact_match)


def test_the_readme_example(tagi: Tagi) -> None:
    adapter = tagi.adapt("Keep only the animals, then reverse the list.")
    assert tagi.generate(["red wolf saw dog plum"], adapter) == ["dog wolf"]


def test_it_is_small_and_safetensors_only() -> None:
    files = [file for file in KEPT.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files if file.suffix == ".safetensors") <= 15e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".yaml", ".md"}


def test_it_was_trained_by_the_committed_config() -> None:
    recorded, committed = load(KEPT / RUN_FILE), load(ROOT / "configs" / "micro" / "microtasks.yaml")
    assert recorded == committed


def test_it_follows_unseen_instructions_and_no_other(tagi: Tagi) -> None:
    """40 tasks × 5: measured 94.5 %, and 0 with another's or no instruction; the slow test has 500 × 20."""
    tasks = unseen(trained_on(str(KEPT)), 40)
    assert exact_match(tagi, tasks, 5) >= 0.9
    assert exact_match(tagi, tasks, 5, "shuffled") <= 0.05
    assert exact_match(tagi, tasks, 5, "empty") <= 0.05


@pytest.mark.slow
def test_the_figures_of_500_unseen_tasks(tagi: Tagi) -> None:
    tasks = unseen(trained_on(str(KEPT)), 500)
    right = exact_match(tagi, tasks, 20)
    assert right >= 0.9
    assert exact_match(tagi, tasks, 20, "shuffled") < 0.25
    assert exact_match(tagi, tasks, 20, "empty") < 0.1
    assert exact_match(tagi, tasks, 20, adapter="memory_only") < right  # LoRA has a share of its own


def test_the_fingerprint_is_that_of_the_language_model_inside() -> None:
    found = checkpoint.load(KEPT)
    assert found.config.backbone_fingerprint == checkpoint.fingerprint(found.model.backbone)
