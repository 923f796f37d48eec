"""`llm tokenize`: tokens, ids and text agree; training a tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

from tests.conftest import TEXT

Llm = Callable[..., Result]


def test_json_ids_and_decode_agree(llm: Llm, tiny_model: Path) -> None:
    text = "The cat りんご 🍎 <|endoftext|>\r\n"
    found = json.loads(llm("tokenize", text, "--json").stdout)
    assert set(found) == {"ids", "tokens", "bytes"} and found["bytes"] == len(text.encode())
    ids = llm("tokenize", text, "--ids").stdout
    assert [int(i) for i in ids.split()] == found["ids"]
    assert llm("tokenize", "--decode", ids).stdout_bytes == text.encode()
    Path("t.txt").write_bytes(text.encode())
    assert llm("tokenize", "--file", "t.txt", "--ids").stdout == ids
    assert llm("tokenize", "-", "--ids", stdin=text.encode()).stdout == ids


def test_a_trained_tokenizer_is_accepted_by_train(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    assert llm("tokenize", "--train", "c.txt", "--vocab-size", 280, "-o", "tok.json").exit_code == 0
    assert llm("tokenize", "--train", "c.txt", "-o", "tok.json").exit_code == 1  # exists
    ids = llm("tokenize", "The cat", "--tokenizer", "tok.json", "--ids").stdout
    assert llm("train", "c.txt", "--tokenizer", "tok.json", "--steps", 1, "-q").exit_code == 0
    assert llm("tokenize", "The cat", "--ids").stdout == ids
    assert json.loads(llm("inspect", "--json").stdout)["config"]["vocab_size"] == 280
