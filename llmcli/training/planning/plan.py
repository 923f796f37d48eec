"""The user's request for a training run, and its plan: hyperparameters with reasons."""

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

from llmcli.config import MAX_VOCAB_SIZE, ModelConfig, Setting, TrainConfig, check_fields, require
from llmcli.errors import usage

DEFAULT_SECONDS = 300.0  # time budget if the user gives none
MAX_PROBE = 500  # characters
# minimum and maximum of settings; there are at most 1,000 layers, and experts per layer
BOUNDS = {
    "vocab_size": Setting(1, MAX_VOCAB_SIZE),
    "layers": Setting(1, 1_000),
    "width": Setting(1),
    "heads": Setting(1),
    "kv_heads": Setting(1),
    "context": Setting(1),
    "batch_tokens": Setting(1),
    "experts": Setting(1, 1_000),
    "active": Setting(1),
    "threads": Setting(1),
    "seed": Setting(0, (1 << 63) - 1),
    "epochs": Setting(1e-9, 1_000_000),
    "kl_weight": Setting(0, 1_000_000),
}
REQUESTED = "as requested"  # reason for a value set by the user
FROM_BASE = "from the base model"

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class PlanRequest:
    """Settings fixed by the user; None leaves the decision to the planner."""

    seconds: float | None = None  # time budget
    steps: int | None = None
    epochs: float | None = None
    vocab_size: int | None = None
    layers: int | None = None
    width: int | None = None  # hidden size
    heads: int | None = None
    kv_heads: int | None = None
    context: int | None = None
    context_reason: str = REQUESTED
    tie: bool | None = None  # tied embeddings
    batch_tokens: int | None = None
    dropout: float | None = None
    lr: float = TrainConfig.lr  # multiplier of the recipe's learning rates
    optimizer: str | None = None  # "muon" or "adamw"
    experts: int | None = None  # per layer
    active: int | None = None  # experts per token
    lora: int = 0  # rank; 0: train all weights
    kl_weight: float | None = None  # weight of the divergence from the base model; 0: none
    seed: int = TrainConfig.seed
    device: str = TrainConfig.device
    dtype: str = TrainConfig.dtype
    threads: int = TrainConfig.threads  # per process
    processes: int = 1
    machine_reason: str = "detected"  # reason for the device and the data type
    probe: str | None = None  # prompt whose likeliest next words the run records

    def __post_init__(self) -> None:
        check_fields(self, BOUNDS)
        budgets = {"`seconds`": self.seconds, "`steps`": self.steps, "`epochs`": self.epochs}
        given = {name: value for name, value in budgets.items() if value is not None}
        if len(given) > 1:
            raise usage(f"{' and '.join(given)} both set the length of the run; give one of them")
        for name, value in given.items():
            require(0 < value < math.inf, name, "a number above 0", value)
        require(self.optimizer in (None, "muon", "adamw"), "`optimizer`", "muon or adamw", self.optimizer)
        if self.active and not self.experts:
            raise usage("`active` is the number of experts per token; give `experts` too")
        if (self.active or 0) > (self.experts or 0):
            raise usage(
                f"`active` {self.active} is more than `experts` ({self.experts}); give at most as many"
            )
        if self.lora and self.optimizer == "muon":
            raise usage("`lora` trains with AdamW; leave out `optimizer` muon")
        if self.width is not None and self.heads is not None and self.width % self.heads:
            raise usage(f"`heads` {self.heads} does not divide `width` {self.width}; give a divisor of it")
        length = 1 if self.probe is None else len(self.probe)
        require(0 < length <= MAX_PROBE, "`probe`", f"1 to {MAX_PROBE} characters long", length)

    @property
    def has_time_budget(self) -> bool:
        """Whether the clock ends the run rather than a number of steps or epochs."""
        return not (self.steps or self.epochs)

    @property
    def budget(self) -> float | None:
        """The time budget or its default; None if steps or epochs end the run."""
        return (self.seconds or DEFAULT_SECONDS) if self.has_time_budget else None

    @property
    def core_seconds(self) -> float:
        """The time budget times the number of threads in all processes; infinite without a budget."""
        return (self.budget or math.inf) * (self.threads * self.processes)

    def is_short(self, core_seconds: float) -> bool:
        """Return whether this is a run on a CPU with a time budget of fewer core-seconds."""
        return self.device == "cpu" and self.core_seconds < core_seconds


@dataclass(frozen=True)
class Decision(Generic[T_co]):
    """A value and the reason for it."""

    value: T_co
    reason: str


@dataclass(frozen=True)
class PlanRow:
    """A displayed row of the plan."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class ConversationSettings:
    """Settings for training on conversations. The field names are stored in resume files."""

    share: float = 1.0  # final share of the run that trains on conversations, after text
    dropout: float = 0.0  # dropout rate in that share
    new_tokens: int = 0  # tokens at the end of the vocabulary that the base model lacks
    base_divergence: float = 0.0  # weight of the divergence from the base model in the loss
    validation: int = 0  # training conversations in the validation slice

    def __post_init__(self) -> None:
        counts = self.new_tokens, self.base_divergence, self.validation
        if not 0 < self.share <= 1 or not 0 <= self.dropout < 1 or min(counts) < 0:
            raise ValueError(f"no run trains on conversations with {self}")


@dataclass(frozen=True)
class EpochSearch:
    """The number of epochs for a short text, as found by a first run. The field names are stored in resume
    files and model files."""

    found: float = 0.0  # number of epochs; 0 in the first run
    # whether more epochs did not lower the validation loss; otherwise there was no time for more
    confirmed: bool = False


@dataclass(frozen=True)
class Expected:
    """A plan's assumptions about a run with a time limit."""

    tokens_per_second: float  # measured
    epochs: float


@dataclass(frozen=True)
class Plan:
    """The trainer's configs, with the reasons for their values."""

    model: ModelConfig
    train: TrainConfig
    rows: tuple[PlanRow, ...]
    warning: str = ""  # reason why the run will hardly train the model
    conversations: ConversationSettings | None = None  # None: plain text only
    expected: Expected | None = None  # if the run has a time limit
    search: EpochSearch | None = None  # if a first run finds the number of epochs
    sharded: bool = False  # each process has a part of the weights, gradients and optimizer

    @property
    def searches(self) -> bool:
        """Whether this is the first run, which finds the number of epochs."""
        return self.search is not None and not self.search.found
