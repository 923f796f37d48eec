"""One file of text: its encoding, what is not text, and the temporary copy of what must be decoded."""

import bz2
import codecs
import errno
import gzip
import hashlib
import io
import itertools
import lzma
import os
import random
import re
import struct
import tempfile
import weakref
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.documents import reader
from llmcli.data.sources import read_sources
from llmcli.data.text import decoding, encodings
from llmcli.data.text.corpus import Corpus
from llmcli.data.text.decoding import Document
from llmcli.data.text.file_types import START_BYTES
from llmcli.data.text.temporary_files import TextCopy
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens.tokens import tokenize
from llmcli.errors import LLMError
from tests import platforms
from tests.conftest import TEXT
from tests.data.corpora import FullDisk, error_of, joined, names, put, read_corpus

SAMPLE = "héllo\r\nりんご🍎\n\n  end\r"
VARIED = st.text(st.sampled_from("ab \n\ré\u0301\ufeffりんご🍎\U0010ffff"), max_size=12)


# ---- encodings
UTF8 = SAMPLE.encode("utf-8")
ENCODINGS = {
    "UTF-8": ("a.txt", UTF8),
    "UTF-8 with a mark": ("a.txt", codecs.BOM_UTF8 + UTF8),
    "UTF-16 LE": ("a.txt", codecs.BOM_UTF16_LE + SAMPLE.encode("utf-16-le")),
    "UTF-16 BE": ("a.txt", codecs.BOM_UTF16_BE + SAMPLE.encode("utf-16-be")),
    "UTF-32 LE": ("a.txt", codecs.BOM_UTF32_LE + SAMPLE.encode("utf-32-le")),
    "UTF-32 BE": ("a.txt", codecs.BOM_UTF32_BE + SAMPLE.encode("utf-32-be")),
    "gzip": ("a.txt.gz", gzip.compress(UTF8)),
    "gzip called .txt": ("a.txt", gzip.compress(UTF8)),
    "text called .gz": ("a.gz", UTF8),
    "gzip of UTF-8 with a mark": ("a.gz", gzip.compress(codecs.BOM_UTF8 + UTF8)),
    "gzip of UTF-16": ("a.gz", gzip.compress(codecs.BOM_UTF16_BE + SAMPLE.encode("utf-16-be"))),
    "bzip2": ("a.txt.bz2", bz2.compress(UTF8)),
    "xz": ("a.xz", lzma.compress(UTF8)),
    "xz of UTF-16": ("a", lzma.compress(codecs.BOM_UTF16_LE + SAMPLE.encode("utf-16-le"))),
    "two gzips one after the other": ("a.gz", gzip.compress(UTF8[:9]) + gzip.compress(UTF8[9:])),
}


def test_text_in_every_encoding_is_read_exactly_with_its_line_ends() -> None:
    for kind in ENCODINGS:
        name, data = ENCODINGS[kind]
        corpus = read_corpus([put(name, data)])
        assert joined(corpus) == SAMPLE, kind
        assert corpus.text_bytes == len(UTF8), kind
        assert [(d.name, d.text_bytes, d.sha256) for d in corpus.documents] == [
            (name, len(UTF8), hashlib.sha256(UTF8).hexdigest())
        ], kind
        assert corpus.skipped == (), kind
    # only the first byte-order mark is removed
    assert joined(read_corpus([put("a.txt", "\ufeff\ufeffa\ufeff".encode())])) == "\ufeffa\ufeff"


@settings(max_examples=40, deadline=None)
@given(text=VARIED.map("x".__add__), block=st.integers(4, 9))
def test_where_blocks_end_does_not_matter(text: str, block: int) -> None:
    for encoding in ["utf-8", "utf-8-sig", "utf-16"]:
        put("a.txt", text.encode(encoding))
        with mock.patch.object(decoding, "BLOCK_BYTES", block):
            assert joined(read_corpus(["a.txt"])) == text, encoding


LINES = "héllo\r\n\n one\u2028two\x0cthree\rfour\x85\nりんご🍎\n\nend"


def test_lines_end_at_a_newline_alone_in_every_encoding() -> None:
    for end in ["", "\n", "\r\n"]:
        for encoding in ["utf-8", "utf-8-sig", "utf-16"]:
            for packed in [False, True]:
                data = (LINES + end).encode(encoding)
                [document] = read_corpus([put("a.txt", gzip.compress(data) if packed else data)]).documents
                assert list(document.lines()) == [*LINES.split("\n")[:-1], "end" + end.removesuffix("\n")]
                assert document.start == LINES + end, packed


