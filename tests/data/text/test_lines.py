"""Lines of compressed and encoded text, and the line of what is no text."""

import codecs
import gzip
import hashlib
import os
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.text import lines as text_lines
from llmcli.data.text.lines import MissingZstdError, open_lines
from llmcli.errors import LLMError
from tests.data.corpora import put

TEXT = "héllo\r\n\n one\u2028two\x0cthree\rfour\x85\nりんご🍎\n\nend"


def read(name: str) -> tuple[list[str], str]:
    with open_lines(name, Path(name)) as lines:
        return list(lines), lines.sha256


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"], ids=repr)
def test_lines_end_at_a_newline_alone_in_every_encoding(encoding: str, packed: bool, end: str) -> None:
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(encoding, b"")
    data = mark + (TEXT + end).encode(encoding)
    put("a.txt", gzip.compress(data) if packed else data)
    lines, sha256 = read("a.txt")
    assert lines == [*TEXT.split("\n")[:-1], "end" + end.removesuffix("\n")]
    assert sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("data", [b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE], ids=repr)
def test_an_empty_file_has_no_line(data: bytes) -> None:
    assert read(put("a.txt", data)) == ([], hashlib.sha256(data).hexdigest())


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.sampled_from("ab\n\ré\u2028\ufeffりん🍎"), max_size=30).map("x".__add__),
    encoding=st.sampled_from(["utf-8", "utf-16"]),
    block=st.integers(1, 9),
    peeked=st.integers(0, 5),
)
def test_where_blocks_end_does_not_matter(text: str, encoding: str, block: int, peeked: int) -> None:
    put("a.txt", text.encode(encoding))
    truth = text.split("\n")[: -1 if text.endswith("\n") else None]
    with mock.patch.object(text_lines, "BLOCK_BYTES", block), open_lines("a.txt", Path("a.txt")) as lines:
        assert text.startswith(lines.start)
        assert lines.peek(peeked) == truth[:peeked] and lines.peek(1) == truth[:1]
        assert list(lines) == truth


@pytest.mark.parametrize(
    ("data", "count", "problem"),
    [
        (b"one\ntwo\n\xffthree\n", 2, "line 3: byte 0xff is not UTF-8; convert the file first: iconv"),
        (b"one\n" * 500_000 + b"caf\xe9", 500_000, "line 500,001: byte 0xe9 is not UTF-8"),
        ("あ\nあ".encode()[:-1], 1, "line 2: byte 0xe3 is not UTF-8"),
        (codecs.BOM_UTF16_LE + "a\nb".encode("utf-16-le") + b"c", 1, "line 2: byte 0x63 is not UTF-16-LE"),
        (b"one\ntwo\0\xff\n", 1, "line 2: a zero byte, which is not text; remove it"),
        (gzip.compress(b"one\n" * 9, mtime=0)[:-4], 9, "line 10: cannot be read: Compressed file ended before"),
        (gzip.compress(os.urandom(50_000).hex().encode() + b"\n")[:-9000], 0, "line 1: cannot be read: Compressed"),
        (gzip.compress(b"one\n" * 9, mtime=0)[:-8] + bytes(8), 9, "line 10: cannot be read: CRC check failed"),
        (b"\x1f\x8b\x08", 0, "line 1: cannot be read: Compressed file ended before"),
    ],
)  # fmt: skip
def test_the_error_comes_after_the_lines_before_it(data: bytes, count: int, problem: str) -> None:
    put("a.txt", data)
    with open_lines("a.txt", Path("a.txt")) as lines:
        assert len(lines.peek(10**6)) == count
        for _ in range(count):
            next(lines)
        for _ in range(2):
            with pytest.raises(LLMError) as caught:
                next(lines)
            assert str(caught.value).startswith(f"a.txt {problem}") and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_opened_is_an_error() -> None:
    Path("d").mkdir()
    for name, problem in (("none", "cannot read none: No such file"), ("d", "d is not a regular file")):
        with pytest.raises(LLMError, match=problem), open_lines(name, Path(name)):
            pass


def test_zstd_is_read_over_several_frames() -> None:
    zstd = pytest.importorskip("backports.zstd", exc_type=ImportError)
    data = zstd.compress(b"one\ntw") + zstd.compress(b"o\n")
    assert read(put("a.zst", data)) == (["one", "two"], hashlib.sha256(b"one\ntwo\n").hexdigest())
    for damaged, problem in ((data[:-3], "line 2: cannot be read"), (data[:30] + b"\xff" * 9, "cannot be read")):
        with pytest.raises(LLMError, match=problem):
            read(put("b.zst", damaged))


def test_without_a_library_for_zstd_the_error_says_what_to_install() -> None:
    put("a b.zst", b"\x28\xb5\x2f\xfd" + bytes(9))
    missing = {"compression": None, "backports": None, "backports.zstd": None}
    with mock.patch.dict("sys.modules", missing), pytest.raises(MissingZstdError) as caught:
        read("a b.zst")
    assert str(caught.value) == (
        "reading a b.zst needs backports.zstd, which this installation lacks; install it: pip install 'llmcli[zstd]'; "
        "or unpack it: zstd -d 'a b.zst'"
    )
