"""Read a tokenizer.json that the user names."""

import stat
from pathlib import Path

from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError, usage

MAX_TOKENIZER_BYTES = 100_000_000  # three times the largest published one


def read_tokenizer(path: str, expected: str = "a tokenizer.json") -> tuple[str, Tokenizer]:
    """(text, tokenizer) of the file that --tokenizer names. Raises LLMError, which says to give what is `expected`."""
    if not path:
        raise usage(f"--tokenizer is empty; give {expected}")
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise LLMError(f"--tokenizer {path} is not a regular file; give {expected}")
        if status.st_size > MAX_TOKENIZER_BYTES:
            raise LLMError(
                f"--tokenizer {path} has over {MAX_TOKENIZER_BYTES:,} bytes, too many for a tokenizer; give {expected}"
            )
        text = Path(path).read_text("utf-8")
    except FileNotFoundError:
        raise LLMError(f"--tokenizer {path}: there is no such file; give {expected}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LLMError(f"--tokenizer {path} cannot be read as text: {error}") from error
    try:
        return text, Tokenizer.from_json(text)
    except LLMError as error:
        raise LLMError(f"--tokenizer {path}: {error}") from error
