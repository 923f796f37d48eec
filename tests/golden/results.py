"""Runs recorded commands in this process, and compares what comes out with the record."""

import hashlib
import importlib.util
import json
import math
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.golden.commands import SETUP, Command, Compare
from tests.golden.models import make_models, read_safetensors

HERE = Path(__file__).parent
ABSOLUTE = 2e-5  # tolerance of numbers near 0; most are printed with 6 decimals
IN_METADATA = ("llmcli", "sha256")  # the version of the format, and a hash of it: compared by type
MISSING = object()


def record_file(group: str) -> Path:
    return HERE / f"{group}.json"


def is_runnable(command: Command) -> bool:
    return not command.needs or importlib.util.find_spec(command.needs) is not None


def set_up(directory: Path) -> None:
    """Fill a directory with all that the commands read."""
    make_models(directory)
    with environment(directory):
        for line in SETUP:
            exit_code, stdout = invoke(line)
            assert exit_code == 0, f"llm {line}: {stdout}"


@contextmanager
def environment(directory: Path, needs: str = "") -> Iterator[None]:
    """Work in a directory, with nothing that a command's output depends on: no named model, no terminal, and no
    onnxruntime (whose products differ more between processors) unless a command `needs` it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.delenv("LLMCLI_MODEL", raising=False)
        patch.setenv("COLUMNS", "100")
        if needs != "onnxruntime":
            patch.setitem(sys.modules, "onnxruntime", None)  # importing it fails
        yield


def invoke(line: str, stdin: str = "") -> tuple[int, str]:
    """(exit code, standard output) of `llm` with these arguments."""
    from llmcli.cli.app import app

    result = CliRunner().invoke(app, shlex.split(line), input=stdin.encode("utf-8"))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def run(command: Command) -> dict[str, Any]:
    """What is recorded of a command: its exit code, its output and the files it writes, as JSON has them."""
    exit_code, stdout = invoke(command.line, command.stdin)
    output = parsed_output(stdout, command.compare)
    kept = {"exit_code": exit_code, "stdout": output}
    if command.files:
        kept["files"] = {name: described(Path(name), exact=command.exact_tensors) for name in command.files}
    if command.save_text:
        Path(command.save_text).write_bytes(output["text"].encode("utf-8"))
    return json.loads(json.dumps(by_type(kept, command.type_only)))


def parsed_output(stdout: str, compare: Compare) -> Any:
    if compare is Compare.JSON:
        lines = [json.loads(line) for line in stdout.splitlines()]
        return lines[0] if len(lines) == 1 else lines
    if compare is Compare.ROWS:
        return [line.split("\t") for line in stdout.splitlines()]
    return stdout if compare is Compare.TEXT else sorted(figures(stdout))


def figures(text: str) -> set[str]:
    """Numbers of four characters or more, and hashes.

    >>> sorted(figures("a 1.25, 3 of 12,000 in abcdef0123456789: float32"))
    ['1.25', '12,000', 'abcdef0123456789']
    """
    words = (word.strip(".,;:()[]") for word in text.split())
    return {word for word in words if re.fullmatch(r"[-+]?\d[\d.,]{2,}\d%?|[0-9a-f]{16,}", word)}


def described(path: Path, *, exact: bool) -> Any:
    """The content of a file: JSON, or metadata and tensors, a tensor as [type, shape, hash or mean and norm]."""
    if path.suffix == ".json":
        return json.loads(path.read_text("utf-8"))
    metadata, tensors = read_gguf(path) if path.suffix == ".gguf" else read_safetensors(path)
    summaries: dict[str, list[Any]] = {}
    for name, (dtype, shape, data) in tensors.items():
        if exact:
            values: list[Any] = [hashlib.sha256(data).hexdigest()[:16]]
        else:
            array = np.frombuffer(data, "<f4").astype(np.float64)
            values = [float(array.mean()), float(np.linalg.norm(array))]
        summaries[name] = [dtype, list(shape), *values]
    documents = {key: json.loads(text) if key.endswith(".json") else text for key, text in metadata.items()}
    return {"metadata": by_type(documents, IN_METADATA), "tensors": summaries}


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...], bytes]]]:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    metadata = {key.removeprefix("general."): field.contents() for key, field in reader.fields.items()}
    tensors = {
        tensor.name: (tensor.tensor_type.name, tuple(map(int, tensor.shape)), tensor.data.tobytes())
        for tensor in reader.tensors
    }
    return metadata, tensors


def by_type(value: Any, keys: tuple[str, ...], inside: bool = False) -> Any:
    """A JSON value in which those under certain keys are replaced by their types; of a list, by those of its entries,
    each once.

    >>> by_type({"a": 1, "b": [{"c": 1.5}, {"c": 2.0}]}, ("b",))
    {'a': 1, 'b': [{'c': '<number>'}]}
    """
    if isinstance(value, dict):
        return {key: by_type(inner, keys, inside or key in keys) for key, inner in value.items()}
    if isinstance(value, list):
        entries = [by_type(inner, keys, inside) for inner in value]
        return [entry for i, entry in enumerate(entries) if not inside or entry not in entries[:i]]
    if not inside or value is None:
        return value
    return f"<{'number' if type(value) in (int, float) else type(value).__name__}>"


def differences(found: Any, recorded: Any, command: Command, where: str = "") -> list[str]:
    """Where a result differs from the record, one line each."""
    if where == ".stdout" and command.compare is Compare.FIGURES:
        return [f"{where}: {figure} is missing" for figure in recorded if figure not in found]
    if where == ".stdout" and command.compare is Compare.ROWS and found and recorded:
        found, recorded = [[without_names(row) for row in rows[1:]] for rows in (found, recorded)]
    if isinstance(found, dict) and isinstance(recorded, dict):
        keys = list(dict.fromkeys([*recorded, *found]))
        pairs = [(f"{where}.{key}", found.get(key, MISSING), recorded.get(key, MISSING)) for key in keys]
        order = [] if list(found) == [key for key in keys if key in found] else [f"{where}: keys in another order"]
    elif isinstance(found, list) and isinstance(recorded, list) and len(found) == len(recorded):
        pairs = [(f"{where}[{i}]", *both) for i, both in enumerate(zip(found, recorded, strict=True))]
        order = []
    else:
        same = found == recorded and type(found) is type(recorded)
        if same or (type(found) is type(recorded) is float and is_close(found, recorded, command.tolerance)):
            return []
        return [f"{where}: {shown(found)}, recorded {shown(recorded)}"]
    return order + [line for place, one, other in pairs for line in differences(one, other, command, place)]


def without_names(row: list[str]) -> list[Any]:
    """The cells of a table, numbers as such, without what stands in parentheses."""
    cells = [re.sub(r"\(.*?\)", "()", cell) for cell in row]
    return [float(cell) if re.fullmatch(r"[-+]?\d+\.\d+", cell) else cell for cell in cells]


def is_close(found: float, recorded: float, tolerance: float) -> bool:
    return math.isclose(found, recorded, rel_tol=tolerance, abs_tol=ABSOLUTE)


def shown(value: Any) -> str:
    text = "nothing" if value is MISSING else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:120]}…"
