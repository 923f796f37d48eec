"""What is known of a prompt or a file -> one page for a browser, complete in itself: no network, no server.

Text from models and users goes into the page as data, never as markup, and its own small program shows it as text; the
page forbids every other program (Content-Security-Policy). What it looks like is in pages/.
"""

import base64
import hashlib
import html
import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcli.analysis.explain import Explanation
from llmcli.cli.charts import INITIAL_SHARE
from llmcli.data.tokenizer import Tokenizer
from llmcli.generation.next_words import NextWords
from llmcli.training.summary import Curve
from llmcli.units import BITS_PER_BYTE_DIGITS, bits_per_byte

if TYPE_CHECKING:
    from llmcli.analysis.inspect import ParameterGroup

MOST_ATTENTION = 1_300_000  # bytes, a byte a weight: the page of 200 tokens, 6 layers and 8 heads has 964,800
LONGEST_TITLE = 200  # characters of the prompt; its tokens stand below


def explanation(
    found: Explanation,
    tokenizer: Tokenizer,
    prompt: str,
    words: NextWords,
    count: int,
    model: str,
    speaker: dict[str, Any] | None = None,
) -> bytes:
    """The page of an explanation, looked at everywhere; `count` words of the answer, as many as there are candidates.
    Of a mixture `speaker` is the model in it that is shown, its name and weight.

    Attention weights are rounded to a 255th. Where those of all heads would make the page too large, it has the means
    of each layer's heads, and of fewer tokens where those are too large too; it says so. All other figures are exact:
    the page rounds them once, when it shows them.
    """
    L, H, N, _ = found.attention.shape
    notes = [f"Model: {model}, {_counted(L, 'layer')} with {_counted(H, 'attention head')} each."]
    if speaker:
        notes.append(
            f"This is a mixture of models: shown is {_plain(speaker['name'])}, whose weight is {speaker['weight']:.3f} "
            f"here; the answer is the mixture's."
        )
    attention = found.attention
    if L * H * N * (N + 1) // 2 > MOST_ATTENTION:
        attention = attention.mean(1, keepdims=True)
        notes.append("For this many tokens only the mean of each layer's heads is kept, not every head.")
    kept = N
    while attention.shape[0] * attention.shape[1] * kept * (kept + 1) // 2 > MOST_ATTENTION:
        kept = kept * 9 // 10
    cut = N - kept
    if before := found.truncated + found.preceding + cut:
        notes.append(f"The last {kept:,} tokens of the prompt are shown; {before:,} stand before them.")
    if found.tail:
        notes.append(f"The likeliest first token begins inside the prompt, with its end “{_plain(found.tail)}”.")
    rows = np.tril_indices(kept)
    shares = attention[:, :, cut:, cut:][:, :, rows[0], rows[1]]
    best = found.logit_lens.ids[:, cut:], found.logit_lens.probabilities[:, cut:]
    used = np.unique(best[0])
    place = {int(token): i for i, token in enumerate(used)}
    answers = found.most_likely(count)
    data = {
        "tokens": [tokenizer.label(token) for token in found.ids[cut:]],
        "ids": found.ids[cut:],
        "surprises": _known(found.surprisals[cut:]),
        "effects": _known(found.ablation_effects[cut:]),
        "layers": L,
        "heads": attention.shape[1],
        "attention": base64.b64encode(np.rint(shares * 255).astype(np.uint8).tobytes()).decode(),
        "texts": [tokenizer.label(int(token)) for token in used],
        "lens": [
            [
                [[place[token], chance] for token, chance in zip(*pair, strict=True)]
                for pair in zip(ids.tolist(), chances.tolist(), strict=True)
            ]
            for ids, chances in zip(*best, strict=True)
        ],
        "next": [[tokenizer.label(token), float(found.probabilities[token])] for token in answers],
        "words": [[word.text, word.probability] for word in words.words[:count]],
        "continues": [word.continues for word in words.words[:count]],
    }
    answer = tokenizer.label(answers[0])
    texts = {
        "summary": " ".join(notes),
        "effects-hint": f"Bits by which “{_plain(answer).strip() or answer}”, the most likely next token, becomes less "
        "likely when a token is left out. Plus: the token makes it more likely. Minus (the other colour): less likely."
        + (" Only the last tokens were tried." if None in data["effects"] and kept > 1 else ""),
        "unsure": f"The entropy of the next token is {found.entropy:.2f} bits: the model is as uncertain as if it "
        f"chose among {2**found.entropy:,.1f} equally likely tokens.",
    }
    title = _plain(prompt)
    return _page("explain", title if len(title) <= LONGEST_TITLE else f"…{title[-LONGEST_TITLE:]}", data, texts)


