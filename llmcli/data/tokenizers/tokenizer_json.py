"""Reading tokenizer.json files from untrusted sources: they are classified, checked and reduced to safe
parts.

The parser of the `tokenizers` library aborts or hangs the process on some files (padding to a billion tokens,
a regular expression that never ends). Therefore the file is parsed as JSON first, and only parts that are
known to be safe and cannot lose or change text are passed to the library. Reading a file of 150,000 tokens
takes most of the time of opening a model, so each part is read only once, either here or by the library.
"""

import codecs
import gc
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import repeat
from typing import Any, TypeAlias

from llmcli.errors import LLMError, brief

Json: TypeAlias = dict[str, Any]  # an object
SPACE = "\u2581"  # represents a space in SentencePiece tokens
MAX_CHARACTERS = 1 << 26  # length of the JSON: twice as long as Gemma 3's, the largest published one
MAX_TOKEN_CHARACTERS = 1024  # length of an added token
MAX_ADDED_TOKENS = 1 << 14
MAX_STEPS = 64  # steps of a pre-tokenizer, normalizer or post-processor: ten times the published maximum
# patterns that split text into pre-tokens
PATTERNS = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+",
    "Qwen 2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+",
}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _split_by(pattern: str) -> Json:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL | {"use_regex": False}]}


PRE_TOKENIZERS: dict[str, Json] = {  # known by name in other programs
    "GPT-2": BYTE_LEVEL,
    "GPT-2, single digits": {"type": "Sequence", "pretokenizers": [_DIGITS, BYTE_LEVEL]},
    "Llama 3": _split_by(PATTERNS["Llama 3"]),
    "Qwen 2": _split_by(PATTERNS["Qwen 2"]),
}
_REPLACE_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND_SPACE = {"type": "Prepend", "prepend": SPACE}
_SPLIT_AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "invert": False}


# ---- checking


class MergePairs(list[Any]):
    """The entries of `merges`, up to 300,000. Iteration yields the pairs one by one, to save memory."""

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        entries = super().__iter__()
        return map(
            tuple, map(str.split, entries, repeat(" ")) if self and isinstance(self[0], str) else entries
        )


@contextmanager
def without_collector() -> Iterator[None]:
    """Switch off the garbage collector, which would visit hundreds of thousands of merges repeatedly."""
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_enabled:
            gc.enable()


@without_collector()
def parse(text: str | Json) -> Any:
    """Parse a tokenizer.json, unless it is already parsed. Raises LLMError for text that is not JSON or too
    long."""
    if isinstance(text, dict):
        return text
    if len(text) > MAX_CHARACTERS:
        raise LLMError(
            f"the tokenizer is {len(text):,} characters long; "
            f"expected a tokenizer.json of at most {MAX_CHARACTERS:,}"
        )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LLMError(f"the tokenizer is not JSON: {error}; expected a tokenizer.json") from error


@without_collector()
def checked(document: Any, max_vocab_size: int | None = None) -> tuple[str, list[Json]]:
    """Check a parsed tokenizer.json. Returns (kind, added tokens by id), without control tokens from id
    `max_vocab_size` on, which the model does not have (Gemma's text models lack the image token). Raises
    LLMError unless it is a BPE, byte-level or with byte fallback, without unsupported parts."""
    kind, problem = classify(document)
    if problem:
        raise LLMError(
            f"the tokenizer {problem}; expected a BPE tokenizer.json with ByteLevel or byte_fallback"
        )
    model = document["model"]
    added = sorted(document.get("added_tokens") or [], key=lambda token: token["id"])
    if max_vocab_size is not None:
        added = [token for token in added if token["id"] < max_vocab_size or not token.get("special")]
    own = {*model["vocab"].values()}
    ids = own | {token["id"] for token in added}
    if len(own) != len(model["vocab"]) or (min(ids, default=0), max(ids, default=-1)) != (0, len(ids) - 1):
        raise LLMError("the tokenizer's ids are not 0, 1, 2, ... without gaps or repeats")
    kinds = {*map(type, model.get("merges") or [])}
    if len(kinds) > 1 or not kinds <= {str, list, tuple}:
        raise LLMError("the tokenizer could not be read: an entry of its merges is not a pair of tokens")
    return kind, added


def safe_parts(document: Json, kind: str) -> Json:
    """Return the parts of a checked tokenizer.json that are safe for the library and do not depend on its
    vocabulary."""
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": _REPLACE_SPACES if kind == "spm" else document.get("normalizer"),
        "pre_tokenizer": None if kind == "spm" else document.get("pre_tokenizer"),
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }


