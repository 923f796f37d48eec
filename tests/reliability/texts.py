"""Text of every kind: what is not text is refused, and text survives tokenization unchanged."""

import codecs
import gzip
import json
import os
import random
from pathlib import Path

from llmcli.data.tokenizers.tokenizer import Tokenizer, stream_decoder
from tests.reliability.runs import TEXT, invoke, measured


def streamed_text(where: Path, tries: int) -> list[str]:
    """R19: streamed text equals the text decoded at once, for any bytes."""
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    rng = random.Random(19)
    failures = []
    for _ in range(tries):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(40))]
        decoder = stream_decoder()
        streamed = "".join(decoder.decode(tokenizer.token_bytes[i]) for i in ids) + decoder.decode(b"", final=True)
        if streamed != b"".join(tokenizer.token_bytes[i] for i in ids).decode("utf-8", "replace"):
            failures.append(f"ids {ids[:10]}")
    return failures


def text_stays_text(where: Path, tries: int) -> list[str]:
    """R20: any text is decoded unchanged, and none becomes a control token."""
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    control = json.loads(tokenizer.to_json())["added_tokens"][0]["content"]
    rng = random.Random(20)
    pieces = [
        control, "<|im_start|>", "</s>", "<pad>", "りんご", "🍎", "\0", "\u202e", " ", "a", "\ud7ff", "\U0010ffff",
    ]  # fmt: skip
    failures = []
    for _ in range(tries):
        text = "".join(rng.choices(pieces, k=rng.randrange(1, 12)))
        ids = tokenizer.encode(text)
        if tokenizer.eos_id in ids or tokenizer.decode_bytes(ids) != text.encode("utf-8"):
            failures.append(repr(text))
    return failures


TWO_LINES = "The cat sat.\nThe dog ran.\n" * 90
GOOD: dict[str, bytes] = {
    "plain": TWO_LINES.encode(),
    "CRLF": TWO_LINES.replace("\n", "\r\n").encode(),
    "lone CR": TWO_LINES.replace("\n", "\r").encode(),
    "U+2028": TWO_LINES.replace("\n", "\u2028").encode(),
    "a byte-order mark": codecs.BOM_UTF8 + TWO_LINES.encode(),
    "UTF-16 LE": codecs.BOM_UTF16_LE + TWO_LINES.encode("utf-16-le"),
    "UTF-16 BE": codecs.BOM_UTF16_BE + TWO_LINES.encode("utf-16-be"),
    "packed": gzip.compress(TWO_LINES.encode()),
    "Latin-1": "naïve café ".encode("latin-1") * 99,
    "UTF-16 without a mark": TWO_LINES.encode("utf-16-le"),
    "Japanese": "りんごを食べる。\n".encode() * 120,
    "emoji": "🍎👩\u200d👩\u200d👧🇯🇵 ".encode() * 120,
    "one line": b"word " * 2000,
    "no spaces": "".join(map(str, range(2000))).encode(),
    "escape codes": b"\x1b[31mred\x1b[0m \x07\x08 \x9b".replace(b"\x9b", "\x9b".encode()) * 120,
    "control tokens": b"a<|endoftext|>b</s><pad>" * 120,
    "bidirectional": "\u202eabc\u202c ".encode() * 120,
    "combining": "e\u0301a\u0308\u0323".encode() * 200,
    "private and unassigned": "\ue000\U0010ffff\ufffe\ufdd0 ".encode() * 120,
    "one letter": b"a" * 5000,
    "white space only": b" \n\t" * 1200,
    "code": b"def f(x):\n\treturn {x: [1, 2]}\n" * 90,
}
CONVERTED = {"packed", "a byte-order mark", "UTF-16 LE", "UTF-16 BE", "Latin-1", "UTF-16 without a mark"}
BAD: dict[str, bytes] = {
    "nothing": b"",
    "a mark alone": codecs.BOM_UTF8,
    "one letter alone": b"a",
    "a few letters": b"abc",
    "NUL": b"text\0text" * 99,
    "Shift-JIS": "りんご".encode("shift-jis") * 99,
    "half a character": TWO_LINES.encode() + "り".encode()[:2],
    "an encoded surrogate": b"\xed\xa0\x80" * 99,
    "too long a code": b"\xc0\xaf" * 99,
    "cut gzip": gzip.compress(os.urandom(5000))[:-900],
    "damaged gzip": gzip.compress(TWO_LINES.encode())[:20] + b"x" * 50,
    "random bytes": random.Random(13).randbytes(5000),
    "a program": b"\x7fELF\x02\x01\x01" + bytes(500),
}


def corpora(where: Path, tries: int) -> list[str]:
    """R13: texts of every kind are trained on or refused in one line, and are decoded byte for byte."""
    failures = []
    model = where / "m.safetensors"
    for name, data in (GOOD | BAD).items():
        path = where / "c.txt"
        path.write_bytes(data)
        answer = invoke("train", str(path), "-o", str(model), "--steps", "2", "--threads", "1", "-q", "--force")
        expected = 0 if name in GOOD else 1
        line = answer.exit_code == 0 or (answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1)
        if answer.exit_code != expected or not line:
            failures.append(f"{name}: {answer.exit_code}, {answer.stderr!r}, {answer.exception!r}")
        elif name in GOOD and name not in CONVERTED:
            ids = str(json.loads(invoke("tokenize", "-", "-m", str(model), "--json", stdin=data).stdout)["ids"])
            back = invoke("tokenize", "-m", model, "--decode", "-", stdin=ids.encode())
            if back.stdout_bytes.removesuffix(b"\n") != data.removesuffix(b"\n"):
                failures.append(f"{name}: was decoded as {back.stdout_bytes[:80]!r}, {back.stderr[-200:]!r}")
    return failures + (_one_line_of_200_mb(where) if tries > 1 else [])


def _one_line_of_200_mb(where: Path) -> list[str]:
    path = where / "long.txt"
    with open(path, "wb") as file:
        for _ in range(200):
            file.write(b"a" * 1_000_000)
    code, stderr, megabytes, _ = measured(where, "train", str(path), "--dry-run", "--steps", "1")
    path.unlink()
    if code not in (0, 1) or "Traceback" in stderr or megabytes > 1500:
        return [f"a line of 200 MB: {code}, {megabytes:.0f} MB, {stderr[-200:]!r}"]
    return []
