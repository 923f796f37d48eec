"""`llm export`: hand a model to other programs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

import llmcli
from llmcli import units
from llmcli.cli import console
from llmcli.cli.options import JsonOption, QuantizeOption, QuietOption, model_path, reject_options
from llmcli.errors import LLMError, command_line, usage
from llmcli.formats.output_path import reject_gguf_name, reject_overwriting

NOISE = 0.001  # bits per byte: what a model loses against itself over so few words may be this much by chance
FORMS = ("hf", "gguf", "tokenizer")
LARGEST_F16 = 65504.0
HF_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}  # as a safetensors file names them


def export(
    context_: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] OUTPUT", help="The model, else the one here; and the file or directory to write."
        ),
    ],
    to: Annotated[
        str | None, typer.Option("--to", metavar="hf|gguf|tokenizer", help="The form to write, unless --quantize.")
    ] = None,
    quantize: QuantizeOption = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="f32|f16|bf16|q8_0|q4_0",
            help="Data type of the weights (q8_0, q4_0: gguf only); default: as in the model.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="TEXT", help="What the model is called.")] = None,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="TEXT", help="Its licence, such as mit or apache-2.0.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a model for transformers (hf: a directory), for llama.cpp, Ollama and LM Studio (gguf), or its tokenizer;
    or, with --quantize, a smaller file of ours.

    Example: llm export model.safetensors --to gguf model.gguf --dtype q8_0
    """
    if to is None and quantize is None:
        raise usage(f"say what to write: --to {', --to '.join(FORMS)}, or --quantize int8")
    if to is not None and quantize is not None:
        raise usage("--quantize writes a file of ours; a GGUF in few bits is made with --to gguf --dtype q8_0 or q4_0")
    if to not in (None, *FORMS):
        raise usage(f"--to must be {', '.join(FORMS)}, found {to}")
    if len(names) > 2:
        raise usage(f"one model and one output are wanted, found {len(names)} names: {command_line(names)}")
    if to not in ("gguf", "hf"):
        reject_options(context_, "without --to gguf or --to hf", "dtype")
    if to == "hf" and dtype is not None and dtype not in HF_DTYPES:
        quantized = "; for quantized weights: --to gguf" if dtype.startswith("q") else ""
        raise usage(f"--dtype must be {', '.join(HF_DTYPES)} with --to hf, found {dtype}{quantized}")
    if to in (None, "tokenizer"):
        reject_options(context_, "with --to tokenizer" if to else "with --quantize", "name", "licence")
    output, path = Path(names[-1]), model_path(names[0] if len(names) == 2 else None)
    from llmcli.formats import atomic_io, file_lock, gguf_writer, hf_directory, loading

    if quantize:
        reject_gguf_name(output)
    loaded = loading.load_any(path)
    model = loaded.shared if to == "tokenizer" else loading.single_model(loaded, path)
    reject_overwriting(output, "export", [path], "the model to export", by="")
    reject_overwriting(output, "export", loading.files(path), "part of the model to export", by="")
    if to == "gguf" and output.suffix.lower() == ".safetensors":
        raise usage(f"{output}: --to gguf writes a .gguf; name it so: {output.with_suffix('.gguf')}")
    if to == "hf":
        if problem := context_.with_resource(file_lock.locked(output)):
            console.note(f"{output} cannot be locked here ({problem}): see to it that nothing else writes it")
        else:
            atomic_io.remove_stale(output)
        hf_directory.check_writable(output, force=force)
    else:
        example = {"gguf": "model.gguf", "tokenizer": "tokenizer.json"}.get(to or "", "model.safetensors")
        atomic_io.check_writable(output, force=force, by="", example=example)
    told = _told(model, path, name, licence)
    if quantize:
        _quantized(model, output, quantize, json_)
        return
    if to == "tokenizer":
        atomic_io.write(output, [model.tokenizer_json.encode("utf-8")])
    elif to == "hf":
        if dtype:
            model = _in_type(model, HF_DTYPES[dtype])
        hf_directory.write(output, model, {key: value for key, value in told.items() if value}, _card(model, told))
    else:
        kinds = {
            model.dtypes.get(tensor, "F32") for tensor, shape in model.config.tensor_shapes().items() if len(shape) > 1
        }
        loading.open_tokenizer(model)  # a broken one is told before
        gguf_writer.write(output, model, dtype or (kinds.pop().lower() if len(kinds) == 1 else "f32"), told)
    size = sum(file.stat().st_size for file in (output.iterdir() if output.is_dir() else [output]))
    if json_:
        console.json_result({"file": str(output), "to": to, "bytes": size})
        return
    console.note(f"saved {output}: {units.size(size)}")
    if to == "gguf":
        console.note("for Ollama, a Modelfile of this line, then: ollama create NAME -f Modelfile")
        console.result(f"FROM {output.resolve()}")