def describe(text: str | Json) -> Json:
    """Return {"kind", "vocab_size"} of a tokenizer.json without building the tokenizer; {} for another
    document."""
    try:
        document = parse(text)
        ids = {
            *document["model"]["vocab"].values(),
            *(token["id"] for token in document.get("added_tokens", ())),
        }
    except (LLMError, TypeError, KeyError, AttributeError):
        return {}
    return {"kind": classify(document)[0], "vocab_size": len(ids)}


def classify(document: Any) -> tuple[str, str]:
    """Classify a parsed tokenizer.json as (kind, problem): ("bpe" | "spm" | "char", ""), or ("?", reason).
    Anything that could lose or change text is unsupported."""
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        return "?", "has no model"
    model = document["model"]
    if model.get("type") != "BPE":
        return "?", f"is of type {brief(model.get('type'))}"
    if not isinstance(model.get("vocab"), dict):
        return "?", "has no vocabulary"
    if model.get("byte_fallback") and model.get("merges") and _is_sentencepiece(document):
        kind = "spm"
    else:
        kind = "char" if document.get("pre_tokenizer") is None else "bpe"
    problem = next(_problems(document, kind), "")
    return ("?" if problem else kind), problem


def _problems(document: Mapping[str, Any], kind: str) -> Iterator[str]:
    """Yield the reasons why a BPE is unsupported; each check relies on the previous ones."""
    model = document["model"]
    normalizer = document.get("normalizer")
    if kind != "spm" and normalizer is not None and (types := _step_types(normalizer)) != ["NFC"]:
        yield f"changes the text with a {'/'.join(types)[:60] or 'nonstandard'} normalizer"
    if any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
        yield "uses dropout, or a prefix or suffix for parts of words"
    ids_are_numbers = {*map(type, model["vocab"].values())} <= {int}
    added = document.get("added_tokens") or []
    if not ids_are_numbers or not isinstance(model.get("merges") or [], list) or not isinstance(added, list):
        yield "has a vocabulary, merges or added tokens of the wrong type"
    if len(added) > MAX_ADDED_TOKENS:
        yield f"has {len(added):,} added tokens; at most {MAX_ADDED_TOKENS:,} are supported"
    if not all(_is_added_token(token) for token in added):
        limit = f"{MAX_TOKEN_CHARACTERS:,} characters"
        yield f"has an added token without an id, or without a text of 1 to {limit}"
    if kind == "char" and (not model.get("byte_fallback") or model.get("merges")):
        yield "is not byte-level"
    if kind == "bpe":
        yield from _pre_tokenizer_problems(list(_steps(document["pre_tokenizer"])))


def _is_added_token(token: Any) -> bool:
    return isinstance(token, dict) and type(token.get("id")) is int and _is_short(token.get("content"))


def _is_short(text: Any) -> bool:
    return isinstance(text, str) and 0 < len(text) <= MAX_TOKEN_CHARACTERS


def _pre_tokenizer_problems(steps: list[Json]) -> Iterator[str]:
    types = [str(step.get("type")) for step in steps]
    if "ByteLevel" not in types:
        yield "is not byte-level"
    if not set(types) <= {"ByteLevel", "Split", "Digits", "Punctuation"}:
        yield f"splits words with {', '.join(types)[:60]}"
    if any(step.get("behavior") == "Removed" or step.get("add_prefix_space") for step in steps):
        yield "adds or removes whitespace"
    for step in steps:
        pattern = step.get("pattern")
        is_known = isinstance(pattern, dict) and (
            pattern.get("Regex") in PATTERNS.values() or _is_short(pattern.get("String"))
        )
        if step["type"] == "Split" and not is_known:
            yield f"splits words by an unknown pattern (known: {', '.join(PATTERNS)})"


def _is_sentencepiece(document: Mapping[str, Any]) -> bool:
    """Return whether the tokenizer changes a text only by turning spaces into SPACE, and perhaps by
    prepending a SPACE."""
    steps = list(_steps(document.get("normalizer") or None))
    known = (_PREPEND_SPACE.items(), _REPLACE_SPACES.items())
    if not all(any(items <= step.items() for items in known) for step in steps):
        return False
    metaspace = document.get("pre_tokenizer")
    # SPACE has replaced all spaces, so splitting at spaces has no effect
    if all(_SPLIT_AT_SPACES.items() <= step.items() for step in _steps(metaspace)):
        return any(step.get("type") == "Replace" for step in steps)
    return isinstance(metaspace, dict) and (metaspace.get("type"), metaspace.get("replacement")) == (
        "Metaspace",
        SPACE,
    )


# ---- parts of a tokenizer.json


def prefix_space(document: Mapping[str, Any]) -> str:
    """Return how a SentencePiece BPE prepends a space. "prepend": to a text and to each part after a control
    token (the normalizer Prepend). "always": the same, but not if there is a space already; "first":
    as "always", but only to a text (both by the pre-tokenizer Metaspace). "": never."""
    if "Prepend" in _step_types(document.get("normalizer")):
        return "prepend"
    metaspace = document.get("pre_tokenizer") or {}
    scheme = metaspace.get("prepend_scheme", "always" if metaspace.get("add_prefix_space", True) else "never")
    return scheme if metaspace.get("type") == "Metaspace" and scheme in ("always", "first") else ""


