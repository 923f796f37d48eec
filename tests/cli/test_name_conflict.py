"""The note that another package also installs a command named `llm`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmcli.cli import name_conflict


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state directory; the path of the file in it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "llmcli" / name_conflict.STATE_FILE


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of installed packages, on sys.path in this process and in those that it starts."""
    directory = tmp_path / "site-packages"
    directory.mkdir()
    monkeypatch.syspath_prepend(str(directory))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")]))
    return directory


def install(site: Path, name: str, version: str, script: str) -> None:
    """What a package leaves in site-packages, as far as it matters here."""
    information = site / f"{name}-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (information / "entry_points.txt").write_text(f"[console_scripts]\n{script} = {name}.cli:cli\n")


def test_nothing_is_printed_where_the_command_is_ours_alone(
    state: Path, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(site, "another", "1.0", "another")
    name_conflict.note_once(["--help"])
    assert capsys.readouterr() == ("", "")
    assert not json.loads(state.read_text())[sys.prefix]["noted"]


def test_another_owner_is_named_once(state: Path, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(site, "llm", "0.32", "llm")
    name_conflict.note_once(["train", "c.txt"])
    note = capsys.readouterr().err
    assert note.startswith("note: llm 0.32 in this environment also installs a command named llm.")
    assert "runs as llmcli" in note and note.count("\n") == 1
    install(site, "yet-another", "2.0", "llm")
    name_conflict.note_once(["train", "c.txt"])
    assert capsys.readouterr() == ("", "")


def test_a_package_that_is_installed_later_is_noticed(
    state: Path, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name_conflict.note_once(["--version"])
    install(site, "llm", "0.32", "llm")
    name_conflict.note_once(["--version"])
    assert "llm 0.32" in capsys.readouterr().err


def test_the_entry_points_are_read_only_after_an_installation(
    state: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_conflict.note_once(["--help"])
    monkeypatch.setattr(name_conflict, "other_owners", lambda: pytest.fail("read again"))
    name_conflict.note_once(["--help"])


@pytest.mark.parametrize("arguments", [["generate", "x"], ["train", "c.txt", "-q"], ["eval", "c.txt", "--json"]])
def test_other_commands_and_quiet_ones_do_not_check(
    arguments: list[str], state: Path, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(site, "llm", "0.32", "llm")
    name_conflict.note_once(arguments)
    assert capsys.readouterr() == ("", "") and not state.exists()


def test_nothing_is_printed_where_it_could_not_be_remembered(
    state: Path, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(site, "llm", "0.32", "llm")
    state.parent.parent.write_text("a file in place of the directory")
    name_conflict.note_once(["--help"])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("damaged", ["", "[1]", '{"a": 1}', "\0"])
def test_a_damaged_state_file_is_replaced(
    damaged: str, state: Path, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(site, "llm", "0.32", "llm")
    state.parent.mkdir(parents=True)
    state.write_text(damaged)
    name_conflict.note_once(["--help"])
    assert "llm 0.32" in capsys.readouterr().err
    assert json.loads(state.read_text())[sys.prefix]["noted"]


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_the_default_state_directory_is_in_the_home_directory(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", value)
    assert name_conflict.state_directory() == Path.home() / ".local" / "state" / "llmcli"


def test_the_command_prints_it_on_stderr_beside_its_result(state: Path, site: Path) -> None:
    install(site, "llm", "0.32", "llm")
    runs = [subprocess.run([sys.executable, "-m", "llmcli", "--version"], capture_output=True) for _ in range(2)]
    assert [run.returncode for run in runs] == [0, 0]
    assert runs[0].stdout == runs[1].stdout and runs[0].stdout.startswith(b"llmcli ")
    assert runs[0].stderr.startswith(b"note: llm 0.32 ") and runs[1].stderr == b""