def read_document(data: bytes) -> Document:
    with decoding.OpenFile(put("a.txt", data), Path("a.txt")) as file:
        return decoding.read_document("a.txt", Path("a.txt"), file, TextCopy())


def test_after_a_line_of_too_many_characters_nothing_is_read() -> None:
    document = read_document(b"one\n" + b"a" * 99 + b"\nthree\n")
    with mock.patch.object(decoding, "BLOCK_BYTES", 10):
        first, second = document.lines(max_characters=20)
    assert first == "one" and 20 < len(second) <= 30


def test_zstd_is_read_over_several_frames() -> None:
    zstd = pytest.importorskip("backports.zstd", exc_type=ImportError)
    data = zstd.compress(UTF8[:9]) + zstd.compress(UTF8[9:])
    for frame_to_skip in (b"", struct.pack("<II4x", 0x184D2A50, 4)):
        assert joined(read_corpus([put("a.zst", frame_to_skip + data)])) == SAMPLE
    for damaged in (data[:-3], data[:12] + b"\xff" * 9):
        assert error_of(read_corpus, [put("b.zst", damaged)]).startswith("b.zst is damaged (")
    with pytest.raises(LLMError, match=r"extract its text first: djvutxt a\.djvu\.zst TEXT$"):
        read_corpus([put("a.djvu.zst", zstd.compress(b"AT&TFORM\n\xff"))])


# ---- what is not text


def test_a_file_that_became_shorter_is_an_error_and_one_that_grew_is_not() -> None:
    document = read_corpus([put("a.txt", UTF8)]).documents[0]
    put("a.txt", UTF8 + b"more")
    assert "".join(document.text()).encode() == document.utf8(0, 999) == UTF8
    assert [*document.text(len(UTF8))] == [*document.text(len(UTF8) + 9)] == []
    put("a.txt", UTF8[:-1])
    for read in (lambda: "".join(document.text()), lambda: document.utf8(3, 999)):
        assert error_of(read) == "a.txt became shorter while it was in use; run the command again"
    assert document.utf8(0, 3) == UTF8[:3]
    with mock.patch.object(decoding, "BLOCK_BYTES", 10):  # it grows after the first block
        [document] = read_sources(["a.txt"], on_read=lambda *_: put("a.txt", UTF8)).text.documents
    assert document.file_bytes == document.text_bytes == len(UTF8)


def test_an_empty_file_is_an_error() -> None:
    for data in [b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, gzip.compress(b"", mtime=0)]:
        assert error_of(read_corpus, [put("a.txt", data)]).startswith("a.txt is empty")


MIB = 1 << 20
INVALID = {
    "past the first block": (b"a" * MIB + b"bc\xff", "0xff", MIB + 2),
    "across two blocks": (b"a" * (MIB - 2) + b"\xf0\x9fA", "0xf0", MIB - 2),
    "after a mark": (codecs.BOM_UTF8 + b"a\xff", "0xff", 4),
    "UTF-16 with an odd byte": (codecs.BOM_UTF16_LE + "ab".encode("utf-16-le") + b"c", "0x63", 6),
    "UTF-16 with a lone surrogate": (codecs.BOM_UTF16_BE + b"\0a\xdc\0\0b", "0xdc", 4),
}


def test_the_error_gives_the_position_of_the_first_invalid_byte() -> None:
    for kind in INVALID:
        for packed in [False, True]:
            data, value, position = INVALID[kind]
            put("a.txt", gzip.compress(data, 1) if packed else data)
            problem = rf"a\.txt (is not|ends in .*) UTF-.* byte {value} at position {position:,};.*(iconv|at its end)"
            with pytest.raises(LLMError, match=problem):
                read_corpus(["a.txt"])


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    chunks=st.lists(
        st.binary(max_size=3) | st.sampled_from([b"\xe3\x81\x82", b"\xf0\x9f\x8d\x8e", b"\xe3\x81", b"ab"]), max_size=8
    ),
    block=st.integers(4, 7),
)
def test_bytes_decode_as_in_python_and_fail_at_the_same_position(chunks: list[bytes], block: int) -> None:
    """Other encodings are tested in test_encodings.py: here none is recognized."""
    data = b"x" + b"".join(chunks).replace(b"\0", b"")
    put("a.txt", data)
    no_others = mock.patch.multiple(encodings, recognize=lambda _: "", is_iso2022_jp=lambda _: False)
    with mock.patch.object(decoding, "BLOCK_BYTES", block), no_others:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            with pytest.raises(LLMError, match=f"byte 0x{data[error.start]:02x} at position {error.start:,};"):
                read_corpus(["a.txt"])
        else:
            assert joined(read_corpus(["a.txt"])) == text


