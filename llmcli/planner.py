"""Corpus + budget -> a plan with reasons.

Each rule is a plain function of the corpus and of what the user fixed; nothing is measured here, so that the same
command gives the same plan. `prepare` walks from the corpus to all that training needs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
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
MOST_EPOCHS = 20.0  # beyond this a model of any size here only memorises
FLOPS_PER_THREAD = 4e10  # useful operations a second on one core, about; a GPU does a thousand times as much
FLOPS_GPU = 5e13
TOKENS_PER_PARAMETER = 1.2  # tokens seen per parameter of the layers: measured for runs of minutes
PARAMETERS_PER_TOKEN = 4.0  # of text: beyond that a model has more room than the text can fill
SHORTEST_CONTEXT = 8

# layers x width, each about twice the size of the one before
LADDER = (
    (2, 64), (3, 96), (4, 96), (4, 128), (4, 192), (6, 192), (6, 256),
    (8, 320), (8, 384), (8, 512), (12, 640), (12, 768),
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
        if self.epochs is not None and not 0 < self.epochs <= 1e6:
            raise usage(f"--epochs must be a positive number of at most a million, found {self.epochs}")
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
        held_bytes, from_where = held_out.text_bytes, ", ".join(Path(d.name).name for d in held_out.documents)
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
    held_said = f"{held_bytes:,} held out" if held_bytes else "nothing held out"
    text = Choice("text", f"{corpus.text_bytes:,} bytes", f"{train_bytes:,} to learn from, {held_said}")
    record = {
        "corpus": [{"name": Path(d.name).name, "bytes": d.text_bytes, "sha256": d.sha256} for d in corpus.documents],
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
    budget = _budget(request, train_tokens)
    context, context_reason = _context(request, budget, train_tokens, base)
    (layers, width), size_reason = _shape(request, budget, train_tokens)
    model = base or _model(request, layers, width, context, vocab_size, eos_id)
    kept = "kept from the model to go on from"
    wanted = 16384 if request.device == "cuda" else 2048 if model.hidden_size < 256 else 4096
    batch_size = max(1, min(request.batch_tokens or wanted, train_tokens) // context)
    per_epoch = train_tokens / (batch_size * context)
    steps = request.steps or max(1, math.ceil((request.epochs or MOST_EPOCHS) * per_epoch))
    epochs = min(steps / per_epoch, budget.tokens_seen(model.parameters) / train_tokens)
    dropout = 0.0 if epochs <= 4 else 0.1 if epochs <= 12 else 0.2
    against = "no need" if epochs <= 4 else "against learning by heart"
    train = TrainConfig(
        steps=steps,
        seconds=budget.seconds,
        context=context,
        batch_size=batch_size,
        lr=request.lr,
        dropout=dropout if request.dropout is None else request.dropout,
        weight_decay=0.1 if epochs <= 4 else 0.3,
        seed=request.seed,
        device=request.device,
        dtype=request.dtype,
        threads=request.threads,
    )
    weight = "large" if model.tie_word_embeddings else "small"
    choices = (
        Choice("budget", charts.duration(budget.seconds) if budget.seconds else f"{steps:,} steps", budget.reason),
        Choice("size", f"{model.parameters:,} parameters", kept if base else size_reason),
        Choice(
            "shape",
            f"{model.num_hidden_layers} layers, width {model.hidden_size}, {model.num_attention_heads} heads",
            kept if base else "learns fast at this size",
        ),
        Choice("context", f"{context} tokens", context_reason),
        Choice(
            "head",
            "tied to the embedding" if model.tie_word_embeddings else "separate",
            kept if base else _asked(request.tie) or f"beside the layers the vocabulary is {weight}",
        ),
        Choice(
            "batch",
            f"{batch_size} x {context} tokens",
            _asked(request.batch_tokens) or "small batches teach most per minute",
        ),
        Choice(
            "steps",
            f"{'at most ' if budget.seconds else ''}{steps:,}",
            _asked(request.steps) or f"{request.epochs or MOST_EPOCHS:g} times through the text",
        ),
        Choice("dropout", f"{train.dropout:g}", _asked(request.dropout) or f"{epochs:.1f} epochs: {against}"),
        Choice("machine", f"{request.device}, {request.threads} threads, {request.dtype}", "what is here"),
    )
    return Plan(model, train, choices)


def _asked(value: object) -> str:
    """The reason for what the user fixed; "" where the plan decides."""
    return "" if value is None else "as asked"


@dataclass(frozen=True)
class _Budget:
    seconds: float | None
    reason: str
    tokens: float  # that can be seen at most
    operations: float = math.inf  # that fit into the time, by a guess at the machine's speed

    def tokens_seen(self, parameters: int) -> float:
        """By a model of that size; a token costs about 6 operations for each parameter (arXiv:2001.08361)."""
        return min(self.tokens, self.operations / (6 * parameters))

    @property
    def parameters(self) -> float:
        """Of the largest model that still sees TOKENS_PER_PARAMETER tokens for each."""
        return min(self.tokens / TOKENS_PER_PARAMETER, math.sqrt(self.operations / (6 * TOKENS_PER_PARAMETER)))


def _budget(request: Request, train_tokens: int) -> _Budget:
    if request.steps:
        return _Budget(None, "as asked", request.steps * (request.batch_tokens or 2048))
    if request.epochs:
        return _Budget(None, "as asked", request.epochs * train_tokens)
    seconds = request.seconds or DEFAULT_SECONDS
    speed = FLOPS_GPU if request.device == "cuda" else FLOPS_PER_THREAD * request.threads
    reason = _asked(request.seconds) or f"or {MOST_EPOCHS:g} times through the text"
    return _Budget(seconds, reason, MOST_EPOCHS * train_tokens, seconds * speed)


def _shape(request: Request, budget: _Budget, train_tokens: int) -> tuple[tuple[int, int], str]:
    """(layers, width), and why."""
    by_text = PARAMETERS_PER_TOKEN * train_tokens
    most = min(budget.parameters, by_text)
    fitting = [shape for shape in LADDER if 12 * shape[0] * shape[1] ** 2 <= most]
    layers, width = fitting[-1] if fitting else LADDER[0]
    if request.layers or request.width:
        return (request.layers or layers, request.width or width), "as asked"
    return (layers, width), "what the budget can teach" if budget.parameters < by_text else "what this text can fill"


def _context(request: Request, budget: _Budget, train_tokens: int, base: ModelConfig | None) -> tuple[int, str]:
    longest = train_tokens - 1  # a window and the token after it
    if longest < SHORTEST_CONTEXT:
        raise LLMError(
            f"the corpus is too short: {train_tokens} tokens to learn from, {SHORTEST_CONTEXT + 1} needed at least; "
            f"add more text, or give --vocab-size 257 or --tokenizer char if it repeats itself"
        )
    if request.context is not None:
        if base and request.context > base.max_position_embeddings:
            raise usage(f"--context {request.context} is longer than the base model's {base.max_position_embeddings}")
        if request.context > longest:
            raise LLMError(
                f"the corpus is shorter than a context: {train_tokens} tokens to learn from, --context "
                f"{request.context} needs {request.context + 1}; add more text or give --context {longest} or less"
            )
        return request.context, "as asked"
    wanted = 512 if (budget.seconds or 0) > 1800 else 256 if train_tokens >= 100_000 else 128
    reason = "far enough back for text of this size"
    if base and base.max_position_embeddings < wanted:
        wanted, reason = base.max_position_embeddings, "as long as the model to go on from allows"
    quarter = max(SHORTEST_CONTEXT, 2 ** int(math.log2(longest / 4)))
    return (quarter, "a quarter of this short text") if quarter < wanted else (wanted, reason)


def _model(request: Request, layers: int, width: int, context: int, vocab_size: int, eos_id: int) -> ModelConfig:
    wanted = 32 if width <= 128 else 64  # dimensions of a head
    divisors = [heads for heads in range(1, width + 1) if width % (2 * heads) == 0]  # rotary positions need pairs
    heads = request.heads or min(divisors, key=lambda n: abs(math.log(width / n / wanted)), default=1)
    if width % heads:
        raise usage(f"{heads} heads do not divide width {width}; give --heads a divisor of {width}")
    outweighs = vocab_size * width > 12 * layers * width**2
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=max(32, round(width * 8 / 3 / 32) * 32),  # three matrices of 8/3 cost what two of 4 do
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=request.kv_heads or heads,
        head_dim=width // heads,
        max_position_embeddings=context,
        tie_word_embeddings=outweighs if request.tie is None else request.tie,
        eos_token_id=eos_id,
    )
