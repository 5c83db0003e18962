"""Registered tasks in vLLM: the plugin writes each adapter at its first request, and the answers are ours."""

from pathlib import Path

import pytest
from cases import MOST, answers, ended, language_model, random_tagi, run, texts_to_answer

from tagi.data.types import Instruction
from tagi.serve.registry import TaskRegistry
from tagi.serve.store import AdapterStore
from tagi.serve.vllm import CHECKPOINT, FOLDER, STORE

pytestmark = pytest.mark.engines
TASKS, INPUTS = 20, 2


def test_engines_vllm_answers_tasks_by_name(tmp_path: Path) -> None:
    backbone, base = language_model()
    tagi = random_tagi(backbone, base, "lora_only")
    tagi.save_pretrained(tmp_path / "checkpoint")
    told = [Instruction(f"Answer with one short sentence of {number} words.") for number in range(2, 2 + TASKS)]
    with AdapterStore(tagi, tmp_path / "store") as store:
        registry = TaskRegistry(store)
        names = [registry.add(one)[0].name for one in told]
        registry.close()
    prompts = [tagi.collator.input(None, text, follows=False) for text in texts_to_answer()[:INPUTS]]
    ends = list(backbone.end_ids)
    env = {STORE: str(tmp_path / "store"), CHECKPOINT: str(tmp_path / "checkpoint")}
    asked = {"names": names, "model": str(base), "prompts": prompts, "ends": ends, "max_new_tokens": MOST}
    found = run("vllm", tmp_path, "run_vllm_plugin.py", env, **asked)
    ours = [answers(tagi.model, tagi.model.prepare(tagi.adapt(one)), prompts) for one in told]
    assert [[ended(one, ends) for one in own] for own in found["answers"]] == ours
    assert len({str(own) for own in ours}) > TASKS / 2, "adapters differ"
    assert found["unknown"] and len(set(found["numbers"])) == len(set(found["folders"])) == TASKS
    assert len(list((tmp_path / "store" / FOLDER).glob("*/*"))) == TASKS, "nothing else is left behind"
