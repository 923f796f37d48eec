"""The tokenizer and the chat template as data for the script of a page."""

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from llmcli.data.conversations.chat_template import ChatTemplate
from llmcli.data.conversations.control_tokens import ControlTokens, unused_characters
from llmcli.data.conversations.messages import Message
from llmcli.data.tokenizers import tokenizer_json
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.formats.metadata import Json
from llmcli.generation.token_healing import Prompt

# the patterns of the pre-tokenizers in tokenizer_json.PRE_TOKENIZERS; each pattern splits the parts that the
# previous one leaves
_SPLITS = {name: [pattern] for name, pattern in tokenizer_json.PATTERNS.items()} | {
    "GPT-2, single digits": [r"\p{N}|\P{N}+", tokenizer_json.PATTERNS["GPT-2"]]
}
# in JavaScript, \s is a different set of characters, and older browsers do not support (?i:...); "ſ" is a
# lower-case "S"
_IN_JAVASCRIPT = {
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)": "'(?:[sSſ]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])",
    r"\s": r"\p{White_Space}",
    r"\S": r"\P{White_Space}",
}


def tokenizer_data(tokenizer: Tokenizer, stored: str) -> Json:
    """Return the data that live/tokenizer.js needs; `stored` is the tokenizer.json in the model file. Bytes
    are strings of the characters U+0000 to U+00FF. Raises LLMError for a pre-tokenizer that pages do not
    support."""
    document = json.loads(tokenizer.to_json())
    kind = tokenizer.kind
    model = document["model"]
    added = [token for token in document["added_tokens"] if not token["special"]]
    merges = [tokenizer_json.merge_pair(merge) for merge in model["merges"]]
    vocab = model["vocab"]
    return {
        "kind": kind,
        "tokens": [data.decode("latin-1") for data in tokenizer.token_bytes],
        "byte_ids": _byte_ids(tokenizer, {} if kind == "bpe" else vocab, {token["id"] for token in added}),
        "merges": list(
            chain.from_iterable((vocab[left], vocab[right], vocab[left + right]) for left, right in merges)
        ),
        "splits": _splits(document["pre_tokenizer"]) if kind == "bpe" else [],
        "ignore_merges": bool(model.get("ignore_merges")),
        "is_nfc": kind != "spm" and document.get("normalizer") is not None,
        "added": sorted(
            ((token["content"], token["id"]) for token in added), key=lambda entry: -len(entry[0])
        ),
        "control_names": {token: name for name, token in tokenizer.control_ids.items()},
        "prefix_space": tokenizer_json.prefix_space(json.loads(stored)) if kind == "spm" else "",
        "beginning": Prompt.of("", tokenizer).ids,
        "bos_ids": tokenizer.bos_ids,
        "eos_ids": sorted(tokenizer.eos_ids),
        "is_imported": tokenizer.imported,
        "seen_bytes": None if tokenizer.seen_bytes is None else list(tokenizer.seen_bytes),
    }


def _byte_ids(tokenizer: Tokenizer, vocab: dict[str, int], added: set[int]) -> list[int]:
    """Return the token of each byte, or -1."""
    single = {data: i for i, data in enumerate(tokenizer.token_bytes) if len(data) == 1 and i not in added}
    return [vocab.get(f"<0x{byte:02X}>", single.get(bytes([byte]), -1)) for byte in range(256)]


def _splits(pre_tokenizer: Any) -> list[str]:
    name = tokenizer_json.pre_tokenizer_name(pre_tokenizer)
    if name not in _SPLITS:
        known = ", ".join(_SPLITS)
        raise LLMError(
            f"the tokenizer splits words differently from {known}, the only ones that pages support; "
            "use --to hf"
        )
    patterns = []
    for pattern in _SPLITS[name]:
        for ours, theirs in _IN_JAVASCRIPT.items():
            pattern = pattern.replace(ours, theirs)
        patterns.append(pattern)
    return patterns


def chat_data(template: ChatTemplate, tokenizer: Tokenizer) -> Json | None:
    """Return a chat template as four lists of texts and control tokens: those before the first message,
    before an answer, before the next message, and before the answer to generate. None for a template that
    cannot be written in this way."""
    probes = unused_characters(5, [template.source])
    messages = [Message(("user", "assistant")[i % 2], f" {probe} ") for i, probe in enumerate(probes)]
    try:
        texts = [template.render(messages[:count], add_generation_prompt=True) for count in (1, 3, 5)]
    except LLMError:
        return None
    trims = f" {probes[0]} " not in texts[0]
    space = "" if trims else " "
    pieces = [re.split(f"{space}[{''.join(probes)}]{space}", text) for text in texts]
    if len(pieces[1]) != 4:
        return None
    begin, answer, following, prompt = pieces[1]
    if pieces != [[begin, prompt], pieces[1], [begin, answer, following, answer, following, prompt]]:
        return None
    if any(True in tokenizer.strips(token) for token in tokenizer.control_ids.values()):
        return None
    names = {"begin": begin, "answer": answer, "next": following, "prompt": prompt}
    controls = ControlTokens(tokenizer)
    parts = {name: list(_parts(text, controls)) for name, text in names.items()}
    return {**parts, "trims": trims, "stop_ids": sorted(template.stop_ids | tokenizer.eos_ids)}


def _parts(text: str, controls: ControlTokens) -> Iterator[str | int]:
    """Yield the control tokens in a rendered text, and the texts between them."""
    start = 0
    for first, end, token in controls.find(text):
        if first > start:
            yield text[start:first]
        yield token
        start = end
    if start < len(text):
        yield text[start:]
