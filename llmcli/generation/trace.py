"""Prompt -> an answer token by token: the candidates for each, what cut some of them, and the one chosen.

The loop is generator.py's and the choice sampler.py's; here somebody takes notes of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmcli.config import SamplingConfig
from llmcli.data.tokenizer import Tokenizer
from llmcli.generation.generator import generate
from llmcli.generation.sampler import Ids, Sampler
from llmcli.models.logits import entropy, softmax
from llmcli.models.runtime import Array, Runtime


@dataclass(frozen=True)
class Candidate:
    """A token that could be chosen."""

    id: int
    probability: float  # the model's own; of the first token given the prompt's text, however that is split into tokens
    chance: float  # of being chosen, after temperature and filters
    cut_by: str | None = None  # the filter that let it no longer be chosen


@dataclass(frozen=True)
class Cut:
    """What a filter took away."""

    by: str  # "top-k", "top-p" or "min-p"
    tokens: int
    probability: float  # of them all, the model's own


@dataclass(frozen=True)
class Choice:
    """One step of the walk."""

    candidates: tuple[Candidate, ...]  # the likeliest first
    chosen: Candidate
    left: int  # tokens that could be chosen
    cuts: tuple[Cut, ...]
    entropy: float  # of the model's own probabilities, in bits
    spelling: bool  # several ways to split the prompt's end into tokens were summed; a token may begin inside it
    text: str = ""  # what it adds to the text; "" while a character is incomplete
    finish_reason: str | None = None  # "stop" where the end of the document was chosen


class _Watched(Sampler):
    """Chooses like any other, and keeps how."""

    def __init__(self, config: SamplingConfig, candidates: int) -> None:
        super().__init__(config)
        self._shown = candidates
        self.choices: list[Choice] = []  # not yet told

    def __call__(
        self,
        logits: Array,
        seen: Ids = (),
        *,
        own: Array | None = None,
        tokens: NDArray[np.int64] | None = None,
    ) -> tuple[int, float]:
        token, logprob = super().__call__(logits, seen, own=own, tokens=tokens)
        own = softmax(logits if own is None else own)
        cut_by: dict[int, str] = {}
        cuts, before = [], logits
        for name, after in self.stages(logits, seen, tokens):
            gone = np.flatnonzero(np.isneginf(after) & ~np.isneginf(before)).tolist()
            if gone:
                cuts.append(Cut(name, len(gone), float(own[gone].sum())))
                cut_by |= dict.fromkeys(gone, name)
            before = after
        chances = softmax(before)
        left = int(np.isfinite(before).sum())
        if self._config.temperature == 0:
            chances = np.zeros_like(chances)
            chances[token], left = 1, 1
        ranked = [int(i) for i in np.argsort(-own, kind="stable") if np.isfinite(logits[i])][: self._shown]

        def candidate(i: int) -> Candidate:
            shown = i if tokens is None else int(tokens[i])
            return Candidate(shown, float(own[i]), float(chances[i]), cut_by.get(i))

        self.choices.append(
            Choice(
                candidates=tuple(map(candidate, ranked)),
                chosen=candidate(token),
                left=left,
                cuts=tuple(cuts),
                entropy=entropy(own),
                spelling=tokens is not None,
            )
        )
        return token, logprob


def walk(
    runtime: Runtime,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: SamplingConfig,
    *,
    literal: bool = False,
    candidates: int = 5,
) -> Iterator[Choice]:
    """The steps of `generate` with the same values, `candidates` shown at each. Stop texts are not looked for. Raises
    LLMError as `generate` does."""
    sampler = _Watched(sampling, candidates)
    sampling = replace(sampling, stop=())
    for piece in generate(runtime, tokenizer, prompt, sampling, literal=literal, sampler=sampler):
        choices, sampler.choices = sampler.choices, []
        for choice in choices:  # one, or none where a limit ended the text
            chosen = choice.chosen if piece.id is None else replace(choice.chosen, id=piece.id)
            shown = tuple(chosen if c == choice.chosen else c for c in choice.candidates)
            yield replace(choice, chosen=chosen, candidates=shown, text=piece.text, finish_reason=piece.finish_reason)
