"""Self-contained HTML pages: the explanation of a prediction, or the facts about a model file.

Text from models and users is embedded as data, never as markup; the scripts in templates/ show it as text, and a
Content-Security-Policy forbids all other scripts.
"""

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcli import units
from llmcli.analysis.explain import Explanation
from llmcli.analysis.inspect import OnNote, ParameterGroup, parameter_tree, parameters_by_dtype
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.formats.training_record import TrainingRecord
from llmcli.generation.next_words import NextWords
from llmcli.pages.model_facts import Rows, expert_rows, facts, record_rows, training_record
from llmcli.training.files.summary import Curve, read_curve

if TYPE_CHECKING:
    from llmcli.formats.safetensors.header import Header

MAX_ATTENTION = 1_300_000  # bytes (weights): 200 tokens, 6 layers and 8 heads take 964,800
MAX_TITLE = 200  # characters of the prompt; all tokens are shown below


def explanation_page(
    explanation: Explanation,
    tokenizer: Tokenizer,
    prompt: str,
    words: NextWords,
    count: int,
    model: str,
    expert: Mapping[str, Any] | None = None,
) -> bytes:
    """Write the page of an explanation made with `every_position`, with `count` next words and tokens.

    For an ensemble, `expert` has the name and weight of the explained model. Attention weights are rounded to 1/255,
    and averaged over the heads if the page would be too large. All other figures are exact.
    """
    attention, effects = explanation.attention, explanation.ablation_effects.tolist()
    rows, columns = np.tril_indices(attention.shape[-1])
    if is_mean := attention.shape[0] * attention.shape[1] * len(rows) > MAX_ATTENTION:
        attention = attention.mean(1, keepdims=True)
    effects[-1] = np.nan  # without the last token, the model would predict something else
    weights = np.rint(attention[:, :, rows, columns] * 255)
    next_tokens, next_words = explanation.most_likely(count), words.words[:count]
    lens_ids, probabilities = explanation.logit_lens.ids, explanation.logit_lens.probabilities
    lens_tokens, indices = np.unique(lens_ids, return_inverse=True)  # `lens`: index of the token, probability
    pairs = np.stack([indices.reshape(lens_ids.shape).astype(object), probabilities.astype(object)], -1)
    data: dict[str, Any] = {
        "tokens": [tokenizer.label(token) for token in explanation.ids],
        "ids": explanation.ids,
        "surprisals": _finite_or_none(explanation.surprisals.tolist()),
        "effects": _finite_or_none(effects),
        "layers": attention.shape[0],
        "heads": attention.shape[1],
        "attention": base64.b64encode(weights.astype(np.uint8).tobytes()).decode(),
        "texts": [tokenizer.label(int(token)) for token in lens_tokens],
        "lens": pairs.tolist(),  # [layer][position][rank]
        "next": [[tokenizer.label(token), math.exp(explanation.logprobs[token])] for token in next_tokens],
        "words": [[word.text, word.probability] for word in next_words],
        "continues": [word.continues for word in next_words],
    }
    texts = {
        "summary": " ".join(_notes(explanation, model, expert, is_mean=is_mean)),
        "effects-hint": _effects_hint(tokenizer.label(next_tokens[0]), is_partial=None in data["effects"][:-1]),
        "entropy": f"{units.entropy(explanation.entropy).capitalize()}. {units.choice(explanation.entropy, 'tokens')}",
    }
    title = printable(prompt)
    return _page("explain", title if len(title) <= MAX_TITLE else f"…{title[-MAX_TITLE:]}", data, texts)


def _notes(explanation: Explanation, model: str, expert: Mapping[str, Any] | None, *, is_mean: bool) -> list[str]:
    """Describe the contents of the page and its omissions."""
    layers, heads, tokens, _ = explanation.attention.shape
    notes = [f"Model: {model}, {units.count(layers, 'layer')} with {units.count(heads, 'attention head')} each."]
    if expert:
        notes.append(
            f"The model is an ensemble. This page shows the activations of its expert {printable(expert['name'])}, "
            f"whose weight is {expert['weight']:.3f} here; the prediction is the ensemble's."
        )
    if is_mean:
        notes.append("Attention is shown as the mean of each layer's heads, to keep the page small.")
    if before := explanation.truncated + explanation.preceding:
        notes.append(
            f"The last {units.count(tokens, 'token')} of the prompt are shown; {before:,} before them are not."
        )
    if explanation.tail:
        tail = printable(explanation.tail)
        notes.append(f"The most likely next token starts inside the prompt: it includes the prompt's end “{tail}”.")
    return notes


def _effects_hint(next_token: str, *, is_partial: bool) -> str:
    token = printable(next_token).strip() or next_token
    hint = (
        f"Ablation: the bits that “{token}”, the most likely next token, loses if a token is left out. Plus: the token "
        "makes it more likely. Minus (in the other color): less likely. The last token is never left out: the model "
        "would then predict the token after the one before it."
    )
    return f"{hint} Only the last tokens were left out." if is_partial else hint


