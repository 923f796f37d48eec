"""Memory limits of control groups, on copies of the directories of real machines."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from llmcli.training.step import hardware
from llmcli.training.step.hardware import available_memory

MB = 1 << 20
Put = Callable[..., None]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """`put("sys/a", memory_max=3)` makes a group with the file memory.max in it."""

    def make(group: str, **files: object) -> None:
        directory = tmp_path / group
        directory.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (directory / name.replace("memory_", "memory.", 1)).write_text(f"{value}\n")

    return make


def available(root: Path, groups: str) -> float:
    """To a process with these lines in /proc/self/cgroup, where root/sys is /sys/fs/cgroup."""
    (root / "cgroup").write_text(groups)
    return available_memory(root / "cgroup", root / "sys")


def test_the_smallest_remainder_of_nested_groups_counts(tmp_path: Path, put: Put) -> None:
    put("sys", memory_stat="anon 7")  # the root has no limit
    put("sys/user.slice", memory_max=8000 * MB, memory_current=7000 * MB, memory_stat="inactive_file 0")
    put("sys/user.slice/job", memory_max=4000 * MB, memory_current=1000 * MB, memory_stat="inactive_file 0")
    put("sys/user.slice/job/step", memory_max="max", memory_current=900 * MB)
    assert available(tmp_path, "0::/user.slice/job/step\n") == 1000 * MB  # what other groups leave of the slice
    put("sys/user.slice", memory_max="max")
    assert available(tmp_path, "0::/user.slice/job/step\n") == 3000 * MB
    put("sys/user.slice/job", memory_max="max")
    assert available(tmp_path, "0::/user.slice/job/step\n") == math.inf


# a container of 4 GB that has read a text of 5 GB
STAT = f"anon {200 * MB}\nfile {3700 * MB}\nshmem {100 * MB}\nactive_file {1600 * MB}\ninactive_file {2000 * MB}"


def test_the_files_of_a_group_say_how_much_is_left(tmp_path: Path, put: Put) -> None:
    for number, (files, left) in enumerate(
        (
            # memory.high is a limit too
            ({"memory_max": 4000, "memory_high": 3000, "memory_current": 1000, "memory_stat": "active_file 0"}, 2000),
            # the page cache does not count as used; tmpfs (shmem) and process memory (anon) do
            ({"memory_max": 4000 * MB, "memory_current": 3990 * MB, "memory_stat": STAT}, (4000 - 390) * MB),
            # a group over its limit
            ({"memory_max": 3000, "memory_high": 500, "memory_current": 2900}, 0),
            # files that cannot be read
            *(
                ({"memory_max": text, "memory_current": text, "memory_stat": text}, math.inf)
                for text in ("", "max", "x", "-5")
            ),
        )
    ):
        put(f"{number}/sys", **files)
        assert available(tmp_path / str(number), "0::/\nnot a line of its kind\n\n:") == left, files
    assert available_memory(tmp_path / "nowhere") == math.inf


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path, put: Put) -> None:
    """The name of the group on the host does not exist inside; a group created inside does. Hierarchies of version 1
    are ignored."""
    put("sys", memory_max=3000, memory_current=1000)
    put("sys/jobs", memory_max=1500, memory_current=500)
    put("sys/memory/b", memory_max=800, memory_current=700)
    assert available(tmp_path, "4:memory:/b\n0::/jobs\n") == 1000
    for name in ("/docker/12ab", "/elsewhere", "/../other"):
        assert available(tmp_path, f"0::{name}\n") == 2000


def test_free_memory_respects_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "available_memory", lambda: 12345.0)
    assert hardware.free_memory("cpu") == 12345.0
    assert available_memory() > 1e6  # of this very process
