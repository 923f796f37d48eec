"""Corpus + budget -> a plan with reasons.

Each rule is a plain function of the corpus and of what the user fixed; nothing is measured here, so that the same
command gives the same plan. `prepare` walks from the corpus to all that training needs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli import charts
from llmcli.config import ModelConfig, TrainConfig
from llmcli.corpus import Corpus, tokenize
from llmcli.errors import LLMError, usage
from llmcli.tokenizer import Tokenizer

DEFAULT_SECONDS = 300.0
HELD_OUT = 0.1  # the share at the end of the corpus that is not learned from
TOKENIZER_BYTES = 16_000_000  # of text that a tokenizer is learned from, taken evenly from a longer one
MOST_EPOCHS = 30.0  # beyond this a model of any size here only memorises
FLOPS_PER_THREAD = 4e10  # useful operations a second on one core, about; a GPU does a thousand times as much
FLOPS_GPU = 5e13
TOKENS_PER_PARAMETER = 3.0  # tokens seen per parameter of the layers: measured for runs of minutes
SHORTEST_CONTEXT = 8

# layers x width, each about twice the size of the one before
LADDER = (
    (2, 64), (3, 96), (4, 96), (4, 128), (4, 192), (6, 192), (6, 256), (8, 320), (8, 384), (8, 512), (12, 640), (12, 768),
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What the user fixed; None leaves the choice to the plan."""

    seconds: float | None = None
    steps: int | None = None
    epochs: float | None = None
    vocab_size: int | None = None
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    context: int | None = None
    tie: bool | None = None
    batch_tokens: int | None = None
    dropout: float | None = None
    lr: float = TrainConfig.lr
    seed: int = TrainConfig.seed
    device: str = TrainConfig.device
    dtype: str = TrainConfig.dtype
    threads: int = TrainConfig.threads

    def __post_init__(self) -> None:
        budgets = [
            name
            for name, value in (("--time", self.seconds), ("--steps", self.steps), ("--epochs", self.epochs))
            if value
        ]
        if len(budgets) > 1:
            raise usage(f"{' and '.join(budgets)} both say when to end; give one of them")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise usage(f"--epochs must be a positive number, found {self.epochs}")
        if self.width is not None and self.heads is not None and self.width % self.heads:
            raise usage(f"--heads {self.heads} does not divide --width {self.width}")


