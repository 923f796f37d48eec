"""`llm inspect`: what is in the file."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from llmcli import units
from llmcli.cli import charts, console, tables, token_output
from llmcli.cli.options import JsonOption, QuietOption, model_path, reject_options
from llmcli.cli.text_layout import terminal_width, truncate
from llmcli.config import as_record
from llmcli.errors import LLMError
from llmcli.formats.hf_config import parse_config
from llmcli.formats.json_schema import parse_json
from llmcli.formats.metadata import parse_document
from llmcli.training.summary import read_curve

NARROWEST_CURVE = 30  # columns


def inspect(
    context_: typer.Context,
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE", help="Any .safetensors file, a .gguf, a Hugging Face directory; else the model here."
        ),
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    tensor: Annotated[
        str | None, typer.Option("--tensor", metavar="NAME", help="Figures and a histogram of one tensor.")
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Show the parts with a histogram of their weights; reads the whole file.")
    ] = False,
    diff: Annotated[
        str | None,
        typer.Option("--diff", metavar="OTHER", help="Compare with another file: its tensors, config."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the curve of its training as .svg, .png or .pdf."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write it as a page for a browser instead.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the picture or page if it exists.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check the file against the hash in it.")] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Look into a model file: what it is, its parts, its training.

    The header alone is read, so a file of any size answers at once (but for --tensor, --weights, --diff and --verify).

    Example: llm inspect model.safetensors
    """
    from llmcli.formats.loading import read_header

    views = {
        "plot": plot is not None,
        "html": html is not None,
        "verify": verify,
        "tensor": tensor is not None,
        "tensors": tensors,
        "weights": weights,
        "diff": diff is not None,
    }
    for view in (name for name, wanted in views.items() if wanted):
        reject_options(context_, f"with --{view}", *(other for other in views if other != view))
    if plot is None and html is None:
        reject_options(context_, "without --plot or --html", "force")
    header = read_header(model_path(file))
    if plot is not None:
        _plot(header, plot, force, json_)
    elif html is not None:
        _page(header, html, force, json_)
    elif verify:
        _verify(header, json_)
    elif tensor is not None:
        _tensor(header, tensor, json_)
    elif weights:
        _weights(header, json_)
    elif diff is not None:
        _diff(header, read_header(model_path(diff)), json_)
    elif json_:
        console.json_result(_facts(header))
    elif tensors:
        rows = [(t.name, t.dtype, _shape(t.shape), f"{t.size:,}") for t in header.tensors.values()]
        tables.table(("tensor", "type", "shape", "parameters"), rows, numbers=(3,))
    else:
        _overview(header)


def _facts(header: Any) -> dict[str, Any]:
    return {
        "file": str(header.path),
        "bytes": header.file_bytes,
        "parameters": header.parameters,
        "tensors": [
            {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.end - t.start}
            for t in header.tensors.values()
        ],
        "config": _json(header, "config.json"),
        "tokenizer": _tokenizer(header),
        "training": _json(header, "training.json"),
        "sha256": header.metadata.get("sha256"),
        **({"problem": header.problem} if header.problem else {}),
    }


def _json(header: Any, key: str) -> dict[str, Any]:
    try:
        found = parse_json(header.metadata.get(key, "{}"))
    except ValueError:
        console.note(f"its {key} is not JSON and is left out here")
        return {}
    return found if isinstance(found, dict) else {}


def _record_of(header: Any) -> dict[str, Any]:
    """The record of training, its types checked; {} if there is none. Raises LLMError when it is not one of ours."""
    try:
        return parse_document(header.metadata.get("training.json", "{}"), "training.json")
    except LLMError as error:
        raise LLMError(f"{header.path}: {error}") from error


def _tokenizer(header: Any) -> dict[str, Any]:
    if "tokenizer.json" not in header.metadata:
        return {}
    from llmcli.data.tokenizer_json import describe

    return describe(header.metadata["tokenizer.json"])


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{n:,}" for n in shape) or "one number"


