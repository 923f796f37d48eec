"""Archives: the files in ZIP and tar archives, one after the other, without unpacking them to disk.

A tar archive may be a stream. The caller limits how much is unpacked.
"""

import io
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import TypeAlias, cast

from llmcli import units
from llmcli.data.documents.extracted import ExtractionError, File, SkippedParts

# flags of a member of a ZIP archive
_ENCRYPTED = 0x1
_NAME_IN_UTF8 = 0x800
_READS_AFTER_END = 100
# the end of a tar archive: no header, or one of zeros
_ENDS = (tarfile.EmptyHeaderError, tarfile.EOFHeaderError)  # type: ignore[attr-defined]
# control characters, and characters that reverse text
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


# (name, content, which is closed when the next member is requested, size in the archive: in a ZIP file, the
# compressed size)
Member: TypeAlias = tuple[str, File, int]


def members(file: File, skipped: SkippedParts, on_read: Callable[[int], None]) -> Iterator[Member]:
    """Yield the regular files in an archive, except those that cannot be read. A ZIP file is seekable;
    `on_read` receives the size of each block of a tar archive, including files that are not yielded."""
    is_zip = file.read(2) == b"PK"
    file.seek(0)
    number = 0
    try:
        for member in _zip_members(file, skipped) if is_zip else _tar_members(file, skipped, on_read):
            _, content, _ = member
            with content:
                yield member
            number += 1
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        ValueError,
    ) as error:
        raise ExtractionError(f"is damaged after {units.count(number, 'file')} ({error})") from error


def _zip_members(file: File, skipped: SkippedParts) -> Iterator[Member]:
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16
            if info.is_dir() or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
                continue
            if info.flag_bits & _ENCRYPTED:
                skipped["encrypted file"] += 1
                continue
            try:
                content = archive.open(info)
            except NotImplementedError:
                skipped["file with an unknown compression"] += 1
                continue
            except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, struct.error):
                skipped["damaged file"] += 1  # only the header of this member is damaged
                continue
            yield display_path(_zip_name(info)), content, min(info.compress_size, size)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Decode a name that is not marked as UTF-8: UTF-8 and Shift_JIS are more common than the standard's
    cp437."""
    if info.flag_bits & _NAME_IN_UTF8:
        return info.filename
    name = info.filename.encode("cp437", "replace")
    for encoding in ("utf-8", "cp932"):
        try:
            return name.decode(encoding)
        except UnicodeDecodeError:
            pass
    return info.filename


def _tar_members(file: File, skipped: SkippedParts, on_read: Callable[[int], None]) -> Iterator[Member]:
    with tarfile.open(fileobj=cast("File", _Finite(file, on_read)), mode="r|", tarinfo=_TarInfo) as archive:
        for info in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # otherwise it would keep all members
            if info.issparse():  # may be terabytes of zeros
                skipped["sparse file"] += 1
            elif info.isreg() and (content := archive.extractfile(info)):
                yield display_path(info.name), content, info.size


class _TarInfo(tarfile.TarInfo):
    """Raises an error for a damaged header, which tarfile would mistake for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_TarInfo":
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if isinstance(error, _ENDS):
                raise
            raise tarfile.ReadError(str(error)) from error


class _Finite:
    """A file that raises EOFError if it is repeatedly read after its end: tarfile would skip the 2^50 bytes
    that a damaged header announces, block by block."""

    def __init__(self, file: File, on_read: Callable[[int], None]) -> None:
        self._file = file
        self._on_read = on_read
        self._left = _READS_AFTER_END

    def read(self, size: int) -> bytes:
        if not (data := self._file.read(size)):
            self._left -= 1
            if not self._left:
                raise EOFError("unexpected end of data")
        self._on_read(len(data))
        return data


def display_path(name: str) -> str:
    """Return an archive member's name, made safe to display and without parts that leave a directory.

    >>> display_path("../../etc/a\\x1b[31m"), display_path("C:\\\\b"), display_path("a//./b")
    ('etc/a\ufffd[31m', 'C:/b', 'a/b')
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return _UNSAFE.sub("\ufffd", "/".join(parts)) or "file"
