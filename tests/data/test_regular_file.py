"""Opening files: what is no file is an error, and is not waited for."""

import os
import socket
from pathlib import Path

import pytest

from llmcli.data.regular_file import MAX_BYTES, NotRegularError, open_regular, read_file
from llmcli.errors import LLMError
from tests import platforms
from tests.data.corpora import error_of


@platforms.named_pipes
@pytest.mark.usefixtures("no_hang")
def test_what_is_no_file_is_an_error() -> None:
    os.mkfifo("pipe")
    Path("directory").mkdir()
    Path("link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        for name in ("pipe", "directory", "link", "socket", "/dev/null"):
            found = "a directory" if name == "directory" else "not a regular file"
            with pytest.raises(NotRegularError, match=found):
                open_regular(Path(name))
            with pytest.raises(LLMError, match=rf"^{name} is {found}; name a list$"):
                read_file(Path(name), "a list")


def test_errors_of_reading_a_whole_file_are_one_sentence() -> None:
    with open("large", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(LLMError, match=r"^large has over 100,000,000 bytes, which is too large for a file of this kin"):
        read_file(Path("large"))
    assert error_of(read_file, Path("missing"), "a list") == "there is no file missing; name a list"
