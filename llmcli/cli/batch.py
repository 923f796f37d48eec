"""--batch: one line of JSON per prompt of a file, in the order of the file. A stopped batch can be resumed.

Results are appended to FILE.partial, whose first line has a hash of the model, the options and the prompts.
When all prompts are done, FILE is written and FILE.partial is removed.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
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

if TYPE_CHECKING:
    from llmcli.data.tokenizers.tokenizer import Tokenizer
    from llmcli.generation.batch import BatchResult
    from llmcli.generation.engine.requests import GenerationRequest
    from llmcli.models.runtime import Runtime

_FILES = {"json_schema", "grammar", "choices"}  # options whose files change the results
_NOT_COMPARED = {"output", "json", "quiet"}  # options that do not change the results


class _Output:
    """The destination of the lines: standard output, or a file that is written when all prompts are done."""

    def __init__(self, options: GenerationOptions, model: Path, rows: Sequence[PromptRow], seed: int) -> None:
        """Lock the file, and resume it if it is unfinished. Raises LLMError if it belongs to a different
        batch."""
        self.seed = seed
        self.done = 0  # rows finished by an earlier run
        self.path = None if options.output in (None, "-") else Path(str(options.output))
        if self.path is None:
            return
        inputs = [Path(str(options.batch)), model]
        atomic_io.reject_overwriting(self.path, "output", inputs, "an input of this command")
        atomic_io.check_writable(self.path, force=None, example="results.jsonl")
        options.claim(self.path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        atomic_io.remove_stale(self.partial)
        atomic_io.check_writable(self.partial, force=True, example="results.jsonl")
        self._file = self.partial.open("a+b", buffering=0)
        self._file.seek(0)
        data = self._file.read()
        lines = data.split(b"\n")[:-1]  # the last line may be incomplete
        header = _parse(lines[0]) if lines else {}
        key = _hash(options, model, rows)
        if not data:
            self._write({"batch": key, "seed": seed})
        elif header.get("batch") == key:
            self.seed = header["seed"]
            results = zip(lines[1:], rows, strict=False)
            is_next = [_parse(line).get("row") == row.number for line, row in results]
            self.done = [*is_next, False].index(False)  # a damaged line and those after it are made again
            self._file.truncate(sum(len(line) + 1 for line in lines[: self.done + 1]))
            console.note(f"{self.done:,} of {len(rows):,} prompts are already done")
        else:
            raise LLMError(
                f"{self.partial} belongs to a batch with a different model, options or prompts; "
                "repeat the command of that batch to finish it, or remove it"
            )

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
            atomic_io.write(self.path, results)
            self.partial.unlink()


def _parse(line: bytes) -> dict[str, Any]:
    """Parse a record in a partial file; {} if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _hash(options: GenerationOptions, model: Path, rows: Sequence[PromptRow]) -> str:
    files = sorted(model.iterdir()) if model.is_dir() else [model]
    versions = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    given = [(param.name, vars(options).get(param.name or "")) for param in options.params]
    compared = [pair for pair in given if pair[0] not in _NOT_COMPARED]
    named = [str(value) for name, value in given if name in _FILES and value is not None]
    # --choices may be a list instead of a file
    contents = [read_file(Path(name)) for name in named if os.path.exists(name)]  # noqa: PTH110
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
    """Answer all prompts of --batch; `answer_key` is the key of the text in a record. If `request_of` raises
    an error, it becomes the result of that prompt."""
    from llmcli.generation.batch import BatchResult, decode_batch
    from llmcli.generation.grammar import compile_grammar

    sampling = options.sampling()
    if sampling.grammar:  # otherwise its error would be the result of every prompt
        compile_grammar(sampling.grammar, tokenizer, is_answer=answer_key == "content")
    rows = read_prompts(str(options.batch), options.column)
    output = _Output(options, model, rows, sampling.seed)
    seeded = [(row, replace(sampling, seed=output.seed + number)) for number, row in enumerate(rows)]
    left = seeded[output.done :]

    def requests() -> "Iterator[GenerationRequest | BatchResult]":
        for row, settings in left:
            try:
                yield BatchResult(error=LLMError(row.error)) if row.error else request_of(row, settings)
            except LLMError as error:
                yield BatchResult(error=error)

    done = errors = shortened = 0
    started = time.monotonic()
    try:
        for (row, settings), result in zip(left, decode_batch(runtime, tokenizer, requests()), strict=True):
            output.add(_record(row, result, settings.seed, answer_key))
            done += 1
            errors += result.error is not None
            shortened += bool(result.left_out)
            time_left = (time.monotonic() - started) / done * (len(left) - done)
            console.status(
                f"{output.done + done:,} of {len(rows):,} prompts, {units.duration(time_left)} left"
            )
    except (KeyboardInterrupt, SystemExit):
        if output.path:
            console.warn("the same command resumes from here")
        raise
    except OSError as error:
        if output.path is None:
            raise
        problem = f"cannot write {output.partial}: {error.strerror or error}"
        raise LLMError(f"{problem}; after fixing that, the same command resumes from here") from error
    finally:
        console.status("")
        failed = f"; {units.count(errors, 'row')} with an error" if errors else ""
        console.note(f"{units.count(done, 'prompt')} in {time.monotonic() - started:,.1f} s{failed}")
        if shortened:
            _note_shortened(shortened, runtime.context, answer_key)
    output.finish()
    if 0 < errors == done:
        raise LLMError("no prompt was answered; each row of the results says why")


def _note_shortened(rows: int, context: int, answer_key: str) -> None:
    key = "dropped_turns" if answer_key == "content" else "cut"
    console.note(
        f"the context of {context:,} tokens is too short for {units.count(rows, 'row')}: "
        f"only the end is used (see {key})"
    )


def _record(row: PromptRow, result: "BatchResult", seed: int, answer_key: str) -> dict[str, Any]:
    record: dict[str, Any] = {"row": row.number}
    if row.id is not None:
        record["id"] = row.id
    if row.messages:
        record["messages"] = row.messages
    elif not row.error:
        record["prompt"] = row.prompt
    if result.error is not None:
        return record | {"error": str(result.error)}
    record |= result.left_out
    if result.known:
        return record | {answer_key: result.text} | result.known
    if result.choices:
        listed = [
            {"text": text, "probability": round(probability, 6)} for text, probability in result.choices
        ]
        return record | {"choice": result.choices[0][0], "choices": listed}
    assert result.started and result.finished, "it has ended"
    return record | {
        answer_key: result.text,
        "finish_reason": result.finished.reason,
        "prompt_tokens": result.started.prompt_tokens,
        "completion_tokens": result.finished.tokens,
        "seed": seed,
    }