def inspection(
    facts: dict[str, Any], part: "ParameterGroup", curve: Curve | None, samples: Any, record: list[tuple[str, str]]
) -> bytes:
    """The page of a file: `facts` as `inspect --json` has them, the tree of its parameters, the curve of its training
    and what it said on the way if it has them, and what else there is to say of it, (name, value) each."""
    texts = samples.get("texts") if isinstance(samples, dict) else None
    pairs = [pair for pair in texts if isinstance(pair, list) and len(pair) == 2] if isinstance(texts, list) else []
    data = {
        "prompt": str(samples.get("prompt", "")) if pairs else "",
        "samples": [[str(step), str(text)] for step, text in pairs],
        "parameters": facts["parameters"],
        "map": _part(part, ""),
        "curve": curve and {
            "steps": curve.steps,
            "training": [round(bits, 4) for bits in curve.training],
            "held_out_steps": curve.held_out_steps,
            "held_out": [round(bits, BITS_PER_BYTE_DIGITS) for bits in curve.held_out],
            "said": _course(curve),
        },
        "settle": INITIAL_SHARE,
        "record": record,
        "config": [(str(key), json.dumps(value, ensure_ascii=False)) for key, value in facts["config"].items()],
    }  # fmt: skip
    tensors = len(facts["tensors"])
    summary = f"{facts['parameters']:,} parameters in {tensors:,} tensors, {facts['bytes']:,} bytes."
    return _page("inspect", _plain(facts["file"]), data, {"summary": summary})


def _course(curve: Curve) -> str:
    """The sentence under the picture of a run."""
    first, last = (bits_per_byte(bits) for bits in (curve.training[0], curve.training[-1]))
    steps = max([*curve.steps, *curve.held_out_steps])
    said = f"Training went from {first} to {last} bits per byte in {steps:,} steps"
    if not curve.held_out:
        return f"{said}."
    best = min(curve.held_out)
    return (
        f"{said}; the best interim figure for held-out text was {bits_per_byte(best)} at step "
        f"{curve.held_out_steps[curve.held_out.index(best)]:,}. The final figure is in the record."
    )


def _part(part: "ParameterGroup", path: str) -> dict[str, Any]:
    here = f"{path}.{part.name}" if path else part.name
    shape = " or ".join(" × ".join(map(str, shape)) or "one number" for shape in list(part.shapes)[:2])
    return {
        "name": part.name, "path": here, "parameters": part.parameters, "copies": part.copies, "shape": shape,
        "parts": [_part(inner, here) for inner in part.children.values()],
    }  # fmt: skip


def _known(values: "np.ndarray[Any, Any]") -> list[float | None]:
    """JSON has no NaN."""
    return [None if np.isnan(value) else value for value in values.tolist()]


def _counted(count: int, what: str) -> str:
    """
    >>> [_counted(1, "layer"), _counted(30, "layer")]
    ['1 layer', '30 layers']
    """
    return f"{count} {what}{'s' * (count != 1)}"


def _plain(text: str) -> str:
    """On one line and without what would turn its direction round."""
    return "".join(c if c.isprintable() else " " for c in text)


def _page(kind: str, title: str, data: dict[str, Any], texts: dict[str, str]) -> bytes:
    """The file. `texts` by the id of the element that they go into."""
    pages = files("llmcli.cli") / "pages"
    style, body, *parts = (
        (pages / name).read_text("utf-8") for name in ("page.css", f"{kind}.html", "shared.js", f"{kind}.js")
    )
    program = "\n".join(parts)
    for name, text in texts.items():
        marked = f'id="{name}"></'
        assert body.count(marked) == 1, name
        body = body.replace(marked, f'id="{name}">{html.escape(text)}</')
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(program)}'; base-uri 'none'; "
        f"form-action 'none'"
    )
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":  # nothing in it can end the element, whatever it says
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        f'<h1 id="title" dir="auto">{html.escape(title)}</h1>\n{body}</main>\n'
        f'<script type="application/json" id="data">{text}</script>\n<script>{program}</script>\n</body>\n</html>\n'
    ).encode("utf-8", "backslashreplace")


def _hash(text: str) -> str:
    """By which the policy knows what may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
