"""`llm cache`: what is kept of long texts, and its removal."""

import json
import re
from pathlib import Path

import pytest

from llmcli.data.tokens import corpus_tokens
from llmcli.formats.loading import load
from tests.conftest import TEXT, Llm


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, which also short texts use."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus_tokens, "PIECE_BYTES", 1000)
    monkeypatch.setattr(corpus_tokens, "CACHED_BYTES", 0)
    return tmp_path / "cache" / "llmcli"


SMALL = ("--steps", 2, "--layers", 1, "--width", 16, "--context", 16, "--threads", 1)


def train(llm: Llm, vocab_size: int = 280) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    Path("d.txt").write_text(TEXT[:1500], "utf-8")
    answer = llm("train", "c.txt", "d.txt", *SMALL, "-q", "--force", "--vocab-size", vocab_size)
    assert answer.exit_code == 0, answer.stderr


@pytest.mark.slow
def test_a_run_leaves_files_that_are_listed(llm: Llm, own_cache: Path) -> None:
    assert llm("cache").stdout == ""
    train(llm)
    (file,) = own_cache.iterdir()
    size = file.stat().st_size
    listed = json.loads(llm("cache", "--json").stdout)
    assert set(listed) == {"directory", "bytes", "limit", "texts"}
    assert (listed["directory"], listed["bytes"]) == (str(own_cache), size)
    (text,) = listed["texts"]
    assert (text["text"], text["bytes"]) == ("c.txt and 1 more", size)
    assert text["tokens"] == load("model.safetensors").record.train_tokens
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", text["used"])
    names, row = llm("cache").stdout.splitlines()
    assert names.split("\t") == ["text", "tokenizer", "tokens", "size", "used"]
    assert row.split("\t")[:2] == ["c.txt and 1 more", text["tokenizer"]]
    assert f"{own_cache}: " in llm("cache").stderr and " of at most " in llm("cache").stderr
    train(llm, vocab_size=290)  # each tokenizer has a row
    (own_cache / "x.tokens").write_bytes(b"nothing")
    texts = json.loads(llm("cache", "--json").stdout)["texts"]
    assert sorted(text["text"] for text in texts) == ["c.txt and 1 more", "c.txt and 1 more", "damaged"]
    assert len({text["tokenizer"] for text in texts}) == 3


def test_without_a_home_directory_the_error_says_what_to_set(llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcli.cli.commands.cache.cache_directory", lambda: None)
    answer = llm("cache")
    assert answer.exit_code == 1 and "set XDG_CACHE_HOME" in answer.stderr
