"""Only one run can write a file at a time, and no lock is left behind."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmcli.errors import LLMError
from llmcli.formats import file_lock
from tests import platforms
from tests.formats.test_atomic_io import listing, open_descriptors, refuse


@platforms.file_locks
def test_without_file_locks_the_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_descriptors()
    for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM):
        with monkeypatch.context() as patch:
            patch.setattr("fcntl.flock", refuse(number))
            with file_lock.locked(Path("f")) as problem:
                assert problem == os.strerror(number)
        with file_lock.locked(Path("f")) as problem:
            assert problem == ""
    for number in (errno.EWOULDBLOCK, errno.EACCES):  # of a held lock
        with monkeypatch.context() as patch:
            patch.setattr("fcntl.flock", refuse(number))
            with pytest.raises(LLMError, match="another run is writing to f"), file_lock.locked(Path("f")):
                pass
    assert open_descriptors() <= before


def test_a_lock_is_released_when_its_holder_is_killed() -> None:
    code = "import time; from pathlib import Path; from llmcli.formats import file_lock\n"
    code += "with file_lock.locked(Path('f')): print('here', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"here\n"
    with pytest.raises(LLMError, match="another run"), file_lock.locked(Path("f")):
        pass
    holder.kill()
    holder.wait()
    assert listing() == [".f.lock"]
    with file_lock.locked(Path("f")):
        pass
    assert listing() == []
