"""Memory limits of Linux control groups (cgroups), such as that of a container.

Reads versions 1 and 2. Groups are nested; each may have a limit, and the smallest remainder counts. Imports nothing of
this program.
"""

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Files:
    """Names of the files in the directory of a group, by version of cgroups."""

    limits: tuple[str, ...]  # in bytes, or "max"
    usage: str
    page_cache: tuple[str, ...]  # keys in memory.stat


# memory.high is not a hard limit, but the kernel slows down a group that exceeds it
VERSION_2 = Files(("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"))
VERSION_1 = Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def available_memory(process: Path = Path("/proc/self")) -> float:
    """Bytes that a process may still use by the limits of all its groups; infinite without a limit.

    `process` is its directory in /proc.
    """
    return min((_available(group, files) for group, files in _groups(process)), default=math.inf)


def _groups(process: Path) -> Iterator[tuple[Path, Files]]:
    """(directory, file names) of each group that counts the memory of a process, the innermost group first."""
    mounts = list(_mounts(process))
    for line in _lines(process / "cgroup"):  # such as 0::/user.slice, or 4:memory:/docker/12ab
        number, controllers, name = [*line.split(":", 2), "", ""][:3]
        version = 2 if number == "0" and not controllers else 1 if "memory" in controllers.split(",") else 0
        for kind, root, point in mounts:
            if kind == version:
                files = VERSION_2 if version == 2 else VERSION_1
                yield from ((group, files) for group in _upwards(_inside(name, root), point))


def _mounts(process: Path) -> Iterator[tuple[int, str, Path]]:
    """(version, group, directory) of each mounted hierarchy that counts memory: `directory` shows `group`."""
    for line in _lines(process / "mountinfo"):  # the fields are those of man 5 proc
        before, _, after = line.partition(" - ")
        fields = before.split()
        kind, _, options = [*after.split(), "", "", ""][:3]
        if len(fields) < 5 or not (kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(","))):
            continue
        root, point = (re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), name) for name in fields[3:5])
        yield (2 if kind == "cgroup2" else 1), root, Path(point)


def _inside(name: str, root: str) -> PurePosixPath:
    """The path of a group relative to the group `root`. Inside a container its own group is often the root, though
    /proc gives the name that the host uses.

    >>> str(_inside("/docker/12ab/jobs", "/docker/12ab")), str(_inside("/docker/12ab", "/"))
    ('jobs', 'docker/12ab')
    """
    path, top = PurePosixPath(name), PurePosixPath(root)
    if ".." in path.parts or not path.is_relative_to(top):
        return PurePosixPath()
    return path.relative_to(top)


def _upwards(path: PurePosixPath, point: Path) -> Iterator[Path]:
    """The directories of a group and of all groups that contain it, up to the mount point."""
    for part in (path, *path.parents):
        yield point / part


def _available(group: Path, files: Files) -> float:
    """Bytes left of the limit of one group. Page cache does not count as used: the kernel frees it when necessary."""
    limit = min((_number(group / name) for name in files.limits), default=math.inf)
    if math.isinf(limit):
        return math.inf
    used = _number(group / files.usage)
    if math.isinf(used):
        return math.inf
    cached = {key: value for key, _, value in (line.partition(" ") for line in _lines(group / "memory.stat"))}
    reclaimable = sum(int(value) for key in files.page_cache if (value := cached.get(key, "0")).isdecimal())
    return max(0.0, limit - max(0.0, used - reclaimable))


def _number(path: Path) -> float:
    """The number in a file; infinite if the file holds none or does not exist."""
    text = "".join(_lines(path)[:1])
    return float(text) if text.isdecimal() else math.inf


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError, ValueError):
        return path.read_text("utf-8").splitlines()
    return []