ZEROS = {
    "after Japanese": ("あ\0".encode(), 3),
    "after a mark": (codecs.BOM_UTF8 + b"a\0", 4),
    "UTF-16 without a mark": ("ab".encode("utf-16-le"), 1),
    "inside UTF-16": (codecs.BOM_UTF16_LE + "あ\0".encode("utf-16-le"), 4),
    "past the first block": (b"a" * (MIB - 1) + "あb\0".encode(), MIB + 3),
}


def test_the_error_gives_the_position_of_a_zero_byte() -> None:
    for kind in ZEROS:
        data, position = ZEROS[kind]
        with pytest.raises(LLMError, match=rf"a\.bin is not text: a zero byte at position {position:,} .*iconv"):
            read_corpus([put("a.bin", data)])
    with pytest.raises(LLMError, match=r"a\.bin is not UTF-8 text: .*; it has zero bytes, so it is a binary file or"):
        read_corpus([put("a.bin", b"\xff\x80\0\x81")])


COMPRESSED = gzip.compress(TEXT.encode())
DAMAGED = {
    "half its header": COMPRESSED[:6],
    "half": COMPRESSED[: len(COMPRESSED) // 2],
    "another checksum": COMPRESSED[:-8] + bytes(8),
    "an unknown method": COMPRESSED[:2] + b"\x05" + COMPRESSED[3:],
    "damaged later": gzip.compress(random.Random(0).randbytes(9000).hex().encode())[:5000] + b"\xff" * 4000,
}


def test_a_damaged_gzip_is_an_error_and_skipped_in_a_directory() -> None:
    put("d/a.txt", b"text")
    for kind, data in DAMAGED.items():
        assert "d/b.gz" in error_of(read_corpus, [put("d/b.gz", data)])
        corpus = read_corpus(["d"])
        assert names(corpus) == ["d/a.txt"] and len(corpus.skipped) == 1 and "d/b.gz" in corpus.skipped[0], kind


# ---- standard input


def test_standard_input_can_be_read_again() -> None:
    for kind in ("UTF-8", "UTF-8 with a mark", "UTF-16 LE", "gzip", "gzip of UTF-16"):
        corpus = read_corpus(["-"], io.BytesIO(ENCODINGS[kind][1]))
        assert names(corpus) == ["standard input"], kind
        assert joined(corpus) == joined(corpus) == SAMPLE, kind
        assert corpus.documents[0].sha256 == hashlib.sha256(UTF8).hexdigest(), kind


@platforms.posix
def test_the_output_of_a_command_is_read_like_standard_input() -> None:
    """What a shell passes for `<(...)`: here, too, the pipe is read once."""
    for kind in ["UTF-8", "gzip"]:
        reading, writing = os.pipe()
        os.write(writing, ENCODINGS[kind][1])
        os.close(writing)
        try:
            corpus = read_corpus([f"/dev/fd/{reading}"])
        finally:
            os.close(reading)
        assert joined(corpus) == joined(corpus) == SAMPLE, kind


def test_errors_in_standard_input_name_it() -> None:
    with pytest.raises(LLMError, match=r"^standard input is not UTF-8 text: byte 0xff at position 2"):
        read_corpus(["-"], io.BytesIO(b"ab\xff"))
    assert error_of(read_corpus, ["-"], io.BytesIO(b"")).startswith("standard input is empty")


# ---- the temporary copy


@pytest.mark.skipif(os.name == "nt", reason="a file in use has a name there, and goes when it is closed")
def test_a_killed_run_leaves_no_temporary_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", "tmp")
    for name, data in (ENCODINGS["UTF-16 LE"], ENCODINGS["gzip"]):
        corpora = [read_corpus(["-"], io.BytesIO(data)), read_corpus([put(name, data)])]
        assert [joined(corpus) for corpus in corpora] == [SAMPLE] * 2
        assert list(Path("tmp").iterdir()) == []


def test_the_temporary_copy_is_shared_and_closed_with_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "cpu_cores", lambda: 1)  # processes, each with a copy
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


def test_plain_utf8_is_not_copied() -> None:
    corpus = read_corpus([put("a", UTF8), put("b", codecs.BOM_UTF8 + UTF8)])
    assert [document.copy for document in corpus.documents] == [None, None]


