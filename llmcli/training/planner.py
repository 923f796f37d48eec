"""Corpus + machine + budget -> a plan with reasons.

Each rule is a plain function of the corpus, of what the user fixed, and of how fast the machine trains a model of a
given shape; who measures that is not this room's business. With a number of steps or epochs the clock has no say, and
the same command gives the same plan. `prepare` walks from the corpus to all that training needs.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli import units
from llmcli.config import ModelConfig, TrainConfig, learning_rates
from llmcli.data.corpus import BLOCK, Corpus, tokenize
from llmcli.data.tokenizer import Tokenizer
from llmcli.data.train_tokenizer import LARGEST_VOCABULARY, SMALLEST_VOCABULARY, nearest_power_of_two, train_tokenizer
from llmcli.errors import LLMError, usage
from llmcli.models.induction import has_room
from llmcli.training.cost_model import (
    Machine,
    Text,
    assumed_speed,
    choose,
    layer_parameters,
    memory_needed,
    seen_by_count,
)
from llmcli.training.plan import ASKED, Choice, Plan, Regularization, Request

CALIBRATION_FROM = 6.0  # times through the text: from here on a part of it is kept for calibration ...
CALIBRATION_SHARE, CALIBRATION_TOKENS = 1 / 64, (1024, 8192)  # ... this share, at least and at most so many tokens
# (times through the text at most, share): measured, tests/benchmarks/LOG.md
DROPOUT = ((4, 0.0), (8, 0.05), (12, 0.1), (math.inf, 0.2))
TOKEN_SPLIT = ((4.5, 0.0), (math.inf, 0.15))  # of the tokens are taken apart
# a model of so many parameters in its layers, and so many for each token of the text, learns a text by heart that it
# sees so often; it is held back more than a small one, which that would only slow down
LARGE, LARGE_FOR_TOKEN, LARGE_FROM, LARGE_DROPOUT, LARGE_SPLIT = 500_000, 4.0, 12.0, 0.3, 0.3
DEFAULT_SECONDS = 300.0
HELD_OUT = 0.1  # the share at the end of the corpus that is not learned from
# TIMELY * core_seconds ** TIMELY_POWER bytes of text are a third more than any plan goes through once in that time
TIMELY, TIMELY_POWER, LEAST_BYTES = 4e5, 0.6, 1_000_000
FINE_TUNING_EPOCHS = 2.0  # times that a model goes through the text which it is taught after another
FINE_TUNING_CONTEXT = 512
MOST_EPOCHS = 20.0  # beyond this a model of any size here only memorises
ROOM, ROOM_POWER = 0.006, 1.6  # ROOM * tokens ** ROOM_POWER: beyond so many parameters a text cannot fill a model
MEMORY_SHARE = 0.8  # of what is free, that a plan may use
ACTIVE = 2  # experts for each token, where the user does not say
LEAST_STEPS = 10  # that a time limit should leave
SMALLEST_BATCH_SHARE = 64  # a batch may become so many times smaller before a model is said not to fit
SHORTEST_CONTEXT, LONG_CONTEXT = 8, 1024
COPYING_TEXT, COPYING_FROM = 100_000, 90.0  # tokens of text and seconds of a core, from which on weights can copy
COPYING_THETA = 1e6  # their rope_theta: most pairs of a head turn little within a window, and can tell tokens apart

# layers x width, each up to twice the size of the one before; few layers first: they take the most steps a minute
LADDER = (
    (2, 64), (2, 96), (2, 128), (3, 128), (3, 192), (4, 192), (4, 256), (6, 256), (6, 320),
    (8, 384), (8, 512), (12, 640), (12, 768),
)  # fmt: skip


def check_fits(plan: Plan, memory: float) -> None:
    """Raises LLMError where a plan made earlier does not fit into the memory that is free now."""
    needed = memory_needed(plan.model, plan.train)
    smaller = "--context" if plan.train.recipe in ("fine-tune", "lora") else "--width"
    if needed > memory:
        raise LLMError(
            f"to go on takes about {needed / 1e9:,.1f} GB of memory, {memory / 1e9:,.1f} GB are free here; free some, "
            f"or begin anew with --force and a smaller {smaller} or --batch-tokens"
        )


@dataclass(frozen=True)
class Prepared:
    """A plan with the text it is for, as tokens."""

    plan: Plan
    tokenizer: Tokenizer
    tokens: NDArray[np.unsignedinteger]  # to learn from
    held_out: NDArray[np.unsignedinteger]  # to be judged by; may be empty
    record: dict[str, Any]  # what to say of the corpus in the file
    most_bytes: int = sys.maxsize  # of text that there is time for

    def read_from(self, corpus: Corpus) -> Iterator[Iterator[str]]:
        """The text that `tokens` are of."""
        return corpus.spread(0, self.record["train_bytes"], self.most_bytes)


def prepare(
    request: Request,
    corpus: Corpus,
    machine: Machine | None = None,
    *,
    held_out: Corpus | float = HELD_OUT,
    tokenizer: Tokenizer | None = None,
    characters: bool = False,
    base: ModelConfig | None = None,
    whose: str = "that of the tokenizer given",
) -> Prepared:
    """Split the corpus, learn a tokenizer unless one is given, tokenize, plan.

    `held_out` is another corpus, or the share of this one to keep at its end. `characters` makes each character a
    token. `whose` says where a given tokenizer comes from. Raises LLMError when the corpus is too short.
    """
    most = _most_bytes(request)
    if isinstance(held_out, Corpus):
        train_bytes, held = corpus.text_bytes, held_out.spread(0, held_out.text_bytes, most)
        held_bytes, from_where = held_out.text_bytes, ", ".join(Path(d.name).name for d in held_out.documents)
    else:
        train_bytes = corpus.text_bytes - round(corpus.text_bytes * held_out)
        held = corpus.spread(train_bytes, corpus.text_bytes, max(1, round(most * held_out)))
        held_bytes, from_where = corpus.text_bytes - train_bytes, f"the last {held_out:.3g} of the corpus"
    if tokenizer:
        vocabulary = Choice("vocabulary", str(tokenizer.vocab_size), whose)
    else:
        tokenizer, reason = train_tokenizer(
            corpus, train_bytes, request.vocab_size,
            max_vocab_size=_most_tokens(request), max_bytes=most, characters=characters,
        )  # fmt: skip
        vocabulary = Choice("vocabulary", str(tokenizer.vocab_size), reason)
    tokens = tokenize(corpus.spread(0, train_bytes, most), tokenizer)
    held_tokens = tokenize(held, tokenizer)
    read_bytes = train_bytes if train_bytes <= most else _spelled(tokens, tokenizer)
    seen_bytes = _seen_bytes(tokens, tokenizer, base is not None)
    plan = make_plan(
        request,
        train_tokens=len(tokens),
        train_bytes=read_bytes,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        base=base,
        machine=machine,
    )
    held_said = f"{held_bytes:,} held out" if held_bytes else "nothing held out"
    text_reason = f"{train_bytes:,} to learn from, {held_said}"
    if read_bytes < train_bytes:
        text_reason += f"; {read_bytes:,} taken evenly from it are what there is time for"
    text = Choice("text", f"{corpus.text_bytes:,} bytes", text_reason)
    record = {
        "corpus": [{"name": Path(d.name).name, "bytes": d.text_bytes, "sha256": d.sha256} for d in corpus.documents],
        "train_bytes": train_bytes,
        "read_bytes": read_bytes,  # of them
        "train_tokens": len(tokens),
        "held_out": {"bytes": held_bytes, "tokens": len(held_tokens), "from": from_where},
        **({"seen_bytes": seen_bytes.hex()} if seen_bytes else {}),
    }
    plan = replace(plan, choices=(text, vocabulary, *plan.choices))
    return Prepared(plan, tokenizer.with_seen_bytes(seen_bytes), tokens, held_tokens, record, most)


def _seen_bytes(tokens: NDArray[np.unsignedinteger], tokenizer: Tokenizer, goes_on: bool) -> bytes | None:
    """The byte values of the text to learn from; of a model that goes on from another those of its text too. None where
    these are not known."""
    before = tokenizer.seen_bytes if goes_on else b""
    if before is None:
        return None
    used = np.zeros(tokenizer.vocab_size, bool)
    for first in range(0, len(tokens), BLOCK):
        used[tokens[first : first + BLOCK]] = True
    return bytes(sorted({*before, *b"".join(tokenizer.token_bytes[i] for i in np.flatnonzero(used))}))


def _most_bytes(request: Request) -> int:
    """Of text that can be gone through in the time there is: of more the rest would be read and cut into tokens, which
    takes time too, and never seen."""
    work = _core_seconds(request)
    if math.isinf(work):
        return sys.maxsize
    pace = 30 * TIMELY if request.device == "cuda" else TIMELY
    return max(LEAST_BYTES, int(pace * work**TIMELY_POWER))


def _core_seconds(request: Request) -> float:
    """Of the run; infinite where a number of steps ends it."""
    counted = request.steps or request.epochs
    return math.inf if counted else (request.seconds or DEFAULT_SECONDS) * request.threads


def _spelled(tokens: NDArray[np.unsignedinteger], tokenizer: Tokenizer) -> int:
    """Bytes of text in tokens."""
    lengths = np.array([len(data) for data in tokenizer.token_bytes])
    return sum(int(lengths[tokens[first : first + BLOCK]].sum()) for first in range(0, len(tokens), BLOCK))


def _most_tokens(request: Request) -> int:
    """Of a vocabulary, in the time there is: what is spent on the head is not spent on the layers."""
    work = _core_seconds(request)
    if math.isinf(work) or request.device == "cuda":
        return LARGEST_VOCABULARY
    return nearest_power_of_two(170 * math.sqrt(work), SMALLEST_VOCABULARY, LARGEST_VOCABULARY)


def make_plan(
    request: Request,
    *,
    train_tokens: int,
    vocab_size: int,
    eos_id: int,
    train_bytes: int | None = None,
    base: ModelConfig | None = None,
    machine: Machine | None = None,
) -> Plan:
    """Choose size, context, batch and steps. `base` is the model to go on from, whose shape then stays.

    `machine` is asked only where the clock decides. Raises LLMError when the corpus is too short, when no model fits
    into memory, or when the user's wishes contradict each other.
    """
    text = Text(train_tokens, train_bytes or 3 * train_tokens)
    machine = machine or Machine(assumed_speed)
    copies = not base and _copies(request, text, vocab_size, eos_id)
    found = _plan(request, text, vocab_size, eos_id, base, machine, copies)
    if copies and not found.train.induction:  # the shape that is best has no room to copy
        found = _plan(request, text, vocab_size, eos_id, base, machine, False)
    return found


def _plan(
    request: Request,
    text: Text,
    vocab_size: int,
    eos_id: int,
    base: ModelConfig | None,
    machine: Machine,
    copies: bool,
) -> Plan:
    """The plan with weights that can copy, and the windows for it, or without."""
    train_tokens = text.tokens
    most_epochs = _most_epochs(request, base is not None)
    budget = _budget(request, most_epochs)
    context, context_reason = _context(request, text, copies, base)
    divisor = 1  # of the batch, where memory is short

    def settings(model: ModelConfig, seen: float = 0.0) -> TrainConfig:
        """How to train a model that will see so many tokens."""
        return _settings(request, model, seen, train_tokens, context, divisor, copies, base is not None)

    models = [base] if base else _models(request, text, context, vocab_size, eos_id, copies)

    def needed(model: ModelConfig) -> float:
        """Bytes, at the largest batch that may come of it: four times as fast as assumed."""
        faster = 4 * (budget.seconds or 0.0) * assumed_speed(model, settings(model))
        seen = min(faster, most_epochs * train_tokens) or seen_by_count(settings(model))
        return memory_needed(model, settings(model, seen))

    def fitting() -> list[ModelConfig]:
        return [m for m in models if needed(m) <= MEMORY_SHARE * machine.memory]

    while not (here := fitting()) and divisor < SMALLEST_BATCH_SHARE and not request.batch_tokens:
        divisor *= 2
    if not here:
        smaller = "--batch-tokens or --context" if base else "--width, --batch-tokens or fewer --layers"
        raise LLMError(
            f"training {models[0].parameters:,} parameters needs about {needed(models[0]) / 1e9:,.1f} GB of memory, "
            f"{machine.memory / 1e9:,.1f} GB are free here; give a smaller {smaller}"
        )
    model, seen, speed = choose(here, budget.seconds, text, settings, machine, most_epochs)
    train = settings(model, seen)
    seen = seen if budget.seconds else seen_by_count(train)
    epochs = seen / train_tokens
    per_epoch = train_tokens / (train.batch_size * context)
    kept = "kept from the model to go on from"
    asked_size = ASKED if request.layers or request.width else ""
    size_reason = kept if base else asked_size or _why_not_larger(model, here, models)
    against = "to reduce overfitting" if train.dropout else "not needed"
    weight = "large" if model.tie_word_embeddings else "small"
    pace = f"{speed:,.0f} tokens a second here, {seen:,.0f} in all" if speed else f"{seen:,.0f} tokens in all"
    choices = (
        Choice("budget", units.duration(budget.seconds) if budget.seconds else f"{train.steps:,} steps", budget.reason),
        Choice("size", f"{model.parameters:,} parameters", size_reason),
        Choice(
            "shape",
            f"{model.num_hidden_layers} layers, width {model.hidden_size}, {model.num_attention_heads} heads",
            kept if base else pace,
        ),
        *_experts_choice(model, kept if base else ASKED),
        Choice("context", f"{context} tokens", context_reason),
        *(
            [Choice("start", "able to copy", "initialization: induction heads; too slow to emerge in short runs")]
            if train.induction
            else []
        ),
        Choice(
            "head",
            "tied to the embedding" if model.tie_word_embeddings else "separate",
            kept if base else _asked(request.tie) or f"beside the layers the vocabulary is {weight}",
        ),
        Choice(
            "batch",
            f"{train.batch_size} x {context} tokens",
            _asked(request.batch_tokens)
            or ("what fits into memory" if divisor > 1 else "small batches converge fastest in wall-clock time"),
        ),
        Choice(
            "steps",
            f"{'at most ' if budget.seconds else ''}{train.steps:,}",
            _asked(request.steps)
            or f"{train.steps / per_epoch:.3g} times through the text"
            + (
                "; more than that only memorizes it"
                if train.steps / per_epoch >= 0.99 * most_epochs and not request.epochs
                else ""
            ),
        ),
        Choice(
            "dropout",
            f"{train.dropout:g}",
            _asked(request.dropout) or f"about {epochs:.1f} times through the text: {against}",
        ),
        Choice(
            "tokens",
            f"BPE-dropout {train.token_split:.0%}" if train.token_split else "whole",
            "other tokens each time, so that text seen again looks new" if train.token_split else "text is seen rarely",
        ),
        Choice(
            "calibration",
            f"{train.calibration_tokens:,} tokens" if train.calibration_tokens else "none",
            "held out for temperature calibration"
            if train.calibration_tokens
            else "adapters alone learn"
            if request.lora
            else "the text is short"
            if epochs > CALIBRATION_FROM
            else "text is seen rarely",
        ),
        Choice("weight decay", f"{train.weight_decay:g}", "higher values did not help at any epoch count"),
        Choice("learning", _LEARNING[train.recipe].format(rank=train.lora_rank), _WHY_SO[train.recipe]),
        Choice("learning rate", _rates(train, model), _rates_reason(train)),
        Choice("machine", f"{request.device}, {request.threads} threads, {request.dtype}", request.machine_reason),
    )
    return Plan(model, train, choices, _too_few_steps(budget.seconds, seen / (train.batch_size * context), base))


def _too_few_steps(seconds: float | None, steps: float, base: ModelConfig | None) -> str:
    """A warning if a time limit leaves fewer steps than teach a model anything."""
    if seconds is None or steps >= LEAST_STEPS:
        return ""
    smaller = "--context" if base else "--context, --width or --layers"
    enough = units.duration(math.ceil(seconds * LEAST_STEPS / max(steps, 0.01))).replace(" ", "")
    found = "less than one step fits" if steps < 1 else f"only about {steps:.0f} steps fit"
    return f"{found} into {units.duration(seconds)}; give --time {enough} or more, or a smaller {smaller}"


def _settings(
    request: Request,
    model: ModelConfig,
    seen: float,
    train_tokens: int,
    context: int,
    divisor: int,
    copies: bool,
    goes_on: bool,
) -> TrainConfig:
    """How to train a model that will see so many tokens, with a batch so many times smaller than is best; one that
    goes on from another if `goes_on`."""
    recipe = "lora" if request.lora else "fine-tune" if goes_on and request.optimizer != "muon" else "muon"
    if request.optimizer == "adamw" and not goes_on:
        recipe = "adamw"
    if request.batch_tokens:
        wanted = request.batch_tokens
    elif request.device == "cuda":
        wanted = nearest_power_of_two(seen / 2500, 16384, 262_144)
    else:
        wanted = nearest_power_of_two(1.6 * math.sqrt(seen), 1024, 16384)
        if seen and not (request.steps or request.epochs):
            wanted = min(wanted, int(seen / LEAST_STEPS))
    batch_size = max(1, min(wanted, train_tokens) // context // divisor)
    per_epoch = train_tokens / (batch_size * context)
    if request.steps:
        seen = float(request.steps * batch_size * context)
    epochs = seen / train_tokens
    regularized = regularization(request, model, train_tokens, epochs)
    return TrainConfig(
        steps=request.steps or max(1, math.ceil((request.epochs or _most_epochs(request, goes_on)) * per_epoch)),
        seconds=_budget(request).seconds,
        context=context,
        batch_size=batch_size,
        lr=request.lr,
        dropout=regularized.dropout,
        token_split=regularized.token_split,
        induction=copies and has_room(model),
        recipe=recipe,
        lora_rank=request.lora,
        calibration_tokens=_calibration(train_tokens, context) if epochs > CALIBRATION_FROM and not request.lora else 0,
        eval_tokens=min(max(int(seen / 400), 4096), 65536),
        seed=request.seed,
        device=request.device,
        dtype=request.dtype,
        threads=request.threads,
    )


def regularization(request: Request, model: ModelConfig, train_tokens: int, epochs: float) -> Regularization:
    """For a run that goes through the text so many times."""
    dropout, split = _by_epochs(DROPOUT, epochs), _by_epochs(TOKEN_SPLIT, epochs)
    if epochs > LARGE_FROM and layer_parameters(model) > max(LARGE, LARGE_FOR_TOKEN * train_tokens):
        dropout, split = LARGE_DROPOUT, LARGE_SPLIT
    return Regularization(dropout if request.dropout is None else request.dropout, split)


def _calibration(train_tokens: int, context: int) -> int:
    """Tokens that are not learned from: whole windows with the token after each; none of a text too short to spare
    them."""
    least, most = CALIBRATION_TOKENS
    tokens = min(int(train_tokens * CALIBRATION_SHARE), most) // (context + 1) * (context + 1)
    return tokens if tokens >= least else 0


def _most_epochs(request: Request, goes_on: bool) -> float:
    """Times through the text at most, where the user does not say."""
    return FINE_TUNING_EPOCHS if goes_on and request.optimizer != "muon" else MOST_EPOCHS


def _by_epochs(steps: Sequence[tuple[float, float]], epochs: float) -> float:
    """The rate for so many times through the text."""
    return next(rate for most, rate in steps if epochs <= most)


_LEARNING = {
    "muon": "Muon, AdamW",
    "adamw": "AdamW",
    "fine-tune": "AdamW, small steps",
    "lora": "adapters of rank {rank}, AdamW",
}
_WHY_SO = {
    "muon": "matrices by Muon, the rest by AdamW: lowest loss for the time",
    "adamw": ASKED,
    "fine-tune": "to limit catastrophic forgetting",
    "lora": "as asked; the model's own weights stay as they are",
}


def _rates(train: TrainConfig, model: ModelConfig) -> str:
    """The peak learning rates of a run."""
    found = learning_rates(train.recipe, model.hidden_size, model.tie_word_embeddings)
    peak = {what: f"{train.lr * rate:.3g}" for what, rate in found.items()}
    if "all" in peak:
        return f"AdamW {peak['all']}"
    embedding = "" if peak["embedding"] == peak["gains"] else f" (embedding {peak['embedding']})"
    return f"Muon {peak['matrices']}, AdamW {peak['gains']}{embedding}"


def _rates_reason(train: TrainConfig) -> str:
    recipe = "the recipe's peak rates" if train.lr == 1 else f"{train.lr:g} times the recipe's peak rates, {ASKED}"
    return f"{recipe}; they fall linearly to 0 at the end"


def summary(plan: Plan) -> list[Choice]:
    """The plan in five lines: data, tokenizer, model, length, regularization; and the learning rates where they are
    not the recipe's."""
    train = plan.train
    by_name = {choice.name: choice for choice in plan.choices}
    length = by_name["steps"].value + f" steps of {by_name['batch'].value}"
    against_overfitting = [f"dropout {train.dropout:g}"]
    if train.token_split:
        against_overfitting.append(f"BPE-dropout {train.token_split:.0%}")
    return [
        by_name["text"],
        Choice("vocabulary", f"{by_name['vocabulary'].value} tokens", by_name["vocabulary"].reason),
        Choice("model", f"{by_name['size'].value}: {by_name['shape'].value}", by_name["size"].reason),
        Choice(
            "training",
            f"{by_name['budget'].value}, {length}" if train.seconds else length,
            by_name["steps"].reason,
        ),
        Choice("regularization", ", ".join(against_overfitting), by_name["dropout"].reason),
        *([] if train.lr == 1 else [by_name["learning rate"]]),
    ]


