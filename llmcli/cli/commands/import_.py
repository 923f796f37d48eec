"""`llm import`: convert a published model to one file."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli import units
from llmcli.cli.options import ResultOptions, argument, local_model, option
from llmcli.cli.terminal import console
from llmcli.config import DEFAULT_MODEL
from llmcli.formats import atomic_io

if TYPE_CHECKING:
    from llmcli.data.text.corpus import Corpus
    from llmcli.formats.checkpoint import Checkpoint


class _Options(ResultOptions):
    source: str = argument(
        "SOURCE", "Model to import: hf:OWNER/NAME, a Hugging Face directory or a .gguf file.", ...
    )
    output: Path = option("FILE", "Model file to write.", Path(DEFAULT_MODEL), names="-o --output")
    adapter: Path | None = option(
        "FILE", "Adapters (LoRA) to merge into the model: a file or a PEFT directory."
    )
    fit_cache: Path | None = option(
        "TEXT", "Fit an n-gram cache on a text like the ones the model will read."
    )
    force: bool


def import_(options: _Options) -> None:
    """The file contains the weights, the config, the tokenizer, and their origin. Weights in float16 and
    bfloat16 keep their type; quantized GGUF weights become float32. The other commands also read the
    directory or .gguf directly.

    Example: llm import SmolLM2-135M/ -o smol.safetensors
    """
    from llmcli.data.conversations.record_kinds import ReadOptions
    from llmcli.data.sources import read_sources
    from llmcli.formats import adapters, checkpoint, loading

    output, cache_text = options.output, options.fit_cache
    options.claim_model(output, force=options.force)
    reading = ReadOptions(text_only=True)
    text = read_sources([str(cache_text)], reading).text if cache_text is not None else None
    source = str(local_model(options.source))
    base = _load(source)
    loading.reject_overwriting(output, "output", source, "the model to import")
    adapter_file = adapters.find_file(options.adapter) if options.adapter is not None else None
    if adapter_file is not None:
        atomic_io.reject_overwriting(output, "output", [adapter_file], "the adapter to merge")
    loading.open_tokenizer(base)  # raises LLMError for a tokenizer that cannot be used
    origin = base.record.imported
    if origin is not None and not base.record.train and "sha256" not in origin:
        base.record |= {"imported": origin | {"sha256": loading.fingerprint(base)}}
    model = base if adapter_file is None else _merge(base, source, adapter_file)
    atomic_io.check_space(output, model.stored_bytes + len(model.tokenizer_json))
    if text is not None:
        model = _with_cache(model, text, str(cache_text))
    checkpoint.save(output, model)
    parameters = model.config.parameters
    imported = model.record.imported or {}
    options.report(
        {"file": str(output), "parameters": parameters, "imported": imported},
        f"saved {output}: {units.number(parameters)} parameters, {units.size(output.stat().st_size)}",
    )
    if license_ := imported.get("license"):
        console.note(f"license: {license_}")


def _load(source: str) -> "Checkpoint":
    """Open a model. If its file was changed, its record keeps the training data, but not the figures of the
    run."""
    from llmcli.formats import checkpoint, loading, training_stages
    from llmcli.formats.safetensors.file import digest
    from llmcli.formats.training_record import TrainingRecord

    model = loading.load(source, accept_changes=True)
    header = model.header
    if header is None or not checkpoint.is_changed(header, model.stored):
        return model
    console.warn(
        f"warning: {source} was changed after it was written: its content does not match the sha256 in its "
        "metadata; the figures of its training run are left out"
    )
    record = model.record
    name = atomic_io.name_of(source)
    origin = {"file": name, "form": "changed safetensors file", "sha256": digest(header)}
    entries: dict[str, object] = {"imported": {**(record.imported or {}), **origin}}
    entries |= {key: record.document[key] for key in ("seen_bytes", "ngram_cache") if key in record.document}
    entries |= training_stages.joined(training_stages.as_earlier(record, training_stages.BASE, name))
    return replace(model, record=TrainingRecord.from_json(entries))


def _merge(base: "Checkpoint", source: str, adapter: Path) -> "Checkpoint":
    """Merge adapters into float32 weights; warn if they were trained on another model of the same shape."""
    from llmcli.formats import adapters, loading
    from llmcli.formats.safetensors.header import read_header

    header = read_header(adapter)
    merged = adapters.merged_tensors(base, header)
    trained_on, hashes = adapters.base_of(header)
    if hashes and loading.source_fingerprint(base) not in hashes:
        fingerprint = loading.fingerprint(base)
        if fingerprint not in hashes:
            console.warn(
                f"warning: {adapter} was trained on {trained_on} (sha256 {hashes[0][:16]}), {source} is a "
                f"different model (sha256 {fingerprint[:16]}); the merged model may be useless"
            )
    name = atomic_io.name_of(Path(source).resolve())
    record = adapters.merged_record(base, name, header) | {"adapter": atomic_io.name_of(adapter)}
    return replace(base, tensors=merged, record=record, dtypes={}, quantization=None)


def _with_cache(model: "Checkpoint", text: "Corpus", name: str) -> "Checkpoint":
    """Return the model with an n-gram cache fitted on a text; without a cache if it does not help on that
    text."""
    from llmcli.formats import loading, training_stages
    from llmcli.training.data.cache_fit import fit_cache

    weights = fit_cache(model, loading.open_tokenizer(model), text)
    record = model.record.without("ngram_cache")
    if weights is None:
        console.warn(f"warning: an n-gram cache does not help the model on {name}, so it has none")
        return replace(model, record=record)
    console.note(f"n-gram cache: fitted on {name}; llm eval shows the figures with and without it")
    stages = [training_stages.cache_stage(d.relative_name, d.text_bytes, d.sha256) for d in text.documents]
    record |= training_stages.joined((stage.document for stage in record.earlier_stages), stages)
    return replace(model, record=record | {"ngram_cache": weights._asdict()})