def _overview(header: Any) -> None:
    from llmcli.analysis import inspect

    config, training, tokenizer = _json(header, "config.json"), _json(header, "training.json"), _tokenizer(header)
    kinds = ", ".join(inspect.parameters_by_dtype(header))
    origin = training.get("imported") if isinstance(training.get("imported"), dict) else {}
    what = f"a {header.form}" + ("" if header.form != "safetensors file" else ", not made by llmcli")
    if header.is_ours:
        taught = "taught" if training.get("train") else "brought in"
        what = f"a model {taught} by llmcli from a {origin.get('form')}" if origin else "a model made by llmcli"
    console.paragraph(f"{header.path}: {what}")
    console.paragraph(
        f"{units.number(header.parameters)} parameters ({header.parameters:,}) in {len(header.tensors):,} tensors, "
        f"{kinds or 'empty'}, {units.size(header.file_bytes)}"
    )
    if header.problem:
        console.paragraph(f"llm can show it but not run it: {header.problem}")
    if active := inspect.active_parameters(header, config):
        console.paragraph(
            f"{units.number(active)} of them are active for a token: {_picked(config)} experts in each layer"
        )
    console.heading("parameters")
    tables.tree(_rows(inspect.parameter_tree(header), header.parameters))
    if config:
        console.heading("config")
        names = ("architectures", "model_type", "num_experts", "num_local_experts", "num_experts_per_tok",
                 "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
                 "num_key_value_heads", "head_dim", "max_position_embeddings", "vocab_size", "tie_word_embeddings",
                 "rope_theta", "rope_scaling")  # fmt: skip
        shown = config if header.problem else config | _as_run(header.metadata["config.json"], config)
        tables.pairs([(name, _plain(shown[name])) for name in names if shown.get(name) is not None])
    if tokenizer:
        console.heading("tokenizer")
        kinds_said = {
            "bpe": "byte-level byte-pair encoding",
            "spm": "byte-pair encoding as SentencePiece has it",
            "char": "characters, other bytes one by one",
            "?": "of another kind",
        }
        template = "in the file" if _json(header, "tokenizer_config.json").get("chat_template") else ""
        tables.pairs([
            ("kind", kinds_said[tokenizer["kind"]]),
            ("vocabulary", f"{tokenizer['vocab_size']:,} tokens"),
            *([("chat template", template)] if template else []),
        ])  # fmt: skip
    if origin:
        console.heading("origin")
        tables.pairs([(str(key)[:60], str(value)[:200]) for key, value in origin.items()][:20])
    others = [key for key in header.metadata if key not in _OWN_KEYS]
    if others:
        console.heading("metadata")
        tables.pairs([(key[:60], header.metadata[key][:200]) for key in others[:20]])
    training = _record_of(header)
    if "experts" in training:
        _mixture(header, training)
    elif training.keys() - {"imported"}:
        try:
            _training(training)
        except LLMError as error:
            raise LLMError(f"{header.path}: {error}") from error


_OWN_KEYS = ("format", "llmcli", "config.json", "tokenizer.json", "tokenizer_config.json", "training.json", "sha256")


def _mixture(header: Any, training: dict[str, Any]) -> None:
    """The models that answer together."""
    console.heading("experts")
    columns = ("expert", "shape", "learned from", "held-out bits/byte")
    tables.table(columns, _members(header, training), numbers=(3,), striped=True)


