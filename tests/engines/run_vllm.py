"""Answers of vLLM, for `cases.run`: questions in a file, answers into a file."""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # a core of its own may be busy with other work

from parting import scored
from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]
from vllm.lora.peft_helper import PEFTHelper  # pyright: ignore[reportMissingImports]
from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

SHOWN = 20
"""Most likely tokens that are named for a place; ours has to be among them."""


def main(question: Path, answer: Path) -> None:
    """Read one file, write the other."""
    asked = json.loads(question.read_text(encoding="utf-8"))
    llm = LLM(
        model=asked["model"],
        enable_lora=True,
        max_lora_rank=8,
        dtype=asked["dtype"],
        max_model_len=1024,
        enforce_eager=True,  # nothing is compiled, which takes longer than all that is asked here
    )
    lora = LoRARequest("adapter", 1, asked["adapter"])

    def generate(prompts: list[list[int]], with_lora: bool, **how: Any) -> list[Any]:
        sampling = SamplingParams(temperature=0.0, detokenize=False, **how)
        texts = [{"prompt_token_ids": prompt} for prompt in prompts]
        return llm.generate(texts, sampling, lora_request=lora if with_lora else None, use_tqdm=False)

    def score(prompt: list[int], own: list[int], greedy: Any) -> list[float]:
        """Scores of our answer: up to where the two part they come with the greedy one."""
        places = greedy.logprobs[: scored(greedy.token_ids, own)]
        wholes = [prompt + own[:place] for place in range(len(places), len(own))]
        # Scores of a prompt would be one request, but with a LoRA vLLM's CPU build fails at them.
        places += [one.outputs[0].logprobs[0] for one in generate(wholes, True, max_tokens=1, logprobs=SHOWN)]
        return [place[token].logprob for place, token in zip(places, own, strict=True)]

    how = {"stop_token_ids": asked["ends"], "logprobs": SHOWN}
    greedy = [one.outputs[0] for one in generate(asked["prompts"], True, max_tokens=asked["max_new_tokens"], **how)]
    bare = generate(asked["prompts"], False, max_tokens=asked["bare"], stop_token_ids=asked["ends"])
    tokenizer = llm.get_tokenizer()
    found = {
        "answers": [list(one.token_ids) for one in greedy],
        "scores": [score(*each) for each in zip(asked["prompts"], asked["answers"], greedy, strict=True)],
        "bare": [list(one.outputs[0].token_ids) for one in bare],
        "refusal": _refusal(llm, Path(asked["refused"])),
        "ids": [tokenizer(text)["input_ids"] for text in asked["texts"]],
    }
    answer.write_text(json.dumps(found), encoding="utf-8")


def _refusal(llm: Any, adapter: Path) -> str | None:
    """What vLLM says of an adapter before it loads it; None if it would."""
    config = llm.llm_engine.vllm_config.lora_config
    try:
        PEFTHelper.from_local_dir(str(adapter), None).validate_legal(config)
    except ValueError as error:
        return str(error)
    return None


if __name__ == "__main__":  # vLLM starts a process of its own, which opens this file again
    main(Path(sys.argv[1]), Path(sys.argv[2]))