@dataclass(frozen=True)
class Choice:
    """One line of the plan."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """All that training needs to know, and why."""

    model: ModelConfig
    train: TrainConfig
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Prepared:
    """A plan with the text it is for, as tokens."""

    plan: Plan
    tokenizer: Tokenizer
    tokens: NDArray[np.unsignedinteger]  # to learn from
    held_out: NDArray[np.unsignedinteger]  # to be judged by; may be empty
    record: dict[str, Any]  # what to say of the corpus in the file


def prepare(
    request: Request,
    corpus: Corpus,
    *,
    held_out: Corpus | float = HELD_OUT,
    tokenizer: Tokenizer | None = None,
    characters: bool = False,
    base: ModelConfig | None = None,
) -> Prepared:
    """Split the corpus, learn a tokenizer unless one is given, tokenize, plan.

    `held_out` is another corpus, or the share of this one to keep at its end. `characters` makes each character a
    token. Raises LLMError when the corpus is too short.
    """
    if isinstance(held_out, Corpus):
        train_bytes, held = corpus.text_bytes, held_out.texts()
        held_bytes, from_where = held_out.text_bytes, ", ".join(document.name for document in held_out.documents)
    else:
        train_bytes = corpus.text_bytes - round(corpus.text_bytes * held_out)
        held = corpus.texts(train_bytes)
        held_bytes, from_where = corpus.text_bytes - train_bytes, f"the last {held_out:.3g} of the corpus"
    if tokenizer:
        vocabulary = Choice("vocabulary", str(tokenizer.vocab_size), "that of the tokenizer given")
    else:
        tokenizer, vocabulary = learn_tokenizer(corpus, train_bytes, request.vocab_size, characters=characters)
    tokens = tokenize(corpus.texts(0, train_bytes), tokenizer)
    held_tokens = tokenize(held, tokenizer)
    plan = make_plan(
        request, train_tokens=len(tokens), vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id, base=base
    )
    text = Choice(
        "text",
        f"{corpus.text_bytes:,} bytes",
        f"{train_bytes:,} to learn from ({len(tokens):,} tokens); held out: "
        + (f"{held_bytes:,}, {from_where}" if held_bytes else "nothing"),
    )
    record = {
        "corpus": [{"name": d.name, "bytes": d.text_bytes, "sha256": d.sha256} for d in corpus.documents],
        "train_bytes": train_bytes,
        "train_tokens": len(tokens),
        "held_out": {"bytes": held_bytes, "tokens": len(held_tokens), "from": from_where},
    }
    plan = Plan(plan.model, plan.train, (text, vocabulary, *plan.choices))
    return Prepared(plan, tokenizer, tokens, held_tokens, record)


def learn_tokenizer(
    corpus: Corpus, train_bytes: int, vocab_size: int | None = None, *, characters: bool = False
) -> tuple[Tokenizer, Choice]:
    """A tokenizer for the first `train_bytes` of a corpus, and why it has the size it has."""
    text = _sample(corpus, train_bytes)
    if characters:
        tokenizer = Tokenizer.train_char(text, vocab_size)
        return tokenizer, Choice("vocabulary", str(tokenizer.vocab_size), "a token for each character, as asked")
    # each token should occur often enough to be learned
    wanted = vocab_size or min(max(2 ** round(math.log2(max(1, train_bytes / 2000))), 512), 8192)
    tokenizer = Tokenizer.train_bpe(text, wanted)
    reason = "as asked" if vocab_size else "a token for every 2,000 bytes of text, 512 to 8,192"
    if tokenizer.vocab_size < wanted:
        reason = "the text has no more pairs to merge"
    return tokenizer, Choice("vocabulary", str(tokenizer.vocab_size), reason)


def _sample(corpus: Corpus, end: int) -> Iterator[str]:
    """Text from the first `end` bytes of a corpus: all of it, or parts of it taken evenly."""
    if end <= TOKENIZER_BYTES:
        for text in corpus.texts(0, end):
            yield from text
        return
    part = TOKENIZER_BYTES // 64
    for start in np.linspace(0, end - part, 64).astype(int).tolist():
        for text in corpus.texts(start, start + part):
            yield from text


def make_plan(
    request: Request, *, train_tokens: int, vocab_size: int, eos_id: int, base: ModelConfig | None = None
) -> Plan:
    """Choose size, context, batch and steps. `base` is the model to go on from, whose shape then stays.

    Raises LLMError when the corpus is too short or the user's wishes contradict each other.
    """
    budget, budget_reason, seen = _budget(request, train_tokens)
    shape, size_reason = _shape(request, seen, train_tokens, base)
    context, context_reason = _context(request, budget, train_tokens, base)
    model = base or _model(request, shape, context, vocab_size, eos_id)
    batch_tokens = request.batch_tokens or (
        16384 if request.device == "cuda" else 2048 if model.hidden_size < 256 else 4096
    )
    batch_size = max(1, min(batch_tokens // context, max(1, train_tokens // context)))
    per_epoch = train_tokens / (batch_size * context)
    if request.steps:
        steps = request.steps
    else:
        steps = max(1, math.ceil((request.epochs or MOST_EPOCHS) * per_epoch))
    epochs = min(steps / per_epoch, seen(model) / train_tokens)
    dropout = request.dropout if request.dropout is not None else 0.0 if epochs <= 4 else 0.1 if epochs <= 12 else 0.2
    train = TrainConfig(
        steps=steps,
        seconds=budget,
        batch_size=batch_size,
        lr=request.lr,
        dropout=dropout,
        weight_decay=0.1 if epochs <= 4 else 0.3,
        seed=request.seed,
        device=request.device,
        dtype=request.dtype,
        threads=request.threads,
    )
    asked = "as asked"
    choices = (
        Choice("budget", charts.duration(budget) if budget else f"{steps:,} steps", budget_reason),
        Choice("model", f"{model.parameters:,} parameters", size_reason),
        Choice(
            "shape",
            f"{model.num_hidden_layers} layers, width {model.hidden_size}, {model.num_attention_heads} heads",
            "kept from the model to go on from" if base else "deep enough to combine, wide enough to be fast",
        ),
        Choice("context", f"{context} tokens", context_reason),
        Choice(
            "head",
            "tied to the embedding" if model.tie_word_embeddings else "separate from the embedding",
            asked if request.tie is not None else "kept" if base else "the vocabulary is small beside the layers"
            if not model.tie_word_embeddings else "the vocabulary is large beside the layers",
        ),
        Choice(
            "batch",
            f"{batch_size} x {context} tokens",
            asked if request.batch_tokens else "small batches make more steps, and steps are what teaches",
        ),
        Choice(
            "steps",
            f"{'at most ' if budget else ''}{steps:,}",
            asked if request.steps else f"{request.epochs or MOST_EPOCHS:g} times through the text",
        ),
        Choice(
            "dropout",
            f"{dropout:g}",
            asked if request.dropout is not None else f"about {epochs:.1f} times through the text"
            + (": no need" if dropout == 0 else ": against learning it by heart"),
        ),
        Choice("machine", f"{request.device}, {request.threads} threads, {request.dtype}", "what is here"),
    )  # fmt: skip
    return Plan(model, train, choices)


class _Seen:
    """How many tokens a model will see in the budget, by a guess at the machine's speed."""

    def __init__(self, flops: float | None, tokens: float) -> None:
        self.flops, self.most = flops, tokens

    def __call__(self, model: ModelConfig) -> float:
        if self.flops is None:
            return self.most
        return min(self.most, self.flops / (6 * model.parameters))

    def affordable_parameters(self) -> float:
        """The parameters that see TOKENS_PER_PARAMETER tokens each."""
        by_tokens = self.most / TOKENS_PER_PARAMETER
        return by_tokens if self.flops is None else min(by_tokens, math.sqrt(self.flops / (6 * TOKENS_PER_PARAMETER)))


