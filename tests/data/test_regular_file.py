"""Opening files: what is no file is an error, and is not waited for."""

import os
import socket
from pathlib import Path

import pytest

from llmcli.data.regular_file import NotRegularError, open_regular
from tests import platforms


def test_a_file_is_opened() -> None:
    Path("a").write_bytes(b"text")
    with open_regular(Path("a")) as file:
        assert file.read() == b"text"
    with pytest.raises(FileNotFoundError):
        open_regular(Path("b"))


@platforms.named_pipes
@pytest.mark.usefixtures("no_hang")
def test_what_is_no_file_is_an_error() -> None:
    os.mkfifo("pipe")
    Path("directory").mkdir()
    Path("link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        for name in ("pipe", "directory", "link", "socket", "/dev/null"):
            with pytest.raises(NotRegularError, match="not a regular file"):
                open_regular(Path(name))
