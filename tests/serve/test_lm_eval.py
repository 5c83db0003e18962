"""lm-evaluation-harness's `local-completions` against the service: what it measures is what the engine says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import FIRST, registered, served
from test_engine import make

from tagi import Tagi
from tagi.data.tokenizers import encode
from tagi.infer.search import GenerationConfig
from tagi.model.adapter import TaskAdapter

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROWS = (("a b", ("c", "d e f"), 0), ("g h i j", ("k", "a a", "l m"), 1), ("n", ("o p", "b"), 1))


@pytest.fixture(scope="module")
def tagi() -> Tagi:
    return make("tagi", family="decoder")


@pytest.fixture(scope="module")
def client(tagi: Tagi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(tmp_path_factory.mktemp("store"), tagi) as client:
        registered(client, FIRST, name="task")
        yield client


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with a task of each kind on the same few rows."""
    rows = [{"text": text, "choices": choices, "gold": gold} for text, choices, gold in ROWS]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shared: dict[str, Any] = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{text}}",
    }
    choosing = {
        "task": "choosing",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
    }
    writing = {
        "task": "writing",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[gold]}}",
        "generation_kwargs": {"until": ["p"], "max_gen_toks": 5, "temperature": 0, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    for one in (choosing, writing):
        (tmp_path / f"{one['task']}.yaml").write_text(json.dumps(shared | one))  # JSON is YAML
    return tmp_path


@pytest.mark.parametrize("how", ["tokenized_requests=True", "tokenized_requests=False"])
def test_lm_eval_measures_what_the_engine_says(
    client: httpx.Client, tagi: Tagi, tasks: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'tagi[eval]'")
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tasks / "cache"))
    tagi.tokenizer.save_pretrained(tasks / "tokenizer")
    address = f"model=task,base_url={client.base_url}/v1/completions,tokenizer={tasks / 'tokenizer'}"
    found = lm_eval.simple_evaluate(
        "local-completions",
        model_args=f"{address},max_retries=1,{how}",
        tasks=["choosing", "writing"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        batch_size=3,
        bootstrap_iters=0,
        log_samples=True,
    )
    assert found is not None
    adapter = tagi.adapt(FIRST)
    right = 0
    for sample in found["samples"]["choosing"]:
        text, choices, gold = ROWS[sample["doc_id"]]
        scores = [total(tagi, adapter, text, choice) for choice in choices]
        for ours, (theirs, greedy) in zip(scores, [one[0] for one in sample["resps"]], strict=True):
            assert float(theirs) == pytest.approx(ours[0], abs=1e-4) and str(greedy) == str(ours[1])
        right += max(range(len(scores)), key=lambda i: scores[i][0]) == gold
    assert found["results"]["choosing"]["acc,none"] == pytest.approx(right / len(ROWS))
    for sample in found["samples"]["writing"]:
        generation = GenerationConfig(max_new_tokens=5, stop=("p", "</s>"))
        (answer,) = tagi.generate([ROWS[sample["doc_id"]][0]], adapter, generation=generation)
        assert sample["resps"] == [[answer]]


def total(tagi: Tagi, adapter: TaskAdapter, text: str, choice: str) -> tuple[float, bool]:
    """The log-likelihood of a choice right behind a text, and whether it is the likeliest there is."""
    before, both = encode(tagi.tokenizer, text), encode(tagi.tokenizer, f"{text} {choice}")
    scores = tagi.token_scores(adapter, before, both[len(before) :], most=1)
    return sum(one.score for one in scores), all(one.likeliest[0][0] == one.token for one in scores)