def _members(header: Any, training: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Of each model of a mixture: name, shape, what it learned from, bits per byte. Raises LLMError."""
    try:
        config = parse_document(header.metadata.get("config.json", "{}"), "config.json of a mixture", "its config.json")
    except LLMError as error:
        raise LLMError(f"{header.path}: {error}") from error
    rows = []
    for name, own, record in zip(config["names"], config["experts"], training["experts"], strict=False):
        corpus = [str(d.get("name")) for d in record.get("corpus", [])]
        shape = f"{own.get('num_hidden_layers')} layers, width {own.get('hidden_size')}"
        bits = record.get("bits_per_byte")
        rows.append(
            (str(name), shape, ", ".join(corpus[:3]), units.bits_per_byte(bits) if isinstance(bits, float) else "")
        )
    return rows


def _as_run(text: str, config: dict[str, Any]) -> dict[str, Any]:
    """What of a config this program runs otherwise than a key says, or under another key; {} where it runs nothing."""
    try:
        found = parse_config(text)
    except LLMError:
        return {}
    context, told = found.max_position_embeddings, config.get("max_position_embeddings")
    window = f"{context} of {told}, as far as its window reaches" if context != told else context
    scaling = found.rope_scaling and as_record(found.rope_scaling)
    if scaling and scaling["rope_type"] == "linear":
        scaling = {key: scaling[key] for key in ("rope_type", "factor")}
    return {
        "max_position_embeddings": window,
        "rope_theta": found.rope_theta,
        "rope_scaling": ", ".join(f"{key} {value}" for key, value in scaling.items()) if scaling else None,
    }


def _picked(config: dict[str, Any]) -> str:
    """
    >>> _picked({"num_experts_per_tok": 2, "num_local_experts": 8})
    '2 of 8'
    """
    return f"{config['num_experts_per_tok']} of {config.get('num_experts', config.get('num_local_experts'))}"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _rows(part: Any, total: int, depth: int = 0) -> list[tuple[int, str, str, str]]:
    """(depth, name, shape, parameters and share) of a part and those inside it."""
    from llmcli.analysis import inspect

    rows: list[tuple[int, str, str, str]] = []
    for inner in list(part.children.values())[: inspect.MAX_CHILDREN]:
        shapes = " or ".join(_shape(shape) for shape in list(inner.shapes)[:2])
        many = f" x {inner.copies}" if inner.children and inner.copies > 1 else ""
        share = inner.parameters / total if total else 0.0
        rows.append((depth, inner.name + many, shapes, f"{units.number(inner.parameters)}  {share:6.1%}"))
        rows += _rows(inner, total, depth + 1)
    if len(part.children) > inspect.MAX_CHILDREN:
        rows.append((depth, f"and {len(part.children) - inspect.MAX_CHILDREN:,} more", "", ""))
    return rows


def _record(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts of a run, by name."""
    corpus = record.get("corpus", [])
    names = ", ".join(str(d.get("name")) for d in corpus[:3]) + (
        f" and {len(corpus) - 3} more" if len(corpus) > 3 else ""
    )
    size = sum(d.get("bytes", 0) for d in corpus)
    clock = record.get("clock", {})
    facts = [
        ("corpus", f"{names}, {size:,} bytes"),
        ("steps", f"{record.get('steps', 0):,} ({record.get('epochs', 0):.2f} times through the text)"
                  + (", interrupted" if record.get("interrupted") else "")),
        ("best at", f"step {record.get('best_step', 0):,}"),
        ("held-out", _final(record)),
    ]  # fmt: skip
    recital = record.get("memorised")
    if recital:
        new = recital["held_out_share"]
        beside = "" if new is None else f" (held-out text: {new:.0%})"
        facts.append(
            ("memorization", f"{recital['share']:.0%} of its 30-character strings occur in its training text{beside}")
        )
    for layer, shares in enumerate(record.get("expert_shares", [])):
        facts.append((f"experts of layer {layer}", " ".join(f"{share:.1%}" for share in shares)))
    if clock:
        facts.append(("time", f"{units.duration(clock['seconds'])}, {clock['tokens_per_second']:,} tokens/s"))
    settings, versions = record.get("train", {}), record.get("versions", {})
    if settings:
        facts.append(
            (
                "settings",
                ", ".join(
                    f"{k} {settings[k]}" for k in ("seed", "batch_size", "dropout", "dtype", "threads") if k in settings
                ),
            )
        )
    if versions:
        facts.append(("made with", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return facts


def _final(record: dict[str, Any]) -> str:
    """The figure of the end of a run, and what it is of: those of its curve are interim, mostly of less text."""
    bits = record.get("bits_per_byte")
    if not bits:
        return "not measured"
    measured = record.get("held_out_measured")
    of = f" at the end, on {measured['bytes']:,} bytes, in float32" if measured else ""
    before = record.get("bits_per_byte_before")
    return f"{units.bits_per_byte(bits)} bits per byte{of}" + (
        f"; {units.bits_per_byte(before)} before" if before else ""
    )


def _training(record: dict[str, Any]) -> None:
    console.heading("training")
    tables.pairs(_record(record))
    if record.get("curve", {}).get("step") and terminal_width() >= NARROWEST_CURVE:
        run = read_curve(record)
        marks = (run.held_out_steps, run.held_out)
        legend = f"⠒⠒ training  {charts.MARK} held-out (interim)" if run.held_out else ""
        console.heading("bits per byte by step")
        for line in charts.curve(
            [(run.steps, run.training)],
            min(terminal_width(), 120),
            12,
            marks=marks,
            initial_share=charts.INITIAL_SHARE,
            legend=legend,
        ):
            console.result(line)
        console.caption(
            "Lower is better. The figures are interim: of the training text as the run saw it, and mostly of a part of "
            "the held-out text. Where the training figure falls and the held-out one does not, the model overfits."
        )
    samples = record.get("samples", {}).get("texts") or []
    if samples:
        console.heading(f"what it made of {record['samples'].get('prompt', '')!r} on the way")
        some = dict.fromkeys((0, len(samples) // 3, 2 * len(samples) // 3, len(samples) - 1))
        tables.pairs([(f"step {samples[i][0]:,}", " ".join(samples[i][1].split())) for i in some])
    if record.get("verdict"):
        console.heading("summary")
        for sentence in record["verdict"]:
            console.paragraph(sentence, indent=2)


def _page(header: Any, output: Path, force: bool, json_: bool) -> None:
    from llmcli.analysis import inspect
    from llmcli.cli import html_report
    from llmcli.formats import atomic_io

    if output.resolve() == header.path.resolve():
        raise LLMError(f"{output} is the model itself; give the page another name")
    atomic_io.check_writable(output, force=force, by=" with --html", example="page.html")
    facts = _facts(header) | {"training": _record_of(header)}
    try:
        run = read_curve(facts["training"])
    except LLMError:
        run = None  # a model that was not trained here
    samples = facts["training"].get("samples", {})
    atomic_io.write(
        output, [html_report.inspection_page(facts, inspect.parameter_tree(header), run, samples, _told(header, facts))]
    )
    if json_:
        console.json_result({"file": str(header.path), "page": str(output)})
    else:
        console.note(f"wrote {output}; open it in a browser")


def _told(header: Any, facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What the page says beside map, curve and config."""
    from llmcli.analysis import inspect

    record, tokenizer = facts["training"], facts["tokenizer"]
    told = [
        ("form", header.form if not header.is_ours else "a model of llmcli"),
        ("types", ", ".join(inspect.parameters_by_dtype(header))),
        ("sha256", str(facts["sha256"] or "not kept in the file")),
    ]
    if header.problem:
        told.append(("not run here", header.problem))
    if tokenizer:
        told.append(("tokenizer", f"{tokenizer['kind']}, {tokenizer['vocab_size']:,} tokens"))
    if "experts" in record:
        for name, shape, corpus, bits in _members(header, record):
            told.append((f"expert {name}", f"{shape}, from {corpus}" + (f", {bits} bits per byte" if bits else "")))
        return told
    told += _record(record) if record.keys() - {"imported"} else []
    told += [("summary", sentence) for sentence in record.get("verdict", ())]
    return told


def _plot(header: Any, output: Path, force: bool, json_: bool) -> None:
    from llmcli.cli import plot
    from llmcli.formats import atomic_io

    kind = plot.format_of(output)
    if output.resolve() == header.path.resolve():
        raise LLMError(f"{output} is the model itself; give the picture another name")
    atomic_io.check_writable(output, force=force, by=" with --plot", example="loss.svg")
    try:
        run = read_curve(_record_of(header))
    except LLMError as error:
        raise LLMError(f"{header.path}: {error}") from error
    atomic_io.write(output, [plot.draw(run, f"Training of {atomic_io.name_of(header.path)}", kind)])
    if json_:
        console.json_result({"file": str(header.path), "plot": str(output)})
    else:
        console.note(f"drew {output}")


def _verify(header: Any, json_: bool) -> None:
    from llmcli.formats.safetensors_file import digest

    wanted = header.metadata.get("sha256")
    if wanted is None:
        raise LLMError(f"{header.path} carries no hash to verify; files made by llmcli do")
    found = digest(header)
    if found != wanted:
        raise LLMError(f"{header.path} is damaged: it hashes to {found[:16]}..., the file says {wanted[:16]}...")
    if json_:
        console.json_result({"file": str(header.path), "sha256": found, "verified": True})
    else:
        console.paragraph(f"{header.path}: it is what was written (sha256 {found})")


def _tensor(header: Any, name: str, json_: bool) -> None:
    from llmcli.analysis import inspect

    tensor = inspect.find_tensor(header, name)
    found = inspect.tensor_statistics(header, tensor)
    if json_:
        console.json_result({
            "name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape),
            **found.as_json(),
        })  # fmt: skip
        return
    console.paragraph(f"{tensor.name}: {_shape(tensor.shape)}, {tensor.dtype}, {tensor.size:,} numbers")
    tables.pairs([
        ("mean", f"{found.mean:+.6g}"),
        ("deviation", f"{found.deviation:.6g}"),
        ("extremes", f"{found.min:+.6g} to {found.max:+.6g}"),
        ("zeros", f"{found.zeros:,}"),
        *([("not numbers", f"{found.not_finite:,}")] if found.not_finite else []),
    ])  # fmt: skip
    if found.min == found.max:
        return
    console.result()
    for line in charts.histogram(found.histogram, found.min, found.max, min(terminal_width(), 100) - 24):
        console.result(line)


def _weights(header: Any, json_: bool) -> None:
    """The parts with the figures of their tensors, those of one name in all layers together."""
    from llmcli.analysis import inspect

    found: list[tuple[int, Any, str, Any]] = []  # depth, part, its whole name, its figures

    def look(part: Any, depth: int, path: str) -> None:
        for inner in part.children.values():
            name = f"{path}.{inner.name}" if path else inner.name
            console.status(name)
            found.append(
                (depth, inner, name, inspect.tensor_statistics(header, *inner.tensors) if inner.tensors else None)
            )
            look(inner, depth + 1, name)

    try:
        look(inspect.parameter_tree(header), 0, "")
    finally:
        console.status("")
    if json_:
        listed = [
            {
                "name": name, "parameters": part.parameters, "tensors": len(part.tensors),
                **values.as_json(),
            }
            for _, part, name, values in found
            if values
        ]  # fmt: skip
        console.json_result({"file": str(header.path), "parts": listed})
        return
    wide = terminal_width() >= 110
    rows = []
    for depth, part, _, values in found:
        many = f" x {part.copies}" if part.copies > 1 else ""
        said = ""
        if values and values.histogram:
            said = f"{charts.sparkline(values.histogram)}  {values.deviation:<8.3g}"
            said += f"  {values.min:+.3g} to {values.max:+.3g}" if wide else ""
        elif values:
            said = "no finite number"
        rows.append((depth, part.name + many, units.number(part.parameters), said))
    console.paragraph(
        "weights from the lowest to the highest, and their deviation" + (", and extremes" if wide else "")
    )
    tables.tree(rows)
    console.caption("Each row of blocks is a histogram of a part's weights; the number is their standard deviation.")


def _diff(header: Any, other: Any, json_: bool) -> None:
    from llmcli.analysis.diff import compare

    try:
        found = compare(header, other, lambda share: console.status(f"{share:4.0%}  tensors"))
    finally:
        console.status("")
    if json_:
        console.json_result({
            "file": str(header.path), "other": str(other.path),
            "config": {key: list(values) for key, values in found.config.items()},
            "tokenizer": {key: list(values) for key, values in found.tokenizer.items()},
            "shared_tokens": found.shared_tokens,
            "tensors": [
                {
                    "name": t.name, "shape": list(t.shape), "distance": _finite(t.distance),
                    "largest": _finite(t.max_difference),
                }
                for t in found.tensors
            ],
            "reshaped": {name: [list(shape) for shape in shapes] for name, shapes in found.reshaped.items()},
            "only_first": list(found.only_first), "only_other": list(found.only_other),
        })  # fmt: skip
        return
    console.paragraph(f"{header.path} and {other.path}")
    for what, unlike in (("config", found.config), ("tokenizer", found.tokenizer)):
        console.heading(what)
        if unlike:
            rows = [(key, truncate(_plain(a), 30), truncate(_plain(b), 30)) for key, (a, b) in unlike.items()]
            tables.table(("key", header.path.name, other.path.name), rows)
        else:
            console.paragraph("the same, as far as described" if what == "tokenizer" else "the same", indent=2)
    if found.shared_tokens is not None:
        console.paragraph(f"{found.shared_tokens:,} tokens write the same in both", indent=2)
    apart = [tensor for tensor in found.tensors if tensor.distance != 0]
    console.heading("tensors: the norm of their difference, relative to the first")
    most = max((tensor.distance for tensor in apart if math.isfinite(tensor.distance)), default=0.0)
    left = max((len(tensor.name) + len(_shape(tensor.shape)) for tensor in apart), default=0)
    room = min(60, terminal_width() - left - 26)
    names, numbers = ["tensor", "shape", "distance"], [(t.name, _shape(t.shape), f"{t.distance:.4f}") for t in apart]
    if apart and room > 4:
        bars = [token_output.bar(t.distance / (most or 1), room) for t in apart]
        tables.table((*names, ""), [(*row, bar) for row, bar in zip(numbers, bars, strict=True)], numbers=(2,))
    elif apart:
        tables.table(names, numbers, numbers=(2,))
    if equal := len(found.tensors) - len(apart):
        console.result(f"  {equal:,} tensors are equal")
    for name, shapes in found.reshaped.items():
        console.paragraph(f"{name}: {' and '.join(map(_shape, shapes))}", indent=2)
    for path, only in ((header.path, found.only_first), (other.path, found.only_other)):
        if only:
            more = f" and {len(only) - 3:,} more" if len(only) > 3 else ""
            console.paragraph(f"only in {path}: {', '.join(only[:3])}{more}", indent=2)


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