def _why_not_larger(model: ModelConfig, here: Sequence[ModelConfig], models: Sequence[ModelConfig]) -> str:
    if model is not here[-1]:
        return "best size for the time budget"
    return "largest size this much data supports" if len(here) == len(models) else "what fits into memory"


def _experts_choice(model: ModelConfig, reason: str) -> list[Choice]:
    if not model.num_experts:
        return []
    value = f"{model.num_experts_per_tok} of {model.num_experts} for each token"
    return [Choice("experts", value, f"{reason}; {model.active_parameters:,} parameters active")]


def _asked(value: object) -> str:
    """The reason for what the user fixed; "" where the plan decides."""
    return "" if value is None else ASKED


@dataclass(frozen=True)
class _Budget:
    seconds: float | None
    reason: str


def _budget(request: Request, most_epochs: float = MOST_EPOCHS) -> _Budget:
    if request.steps or request.epochs:
        return _Budget(None, ASKED)
    reason = _asked(request.seconds) or f"or {most_epochs:g} times through the text"
    return _Budget(request.seconds or DEFAULT_SECONDS, reason)


def _models(
    request: Request, text: Text, context: int, vocab_size: int, eos_id: int, copies: bool
) -> list[ModelConfig]:
    """Every shape that this text can fill, the smallest first; one alone where the user fixed it."""
    shapes = [s for s in LADDER if 12 * s[0] * s[1] ** 2 <= ROOM * text.tokens**ROOM_POWER] or LADDER[:1]
    wanted = {(request.layers or layers, request.width or width): None for layers, width in shapes}
    return [_model(request, layers, width, context, vocab_size, eos_id, copies) for layers, width in wanted]


