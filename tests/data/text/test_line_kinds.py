"""What the lines of a text are."""

from pathlib import Path

from llmcli.data.text.line_kinds import line_kind

EXAMPLES = Path(__file__).parents[3] / "examples"
NAMES = "\n".join(f"{first}{second}a" for first in "BDFGKLM" for second in ("an", "or", "il"))


TIMES = (
    "12:00:", "2026-01-31T12:00:", "[2026/01/31 12:00:", "Jan 31 12:00:", "31.1.2026 12:00:",
    "10.0.0.1 - - [31/Jan/2026:12:00:",
)  # fmt: skip


def test_the_kind_of_lines() -> None:
    for text, kind in [
        (NAMES, "list"),
        ("\n\n".join(NAMES.split("\n")), "list"),
        ("\n".join(NAMES.split("\n")[:19]), None),  # too few to tell
        (NAMES.replace("\n", ".\n"), None),  # sentences
        ("\n".join(["Bana", "Bora", "Bila"] * 9), None),  # classes of words, the same again and again
        ("\n".join(f"{name} {'and others ' * 5}" for name in NAMES.split("\n")), None),
        ("", None),
        *(("\n".join(f"{time}{i:02d} GET /menu 200" for i in range(30)), "log") for time in TIMES),
    ]:
        assert line_kind(text) == kind, text


def test_the_kinds_of_the_examples() -> None:
    kinds = {path.stem: line_kind(path.read_text("utf-8")[:20_000]) for path in EXAMPLES.glob("*.txt")}
    assert {name: kind for name, kind in kinds.items() if kind} == {"names": "list", "log": "log", "log-today": "log"}
