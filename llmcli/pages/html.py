"""An explanation of a prompt, or the facts of a model file -> one HTML page, complete in itself: no network, no server.

Text from models and users goes into the page as data, never as markup; the scripts in templates/ show it as text, and a
Content-Security-Policy forbids any other script.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmcli import units
from llmcli.analysis.explain import Candidates, Explanation
from llmcli.analysis.inspect import ParameterGroup, parameter_tree
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.generation.next_words import NextWords
from llmcli.pages.model_facts import OnNote, facts, page_rows, training_record
from llmcli.training.files.summary import Curve, read_curve

if TYPE_CHECKING:
    from llmcli.formats.safetensors.file_header import Header

MAX_ATTENTION = 1_300_000  # bytes, one per weight: 200 tokens, 6 layers and 8 heads take 964,800
MAX_TITLE = 200  # characters of the prompt; all tokens are shown below

# ---- explain


def explanation_page(
    explanation: Explanation,
    tokenizer: Tokenizer,
    prompt: str,
    words: NextWords,
    count: int,
    model: str,
    expert: Mapping[str, Any] | None = None,
) -> bytes:
    """The page of an explanation; the arguments are those of `explanation_data`."""
    data, texts = explanation_data(explanation, tokenizer, words, count, model, expert)
    title = _printable(prompt)
    return _page("explain", title if len(title) <= MAX_TITLE else f"…{title[-MAX_TITLE:]}", data, texts)


def explanation_data(
    explanation: Explanation,
    tokenizer: Tokenizer,
    words: NextWords,
    count: int,
    model: str,
    expert: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """(data, texts by the id of their element) of an explanation made with `every_position`, with `count` next words
    and tokens. For an ensemble `expert` is the name and weight of the model that is explained.

    Attention weights are rounded to 1/255. If those of all heads would make the page too large, it has the mean of each
    layer's heads, if necessary of fewer tokens, and says so. All other figures are exact; the page rounds them when it
    shows them.
    """
    attention = _limited_attention(explanation.attention)
    shown = attention.shape[-1]  # the last tokens
    ids = explanation.ids[-shown:]
    effects = _without_nan(explanation.ablation_effects[-shown:-1])
    rows, columns = np.tril_indices(shown)
    next_tokens = explanation.most_likely(count)
    next_words = words.words[:count]
    data = {
        "tokens": [tokenizer.label(token) for token in ids],
        "ids": ids,
        "surprisals": _without_nan(explanation.surprisals[-shown:]),
        "effects": [*effects, None],  # without the last token, the model would predict something else
        "layers": attention.shape[0],
        "heads": attention.shape[1],
        "attention": _base64_bytes(attention[:, :, rows, columns]),
        **_lens_data(explanation.logit_lens, tokenizer, shown),
        "next": [[tokenizer.label(token), float(explanation.probabilities[token])] for token in next_tokens],
        "words": [[word.text, word.probability] for word in next_words],
        "continues": [word.continues for word in next_words],
    }
    is_partial = None in effects
    texts = {
        "summary": " ".join(_notes(explanation, model, expert, shown)),
        "effects-hint": _effects_hint(tokenizer.label(next_tokens[0]), is_partial=is_partial),
        "entropy": f"{units.entropy(explanation.entropy).capitalize()}. {units.choice(explanation.entropy, 'tokens')}",
    }
    return data, texts


def _attention_bytes(layers: int, heads: int, tokens: int) -> int:
    """Size of the attention weights on a page, a byte each: a lower triangle per head."""
    return layers * heads * tokens * (tokens + 1) // 2


def _limited_attention(attention: NDArray[np.float32]) -> NDArray[np.float32]:
    """Attention weights [L, H, N, N], if too large for a page [L, 1, n, n]: the heads' mean, of the last n tokens."""
    layers, heads, tokens, _ = attention.shape
    if _attention_bytes(layers, heads, tokens) > MAX_ATTENTION:
        attention, heads = attention.mean(1, keepdims=True), 1
    while _attention_bytes(layers, heads, tokens) > MAX_ATTENTION:
        tokens = tokens * 9 // 10
    return attention[:, :, -tokens:, -tokens:]


def _notes(explanation: Explanation, model: str, expert: Mapping[str, Any] | None, shown: int) -> list[str]:
    """Sentences on what the page shows, and what it leaves out."""
    layers, heads, tokens, _ = explanation.attention.shape
    notes = [f"Model: {model}, {units.count(layers, 'layer')} with {units.count(heads, 'attention head')} each."]
    if expert:
        notes.append(
            f"The model is an ensemble. This page shows the activations of its expert {_printable(expert['name'])}, "
            f"whose weight is {expert['weight']:.3f} here; the prediction is the ensemble's."
        )
    if _attention_bytes(layers, heads, tokens) > MAX_ATTENTION:
        notes.append("Attention is shown as the mean of each layer's heads, to keep the page small.")
    if before := explanation.truncated + explanation.preceding + tokens - shown:
        notes.append(f"The last {units.count(shown, 'token')} of the prompt are shown; {before:,} before them are not.")
    if explanation.tail:
        tail = _printable(explanation.tail)
        notes.append(f"The most likely next token starts inside the prompt: it includes the prompt's end “{tail}”.")
    return notes


def _lens_data(lens: Candidates, tokenizer: Tokenizer, shown: int) -> dict[str, object]:
    """The logit lens of the last positions: [layer][position][rank] is (index in `texts`, probability)."""
    ids, probabilities = lens.ids[:, -shown:], lens.probabilities[:, -shown:]
    tokens, indices = np.unique(ids, return_inverse=True)
    pairs = np.stack([indices.reshape(ids.shape).astype(object), probabilities.astype(object)], -1)
    return {"texts": [tokenizer.label(int(token)) for token in tokens], "lens": pairs.tolist()}


