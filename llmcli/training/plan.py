"""What a training run is asked for, and the plan that the planner makes of it: values, with a reason for each."""

from dataclasses import dataclass

from llmcli.config import ModelConfig, TrainConfig
from llmcli.errors import usage

ASKED = "as asked"  # the reason for what the user fixed


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
    context_reason: str = ASKED
    tie: bool | None = None
    batch_tokens: int | None = None
    dropout: float | None = None
    lr: float = TrainConfig.lr
    optimizer: str | None = None  # "muon" or "adamw"
    experts: int | None = None  # SwiGLUs in a layer ...
    active: int | None = None  # ... and how many of them each token goes through
    lora: int = 0  # the rank of adapters
    seed: int = TrainConfig.seed
    device: str = TrainConfig.device
    dtype: str = TrainConfig.dtype
    threads: int = TrainConfig.threads
    machine_reason: str = "what is here"

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
        if self.optimizer not in (None, "muon", "adamw"):
            raise usage(f"--optimizer must be muon or adamw, found {self.optimizer}")
        if self.active is not None and not self.experts:
            raise usage("--active says how many of --experts each token goes through; give both")
        if self.experts and not 1 <= (self.active or 1) <= self.experts:
            raise usage(f"--active {self.active} of --experts {self.experts} cannot be; give 1 to {self.experts}")
        if self.lora and self.optimizer == "muon":
            raise usage("--lora learns by adamw; leave --optimizer out")
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
    warning: str = ""  # why the run will not learn much


@dataclass(frozen=True)
class Regularization:
    """What reduces overfitting, as shares of the activations and of the tokens."""

    dropout: float
    token_split: float  # BPE-dropout
