"""What the user requests of a training run, and the plan for it: hyperparameters, each with a reason."""

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

from llmcli.config import MAX_VOCAB_SIZE, ModelConfig, TrainConfig, convert_fields
from llmcli.errors import usage

DEFAULT_SECONDS = 300.0  # time budget where the user gives no budget at all
MAX_COUNT = 1_000  # of layers, and of experts in a layer
REQUESTED = "as requested"  # the reason for a value that the user fixed
FROM_BASE = "from the base model"

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Request:
    """What the user fixed; None leaves the decision to the planner."""

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
    kl_weight: float | None = None  # of the divergence from the base model; 0: none
    seed: int = TrainConfig.seed
    device: str = TrainConfig.device
    dtype: str = TrainConfig.dtype
    threads: int = TrainConfig.threads  # of each process
    processes: int = 1
    shard: bool | None = None  # over the processes: weights, gradients and optimizer
    machine_reason: str = "detected"  # for the device and the data type

    def __post_init__(self) -> None:
        convert_fields(self)
        for name in ("vocab_size", "layers", "width", "heads", "kv_heads", "context", "batch_tokens", "experts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise usage(f"--{name.replace('_', '-')} must be at least 1, found {value}")
        for name in ("layers", "experts"):  # each has tensors, whose shapes are listed
            if (getattr(self, name) or 0) > MAX_COUNT:
                raise usage(f"--{name} must be at most {MAX_COUNT:,}, found {getattr(self, name):,}")
        if not 0 <= self.seed < 1 << 63:
            raise usage(f"--seed must be at least 0 and below 2^63, found {self.seed}")
        if self.vocab_size is not None and self.vocab_size > MAX_VOCAB_SIZE:
            raise usage(f"--vocab-size must be at most {MAX_VOCAB_SIZE:,}, found {self.vocab_size:,}")
        budgets = {"--time": self.seconds, "--steps": self.steps, "--epochs": self.epochs}
        given = {name: value for name, value in budgets.items() if value is not None}
        if len(given) > 1:
            raise usage(f"{' and '.join(given)} both set the length of the run; give one of them")
        for name, value in given.items():
            if not 0 < value < math.inf:
                raise usage(f"{name} must be a number above 0, found {value}")
        if self.epochs is not None and not self.epochs <= 1e6:
            raise usage(f"--epochs must be at most a million, found {self.epochs}")
        if self.optimizer not in (None, "muon", "adamw"):
            raise usage(f"--optimizer must be muon or adamw, found {self.optimizer}")
        if self.active is not None and not self.experts:
            raise usage("--active is the number of experts per token; give --experts too")
        if self.experts and not 1 <= (self.active or 1) <= self.experts:
            raise usage(f"--active must be between 1 and --experts ({self.experts}), found {self.active}")
        if self.shard and self.processes == 1:
            raise usage("--shard is for several processes; give --processes, or start them with torchrun")
        if self.lora and self.optimizer == "muon":
            raise usage("--lora trains with AdamW; leave out --optimizer muon")
        if self.width is not None and self.heads is not None and self.width % self.heads:
            raise usage(f"--heads {self.heads} does not divide --width {self.width}; give a divisor of it")

    @property
    def has_time_budget(self) -> bool:
        """Whether the clock ends the run, and not a number of steps or epochs."""
        return not (self.steps or self.epochs)

    @property
    def budget(self) -> float | None:
        """The time budget, also where the user gives none; None if steps or epochs end the run."""
        return (self.seconds or DEFAULT_SECONDS) if self.has_time_budget else None

    @property
    def core_seconds(self) -> float:
        """The time budget times the number of threads of all processes; infinite without one."""
        threads = self.threads * self.processes
        return (self.seconds or DEFAULT_SECONDS) * threads if self.has_time_budget else math.inf


@dataclass(frozen=True)
class Decision(Generic[T_co]):
    """A value and the reason for it."""

    value: T_co
    reason: str


@dataclass(frozen=True)
class ModelDecisions:
    """What is trained."""

    size: Decision[ModelConfig]  # the whole config; the reason is for its number of parameters
    shape: Decision[ModelConfig]  # the same; the reason is for its layers, hidden size and heads
    experts: Decision[int]  # per layer; 0: dense
    tied_embeddings: Decision[bool]
    sharded: Decision[bool]  # weights, gradients and optimizer, over the processes


@dataclass(frozen=True)
class ConversationDecisions:
    """How conversations are trained on."""

    share: Decision[float]  # of the run, at its end
    dropout: Decision[float]  # in that part
    base_divergence: Decision[float]  # weight in the loss
    validation: Decision[int]  # conversations in the validation slice


@dataclass(frozen=True)
class TrainDecisions:
    """How it is trained."""

    seconds: Decision[float | None]  # time budget; None: steps or epochs end the run
    context: Decision[int]  # tokens
    induction: Decision[bool]  # whether the initial weights get induction heads
    batch_size: Decision[int]  # windows of `context` tokens
    steps: Decision[int]
    dropout: Decision[float]
    bpe_dropout: Decision[float]
    validation: Decision[int]  # tokens of text in the validation slice
    calibration: Decision[bool]  # of the temperature
    weight_decay: Decision[float]
    recipe: Decision[str]  # the reason is for its optimizer
    learning_rate: Decision[float]  # multiplier of the recipe's rates
    distillation: Decision[float]  # part of the run in which a teacher is trained
    eval_tokens: int
    conversations: ConversationDecisions | None = None  # None: plain text only

    def settings(self, request: Request) -> TrainConfig:
        """The values, with what the request alone decides."""
        return TrainConfig(
            steps=self.steps.value,
            seconds=self.seconds.value,
            context=self.context.value,
            batch_size=self.batch_size.value,
            lr=self.learning_rate.value,
            dropout=self.dropout.value,
            token_split=self.bpe_dropout.value,
            calibration_tokens=self.validation.value,
            calibrates=self.calibration.value,
            weight_decay=self.weight_decay.value,
            induction=self.induction.value,
            recipe=self.recipe.value,
            lora_rank=request.lora,
            teacher_share=self.distillation.value,
            eval_tokens=self.eval_tokens,
            seed=request.seed,
            device=request.device,
            dtype=request.dtype,
            threads=request.threads,
        )


@dataclass(frozen=True)
class PlanRow:
    """A row of the plan as it is shown."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class ConversationSettings:
    """How conversations are trained on. Together with TrainConfig it determines the weights.

    The names of these fields are stored in resume files.
    """

    share: float = 1.0  # of the run, at its end, in which the batches are conversations; before, they are text
    dropout: float = 0.0  # in that part
    new_tokens: int = 0  # tokens at the end of the vocabulary that the base model does not have
    base_divergence: float = 0.0  # weight in the loss of the divergence from the base model
    validation: int = 0  # training conversations in the validation slice

    def __post_init__(self) -> None:
        if (
            not 0 < self.share <= 1
            or not 0 <= self.dropout < 1
            or min(self.new_tokens, self.base_divergence, self.validation) < 0
        ):
            raise ValueError(f"no run trains on conversations with {self}")


@dataclass(frozen=True)
class Expected:
    """What a plan assumes about a run that a clock ends."""

    tokens_per_second: float  # as measured
    epochs: float


@dataclass(frozen=True)
class Plan:
    """The configs that the trainer needs, with the reasons for their values."""

    model: ModelConfig
    train: TrainConfig
    rows: tuple[PlanRow, ...]
    warning: str = ""  # why the run will hardly train the model
    conversations: ConversationSettings | None = None  # None: plain text only
    expected: Expected | None = None  # where a clock ends the run
    sharded: bool = False  # of several processes each has a part of the weights, their gradients and the optimizer


@dataclass(frozen=True)
class Regularization:
    """The two rates that follow the number of epochs."""

    dropout: float
    bpe_dropout: float