def _copies(request: Request, text: Text, vocab_size: int, eos_id: int) -> bool:
    """Whether fresh weights get the circuit of induction.py, and long windows to use it in: measured to pay from some
    text and some time on, and of no use where no model has room for it."""
    hurried = request.device == "cpu" and _core_seconds(request) < COPYING_FROM
    if hurried or text.tokens < COPYING_TEXT:
        return False
    return any(has_room(model) for model in _models(request, text, LONG_CONTEXT, vocab_size, eos_id, True))


def _context(request: Request, text: Text, copies: bool, base: ModelConfig | None) -> tuple[int, str]:
    train_tokens = text.tokens
    longest = train_tokens - 1  # a window and the token after it
    if longest < SHORTEST_CONTEXT:
        smaller = "" if base else ", or give --vocab-size 257 or --tokenizer char if it repeats itself"
        raise LLMError(
            f"the corpus is too short: {train_tokens} tokens ({text.bytes:,} bytes) to learn from, "
            f"{SHORTEST_CONTEXT + 1} needed at least; add more text{smaller}"
        )
    if request.context is not None:
        if base and request.context > base.max_position_embeddings:
            raise usage(f"--context {request.context} is longer than the base model's {base.max_position_embeddings}")
        if request.context > longest:
            shorter = f" or give --context {longest} or less" if request.context_reason == ASKED else ""
            raise LLMError(
                f"the corpus is shorter than a context: {train_tokens} tokens to learn from, --context "
                f"{request.context} needs {request.context + 1}; add more text{shorter}"
            )
        return request.context, request.context_reason
    wanted, reason = 256 if train_tokens >= 100_000 else 128, "far enough back for text of this size"
    if copies:
        wanted, reason = LONG_CONTEXT, "far enough back to find what stood there before"
    if base and base.max_position_embeddings >= 2 * FINE_TUNING_CONTEXT:
        wanted, reason = FINE_TUNING_CONTEXT, "far enough back to learn a new text from"
    elif base and base.max_position_embeddings < wanted:
        wanted, reason = base.max_position_embeddings, "as long as the model to go on from allows"
    quarter = max(SHORTEST_CONTEXT, 2 ** int(math.log2(longest / 4)))
    return (quarter, "a quarter of this short text") if quarter < wanted else (wanted, reason)


