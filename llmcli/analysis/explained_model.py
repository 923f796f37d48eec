"""Which model an explanation shows: of an ensemble, the one with the largest weight."""

from collections.abc import Callable
from dataclasses import dataclass

from llmcli.analysis.explain import predict_next
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.ensemble_file import Ensemble
from llmcli.generation.token_healing import Prompt
from llmcli.models.ensemble import EnsembleRuntime
from llmcli.models.ngram_runtime import network_of
from llmcli.models.open_runtime import open_runtime
from llmcli.models.runtime import Runtime


@dataclass(frozen=True)
class Subject:
    """The model whose activations are shown."""

    checkpoint: Checkpoint
    ensemble: Runtime | None = None  # which makes the final prediction
    expert: dict[str, object] | None = None  # name and weight of the model in the ensemble


def choose_subject(
    source: Checkpoint | Ensemble,
    tokenizer: Tokenizer,
    prompt: str | Prompt,
    *,
    literal: bool,
    on_note: Callable[[str], None],
    runtime: Runtime | None = None,
    cache: bool = True,
) -> Subject:
    """The model to explain a prompt with. `runtime` is that of the ensemble, if it is open already; otherwise `cache`
    says whether it uses its n-gram cache. `on_note` receives what the user should know."""
    if not isinstance(source, Ensemble):
        return Subject(source)
    runtime = runtime or open_runtime(source, on_note=on_note, cache=cache)
    predict_next(runtime, tokenizer, prompt, literal=literal)
    ensemble = network_of(runtime)
    assert isinstance(ensemble, EnsembleRuntime)
    weights = ensemble.expert_weights()[0].tolist()
    top = weights.index(max(weights))
    on_note(
        f"ensemble of {len(weights)} models: showing the activations of {source.names[top]}, which has the largest "
        f"weight after this prompt ({weights[top]:.3f}); the final probabilities are those of the ensemble"
    )
    return Subject(source.experts[top], runtime, {"name": source.names[top], "weight": round(weights[top], 6)})
