"""`llm import`: a model of another program becomes one file of ours."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from llmcli import units
from llmcli.cli import console
from llmcli.cli.options import JsonOption, QuietOption
from llmcli.config import DEFAULT_MODEL
from llmcli.errors import LLMError
from llmcli.formats.output_path import reject_gguf_name, reject_overwriting


def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A Hugging Face directory or a .gguf file.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The model to write.")] = Path(
        DEFAULT_MODEL
    ),
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter", metavar="FILE", help="Merge low-rank adapters in PEFT's naming into it: a file or directory."
        ),
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
    from llmcli.formats import adapters, atomic_io, checkpoint, dtypes, loading

    if not output.name:
        raise LLMError("-o needs the name of a file: -o model.safetensors")
    reject_gguf_name(output)
    atomic_io.check_writable(output, force=force)
    model = loading.load(source)
    reject_overwriting(output, "new one", [Path(source)], "the model to import")
    reject_overwriting(output, "new one", loading.files(source), "part of the model to import")
    learned = adapters.find_file(adapter) if adapter is not None else None
    if learned is not None:
        reject_overwriting(output, "model", [learned], "the adapter to merge")
    few_bits = ""  # of weights that become float32
    loading.open_tokenizer(model)  # one that cannot be used is told now
    origin = model.record.get("imported")
    if isinstance(origin, dict) and "train" not in model.record:
        origin.setdefault("sha256", loading.fingerprint(source))
    if learned is not None:
        merged = adapters.MergedTensors(model, learned)
        _warn_of_another_base(model, source, learned)
        few_bits = " and ".join(sorted({dtypes.TORCH_NAMES[kind] for kind in model.dtypes.values()}))
        model = replace(model, tensors=merged, record=model.record | {"adapter": atomic_io.name_of(learned)}, dtypes={})
    sizes = {"F32": 4, "F16": 2, "BF16": 2}
    shapes = model.config.tensor_shapes()
    total = sum(math.prod(shape) * sizes[model.dtypes.get(name, "F32")] for name, shape in shapes.items())
    atomic_io.check_space(output, total + len(model.tokenizer_json))
    checkpoint.save(output, model)
    parameters = model.config.parameters
    if json_:
        answer = {"file": str(output), "parameters": parameters, "imported": model.record.get("imported", {})}
        console.json_result(answer)
    else:
        console.note(f"saved {output}: {units.number(parameters)} parameters, {units.size(output.stat().st_size)}")
        if few_bits:
            console.note(
                f"the weights are saved as float32, those of {source} are {few_bits}: lower precision would round off "
                "what the adapters add"
            )
        licence = model.record.get("imported", {}).get("license")
        if licence:
            console.note(f"its licence: {licence}")


def _warn_of_another_base(model: Any, source: str, adapter: Path) -> None:
    """Adapters fit any model of the same shape, and are of use to the one that they were learned on."""
    from llmcli.formats import adapters, loading

    name, wanted = adapters.base_of(adapter)
    if not wanted or loading.source_fingerprint(model) in wanted:
        return
    found = loading.fingerprint(source)
    if found not in wanted:
        console.warn(
            f"warning: {adapter} was learned on {name} (sha256 {wanted[0][:16]}), {source} is another model (sha256 "
            f"{found[:16]}); what comes of it may be of no use"
        )
