"""The initial model of a run: fresh weights, LoRA adapters, compiled layers."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch

from llmcli.config import ModelConfig, TrainConfig
from llmcli.models.induction import write_induction_heads
from llmcli.models.runtime import Array
from llmcli.models.spelling import spelled_embeddings
from llmcli.models.torch.transformer import LanguageModel

COMPILE_FROM = 120.0  # minimum length of a run, in seconds, for which compilation pays off


def fresh_weights(
    config: ModelConfig, seed: int, induction: bool = False, tokens: Sequence[bytes] = ()
) -> dict[str, Array]:
    """Make random weights by tensor name, optionally with induction heads (models/induction.py) and with
    embeddings by the spelling of `tokens` (models/spelling.py), unless they are tied to the output."""
    model = LanguageModel(config)
    model.initialize(torch.Generator().manual_seed(seed))
    weights = model.to_arrays()
    if tokens and not config.tie_word_embeddings:
        weights["model.embed_tokens.weight"] = spelled_embeddings(tokens, config.hidden_size, seed)
    if induction:
        write_induction_heads(config, weights, seed)
    return weights


def new_model(
    config: ModelConfig,
    settings: TrainConfig,
    new_tokens: range = range(0),
    kind: type[LanguageModel] = LanguageModel,
) -> LanguageModel:
    """Create a model without weights. With LoRA adapters, the embeddings of `new_tokens` are also trained."""
    model = kind(config, settings.dropout, getattr(torch, settings.dtype)).to(settings.device)
    if settings.lora_rank:
        model.add_adapters(settings.lora_rank, torch.Generator().manual_seed(settings.seed))
        if new_tokens:
            model.train_token_rows(new_tokens.start, len(new_tokens))
    return model


def fold_frozen(model: LanguageModel, settings: TrainConfig, arrays: Mapping[str, Array]) -> None:
    """Cast the frozen weights, `arrays`, once instead of in every step. Not on a GPU, where casting takes
    little time and the copies would take memory."""
    if settings.lora_rank and settings.device == "cpu":
        model.fold_frozen(arrays)


def compile_layers(model: LanguageModel, settings: TrainConfig) -> bool:
    """If compilation pays off, compile each layer when it first receives windows of a new length. Returns
    whether it pays off."""
    if not _is_worth_compiling(settings):
        return False
    model.dropout.exclude_from_compilation()
    for layer in model.model.layers:
        layer.compile()
    return True


@contextlib.contextmanager
def eager_without_compiler(settings: TrainConfig) -> Iterator[None]:
    """Fall back to eager execution if layers cannot be compiled: torch needs a C compiler, which may be
    missing."""
    if not _is_worth_compiling(settings):
        yield
        return
    import torch._dynamo

    with torch._dynamo.config.patch(suppress_errors=True):
        yield


def _is_worth_compiling(settings: TrainConfig) -> bool:
    """Return True on a GPU, except in short runs. On a CPU, steps are 0 to 5% faster after 26 s of
    compilation."""
    return settings.device == "cuda" and (settings.seconds is None or settings.seconds >= COMPILE_FROM)
