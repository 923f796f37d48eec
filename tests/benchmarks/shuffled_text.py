"""A corpus of any size out of the text that a machine has: its paragraphs, shuffled, in many files.

    python -m tests.benchmarks.shuffled_text DIR --gigabytes 10 --sources /usr/share/doc /usr/lib/python3

Every file is filled from a shuffle of all paragraphs with a seed of its own, so that no two files are alike. The files
are those of the same seed and sources, byte for byte.
"""

import argparse
import gzip
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

FILE_BYTES = 100_000_000
MAX_SOURCE_BYTES = 4_000_000  # of a file: larger ones are tables, seldom prose or programs
MAX_PARAGRAPH_BYTES = 4_000
_BETWEEN = re.compile(rb"\n[ \t]*\n+")


def paragraphs(sources: Iterable[Path]) -> list[bytes]:
    """Those of all files that are UTF-8 text, also in gzip, in and under `sources`; each once."""
    result: dict[bytes, None] = {}
    for source in sources:
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            for paragraph in _BETWEEN.split(_read(path)):
                result.update(dict.fromkeys(_short(paragraph.strip(b"\n"))))
    return list(result)


def _short(paragraph: bytes) -> Iterator[bytes]:
    """A paragraph in parts of whole lines, of at most MAX_PARAGRAPH_BYTES; without longer lines."""
    part = b""
    for line in paragraph.split(b"\n"):
        if len(part) + len(line) > MAX_PARAGRAPH_BYTES:
            yield part
            part = b""
        if len(line) <= MAX_PARAGRAPH_BYTES:
            part += line + b"\n"
    if len(part) > 1:
        yield part


def _read(path: Path) -> bytes:
    """The text of a file; nothing if it is none."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_SOURCE_BYTES:
            return b""
        data = path.read_bytes()
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
        return b"" if b"\0" in data else data.decode("utf-8").encode("utf-8")
    except (OSError, EOFError, ValueError):
        return b""


def write_files(
    directory: Path, size: int, sources: Iterable[Path], seed: int = 1, file_bytes: int = FILE_BYTES
) -> None:
    """Files of `file_bytes` that have `size` bytes together."""
    parts = paragraphs(sources)
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(-(-size // file_bytes)):
        left = min(file_bytes, size - number * file_bytes)
        generator = random.Random(f"{seed} {number}")
        with open(directory / f"{number:04}.txt", "wb") as file:
            while left > 0:
                generator.shuffle(parts)
                for part in parts:
                    file.write(part + b"\n")
                    left -= len(part) + 1
                    if left <= 0:
                        break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--gigabytes", type=float, required=True)
    parser.add_argument("--sources", type=Path, nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    write_files(options.directory, round(options.gigabytes * 1e9), options.sources, options.seed)


if __name__ == "__main__":
    main()
