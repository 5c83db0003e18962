"""What callers send, checked field by field; names are OpenAI's where OpenAI has them."""

from dataclasses import replace
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from tagi.data.types import Demonstration, Instruction
from tagi.infer.search import GenerationConfig
from tagi.serve.registry import MOST_EXAMPLES

LONGEST_TEXT = 200_000
"""Characters of one text; what the model can read is far less."""
MOST_TOKENS = 1024
"""Of one answer."""

Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Ids = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1, max_length=LONGEST_TEXT)]


class Asked(BaseModel):
    """A request of ours: fields that nobody knows are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Example(Asked):
    """A worked example."""

    input: Text
    output: Text


class NewTask(Asked):
    """`POST /v1/tasks`."""

    instruction: Text
    name: str | None = None
    examples: list[Example] = Field(default=[], max_length=MOST_EXAMPLES)
    choices: list[Text] = Field(default=[], max_length=256)

    @property
    def told(self) -> Instruction:
        """The instruction with its examples."""
        return Instruction(self.instruction, tuple(Demonstration(one.input, one.output) for one in self.examples))


class Sampling(BaseModel):
    """How answers are searched for, in OpenAI's words."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # clients of OpenAI send fields that do not matter here

    max_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None

    @property
    def generation(self) -> GenerationConfig:
        """The same for the engine."""
        return GenerationConfig(
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed or 0,
            max_new_tokens=self.max_tokens,
            stop=self.stop or (),
        )


class Item(Asked):
    """An input with a task of its own."""

    input: Text
    task: str | None = None
    instruction: Text | None = None


class Generate(Sampling):
    """`POST /v1/generate`: inputs of one task or of many; an item's own task goes before the request's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: list[Text | Item] = Field(min_length=1)
    task: str | None = None
    instruction: Text | None = None


class Score(Asked):
    """`POST /v1/score`: the likeliest of some answers to each input."""

    inputs: list[Text] = Field(min_length=1)
    choices: list[Text] | None = Field(default=None, min_length=1, max_length=256)
    task: str | None = None
    instruction: Text | None = None


class OpenAI(Sampling):
    """What OpenAI's two endpoints share."""

    model: str
    n: int = Field(default=1, ge=1, le=16)
    stream: bool = False


class Completion(OpenAI):
    """`POST /v1/completions`."""

    prompt: Text | list[Text] | Ids | list[Ids] = Field(min_length=1)
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=5)

    @property
    def prompts(self) -> list[str | list[int]]:
        """One by one, as texts or as token ids."""
        alone = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return cast("list[str | list[int]]", [self.prompt] if alone else self.prompt)


class Message(BaseModel):
    """One message; its content may come in parts."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """The content as one text; parts that are no text count for nothing."""
        if isinstance(self.content, list):
            return "".join(str(part.get("text", "")) for part in self.content if part.get("type") == "text")
        return self.content or ""


class Chat(OpenAI):
    """`POST /v1/chat/completions`: one message of a user is the input; the task has its instruction already."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    logprobs: bool = False

    @property
    def generation(self) -> GenerationConfig:
        """As of `Sampling`, under the newer name of `max_tokens` too."""
        return replace(super().generation, max_new_tokens=self.max_completion_tokens or self.max_tokens)
