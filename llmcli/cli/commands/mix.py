"""`llm mix`: several models, one answer."""

from pathlib import Path
from typing import Annotated

import typer

from llmcli import units
from llmcli.cli import console
from llmcli.cli.options import JsonOption, QuietOption
from llmcli.errors import LLMError, usage
from llmcli.formats.output_path import reject_gguf_name, reject_overwriting

MIXTURE = "mixture.safetensors"


def mix(
    models: Annotated[
        list[str], typer.Argument(metavar="MODELS", help="Two models or more, each trained on a domain of its own.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The mixture to write.")] = Path(
        MIXTURE
    ),
    average: Annotated[
        bool,
        typer.Option("--average", help="Average the weights instead: one model's cost; for models that came from one."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Let several models answer together: each weighs as much as the text so far speaks for its domain.

    They need the same tokenizer and context: train the second and third with --like the first.

    Example: llm mix cooking.safetensors law.safetensors -o expert.safetensors
    """
    from llmcli.formats import atomic_io, checkpoint, ensemble_file, loading

    if len(models) < 2:
        raise usage(f"two models or more are wanted, found {len(models)}: llm mix {models[0]} OTHER -o {MIXTURE}")
    if len(models) > ensemble_file.MAX_EXPERTS:
        raise usage(f"at most {ensemble_file.MAX_EXPERTS} models can be mixed, found {len(models)}")
    if not output.name:
        raise usage(f"-o needs the name of a file: -o {MIXTURE}")
    reject_gguf_name(output)
    if "" in models:
        raise usage("the name of a model is empty; name the files to mix")
    same = [m for i, m in enumerate(models) if any(_is(Path(m), Path(other)) for other in models[:i])]
    if same:
        raise LLMError(f"{same[0]} is named twice; name each model once")
    atomic_io.check_writable(output, force=force)
    reject_overwriting(output, "mixture", [Path(model) for model in models], "one of the models to mix")
    parts = [file for model in models for file in loading.files(model)]
    reject_overwriting(output, "mixture", parts, "part of a model to mix")
    loaded = {}
    for model in models:
        found = loading.load_any(model)
        if isinstance(found, ensemble_file.Ensemble):
            raise LLMError(
                f"{model} is a mixture already; mix the models that it was made of: {', '.join(found.names)}"
            )
        loaded[model] = found
    mixture = ensemble_file.combine(loaded)
    if average:
        averaged = ensemble_file.average(loaded)
        starts = [model.record.get("base", {}).get("sha256") for model in loaded.values()]
        if None in starts or len(set(starts)) > 1:
            console.warn("their records do not say that they came from one model; else the mean of weights is no good")
        atomic_io.check_space(output, 4 * averaged.parameters)
        checkpoint.save(output, averaged)
    else:
        atomic_io.check_space(output, 4 * mixture.parameters)
        ensemble_file.save(output, ensemble_file.with_short_names(mixture, [_name(Path(model)) for model in models]))
    parameters = averaged.parameters if average else mixture.parameters
    if json_:
        answer = {"file": str(output), "models": models, "average": average, "parameters": parameters}
        console.json_result(answer)
        return
    what = "the average" if average else "a mixture"
    console.note(f"saved {output}: {what} of {len(models)} models, {units.number(parameters)} parameters")
    if not average:
        console.note(f"see who speaks: llm generate TEXT -m {output} --experts")


def _is(one: Path, other: Path) -> bool:
    """Whether two names are of one file."""
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))


def _name(path: Path) -> str:
    """
    >>> _name(Path("a/cooking.safetensors"))
    'cooking'
    """
    from llmcli.formats import atomic_io

    return Path(atomic_io.name_of(path.resolve())).stem
