"""How one answer grows token by token: greedy, sampled, or by beam search. Pure functions of scores and values."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, Protocol

import torch
from torch import Tensor

from tagi.errors import InputError

FinishReason = Literal["end", "stop", "length"]
"""Why an answer ended: the model said so, a stop string came, or it was as long as allowed."""
Stops = Callable[[Sequence[int]], bool]
"""Whether an answer is complete with the last of these tokens."""


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """How answers are searched for; the default is greedy.

    Raises:
        InputError: a value outside of its range, or sampled beams.
    """

    beams: int = 1
    length_penalty: float = 1.0
    """A finished beam's log-likelihood is divided by its tokens to this power."""
    temperature: float = 0.0
    """0 takes the most likely token, otherwise tokens are drawn from softmax(logits / temperature)."""
    top_p: float = 1.0
    """Tokens are drawn from the fewest that together have this probability (Holtzman et al., 2020)."""
    seed: int = 0
    max_new_tokens: int | None = None
    """Of an answer; None means as many as the model was trained to write."""
    min_new_tokens: int = 0
    """Tokens before which an answer cannot end by itself."""
    stop: Sequence[str] = ()
    """An answer ends before the first of these; a string is one of them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()))
        self._check_kinds()
        if self.beams < 1:
            raise InputError(f"beams: {self.beams} is not at least 1")
        if self.temperature < 0:
            raise InputError(f"temperature: {self.temperature} is negative")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p: {self.top_p} is not above 0 and at most 1")
        if self.beams > 1 and self.temperature:
            raise InputError("beams: beam search does not sample; leave temperature at 0")
        if self.max_new_tokens is not None and self.max_new_tokens < max(self.min_new_tokens, 1):
            raise InputError(f"max_new_tokens: {self.max_new_tokens} is not at least {max(self.min_new_tokens, 1)}")

    def _check_kinds(self) -> None:
        for name in ("beams", "max_new_tokens", "min_new_tokens", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) and not (name == "max_new_tokens" and value is None):
                raise InputError(f"{name}: {value!r} is no whole number")
        for name in ("length_penalty", "temperature", "top_p"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"{name}: {value!r} is no finite number")
        for one in self.stop:
            if not isinstance(one, str):
                raise InputError(f"stop: {one!r} is no string")
            if not one:
                raise InputError("stop: a stop string is empty")


GREEDY = GenerationConfig()


@dataclass(frozen=True, slots=True)
class Limits:
    """Where an answer ends, besides the end tokens."""

    ends: tuple[int, ...]
    """The end tokens."""
    max_new_tokens: int
    min_new_tokens: int = 0
    """Tokens before which it cannot end."""
    stops: Stops | None = None

    def finish_reason(self, tokens: Sequence[int]) -> FinishReason | None:
        """Why the answer is complete, if it is."""
        if tokens[-1] in self.ends:
            return "end"
        if self.stops is not None and self.stops(tokens):
            return "stop"
        return "length" if len(tokens) >= self.max_new_tokens else None

    def allowed(self, scores: Tensor, produced: int) -> Tensor:
        """Scores (..., V) without the end tokens while the answer is too short."""
        if produced >= self.min_new_tokens:
            return scores
        return scores.index_fill(-1, torch.tensor(self.ends, device=scores.device), -torch.inf)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of a search gives."""

    search: "Search"
    tokens: Sequence[int]
    """The next token of each beam."""
    parents: Sequence[int] | None
    """The beam that each goes on from; None where each goes on from itself."""
    emitted: Sequence[int]
    """Tokens of the answer that are settled now."""
    finish_reason: FinishReason | None


class Search(Protocol):
    """One answer on its way."""

    def step(self, scores: Tensor, best: Sequence[int]) -> Step:
        """Logits (beams, V) in fp32, and the most likely token of each beam, to the next tokens."""
        ...


def begin(generation: GenerationConfig, limits: Limits, seed: str) -> Search:
    """An answer of no tokens yet; `seed` decides what is drawn."""
    if generation.beams > 1:
        beams = generation.beams
        return Beams(generation, limits, ((),) * beams, (0.0,) + (-LARGE,) * (beams - 1), ())
    return Line(generation, limits, seed)


