"""PEFT's files, in: a LoRA that `peft` itself wrote computes the same in our model; what we cannot wear is refused."""

import copy
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from families import ONE_EACH, VARIANTS, Variant, pair
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5ForConditionalGeneration

from builders import normal, random_lora, small_t5, small_tagi, token_batch, worst
from cli_runs import Run, mistake
from tagi import Tagi
from tagi.backbones.base import Prepared
from tagi.backbones.rows import Rows
from tagi.backbones.t5.model import T5
from tagi.backbones.t5.weights import load_t5, save_t5
from tagi.errors import CheckpointError
from tagi.model.adapter import TaskAdapter
from tagi.model.checkpoint import fingerprint
from tagi.model.peft_files import load_peft, save_peft
from tagi.model.tagi import neutral

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
BOUND = 5e-6
"""Logits of up to 4.7, fp32; here they were equal to the last bit."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_t5(small_t5(), folder)
    return folder


def theirs(base: Path, folder: Path, strength: float = 0.2, **settings: Any) -> PeftModel:
    """What `peft` writes, with random weights that move the logits."""
    plain = T5ForConditionalGeneration.from_pretrained(base)
    values = {"r": 4, "lora_alpha": 6, "target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"} | settings
    model = get_peft_model(plain, LoraConfig(**values)).eval()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(normal(*parameter.shape, seed=number) * strength)
    model.save_pretrained(str(folder))
    return model


def logits(base: Path, adapter: TaskAdapter, method: str, ids: Tensor, mask: Tensor) -> Tensor:
    model = small_tagi(method, backbone=load_t5(base)).eval()
    with torch.inference_mode():
        return model.respond(adapter, ids, mask, ids, Rows(1, len(ids))).logits


def worn(t5: T5, folder: Path) -> TaskAdapter:
    bare = neutral(t5, 1)
    return TaskAdapter(load_peft(folder, t5, fingerprint(t5)), bare.instruction)


@pytest.mark.parametrize("method", ["lora_only", "tagi"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"r": 3, "lora_alpha": 16, "lora_dropout": 0.1},
        {"target_modules": ["EncDecAttention.q"], "init_lora_weights": False},
        {"target_modules": ["encoder.block.1.layer.0.SelfAttention.v", "q"]},
    ],
    ids=["defaults", "rslora", "another rank", "cross-attention", "one module and q"],
)
def test_a_lora_of_peft_gives_its_logits(base: Path, settings: dict[str, Any], method: str, tmp_path: Path) -> None:
    reference = theirs(base, tmp_path, **settings)
    ids, mask = token_batch([9, 4], seed=0)
    with torch.inference_mode():
        expected = reference(input_ids=ids, attention_mask=mask, labels=ids).logits
    adapter = worn(load_t5(base), tmp_path)
    assert worst(logits(base, adapter, method, ids, mask), expected) < BOUND
    bare = logits(base, adapter.without_modules(), method, ids, mask)
    assert worst(bare, expected) > 0.01, "the LoRA should move the logits"


def test_our_own_files_come_back(base: Path, tmp_path: Path) -> None:
    t5 = load_t5(base)
    lora = random_lora(t5, 1, seed=0)
    save_peft(lora, t5, str(base), tmp_path / "peft", "About.", fingerprint=fingerprint(t5))
    again = load_peft(tmp_path / "peft", t5, fingerprint(t5))
    assert again.keys() == lora.keys()
    for site, factors in lora.items():
        assert torch.equal(again[site].a, factors.a) and torch.equal(again[site].b, factors.b)
        assert again[site].scale == factors.scale
    with pytest.raises(CheckpointError, match="safetensors: belongs to another language model"):
        load_peft(tmp_path / "peft", t5, "another")


GPT2 = next(one for one in VARIANTS if one.name == "gpt2")


@pytest.mark.parametrize("variant", [one for one in ONE_EACH if one is not GPT2], ids=lambda variant: variant.name)
def test_a_decoder_s_lora_goes_to_peft_and_comes_back(variant: Variant, tmp_path: Path) -> None:
    """Of q and v, which differ in width under grouped heads; logits of `peft` on the same prompt."""
    both = pair(variant)
    lora = random_lora(both.ours, 1, seed=0)
    save_peft(lora, both.ours, str(both.folder), tmp_path / "a", "About.", fingerprint=fingerprint(both.ours))
    theirs: Any = PeftModel.from_pretrained(copy.deepcopy(both.theirs), str(tmp_path / "a")).eval()
    ids, mask = token_batch([9, 9], seed=0)
    answers, _ = token_batch([3, 3], seed=1)
    again = load_peft(tmp_path / "a", both.ours, fingerprint(both.ours))
    with torch.inference_mode():
        expected = theirs(input_ids=torch.cat((ids, answers), dim=1), use_cache=False).logits[:, 8:-1]
        found, bare = (
            both.ours.score(ids, mask, answers, prepared=Prepared(1, modules), rows=Rows(1, 2))
            for modules in (again, {})
        )
    assert worst(found, expected) < 5e-5  # logits of up to 40
    assert worst(bare, expected) > 0.1, "the LoRA should move the logits"


def test_gpt2_has_q_k_and_v_in_one_projection_which_peft_cannot_adapt_apart(tmp_path: Path) -> None:
    ours = pair(GPT2).ours
    with pytest.raises(CheckpointError, match=r"a: gpt2 has q, k and v in one projection, which PEFT cannot adapt apa"):
        save_peft(random_lora(ours, 1, seed=0), ours, "base", tmp_path / "a", "About.")
    assert not (tmp_path / "a").exists()


def edit(**values: Any) -> Callable[[Path], None]:
    """Change adapter_config.json."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text()) | values
        (folder / "adapter_config.json").write_text(json.dumps(config))

    return damage


