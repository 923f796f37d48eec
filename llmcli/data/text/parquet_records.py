"""Records in Parquet and Arrow files, read and written row by row. Only this module imports pyarrow, an
optional dependency.

A file is read in the process with limits (data/documents/worker.py).
"""

import contextlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

from llmcli.errors import LLMError, missing_extra

_BATCH_ROWS = 128  # rows held in memory at once
# bytes of a column that are read at once; without this, pyarrow reads the column of a whole row group
_BUFFER_BYTES = 1 << 20
# maximum size of a row group that is written
_GROUP_ROWS = 1024
_GROUP_CHARACTERS = 16_000_000

# first bytes of a table; an Arrow stream has none
PARQUET = b"PAR1"
ARROW_FILE = b"ARRO"
_Batches: TypeAlias = Callable[[list[str]], Iterable[Any]]  # columns -> pyarrow's record batches of them
# names of columns -> records with these columns
Rows: TypeAlias = Callable[[Container[str]], Iterator[dict[str, Any]]]


@contextlib.contextmanager
def open_table(name: str, table: IO[bytes]) -> Iterator[tuple[list[str], Rows]]:
    """Yield (columns of a table, function that reads rows). Uses one thread, and little memory besides a page
    of each column. Raises LLMError if the file is damaged, also while rows are read."""
    pyarrow = _pyarrow(f"reading {name}")
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # other pools reserve a gigabyte of address space
    open_file = _open_parquet if _start(table) == PARQUET else _open_arrow
    try:
        columns, batches = open_file(pyarrow, table)
        yield columns, lambda used: _rows(name, batches([column for column in columns if column in used]))
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise LLMError(f"{name} cannot be read as a table in Parquet or Arrow: {reason}") from error


def _pyarrow(task: str) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra(task, "pyarrow", "parquet") from error
    return pyarrow


def _start(table: IO[bytes]) -> bytes:
    table.seek(0)
    start = table.read(len(PARQUET))
    table.seek(0)
    return start


def _open_parquet(pyarrow: Any, table: IO[bytes]) -> tuple[list[str], _Batches]:
    file = pyarrow.parquet.ParquetFile(table, buffer_size=_BUFFER_BYTES)
    return (
        file.schema_arrow.names,
        lambda used: file.iter_batches(batch_size=_BATCH_ROWS, columns=used, use_threads=False),
    )


def _open_arrow(pyarrow: Any, table: IO[bytes]) -> tuple[list[str], _Batches]:
    """Open a stream of Arrow batches, which `datasets.save_to_disk` writes, or a file of them."""
    is_file = _start(table) == ARROW_FILE

    def open_again() -> Any:
        table.seek(0)
        return pyarrow.ipc.open_file(table) if is_file else pyarrow.ipc.open_stream(table)

    def batches(used: list[str]) -> Iterator[Any]:
        opened = open_again()
        for batch in map(opened.get_batch, range(opened.num_record_batches)) if is_file else opened:
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.select(used).slice(start, _BATCH_ROWS)

    return open_again().schema.names, batches


def _rows(name: str, batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    before = 0
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError as error:
            raise LLMError(
                f"{name}: text that is not UTF-8 ({error.reason}) within {batch.num_rows:,} rows starting at "
                f"row {before + 1:,}; wanted a column of type string"
            ) from error
        yield from rows
        before += len(rows)


def write_parquet(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write rows of strings. Raises LLMError if pyarrow is not installed, and OSError."""
    pyarrow = _pyarrow("writing Parquet files")
    schema = pyarrow.schema([(column, pyarrow.string()) for column in columns])
    # an open file, because pyarrow interprets some names as other file systems and refuses names that are not
    # UTF-8
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
            group = []
            characters = 0
    if group:
        yield group
