"""Marks for tests that need what not every operating system has; each says what is missing where it is skipped."""

import os
import sys
import tempfile
from pathlib import Path

import pytest


def _can_link() -> bool:
    """Whether this user may make symbolic links: Windows asks for a privilege or for its developer mode."""
    with tempfile.TemporaryDirectory() as place:
        try:
            Path(place, "link").symlink_to("target")
        except OSError:
            return False
    return True


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc or needs Linux's limits on memory")
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no POSIX signals, modes, limits or shell")
named_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes in the file system here")
file_locks = pytest.mark.skipif(os.name == "nt", reason="replaces fcntl.flock, which Windows does not have")
symbolic_links = pytest.mark.skipif(not _can_link(), reason="this user may not make symbolic links here")
