"""Records in a Parquet file, read and written row by row. Only this module imports pyarrow, an optional dependency."""

import contextlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

from llmcli.errors import LLMError, missing_extra

MAGIC = b"PAR1"  # first bytes of a Parquet file
_BATCH_ROWS = 1024  # held in memory at once
_GROUP_CHARACTERS = 16_000_000  # in a row group that is written

# names of columns -> (row number from 1, record with these columns), ...
Rows: TypeAlias = Callable[[Container[str]], Iterator[tuple[int, object]]]


def is_parquet(file: IO[bytes]) -> bool:
    start = file.read(len(MAGIC))
    file.seek(0)
    return start == MAGIC


@contextlib.contextmanager
def open_parquet(name: str, table: IO[bytes]) -> Iterator[tuple[list[str], Rows]]:
    """Yield (columns of a table, function that reads rows). Raises LLMError, also later, if the file is damaged."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra(f"reading {name}", "pyarrow", "parquet") from error
    try:
        with pyarrow.parquet.ParquetFile(table) as file:
            columns: list[str] = file.schema_arrow.names
            yield columns, lambda used: _rows(name, file, [column for column in columns if column in used])
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise LLMError(f"{name} cannot be read as a Parquet file: {reason}") from error


def _rows(name: str, file: Any, columns: list[str]) -> Iterator[tuple[int, object]]:
    before = 0
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError as error:
            raise LLMError(
                f"{name}: text that is not UTF-8 ({error.reason}) in the {batch.num_rows:,} rows from row "
                f"{before + 1:,} on; wanted a column of type string"
            ) from error
        yield from enumerate(rows, before + 1)
        before += len(rows)


def write_parquet(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write rows of strings. Raises LLMError if pyarrow is not installed, and OSError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra("writing Parquet files", "pyarrow", "parquet") from error
    schema = pyarrow.schema([(column, pyarrow.string()) for column in columns])
    # pyarrow would read some names as those of other file systems, and refuses names that are not UTF-8
    with open(path, "wb") as opened, pyarrow.parquet.ParquetWriter(opened, schema) as file:
        for group in _groups(rows):
            values = zip(*group, strict=True)
            file.write_table(pyarrow.table(dict(zip(columns, values, strict=True)), schema))


def _groups(rows: Iterable[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    """Divide rows into groups of at most _BATCH_ROWS rows, and of about _GROUP_CHARACTERS characters."""
    group: list[Sequence[str]] = []
    characters = 0
    for row in rows:
        group.append(row)
        characters += sum(map(len, row))
        if len(group) == _BATCH_ROWS or characters >= _GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group
