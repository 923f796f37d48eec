"""Files -> text -> tokens -> batches: every byte is read once, and what is no text is named by its position."""

import codecs
import errno
import gzip
import hashlib
import io
import itertools
import os
import random
import re
import sys
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data import corpus as module
from llmcli.data.batches import Batches, Preceded, Without
from llmcli.data.corpus import Corpus, read_corpus, tokenize
from llmcli.data.tokenizer import Tokenizer
from llmcli.errors import LLMError
from tests import platforms
from tests.conftest import TEXT

SAMPLE = "héllo\r\nりんご🍎\n\n  end\r"
BPE = Tokenizer.train_bpe([TEXT], 280)
CHAR = Tokenizer.train_char([TEXT])
VARIED = st.text(st.sampled_from("ab \n\ré\u0301\ufeffりんご🍎\U0010ffff"), max_size=12)


def joined(corpus: Corpus, start: int = 0, end: int | None = None) -> str:
    return "".join(part for text in corpus.texts(start, end) for part in text)


def put(name: str, data: bytes) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name


def names(corpus: Corpus) -> list[str]:
    return [document.name for document in corpus.documents]


# ---- encodings

UTF8 = SAMPLE.encode("utf-8")
ENCODINGS = {
    "UTF-8": ("a.txt", UTF8),
    "UTF-8 with a mark": ("a.txt", codecs.BOM_UTF8 + UTF8),
    "UTF-16 LE": ("a.txt", codecs.BOM_UTF16_LE + SAMPLE.encode("utf-16-le")),
    "UTF-16 BE": ("a.txt", codecs.BOM_UTF16_BE + SAMPLE.encode("utf-16-be")),
    "gzip": ("a.txt.gz", gzip.compress(UTF8)),
    "gzip called .txt": ("a.txt", gzip.compress(UTF8)),
    "text called .gz": ("a.gz", UTF8),
    "gzip of UTF-8 with a mark": ("a.gz", gzip.compress(codecs.BOM_UTF8 + UTF8)),
    "gzip of UTF-16": ("a.gz", gzip.compress(codecs.BOM_UTF16_BE + SAMPLE.encode("utf-16-be"))),
    "two gzips one after the other": ("a.gz", gzip.compress(UTF8[:9]) + gzip.compress(UTF8[9:])),
}


@pytest.mark.parametrize("kind", ENCODINGS)
def test_the_text_is_read_to_the_letter_with_its_line_ends(kind: str) -> None:
    name, data = ENCODINGS[kind]
    corpus = read_corpus([put(name, data)])
    assert joined(corpus) == SAMPLE
    assert corpus.text_bytes == len(UTF8)
    assert [(d.name, d.text_bytes, d.sha256) for d in corpus.documents] == [
        (name, len(UTF8), hashlib.sha256(UTF8).hexdigest())
    ]
    assert corpus.skipped == ()


def test_only_the_first_byte_order_mark_is_left_out() -> None:
    put("a.txt", ("\ufeff\ufeffa\ufeff").encode())
    assert joined(read_corpus(["a.txt"])) == "\ufeffa\ufeff"


def test_text_longer_than_a_block_is_read_whole() -> None:
    text = "a" + "あ" * 360_000 + "\r\n🍎"  # each block ends inside a character
    assert len(text.encode()) > module.BLOCK
    corpus = read_corpus([put("a.txt", text.encode()), put("b.gz", gzip.compress(text.encode(), 1))])
    assert joined(corpus) == text * 2
    assert {d.sha256 for d in corpus.documents} == {hashlib.sha256(text.encode()).hexdigest()}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@settings(max_examples=40, deadline=None)
@given(text=VARIED.map("x".__add__), block=st.integers(4, 9))
def test_where_blocks_end_does_not_matter(encoding: str, text: str, block: int) -> None:
    put("a.txt", text.encode(encoding))
    with mock.patch.object(module, "BLOCK", block):
        assert joined(read_corpus(["a.txt"])) == text


# ---- what is no text


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(LLMError, match=r"^a\.txt is empty") as caught:
        read_corpus([put("a.txt", b"")])
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("data", [codecs.BOM_UTF8, codecs.BOM_UTF16_LE, gzip.compress(b"", mtime=0)], ids=repr)
def test_a_file_without_a_character_is_empty(data: bytes) -> None:
    with pytest.raises(LLMError, match="is empty"):
        read_corpus([put("a.txt", data)])


def test_an_empty_file_beside_others_is_no_document() -> None:
    corpus = read_corpus([put("a", b"a"), put("b", b""), put("c", b"c")])
    assert names(corpus) == ["a", "c"]
    assert joined(corpus) == "ac"


