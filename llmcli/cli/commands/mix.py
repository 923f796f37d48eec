"""`llm mix`: combine several models into an ensemble."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli import units
from llmcli.cli.options import ResultOptions, argument, local_model, option
from llmcli.cli.terminal import console
from llmcli.errors import LLMError, usage
from llmcli.formats import atomic_io

if TYPE_CHECKING:
    from llmcli.formats.checkpoint import Checkpoint

DEFAULT_OUTPUT = "mixture.safetensors"


class _Options(ResultOptions):
    models: list[str] = argument("MODELS", "Two or more models, each trained on its own domain.", ...)
    output: Path = option("FILE", "Model file to write.", Path(DEFAULT_OUTPUT), names="-o --output")
    force: bool


def mix(options: _Options) -> None:
    """The better a model predicts the text so far, the larger its weight in the next prediction. All models
    need the same tokenizer and context length: train the second and later ones with --like the first.

    Example: llm mix cooking.safetensors law.safetensors -o expert.safetensors
    """
    from llmcli.formats import ensemble_file

    models, output = options.models, options.output
    _check_arguments(models)
    options.claim_model(output, force=options.force)
    models = [str(local_model(name)) for name in models]
    ensemble = ensemble_file.combine(_load(models, output))
    parameters = ensemble.parameters
    stems = [Path(atomic_io.name_of(Path(name).resolve())).stem for name in models]
    ensemble_file.save(output, ensemble_file.with_short_names(ensemble, stems))
    options.report(
        {"file": str(output), "models": models, "parameters": parameters},
        f"saved {output}: an ensemble of {len(models)} models, {units.number(parameters)} parameters",
    )
    console.note(f"to see the weight of each model: llm generate TEXT -m {output} --experts")


def _check_arguments(models: list[str]) -> None:
    """Raise LLMError for too few or too many models, and for invalid or repeated names."""
    from llmcli.formats.ensemble_file import MAX_EXPERTS

    if len(models) < 2:
        raise usage(f"at least two models are needed, found {len(models)}: llm mix {models[0]} OTHER")
    if len(models) > MAX_EXPERTS:
        raise usage(f"at most {MAX_EXPERTS} models can be mixed, found {len(models)}")
    paths = [Path(name) for name in models]
    for first, other in itertools.combinations(paths, 2):
        if first.resolve() == other.resolve() or (
            first.exists() and other.exists() and first.samefile(other)
        ):
            raise usage(f"{other} is named twice; name each model once")


def _load(models: list[str], output: Path) -> "dict[str, Checkpoint]":
    """Open the models by name. Raises LLMError for an ensemble, and if the output would replace a model."""
    from llmcli.formats import ensemble_file, loading

    loaded = {}
    for name in models:
        loading.reject_overwriting(output, "ensemble", name, "one of the models to mix")
        model = loading.load_any(name)
        if isinstance(model, ensemble_file.Ensemble):
            raise LLMError(f"{name} is already an ensemble; mix its models instead: {', '.join(model.names)}")
        loaded[name] = model
    return loaded
