"""--batch: a line of JSON for each prompt in a file, in its order. A batch that was stopped is continued.

Results are appended to FILE.partial, whose first line has a hash of the model, the options and the prompts;
the complete file replaces it.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.cli.options import GenerationOptions
from llmcli.cli.terminal import console
from llmcli.cli.terminal.safe_text import json_line
from llmcli.config import SamplingConfig
from llmcli.data.prompts import PromptRow, read_prompts
from llmcli.data.regular_file import read_file
from llmcli.errors import LLMError
from llmcli.formats import atomic_io
from llmcli.formats.file_lock import locked

if TYPE_CHECKING:
    from llmcli.data.tokenizers.tokenizer import Tokenizer
    from llmcli.generation.batch import BatchResult
    from llmcli.generation.engine.requests import GenerationRequest
    from llmcli.models.runtime import Runtime

_FILES = {"json_schema", "grammar", "choices"}  # options whose files change the results
_NOT_COMPARED = {"output", "json", "quiet"}  # options that do not change the results


class _Output:
    """Where the lines go: standard output, or a file that is complete at the end."""

    def __init__(self, path: Path | None, key: str, seed: int) -> None:
        """Continue an unfinished file. Raises LLMError if its `key` is another one."""
        self.path = path
        self.seed = seed
        self.done = 0  # `done` rows are finished already
        if path is None:
            return
        self.partial = path.with_name(path.name + ".partial")
        atomic_io.remove_stale(self.partial)
        atomic_io.check_writable(self.partial, force=True, example="results.jsonl")
        self._file = self.partial.open("a+b", buffering=0)
        self._file.seek(0)
        data = self._file.read()
        lines = data.split(b"\n")[:-1]  # the last one may be incomplete
        if data and not data.startswith(b'{"batch"'):
            raise LLMError(f"{self.partial} is no unfinished batch; rename or remove it")
        if (header := _header(lines)).get("batch") == key:
            self.seed = header["seed"]
            self.done = len(lines) - 1
            self._file.truncate(sum(len(line) + 1 for line in lines))
        elif len(lines) > 1:
            raise LLMError(
                f"{self.partial} has {units.count(len(lines) - 1, 'result')} of a batch with another model, other "
                "options or other prompts; give its command again to finish it, or remove it"
            )
        else:
            self._file.truncate(0)
            self._write({"batch": key, "seed": seed})

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json_line(record).encode("utf-8") + b"\n")

    def add(self, record: dict[str, Any]) -> None:
        if self.path is None:
            console.json_result(record)
        else:
            self._write(record)

    def finish(self) -> None:
        if self.path is not None:
            self._file.close()
            _, _, results = self.partial.read_bytes().partition(b"\n")
            atomic_io.write(self.path, [results])
            self.partial.unlink()


def _header(lines: Sequence[bytes]) -> dict[str, Any]:
    """Return the first line of a partial file; {} if it is damaged or missing."""
    try:
        return dict(json.loads(lines[0]))
    except (IndexError, ValueError, TypeError, RecursionError):
        return {}


@contextmanager
def _open_output(
    options: GenerationOptions, model: Path, rows: Sequence[PromptRow], seed: int
) -> Iterator[_Output]:
    if options.output in (None, "-"):
        yield _Output(None, "", seed)
        return
    path = Path(str(options.output))
    atomic_io.reject_overwriting(
        path, "output", [Path(str(options.batch)), model], "an input of this command"
    )
    atomic_io.check_writable(path, force=None, example="results.jsonl")
    with locked(path):
        atomic_io.remove_stale(path)
        yield _Output(path, _hash(options, model, rows), seed)


def _hash(options: GenerationOptions, model: Path, rows: Sequence[PromptRow]) -> str:
    files = sorted(model.iterdir()) if model.is_dir() else [model]
    versions = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    given = [(param.name, vars(options).get(param.name or "")) for param in options.params]
    compared = [pair for pair in given if pair[0] not in _NOT_COMPARED]
    named = [str(value) for name, value in given if name in _FILES and value is not None]
    contents = [read_file(Path(name)) for name in named if os.path.exists(name)]  # noqa: PTH110 (--choices may be a list)
    return hashlib.sha256(
        repr((versions, compared, contents, rows)).encode("utf-8", "surrogatepass")
    ).hexdigest()


def run(
    options: GenerationOptions,
    model: Path,
    runtime: "Runtime",
    tokenizer: "Tokenizer",
    request_of: "Callable[[PromptRow, SamplingConfig], GenerationRequest | BatchResult]",
    answer_key: str,
) -> None:
    """Answer all prompts of --batch; `answer_key` is the key of the text in a record. `request_of` may raise
    errors."""
    from llmcli.generation.batch import decode_batch
    from llmcli.generation.grammar import compile_grammar

    sampling = options.sampling()
    if sampling.grammar:  # otherwise its error would be the result of every prompt
        compile_grammar(sampling.grammar, tokenizer, is_answer=answer_key == "content")
    rows = read_prompts(str(options.batch), options.column)
    with _open_output(options, model, rows, sampling.seed) as output:
        seeded = [(row, replace(sampling, seed=output.seed + number)) for number, row in enumerate(rows)]
        left, progress = seeded[output.done :], _Progress(output.done, len(rows))

        def requests() -> "Iterator[GenerationRequest | BatchResult | LLMError]":
            for row, settings in left:
                try:
                    yield LLMError(row.error) if row.error else request_of(row, settings)
                except LLMError as error:
                    yield error

        try:
            for (row, settings), result in zip(
                left, decode_batch(runtime, tokenizer, requests()), strict=True
            ):
                output.add(_record(row, result, settings.seed, answer_key))
                progress.show(is_error=result.error is not None)
        except (KeyboardInterrupt, SystemExit):
            progress.end()
            if output.path:
                console.warn("the same command goes on where this one stopped")
            raise
        except OSError as error:
            if output.path is None:
                raise
            problem = f"cannot write {output.partial}: {error.strerror or error}"
            raise LLMError(
                f"{problem}; mend that, and the same command goes on where this one stopped"
            ) from error
        output.finish()
    progress.end()
    if progress.has_only_errors:
        raise LLMError("no prompt was answered; each row of the results says why")


def _record(row: PromptRow, result: "BatchResult", seed: int, answer_key: str) -> dict[str, Any]:
    record: dict[str, Any] = {"row": row.number}
    if row.id is not None:
        record["id"] = row.id
    if row.messages:
        record["messages"] = row.messages
    elif row.prompt:
        record["prompt"] = row.prompt
    if result.error is not None:
        return record | {"error": str(result.error)}
    if result.known:
        return record | {answer_key: result.text} | result.known
    if result.choices:
        listed = [
            {"text": text, "probability": round(probability, 6)} for text, probability in result.choices
        ]
        return record | {"choice": result.choices[0][0], "choices": listed}
    return record | {
        answer_key: result.text,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.tokens,
        "seed": seed,
    }


class _Progress:
    """How many prompts are done: a status line in a terminal, notes now and then elsewhere."""

    def __init__(self, done: int, total: int) -> None:
        self._first = self._done = done
        self._total = total
        self._errors = 0
        self._started = time.monotonic()
        if done:
            console.note(f"{done:,} of {total:,} prompts were done before")

    def show(self, *, is_error: bool) -> None:
        self._done += 1
        self._errors += is_error
        now = time.monotonic()
        left = (now - self._started) / (self._done - self._first) * (self._total - self._done)
        console.status(f"{self._done:,} of {self._total:,} prompts, {units.duration(left)} left")

    @property
    def has_only_errors(self) -> bool:
        return 0 < self._errors == self._done - self._first

    def end(self) -> None:
        console.status("")
        seconds = time.monotonic() - self._started
        errors = f"; {units.count(self._errors, 'row')} with an error" if self._errors else ""
        console.note(f"{units.count(self._done - self._first, 'prompt')} in {seconds:,.1f} s{errors}")