def inspection_page(header: "Header", on_note: OnNote) -> bytes:
    """Write the page about a model file. Raises LLMError for another program's training record."""
    data = inspection_data(header, on_note)
    summary = f"{data['parameters']:,} parameters in {data['tensors']:,} tensors, {data['bytes']:,} bytes."
    return _page("inspect", printable(str(header.path)), data, {"summary": summary})


def inspection_data(header: "Header", on_note: OnNote) -> dict[str, Any]:
    """Collect the data for the page about a model file. Raises LLMError for another program's training record."""
    record, shown = training_record(header), facts(header, on_note)
    try:
        curve = _curve_data(read_curve(record))
    except LLMError:  # a model that was not trained by this program
        curve = None
    texts = [[str(step), text] for step, text in record.samples.texts]
    return {
        "prompt": record.samples.prompt if texts else "",
        "samples": texts,
        "parameters": shown["parameters"],
        "tensors": len(shown["tensors"]),
        "bytes": shown["bytes"],
        "tree": _tree_data(parameter_tree(header), ""),
        "curve": curve,
        "record": _rows(header, shown, record),
        "config": [(str(key), json.dumps(value, ensure_ascii=False)) for key, value in shown["config"].items()],
    }


def _rows(header: "Header", shown: Mapping[str, Any], record: TrainingRecord) -> Rows:
    """List the (name, value) pairs shown beside the parameter tree, loss curve and config."""
    tokenizer = shown["tokenizer"]
    rows = [
        ("form", "a model of llmcli" if header.is_ours else header.form),
        ("types", ", ".join(parameters_by_dtype(header))),
        ("sha256", str(shown["sha256"] or "not in the file")),
    ]
    if header.problem:
        rows.append(("not run here", header.problem))
    if tokenizer:
        rows.append(("tokenizer", f"{tokenizer['kind']}, {tokenizer['vocab_size']:,} tokens"))
    if record.experts:
        for name, shape, corpus, bits in expert_rows(header, record):
            loss = f", {bits} bits per byte" if bits else ""
            rows.append((f"expert {name}", f"{shape}, trained on {corpus}{loss}"))
        return rows
    if record.document.keys() - {"imported"}:
        rows += record_rows(record)
    return [*rows, *(("summary", sentence) for sentence in record.verdict)]


def _curve_data(curve: Curve) -> dict[str, object]:
    first, last = (units.bits_per_byte(bits) for bits in (curve.training[0], curve.training[-1]))
    summary = f"The training loss went from {first} to {last} bits per byte by step {curve.steps[-1]:,}"
    if curve.validation:
        summary += f"; the lowest {curve.label} loss was {units.bits_per_byte(min(curve.validation))}"
    return {
        "steps": curve.steps,
        "training": [round(bits, 4) for bits in curve.training],
        "validation_steps": curve.validation_steps,
        "validation": [round(bits, units.BITS_PER_BYTE_DIGITS) for bits in curve.validation],
        "label": curve.label,
        "summary": f"{summary}.",
    }


def _tree_data(group: ParameterGroup, parent: str) -> dict[str, object]:
    path = f"{parent}.{group.name}" if parent else group.name
    shape = " or ".join(" × ".join(map(str, shape)) or "scalar" for shape in list(group.shapes)[:2])
    return {
        "name": group.name, "path": path, "parameters": group.parameters, "copies": group.copies, "shape": shape,
        "children": [_tree_data(child, path) for child in group.children.values()],
    }  # fmt: skip


def _finite_or_none(values: list[float]) -> list[float | None]:
    """Replace NaN and infinity, which JSON does not have."""
    return [value if math.isfinite(value) else None for value in values]


def printable(text: str) -> str:
    """Replace control characters, line ends and bidirectional overrides by spaces."""
    return "".join(c if c.isprintable() else " " for c in text)


def _page(kind: str, title: str, data: Mapping[str, object], texts: Mapping[str, str]) -> bytes:
    """Fill a page template with `data` for its script and `texts` by the id of their element."""
    pages = files("llmcli.pages") / "templates"
    shared = ["shared.js", {"inspect": "curve.js", "explain": "arcs.js"}[kind]]
    style, body, *scripts = (
        (pages / name).read_text("utf-8") for name in ("page.css", f"{kind}.html", *shared, f"{kind}.js")
    )
    script = "\n".join(scripts)
    for id_, text in texts.items():
        end = f'id="{id_}"></'
        assert body.count(end) == 1, id_
        body = body.replace(end, f'id="{id_}">{html.escape(text)}</')
    page = Template((pages / "page.html").read_text("utf-8")).substitute(
        style_hash=source_hash(style), script_hash=source_hash(script), title=html.escape(title), style=style,
        body=body, data=json_for_script(data), script=script,
    )  # fmt: skip
    return page.encode("utf-8", "backslashreplace")


def json_for_script(data: Mapping[str, object]) -> str:
    """Write JSON for a script element, such that no text can end the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def source_hash(text: str) -> str:
    """Hash a style or script for a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