def retensor(name: str, tensor: Tensor | None) -> Callable[[Path], None]:
    """Replace a tensor, add one, or leave it out."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors") | {name: tensor}
        save_file({n: x for n, x in tensors.items() if x is not None}, folder / "adapter_model.safetensors")

    return damage


def pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04\x8c\x02os\x8c\x06system\x93.")


A = "base_model.model.decoder.block.1.layer.1.EncDecAttention.v.lora_A.weight"
B = A.replace("lora_A", "lora_B")
CONFIG, WEIGHTS = "{0}/adapter_config.json: ", "{0}/adapter_model.safetensors: "
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickled": (pickle, "{0}/adapter_model.bin: is pickled and never opened"),
    "no weights": (lambda d: (d / "adapter_model.safetensors").unlink(), WEIGHTS + "is missing"),
    "half a config": (lambda d: (d / "adapter_config.json").write_text('{"r": '), CONFIG + "is damaged"),
    "another type": (edit(peft_type="IA3"), CONFIG + "peft_type: Input should be 'LORA'"),
    "no rank": (edit(r=0), CONFIG + "r: Input should be greater than 0"),
    "no finite scale": (
        edit(lora_alpha=float("inf")),
        CONFIG + "is damaged or of another version (is not JSON (Infinity is no JSON number))",
    ),
    "another rank": (edit(r=5), f"{WEIGHTS}tensor "),
    "dora": (edit(use_dora=True), CONFIG + "use_dora: True is not supported"),
    "bias": (edit(bias="all"), CONFIG + "bias: 'all' is not supported"),
    "ranks by pattern": (edit(rank_pattern={"q": 2}), CONFIG + "rank_pattern: {{'q': 2}} is not supported"),
    "the first layer only": (edit(layers_to_transform=0), CONFIG + "layers_to_transform: 0 is not supported"),
    "whole modules": (edit(modules_to_save=["lm_head"]), CONFIG + "modules_to_save: ['lm_head'] is not supported"),
    "a later setting": (edit(use_tomorrow=1.5), CONFIG + "use_tomorrow: 1.5 is not supported"),
    "pissa": (edit(init_lora_weights="pissa"), CONFIG + "init_lora_weights: 'pissa' changes the language model too"),
    "keys": (
        edit(target_modules=["q", "k"]),
        CONFIG + "target_modules: 'k' is no projection of this model that LoRA",
    ),
    "a pattern": (edit(target_modules=".*[qv]"), CONFIG + "target_modules: Input should be a valid list"),
    "no target": (edit(target_modules=[]), CONFIG + "target_modules: List should have at least 1 item"),
    "a missing tensor": (retensor(B, None), WEIGHTS + f"tensor {B} is missing"),
    "a tensor too many": (retensor("x.lora_A.weight", torch.ones(1)), WEIGHTS + "tensor x.lora_A.weight is no LoRA of"),
    "narrow A": (retensor(A, torch.ones(4, 31)), WEIGHTS + f"tensor {A} has shape (4, 31), not (4, 32)"),
    "narrow B": (retensor(B, torch.ones(23, 4)), WEIGHTS + f"tensor {B} has shape (23, 4), not (24, 4)"),
}


@pytest.fixture(scope="module")
def written(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft")
    theirs(base, folder)
    return folder


@pytest.mark.parametrize("name", DAMAGES)
def test_what_cannot_be_worn_is_refused_by_name(name: str, base: Path, written: Path, tmp_path: Path) -> None:
    damage, message = DAMAGES[name]
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        worn(load_t5(base), tmp_path)
    assert message.format(tmp_path) in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [A, B])
def test_a_non_finite_lora_is_refused_by_name(
    name: str, value: float, base: Path, written: Path, tmp_path: Path
) -> None:
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensor = load_file(tmp_path / "adapter_model.safetensors")[name]
    tensor.view(-1)[3] = value
    retensor(name, tensor)(tmp_path)
    with pytest.raises(CheckpointError, match=rf"adapter_model.safetensors: .*{name}.* finite"):
        worn(load_t5(base), tmp_path)


FOLLOWED = {"peft_type", "r", "lora_alpha", "target_modules", "use_rslora", "init_lora_weights"}
INERT = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "megatron_core", "qalora_group_size", "eva_config", "ensure_weight_tying",
}  # fmt: skip


@pytest.mark.parametrize("field", sorted({one.name for one in fields(LoraConfig)} - FOLLOWED - INERT))
def test_every_setting_of_peft_that_is_not_followed_is_refused(
    field: str, base: Path, written: Path, tmp_path: Path
) -> None:
    """Whatever this or a later peft knows: a setting that is on and that we do not follow would change the answers."""
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    edit(**{field: {"q": 3}})(tmp_path)
    with pytest.raises(CheckpointError, match=f"adapter_config.json: {field}: {{'q': 3}} is not supported"):
        worn(load_t5(base), tmp_path)


@pytest.mark.parametrize("field", ["r", "lora_alpha", "target_modules", "peft_type"])
def test_what_a_lora_needs_is_not_guessed(field: str, base: Path, written: Path, tmp_path: Path) -> None:
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    del config[field]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"adapter_config.json: {field}: Field required"):
        worn(load_t5(base), tmp_path)


@pytest.fixture
def trained_elsewhere(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    theirs(checkpoint / "backbone", tmp_path / "peft", strength=2.0)  # changes answers, not only logits
    capsys.readouterr()  # what transformers prints
    return tmp_path / "peft"


def test_run_wears_a_lora_of_peft(tagi: Run, checkpoint: Path, trained_elsewhere: Path, tmp_path: Path) -> None:
    """On a method with fusion, beside an empty memory."""
    model = Tagi.from_pretrained(checkpoint)
    adapter = model.load_adapter(trained_elsewhere)
    assert adapter.instruction.hidden.shape == (1, 0, 16) and len(adapter.modules) == 6
    expected = model.generate(["cat dog xyzzy"], adapter)[0]
    assert expected != model.generate(["cat dog xyzzy"], model.neutral())[0]
    result = tagi("run", "--adapter", trained_elsewhere, "--input", "cat dog xyzzy", "--checkpoint", checkpoint)
    assert result == (0, f"{expected}\n", "note: the model does not know xyzzy\n")
    adapter.save_pretrained(tmp_path / "ours")
    assert model.generate(["cat dog xyzzy"], model.load_adapter(tmp_path / "ours"))[0] == expected


def test_run_refuses_a_pickle(tagi: Run, checkpoint: Path, trained_elsewhere: Path) -> None:
    pickle(trained_elsewhere)
    result = tagi("run", "--adapter", trained_elsewhere, "--input", "cat", "--checkpoint", checkpoint)
    mistake(result, f"{trained_elsewhere}/adapter_model.bin: is pickled and never opened")