def _budget(request: Request, train_tokens: int) -> tuple[float | None, str, _Seen]:
    if request.steps:
        tokens = request.steps * (request.batch_tokens or 2048)
        return None, "as asked", _Seen(None, tokens)
    if request.epochs:
        return None, "as asked", _Seen(None, request.epochs * train_tokens)
    seconds = request.seconds or DEFAULT_SECONDS
    speed = FLOPS_GPU if request.device == "cuda" else FLOPS_PER_THREAD * request.threads
    reason = "as asked" if request.seconds else f"or {MOST_EPOCHS:g} times through the text, whichever comes first"
    return seconds, reason, _Seen(seconds * speed, MOST_EPOCHS * train_tokens)


def _shape(request: Request, seen: _Seen, train_tokens: int, base: ModelConfig | None) -> tuple[tuple[int, int], str]:
    if base:
        return (base.num_hidden_layers, base.hidden_size), "kept from the model to go on from"
    if request.layers or request.width:
        layers, width = request.layers or 4, request.width or 128
        return (layers, width), "as asked"
    by_budget, by_text = seen.affordable_parameters(), 4.0 * train_tokens
    most = min(by_budget, by_text)
    fitting = [(layers, width) for layers, width in LADDER if 12 * layers * width**2 <= most]
    reason = "what the budget can teach" if by_budget < by_text else "what this much text can fill"
    return (fitting[-1] if fitting else LADDER[0]), reason


def _context(request: Request, budget: float | None, train_tokens: int, base: ModelConfig | None) -> tuple[int, str]:
    longest = train_tokens - 1  # a window and the token after it
    if longest < SHORTEST_CONTEXT:
        raise LLMError(
            f"the corpus is too short: {train_tokens} tokens to learn from, at least {SHORTEST_CONTEXT + 1} are needed; "
            f"add more text"
        )
    if request.context is not None:
        if request.context > longest:
            raise LLMError(
                f"the corpus is shorter than a context: {train_tokens} tokens to learn from, --context {request.context} "
                f"needs {request.context + 1}; add more text or give --context {longest} or less"
            )
        if base and request.context > base.max_position_embeddings:
            raise usage(f"--context {request.context} is longer than the base model's {base.max_position_embeddings}")
        return request.context, "as asked"
    wanted = 512 if (budget or 0) > 1800 else 256 if train_tokens >= 100_000 else 128
    wanted = min(wanted, base.max_position_embeddings) if base else wanted
    fitting = max(SHORTEST_CONTEXT, 2 ** int(math.log2(max(1, longest / 4))))
    if fitting < wanted:
        return min(fitting, longest), "a quarter of this short text"
    return wanted, "far enough back for text of this size"


def _model(request: Request, shape: tuple[int, int], context: int, vocab_size: int, eos_id: int) -> ModelConfig:
    layers, width = shape
    heads = request.heads or max(1, width // (32 if width <= 128 else 64))
    if width % heads:
        raise usage(f"{heads} heads do not divide width {width}; give --heads a divisor of {width}")
    layer_parameters = 12 * layers * width**2
    tie = request.tie if request.tie is not None else vocab_size * width > layer_parameters
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=max(32, round(width * 8 / 3 / 32) * 32),  # three matrices of 8/3 cost what two of 4 do
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=request.kv_heads or heads,
        head_dim=width // heads,
        max_position_embeddings=context,
        tie_word_embeddings=tie,
        eos_token_id=eos_id,
    )
