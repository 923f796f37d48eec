"""Files in archives: which are given out, under which names, and what is bounded."""

import gzip
import io
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import IO, cast

import pytest

from llmcli.data.documents import archives
from llmcli.data.documents.extracted import ExtractionError, SkippedParts
from tests.data.documents import samples


def read_all(file: IO[bytes] | gzip.GzipFile) -> tuple[dict[str, bytes], list[str]]:
    """The contents of the files by their names, and the reasons for skipping others."""
    skipped = Counter[str]()
    contents = {name: content.read() for name, content, _ in members(file, skipped)}
    return contents, list(skipped.elements())


def members(file: IO[bytes] | gzip.GzipFile, skipped: SkippedParts | None = None) -> Iterator[archives.Member]:
    return archives.members(cast("IO[bytes]", file), Counter() if skipped is None else skipped, lambda size: None)


def tar(members: dict[str, bytes]) -> bytes:
    """An archive of these files, and of a link and a directory."""
    link, directory = tarfile.TarInfo("link"), tarfile.TarInfo("directory")
    link.type = tarfile.SYMTYPE
    link.linkname = "/etc/passwd"
    directory.type = tarfile.DIRTYPE
    return samples.tarred(members, link, directory)


MEMBERS = {"a.txt": b"a", "directory/猫.txt": "猫".encode(), "large.bin": bytes(1 << 20)}


def test_what_is_read_of_a_tar_archive_is_counted_and_files_know_the_size_they_have_in_it() -> None:
    """Also of files that are skipped."""
    data, sizes = tar(MEMBERS), list[int]()
    assert read_all(io.BytesIO(data)) == (MEMBERS, [])
    found = {name: size for name, _, size in archives.members(io.BytesIO(data), Counter(), sizes.append)}
    assert sum(sizes) == len(data)
    assert found == {name: len(content) for name, content in MEMBERS.items()}


def test_a_file_in_a_zip_archive_has_its_compressed_size_or_at_most_that_of_the_archive() -> None:
    data = samples.zipped({"a": bytes(1 << 20)}).read()
    at = data.index(b"PK\x01\x02") + 20
    [(_, _, size)] = members(io.BytesIO(data))
    assert size == int.from_bytes(data[at : at + 4], "little")
    skipped = Counter[str]()
    sizes = [size for _, _, size in members(io.BytesIO(data[:at] + b"\xfe" * 4 + data[at + 4 :]), skipped)]
    if skipped:  # newer versions of zipfile find that it does not fit
        assert skipped == {"damaged file": 1} and not sizes
    else:
        assert sizes == [len(data)] and len(data) < 2000


def test_a_sparse_file_is_skipped() -> None:
    """It may have terabytes of zeros."""
    sparse = tarfile.TarInfo("a.bin")
    sparse.pax_headers = {"GNU.sparse.size": f"{1 << 40}", "GNU.sparse.map": f"0,0,{1 << 40},0"}
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(sparse)
            archive.addfile(tarfile.TarInfo("b.txt"))
        file.seek(0)
        assert read_all(file) == ({"b.txt": b""}, ["sparse file"])


def test_regular_files_of_a_zip_archive() -> None:
    file = samples.zipped({**MEMBERS, "directory/": b""})
    with zipfile.ZipFile(file, "a") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    file.seek(0)
    assert read_all(file) == (MEMBERS, [])


def test_names_of_japanese_windows() -> None:
    data = samples.zipped({"xxxx.txt": b""}).read().replace(b"xxxx.txt", "日本.txt".encode("cp932"))
    assert list(read_all(io.BytesIO(data))[0]) == ["日本.txt"]


def test_encrypted_members_are_skipped() -> None:
    data = bytearray(samples.zipped({"a": b"secret", "b": b"text"}).read())
    for at in (6, data.index(b"PK\x01\x02") + 8):
        data[at] |= 1
    assert read_all(io.BytesIO(data)) == ({"b": b"text"}, ["encrypted file"])


def test_a_damaged_local_header_loses_only_its_file() -> None:
    data = samples.zipped({"a": b"first", "b": b"second", "c": b"third"}).read()
    header = data.index(b"PK\x03\x04", 4)
    for damaged in (
        data[:header] + b"XX" + data[header + 2 :],
        data[: header + 26] + b"\xff\xff" + data[header + 28 :],  # length of the name
        data[: header + 30] + b"x" + data[header + 31 :],  # the name
    ):
        skipped = Counter[str]()
        assert [name for name, _, _ in members(io.BytesIO(damaged), skipped)] == ["a", "c"]
        assert skipped == {"damaged file": 1}


def test_a_damaged_header_in_a_tar_archive_is_an_error() -> None:
    data = samples.tarred({"a": b"first", "b": b"second", "c": b"third"})
    for damaged, problem in (
        (data[:1024] + b"x" * 512 + data[1536:], "invalid header"),
        (data[:1024] + b"x" * 99, "truncated header"),
    ):
        with pytest.raises(ExtractionError, match=rf"is damaged after 1 file \({problem}"):
            read_all(io.BytesIO(damaged))


def test_a_member_of_a_petabyte_that_is_not_there_ends_the_archive_at_once() -> None:
    member = tarfile.TarInfo("a.txt")
    member.size = 1 << 50
    with pytest.raises(ExtractionError, match=r"damaged after 1 file \(unexpected end of data"):
        for _ in members(io.BytesIO(member.tobuf(tarfile.GNU_FORMAT) + b"a" * 5000)):
            pass  # as the reader does after a problem with a member