def test_a_full_disk_for_the_copy_is_an_error_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a file in a directory, which would be skipped if it were not text."""
    for sources in [["a.gz"], ["d"], ["-"]]:
        put("a.gz", COMPRESSED)
        put("d/a.gz", COMPRESSED)
        put("d/b.txt", b"text")
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: FullDisk())
        with pytest.raises(
            LLMError, match=f"decoded text in {re.escape(tempfile.gettempdir())}: No space left.*TMPDIR"
        ):
            read_corpus(sources, io.BytesIO(b"text"))


def test_a_missing_temporary_directory_is_an_error_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: nowhere())
    with pytest.raises(LLMError, match=r"in a temporary directory: No usable.*TMPDIR"):
        read_corpus([put("a.gz", COMPRESSED)])
    with pytest.raises(LLMError, match=r"the tokens in a temporary directory: No usable.*TMPDIR"):
        tokenize(iter([iter(["abc"])]), Tokenizer.train_bpe([TEXT], 280))


def test_a_file_that_is_not_text_leaves_nothing_in_the_temporary_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "cpu_cores", lambda: 1)
    put("d/a.gz", gzip.compress(b"first "))
    put("d/b.gz", gzip.compress(b"x" * 5000 + b"\xff"))
    put("d/c.gz", COMPRESSED[: len(COMPRESSED) // 2])
    put("d/d.gz", gzip.compress(b"last"))
    corpus = read_corpus(["d"])
    assert (names(corpus), joined(corpus)) == (["d/a.gz", "d/d.gz"], "first last")
    assert corpus.documents[0].copy is not None and corpus.documents[0].copy.size == len("first last")


# ---- how much is read


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that collects the number of bytes of each read from a file."""
    sizes: list[int] = []
    real_read = decoding.OpenFile.read

    def read(file: decoding.OpenFile, position: int, size: int) -> bytes:
        data = real_read(file, position, size)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(decoding.OpenFile, "read", read)
    return sizes


def test_text_that_must_be_decoded_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading parts of it later does not decode it again, and gives the same text as a plain file. (Another process
    reads a compressed file.)"""
    for kind in ["gzip", "UTF-16", "gzip of UTF-16"]:
        text = "".join(f"{n}りんご🍎é\n" for n in range(20_000))
        data = {"gzip": text.encode(), "UTF-16": text.encode("utf-16"), "gzip of UTF-16": text.encode("utf-16")}[kind]
        sizes = count_reads(monkeypatch)
        corpus = read_corpus([put("a", gzip.compress(data) if "gzip" in kind else data)])

        def samples(corpus: Corpus) -> list[list[str]]:
            cut = corpus.cut(1000, 300_000)
            return [list(map("".join, cut.sample(most).texts())) for most in (5000, 20_000, 299_000)]

        parts = samples(corpus)
        corpus.cut(0, 200_000).utf8()
        assert sum(sizes) == START_BYTES + (len(data) if kind == "UTF-16" else 0), kind
        plain = read_corpus([put("plain", text.encode())])
        assert parts == [
            list(map("".join, plain.cut(1000, 300_000).sample(most).texts())) for most in (5000, 20_000, 299_000)
        ], kind
        assert joined(corpus) == text and corpus.documents[0].sha256 == plain.documents[0].sha256, kind


def test_reading_a_sample_or_a_part_reads_little_more(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = read_corpus([put("a", b"x" * 5000 + b"needle" + b"y" * 5_000_000)])
    sizes = count_reads(monkeypatch)
    assert sum(len("".join(part)) for part in corpus.sample(6400).texts()) == 6400
    assert sum(sizes) <= 64 * (100 + 3 + 4)
    sizes.clear()
    assert joined(corpus, 5000, 5006) == "needle" and sum(sizes) <= 6 + 3 + 4


# ---- positions


def character_end(data: bytes, position: int) -> int:
    """By trial: the first position from `position` on before which all characters are complete."""
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
def test_no_split_loses_or_repeats_text(texts: list[str], fractions: list[float], block: int) -> None:
    # every second document has a byte-order mark
    corpus = read_corpus([put(f"{i}.txt", codecs.BOM_UTF8 * (i % 2) + text.encode()) for i, text in enumerate(texts)])
    whole = "".join(texts).encode()
    assert corpus.text_bytes == len(whole)
    edges = [0, *sorted(round(f * len(whole)) for f in fractions), len(whole)]
    with mock.patch.object(decoding, "BLOCK_BYTES", block):
        for low, high in itertools.pairwise(edges):
            assert joined(corpus, low, high).encode() == whole[character_end(whole, low) : character_end(whole, high)]
        assert "".join(joined(corpus, low, high) for low, high in itertools.pairwise(edges)).encode() == whole
