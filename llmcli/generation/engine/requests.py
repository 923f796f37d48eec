"""The engine's requests and events: plain data, independent of HTTP and of models."""

from collections.abc import Callable
from dataclasses import dataclass, field

from llmcli.config import SamplingConfig
from llmcli.errors import LLMError
from llmcli.generation.grammar import GrammarState
from llmcli.generation.token_healing import Prompt


@dataclass(frozen=True)
class GenerationRequest:
    """A request to continue tokens."""

    model: str  # served name
    prompt: Prompt
    sampling: SamplingConfig
    stop_ids: frozenset[int] = frozenset()  # tokens that end the text in addition to the tokenizer's
    top_logprobs: int = 0  # number of alternatives to report per token
    prompt_logprobs: bool = False  # also report log probabilities of the prompt, which has no tail
    # the text is one of these choices: an answer if there are stop_ids, otherwise a continuation
    choices: tuple[str, ...] = ()
    dropped_turns: int = 0  # oldest turns of a conversation that are not in the prompt
    # the grammar of `sampling`, compiled beforehand so that the engine does not wait for the compiler
    grammar: GrammarState | None = None


@dataclass(frozen=True)
class Token:
    """A token with its natural log probability under the model, before any filter. A new token also has the
    text that it completes. If the prompt ends inside a word, the `text_bytes` of the first token are only the
    bytes beyond the prompt."""

    # None for a choice, and for text that no single token spells (after a prompt with several tokenizations)
    id: int | None
    text_bytes: bytes
    logprob: float | None  # None: the first token of a prompt
    alternatives: "tuple[Token, ...]" = ()  # most likely first; theirs are empty
    text: str = ""  # "" while a character or a possible stop string is incomplete
    ends_text: bool = False  # an end-of-text token, which is not part of the text


@dataclass(frozen=True)
class Started:
    """The prompt was processed; `prompt` has its tokens if they were requested."""

    prompt_tokens: int  # without those that do not fit the context
    cached_tokens: int  # tokens whose keys and values came from an earlier request
    prompt: tuple[Token, ...] = ()
    ids: tuple[int, ...] = ()  # the tokens before the first new one


@dataclass(frozen=True)
class Finished:
    """The text ended."""

    reason: str  # "stop" or "length"
    tokens: int  # number of new tokens


class UnavailableError(LLMError):
    """The engine cannot process a request now; a later one may succeed. The `code` is "queue_full" if too
    many requests are waiting, "stopping" while the server stops, or "unavailable" if no threads or memory are
    left or the engine has ended."""

    def __init__(self, message: str, code: str = "unavailable") -> None:
        super().__init__(message)
        self.code = code


def stopping() -> UnavailableError:
    return UnavailableError("the server is stopping; try again later", "stopping")


# Started, any number of Token, then Finished; or an exception at any point
Event = Started | Token | Finished | Exception
OnEvent = Callable[[Event], None]  # called in the engine's thread; must return quickly


@dataclass
class Generated:
    """The part of a text that has been generated so far."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    started: Started | None = None
    finished: Finished | None = None
    _sent: int = 0  # number of tokens

    def take_unsent(self) -> list[Token]:
        """Return the tokens since the last call."""
        tokens = self.tokens[self._sent :]
        self._sent = len(self.tokens)
        return tokens

    def add(self, event: Event) -> None:
        match event:
            case Started():
                self.started = event
            case Token():
                self.text += event.text
                self.tokens.append(event)
            case Finished():
                self.finished = event


@dataclass(frozen=True)
class EngineLimits:
    """The limits of the engine; docs/serve.md lists the numbers."""

    concurrent: int = 16  # sequences decoded together
    queue: int = 64  # waiting requests; more are refused
    live_bytes: int = 4 << 30  # keys and values of sequences decoded together; one always runs
    prefix_bytes: int = 1 << 30  # keys and values kept from earlier requests
