"""Memory limits of Linux control groups: what a container may still use.

Reads versions 1 and 2, and groups inside groups: each level may have a limit of its own, and the tightest one holds.
Knows nothing of torch or of this program; `machine` asks it.
"""

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Files:
    """The names of the files in the directory of a group."""

    limits: tuple[str, ...]  # in bytes, or "max"
    used: str
    page_cache: tuple[str, ...]  # keys in memory.stat


# memory.high is no hard limit, but a group above it is slowed down until it is below
VERSION_2 = Files(("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"))
VERSION_1 = Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def available_memory(process: Path = Path("/proc/self")) -> float:
    """Bytes that the groups of a process let it take: the least over all its groups, infinite where none has a limit.

    `process` is its directory in /proc.
    """
    return min((_available(group, files) for group, files in _groups(process)), default=math.inf)


def _groups(process: Path) -> Iterator[tuple[Path, Files]]:
    """The directory of each group that counts the memory of a process, the innermost first, for each version."""
    mounts = list(_mounts(process))
    for line in _lines(process / "cgroup"):  # such as 0::/user.slice, or 4:memory:/docker/12ab
        number, controllers, name = [*line.split(":", 2), "", ""][:3]
        version = 2 if number == "0" and not controllers else 1 if "memory" in controllers.split(",") else 0
        for kind, root, point in mounts:
            if kind == version:
                files = VERSION_2 if version == 2 else VERSION_1
                yield from ((group, files) for group in _upwards(_inside(name, root), point))


def _mounts(process: Path) -> Iterator[tuple[int, str, Path]]:
    """(version, group, directory): which group a directory shows, for each hierarchy of groups that counts memory."""
    for line in _lines(process / "mountinfo"):  # the fields are those of man 5 proc
        before, _, after = line.partition(" - ")
        fields = before.split()
        kind, _, options = [*after.split(), "", "", ""][:3]
        if len(fields) < 5 or not (kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(","))):
            continue
        root, point = (re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), name) for name in fields[3:5])
        yield (2 if kind == "cgroup2" else 1), root, Path(point)


def _inside(name: str, root: str) -> PurePosixPath:
    """A group's path below the directory that shows the group `root`. A container often sees its own group as the root,
    under whatever name the host has for it.

    >>> str(_inside("/docker/12ab/jobs", "/docker/12ab")), str(_inside("/docker/12ab", "/"))
    ('jobs', 'docker/12ab')
    """
    path, top = PurePosixPath(name), PurePosixPath(root)
    if ".." in path.parts or not path.is_relative_to(top):
        return PurePosixPath()
    return path.relative_to(top)


def _upwards(path: PurePosixPath, point: Path) -> Iterator[Path]:
    """The directory of a group and those of the groups around it, up to the mount point."""
    for part in (path, *path.parents):
        yield point / part


def _available(group: Path, files: Files) -> float:
    """Bytes left of the limit of one group. The page cache does not count: the kernel frees it when memory is short."""
    limit = min((_number(group / name) for name in files.limits), default=math.inf)
    if math.isinf(limit):
        return math.inf
    used = _number(group / files.used)
    if math.isinf(used):
        return math.inf
    cached = {key: value for key, _, value in (line.partition(" ") for line in _lines(group / "memory.stat"))}
    reclaimable = sum(int(value) for key in files.page_cache if (value := cached.get(key, "0")).isdecimal())
    return max(0.0, limit - max(0.0, used - reclaimable))


def _number(path: Path) -> float:
    """The bytes in a file; infinite where it holds none or is not there."""
    text = "".join(_lines(path)[:1])
    return float(text) if text.isdecimal() else math.inf


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError, ValueError):
        return path.read_text("utf-8").splitlines()
    return []
