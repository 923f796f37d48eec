"""`llm export`: convert a model for other programs, or quantize it."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.cli.options import ResultOptions, argument, flag, model_path, one_of, option
from llmcli.cli.terminal import console
from llmcli.config import DEFAULT_MODEL, QUANTIZATIONS
from llmcli.errors import LLMError, as_argument, command_line, usage
from llmcli.evaluation.figures import Figures
from llmcli.formats import atomic_io

if TYPE_CHECKING:
    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.formats.huggingface.upload import Target

FORMATS = {  # output format -> its options besides --force
    "hf": "dtype name license push private",
    "gguf": "dtype name license",
    "html": "dtype trainable",
    "tokenizer": "",
    "handover": "dtype name license size corpus",
}
SUFFIXES = {"gguf": ".gguf", "html": ".html", "tokenizer": ".json", None: ".safetensors"}  # None: --quantize
TRAINING_PAGE = "train.html"  # default name of the trainable page without a model
MODELFILE = ".Modelfile"  # suffix of Ollama's file, written next to a GGUF file
HF_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}  # -> name in a safetensors file
# output format -> its data types; for GGUF see formats/gguf/writer.py
DTYPES = {"hf": (*HF_DTYPES,), "handover": (*HF_DTYPES,), "html": ("int8", "f16", "f32")}
# the shapes are in training/planning/model_shapes.py, which is slow to import
SIZES = ("100m", "350m", "1b", "3b", "7b")
MIN_DIVERGENCE = 0.001  # bits per byte: smaller estimates from one short text may be chance


class _Options(ResultOptions):
    names: list[str] = argument(
        "[MODEL [OUTPUT]]",
        f"Model (default: $LLMCLI_MODEL or {DEFAULT_MODEL}), and file or directory to write (default: named "
        "after the model, in the current directory).",
        (),
    )
    to: str | None = one_of(
        *FORMATS,
        help="Output format: Hugging Face directory, GGUF file, HTML page, the tokenizer alone, or a "
        "directory for training engines.",
    )
    quantize: str | None = one_of(
        *QUANTIZATIONS, help="Write a .safetensors file with quantized weights instead."
    )
    dtype: str | None = option(
        "f32|f16|bf16|q8_0|q4_0|int8",
        "Data type of the weights (default: the model's); q8_0 and q4_0 for GGUF, int8 for HTML only.",
    )
    name: str | None = option("TEXT", "Name of the model in its metadata.")
    license: str | None = option("TEXT", "License in its metadata, such as mit or apache-2.0.")
    push: str | None = option("OWNER/NAME", "With --to hf: upload the directory to the Hugging Face hub.")
    private: bool = flag("With --push: make a new repository private.")
    size: str | None = one_of(
        *SIZES, help="With --to handover: a larger model with random weights, instead of this one."
    )
    corpus: list[str] | None = option(
        "FILE", "With --to handover: the training text, if it cannot be found, and additional text."
    )
    trainable: bool = flag(
        "With --to html: add a tab that trains a model in the browser; without MODEL, the page opens on "
        "this tab."
    )
    force: bool = flag("Overwrite an existing output.")


def export(options: _Options) -> None:
    """--to html writes one file with the model inside, which runs in any browser, offline. --to hf is for
    transformers, --to gguf for llama.cpp, Ollama and LM Studio; these have no token healing and no n-gram
    cache, so to compare with them, use: llm generate --literal --no-cache. --to handover is for torchtitan,
    NeMo, Megatron-LM, litgpt, TRL and nanoGPT.

    Example: llm export model.safetensors model.gguf --to gguf --dtype q8_0
    """
    _check_options(options)
    to = options.to
    names = options.names or [TRAINING_PAGE]
    if options.trainable and len(names) == 1 and names[0].endswith(SUFFIXES["html"]):
        from llmcli.pages.live_page import training_page

        options.reject("without a model", "dtype")
        output = Path(names[0])
        _check_output(options, output, [])
        atomic_io.write(output, training_page())
        _report(options, output)
        return
    path, output = _model_and_output(options)
    from llmcli.cli.reports import model_card
    from llmcli.formats import loading

    model = loading.load_any(path).shared if to == "tokenizer" else loading.load(path)
    part = "part of " if path.is_dir() else ""
    _check_output(options, output, loading.files(path), f"{part}the model to export")
    target = None
    if options.push is not None:
        from llmcli.formats.huggingface import upload

        target = upload.find_target(options.push, private=options.private, force=options.force)
    if options.quantize:
        _export_quantized(model, output, options.quantize, options)
        return
    if to == "tokenizer":
        atomic_io.write(output, model.tokenizer_json.encode("utf-8"))
    elif to == "html":
        _export_html(model, output, options)
    elif to == "handover":
        _export_handover(model, output, path, options)
        return
    else:
        loading.open_tokenizer(model)  # raises LLMError for a tokenizer that cannot be used
        if model.record.ngram_cache is not None:
            figures = Figures.of_record(model.record)
            loss = f": {figures}" if figures and figures.adapting is not None else ""
            console.note(f"other programs run the network without its n-gram cache{loss}")
        values = model_card.metadata(model, path, options.name, options.license)
        if to == "hf":
            _export_hf(model, output, values, target, options)
        else:
            _export_gguf(model, output, options.dtype, values)
    _report(options, output, target)
    if to == "gguf":
        _write_modelfile(model, output, options.force)


# ---- names and checks


def _model_and_output(options: _Options) -> tuple[Path, Path]:
    """Return the paths of the model and of the output, which by default is named after the model. Raises
    LLMError if there is no such model."""
    model, output = [*options.names, "", ""][:2]
    path = model_path(model or None, option="llm export ")
    if model and not output and not model.startswith("hf:") and not path.exists():
        names = command_line([os.environ.get("LLMCLI_MODEL", DEFAULT_MODEL), model])
        advice = f"if it is the output, name the model before it: llm export {names} {_format(options)}"
        raise LLMError(f"there is no model {model}; {advice}")
    suffix = SUFFIXES.get(options.to)
    if not output:
        stem = atomic_io.name_of(path.absolute()).removesuffix(".safetensors").removesuffix(".gguf")
        ending = f"-{options.quantize}" if options.quantize else ""
        if suffix is None:
            ending = f"-{options.to}"
        return path, Path(f"{stem}{ending}{suffix or ''}")
    return path, Path(output)


def _format(options: _Options) -> str:
    return f"--to {options.to}" if options.to else f"--quantize {options.quantize}"


def _check_options(options: _Options) -> None:
    """Raise LLMError for missing options, and for options that have no effect together."""
    to, dtype = options.to, options.dtype
    if to is None and options.quantize is None:
        raise usage(f"choose a format: --to {', --to '.join(FORMATS)} or --quantize int8")
    if to is not None and options.quantize is not None:
        raise usage(
            "--quantize writes a .safetensors file; for a quantized GGUF: --to gguf --dtype q8_0 (or q4_0)"
        )
    if len(options.names) > 2:
        raise usage(
            f"give one model and one output, found {len(options.names)} names: {command_line(options.names)}"
        )
    if "" in options.names:
        raise usage("the name of a file is empty; leave the output out to name it like the model")
    every = {name for names in FORMATS.values() for name in names.split()}
    options.reject(f"with {_format(options)}", *every.difference(FORMATS.get(str(to), "").split()))
    if options.push is None:
        options.reject("without --push", "private")
    known = DTYPES.get(str(to), (dtype,))
    if dtype is not None and dtype not in known:
        raise usage(f"--dtype must be {', '.join(map(str, known))} with --to {to}, found {dtype}")


def _check_output(options: _Options, output: Path, inputs: list[Path], role: str = "") -> None:
    """Raise LLMError if the output cannot be written, would replace the model, or has the name of another
    format."""
    from llmcli.formats.huggingface import directory as hf_directory

    atomic_io.reject_overwriting(output, "export", inputs, role, by="")
    if options.to not in ("hf", "handover"):
        example = f"model{SUFFIXES[options.to]}"
        atomic_io.check_name(output, by="", example=example)
        if output.suffix.lower() != SUFFIXES[options.to]:
            suffixed = output.with_suffix(SUFFIXES[options.to])
            raise usage(f"{output}: {_format(options)} writes a {suffixed.suffix} file; name it {suffixed}")
        atomic_io.check_writable(output, force=options.force, by="", example=example)
        modelfile = output.with_suffix(MODELFILE)
        if options.to == "gguf" and (options.force or not modelfile.exists()):
            atomic_io.check_writable(modelfile, force=True, by="", example=f"model{MODELFILE}")
    elif options.to == "hf":
        hf_directory.check_writable(output, force=options.force)
    else:
        from llmcli.handover import directory

        directory.check_writable(output, force=options.force)
    options.claim(output)


# ---- one function per format


def _export_hf(
    model: "Checkpoint", output: Path, values: dict[str, str], target: "Target | None", options: _Options
) -> None:
    from llmcli.cli.reports import model_card
    from llmcli.formats.huggingface import directory as hf_directory
    from llmcli.formats.open_file import read_text

    model = _converted(model, options.dtype)
    readme = output / "README.md"
    card = read_text(readme) if readme.is_file() else ""
    if card and not model_card.is_unedited(card):
        console.note(f"kept the existing model card {readme}; to write a new one, remove it first")
    else:
        if "license" not in values:
            console.note("the model card states no license; add one with --license, such as --license mit")
        name = f"hf:{target.repository}" if target else atomic_io.name_of(output.resolve())
        card = model_card.model_card(model, values, name)
    hf_directory.write(output, model, values, card)


def _report(options: _Options, output: Path, target: "Target | None" = None) -> None:
    """Report where the output is. Uploads it if there is a target."""
    size = sum(file.stat().st_size for file in (output.iterdir() if output.is_dir() else [output]))
    record: dict[str, Any] = {"file": str(output), "to": options.to, "bytes": size}
    sentence = f"saved {output}: {units.size(size)}"
    if target is not None:
        from llmcli.formats.huggingface import upload

        progress = console.shows_progress()
        commit = upload.push(target, output, console.note, private=options.private, progress=progress)
        name = f"hf:{target.repository}"
        record |= {"pushed": name, "commit": commit}
        sentence = f"uploaded {name}; on any machine: llm generate -m {name}"
    options.report(record, sentence)


def _export_handover(model: "Checkpoint", output: Path, path: Path, options: _Options) -> None:
    """Write a directory for other training engines, and note what is included."""
    from llmcli.cli.reports import model_card
    from llmcli.cli.reports.files import note_skipped_files
    from llmcli.handover import directory, engines
    from llmcli.handover.corpus import recorded_split

    split = recorded_split(model.record, path, options.corpus or ())
    note_skipped_files(split.read.text)
    if split.new:
        console.note(
            f"not in the training record, newly split: {units.listed(split.new, model_card.MAX_CORPUS_NAMES)}"
        )
    handover = directory.Handover(atomic_io.name_of(path.resolve()), model, split, options.size)
    values = model_card.metadata(model, path, options.name, options.license)
    if options.size:
        model = directory.larger_model(model, options.size)
        values["description"] = f"Random weights, with the tokenizer of {handover.origin}."
    model = _converted(model, options.dtype)
    card = model_card.model_card(model, values, "model")
    manifest = handover.write(output, model, values, card)
    if skipped := engines.skipped(model.config):
        console.note(f"without {', '.join(skipped)}, which need a dense model of type {engines.MODEL_TYPE}")
    console.note(f"included: {'; '.join(handover.included)}")
    console.note(f"not included: {'; '.join(handover.not_included)}")
    options.report(
        {"file": str(output), "to": "handover", **manifest},
        f"saved {output}: {units.number(model.parameters)} parameters, {manifest['tokens']['train']:,} "
        f"tokens to train on, {manifest['tokens']['val']:,} held out; next: {output / 'README.md'}",
    )


def _export_html(model: "Checkpoint", output: Path, options: _Options) -> None:
    from llmcli.pages.live_page import live_page
    from llmcli.pages.live_weights import page_bytes

    atomic_io.check_space(output, page_bytes(model.config, options.dtype))
    page = live_page(model, options.dtype, console.note, trainable=options.trainable)
    atomic_io.write(output, page)


def _export_gguf(model: "Checkpoint", output: Path, dtype: str | None, metadata: dict[str, str]) -> None:
    from llmcli.formats.gguf import writer as gguf_writer

    shapes = model.config.tensor_shapes()
    dtypes = {model.dtypes.get(name, "F32") for name, shape in shapes.items() if len(shape) > 1}
    own_dtype = dtypes.pop().lower() if len(dtypes) == 1 else "f32"
    gguf_writer.write(output, model, dtype or own_dtype, metadata)


def _write_modelfile(model: "Checkpoint", gguf: Path, force: bool) -> None:
    """Write the Modelfile that Ollama needs to import a GGUF file, next to that file."""
    from llmcli.formats import loading
    from llmcli.formats.gguf.modelfile import modelfile

    path = gguf.with_suffix(MODELFILE)
    if path.exists() and not force:
        console.note(f"kept the existing {path}; --force replaces it")
    else:
        template = loading.open_chat_template(model, loading.open_tokenizer(model))
        text = modelfile(gguf.name, model.config.max_position_embeddings, template)
        atomic_io.remove_stale(path)
        atomic_io.write(path, text.encode("utf-8", "surrogateescape"))  # the name may not be UTF-8
    name = gguf.stem.lstrip("-") or "model"  # a name that begins with - would be an option
    command = ["ollama", "create", name, "-f", as_argument(path)]
    console.note(f"for Ollama: {command_line(command)}")


def _export_quantized(model: "Checkpoint", output: Path, kind: str, options: _Options) -> None:
    """Write the model with quantized weights, and report how much its predictions change."""
    from llmcli.evaluation.evaluator import divergence as divergence_of
    from llmcli.formats import checkpoint, loading
    from llmcli.models.numpy_runtime import NumpyRuntime
    from llmcli.models.open_runtime import open_runtime

    if model.quantization == kind:
        raise LLMError(f"the model is already quantized as {kind}")
    quantized = replace(model, quantization=kind, dtypes={})
    checkpoint.save(output, quantized)
    quantized = loading.load(output)
    runtime = open_runtime(quantized, on_note=console.note, cache=False)
    tokenizer = loading.open_tokenizer(quantized)
    divergence, _ = divergence_of(NumpyRuntime(model), runtime, tokenizer)
    size = output.stat().st_size
    amount = f"{divergence:.4f}" if divergence >= MIN_DIVERGENCE else f"less than {MIN_DIVERGENCE}"
    options.report(
        {"file": str(output), "quantize": kind, "bytes": size, "bits_per_byte_lost": divergence},
        f"saved {output}: {units.size(size)}; KL divergence from the original: "
        f"{amount} bits per byte generated",
    )


# ---- weights for other programs


def _converted(model: "Checkpoint", dtype: str | None) -> "Checkpoint":
    """Return the model with weights of one type for saving (None: unchanged). Raises LLMError if a weight is
    too large for float16."""
    if dtype is None:
        return model
    import numpy as np

    from llmcli.formats.quantization import MAX_FLOAT16

    names = list(model.config.tensor_shapes())
    for name in names if dtype == "f16" else ():
        largest = float(np.abs(model.tensors[name]).max(initial=0.0))
        if MAX_FLOAT16 < largest < float("inf"):
            raise LLMError(
                f"{name} contains {largest:.6g}, the largest float16 is {MAX_FLOAT16:,.0f}; "
                "export with --dtype bf16"
            )
    return replace(model, dtypes=dict.fromkeys(names, HF_DTYPES[dtype]))
