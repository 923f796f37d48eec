"""Compressed files: libraries that may be missing, and the sizes that the files state."""

import bz2
import gzip
import io
from unittest import mock

import pytest

from llmcli.data.documents.compressed import content_size, decompressed
from llmcli.errors import LLMError


def test_without_a_library_for_zstd_the_error_says_what_to_install() -> None:
    missing = {"compression": None, "backports": None, "backports.zstd": None}
    with mock.patch.dict("sys.modules", missing), pytest.raises(LLMError) as caught:
        decompressed("a b.zst", io.BytesIO(), "zstd")
    assert str(caught.value) == (
        'reading a b.zst needs backports.zstd, which this installation lacks; install it: pip install "llmcli[zstd]"; '
        "or unpack it: zstd -d 'a b.zst'"
    )


def test_the_size_of_the_content_is_what_the_file_states_if_that_is_possible() -> None:
    packed = gzip.compress(b"abc" * 1000)
    for data, program, size in (
        (packed, "gzip", 3000),
        (packed[:-4] + b"\xff" * 4, "gzip", 0),
        (b"\x1f\x8b", "gzip", 0),
        (bz2.compress(b"abc"), "bzip2", 0),
    ):
        file = io.BytesIO(data)
        assert content_size("a", file, program) == size and file.tell() == 0
    zstd = pytest.importorskip("backports.zstd", exc_type=ImportError)
    assert content_size("a", io.BytesIO(zstd.compress(b"abc" * 1000)), "zstd") == 3000
