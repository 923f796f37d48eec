"""Opening files: what is no file is an error, and is not waited for."""

from pathlib import Path

import pytest

from llmcli.data.regular_file import MAX_BYTES, read_file
from llmcli.errors import LLMError
from tests.data.corpora import error_of


def test_errors_of_reading_a_whole_file_are_one_sentence() -> None:
    with open("large", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(LLMError, match=r"^large has over 100,000,000 bytes, which is too large for a file of this kin"):
        read_file(Path("large"))
    assert error_of(read_file, Path("missing"), "a list") == "there is no file missing; name a list"