def prefix_space_steps(scheme: str) -> Json:
    """Return the normalizer and pre-tokenizer of a SentencePiece BPE, which may prepend a space."""
    if scheme in ("always", "first"):
        metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
        return {"normalizer": None, "pre_tokenizer": metaspace}
    both = {"type": "Sequence", "normalizers": [_PREPEND_SPACE, _REPLACE_SPACES]}
    return {"normalizer": both if scheme else dict(_REPLACE_SPACES), "pre_tokenizer": None}


def merge_pair(merge: Any) -> tuple[str, str]:
    """Return the two tokens of an entry of `merges`, which is a list or, in older files, a string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def decoder(kind: str, *, adds_prefix_space: bool = False) -> Json:
    """Return the decoder for other programs; llmcli itself joins the bytes of the tokens."""
    if kind == "bpe":
        return dict(BYTE_LEVEL)
    steps: list[Json] = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if kind == "spm":
        steps.insert(0, {"type": "Replace", "pattern": {"String": SPACE}, "content": " "})
    if adds_prefix_space:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def bos_token_of(post_processor: Any) -> str | None:
    """Return the control token that a post-processor prepends to a text, or None."""
    for step in _steps(post_processor):
        single = step.get("single")
        if step.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
            first = single[0].get("SpecialToken") if isinstance(single[0], dict) else None
            return str(first.get("id")) if isinstance(first, dict) else None
    return None


def bos_post_processor(token: str, token_id: int) -> Json:
    bos = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, bos, second],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def pre_tokenizer_name(pre_tokenizer: Any) -> str | None:
    """Return the name of a pre-tokenizer in PRE_TOKENIZERS, or None."""

    def essentials(part: Any) -> list[Any]:
        keys = ("type", "individual_digits", "pattern")
        return [[step.get("use_regex", True), *map(step.get, keys)] for step in _steps(part)]

    target = essentials(pre_tokenizer)
    return next((name for name, known in PRE_TOKENIZERS.items() if essentials(known) == target), None)


def _steps(part: Any) -> Iterator[Json]:
    """Return the steps of a pre-tokenizer, normalizer or post-processor (or None), with every Sequence
    flattened. Steps that are not objects, and those after MAX_STEPS, are replaced by one of type
    "nonstandard"."""
    pending = [] if part is None else [part]
    for _ in range(MAX_STEPS):
        if not pending:
            return
        step = pending.pop()
        if not isinstance(step, dict):
            yield {"type": "nonstandard"}
        elif step.get("type") == "Sequence":
            inner = step.get("pretokenizers", step.get("normalizers", step.get("processors")))
            pending += reversed(inner[: MAX_STEPS + 1]) if isinstance(inner, list) else [None]
        else:
            yield step
    if pending:
        yield {"type": "nonstandard"}


def _step_types(part: Any) -> list[str]:
    return [str(step.get("type")) for step in _steps(part)]


# ---- the bytes of a token


def name_to_bytes(kind: str, name: str) -> bytes:
    """Return the bytes of a token, given its name in a tokenizer of kind "bpe", "spm" or "char".

    >>> name_to_bytes("bpe", "Ġcat"), name_to_bytes("spm", "▁cat"), name_to_bytes("char", "<0xE3>")
    (b' cat', b' cat', b'\xe3')
    """
    if kind not in ("spm", "char"):
        try:
            if "\0" not in name:
                return codecs.charmap_encode(name, "strict", _BYTES_BUT_ZERO)[0]
        except UnicodeEncodeError:  # a name with byte 0, or not in this alphabet
            if _BYTE_OF_CHARACTER.keys() >= set(name):
                return bytes(map(_BYTE_OF_CHARACTER.__getitem__, name))
        return name.encode("utf-8")
    if name.startswith("<0x") and (byte := _BYTE_NAME.fullmatch(name)):
        return bytes([int(byte[1], 16)])
    return (name.replace(SPACE, " ") if kind == "spm" else name).encode("utf-8")


def byte_level_alphabet() -> dict[str, int]:
    """Map the printable character that GPT-2 uses for each byte to the byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>")  # name of a single-byte token in a vocabulary of characters
_BYTE_OF_CHARACTER = byte_level_alphabet()
# a table that the codec searches in a third of the time of a dictionary; it can map only U+0000 to byte 0
_BYTES_BUT_ZERO = codecs.charmap_build(
    "\0" + "".join(sorted(_BYTE_OF_CHARACTER, key=_BYTE_OF_CHARACTER.__getitem__)[1:])
)
