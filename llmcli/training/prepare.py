"""Corpus -> training and held-out tokens, tokenizer, plan and the start of the training record."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.config import ModelConfig
from llmcli.data.corpus import Corpus
from llmcli.data.tokenizer import Tokenizer
from llmcli.data.tokens import count_bytes, tokenize, used_tokens
from llmcli.data.train_tokenizer import nearest_power_of_two, train_tokenizer
from llmcli.data.vocabulary_limits import MAX_DEFAULT_VOCAB_SIZE, MIN_DEFAULT_VOCAB_SIZE
from llmcli.training.cost_model import Machine
from llmcli.training.plan import Plan, PlanRow, Request
from llmcli.training.planner import make_plan

HELD_OUT = 0.1  # share of the corpus at its end that is held out
# Most bytes of text that a run reads: factor * (time budget x threads) ** exponent, a third more than any plan has
# time for once (LOG.md, "100 MB of text in 30 seconds")
CPU_BYTES_FACTOR, GPU_BYTES_FACTOR, BYTES_EXPONENT = 4e5, 1.2e7, 0.6
MIN_BYTES = 1_000_000
VOCABULARY_FACTOR = 170  # of a CPU: the output layer must leave time for the others; factor * sqrt(core-seconds)

TokenIds = NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Prepared:
    """A plan with the tokens to train on."""

    plan: Plan
    tokenizer: Tokenizer
    tokens: TokenIds  # training text
    held_out: TokenIds  # validation text; may be empty
    record: dict[str, Any]  # the corpus, for the training record
    max_bytes: int = sys.maxsize  # of training text that the time budget allows for

    def read_from(self, corpus: Corpus) -> Iterator[Iterator[str]]:
        """The text of `tokens`: one iterator of pieces for each of its parts."""
        return corpus.sample(0, self.record["train_bytes"], self.max_bytes)


def prepare(
    request: Request,
    corpus: Corpus,
    machine: Machine | None = None,
    *,
    held_out: Corpus | float = HELD_OUT,
    tokenizer: Tokenizer | None = None,
    characters: bool = False,
    base: ModelConfig | None = None,
    tokenizer_reason: str = "from the tokenizer given",
) -> Prepared:
    """Split the corpus, train a tokenizer unless one is given, tokenize, plan.

    `held_out` is another corpus, or a share of this one to hold out at its end. `characters` makes each character a
    token. `base` is the model to fine-tune, if any. `tokenizer_reason` says where a given tokenizer comes from. Raises
    LLMError when the corpus is too short.
    """
    max_bytes = _max_bytes(request)
    split = _split(corpus, held_out, max_bytes)
    if tokenizer is None:
        tokenizer, tokenizer_reason = train_tokenizer(
            corpus, split.train_bytes, request.vocab_size,
            max_vocab_size=_max_vocab_size(request), max_bytes=max_bytes, characters=characters,
        )  # fmt: skip
    tokens = tokenize(corpus.sample(0, split.train_bytes, max_bytes), tokenizer)
    held_out_tokens = tokenize(split.held_out, tokenizer)
    read_bytes = split.train_bytes if split.train_bytes <= max_bytes else count_bytes(tokens, tokenizer.token_bytes)
    plan = make_plan(
        request,
        train_tokens=len(tokens),
        train_bytes=read_bytes,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        base=base,
        machine=machine,
    )
    rows = (
        PlanRow("corpus", f"{corpus.text_bytes:,} bytes", split.describe(read_bytes)),
        PlanRow("vocabulary", f"{tokenizer.vocab_size} tokens", tokenizer_reason),
    )
    plan = replace(plan, rows=(*rows, *plan.rows))
    record = _record(corpus, split, read_bytes, len(tokens), len(held_out_tokens))
    seen_bytes = _seen_bytes(tokens, tokenizer, base is not None)
    if seen_bytes:
        record["seen_bytes"] = seen_bytes.hex()
    return Prepared(plan, tokenizer.with_seen_bytes(seen_bytes), tokens, held_out_tokens, record, max_bytes)


@dataclass(frozen=True)
class _Split:
    """The corpus as training text, its first `train_bytes`, and held-out text."""

    train_bytes: int
    held_out: Iterator[Iterator[str]]
    held_out_bytes: int
    source: str  # of the held-out text
    is_from_corpus: bool

    def describe(self, read_bytes: int) -> str:
        """The split in words, for the plan; `read_bytes` of the training text are used."""
        if not self.held_out_bytes:
            text = f"{self.train_bytes:,} for training, nothing held out"
        elif self.is_from_corpus:
            text = f"{self.train_bytes:,} for training, {self.held_out_bytes:,} held out for validation"
        else:
            text = f"all for training; validation on the {self.held_out_bytes:,} bytes of {self.source}"
        if read_bytes < self.train_bytes:
            text += f"; the time budget allows for {read_bytes:,} bytes of training text, sampled evenly"
        return text


def _split(corpus: Corpus, held_out: Corpus | float, max_bytes: int) -> _Split:
    if isinstance(held_out, Corpus):
        text = held_out.sample(0, held_out.text_bytes, max_bytes)
        source = ", ".join(Path(d.name).name for d in held_out.documents)
        return _Split(corpus.text_bytes, text, held_out.text_bytes, source, False)
    train_bytes = corpus.text_bytes - round(corpus.text_bytes * held_out)
    text = corpus.sample(train_bytes, corpus.text_bytes, max(1, round(max_bytes * held_out)))
    source = f"the last {held_out:.3g} of the corpus"
    return _Split(train_bytes, text, corpus.text_bytes - train_bytes, source, True)


def _record(corpus: Corpus, split: _Split, read_bytes: int, tokens: int, held_out_tokens: int) -> dict[str, Any]:
    """The corpus as the training record describes it."""
    return {
        "corpus": [{"name": Path(d.name).name, "bytes": d.text_bytes, "sha256": d.sha256} for d in corpus.documents],
        "train_bytes": split.train_bytes,
        "read_bytes": read_bytes,  # of them
        "train_tokens": tokens,
        "held_out": {"bytes": split.held_out_bytes, "tokens": held_out_tokens, "from": split.source},
    }


def _seen_bytes(tokens: TokenIds, tokenizer: Tokenizer, fine_tunes: bool) -> bytes | None:
    """The byte values that occur in the training text, and, for fine-tuning, in that of the base model; None where the
    latter are not known."""
    before = tokenizer.seen_bytes if fine_tunes else b""
    if before is None:
        return None
    used = used_tokens(tokens, tokenizer.vocab_size)
    return bytes(sorted({*before, *b"".join(tokenizer.token_bytes[i] for i in used)}))


def _max_bytes(request: Request) -> int:
    """Bytes of training text to read: more could not be seen in the time budget, but reading and tokenizing them would
    take time."""
    if math.isinf(request.core_seconds):
        return sys.maxsize
    factor = GPU_BYTES_FACTOR if request.device == "cuda" else CPU_BYTES_FACTOR
    return max(MIN_BYTES, int(factor * request.core_seconds**BYTES_EXPONENT))


def _max_vocab_size(request: Request) -> int:
    """The largest vocabulary for the time budget: the output layer takes its time from the other layers."""
    if math.isinf(request.core_seconds) or request.device == "cuda":
        return MAX_DEFAULT_VOCAB_SIZE
    return nearest_power_of_two(
        VOCABULARY_FACTOR * math.sqrt(request.core_seconds), MIN_DEFAULT_VOCAB_SIZE, MAX_DEFAULT_VOCAB_SIZE
    )
