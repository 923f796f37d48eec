"""Windows simulated on Linux, after Python's documentation: functions that it lacks are removed, and open files can
neither be moved nor deleted.
"""

import ast
import ctypes
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import llmcli
from llmcli.cli.terminal import streams
from llmcli.errors import LLMError, command_line
from llmcli.formats import atomic_io, file_lock, loading
from llmcli.models.open_runtime import open_runtime
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.files import resume
from tests import platforms
from tests.conftest import Llm
from tests.data.corpora import read_corpus
from tests.reliability.runs import OPTIONS, TEXT

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the simulation needs /proc")
SOURCES = sorted(Path(llmcli.__file__).parent.rglob("*.py"))
ABSENT = ("fchmod", "fchown", "sched_getaffinity", "sysconf", "geteuid", "getuid", "mkfifo", "fork")
PORTABLE_SIGNAL_NAMES = {
    "signal", "getsignal", "default_int_handler", "raise_signal", "Signals", "Handlers", "SIGINT", "SIGTERM", "SIG_DFL",
    "SIG_IGN",
}  # fmt: skip
MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog")


def is_open(path: Any) -> bool:
    """Whether this process has a file open, or mapped."""
    found = {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    mapped = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    return os.path.abspath(path) in found | mapped


class Windows:
    """System calls that behave as on Windows. `busy` is how many more times a file that another program has open
    refuses to be replaced."""

    def __init__(self) -> None:
        self.busy = 0
        self.real = {name: getattr(os, name) for name in ("open", "replace", "rename", "unlink")}

    def open(self, path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            return int(self.real["open"](path, flags, *more, **named))
        if Path(os.fsdecode(path)).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return int(self.real["open"](path, flags, *more, **named))

    def replace(self, source: Any, target: Any) -> None:
        if self.busy:
            self.busy -= 1
            raise PermissionError(errno.EACCES, "The process cannot access the file", target)
        self._check(source)
        self._check(target)
        if Path(target).exists() and not os.stat(target).st_mode & 0o200:
            raise PermissionError(errno.EACCES, "Access is denied", target)
        self.real["replace"](source, target)

    def rename(self, source: Any, target: Any) -> None:
        if Path(target).exists():
            raise FileExistsError(errno.EEXIST, "File exists", target)
        self._check(source)
        self.real["rename"](source, target)

    def unlink(self, path: Any, **named: Any) -> None:
        self._check(path)
        self.real["unlink"](path, **named)

    def _check(self, path: Any) -> None:
        if is_open(path):
            raise PermissionError(errno.EACCES, "The process cannot access the file", path)


def locks() -> SimpleNamespace:
    """The functions of the module msvcrt that are used."""
    import fcntl

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (2, 1)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    return SimpleNamespace(LK_NBLCK=2, locking=locking)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Windows:
    system = Windows()
    for module in (atomic_io, streams):
        monkeypatch.setattr(module, "WINDOWS", True)
    monkeypatch.setattr(atomic_io, "RENAME_PAUSES", (0.0,) * 5)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)
    monkeypatch.setitem(sys.modules, "msvcrt", locks())
    for module in MODULES:
        monkeypatch.setitem(sys.modules, module, None)
    for name in ABSENT:
        monkeypatch.delattr(os, name)
    for name in system.real:
        monkeypatch.setattr(os, name, getattr(system, name))
    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    yield system  # type: ignore[misc]
    signal.signal(signal.SIGUSR1, before)


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


# ---- files


def test_a_directory_is_written_and_replaced(windows: Windows) -> None:
    for text in ("one", "two"):
        with atomic_io.replace_directory(Path("d")) as place:
            atomic_io.write(place / "f", text.encode())
        assert Path("d/f").read_text() == text and names() == ["d"]


def test_a_file_is_replaced_also_if_it_is_in_use_for_a_moment(windows: Windows) -> None:
    for times in [0, 1, 4]:
        atomic_io.write("f", b"{one\r\n\n")
        assert Path("f").read_bytes() == b"{one\r\n\n"
        atomic_io.check_writable("f", force=True, example="f.jsonl")
        windows.busy = times
        atomic_io.write_with("f", lambda place: place.write_bytes(b"two") and None)
        assert windows.busy == 0 and Path("f").read_bytes() == b"two" and names() == ["f"]


def test_a_file_that_stays_in_use_is_kept(windows: Windows) -> None:
    atomic_io.write("f", b"old")
    with open("f", "rb") as reader, pytest.raises(LLMError, match="cannot access the file; nothing there was changed"):
        reader.read(1)
        atomic_io.write("f", b"new")
    assert Path("f").read_bytes() == b"old" and names() == ["f"]


def test_a_read_only_file_is_refused_in_advance(windows: Windows) -> None:
    Path("f").write_bytes(b"{old")
    Path("f").chmod(0o444)
    with pytest.raises(LLMError, match="f is read-only; allow writing: attrib -R f"):
        atomic_io.check_writable("f", force=True, example="f.jsonl")


def test_names_that_windows_does_not_allow_are_refused_in_advance(windows: Windows) -> None:
    for name, problem in [
        ("NUL", "device"),
        ("nul.safetensors", "device"),
        ("Com1.x.y", "device"),
        ("aux ", "device"),
        ("a:b", "':'"),
        ("a*", "'\\*'"),
        ("a?", "'\\?'"),
        ("a\tb", "'\\\\t'"),
        ("a|b", "'\\|'"),
        ("a.", "end"),
        ("a ", "end"),
    ]:
        with pytest.raises(LLMError, match=rf"Windows.*; give another name with `output`|{problem}.*Windows"):
            atomic_io.check_writable(name, force=False)
        assert re.search(problem, atomic_io.windows_name_problem(name))


def test_other_names_are_allowed(windows: Windows) -> None:
    for name in ["model.safetensors", "null", "com", "com10", "りんご.gguf", ".hidden", "a b.c"]:
        atomic_io.check_writable(name, force=False)
        atomic_io.write(name, b"x")
        assert names() == [name]
        Path(name).unlink()


def test_the_second_of_two_runs_is_refused(windows: Windows) -> None:
    for _ in range(2):
        with file_lock.locked(Path("f")) as problem:
            assert problem == ""
            with pytest.raises(LLMError, match="another run is writing to f"), file_lock.locked(Path("f")):
                pass
        assert names() == []


def test_a_system_without_file_locks_is_reported(windows: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msvcrt", None)
    with file_lock.locked(Path("f")) as problem:
        assert problem == "this system has no file locks"
    assert names() == []


def test_standard_input_is_read_twice(windows: Windows, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text(TEXT, "utf-8")
    with open(source, "rb") as stdin:
        corpus = read_corpus(["-"], stdin)
    path = corpus.documents[0].path
    assert not is_open(path) and corpus.utf8() == corpus.utf8() == TEXT.encode()
    del corpus
    assert not path.exists()


# ---- the command


@pytest.mark.slow
def test_a_run_is_stopped_and_resumed_and_keeps_no_file_open(windows: Windows, llm: Llm, monkeypatch) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    words = ["train", "c.txt", *OPTIONS, "--steps", 12]
    assert llm(*words, "-o", "whole.safetensors").exit_code == 0
    real, steps = LanguageModel.loss, []

    def loss(self: LanguageModel, ids: Any, learned: Any = None) -> Any:
        steps.append(1)
        if len(steps) == 5:
            signal.raise_signal(signal.SIGUSR1)  # Ctrl-Break
        return real(self, ids, learned)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "loss", loss)
        answer = llm(*words)
    assert answer.exit_code == 128 + signal.SIGUSR1, answer.stderr
    assert names() == ["c.txt", "model.resume.safetensors", "model.safetensors", "whole.safetensors"]
    assert loading.load("model.safetensors").record.steps == 5
    answer = llm(*words)
    assert answer.exit_code == 0, answer.stderr
    assert names() == ["c.txt", "model.safetensors", "whole.safetensors"]
    assert Path("model.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    header = resume.read_header(Path("model.safetensors"))
    assert not is_open(header.path)
    model = loading.load(header.path)
    assert open_runtime(model).context and model.tensors and not is_open(header.path)


@pytest.mark.slow
@pytest.mark.usefixtures("short_search")
def test_other_commands_write_their_files(windows: Windows, llm: Llm, tiny_model: Path) -> None:
    for words in (
        ["export", "model.safetensors", "hf", "--to", "hf"],
        ["export", "model.safetensors", "q.safetensors", "--quantize", "int8"],
        ["import", "hf", "-o", "again.safetensors"],
        ["mix", "model.safetensors", "again.safetensors", "-o", "mix.safetensors"],
        ["explain", "The cat", "--html", "page.html"],
    ):
        answer = llm(*words)
        assert answer.exit_code == 0, answer.stderr
    assert all(not name.startswith(".") for name in names())


# ---- the console


class Console:
    """The functions of kernel32 that set the console mode."""

    def __init__(self, *, is_console: bool, takes_colors: bool) -> None:
        self.is_console = is_console
        self.takes_colors = takes_colors
        self.modes: list[int] = []
        self.GetStdHandle = lambda stream: stream  # an object, as its type of result is set

    def GetConsoleMode(self, handle: Any, mode: Any) -> int:  # noqa: N802
        mode._obj.value = 3
        return int(self.is_console)

    def SetConsoleMode(self, handle: Any, mode: int) -> int:  # noqa: N802
        self.modes.append(mode)
        return int(self.takes_colors)


@pytest.mark.parametrize(
    ("is_console", "takes_colors", "modes", "plain"),
    [(True, True, [7, 7], False), (True, False, [7, 7], True), (False, False, [], False)],
)
def test_escape_codes_are_enabled_or_colors_turned_off(
    is_console: bool, takes_colors: bool, modes: list[int], plain: bool, monkeypatch
) -> None:
    kernel = Console(is_console=is_console, takes_colors=takes_colors)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    monkeypatch.setenv("NO_COLOR", "")
    streams.enable_escape_codes()
    assert kernel.modes == modes and bool(os.environ["NO_COLOR"]) == plain


def test_a_pipe_without_a_reader_is_recognized_by_the_error_of_windows(windows: Windows) -> None:
    descriptor = os.eventfd(0)  # a file that says EINVAL to a short text
    with streams._StandardStream(descriptor, "w") as output, pytest.raises(BrokenPipeError):
        output.write(b"x")


@pytest.mark.parametrize("encoding", ["cp1252", pytest.param("cp437", marks=platforms.in_full), "ascii"])
@pytest.mark.slow
def test_characters_outside_the_code_page_are_written(encoding: str, tiny_model: Path) -> None:
    """Output to a pipe or a file, which Windows writes in the code page of the locale."""
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    for words in (["tokenize", "りんご 🍎"], ["inspect"], ["generate", "りんご", "-n", "3"], ["inspect", "りんご"]):
        run = subprocess.run([sys.executable, "-m", "llmcli", *words], capture_output=True, env=environment)
        assert b"Traceback" not in run.stderr and run.returncode == (words[-1] == "りんご" and words[0] == "inspect")
        run.stdout.decode("utf-8"), run.stderr.decode("utf-8")
        assert b"\\u" not in run.stdout + run.stderr
        assert words[0] == "generate" or b"?" not in run.stdout


def test_suggested_commands_are_quoted_for_windows_shells() -> None:
    words = ["llm", "train", "my text.txt", "-o", "C:\\models\\m.safetensors"]
    assert command_line(words, windows=True) == 'llm train "my text.txt" -o C:\\models\\m.safetensors'
    assert command_line(words, windows=False) == "llm train 'my text.txt' -o 'C:\\models\\m.safetensors'"


# ---- the source


@pytest.mark.slow
def test_no_text_is_read_or_written_in_the_locale_encoding() -> None:
    for source in SOURCES:
        for call in (n for n in ast.walk(ast.parse(source.read_text("utf-8"))) if isinstance(n, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            named = {keyword.arg for keyword in call.keywords}
            where = f"{source.name}, line {call.lineno}"
            if name == "read_text":
                assert call.args or "encoding" in named, where
            if name == "write_text":
                assert len(call.args) > 1 or "encoding" in named, where
            if name == "open" and isinstance(call.func, ast.Name):
                modes = [a.value for a in call.args[1:] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                assert "encoding" in named or any("b" in mode for mode in modes), where


GUARDS = "ImportError|AttributeError"


@pytest.mark.slow
def test_functions_that_windows_lacks_are_used_only_if_present() -> None:
    for source in SOURCES:
        text = source.read_text("utf-8")
        tree, has_guards = ast.parse(text), re.search(GUARDS, text)
        guarded = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.Try | ast.With) and has_guards and re.search(GUARDS, ast.unparse(node))
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = {getattr(node, "module", None), *(alias.name for alias in node.names)}
                assert not modules & set(MODULES) or id(node) in guarded, f"{source.name}, line {node.lineno}"
            if (
                isinstance(node, ast.Attribute)
                and node.attr in ABSENT
                and isinstance(node.value, ast.Name)
                and node.value.id == "os"
            ):
                is_checked = f'hasattr(os, "{node.attr}")' in text or id(node) in guarded
                assert is_checked, f"{source.name}, line {node.lineno}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "signal":
                is_checked = f'hasattr(signal, "{node.attr}")' in text
                assert node.attr in PORTABLE_SIGNAL_NAMES or is_checked, f"{source.name}, line {node.lineno}"