def test_a_missing_file_is_named() -> None:
    with pytest.raises(LLMError, match=r"no file or directory nowhere\.txt"):
        read_corpus([put("a.txt", b"a"), "nowhere.txt"])


def test_text_given_in_place_of_a_name_is_a_missing_file() -> None:
    with pytest.raises(LLMError):
        read_corpus(["Once upon a time there was a king. " * 20])


MIB = 1 << 20
INVALID = {
    "at the start": (b"\xffabc", "0xff", 0),
    "in the middle": (b"abc\x80d", "0x80", 3),
    "after Japanese": ("りんご".encode() + b"\xfe", "0xfe", 9),
    "Latin-1": (b"caf\xe9 au lait", "0xe9", 3),
    "overlong": (b"a\xc0\xaf", "0xc0", 1),
    "a surrogate": (b"ab\xed\xa0\x80", "0xed", 2),
    "cut off at the end": ("abあ".encode()[:-1], "0xe3", 2),
    "past the first block": (b"a" * MIB + b"bc\xff", "0xff", MIB + 2),
    "across two blocks": (b"a" * (MIB - 1) + b"\xe3A", "0xe3", MIB - 1),
    "across two blocks, a byte later": (b"a" * (MIB - 2) + b"\xf0\x9fA", "0xf0", MIB - 2),
    "cut off in the second block": (b"a" * (MIB + 5) + b"\xf0\x9f\x8d", "0xf0", MIB + 5),
    "cut off at the end of the first block": (b"a" * (MIB - 1) + b"\xe3", "0xe3", MIB - 1),
    "after a mark": (codecs.BOM_UTF8 + b"a\xff", "0xff", 4),
    "UTF-16 with an odd byte": (codecs.BOM_UTF16_LE + "ab".encode("utf-16-le") + b"c", "0x63", 6),
    "UTF-16 with a lone surrogate": (codecs.BOM_UTF16_BE + b"\0a\xdc\0\0b", "0xdc", 4),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("kind", INVALID)
def test_the_first_byte_that_is_no_text_is_named_by_its_position(kind: str, packed: bool) -> None:
    data, value, position = INVALID[kind]
    put("a.txt", gzip.compress(data, 1) if packed else data)
    with pytest.raises(LLMError, match=rf"a\.txt is not UTF-.*byte {value} at position {position:,};.*iconv"):
        read_corpus(["a.txt"])


@settings(max_examples=150, deadline=None)
@given(
    chunks=st.lists(
        st.binary(max_size=3) | st.sampled_from([b"\xe3\x81\x82", b"\xf0\x9f\x8d\x8e", b"\xe3\x81", b"ab"]), max_size=8
    ),
    block=st.integers(4, 7),
)
def test_any_bytes_are_the_text_that_python_reads_or_fail_where_python_fails(chunks: list[bytes], block: int) -> None:
    data = b"x" + b"".join(chunks).replace(b"\0", b"")
    put("a.txt", data)
    with mock.patch.object(module, "BLOCK", block):
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            with pytest.raises(LLMError, match=f"byte 0x{data[error.start]:02x} at position {error.start:,};"):
                read_corpus(["a.txt"])
        else:
            assert joined(read_corpus(["a.txt"])) == text


ZEROS = {
    "at the start": (b"\0", 0),
    "after ASCII": (b"abc\0def", 3),
    "after Japanese": ("あ\0".encode(), 3),
    "after a mark": (codecs.BOM_UTF8 + b"a\0", 4),
    "UTF-16 LE without a mark": ("ab".encode("utf-16-le"), 1),
    "UTF-16 BE without a mark": ("ab".encode("utf-16-be"), 0),
    "inside UTF-16": (codecs.BOM_UTF16_LE + "あ\0".encode("utf-16-le"), 4),
    "UTF-32": ("ab".encode("utf-32"), 2),
    "past the first block": (b"a" * (MIB - 1) + "あb\0".encode(), MIB + 3),
}


@pytest.mark.parametrize("kind", ZEROS)
def test_a_zero_byte_is_named_by_its_position(kind: str) -> None:
    data, position = ZEROS[kind]
    with pytest.raises(LLMError, match=rf"a\.bin is not text: a zero byte at position {position:,} .*iconv"):
        read_corpus([put("a.bin", data)])


@platforms.named_pipes
def test_a_fifo_is_refused_without_waiting_for_a_writer(no_hang: None) -> None:
    os.mkfifo("pipe")
    with pytest.raises(LLMError, match="pipe is not a regular file"):
        read_corpus(["pipe"])


PACKED = gzip.compress(TEXT.encode())
DAMAGED = {
    "two bytes": PACKED[:2],
    "half its header": PACKED[:6],
    "its header": PACKED[:10],
    "half": PACKED[: len(PACKED) // 2],
    "no checksum": PACKED[:-8],
    "no length": PACKED[:-1],
    "another checksum": PACKED[:-8] + bytes(8),
    "an unknown method": PACKED[:2] + b"\x05" + PACKED[3:],
    "damaged data": PACKED[:10] + b"\xff" * 40,
    "damaged later": gzip.compress(random.Random(0).randbytes(9000).hex().encode())[:5000] + b"\xff" * 4000,
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_gzip_cannot_be_read(kind: str) -> None:
    with pytest.raises(LLMError, match=r"a\.gz"):
        read_corpus([put("a.gz", DAMAGED[kind])])


# ---- finding files


def test_several_files_come_in_the_order_of_their_names_on_the_command_line() -> None:
    corpus = read_corpus([put("b", b"second "), put("a", b"first")])
    assert names(corpus) == ["b", "a"]
    assert joined(corpus) == "second first"


def test_a_directory_gives_its_files_sorted_without_the_hidden_ones() -> None:
    for name in ("d/b.txt", "d/a.md", "d/sub/deep/c", "d/.hidden", "d/.git/config", "d/sub/.x/y"):
        put(name, name.encode())
    corpus = read_corpus(["d"])
    assert names(corpus) == ["d/a.md", "d/b.txt", "d/sub/deep/c"]
    assert joined(corpus) == "d/a.mdd/b.txtd/sub/deep/c"
    assert corpus.skipped == ()


def test_a_hidden_directory_that_is_named_is_read() -> None:
    put(".d/a.txt", b"a")
    assert names(read_corpus([".d"])) == [".d/a.txt"]


@platforms.named_pipes
def test_what_a_directory_holds_that_is_no_text_is_left_out_and_said(no_hang: None) -> None:
    put("d/a.txt", b"text")
    put("d/b.bin", b"\x01\x02xx\0\0")
    put("d/c.latin1", b"caf\xe9")
    os.mkfifo("d/pipe")
    corpus = read_corpus(["d"])
    assert names(corpus) == ["d/a.txt"]
    assert [line.split(" ")[0] for line in corpus.skipped] == ["d/b.bin", "d/c.latin1"]
    assert "zero byte at position 4" in corpus.skipped[0]
    assert "0xe9 at position 3" in corpus.skipped[1]


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_gzip_in_a_directory_is_left_out_and_said(kind: str) -> None:
    put("d/a.txt", b"text")
    put("d/b.gz", DAMAGED[kind])
    corpus = read_corpus(["d"])
    assert names(corpus) == ["d/a.txt"]
    assert len(corpus.skipped) == 1
    assert "d/b.gz" in corpus.skipped[0]


def test_a_directory_without_text_is_refused_and_says_why() -> None:
    put("d/b.bin", b"\0")
    with pytest.raises(LLMError, match=r"no text found in d \(1 files .*d/b\.bin is not text"):
        read_corpus(["d"])
    Path("empty").mkdir()
    with pytest.raises(LLMError, match="no text found in empty;"):
        read_corpus(["empty"])


def test_a_file_that_is_named_is_refused_where_one_in_a_directory_is_left_out() -> None:
    put("d/a.txt", b"text")
    put("d/b.bin", b"\0")
    assert names(read_corpus(["d"])) == ["d/a.txt"]
    with pytest.raises(LLMError, match=r"d/b\.bin is not text"):
        read_corpus(["d/a.txt", "d/b.bin"])


def test_a_glob_in_quotes_is_matched_here_and_sorted() -> None:
    for name in ("b.txt", "a.txt", "c.md", "d/e.txt", "d/f/g.txt"):
        put(name, name.encode())
    assert names(read_corpus(["*.txt"])) == ["a.txt", "b.txt"]
    assert names(read_corpus(["[bc].*"])) == ["b.txt", "c.md"]
    assert names(read_corpus(["**/*.txt"])) == ["a.txt", "b.txt", "d/e.txt", "d/f/g.txt"]
    assert names(read_corpus(["d*"])) == ["d/e.txt", "d/f/g.txt"]


def test_a_glob_that_matches_nothing_is_refused() -> None:
    with pytest.raises(LLMError, match=r"nothing matches \*\.txt"):
        read_corpus(["*.txt"])


def test_a_file_whose_name_looks_like_a_glob_is_that_file() -> None:
    put("[a].txt", b"brackets")
    put("a.txt", b"letter")
    assert joined(read_corpus(["[a].txt"])) == "brackets"


@platforms.symbolic_links
def test_a_file_named_twice_is_read_once() -> None:
    put("d/a.txt", b"a")
    put("d/b.txt", b"b")
    Path("link").symlink_to("d/a.txt")
    corpus = read_corpus(["d/a.txt", "d/../d/a.txt", "link", "d", "d/*.txt"])
    assert names(corpus) == ["d/a.txt", "d/b.txt"]
    assert joined(corpus) == "ab"
    assert len(corpus.skipped) == 5
    assert all("read once" in line for line in corpus.skipped)


def test_two_files_of_the_same_text_are_two_documents() -> None:
    assert joined(read_corpus([put("a", b"same"), put("b", b"same")])) == "samesame"


@pytest.mark.parametrize("kind", ENCODINGS)
def test_standard_input_is_a_file_that_can_be_read_again(kind: str) -> None:
    corpus = read_corpus(["-"], io.BytesIO(ENCODINGS[kind][1]))
    assert names(corpus) == ["standard input"]
    assert joined(corpus) == joined(corpus) == SAMPLE
    assert corpus.documents[0].sha256 == hashlib.sha256(UTF8).hexdigest()


def test_standard_input_is_the_process_s_own_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from outside")))
    assert joined(read_corpus([put("a", b"first "), "-"])) == "first from outside"


def test_bad_bytes_in_standard_input_are_told_as_such() -> None:
    with pytest.raises(LLMError, match=r"^standard input is not UTF-8 text: byte 0xff at position 2"):
        read_corpus(["-"], io.BytesIO(b"ab\xff"))
    with pytest.raises(LLMError, match=r"^standard input is empty"):
        read_corpus(["-"], io.BytesIO(b""))


@pytest.mark.skipif(os.name == "nt", reason="a file in use has a name there, and goes when it is closed")
@pytest.mark.parametrize("kind", ENCODINGS)
def test_a_copy_has_no_name_so_that_a_killed_run_leaves_none(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", "tmp")
    name, data = ENCODINGS[kind]
    corpora = [read_corpus(["-"], io.BytesIO(data)), read_corpus([put(name, data)])]
    assert [joined(corpus) for corpus in corpora] == [SAMPLE] * 2
    assert list(Path("tmp").iterdir()) == []


def test_a_copy_is_closed_with_the_last_document(monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    real = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: files.append(real(**options)) or files[-1])
    corpus = read_corpus([put(f"{n}.gz", gzip.compress(b"text")) for n in range(50)])
    assert len(files) == 1  # for fifty documents: open files are scarce
    [file] = files
    closed = weakref.ref(file)
    del file, files[:]
    assert joined(corpus) == "text" * 50
    del corpus
    assert closed() is None


def test_plain_text_has_no_copy() -> None:
    corpus = read_corpus([put("a", UTF8), put("b", codecs.BOM_UTF8 + UTF8)])
    assert [document.copy for document in corpus.documents] == [None, None]


class Full(io.BytesIO):
    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("names", [["a.gz"], ["d"], ["-"]], ids=str)
def test_a_full_disk_for_the_copy_is_told_with_the_way_out(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the file lies in a directory, and would be left out if it were no text."""
    put("a.gz", PACKED)
    put("d/a.gz", PACKED)
    put("d/b.txt", b"text")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(LLMError, match=f"decoded text in {re.escape(tempfile.gettempdir())}: No space left.*TMPDIR"):
        read_corpus(names, io.BytesIO(b"text"))


def test_no_place_for_temporary_files_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: nowhere())
    with pytest.raises(LLMError, match=r"in a temporary directory: No usable.*TMPDIR"):
        read_corpus([put("a.gz", PACKED)])
    with pytest.raises(LLMError, match=r"the tokens in a temporary directory: No usable.*TMPDIR"):
        tokenize(iter([iter(["abc"])]), BPE)


def test_what_turned_out_to_be_no_text_leaves_nothing_in_the_copy() -> None:
    put("d/a.gz", gzip.compress(b"first "))
    put("d/b.gz", gzip.compress(b"x" * 5000 + b"\xff"))
    put("d/c.gz", PACKED[: len(PACKED) // 2])
    put("d/d.gz", gzip.compress(b"last"))
    corpus = read_corpus(["d"])
    assert (names(corpus), joined(corpus)) == (["d/a.gz", "d/d.gz"], "first last")
    assert corpus.documents[0].copy is not None and corpus.documents[0].copy.size == len("first last")


# ---- one pass


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects how many bytes each reading gave: of packed files, and of the files themselves."""
    sizes: list[int] = []
    real_gzip, real_read = gzip.GzipFile.read, module._read

    def read(self: gzip.GzipFile, size: int = -1) -> bytes:
        data = real_gzip(self, size)
        sizes.append(len(data))
        return data

    def read_plain(file: io.BufferedReader, size: int, name: str) -> bytes:
        data = real_read(file, size, name)
        if not isinstance(file, gzip.GzipFile):
            sizes.append(len(data))
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", read)
    monkeypatch.setattr(module, "_read", read_plain)
    return sizes


@pytest.mark.parametrize("kind", ["gzip", "UTF-16", "gzip of UTF-16"])
def test_a_text_that_must_be_decoded_is_decoded_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often parts of it are read afterwards; each part is that of the plain text."""
    text = "".join(f"{n}りんご🍎é\n" for n in range(20_000))
    data = {"gzip": text.encode(), "UTF-16": text.encode("utf-16"), "gzip of UTF-16": text.encode("utf-16")}[kind]
    sizes = counted(monkeypatch)
    corpus = read_corpus([put("a", gzip.compress(data) if "gzip" in kind else data)])
    parts = [list(map("".join, corpus.spread(1000, 300_000, most))) for most in (5000, 20_000, 299_000)]
    corpus.data(0, 200_000)
    assert sum(sizes) == len(data)
    plain = read_corpus([put("plain", text.encode())])
    assert parts == [list(map("".join, plain.spread(1000, 300_000, most))) for most in (5000, 20_000, 299_000)]
    assert joined(corpus) == text and corpus.documents[0].sha256 == plain.documents[0].sha256


def test_of_a_part_no_more_is_read_than_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = read_corpus([put("a", b"x" * 5_000_000)])
    sizes = counted(monkeypatch)
    assert sum(len("".join(part)) for part in corpus.spread(0, 5_000_000, 6400)) == 6400
    assert sum(sizes) <= 64 * (100 + 3 + 4)


# ---- positions


def character_end(data: bytes, position: int) -> int:
    """By trying: the first place from `position` on where the bytes before it are whole characters."""
    while True:
        try:
            data[:position].decode("utf-8")
            return position
        except UnicodeDecodeError:
            position += 1


@settings(max_examples=120, deadline=None)
@given(
    texts=st.lists(VARIED.map("x".__add__), min_size=1, max_size=4),
    fractions=st.lists(st.floats(0, 1), max_size=4),
    block=st.integers(4, 20),
)
def test_splitting_at_any_bytes_loses_and_repeats_nothing(texts: list[str], fractions: list[float], block: int) -> None:
    corpus = read_corpus([put(f"{i}.txt", text.encode()) for i, text in enumerate(texts)])
    whole = "".join(texts).encode()
    assert corpus.text_bytes == len(whole)
    edges = [0, *sorted(round(f * len(whole)) for f in fractions), len(whole)]
    with mock.patch.object(module, "BLOCK", block):
        for low, high in itertools.pairwise(edges):
            assert joined(corpus, low, high).encode() == whole[character_end(whole, low) : character_end(whole, high)]
        assert "".join(joined(corpus, low, high) for low, high in itertools.pairwise(edges)).encode() == whole


def test_every_split_of_a_small_corpus() -> None:
    corpus = read_corpus([put("a", "aあ".encode()), put("b", "🍎\n".encode()), put("c", b"xyz")])
    whole = "aあ🍎\nxyz"
    parts = [(joined(corpus, 0, k), joined(corpus, k)) for k in range(13)]
    lengths = [0, 1, 2, 2, 2, 3, 3, 3, 3, 4, 5, 6, 7]  # characters up to the end of the one that byte k is in
    assert parts == [(whole[:n], whole[n:]) for n in lengths]


@pytest.mark.parametrize("kind", ["plain", "with a mark", "packed", "UTF-16"])
def test_a_part_is_the_same_however_the_file_holds_the_text(kind: str) -> None:
    text = "".join(f"{n}りんご🍎é\n" for n in range(300))
    data = {
        "plain": text.encode("utf-8"),
        "with a mark": codecs.BOM_UTF8 + text.encode("utf-8"),
        "packed": gzip.compress(text.encode("utf-8")),
        "UTF-16": codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    }[kind]
    corpus, whole = read_corpus([put("a.txt", data)]), text.encode("utf-8")
    assert corpus.text_bytes == len(whole)
    for start in [*range(40), 1000, 1001, 1002, 1003, len(whole) - 2]:
        wanted = whole[character_end(whole, start) : character_end(whole, start + 50)].decode("utf-8")
        assert joined(corpus, start, start + 50) == wanted


def test_a_part_far_into_a_file_is_read_without_what_stands_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = read_corpus([put("a.txt", b"x" * 5000 + b"needle" + b"y" * 5000)])
    monkeypatch.setattr(module, "BLOCK", 100)
    read = []
    real = module._read
    monkeypatch.setattr(module, "_read", lambda *words: read.append(len(part := real(*words))) or part)
    assert joined(corpus, 5000, 5006) == "needle"
    assert sum(read) <= 4 + 2 * 100


def test_of_a_long_text_parts_are_taken_evenly() -> None:
    text = "".join(f"{n:05d}" for n in range(2000))  # 10,000 bytes; each five tell their place
    corpus = read_corpus([put("a.txt", text.encode())])
    parts = ["".join(part) for part in corpus.spread(100, 9000, 640)]
    assert [len(part) for part in parts] == [10] * 64
    starts = [text.index(part) for part in parts]
    assert (starts[0], starts[-1]) == (100, 8990)  # nothing from beyond the ends
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert max(gaps) - min(gaps) <= 10
    assert ["".join(part) for part in corpus.spread(100, 740, 640)] == [text[100:740]]


def test_documents_stay_apart_in_a_part_of_the_corpus() -> None:
    corpus = read_corpus([put("a", b"aaaa"), put("b", b"bbbb"), put("c", b"cccc")])
    assert ["".join(text) for text in corpus.texts(2, 9)] == ["aa", "bbbb", "c"]
    assert ["".join(text) for text in corpus.texts(4, 8)] == ["bbbb"]
    assert ["".join(text) for text in corpus.texts(4, 4)] == []
    assert ["".join(text) for text in corpus.texts(12)] == []


def test_a_start_inside_the_last_character_of_a_document_makes_no_empty_document() -> None:
    corpus = read_corpus([put("a", "aあ".encode()), put("b", b"xyz")])
    assert list(tokenize(corpus.texts(2), CHAR)) == CHAR.encode("xyz")


# ---- tokens


@pytest.mark.parametrize("tokenizer", [BPE, CHAR], ids=["bpe", "char"])
def test_tokens_are_those_of_each_document_with_one_end_of_text_between_two(tokenizer: Tokenizer) -> None:
    texts = ["The cat sat.\n", "りんご🍎<|endoftext|>", " ", TEXT]
    corpus = read_corpus([put(f"{i}", text.encode()) for i, text in enumerate(texts)])
    tokens = tokenize(corpus.texts(), tokenizer)
    wanted = [tokenizer.encode(text) for text in texts]
    assert tokens.tolist() == [*wanted[0], 0, *wanted[1], 0, *wanted[2], 0, *wanted[3]]
    assert tokens.dtype == np.uint16
    assert (tokens == tokenizer.eos_id).sum() == len(texts) - 1


def test_tokens_of_one_document_are_its_encoding_whatever_its_blocks() -> None:
    put("a", TEXT.encode())
    with mock.patch.object(module, "BLOCK", 10):
        assert tokenize(read_corpus(["a"]).texts(), BPE).tolist() == BPE.encode(TEXT)


def test_no_text_gives_no_tokens() -> None:
    tokens = tokenize(iter([]), BPE)
    assert (tokens.shape, tokens.dtype) == ((0,), np.uint16)


class Wide:
    """An encoder that gives each character's code point."""

    eos_id = 0

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode_stream(self, texts: Iterable[str]) -> Iterator[array]:
        for text in texts:
            yield array("I", map(ord, text))


@pytest.mark.parametrize(("size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_two_bytes_hold_a_token_up_to_65536_of_them(size: int, dtype: type) -> None:
    last = chr(size - 1)
    tokens = tokenize(iter([iter(["a", last]), iter(["b"])]), Wide(size))
    assert tokens.dtype == dtype
    assert tokens.tolist() == [97, size - 1, 0, 98]


def test_a_full_disk_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(LLMError, match=f"{re.escape(tempfile.gettempdir())}: No space left.*TMPDIR"):
        tokenize(iter([iter(["abc"])]), BPE)


# ---- batches


def counting(length: int) -> np.ndarray:
    """Tokens that say where they stand."""
    return np.arange(length, dtype=np.uint16)


@settings(max_examples=120, deadline=None)
@given(
    context=st.integers(1, 40),
    more=st.integers(1, 300),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**31 - 1),
    step=st.integers(0, 500),
)
def test_a_batch_is_slices_of_the_tokens_and_depends_on_seed_and_step_alone(
    context: int, more: int, batch_size: int, seed: int, step: int
) -> None:
    tokens = counting(context + more)
    batches = Batches(tokens, context, batch_size, seed)
    found = batches.batch(step)
    assert found.shape == (batch_size, context + 1)
    assert found.dtype == np.int64
    assert (found == (found[:, :1] + np.arange(context + 1)) % len(tokens)).all()
    assert found.min() >= 0
    assert found.max() < len(tokens)
    batches.batch(step + 1)
    assert np.array_equal(batches.batch(step), found)
    assert np.array_equal(Batches(tokens.copy(), context, batch_size, seed).batch(step), found)


def starts(batches: Batches, first: int, count: int) -> list[int]:
    """Where the windows of some visits start (of counting tokens, one window in a batch)."""
    return [int(batches.batch(step)[0, 0]) for step in range(first, first + count)]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), window=st.sampled_from([1, 2, 3, 5]), cuts=st.sampled_from([1, 2, 4, 6]))
def test_an_epoch_has_each_token_as_a_target_once_whatever_the_windows(
    data: st.DataObject, window: int, cuts: int
) -> None:
    """Up to a rest that fills no block; the length of the windows is drawn anew for each step."""
    context = window * cuts
    tokens = data.draw(st.integers(context + 1, 12 * context))
    batch_size = data.draw(st.integers(1, 5))
    batches = Batches(counting(tokens), context, batch_size, seed=data.draw(st.integers(0, 99)))
    lengths = [length for length in range(1, context + 1) if context % length == 0]
    targets: list[int] = []
    steps = 3 * batches.blocks  # so that epochs end where steps do, after batch_size of them or sooner
    for step in range(steps):
        found = batches.batch(step, data.draw(st.sampled_from(lengths)))
        assert found[:, 1:].size == batch_size * context  # every batch has the same number of tokens
        assert ((found[:, 1:] - found[:, :-1]) % tokens == 1).all()  # neighbours, the last and the first too
        targets += found[:, 1:].ravel().tolist()
    per_epoch = batches.blocks * context
    assert tokens - context < per_epoch <= tokens
    for first in range(0, len(targets), per_epoch):
        epoch = targets[first : first + per_epoch]
        assert len(set(epoch)) == len(epoch) == per_epoch


def test_what_an_epoch_leaves_out_is_elsewhere_in_the_next() -> None:
    batches = Batches(counting(103), 10, 1, seed=4)
    left = []
    for epoch in range(20):
        seen = {int(t) for step in range(10) for t in batches.batch(10 * epoch + step)[0, 1:]}
        left.append(frozenset(range(103)) - seen)
    assert {len(rest) for rest in left} == {3} and len(set(left)) > 10


def test_short_windows_are_the_blocks_cut() -> None:
    batches = Batches(counting(1000), 12, 3, seed=8)
    for step in (0, 5, 27, 28, 200):
        blocks = batches.batch(step)
        for window in (1, 2, 4, 6):
            cut = batches.batch(step, window)
            assert cut.shape == (36 // window, window + 1)
            assert np.array_equal(cut[:, :-1].reshape(3, 12), blocks[:, :-1])
            assert np.array_equal(cut[:, 1:].reshape(3, 12), blocks[:, 1:])
    with pytest.raises(ValueError, match="5 tokens do not fill blocks of 12"):
        batches.batch(0, 5)


def test_epochs_and_seeds_have_orders_and_offsets_of_their_own() -> None:
    batches = Batches(counting(1000), 10, 1, seed=1)
    epochs = [starts(batches, epoch * batches.blocks, batches.blocks) for epoch in range(6)]
    assert len({tuple(visit) for visit in epochs}) == 6
    assert len({min(visit) for visit in epochs}) > 1
    assert starts(Batches(counting(1000), 10, 1, seed=2), 0, batches.blocks) not in epochs
    assert epochs[0] != sorted(epochs[0])


def test_the_size_of_a_batch_does_not_change_the_visits() -> None:
    one, four = Batches(counting(87), 8, 1, seed=3), Batches(counting(87), 8, 4, seed=3)
    assert one.blocks == 10  # so the third batch of four goes over into the next epoch
    assert [int(start) for step in range(5) for start in four.batch(step)[:, 0]] == starts(one, 0, 20)


@pytest.mark.parametrize("context", [1, 2, 8])
def test_the_least_text_for_a_window_is_one_token_more_than_the_context(context: int) -> None:
    batches = Batches(counting(context + 1), context, 3, seed=0)
    text = [*range(context + 1)]
    turned = [text[n:] + text[:n] for n in range(context + 1)]
    for step in range(4):
        assert all(row in turned for row in batches.batch(step).tolist())


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(0, 5))
def test_tokens_without_some_runs_are_those_that_remain(data: st.DataObject, width: int, runs: int) -> None:
    gaps = data.draw(st.lists(st.integers(0, 9), min_size=runs + 1, max_size=runs + 1))
    firsts = np.cumsum(gaps[:-1], dtype=np.int64) + width * np.arange(runs)
    tokens = counting(sum(gaps) + width * runs + 1)
    wanted = np.delete(tokens, (firsts[:, None] + np.arange(width)).ravel())
    found = Without(tokens, firsts, width)
    assert len(found) == len(wanted)
    assert found[np.arange(len(wanted))].tolist() == wanted.tolist()
    places = np.random.default_rng(0).integers(len(wanted), size=(4, 3))
    assert np.array_equal(found[places], wanted[places])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 20), st.integers(0, 22), st.integers(0, 22))
def test_a_token_before_others_is_the_first_of_their_slices(count: int, start: int, stop: int) -> None:
    tokens = counting(count) + np.uint16(100)
    whole = np.concatenate([[7], tokens])
    found = Preceded(7, tokens)
    assert len(found) == len(whole)
    assert found[start:stop].tolist() == whole[start:stop].tolist()
    assert found[start:stop].dtype == tokens.dtype


def test_mapped_tokens_give_the_same_batches_as_those_in_memory() -> None:
    tokens = tokenize(read_corpus([put("a", TEXT.encode())]).texts(), BPE)
    mapped, held = Batches(tokens, 16, 4, seed=9), Batches(np.array(tokens), 16, 4, seed=9)
    for step in range(5):
        assert np.array_equal(mapped.batch(step), held.batch(step))


# ---- tokens taken apart

PARTS = np.array([[-1, -1], [-1, -1], [-1, -1], [1, 2], [3, 1], [-1, -1]])  # 3 is 1 2, 4 is 3 1
SPELLED = {0: "x", 1: "a", 2: "b", 3: "ab", 4: "aba", 5: "c"}


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_rows_with_tokens_taken_apart_spell_the_same_text(seed: int, share: float) -> None:
    ids = np.random.default_rng(seed).integers(0, 6, (5, 17))
    found = module._taken_apart(ids, PARTS, share, np.random.default_rng(seed))
    assert found.shape == ids.shape
    for before, after in zip(ids.tolist(), found.tolist(), strict=True):
        text, again = ("".join(SPELLED[i] for i in row) for row in (before, after))
        assert text.startswith(again)


def test_a_share_of_none_leaves_tokens_and_of_all_takes_each_merged_one_apart() -> None:
    ids = np.array([[4, 3, 0, 5, 1, 2]])
    assert module._taken_apart(ids, PARTS, 0.0, np.random.default_rng(0)).tolist() == ids.tolist()
    assert module._taken_apart(ids, PARTS, 1.0, np.random.default_rng(0)).tolist() == [[3, 1, 1, 2, 0, 5]]


def test_the_share_taken_apart_is_the_one_asked_for() -> None:
    ids = np.full((100, 101), 3)
    found = module._taken_apart(ids, PARTS, 0.25, np.random.default_rng(0))
    # of 100 whole or taken-apart tokens in a row of about 125 parts: five standard deviations
    whole, first = (found == 3).sum(), (found == 1).sum()
    assert abs(first / (first + whole) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 8000)


def test_batches_take_apart_the_same_tokens_for_the_same_seed_and_step() -> None:
    tokens = np.tile(np.array([4, 3, 0, 5, 1, 2], np.uint16), 40)
    plain = Batches(tokens, 16, 2, 7)
    split = Batches(tokens, 16, 2, 7, PARTS)
    found = split.batch(3, 8, 0.5)
    assert found.shape == (4, 9)
    assert np.array_equal(found, Batches(tokens, 16, 2, 7, PARTS).batch(3, 8, 0.5))
    assert not np.array_equal(found, split.batch(3, 8)) and np.array_equal(split.batch(3, 8), plain.batch(3, 8))
    assert not np.array_equal(found, Batches(tokens, 16, 2, 8, PARTS).batch(3, 8, 0.5))
