"""Step-by-step traces of generation: the candidates for each token, the tokens that filters remove, and the
chosen token.

The loop is in generator.py; a subclass of Sampler records the choices.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from llmcli.config import SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.generation.generator import generate
from llmcli.generation.sampler import Ids, Sampler
from llmcli.models.logits import entropy, softmax
from llmcli.models.runtime import Array, Ints, Runtime

SHOWN = 5  # candidates per step


@dataclass(frozen=True)
class CandidateToken:
    """A token that could be chosen."""

    id: int
    probability: float  # under the model; for the first token, summed over the tokenizations of the prompt
    sampling_probability: float  # after temperature and filters
    removed_by: str | None = None  # the filter that removed it


@dataclass(frozen=True)
class TraceStep:
    """The choice of one token."""

    candidates: tuple[CandidateToken, ...]  # most likely first
    chosen: CandidateToken
    remaining: int  # number of tokens left after all filters
    # (filter: "top-k", "top-p" or "min-p"; tokens that it removed; their total probability under the model)
    removals: tuple[tuple[str, int, float], ...]
    entropy: float  # entropy in bits of the model's distribution over the tokens that may be next
    retokenized: (
        bool  # several tokenizations of the prompt's end were summed; tokens may begin inside the prompt
    )
    text: str = ""  # added by the token; "" while a character is incomplete
    finish_reason: str | None = None  # "stop" if the end of the document was chosen


def trace(
    runtime: Runtime, tokenizer: Tokenizer, prompt: str, sampling: SamplingConfig, *, literal: bool = False
) -> Iterator[TraceStep]:
    """Yield the steps of `generate`; stop strings are ignored. Raises LLMError like `generate`."""
    sampler = _RecordingSampler(replace(sampling, stop=()))
    for piece in generate(runtime, tokenizer, prompt, sampler, literal=literal):
        if not sampler.steps:  # a limit ended the text
            return
        step = sampler.steps.popleft()  # several are chosen before their pieces come if a draft was right
        # a piece has the id of its token; the sampler may have chosen an entry that stands for this token
        chosen = step.chosen if piece.id is None else replace(step.chosen, id=piece.id)
        shown = tuple(chosen if candidate == step.chosen else candidate for candidate in step.candidates)
        yield replace(
            step, chosen=chosen, candidates=shown, text=piece.text, finish_reason=piece.finish_reason
        )


class _RecordingSampler(Sampler):
    def __init__(self, config: SamplingConfig) -> None:
        super().__init__(config)
        self.steps = deque[TraceStep]()  # steps that the caller has not taken yet

    def __call__(
        self, logits: Array, seen: Ids = (), *, model_logits: Array | None = None, tokens: Ints | None = None
    ) -> tuple[int, float]:
        chosen, logprob = super().__call__(logits, seen, model_logits=model_logits, tokens=tokens)
        known = logits if model_logits is None else model_logits
        probabilities = softmax(known)
        removals: list[tuple[str, int, float]] = []
        removed_by: dict[int, str] = {}
        filtered = logits
        for name, after in self.stages(logits, seen, tokens):
            removed = np.flatnonzero(np.isneginf(after) & ~np.isneginf(filtered)).tolist()
            if removed:
                removals.append((name, len(removed), float(probabilities[removed].sum())))
                removed_by |= dict.fromkeys(removed, name)
            filtered = after
        if self.config.temperature == 0:
            filtered = np.where(np.arange(len(filtered)) == chosen, np.float32(0), np.float32(-np.inf))
        sampling_probabilities = softmax(filtered)

        def candidate(i: int) -> CandidateToken:
            token = i if tokens is None else int(tokens[i])
            return CandidateToken(
                token, float(probabilities[i]), float(sampling_probabilities[i]), removed_by.get(i)
            )

        ranked = [i for i in np.argsort(-probabilities, kind="stable").tolist() if np.isfinite(logits[i])]
        self.steps.append(
            TraceStep(
                candidates=tuple(map(candidate, ranked[:SHOWN])),
                chosen=candidate(chosen),
                remaining=int(np.isfinite(filtered).sum()),
                removals=tuple(removals),
                entropy=entropy(softmax(known[np.isfinite(logits)])),
                retokenized=tokens is not None,
            )
        )
        return chosen, logprob
