"""What a tokenizer.json says, read as JSON before the library sees it: strangers write such files.

The library's parser aborts the process on some of them (a padding of a billion tokens, a pattern that never ends):
no program can catch that. So only what is known to be harmless, and what cannot lose or change text, goes on to it.
Knows the format, not the library.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmcli.errors import LLMError, brief

LONGEST = 1 << 25  # characters of JSON: twice the largest vocabularies known
LONGEST_TOKEN = 1024  # characters of a token that is taken as a whole
MOST_ADDED = 1 << 14
MOST_STEPS = 64  # of a pre-tokenizer or the like, Sequences counted: ten times as many as any that is known has
# how words are cut, apart from GPT-2's way, which the library has built in
PATTERNS = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+",
    "Qwen 2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+",
}


SPACE = "\u2581"  # SentencePiece's sign for a space
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_AFTER_SPLIT = BYTE_LEVEL | {"use_regex": False}
# the ways to cut words that have a name in other programs too
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "GPT-2": BYTE_LEVEL,
    "GPT-2, digits apart": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
    },
    **{
        name: {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERNS[name]}, "behavior": "Isolated", "invert": False},
                _AFTER_SPLIT,
            ],
        }
        for name in ("Llama 3", "Qwen 2")
    },
}


@dataclass(frozen=True)
class Checked:
    """A tokenizer.json in which nothing can do harm."""

    kind: str  # "bpe" (byte-level), "spm" (SentencePiece's BPE: spaces are a sign of their own) or "char"
    text: str  # without what is told here
    start: str | None  # the control token that a text begins with, if any
    space_first: bool  # whether a space is put before a text


def checked(text: str) -> Checked:
    """Raises LLMError when it is no byte-level BPE and no BPE with byte fallback, or could do harm."""
    if len(text) > LONGEST:
        raise LLMError(
            f"the tokenizer is {len(text):,} characters long; a tokenizer.json of at most {LONGEST:,} is wanted"
        )
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LLMError(f"the tokenizer is not JSON: {error}; a tokenizer.json is wanted") from error
    kind, problem = kind_and_problem(found)
    if problem:
        raise LLMError(f"the tokenizer {problem}; a BPE tokenizer.json with ByteLevel or byte_fallback is wanted")
    model, added = found["model"], found.get("added_tokens") or []
    ids = sorted({*model["vocab"].values(), *(token["id"] for token in added)})
    if ids != list(range(len(ids))) or len({*model["vocab"].values()}) != len(model["vocab"]):
        raise LLMError("the tokenizer's ids are not 0, 1, 2, ... without gaps or repeats")
    safe = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [token | {"lstrip": False, "rstrip": False} for token in added],
        "normalizer": _REPLACE if kind == "spm" else found.get("normalizer"),
        "pre_tokenizer": None if kind == "spm" else found.get("pre_tokenizer"),
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "byte_fallback": bool(model.get("byte_fallback")),
            "ignore_merges": bool(model.get("ignore_merges")),
            "vocab": model["vocab"],
            "merges": model.get("merges") or [],
        },
    }
    special = {token["content"] for token in added if token.get("special")}
    start = start_of(found.get("post_processor"))
    return Checked(kind, json.dumps(safe), start if start in special else None, kind == "spm" and _space_first(found))


_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}


def space_first_normalizer() -> dict[str, Any]:
    """That of a SentencePiece BPE which puts a space before a text."""
    return {"type": "Sequence", "normalizers": [_PREPEND, _REPLACE]}


def start_of(post_processor: Any) -> str | None:
    """The control token that a post-processor puts before a text."""
    for step in _steps(post_processor):
        single = step.get("single")
        if step.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
            first = single[0].get("SpecialToken") if isinstance(single[0], dict) else None
            return str(first.get("id")) if isinstance(first, dict) else None
    return None


def starting_with(token: str, number: int) -> dict[str, Any]:
    """The post-processor that puts a control token before a text."""

    def parts(*sequences: str) -> list[dict[str, Any]]:
        return [
            part
            for sequence in sequences
            for part in ({"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": sequence, "type_id": 0}})
        ]

    return {
        "type": "TemplateProcessing",
        "single": parts("A"),
        "pair": parts("A", "B"),
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def pre_tokenizer_name(pre_tokenizer: Any) -> str | None:
    """The name among PRE_TOKENIZERS of a way to cut words; None if it has none."""

    def essence(part: Any) -> list[Any]:
        return [
            [step.get("type"), step.get("use_regex", True), step.get("individual_digits"), step.get("pattern")]
            for step in _steps(part)
        ]

    return next((name for name, known in PRE_TOKENIZERS.items() if essence(known) == essence(pre_tokenizer)), None)


def _space_first(found: dict[str, Any]) -> bool:
    kinds = _kinds(found["normalizer"]) if found.get("normalizer") else []
    meta = found.get("pre_tokenizer") or {}
    scheme = meta.get("prepend_scheme", "always" if meta.get("add_prefix_space", True) else "never")
    return "Prepend" in kinds or (meta.get("type") == "Metaspace" and scheme in ("always", "first"))


def _is_sentencepiece(found: dict[str, Any]) -> bool:
    """Whether spaces become SPACE, and nothing else happens to a text."""
    normal = list(_steps(found["normalizer"])) if found.get("normalizer") else []
    right = (
        lambda step: step.get("type") == "Prepend" and step.get("prepend") == SPACE,
        lambda step: (
            step.get("type") == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == SPACE
        ),
    )
    if not all(any(check(step) for check in right) for step in normal):
        return False
    pre = found.get("pre_tokenizer")
    if pre is None:
        return any(step.get("type") == "Replace" for step in normal)
    return isinstance(pre, dict) and pre.get("type") == "Metaspace" and pre.get("replacement") == SPACE


def describe(text: str) -> dict[str, Any]:
    """What a tokenizer.json is: {"kind", "vocab_size"}, without building it; {} if it is none.

    >>> describe('{"model": {"type": "BPE", "vocab": {"a": 0}}, "added_tokens": [{"id": 1}]}')
    {'kind': '?', 'vocab_size': 2}
    """
    try:
        found = json.loads(text)
        ids = {*found["model"]["vocab"].values(), *(token["id"] for token in found.get("added_tokens", ()))}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return {}
    return {"kind": kind_and_problem(found)[0], "vocab_size": len(ids)}


def kind_and_problem(found: Any) -> tuple[str, str]:
    """What a parsed tokenizer.json is: ("bpe" | "spm" | "char" | "?", what is wrong with it or "").

    Only what cannot lose or change text is right.
    """
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        return "?", "has no model"
    model, normalizer, added = found["model"], found.get("normalizer"), found.get("added_tokens") or []
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        return "?", f"is of type {brief(model.get('type'))}"
    sentencepiece = bool(model.get("byte_fallback") and model.get("merges")) and _is_sentencepiece(found)
    if normalizer is not None and not sentencepiece and _kinds(normalizer) != ["NFC"]:
        return "?", f"changes the text with a {'/'.join(_kinds(normalizer))[:60] or 'strange'} normalizer"
    if any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
        return "?", "uses dropout, or marks the parts of words"
    vocabulary, merges = model["vocab"], model.get("merges") or []
    if not all(type(i) is int for i in vocabulary.values()) or not isinstance(merges, list):
        return "?", "has a vocabulary or merges that are none"
    if problem := _problem_of_added(added):
        return "?", problem
    if sentencepiece:
        return "spm", ""
    if found.get("pre_tokenizer") is None:
        plain = model.get("byte_fallback") and not model.get("merges")
        return ("char", "") if plain else ("?", "is not byte-level")
    steps = list(_steps(found["pre_tokenizer"]))
    kinds = [str(step.get("type")) for step in steps]
    if "ByteLevel" not in kinds:
        return "?", "is not byte-level"
    if not set(kinds) <= {"ByteLevel", "Split", "Digits", "Punctuation"}:
        return "?", f"cuts words with {', '.join(kinds)[:60]}"
    if any(step.get("behavior") == "Removed" or step.get("add_prefix_space") for step in steps):
        return "?", "adds or removes white space"
    if any(step["type"] == "Split" and not _is_known(step.get("pattern")) for step in steps):
        return "?", f"cuts words by a pattern that is none of {', '.join(PATTERNS)}'s"
    return "bpe", ""


def _problem_of_added(added: Any) -> str:
    """What is wrong with the added tokens; "" if nothing is."""
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        return "has added tokens that are none"
    if len(added) > MOST_ADDED:
        return f"has {len(added):,} added tokens, of at most {MOST_ADDED:,}"
    for token in added:
        content = token.get("content")
        if type(token.get("id")) is not int or not isinstance(content, str) or not 0 < len(content) <= LONGEST_TOKEN:
            return "has an added token without an id or a text of some length"
        if not token.get("special") and (token.get("lstrip") or token.get("rstrip")):
            return "has added tokens that take the white space beside them"
    return ""


def _is_known(pattern: Any) -> bool:
    """Whether a Split is by a pattern that is known to end, or by a short text."""
    if not isinstance(pattern, dict):
        return False
    text = pattern.get("String")
    return pattern.get("Regex") in PATTERNS.values() or (isinstance(text, str) and 0 < len(text) <= LONGEST_TOKEN)


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The parts of a pre-tokenizer, normalizer or post-processor, those inside a Sequence one by one; one of the type
    "strange" for what is none, and in place of the rest where there are more than MOST_STEPS."""
    waiting = [part]
    for _ in range(MOST_STEPS):
        if not waiting:
            return
        now = waiting.pop()
        if not isinstance(now, dict):
            yield {"type": "strange"}
        elif now.get("type") == "Sequence":
            inner = now.get("pretokenizers", now.get("normalizers", now.get("processors")))
            waiting += reversed(inner[: MOST_STEPS + 1]) if isinstance(inner, list) else [None]
        else:
            yield now
    if waiting:
        yield {"type": "strange"}


def _kinds(part: Any) -> list[str]:
    return [str(step.get("type")) for step in _steps(part)]