@dataclass(frozen=True, slots=True)
class Line:
    """A single answer, its tokens the most likely ones or drawn."""

    generation: GenerationConfig
    limits: Limits
    seed: str
    tokens: tuple[int, ...] = ()

    def step(self, scores: Tensor, best: Sequence[int]) -> Step:
        token = self._choose(scores[0], best[0])
        tokens = (*self.tokens, token)
        return Step(replace(self, tokens=tokens), [token], None, [token], self.limits.finish_reason(tokens))

    def _choose(self, scores: Tensor, best: int) -> int:
        produced = len(self.tokens)
        if not self.generation.temperature and (best not in self.limits.ends or produced >= self.limits.min_new_tokens):
            return best
        scores = self.limits.allowed(scores, produced)
        if not self.generation.temperature:
            return int(scores.argmax())
        drawn = Random(f"{self.seed} {produced}").random()
        return sample(scores, self.generation.temperature, self.generation.top_p, drawn)


def sample(scores: Tensor, temperature: float, top_p: float, drawn: float) -> int:
    """The token of softmax(scores / temperature), cut to its `top_p` nucleus, that a uniform number picks."""
    probabilities, tokens = (scores.cpu().double() / temperature).softmax(-1).sort(descending=True, stable=True)
    total = probabilities.cumsum(-1)
    kept = int((total - probabilities < top_p).sum())
    place = int(torch.searchsorted(total[:kept], drawn * total[kept - 1], right=True))
    return int(tokens[min(place, kept - 1)])


LARGE = 1e9
"""Below every log-likelihood: beams that do not exist yet."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A complete answer, and its log-likelihood over its tokens to the power of the length penalty."""

    score: float
    tokens: tuple[int, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Beams:
    """The likeliest unfinished answers and the best finished ones: `transformers`' search with early_stopping=False."""

    generation: GenerationConfig
    limits: Limits
    tokens: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...]
    finished: tuple[Finished, ...]

    def step(self, scores: Tensor, best: Sequence[int]) -> Step:
        count = self.generation.beams
        likelihood = self.limits.allowed(scores.log_softmax(-1), len(self.tokens[0]))
        total = likelihood + torch.tensor(self.scores, device=scores.device)[:, None]
        candidates = count * max(2, 1 + len(self.limits.ends))  # a beam may end in as many ways, and go on
        values, places = total.flatten().topk(min(candidates, total.numel()))
        parents, tokens = (places // scores.shape[-1]).tolist(), (places % scores.shape[-1]).tolist()
        grown = [(*self.tokens[parent], token) for parent, token in zip(parents, tokens, strict=True)]
        reasons: list[FinishReason | None] = [self.limits.finish_reason(each) for each in grown]
        finished = self._with(grown[:count], values[:count].tolist(), reasons[:count])
        going = [i for i, reason in enumerate(reasons) if reason is None][:count]
        if not going or self._settled(values[going[0]].item(), len(grown[0]), finished):
            return Step(self, [], None, finished[0].tokens, finished[0].finish_reason)
        going += going[-1:] * (count - len(going))  # where stop strings ended more beams than there are spare ones
        next_scores = [values[i].item() if i not in going[:place] else -LARGE for place, i in enumerate(going)]
        search = replace(self, tokens=tuple(grown[i] for i in going), scores=tuple(next_scores), finished=finished)
        return Step(search, [tokens[i] for i in going], [parents[i] for i in going], (), None)

    def _with(
        self, grown: Sequence[tuple[int, ...]], values: Sequence[float], reasons: Sequence[FinishReason | None]
    ) -> tuple[Finished, ...]:
        """The best finished answers, with those among the likeliest that have just been finished."""
        new = [
            Finished(value / len(tokens) ** self.generation.length_penalty, tokens, reason)
            for tokens, value, reason in zip(grown, values, reasons, strict=True)
            if reason is not None
        ]
        best = sorted((*self.finished, *new), key=lambda one: -one.score)
        return tuple(best[: self.generation.beams])

    def _settled(self, best: float, length: int, finished: Sequence[Finished]) -> bool:
        """Whether no unfinished answer, at its present length, is better than the worst finished one."""
        if len(finished) < self.generation.beams:
            return False
        return best / length**self.generation.length_penalty <= finished[-1].score
