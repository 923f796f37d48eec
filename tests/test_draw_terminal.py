"""The script that draws the README's picture: the screen of a terminal by its bytes, and the picture of a screen."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from tests.platforms import pseudo_terminals

ROOT = Path(__file__).parent.parent
SVG = "{http://www.w3.org/2000/svg}"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_terminal", ROOT / "examples" / "draw_terminal.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


draw = _script()


def shown(received: str, columns: int = 20) -> list[str]:
    return ["".join(cell.text for cell in row) for row in draw.screen(received, columns)]


def test_the_screen_after_escape_sequences() -> None:
    for received, rows in [
        ("50%\r100%\r\ndone", ["100%", "done"]),
        ("a long line\r\x1b[Kshort", ["short"]),
        ("one\r\ntwo\r\nthree\x1b[2A\r\x1b[2KONE\x1b[1B\r\x1b[2KTWO\r\n\r\n", ["ONE", "TWO", "three"]),  # rich's Live
        ("abcdef\x1b[3D\x1b[1Kx", ["   xef"]),
        ("one\r\ntwo\r\nthree\x1b[2A\r\x1b[Jx", ["x"]),
        ("abc\x1b[1GX\x1b[2CY", ["XbcY"]),
        ("\x1b[?25l\x1b]0;title\x07\x1b[1mbold\x1b[0m\x1b[?25h", ["bold"]),
        ("a" * 25, ["a" * 20, "a" * 5]),
        ("a" * 19 + "語", ["a" * 19, "語"]),
        ("e\u0301a", ["e\u0301a"]),
        ("\r\n \r\nx \r\n\r\n", ["x"]),
    ]:
        assert shown(received) == rows


RECEIVED = (
    ' \x1b[1mplan\x1b[0m     because\r\n ────────\r\n budget  5m <b>&"\r\n'
    "\x1b[32m━━━━\x1b[0m\x1b[90m──\x1b[0m 66%\r\n0.2 │\x1b[36m⠑⢄\x1b[0m\r\n"
    "リンゴ  0.4 ██▌\r\n\x1b[48;5;28;38;5;255mok\x1b[0m"
)


def test_a_picture_has_all_the_text_and_is_reproducible() -> None:
    for theme in ["LIGHT", "DARK"]:
        rows = draw.screen(RECEIVED)
        picture = draw.svg(rows, getattr(draw, theme), "a <title>")
        assert picture == draw.svg(draw.screen(RECEIVED), getattr(draw, theme), "a <title>")
        root = ElementTree.fromstring(picture)
        assert root.find(f"{SVG}title").text == "a <title>"  # type: ignore[union-attr]
        assert root.find(f"{SVG}desc").text == "\n".join(shown(RECEIVED, 80))  # type: ignore[union-attr]
        texts = [text.text for text in root.iter(f"{SVG}text")]
        assert texts == ["plan", "because", "budget", '5m <b>&"', "66%", "0.2", "リンゴ", "0.4", "ok"]
        assert not re.search("url|href|@import|@font-face|script", picture)
        assert set(re.findall(r"https?://[^\s\"]+", picture)) == {"http://www.w3.org/2000/svg"}


def test_the_picture_of_a_readme_shows_its_commands_and_figures() -> None:
    for page, picture, prediction in [
        ("README.md", "first-picture", r"The model\s+predicts ([\d.]+) and ([\d.]+)\."),
        ("README.ja.md", "first-picture-ja", "モデルが予測した確率は ([\\d.]+)、([\\d.]+)、([\\d.]+) です。"),
    ]:
        readme = (ROOT / page).read_text("utf-8")
        names = re.search(
            r'<picture><source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)">!\[[^]]+\]\(([^)]+)\)</picture>',
            readme,
        )
        assert names and [*names.groups()] == [f"examples/{picture}-dark.svg", f"examples/{picture}.svg"]
        texts = [ElementTree.parse(ROOT / name).find(f"{SVG}desc").text or "" for name in names.groups()]  # type: ignore[union-attr]
        assert texts[0] == texts[1]
        for command, _ in draw.PICTURES[picture]:
            assert f"$ {command}\n" in texts[0] and command in readme
        assert "\nsaved model.safetensors" in texts[0]
        told = re.search(prediction, readme)
        shown = re.findall(r"^ \S+ +(0\.\d+) +█", texts[0], re.M)
        assert told and [*told.groups()] == [f"{float(one):.2f}" for one in shown[: len(told.groups())]]


@pseudo_terminals
def test_commands_run_in_a_terminal(tmp_path: Path) -> None:
    code = "import os, sys; print(sys.stdout.isatty(), *os.get_terminal_size(), os.environ['TERM'], os.getcwd())"
    received = draw.record(f'"{sys.executable}" -c "{code}"', tmp_path)
    assert received == f"True 80 40 xterm-256color {tmp_path.resolve()}\r\n"
    with pytest.raises(subprocess.CalledProcessError):
        draw.record("exit 3", tmp_path)
