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

from llmcli.charts import SETTLE
from llmcli.explainer import Explanation
from llmcli.tokenizer import Tokenizer
from llmcli.verdict import Curve
from llmcli.words import NextWords

if TYPE_CHECKING:
    from llmcli.inspector import Part

MOST_ATTENTION = 1_300_000  # bytes, a byte a weight: the page of 200 tokens, 6 layers and 8 heads has 964,800
BITS, SHARES = 3, 5  # digits
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

    Weights are rounded to a 255th. Where those of all heads would make the page too large, it has the means of each
    layer's heads, and of fewer tokens where those are too large too; it says so.
    """
    L, H, N, _ = found.attention.shape
    said = [f"{model}: {L} layers of {H} heads."]
    if speaker:
        said.append(
            f"This is a mixture: shown is the way through {_plain(speaker['name'])}, which counts "
            f"{speaker['weight']:.3f} here; the answer is the mixture's."
        )
    attention = found.attention
    if L * H * N * (N + 1) // 2 > MOST_ATTENTION:
        attention = attention.mean(1, keepdims=True)
        said.append("Heads are not told apart: for so many tokens only the mean of each layer's heads is kept.")
    kept = N
    while attention.shape[0] * attention.shape[1] * kept * (kept + 1) // 2 > MOST_ATTENTION:
        kept = kept * 9 // 10
    cut = N - kept
    if before := found.cut + found.earlier + cut:
        said.append(f"The last {kept:,} tokens of the prompt are shown; {before:,} stand before them.")
    if found.tail:
        said.append(f"The likeliest first token begins inside the prompt, with its end “{_plain(found.tail)}”.")
    rows = np.tril_indices(kept)
    shares = attention[:, :, cut:, cut:][:, :, rows[0], rows[1]]
    best = found.lens.ids[:, cut:], found.lens.probabilities[:, cut:]
    used = np.unique(best[0])
    place = {int(token): i for i, token in enumerate(used)}
    answers = found.likeliest(count)
    data = {
        "tokens": [tokenizer.label(token) for token in found.ids[cut:]],
        "ids": found.ids[cut:],
        "surprises": _rounded(found.surprises[cut:], BITS),
        "effects": _rounded(found.effects[cut:], BITS),
        "layers": L,
        "heads": attention.shape[1],
        "attention": base64.b64encode(np.rint(shares * 255).astype(np.uint8).tobytes()).decode(),
        "texts": [tokenizer.label(int(token)) for token in used],
        "lens": [
            [
                [[place[token], round(chance, SHARES)] for token, chance in zip(*pair, strict=True)]
                for pair in zip(ids.tolist(), chances.tolist(), strict=True)
            ]
            for ids, chances in zip(*best, strict=True)
        ],
        "next": [[tokenizer.label(token), round(float(found.probabilities[token]), 6)] for token in answers],
        "words": [[word.text, round(word.probability, 6)] for word in words.words[:count]],
    }
    answer = data["next"][0][0]
    told = {
        "summary": " ".join(said),
        "effects-hint": f"Bits by which “{_plain(answer).strip() or answer}” is less likely without the token. "
        "Colour and sign tell a token that speaks for it from one that speaks against it."
        + (" Of a model of this size only the last are left out." if None in data["effects"] and kept > 1 else ""),
        "unsure": f"{found.entropy:.2f} bits unsure, as among {2**found.entropy:,.1f} tokens that are equally likely.",
    }
    title = _plain(prompt)
    return _page("explain", title if len(title) <= LONGEST_TITLE else f"…{title[-LONGEST_TITLE:]}", data, told)


def inspection(
    facts: dict[str, Any], part: "Part", curve: Curve | None, samples: Any, record: list[tuple[str, str]]
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
            "held_out": [round(bits, 4) for bits in curve.held_out],
        },
        "settle": SETTLE,
        "record": record,
        "config": [(str(key), json.dumps(value, ensure_ascii=False)) for key, value in facts["config"].items()],
    }  # fmt: skip
    tensors = len(facts["tensors"])
    summary = f"{facts['parameters']:,} parameters in {tensors:,} tensors, {facts['bytes']:,} bytes."
    return _page("inspect", facts["file"], data, {"summary": summary})


def _part(part: "Part", path: str) -> dict[str, Any]:
    here = f"{path}.{part.name}" if path else part.name
    shape = " or ".join(" × ".join(map(str, shape)) or "one number" for shape in list(part.shapes)[:2])
    return {
        "name": part.name, "path": here, "parameters": part.parameters, "copies": part.copies, "shape": shape,
        "parts": [_part(inner, here) for inner in part.parts.values()],
    }  # fmt: skip


def _rounded(values: "np.ndarray[Any, Any]", digits: int) -> list[float | None]:
    """JSON has no NaN."""
    return [None if np.isnan(value) else round(value, digits) for value in values.tolist()]


def _plain(text: str) -> str:
    """On one line and without what would turn its direction round."""
    return "".join(c if c.isprintable() else " " for c in text)


def _page(kind: str, title: str, data: dict[str, Any], told: dict[str, str]) -> bytes:
    """The file. `told` are texts by the id of the element that they go into."""
    rooms = files("llmcli") / "pages"
    style, body, *parts = (
        (rooms / name).read_text("utf-8") for name in ("page.css", f"{kind}.html", "shared.js", f"{kind}.js")
    )
    program = "\n".join(parts)
    for name, text in told.items():
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
        f'<h1 dir="auto">{html.escape(title)}</h1>\n{body}</main>\n'
        f'<script type="application/json" id="data">{text}</script>\n<script>{program}</script>\n</body>\n</html>\n'
    ).encode("utf-8", "backslashreplace")


def _hash(text: str) -> str:
    """By which the policy knows what may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
