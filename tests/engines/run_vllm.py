"""Answers of vLLM, for `cases.run`: questions in a file, answers into a file."""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}

from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports] # noqa: E402
from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports] # noqa: E402


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

    def answers(with_lora: bool, most: int) -> list[list[int]]:
        how = {"max_tokens": most, "stop_token_ids": asked["ends"]}
        return [list(one.outputs[0].token_ids) for one in generate(asked["prompts"], with_lora, **how)]

    wholes = [prompt + own for prompt, own in zip(asked["prompts"], asked["answers"], strict=True)]
    read = generate(wholes, with_lora=True, max_tokens=1, prompt_logprobs=0)
    scores = [
        [one.prompt_logprobs[place][whole[place]].logprob for place in range(len(prompt), len(whole))]
        for one, prompt, whole in zip(read, asked["prompts"], wholes, strict=True)
    ]
    tokenizer = llm.get_tokenizer()
    found = {
        "answers": answers(True, asked["max_new_tokens"]),
        "bare": answers(False, asked["bare"]),
        "scores": scores,
        "ids": [tokenizer(text)["input_ids"] for text in asked["texts"]],
    }
    answer.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":  # vLLM starts a process of its own, which opens this file again
    main(Path(sys.argv[1]), Path(sys.argv[2]))
