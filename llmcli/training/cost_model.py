"""What training a model would cost and bring, told before it is trained, and the best of several in the time there is.

Operations, memory and tokens a second of a shape, by formula; the loss to expect of it, for ranking only. The clock is
asked through `Machine.speed`: who measures, and how, is not this room's business.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmcli.config import SCORES_KEPT, ModelConfig, TrainConfig

TOKENS_PER_PARAMETER = 1.2  # where steps or epochs are given: tokens seen per parameter of the layers
REPEATS = 3.0  # times through the text, about, after which text seen again no longer counts
TRAINING_SHARE = 0.9  # of the time; the rest goes into reading, planning, looking at held-out text and saving
MEASUREMENTS = 3  # of shapes at most, before a plan is made
VALUES_AT_ONCE = 1 << 22  # layers x width x tokens of a batch: more at once take memory and are hardly faster
MEASURING_SHARE, MEASURING = 0.01, 3.0  # each takes this share of the run, so many seconds at most

Speed = Callable[[ModelConfig, TrainConfig, float], float]  # tokens a second in training, found in so many seconds


@dataclass(frozen=True)
class Machine:
    """Where a plan will run."""

    speed: Speed
    memory: float = math.inf  # bytes that are free


def assumed_speed(model: ModelConfig, train: TrainConfig, seconds: float = 0.0) -> float:
    """Tokens a second without measuring: narrow matrices run further below the machine's peak."""
    peak = 2e14 if train.device == "cuda" else 5e10 * train.threads
    half = 600 if train.device == "cuda" else 100  # the width that runs at half of the peak
    return peak * model.hidden_size / (model.hidden_size + half) / operations(model, train.context)


def operations(model: ModelConfig, context: int) -> float:
    """Floating-point operations for a token in training: 6 for each weight of a matrix product (arXiv:2001.08361,
    section 2.1), and as many for each pair of a query and a key, of which half lie in the future."""
    shapes = model.tensor_shapes()
    embedding = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    asleep = model.parameters - model.active_parameters
    products = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2) - embedding - asleep
    attention = context * model.num_attention_heads * model.head_dim * model.num_hidden_layers
    return 6.0 * (products + attention)


def parts(model: ModelConfig, train: TrainConfig) -> int:
    """In how many parts a batch goes through the graph of a processor, one after the other."""
    if train.device != "cpu":
        return 1
    values = model.num_hidden_layers * model.hidden_size * train.context * train.batch_size
    return min(train.batch_size, -(-values // VALUES_AT_ONCE))


def memory_needed(model: ModelConfig, train: TrainConfig) -> float:
    """Bytes that training takes, about: for each weight itself, its gradient, what the optimizer remembers, the best
    so far and a copy on its way to the file; for each token of a part of a batch what is kept for the way back."""
    scores = model.num_attention_heads * min(train.context, SCORES_KEPT) // 3  # what the tokens saw of each other
    each = 4 * model.intermediate_size + (4 * model.hidden_size if model.num_experts else 0)
    per_layer = 12 * model.hidden_size + each * max(1, model.num_experts_per_tok) + scores
    per_token = model.num_hidden_layers * per_layer + model.vocab_size
    at_once = train.context * -(-train.batch_size // parts(model, train))
    return 24.0 * model.parameters + 6.0 * per_token * at_once + 3e8


def layer_parameters(model: ModelConfig) -> int:
    """Parameters of the layers, about: 12 for each square of the width."""
    return 12 * model.num_hidden_layers * model.hidden_size**2


@dataclass(frozen=True)
class Text:
    """What there is to learn from."""

    tokens: int
    bytes: int


def expected_loss(parameters: float, seen: float, text_tokens: int, text_bytes: int) -> float:
    """How good a model will be, for ranking shapes only: what its size costs and what its few tokens cost.

    Exponents as in nanochat's fits of 2026 (compute-optimal parameters grow as compute^0.52), constants so that they
    give its optimum; a token stands for the bytes it holds, and one seen again counts less each time, as in
    arXiv:2305.16264, equation 5, but sooner: measured on a megabyte, REPEATS = 3 instead of its 15.4.
    """
    epochs = seen / text_tokens
    worth = seen if epochs <= 1 else text_tokens * (1 + REPEATS * (1 - math.exp(-(epochs - 1) / REPEATS)))
    worth *= text_bytes / text_tokens / 3.3
    return 0.237 / parameters**0.34 + 1 / max(worth, 1.0) ** 0.374


def choose(
    models: Sequence[ModelConfig],
    seconds: float | None,
    text: Text,
    settings: Callable[..., TrainConfig],
    machine: Machine,
    most_epochs: float,
) -> tuple[ModelConfig, float, float]:
    """(model, tokens it will see, tokens a second or 0 where the clock has no say)

    Without a clock: the largest model that sees enough tokens. With one: the shape with the least expected loss at the
    speed measured; what one shape runs at corrects what is assumed of the others.
    """
    if seconds is None:
        seen = seen_by_count(settings(models[0]))
        fitting = [m for m in models if layer_parameters(m) <= seen / TOKENS_PER_PARAMETER]
        return (fitting or models[:1])[-1], seen, 0.0
    seconds, most = TRAINING_SHARE * seconds, most_epochs * text.tokens
    assumed = [assumed_speed(m, settings(m)) for m in models]
    measured: dict[int, float] = {}
    scale = 1.0

    def seen_by(i: int) -> float:
        return min(most, seconds * measured.get(i, scale * assumed[i]))

    def loss(i: int) -> float:
        size = math.sqrt(models[i].parameters * models[i].active_parameters)  # between the two, with experts
        return expected_loss(size, seen_by(i), text.tokens, text.bytes)

    for _ in range(MEASUREMENTS):
        i = min(range(len(models)), key=loss)
        if i in measured:
            break
        run = seen_by(i) / (scale * assumed[i])  # seconds; a small text is gone through long before the time is up
        measured[i] = machine.speed(models[i], settings(models[i], seen_by(i)), min(MEASURING, MEASURING_SHARE * run))
        scale = measured[i] / assumed[i]
    i = min(measured, key=loss)
    return models[i], seen_by(i), measured[i]


def seen_by_count(train: TrainConfig) -> float:
    """Tokens, where the number of steps is what ends the run."""
    return float(train.steps * train.context * train.batch_size)
