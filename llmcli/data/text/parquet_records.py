"""Records in a Parquet file, read and written row by row. Only this module imports pyarrow, an optional dependency.

A file is read in the process with limits (data/documents/worker.py).
"""

import contextlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

from llmcli.errors import LLMError, missing_extra

_BATCH_ROWS = 128  # held in memory at once
_BUFFER_BYTES = 1 << 20  # of a column that are read at once; otherwise pyarrow reads that of a whole row group
_GROUP_ROWS, _GROUP_CHARACTERS = 1024, 16_000_000  # in a row group that is written

Rows: TypeAlias = Callable[[Container[str]], Iterator[dict[str, Any]]]  # names of columns -> records with these columns


@contextlib.contextmanager
def open_parquet(name: str, table: IO[bytes]) -> Iterator[tuple[list[str], Rows]]:
    """Yield (columns of a table, function that reads rows), in one thread and with little memory beside a page of each
    column. Raises LLMError, also later, if the file is damaged."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra(f"reading {name}", "pyarrow", "parquet") from error
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # the others reserve a gigabyte of addresses
    try:
        with pyarrow.parquet.ParquetFile(table, buffer_size=_BUFFER_BYTES) as file:
            columns: list[str] = file.schema_arrow.names
            yield columns, lambda used: _rows(name, file, [column for column in columns if column in used])
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise LLMError(f"{name} cannot be read as a Parquet file: {reason}") from error


def _rows(name: str, file: Any, columns: list[str]) -> Iterator[dict[str, Any]]:
    before = 0
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError as error:
            raise LLMError(
                f"{name}: text that is not UTF-8 ({error.reason}) in the {batch.num_rows:,} rows from row "
                f"{before + 1:,} on; wanted a column of type string"
            ) from error
        yield from rows
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
    """Divide rows into groups of at most _GROUP_ROWS rows, and of about _GROUP_CHARACTERS characters."""
    group: list[Sequence[str]] = []
    characters = 0
    for row in rows:
        group.append(row)
        characters += sum(map(len, row))
        if len(group) == _GROUP_ROWS or characters >= _GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group