def _quantized(model: Any, output: Path, kind: str, json_: bool) -> None:
    """Write a model in few bits, and say what that costs."""
    from llmcli.evaluation.divergence import kl_divergence
    from llmcli.formats import atomic_io, checkpoint, loading, quantization
    from llmcli.models.numpy_runtime import NumpyRuntime
    from llmcli.models.open_runtime import open_runtime

    if model.quantization == kind:
        raise LLMError(f"the model is in {kind} already")
    atomic_io.check_space(output, quantization.stored_bytes(model.config, kind) + len(model.tokenizer_json))
    checkpoint.save(output, replace(model, quantization=kind, dtypes={}))
    size = output.stat().st_size
    quantized = loading.load(output)
    few, tokenizer = open_runtime(quantized, on_note=console.note), loading.open_tokenizer(quantized)
    lost = kl_divergence(NumpyRuntime(model), few, tokenizer)
    if json_:
        answer = {"file": str(output), "quantize": kind, "bytes": size, "bits_per_byte_lost": lost}
        console.json_result(answer)
    else:
        console.note(f"saved {output}: {units.size(size)}")
        cost = f"it costs {lost:.4f} bits per byte" if lost >= NOISE else f"it costs less than {NOISE} bits per byte"
        console.note(f"{cost} of the model's own words; of another text: llm eval")


def _in_type(model: Any, dtype: str) -> Any:
    """The same model with weights of one type. Raises LLMError when float16 cannot hold one."""
    import numpy as np

    names = list(model.config.tensor_shapes())
    for name in names if dtype == "F16" else ():
        largest = float(np.abs(model.tensors[name]).max(initial=0.0))
        if LARGEST_F16 < largest < float("inf"):
            raise LLMError(f"{name} holds {largest:.6g}, float16 at most {LARGEST_F16:,.0f}; export with --dtype bf16")
    return replace(model, dtypes=dict.fromkeys(names, dtype))


def _told(model: Any, path: Path, name: str | None, licence: str | None) -> dict[str, str]:
    """What is said of the model, in the names that GGUF has for it."""
    from llmcli.formats import atomic_io

    record, origin = model.record, model.record.get("imported", {})
    told = {
        "type": "model",
        "name": name or origin.get("name") or Path(atomic_io.name_of(path.resolve())).stem,
        "license": licence or origin.get("license"),
        "author": origin.get("author"),
        "organization": origin.get("organization"),
        "description": _history(record, origin),
    }
    texts = {key: value for key, value in told.items() if isinstance(value, str) and value}
    return {key: value.encode("utf-8", "replace").decode("utf-8") for key, value in texts.items()}


def _history(record: dict[str, Any], origin: dict[str, Any]) -> str:
    """Where it comes from, in a sentence or two."""
    corpus = record.get("corpus", [])
    said = []
    if origin:
        said.append(f"Imported from {origin.get('file')} ({origin.get('form')}).")
    if corpus:
        names = ", ".join(str(d.get("name")) for d in corpus[:5]) + (" and others" if len(corpus) > 5 else "")
        verb = "Taught" if origin or record.get("base") else "Trained"
        said.append(f"{verb} by llmcli {llmcli.__version__} on {names}.")
    bits = record.get("bits_per_byte")
    if isinstance(bits, float):
        said.append(f"Held-out text: {bits:.3f} bits per byte.")
    return " ".join(said) or f"Written by llmcli {llmcli.__version__}."


def _card(model: Any, told: dict[str, str]) -> str:
    """The README.md of a Hugging Face directory."""
    front = ["library_name: transformers", "pipeline_tag: text-generation"]
    if "license" in told:
        front.append(f"license: {json.dumps(told['license'])}")
    lines = ["---", *front, "---", "", f"# {told['name']}", "", told["description"], ""]
    lines += [f"{model.config.parameters:,} parameters, context {model.config.max_position_embeddings:,} tokens.", ""]
    return "\n".join(lines)
