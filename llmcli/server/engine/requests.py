"""Requests to the engine and its answers: plain data, without HTTP and without a model."""

from collections.abc import Callable
from dataclasses import dataclass

from llmcli.config import SamplingConfig
from llmcli.errors import LLMError
from llmcli.generation.token_healing import Prompt


@dataclass(frozen=True)
class GenerationRequest:
    """Tokens to continue."""

    model: str  # the name that it is served under
    prompt: Prompt | tuple[int, ...]  # token ids are continued as they are; of a Prompt, the last word may continue
    sampling: SamplingConfig
    stop_ids: frozenset[int] = frozenset()  # end the text, in addition to the tokenizer's
    top_logprobs: int = 0  # alternatives to report for each token
    prompt_logprobs: bool = False  # also report the log probabilities of the prompt's tokens, which must be ids


@dataclass(frozen=True)
class ScoredToken:
    """A token with its log probability under the model (natural, before any filter)."""

    id: int | None  # None: text that no single token spells, at the end of a prompt that is tokenized in several ways
    text_bytes: bytes
    logprob: float | None  # None: the first token of a prompt
    alternatives: "tuple[ScoredToken, ...]" = ()  # most likely first; they have none themselves


@dataclass(frozen=True)
class Started:
    """The prompt is processed; `prompt` has its tokens if they were asked for."""

    prompt_tokens: int
    cached_tokens: int  # how many have their keys and values kept from an earlier request
    prompt: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True)
class Token(ScoredToken):
    """A new token, and the text that it completes. If the prompt ends inside a word, the `text_bytes` of the first
    token are only those beyond the prompt."""

    text: str = ""  # while a character is incomplete, or while a stop string may be beginning
    ends_text: bool = False  # the model's sign that the text ends, which is not part of it


@dataclass(frozen=True)
class Finished:
    """The text ended."""

    reason: str  # "stop" or "length"
    tokens: int  # new tokens


@dataclass(frozen=True)
class Failed:
    """The request ended with an error; nothing follows."""

    error: Exception


class StoppingError(LLMError):
    """The server is being stopped."""

    def __init__(self) -> None:
        super().__init__("the server is stopping; try again later")


class UnavailableError(LLMError):
    """The server lacks threads or memory, or its engine has ended. A later request may succeed."""


class QueueFullError(LLMError):
    """More requests wait than the limit allows; the client may try again later."""


Event = Started | Token | Finished | Failed  # Started, any number of Token, then Finished; or Failed at any place
OnEvent = Callable[[Event], None]  # called in the engine's thread; must return at once


@dataclass(frozen=True)
class Limits:
    """The limits of the engine; docs/serve.md lists the numbers."""

    concurrent: int = 16  # sequences that are decoded together
    queue: int = 64  # requests that wait; more are refused
    live_bytes: int = 4 << 30  # keys and values of sequences that are decoded together; one always runs
    prefix_bytes: int = 1 << 30  # keys and values kept of earlier requests
    context: int | None = None  # tokens; None: the model's context length