def _divisors(number: int) -> list[int]:
    """All of them, in order.

    >>> _divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _model(
    request: Request, layers: int, width: int, context: int, vocab_size: int, eos_id: int, copies: bool
) -> ModelConfig:
    wanted = 32 if width < 96 else 64  # dimensions of a head
    possible = _divisors(width // 2) if width % 2 == 0 else []  # rotary positions need pairs
    heads = request.heads or min(possible, key=lambda n: abs(math.log(width / n / wanted)), default=1)
    if width % heads:
        raise usage(f"{heads} heads do not divide width {width}; give --heads a divisor of {width}")
    if heads % (kv_heads := request.kv_heads or heads):
        raise usage(f"{kv_heads} key-value heads do not divide {heads} heads; set --kv-heads to a divisor of --heads")
    if width % 2:
        raise usage(f"--width must be even for rotary positions, found {width}")
    if width // heads % 2:
        raise usage(
            f"a head's width must be even for rotary positions, found {width // heads}; set --heads so that "
            "--width / --heads is even"
        )
    outweighs = vocab_size * width > 12 * layers * width**2
    active = min(request.active or ACTIVE, request.experts or 1)
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        # three matrices of 8/3 cost what two of 4 do; the active experts together cost what one for all would
        intermediate_size=max(32, round(width * 8 / 3 / active / 32) * 32),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width // heads,
        max_position_embeddings=context,
        rope_theta=COPYING_THETA if copies else ModelConfig.rope_theta,
        tie_word_embeddings=outweighs if request.tie is None else request.tie,
        eos_token_id=eos_id,
        model_type="qwen3_moe" if request.experts else "qwen3",
        num_experts=request.experts or 0,
        num_experts_per_tok=active if request.experts else 0,
    )
