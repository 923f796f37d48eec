"""A note, shown once, if another package in this environment also installs a command named `llm`.

The well-known package of that name does. Both write the same script: the package installed last owns it, and
uninstalling either deletes it. The note is printed at most once per environment; a state file remembers that.
"""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from llmcli.cli.terminal import console

COMMAND = "llm"
DISTRIBUTION = "llmcli"
STATE_FILE = "command-name.json"  # environment -> {"installed": fingerprint of its packages, "noted": bool}


def note_once(arguments: Sequence[str]) -> None:
    """Print the note on stderr if it applies and was not printed before.

    Only for the commands that a new user types first, and not with --quiet. Reading the entry points takes about 20 ms,
    so it is done again only after a package was installed or removed. Without a writable state directory nothing is
    printed, since the note would then appear at every start.
    """
    first = arguments[0] if arguments else "--help"
    if first not in ("train", "help", "version", "-h", "--help", "--version") or {"-q", "--quiet"} & set(arguments):
        return
    with suppress(OSError, ValueError, RuntimeError):  # RuntimeError: there is no home directory
        path = state_directory() / STATE_FILE
        state = _read(path)
        known = state.get(sys.prefix, {})
        installed = _installed()
        if known.get("noted") or known.get("installed") == installed:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # fails where the directory is read-only, before the entry points are read
        others = other_owners()
        state[sys.prefix] = {"installed": installed, "noted": bool(others)}
        path.write_text(json.dumps(state), "utf-8")
        if others:
            console.note(message(others))


def message(others: Sequence[str]) -> str:
    """The note's text; `others` are distributions with their versions, as in "llm 0.32"."""
    return (
        f"note: {' and '.join(others)} in this environment also installs a command named {COMMAND}. The package that "
        f"was installed last owns it, and uninstalling either package deletes it. This program always runs as "
        f"{DISTRIBUTION}; to keep both, install each in its own environment (pipx or uv tool). Shown once."
    )


def other_owners() -> list[str]:
    """Other installed distributions that declare a console script named `llm`, each with its version."""
    from importlib import metadata  # 20 ms

    scripts = metadata.entry_points(group="console_scripts", name=COMMAND)
    owners = {script.dist.name: script.dist.version for script in scripts if script.dist}
    return [f"{name} {version}" for name, version in sorted(owners.items()) if name.lower() != DISTRIBUTION]


def state_directory() -> Path:
    """$XDG_STATE_HOME/llmcli, or ~/.local/state/llmcli. A relative $XDG_STATE_HOME is ignored, as its specification
    says (XDG Base Directory, "Basics")."""
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".local" / "state") / "llmcli"


def _read(path: Path) -> dict[str, dict[str, object]]:
    """The state file; empty if it does not exist or holds something else."""
    try:
        state = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return state if isinstance(state, dict) and all(isinstance(value, dict) for value in state.values()) else {}


def _installed() -> str:
    """A fingerprint of the installed packages that costs one `stat` per directory: their times of modification."""
    directories = [path for path in map(Path, sys.path) if path.name in ("site-packages", "dist-packages")]
    return " ".join(str(path.stat().st_mtime_ns) for path in directories if path.is_dir())
