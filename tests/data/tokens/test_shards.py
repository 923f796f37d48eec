"""Token shards: what is read from the files is what was written, in any order."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.tokens import shards as token_shards
from llmcli.data.tokens.shards import HEADER_BYTES, Shard, TokenShards, open_shard, read_header, shard_header
from llmcli.errors import LLMError


def write(path: Path, numbers: list[int], dtype: str = "<u2", seen: bytes = b"ab", text: str = "a.txt") -> Path:
    tokens = np.array(numbers, dtype).tobytes()
    shard = Shard(None, 0, dtype, len(numbers), 2 * len(numbers), seen)
    path.write_bytes(shard_header(shard, tokens, {"text": text, "tokenizer": "0" * 64}) + tokens)
    return path


def shards_of(directory: Path, *numbers: list[int]) -> list[Shard]:
    return [open_shard(write(directory / f"{i}.tokens", one)) for i, one in enumerate(numbers)]


@pytest.mark.parametrize(("dtype", "last"), [("<u2", 65_535), ("<u4", 2**32 - 1)])
def test_a_shard_is_read_as_it_was_written(tmp_path: Path, dtype: str, last: int) -> None:
    path = write(tmp_path / "s", [7, 0, last], dtype)
    shard = open_shard(path)
    tokens = TokenShards([shard])[:]
    assert tokens.tolist() == [7, 0, last] and tokens.dtype == dtype
    assert (shard.count, shard.text_bytes, shard.seen_bytes) == (3, 6, b"ab")
    assert path.stat().st_size == HEADER_BYTES + 3 * np.dtype(dtype).itemsize
    assert read_header(path)["text"] == "a.txt"


def test_a_long_name_of_a_text_fits_into_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "s", [1], seen=bytes(range(256)), text="🍎" * 5000)
    assert TokenShards([open_shard(path)])[:].tolist() == [1]


def test_a_damaged_shard_is_not_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "s", [1, 2, 3])
    before = path.read_bytes()
    damaged = [before[:-1], before[:HEADER_BYTES], before + b"\0\0", before.replace(b'"format": 2', b'"format": 1')]
    fields = len(before[:HEADER_BYTES].rstrip())
    for position in (*range(fields), HEADER_BYTES, HEADER_BYTES + 5):  # also what the header says of the text
        damaged.append(before[:position] + bytes([before[position] ^ 1]) + before[position + 1 :])
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(ValueError):
            open_shard(path)


def test_a_shard_that_changes_during_a_run_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_shards, "OPEN_FILES", 1)
    shards = shards_of(tmp_path, [1, 2], [3, 4])
    path = tmp_path / "0.tokens"
    tokens = TokenShards(shards, lambda index: open_shard(write(path, [1, 2])))
    assert tokens[0:4].tolist() == [1, 2, 3, 4]
    os.utime(path, (1, 1))  # by another run that uses it
    assert tokens[0:4].tolist() == [1, 2, 3, 4]
    write(tmp_path / "other", [7, 7]).replace(path)
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES)
        file.write(b"\5")
    assert tokens[0:4].tolist() == [1, 2, 3, 4]


@settings(max_examples=80, deadline=None)
@given(data=st.data(), lengths=st.lists(st.integers(0, 9), min_size=1, max_size=9), most=st.integers(1, 9))
def test_shards_are_one_sequence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, lengths: list[int], most: int
) -> None:
    directory = tmp_path_factory.mktemp("shards")
    numbers = np.arange(sum(lengths)).tolist()
    ends = np.cumsum(lengths)
    shards = shards_of(directory, *(numbers[end - length : end] for end, length in zip(ends, lengths, strict=True)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_shards, "OPEN_FILES", most)
        tokens = TokenShards(shards)
        assert len(tokens) == len(numbers)
        first, last = data.draw(st.integers(0, 50)), data.draw(st.integers(0, 50))
        assert tokens[first:last].tolist() == numbers[first:last]
        if numbers:
            where = np.array(data.draw(st.lists(st.integers(0, len(numbers) - 1), max_size=12)), int)
            assert tokens[where].tolist() == where.tolist()
            assert tokens[where[:, None] + np.zeros(3, int)].shape == (len(where), 3)
        assert len(tokens._files) <= most


def test_what_is_known_of_all_shards(tmp_path: Path) -> None:
    tokens = TokenShards(shards_of(tmp_path, [1, 2], [3]))
    assert tokens.text_bytes == 6 and tokens.seen_bytes == {97, 98} and tokens.dtype == np.uint16


def test_a_shard_that_was_removed_is_made_again(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, [1, 2], [3, 4])
    path = tmp_path / "1.tokens"
    tokens = TokenShards(shards, lambda index: open_shard(write(path, [3, 4])))
    path.unlink()
    assert tokens[0:4].tolist() == [1, 2, 3, 4] and path.exists()
    changed = TokenShards(shards, lambda index: open_shard(write(path, [3])))
    without = TokenShards(shards)
    path.unlink()
    with pytest.raises(LLMError, match="the text has changed; run the command again"):
        changed[0:4]
    path.unlink()
    with pytest.raises(LLMError, match=r"cannot read the tokens in .*1\.tokens"):
        without[0:4]


def test_a_shard_that_is_cut_off_while_it_is_open_is_made_again(tmp_path: Path) -> None:
    """Mapped into memory, it would end the process with SIGBUS."""
    (shard,) = shards_of(tmp_path, list(range(10_000)))
    path = tmp_path / "0.tokens"
    tokens = TokenShards([shard], lambda index: open_shard(write(path, list(range(10_000)))))
    without = TokenShards([shard])
    assert tokens[:2].tolist() == without[:2].tolist() == [0, 1]
    os.truncate(path, HEADER_BYTES + 4)
    assert without[:2].tolist() == [0, 1]
    with pytest.raises(LLMError, match=r"cannot read the tokens in .*0\.tokens: it was cut off"):
        without[9_998:]
    assert tokens[9_998:].tolist() == [9_998, 9_999]
