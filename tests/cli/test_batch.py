"""--batch: results in a file or on standard output, resumed after an end at any point."""

import errno
import json
import os
from pathlib import Path

import pytest

from llmcli.cli import batch
from llmcli.formats import file_lock
from tests import platforms
from tests.cli.commands.test_chat import write_chat_model
from tests.conftest import Llm

PROMPTS = ["The cat", "The dog", "x", "On the mat", "The"]
GENERATE = ("generate", "--batch", "p.txt", "-n", 6, "-o", "out.jsonl")


@pytest.fixture
def prompts(tmp_path: Path, tiny_model: Path) -> Path:
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS), "utf-8")
    return tmp_path / "p.txt"


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def end_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the next batch end without any cleanup after some results, as a kill does."""
    rows = iter(range(count))
    record = batch._record

    def record_or_end(*arguments):
        if next(rows, None) is None:
            raise RuntimeError("killed")
        return record(*arguments)

    monkeypatch.setattr(batch, "_record", record_or_end)


def test_a_batch_that_was_ended_goes_on_with_the_same_results(
    llm: Llm, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    with monkeypatch.context() as patch:
        end_after(patch, 2)
        assert isinstance(llm(*GENERATE).exception, RuntimeError)
    # a line that somebody else wrote, and one that was being written
    partial.write_bytes(partial.read_bytes() + b'garbage\n{"row": 3, "pro')
    seed = json.loads(partial.read_text("utf-8").splitlines()[1])["seed"]  # random, and kept
    for changed in (("--min-p", 0), ("-k", 7)):
        refused = llm(*GENERATE, *changed)
        assert refused.exit_code == 1 and "belongs to a batch with a different model, options" in refused.stderr
    done = llm(*GENERATE)
    assert done.exit_code == 0 and "2 of 5 prompts are already done" in done.stderr, done.stderr
    assert not partial.exists()
    records = read(output)
    for number, (prompt, record) in enumerate(zip(PROMPTS, records, strict=True)):
        single = json.loads(llm("generate", prompt, "-n", 6, "-s", seed + number, "--json").stdout)
        assert record == {
            "row": number + 1, "prompt": prompt, "text": single["text"], "finish_reason": single["finish_reason"],
            "prompt_tokens": record["prompt_tokens"], "completion_tokens": len(single["tokens"]), "seed": seed + number,
        }  # fmt: skip
    again = llm(*GENERATE)
    assert again.exit_code == 1 and "out.jsonl already exists; remove it" in again.stderr


def test_chat_answers_rows_separately_and_names_bad_ones(llm: Llm, tmp_path: Path) -> None:
    write_chat_model(tmp_path / "model.safetensors")
    rows = [{"prompt": "The cat", "id": "a"}, {"prompt": ""}, {"messages": [{"role": "user", "content": "The cat"}]}]
    lines = "\n".join(map(json.dumps, rows))
    answer = llm("chat", "--batch", "-", "-t", 0, "-n", 6, "--system", "S", stdin=lines)
    first, bad, second = map(json.loads, answer.stdout.splitlines())
    single = json.loads(llm("chat", "The cat", "-t", 0, "-n", 6, "--system", "S", "--json").stdout)
    assert first["content"] == second["content"] == single["content"]
    assert (first["id"], first["prompt_tokens"]) == ("a", single["prompt_tokens"])
    assert (
        bad == {"row": 2, "prompt": "", "error": "the message is empty; give a text to answer"}
        and "1 row with an error" in answer.stderr
    )
    assert answer.exit_code == 0
    answer = llm("chat", "--batch", "-", "--system", "S", stdin=json.dumps(rows[1]))
    assert json.loads(answer.stdout)["error"] == bad["error"]
    assert answer.exit_code == 1 and "error: no prompt was answered" in answer.stderr
    chosen = llm("chat", "--batch", "-", "--choices", "The cat,x", "--system", "S", stdin=lines).stdout.splitlines()
    single = json.loads(llm("chat", "The cat", "--choices", "The cat,x", "--system", "S", "--json").stdout)
    for choice, expected in zip(json.loads(chosen[0])["choices"], single["choices"], strict=True):
        assert choice["text"] == expected["text"]
        assert choice["probability"] == pytest.approx(expected["probability"], abs=2e-6)


def test_a_row_says_what_does_not_fit_the_context(llm: Llm, tmp_path: Path) -> None:
    context = 64
    write_chat_model(tmp_path / "model.safetensors", context)
    turns = [{"role": role, "content": "The cat sat. " * 9} for role in ("user", "assistant")] * 9
    for command, row, key, values in [  # a choice of one token, and one more, have to fit after the prompt
        ("generate", {"prompt": "a b " * 50}, "cut", (200 - context, 200 - (context - 2))),
        ("generate", {"prompt": "a b " * 16}, "cut", (0, 2)),
        ("generate", {"prompt": ""}, "cut", (0, 0)),
        ("chat", {"messages": [*turns, {"role": "user", "content": "x"}]}, "dropped_turns", (9, 9)),
    ]:
        for options, value in zip(([], ["--choices", "a,b"]), values, strict=True):
            answer = llm(command, "--batch", "-", *options, stdin=json.dumps(row))
            assert (f"see {key}" in answer.stderr) == (value != 0)
            record = json.loads(answer.stdout)
            assert record.get(key, 0) == value and record.get("prompt_tokens", 0) <= context and "error" not in record


@pytest.mark.parametrize("option", ["--json-schema", "--grammar"])
def test_a_batch_does_not_go_on_with_another_form_of_the_same_name(
    llm: Llm, prompts: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    pytest.importorskip("llguidance")
    form = Path("form")
    form.write_text('{"type": "boolean"}' if option == "--json-schema" else 'start: "a"', "utf-8")
    words = ("generate", "--batch", prompts.name, "-o", "forms.jsonl", option, "form")
    with monkeypatch.context() as patch:
        end_after(patch, 2)
        assert isinstance(llm(*words).exception, RuntimeError)
    form.write_text('{"type": "null"}' if option == "--json-schema" else 'start: "b"', "utf-8")
    refused = llm(*words)
    assert refused.exit_code == 1 and "a different model, options or prompts" in refused.stderr


@pytest.mark.usefixtures("no_hang")
def test_what_is_no_file_of_results_is_never_replaced(llm: Llm, prompts: Path) -> None:
    partial = Path("out.jsonl.partial")
    if hasattr(os, "mkfifo"):
        os.mkfifo(partial)
        answer = llm(*GENERATE)
        assert answer.exit_code == 1
        assert answer.stderr.startswith("error: out.jsonl.partial is not a regular file; give a ")
        partial.unlink()
    for data in ['{"notes": 1}', '{"batch": 3\nx\n']:
        partial.write_text(data, "utf-8")
        refused = llm(*GENERATE)
        assert refused.exit_code == 1 and "remove it" in refused.stderr and partial.read_text("utf-8") == data
    for path in (partial, Path("out.jsonl")):
        path.write_text("notes\nmore\n")
        answer = llm(*GENERATE)
        assert answer.exit_code == 1 and f"{path} exists and does not begin like a .jsonl file" in answer.stderr
        assert answer.stderr.count("\n") == 1 and path.read_text() == "notes\nmore\n"
        path.unlink()


@platforms.file_locks
def test_a_second_run_does_not_write_the_same_file(llm: Llm, prompts: Path) -> None:
    with file_lock.locked(Path("out.jsonl")):
        assert "another run is writing to out.jsonl" in llm(*GENERATE).stderr
    assert not Path("out.jsonl.partial").exists() and llm(*GENERATE).exit_code == 0


def test_options_without_effect_are_refused(llm: Llm, prompts: Path) -> None:
    for words in (("The", "--batch", "p.txt"), ("--batch", "p.txt", "--samples", 2), ("The", "-o", "x")):
        assert llm("generate", *words).exit_code == 2
    for words in (("-o", "p.txt"), ("-o", "model.safetensors"), ("-o", "no/x")):
        assert llm("generate", "--batch", "p.txt", *words).exit_code == 1
    assert prompts.read_text("utf-8").splitlines() == PROMPTS


def test_a_full_disk_names_the_file_and_says_how_to_go_on(
    tiny_model: Path, llm: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("p.txt").write_text("The cat\nThe dog\n")

    def write(output: object, record: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(batch._Output, "add", write)
    answer = llm("generate", "--batch", "p.txt", "-n", 2, "-o", "r.jsonl")
    assert answer.exit_code == 1
    last = "No space left on device; after fixing that, the same command resumes from here"
    assert "cannot write r.jsonl.partial: " in answer.stderr
    assert last in answer.stderr
