"""Marks for tests that need what not every operating system has, or take long; each says why it is skipped."""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
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


def _can_make_hosts() -> bool:
    """Whether this user may make network namespaces, and connect them."""
    if not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        return False
    namespaces = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork"]
    words = [*namespaces, "ip", "link", "add", "one", "type", "veth", "peer", "name", "two"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


FULL = bool(os.environ.get("LLMCLI_FULL"))  # whether tests that take long run too
in_full = pytest.mark.skipif(not FULL, reason="takes long; LLMCLI_FULL=1 runs it too")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc or needs Linux's limits on memory")
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no POSIX signals, modes, limits or shell")
named_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes in the file system here")
file_locks = pytest.mark.skipif(os.name == "nt", reason="replaces fcntl.flock, which Windows does not have")
symbolic_links = pytest.mark.skipif(not _can_link(), reason="this user may not make symbolic links here")
pseudo_terminals = pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
network_namespaces = pytest.mark.skipif(
    not _can_make_hosts(), reason="needs Linux, root, and ip, unshare and nsenter, to make hosts of network namespaces"
)
needs_onnxruntime = pytest.mark.skipif(
    find_spec("onnxruntime") is None or find_spec("onnx") is None,
    reason="needs onnxruntime and onnx: pip install -e '.[fast]'",
)