def _effects_hint(next_token: str, *, is_partial: bool) -> str:
    token = _printable(next_token).strip() or next_token
    hint = (
        f"Ablation: by how many bits “{token}”, the most likely next token, becomes less likely if a token is left "
        "out. Plus: the token makes it more likely. Minus (in the other color): less likely. The last token is not "
        "left out: the model would then predict what follows the token before it."
    )
    return f"{hint} Only the last tokens were left out." if is_partial else hint


def _base64_bytes(shares: NDArray[np.float32]) -> str:
    """Numbers from 0 to 1 as bytes of 1/255, in base64."""
    return base64.b64encode(np.rint(shares * 255).astype(np.uint8).tobytes()).decode()


def _without_nan(values: NDArray[np.float64]) -> list[float | None]:
    """None instead of NaN, which JSON does not have."""
    return [None if np.isnan(value) else value for value in values.tolist()]


# ---- inspect


def inspection_page(header: "Header", on_note: OnNote) -> bytes:
    """The page of a model file. Raises LLMError for a training record that this program did not write."""
    data = inspection_data(header, on_note)
    summary = f"{data['parameters']:,} parameters in {data['tensors']:,} tensors, {data['bytes']:,} bytes."
    return _page("inspect", _printable(str(header.path)), data, {"summary": summary})


def inspection_data(header: "Header", on_note: OnNote) -> dict[str, Any]:
    """What `llm inspect` shows: the tree of the parameters, the training curve and samples if the file has them, the
    config, and further facts as (name, value). Raises LLMError for a training record that this program did not
    write."""
    record = training_record(header)
    shown = facts(header, on_note) | {"training": record}
    try:
        curve = read_curve(record)
    except LLMError:  # a model that was not trained by this program
        curve = None
    prompt, texts = _samples(record.get("samples", {}))
    return {
        "prompt": prompt,
        "samples": texts,
        "parameters": shown["parameters"],
        "tensors": len(shown["tensors"]),
        "bytes": shown["bytes"],
        "tree": _tree_data(parameter_tree(header), ""),
        "curve": None if curve is None else _curve_data(curve),
        "record": page_rows(header, shown),
        "config": [(str(key), json.dumps(value, ensure_ascii=False)) for key, value in shown["config"].items()],
    }


def _samples(samples: object) -> tuple[str, list[list[str]]]:
    """(prompt, [step, text] of each sample) in a training record, which may hold anything."""
    texts = samples.get("texts") if isinstance(samples, dict) else None
    pairs = [pair for pair in texts if isinstance(pair, list) and len(pair) == 2] if isinstance(texts, list) else []
    prompt = str(samples.get("prompt", "")) if isinstance(samples, dict) and pairs else ""
    return prompt, [[str(step), str(text)] for step, text in pairs]


def _curve_data(curve: Curve) -> dict[str, object]:
    return {
        "steps": curve.steps,
        "training": [round(bits, 4) for bits in curve.training],
        "validation_steps": curve.validation_steps,
        "validation": [round(bits, units.BITS_PER_BYTE_DIGITS) for bits in curve.validation],
        "label": curve.label,
        "summary": _curve_summary(curve),
    }


def _curve_summary(curve: Curve) -> str:
    """The sentence below the chart of a run."""
    first, last = (units.bits_per_byte(bits) for bits in (curve.training[0], curve.training[-1]))
    end = max([*curve.steps, *curve.validation_steps])
    summary = f"The training loss went from {first} to {last} bits per byte by step {end:,}"
    if not curve.validation:
        return f"{summary}."
    best = min(curve.validation)
    step = curve.validation_steps[curve.validation.index(best)]
    return (
        f"{summary}; the lowest {curve.label} loss was {units.bits_per_byte(best)} at step {step:,}. The "
        "loss on held-out text is in the record."
    )


def _tree_data(group: ParameterGroup, parent: str) -> dict[str, object]:
    path = f"{parent}.{group.name}" if parent else group.name
    shape = " or ".join(" × ".join(map(str, shape)) or "scalar" for shape in list(group.shapes)[:2])
    return {
        "name": group.name, "path": path, "parameters": group.parameters, "copies": group.copies, "shape": shape,
        "children": [_tree_data(child, path) for child in group.children.values()],
    }  # fmt: skip


# ---- both


def _printable(text: str) -> str:
    """Text on one line, without control characters and bidirectional overrides."""
    return "".join(c if c.isprintable() else " " for c in text)


def _page(kind: str, title: str, data: Mapping[str, object], texts: Mapping[str, str]) -> bytes:
    """A page of templates/: `data` for its script, `texts` by the id of the element that each goes into."""
    pages = files("llmcli.pages") / "templates"
    style, body, *scripts = (
        (pages / name).read_text("utf-8") for name in ("page.css", f"{kind}.html", "shared.js", f"{kind}.js")
    )
    script = "\n".join(scripts)
    for id_, text in texts.items():
        end = f'id="{id_}"></'
        assert body.count(end) == 1, id_
        body = body.replace(end, f'id="{id_}">{html.escape(text)}</')
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        f"form-action 'none'"
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        f'<h1 id="title" dir="auto">{html.escape(title)}</h1>\n{body}</main>\n'
        f'<script type="application/json" id="data">{_json_for_script(data)}</script>\n<script>{script}</script>\n'
        f"</body>\n</html>\n"
    ).encode("utf-8", "backslashreplace")


def _json_for_script(data: Mapping[str, object]) -> str:
    """JSON inside a script element, which no text in it can end."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(text: str) -> str:
    """The hash of a style or script, as a Content-Security-Policy lists it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
