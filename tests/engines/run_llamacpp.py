"""Answers of llama.cpp's server, for `cases.run`: questions in a file, answers into a file."""

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp  # pyright: ignore[reportMissingImports]
from parting import scored

SHOWN = 1000
"""Most likely tokens that the server names for a place; ours has to be among them."""


def main(question: Path, answer: Path) -> None:
    """Read one file, write the other."""
    asked = json.loads(question.read_text(encoding="utf-8"))
    server = _server(asked)

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{server.listening_address}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as got:
            return json.load(got)

    def complete(prompt: list[int], most: int, probabilities: int = 0, **how: Any) -> dict[str, Any]:
        body = {"temperature": 0.0, "return_tokens": True, "n_probs": probabilities, "n_predict": most}
        return post("completion", body | {"prompt": prompt} | how)

    def bare(prompt: list[int]) -> list[int]:
        # With its cache the server goes on from keys and values that it computed with the LoRA.
        off = {"lora": [{"id": 0, "scale": 0.0}], "cache_prompt": False}
        return complete(prompt, asked["bare"], **off)["tokens"]

    def score(prompt: list[int], own: list[int]) -> tuple[list[int], list[float]]:
        """The greedy answer, and scores of ours: up to where the two part they come with the greedy one."""
        greedy = complete(prompt, asked["max_new_tokens"], probabilities=SHOWN)
        places = greedy["completion_probabilities"][: scored(greedy["tokens"], own)]
        for place in range(len(places), len(own)):
            places += complete(prompt + own[:place], 1, probabilities=SHOWN)["completion_probabilities"]
        scores = [
            next(one["logprob"] for one in place["top_logprobs"] if one["id"] == token)
            for place, token in zip(places, own, strict=True)
        ]
        return greedy["tokens"], scores

    both = [score(prompt, own) for prompt, own in zip(asked["prompts"], asked["answers"], strict=True)]
    found = {
        "answers": [tokens for tokens, _ in both],
        "scores": [scores for _, scores in both],
        "bare": [bare(one) for one in asked["prompts"]],
        "ids": [
            post("tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
            for text in asked["texts"]
        ],
    }
    answer.write_text(json.dumps(found), encoding="utf-8")


def _server(asked: dict[str, Any]) -> Any:
    """One slot, one thread; attention in fp32, which flash attention is not."""
    params = xllamacpp.CommonParams()
    params.model.path = asked["model"]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(asked["adapter"], 1.0)]
    params.n_ctx, params.n_parallel = 1024, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
