"""The bytes that a token in a tokenizer.json stands for, by its name. Standard library only."""

import re

SPACE = "\u2581"  # in the names of SentencePiece's tokens
_BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>")  # of a token for one byte, where other tokens are characters


def name_to_bytes(kind: str, name: str) -> bytes:
    """The bytes of a token of a tokenizer of kind "bpe", "spm" or "char" (see `tokenizer_json.SafeTokenizer`).

    >>> name_to_bytes("bpe", "Ġcat"), name_to_bytes("spm", "▁cat"), name_to_bytes("char", "<0xE3>")
    (b' cat', b' cat', b'\\xe3')
    """
    if kind not in ("spm", "char"):
        is_byte_level = _BYTE_OF_CHARACTER.keys() >= set(name)
        return name.translate(_BYTE_CHARACTERS).encode("latin-1") if is_byte_level else name.encode("utf-8")
    byte = _BYTE_NAME.fullmatch(name)
    data = bytes([int(byte[1], 16)]) if byte else name.encode("utf-8")
    return data.replace(SPACE.encode("utf-8"), b" ") if kind == "spm" else data


def byte_level_alphabet() -> dict[str, int]:
    """The printable character that GPT-2 uses for each byte: character -> byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF_CHARACTER = byte_level_alphabet()
_BYTE_CHARACTERS = str.maketrans({character: chr(byte) for character, byte in _BYTE_OF_CHARACTER.items()})
