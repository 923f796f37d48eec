"""Documents: megabytes per second of each kind, with one child process and with one per core, and the memory used.

    python -m tests.benchmarks.documents_speed DIRECTORY [--megabytes 100]

DIRECTORY holds the documents. Those of a suffix are copied under other names until there are so many megabytes (a
tenth of that of PDFs, whose measure is pages), or 2,000 files. Each measurement is a process of its own.
"""

import argparse
import itertools
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MAX_FILES = 2_000
SUFFIXES = (".html", ".epub", ".pdf", ".docx", ".odt", ".ipynb", ".mbox", ".zip")


def measure(directory: str, cores: int) -> None:
    """Print the seconds, the bytes of text, and the greatest memory of this process and of a child."""
    from llmcli.data.documents import reader
    from llmcli.data.sources import read_sources

    reader.cpu_cores = lambda: cores  # type: ignore[attr-defined]
    start = time.perf_counter()
    text = read_sources([directory]).text
    seconds = time.perf_counter() - start
    while reader._idle:
        reader._idle.pop().stop()
    memory = [resource.getrusage(who).ru_maxrss >> 10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(seconds, text.text_bytes, len(text.skipped), *memory)


def copy(files: list[Path], directory: Path, size: int) -> int:
    """Copy files until there are this many bytes; returns how many there are."""
    total = 0
    for number, file in enumerate(itertools.cycle(files)):
        if total >= size or number == MAX_FILES:
            return total
        shutil.copy(file, directory / f"{number:06}{file.suffix}")
        total += file.stat().st_size
    return total


def pages(directory: Path) -> int:
    import pypdfium2

    counts = []
    for file in directory.iterdir():
        with pypdfium2.PdfDocument(file) as document:
            counts.append(len(document))
    return sum(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--megabytes", type=int, default=100)
    options = parser.parse_args()
    for suffix in SUFFIXES:
        files = sorted(file for file in options.directory.rglob(f"*{suffix}") if file.is_file())
        if not files:
            continue
        with tempfile.TemporaryDirectory() as name:
            size = copy(files, Path(name), options.megabytes * 10**6 // (10 if suffix == ".pdf" else 1))
            for cores in dict.fromkeys((1, len(os.sched_getaffinity(0)))):
                command = [sys.executable, "-m", "tests.benchmarks.documents_speed", "--measure", name, str(cores)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                seconds, text_bytes, skipped, own, child = map(float, done.stdout.split())
                speed = f"{size / seconds / 1e6:8.1f} MB/s"
                if suffix == ".pdf":
                    speed += f" {pages(Path(name)) / seconds:7.1f} pages/s"
                print(
                    f"{suffix:6} {cores} processes: {speed}, {size / 1e6:.0f} MB to {text_bytes / 1e6:.1f} MB of text, "
                    f"{skipped:.0f} skipped, memory {own:.0f} MB + {child:.0f} MB a child",
                    flush=True,
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], int(sys.argv[3]))
    else:
        main()
