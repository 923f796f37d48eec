"""`llm import`: a model of another program becomes one file of ours."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from llmcli import charts, console
from llmcli.commands.options import JsonOption, QuietOption, tokenizer_of
from llmcli.config import DEFAULT_MODEL
from llmcli.errors import LLMError


def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A Hugging Face directory or a .gguf file.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The model to write.")] = Path(
        DEFAULT_MODEL
    ),
    adapter: Annotated[
        Path | None, typer.Option("--adapter", metavar="FILE", help="Merge low-rank adapters in PEFT's naming into it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make one file of a published model: weights, config, tokenizer and where it comes from.

    bfloat16 and float16 weights stay what they are; those of a quantized GGUF become float32. Every other command also
    takes a directory or a .gguf as it is.

    Example: llm import SmolLM2-135M/ -o smol.safetensors
    """
    from llmcli import adapters, checkpoint, durable, importer

    if not output.name:
        raise LLMError("-o needs the name of a file: -o model.safetensors")
    durable.check_writable(output, force=force)
    model = importer.load(source)
    if Path(source).exists() and output.exists() and output.samefile(source):
        raise LLMError(f"{output} is the model to import; give the new one another name with -o")
    tokenizer_of(model)  # one that cannot be used is told now
    origin = model.record.get("imported")
    if isinstance(origin, dict) and "train" not in model.record:
        origin.setdefault("sha256", importer.fingerprint(source))
    if adapter is not None:
        merged = adapters.Merged(model, adapter)
        model = replace(model, tensors=merged, record=model.record | {"adapter": adapter.name}, dtypes={})
    sizes = {"F32": 4, "F16": 2, "BF16": 2}
    shapes = model.config.tensor_shapes()
    total = sum(math.prod(shape) * sizes[model.dtypes.get(name, "F32")] for name, shape in shapes.items())
    durable.check_space(output, total + len(model.tokenizer_json))
    checkpoint.save(output, model)
    parameters = model.config.parameters
    if json_:
        answer = {"file": str(output), "parameters": parameters, "imported": model.record.get("imported", {})}
        console.result(json.dumps(answer, ensure_ascii=False))
    else:
        console.note(f"saved {output}: {charts.number(parameters)} parameters, {charts.size(output.stat().st_size)}")
        licence = model.record.get("imported", {}).get("license")
        if licence:
            console.note(f"its licence: {licence}")
