"""Every block of the pages that can be run is run by one test, or is listed here with the reason why not; and the shell
lines of most pages, typed as they stand, with fewer and smaller steps where they would train for hours."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from test_export_decoder import chatting
from test_text_tasks import write_c4
from toy_configs import write_configs

from blocks import CLAIMED, CODE, ROOT, Block, blocks, claim, shell
from cli_runs import Run, write_config
from tagi.backbones.gguf import INSTALL, smollm2
from tagi.backbones.language_model import save_language_model
from tagi.repro.runs import P3, SNI
from toy_paper import write_paper

CARDS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "src" / "tagi" / "assets").glob("*/README.md"))
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
PAGES = ("README.md", "CONTRIBUTING.md", *DOCS, *CARDS)
NOT_RUN: Mapping[tuple[str, str], str] = {
    ("docs/engines.md", "from vllm import LLM"): "needs vLLM, in an environment of its own: engines/run_vllm.py",
    ("docs/engines.md", "vllm serve"): "needs vLLM; the page says that it is not tested",
    ("docs/engines.md", "pip install ."): "needs vLLM: engines/test_engines_vllm_plugin.py starts its server",
    ("docs/engines.md", "llama-server"): "the program of llama.cpp; the same server: engines/test_engines_llamacpp.py",
    ("docs/engines.md", "python -m sglang"): "needs a GPU; the page says that it is not tested",
    ("docs/engines.md", "docker run"): "needs a GPU; the page says that it is not tested",
    ("docs/engines.md", "printf"): "needs Ollama; the page says that it is not tested",
    ("docs/serving.md", "lm_eval"): "needs lm-eval: serve/test_lm_eval.py asks it the same in Python",
    ("docs/serving.md", "pip install '.[ray]'"): "takes port 8000: serve/test_ray_cluster.py starts the same in Python",
}
"""By page and how a block begins."""


def reason(page: str, block: Block) -> str | None:
    """Why a block is not run."""
    return next((why for (of, begins), why in NOT_RUN.items() if of == page and block.script.startswith(begins)), None)


def test_every_block_is_run_by_one_test_or_is_listed_with_a_reason() -> None:
    for file in (ROOT / "tests").rglob("test_*.py"):
        if "claim(" in file.read_text(encoding="utf-8"):
            importlib.import_module(file.stem)
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert 2 * len(blocks(ROOT / page)) == len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)), page
        for block in blocks(ROOT / page):
            runs = CLAIMED[page, block] + (reason(page, block) is not None)
            assert runs == (block.language in CODE), f"{page}: {runs} tests run\n{block.text}"
            assert block.language or not re.match(r"(\$ |tagi |python )", block.text), f"{page}: sh?\n{block.text}"
    listed = {
        (page, begins) for page, begins in NOT_RUN for one in blocks(ROOT / page) if one.script.startswith(begins)
    }
    assert listed == NOT_RUN.keys()


def test_no_page_installs_the_other_project_of_our_name() -> None:
    """What PyPI calls tagi is not ours."""
    for page in PAGES:
        assert not re.search(r"pip install (-\S+ )*'?tagi\b", (ROOT / page).read_text(encoding="utf-8")), page


@pytest.mark.parametrize(("page", "begins"), NOT_RUN)
def test_what_is_not_run_can_be_read(page: str, begins: str) -> None:
    """By a shell or Python; what is sent to servers is JSON."""
    (block,) = [one for one in blocks(ROOT / page) if one.script.startswith(begins)]
    if block.language == "python":
        compile(block.text, page, "exec")
        return
    subprocess.run(["bash", "-n"], input=block.script, text=True, check=True)
    for sent in re.findall(r"-d '([^']*)'", block.script):
        assert json.loads(sent)


# --- the shell lines ----------------------------------------------------------------------------------------

SLOW = pytest.mark.slow  # every line is a process that imports everything
NEEDS_SMOLLM2 = pytest.mark.skipif(smollm2() is None, reason=f"the default's language model is not here: {INSTALL}")
FIRST = claim("README.md", "console") + claim("docs/index.md", "sh")
ADAPTERS = claim("docs/adapters.md", "sh")
BACKBONE = claim("docs/backbone.md")
ENGINES = claim("docs/engines.md", section="What each form holds") + claim("docs/engines.md", section="peft")
ON_P3 = claim("docs/p3.md")
NAMED = claim("docs/runs.md")
(SEVERAL,) = claim("docs/training.md")
YOUR_GPU = claim("docs/your-gpu.md")
YOUR_MODEL = claim("docs/your-model.md")
YOUR_TASK = claim("docs/your-task.md", "sh")
MICROTASKS = claim("docs/results/microtasks.md")
ABLATIONS = claim("docs/results/training.md")
ONE_BUDGET, NEUTRAL, PRETRAINED = claim("docs/results/systems.md")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder from which one sees what a checkout has."""
    for name in ("configs", "datasets", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """The same at toy size, two steps a run, with data."""
    write_configs(tmp_path, steps=2)
    write_paper(tmp_path)
    return tmp_path


def typed(page: Sequence[Block], folder: Path, changes: Mapping[str, str] | None = None, **variables: str) -> str:
    """What the lines of a page say when they are typed in a folder, some of their words changed."""
    script = "\n".join(block.script for block in page)
    for words, others in (changes or {}).items():
        assert words in script, f"the page no longer says {words}"
        script = script.replace(words, others)
    return shell(script, folder, ROOT / "src", OMP_NUM_THREADS="1", **variables)


@NEEDS_SMOLLM2
def test_the_first_lines_that_a_page_shows_run(tagi: Run) -> None:
    answered, command = FIRST
    assert answered.script == command.script
    done = tagi(*shlex.split(command.script)[1:])
    assert (done.code, done.out) == (0, answered.text.partition("\n")[2])


@SLOW
def test_what_a_lora_leaves_behind(checkout: Path) -> None:
    """The page's numbers, to their last digit."""
    said = typed(ADAPTERS, checkout)
    found = [json.loads(one) for one in re.findall(r"^\{$.*?^\}$", said, re.DOTALL | re.MULTILINE)]
    ours = [f'"same_answers": {one["same_answers"]:.3}, "kl": {one["kl"]:.3}, "n": {one["n"]}' for one in found]
    page = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    assert len(ours) == 2 and all(one in page for one in ours), ours


@SLOW
@NEEDS_SMOLLM2
def test_an_adapter_for_other_engines(tmp_path: Path) -> None:
    """The shell's folder of the language model is the Python block's too."""
    shown, python = ENGINES
    opened = (
        f"export BASE\npython - <<'END'\nimport os\nBASE = os.environ['BASE']\n{python.text}print(model.peft_type)\nEND"
    )
    assert "LORA" in shell(f"{shown.script}{opened}", tmp_path)
    assert (tmp_path / "city-gguf" / "adapter.gguf").exists()
    settings = json.loads((tmp_path / "city-peft" / "adapter_config.json").read_text(encoding="utf-8"))
    ranks = re.findall(r"max[-_]lora[-_]rank[ =](\d+)", (ROOT / "docs" / "engines.md").read_text(encoding="utf-8"))
    assert len(ranks) == 3 and all(int(rank) >= settings["r"] for rank in ranks)


@SLOW
def test_a_language_model_from_text(checkout: Path) -> None:
    write_paper(checkout)
    for name, place in (("SNI", SNI), ("P3", P3)):
        (checkout / name).symlink_to(place)
    (checkout / "C4").mkdir()
    write_c4(checkout / "C4")
    few = "training.steps=2 training.tasks_per_batch=2"
    parts = f"{few} prompt.max_input=64 data.parts.micro.compositions=20 data.parts.micro.valid_tasks=2"
    said = typed(
        BACKBONE,
        checkout,
        {
            "nano.yaml": f"nano.yaml {few} backbone.shape.vocab_size=300 data.corpus.valid_documents=4",
            "metatrain-text.yaml": f"metatrain-text.yaml {parts}",
            "metatrain.yaml": f"metatrain.yaml {parts}",
            "metatrain-last.yaml": f"metatrain-last.yaml {parts}",
            "tagi eval probes": "tagi eval probes --tasks 2 --instances 2",
        },
    )
    assert "bits" in said and "yes or no" in said


@SLOW
def test_p3(toy: Path) -> None:
    (toy / "DIR").symlink_to(P3)
    assert "rte" in typed(ON_P3, toy)


@SLOW
def test_named_runs_are_planned(tmp_path: Path) -> None:
    """On GPUs and the benchmarks they would train for days."""
    said = "".join(typed([block], tmp_path, {"tagi train all": "tagi train all --dry-run"}) for block in NAMED)
    assert [said.count(f"{stage}: ") for stage in ("metatrain", "teachers", "pretrain", "finetune")] == [2, 2, 2, 2]


@SLOW
@pytest.mark.parametrize("number", [0, 1], ids=["ddp", "fsdp"])
def test_several_processes(number: int, checkout: Path) -> None:
    """As the configs are, on the CPU."""
    line = SEVERAL.script.splitlines()[number]
    write_config(checkout).rename(checkout / "FILE")
    shell(line, checkout, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    assert (checkout / "runs" / "final" / "model.safetensors").exists()
    assert json.loads((checkout / "runs" / "final" / "resume.json").read_text(encoding="utf-8"))["processes"] == 2


@SLOW
def test_a_gpu_of_one_s_own(checkout: Path) -> None:
    said = typed(YOUR_GPU, checkout)
    assert "metatrain: " in said and not (checkout / "runs").exists()


@SLOW
def test_a_language_model_of_one_s_own(checkout: Path) -> None:
    tagi = chatting("base")
    save_language_model(tagi.model.backbone, checkout / "MODEL")
    tagi.tokenizer.save_pretrained(checkout / "MODEL")
    write_paper(checkout)
    few = "training.steps=2 training.tasks_per_batch=2 data.parts.everyday.valid_tasks=2 data.parts.sni.valid_tasks=2"
    few += " 'data.parts.p3.only=[]'"  # of the toy data all
    short = "prompt.max_instruction=64 prompt.max_input=64 prompt.max_target=8"
    typed(YOUR_MODEL, checkout, {"backbone.path=MODEL": f"backbone.path=MODEL {few} {short}"})
    assert (checkout / "runs" / "my-model" / "final" / "model.safetensors").exists()


@SLOW
@NEEDS_SMOLLM2
def test_tasks_of_one_s_own(checkout: Path) -> None:
    """Some of ours to train on, and the task that the page shows to score."""
    for part in ("train", "test"):
        (checkout / "my-tasks" / part).mkdir(parents=True)
    for file in sorted((ROOT / "datasets" / "everyday" / "train").iterdir())[::12]:
        shutil.copy(file, checkout / "my-tasks" / "train")
    (shown,) = [one.text for one in blocks(ROOT / "docs" / "your-task.md") if one.language == "json"]
    (checkout / "my-tasks" / "test" / "city.json").write_text(shown, encoding="utf-8")
    few = "training.steps=2 training.tasks_per_batch=2"
    said = typed(YOUR_TASK, checkout, {"output=runs/mine": f"output=runs/mine {few}"})
    assert said.count("everyday, 1 tasks") == 2


FEW = {"--instances 10": "--tasks 4 --instances 2"}


@SLOW
def test_tagi_against_the_prompt(toy: Path) -> None:
    assert "unresolved" in typed(MICROTASKS, toy, FEW)


@SLOW
def test_the_ablations(toy: Path) -> None:
    few = FEW | {"training.steps=1970": "", "training.steps=1940": ""}
    before = "tagi train metatrain --config configs/micro/metatrain.yaml output=runs/micro-metatrain-0"
    shell(before, toy)
    assert "unresolved" in typed(ABLATIONS, toy, few)


@SLOW
def test_the_systems(toy: Path) -> None:
    """For one row of each table."""
    typed([NEUTRAL], toy, FEW, METHOD="hint", STEPS="2", SHOWN="0")
    row = {"METHOD": "tagi", "STEPS": "2", "TRAINED": "[backbone,hypernetwork,fusion]"}
    said = typed([ONE_BUDGET], toy, FEW, STAGE="finetune", S="0", RUN="run", SCORES="scores", OTHER="scores", **row)
    assert "unresolved" in said
    typed(
        [PRETRAINED], toy, {"method=$METHOD start_from": "output=after method=$METHOD start_from"}, PRE="before", **row
    )
    assert (toy / "after" / "final" / "model.safetensors").exists()
