"""`llm chat`: one answer, conversations of programs, and a person at a terminal."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from llmcli.config import ModelConfig
from llmcli.data.conversations.chat_template import CHATML, with_chat_template
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load
from llmcli.formats.safetensors.file import write_tensors
from llmcli.formats.training_record import KnownAnswers
from tests.cli.terminals import PROMPT, Typist
from tests.conftest import TEXT, Llm, random_checkpoint

GREEDY = ("-t", 0, "-n", 8)


def write_chat_model(path: Path, context: int = 256, *, ends_answers: bool = True, **config: Any) -> Path:
    """A model with random weights and ChatML. Unless it `ends_answers`, its control tokens are never among the likely
    ones."""
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    shape = replace(ModelConfig(tokenizer.vocab_size, 32, 64, 2, 4, 2, 8, context), **config)
    checkpoint = random_checkpoint(shape, tokenizer_json=tokenizer.to_json())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        checkpoint.tensors[name][list(tokenizer.control_ids.values())] *= ends_answers
    save(path, replace(checkpoint, tokenizer_config_json=with_chat_template("{}", CHATML)))
    return path


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    """In model.safetensors here."""
    return write_chat_model(tmp_path / "model.safetensors")


def objects(answer: Result) -> list[dict[str, Any]]:
    assert answer.exit_code == 0, answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines()]


def test_a_message_from_standard_input_is_the_same(llm: Llm, chat_model: Path) -> None:
    expected = llm("chat", "The cat\nsat", *GREEDY).stdout
    assert llm("chat", *GREEDY, stdin=b"The cat\nsat\n").stdout == expected
    assert llm("chat", "-", *GREEDY, stdin=b"The cat\r\nsat".replace(b"\r", b"")).stdout == expected


def test_stdout_has_only_the_answer_and_json_the_documented_fields(llm: Llm, chat_model: Path) -> None:
    [found] = objects(llm("chat", "The cat", *GREEDY, "--json"))
    answer = llm("chat", "The cat", *GREEDY)
    assert answer.stdout == found["content"] + "\n" != "\n"
    assert answer.stderr in ("", "(cut off after 8 tokens; for a longer answer: -n 2000)\n")
    assert list(found)[:4] == ["role", "content", "tokens", "finish_reason"]
    assert found["role"] == "assistant" and found["finish_reason"] in ("stop", "length")
    assert found["content"].startswith("".join(token["text"] for token in found["tokens"]))
    assert all(set(token) == {"id", "text", "logprob"} and token["logprob"] <= 0 for token in found["tokens"])
    assert found["cached_tokens"] == found["dropped_turns"] == 0 and found["prompt_tokens"] > 5
    assert {"tokens_per_second", "seconds_to_first_token"} < set(found)


def test_a_seed_reproduces_an_answer_and_a_system_message_changes_it(llm: Llm, chat_model: Path) -> None:
    first, again, other = (llm("chat", "The cat", "-n", 8, "--seed", seed).stdout for seed in (3, 3, 4))
    assert first == again != other
    assert llm("chat", "The cat", *GREEDY, "--system", "りんご").stdout != llm("chat", "The cat", *GREEDY).stdout


def test_each_line_is_a_message_of_one_conversation(llm: Llm, chat_model: Path) -> None:
    first, second = objects(llm("chat", "--json", *GREEDY, stdin="The cat\n\nりんご\n".encode()))
    assert first["content"] == objects(llm("chat", "The cat", *GREEDY, "--json"))[0]["content"]
    turn = len(first["tokens"]) + first["prompt_tokens"]
    assert 0 < second["cached_tokens"] <= turn < second["prompt_tokens"]
    assert second["content"] != objects(llm("chat", "りんご", *GREEDY, "--json"))[0]["content"]


@pytest.mark.slow
def test_a_line_may_be_a_message_as_json(llm: Llm, chat_model: Path) -> None:
    expected = objects(llm("chat", "a\nb", *GREEDY, "--json", "--system", "s"))[0]["content"]
    lines = [{"role": "system", "content": "s"}, {"role": "user", "content": "a\nb"}]
    [found] = objects(llm("chat", "--json", *GREEDY, stdin="\n".join(map(json.dumps, lines)).encode()))
    assert found["content"] == expected
    for text in ('{"a": 1}', "{not json}", "/exit"):  # texts like any other
        [found] = objects(llm("chat", "--json", *GREEDY, stdin=text.encode()))
        assert found["content"] == objects(llm("chat", text, *GREEDY, "--json"))[0]["content"]


def test_a_full_context_is_reported(llm: Llm, tmp_path: Path) -> None:
    write_chat_model(tmp_path / "model.safetensors", context=96)
    answer = llm("chat", "--json", *GREEDY, stdin=b"The cat\n" * 6)
    assert sum(one["dropped_turns"] for one in objects(answer)) > 0
    assert all(one["prompt_tokens"] + len(one["tokens"]) <= 96 for one in objects(answer))
    assert answer.stderr.startswith("the context of 96 tokens is full: from now on the model does not see the ")
    assert "--batch answers each line" in answer.stderr
    assert answer.stderr.count("\n") == 1  # once


def test_every_mistake_is_reported_in_one_line(llm: Llm, chat_model: Path) -> None:
    for code, words, stdin, message in [
        (2, ["chat", " "], "", "the message is empty"),
        (2, ["chat"], "\n", "the message is empty"),
        (1, ["chat", "-"], b"caf\xe9", "not UTF-8 text: byte 0xe9"),
        (1, ["chat", "--json"], b"caf\xe9", "not UTF-8 text: byte 0xe9"),
        (2, ["chat", "--json"], '{"role": "assistant", "content": "x"}', "line 1 must be a text, or"),
        (1, ["chat", "The cat " * 200], "", "tokens even without earlier turns, and the context length is 256"),
        (2, ["chat", "hi", "there"], "", "a text of several words needs quotes"),
        (2, ["chat", "hi", "--choices", "a"], "", "--choices must be at least two texts, such as yes,no: a comma-sep"),
        (2, ["chat", "hi", "--choices", "a,b,a"], "", "--choices has 'a' twice"),
        (2, ["chat", "hi", "--choices", "a,b", "-t", "0"], "", "--temperature has no effect with --choices"),
        (2, ["chat", " ", "--choices", "a,b"], "", "the message is empty"),
    ]:
        answer = llm(*words, stdin=stdin if isinstance(stdin, bytes) else stdin.encode())
        assert answer.exit_code == code and answer.stdout == ""
        assert answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1 and message in answer.stderr


def test_a_model_of_plain_text_says_what_to_do(llm: Llm, tiny_model: Path) -> None:
    for words in [["chat", "hi"], ["chat", "--json"]]:
        answer = llm(*words, "-m", "model.safetensors", stdin=b"hi\n")
        assert answer.exit_code == 1 and answer.stdout == "" and answer.stderr.count("\n") == 1
        assert "model.safetensors has no chat template: it continues text" in answer.stderr
        assert "llm train FILE --from model.safetensors (FILE: a table of questions" in answer.stderr
        assert "llm generate 'Once upon a time' -m model.safetensors" in answer.stderr


@pytest.mark.usefixtures("tiny_model")
def test_models_that_can_chat_are_named_and_no_others(llm: Llm) -> None:
    Path("damaged.safetensors").write_bytes(b"x")
    for words in ([], ["-m", "model.safetensors"]):
        assert "can chat:" not in llm("chat", "hi", *words).stderr
    write_chat_model(Path("b.safetensors"))
    Path("b.resume.safetensors").write_bytes(Path("b.safetensors").read_bytes())
    pytest.importorskip("gguf", reason="needs the extra gguf")
    assert llm("export", "b.safetensors", "a.gguf", "--to", "gguf").exit_code == 0
    assert "beside it, a.gguf, b.safetensors can chat: llm chat -m a.gguf;" in llm("chat", "hi").stderr
    Path("model.safetensors").unlink()
    error = llm("chat", "hi").stderr
    assert error == "error: there is no model.safetensors here; a.gguf, b.safetensors can chat: llm chat -m a.gguf\n"
    write_tensors("adapters.safetensors", {"base_model.model.x": np.zeros(1, np.float32)}, {})
    for words, option in (
        (["generate", "hi"], "-m "),
        (["inspect"], "llm inspect "),
        (["export", "--quantize", "int8"], "llm export "),
    ):
        advice = f"name another: {option}a.gguf or {option}b.safetensors"
        assert llm(*words).stderr == f"error: there is no model.safetensors here; {advice}\n"
    assert "; 1 file of LoRA adapters; 1 cannot be read" in llm("models").stderr
    Path("a.gguf").unlink()
    Path("b.safetensors").rename("-b.safetensors")
    assert llm("inspect").stderr.endswith("; name another: llm inspect ./-b.safetensors\n")
    Path("-b.safetensors").unlink()
    assert "train a model that can chat: llm train FILE (FILE: a table of questions" in llm("chat", "hi").stderr


@pytest.mark.slow
@pytest.mark.usefixtures("no_hang")
def test_a_conversation_in_a_terminal(chat_model: Path) -> None:
    person = Typist("chat", "-t", "0", "-n", "4")
    assert "parameters, context 256 tokens" in person.wait_for("Ctrl-D leaves")
    person.say("りんご 🍎\r", "(cut off after 4 tokens")  # Japanese
    # a backslash and Enter, Alt-Enter: three lines
    person.say("one\\\rtwo\x1b\rthree\r", "(cut off after 4 tokens")
    person.say("/sa", "Write the conversation")  # the menu of completions
    person.type("\t chat.jsonl\r")
    person.wait_for("saved chat.jsonl (2 turns)")
    person.say("\x1b[A\x1b[A\r", "(cut off after 4 tokens")  # the arrow key: the message before the command
    person.say("/undo\r", "three")  # to be edited
    person.type("!\r")
    person.wait_for("(cut off after 4 tokens")
    person.say("/save again.jsonl\r", "saved again.jsonl (3 turns)")
    person.wait_for(PROMPT)
    person.type("\x04")
    assert person.end() == 0
    asked = ["りんご 🍎", "one\ntwo\nthree"]
    assert [m["content"] for m in messages("chat.jsonl") if m["role"] == "user"] == asked
    assert [m["content"] for m in messages("again.jsonl") if m["role"] == "user"] == [*asked, "one\ntwo\nthree!"]


def messages(name: str) -> list[dict[str, str]]:
    return list(json.loads(Path(name).read_text("utf-8"))["messages"])


@pytest.mark.slow
@pytest.mark.usefixtures("no_hang")
def test_ctrl_c_stops_the_answer_and_not_the_program(tmp_path: Path) -> None:
    write_chat_model(tmp_path / "model.safetensors", context=100_000, ends_answers=False)
    person = Typist("chat", "-n", "90000", "-t", "1", "--min-p", "0.5")
    person.say("The cat\r", "The cat")
    for _ in range(5):  # the answer has begun
        person.wait_for("\n")
    person.type("\x03")
    person.wait_for("(stopped)")
    person.wait_for(PROMPT)
    person.type("half a message\x03")  # clears it
    person.type("\x03")
    person.wait_for("Ctrl-D or /exit leaves")
    assert "1 turn" in person.say("/stats\r", "sampling")
    person.wait_for(PROMPT)
    person.type("/exit\r")
    assert person.end() == 0 and "Traceback" not in person.screen


@pytest.mark.slow
@pytest.mark.usefixtures("no_hang")
def test_why_explains_the_last_answer(chat_model: Path) -> None:
    person = Typist("chat", "-t", "0", "-n", "4")
    person.say("The cat\r", "(cut off after 4 tokens")
    assert "probability" in person.say("/why 2\r", "token 2 of 4: ")
    shown = person.wait_for("/why N explains")
    for part in ("heads with the highest attention", "logit lens", "ablation: bits that", "next token: entropy"):
        assert part in shown
    person.say("and\r", "(cut off after 4 tokens")  # the conversation goes on
    person.wait_for(PROMPT)
    person.type("\x04")
    assert person.end() == 0


# ---- --choices


def test_choices_are_listed_with_their_probabilities(llm: Llm, chat_model: Path, tmp_path: Path) -> None:
    [answer] = objects(llm("chat", "The cat", "--choices", "mat, hat,dog", "--json"))
    assert {choice["text"] for choice in answer["choices"]} == {"mat", "hat", "dog"}
    probabilities = [choice["probability"] for choice in answer["choices"]]
    assert sum(probabilities) == pytest.approx(1, abs=1e-5) and probabilities == sorted(probabilities, reverse=True)
    first, second = answer["choices"][:2]
    assert first["probability"] / second["probability"] == pytest.approx(
        np.exp(first["logprob"] - second["logprob"]), rel=1e-3
    )
    (tmp_path / "choices.txt").write_text("mat\nhat\n\ndog\n", "utf-8")
    assert objects(llm("chat", "The cat", "--choices", "choices.txt", "--json")) == [answer]
    lines = llm("chat", "The cat", "--choices", "mat,hat,dog").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["answer", *(choice["text"] for choice in answer["choices"])]


def test_known_answers(llm: Llm, chat_model: Path) -> None:
    """A known answer or none, with the confidence in JSON."""
    assert "has no known answers: training stores them only on request" in llm("chat", "Hi", "--known-answers").stderr
    pairs = (("When are you open?", "From 9 to 5."), ("Where can I park?", "Behind the house."))
    save(chat_model, replace(load(chat_model), known_answers=KnownAnswers(pairs=pairs, min_confidence=0.4)))
    assert llm("chat", "Are you open?", "--known-answers").stdout == "From 9 to 5.\n"
    lines = objects(llm("chat", "--known-answers", "--json", stdin="May I park here?\nSing!\n"))
    assert [(line["content"], line["known"]) for line in lines] == [
        ("Behind the house.", True), ("I don't know.", False),
    ]  # fmt: skip
    assert lines[0]["confidence"] > 0.4 > lines[1]["confidence"]
    rows = objects(llm("chat", "--known-answers", "--batch", "-", stdin="May I park here?\nSing!\n"))
    assert [(row["content"], row["known"], row["confidence"]) for row in rows] == [
        (line["content"], line["known"], line["confidence"]) for line in lines
    ]
    sing = ("chat", "Sing!", "--known-answers")
    assert llm(*sing, "--min-confidence", 0).stdout in ("From 9 to 5.\n", "Behind the house.\n")
    assert "--min-confidence has no effect without --known-answers" in llm("chat", "Hi", "--min-confidence", 0).stderr
    assert "--temperature has no effect with --known-answers" in llm(*sing, "-t", 0).stderr
    shown = llm("inspect", chat_model).stdout
    assert re.search(r"in the file +2 questions with their answers\n +minimum confidence +0\.4\n", shown)
    [facts] = objects(llm("inspect", chat_model, "--json"))
    assert facts["known_answers"] == {"questions": 2, "min_confidence": 0.4}
    assert "Behind" not in llm("inspect", chat_model).stdout + llm("inspect", chat_model, "--json").stdout
