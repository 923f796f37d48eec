"""`llm train` with conversations, and `llm eval` on them: what is recognized, shown, recorded and refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmcli.data.conversations.split import held_out_indices
from llmcli.formats import loading
from llmcli.training.data.known_answers import TYPICAL
from tests.conftest import TEXT, Llm
from tests.training.chats import PAIRS

SMALL = ("--layers", 1, "--width", 32, "--context", 64, "--batch-tokens", 256, "--threads", 1)
RUN = ("train", "chats.jsonl", "--steps", 4, *SMALL)


def write_chats(path: str = "chats.jsonl", pairs: list[tuple[str, str]] = PAIRS) -> None:
    lines = [json.dumps({"prompt": question, "completion": answer}) for question, answer in pairs]
    Path(path).write_text("\n".join(lines) + "\n", "utf-8")


@pytest.fixture(autouse=True)
def chats(own_directory: Path) -> None:
    write_chats()


def record_of(name: str) -> dict[str, Any]:
    return loading.load(name).record.to_json()


def test_a_file_of_conversations_makes_a_model_whose_held_out_answers_are_measured(llm: Llm) -> None:
    answer = llm(*RUN)
    assert answer.exit_code == 0, answer.stderr
    lines = answer.stderr.splitlines()
    assert any(line.startswith("corpus\t35 conversations\t31 for training, 4 held out;") for line in lines)
    summary = next(line for line in lines if line.startswith("Held-out answers (10% of the conversations, "))
    assert "bits per byte at the end (lower is better)" in summary
    assert any(line.startswith("Greedy answers to 4 held-out questions: ") for line in lines)
    assert lines[-1].startswith('Try it: llm chat "What does Anna like?" --choices ')
    record = record_of("model.safetensors")
    assert record["memorised"] is None and record["answers"]["questions"] == 4
    assert record["verdict"] == [line.split(": llm train")[0] for line in record["verdict"]]
    shown = llm("inspect").stdout
    assert f"chats.jsonl, {record['corpus'][0]['bytes']:,} bytes of messages\n" in shown
    assert "31 for training, 4 held out" in shown and "of answers at the end" in shown
    measured = llm("eval", "chats.jsonl", "--json")
    [result] = json.loads(measured.stdout)["results"]
    assert result["of"] == "answers" and result["conversations"] == len(held_out_indices(35, 0.1)) == 4
    assert result["bits_per_byte"] == pytest.approx(record["bits_per_byte"], abs=1e-4)
    assert result["bytes"] == record["held_out"]["bytes"]
    assert "31 conversations were trained on; the 4 others are measured (--whole measures all)" in measured.stderr
    whole = llm("eval", "chats.jsonl", "--json", "--whole")
    assert json.loads(whole.stdout)["results"][0]["conversations"] == 35
    assert "does not measure generalization" in whole.stderr
    assert "network" in llm("eval", "chats.jsonl").stdout
    # options for text
    assert "--per-token has no effect with conversations" in llm("eval", "chats.jsonl", "--per-token").stderr
    Path("c.txt").write_text(TEXT, "utf-8")
    mixed = llm("eval", "chats.jsonl", "c.txt")
    assert mixed.exit_code == 2 and "measure one kind at a time" in mixed.stderr


@pytest.mark.slow
def test_json_events_say_that_the_figures_are_of_answers(llm: Llm) -> None:
    write_chats(pairs=[(f"What follows {i}?", f"{i + 1}.") for i in range(1200)])
    plan, *events, done = map(json.loads, llm(*RUN, "--json").stdout.splitlines())
    chosen = {"share": 1.0, "dropout": 0.0, "new_tokens": 0, "base_divergence": 0.0, "validation": 33}
    assert plan["conversations"] == chosen
    assert {event["of"] for event in events if event["event"] == "eval"} == {"answers"}
    assert done["of"] == "answers"
    assert set(done["answers"]) == {"questions", "verbatim", "exact", "near", "garbled", "seen"}
    assert done["plain_text"] is None and done["memorised"] is None


@pytest.mark.slow
def test_a_copy_of_a_file_is_not_taken_for_new_conversations(llm: Llm) -> None:
    Path("copy.jsonl").write_bytes(Path("chats.jsonl").read_bytes())
    answer = llm(*RUN, "copy.jsonl")
    assert "training conversations have the same questions and answers" in answer.stderr
    note = "34 conversations were trained on; the 1 others are measured"  # the only one that both files hold out
    assert note in llm("eval", "chats.jsonl").stderr
    Path("more.jsonl").write_text(Path("chats.jsonl").read_text() + '{"prompt": "Who?", "completion": "I."}\n')
    assert llm(*RUN, "more.jsonl", "--force").exit_code == 0
    assert note in llm("eval", "chats.jsonl").stderr
    assert llm("export", "model.safetensors", "out", "--to", "hf").exit_code == 0
    unknown = "out: has no record of its training data, so these conversations may be part of it"
    assert unknown in llm("eval", "chats.jsonl", "-m", "out").stderr


def test_other_speakers(llm: Llm) -> None:
    turns = "".join(f"Teacher: {question}\nPupil: {answer}\n\n" for question, answer in PAIRS)
    Path("turns.txt").write_text(turns, "utf-8")
    plain = llm("train", "turns.txt", "--steps", 1, *SMALL, "--dry-run").stdout
    assert "conversations" not in plain
    named = llm("train", "turns.txt", "--steps", 1, *SMALL, "--speakers", "Teacher,Pupil", "--dry-run").stdout
    assert "conversations\t" in named
    Path("short.txt").write_text(turns[:200], "utf-8")
    for file, names in (("turns.txt", "Teacher,Bob"), ("short.txt", "Pupil,Ann"), ("chats.jsonl", "Teacher,Pupil")):
        unknown = llm("train", file, *SMALL, "--speakers", names)
        assert unknown.exit_code == 1 and unknown.stdout == "" and unknown.stderr.count("\n") == 1
        assert unknown.stderr.startswith(f"error: --speakers {names}: no file has turns of both; wanted a text with ")
    wrong = llm("train", "turns.txt", "--speakers", "Teacher")
    assert wrong.exit_code == 2 and "--speakers must be two names, as in --speakers User,Assistant" in wrong.stderr


@pytest.mark.parametrize("lora", [(), ("--lora", 2)], ids=["full", "lora"])
@pytest.mark.slow
def test_a_base_model_learns_to_answer(llm: Llm, lora: tuple[object, ...]) -> None:
    Path("book.txt").write_text(TEXT * 3, "utf-8")
    assert llm("train", "book.txt", "--steps", 20, *SMALL, "-o", "base.safetensors").exit_code == 0
    answer = llm("train", "chats.jsonl", "--from", "base.safetensors", "--steps", 5, *lora, "--threads", 1)
    assert answer.exit_code == 0, answer.stderr
    record = record_of("model.safetensors")
    assert record["plain_text"]["from"] == "the text held out from the base model"
    assert "Plain text (the text held out from the base model): " in answer.stderr
    assert "held-out bits per byte of answers: " in answer.stderr
    before = record["plain_text"]["before"]
    scores = json.loads(llm("eval", "book.txt", "-m", "base.safetensors", "--json").stdout)["results"]
    assert before == pytest.approx(scores[0]["bits_per_byte"], rel=0.1)  # of other windows
    assert record["base"]["file"] == "base.safetensors"


def test_adapters_alone_have_no_place_for_a_template(llm: Llm, tiny_model: Path) -> None:
    answer = llm("train", "chats.jsonl", "--from", tiny_model, "--lora", 2, "--adapter-only", "-o", "a.safetensors")
    assert answer.exit_code == 1 and answer.stderr.count("\n") == 1
    assert "has no chat template, and adapters cannot store a template; leave out --adapter-only" in answer.stderr


def test_validation_files_must_be_of_the_same_kind_and_are_known_later(llm: Llm) -> None:
    write_chats("val.jsonl", [("Who is Anna?", "A person."), PAIRS[0]])  # the second one is trained on
    Path("c.txt").write_text(TEXT, "utf-8")
    assert "--val c.txt has no conversations" in llm(*RUN, "--val", "c.txt").stderr
    assert llm(*RUN, "--val", "val.jsonl").exit_code == 0
    record = record_of("model.safetensors")
    assert record["held_out"]["from"] == "val.jsonl"
    counts = [record["conversations"][key] for key in ("training", "held_out", "held_out_share", "repeated")]
    assert counts == [35, 1, None, [36]]
    [file] = record["held_out"]["files"]
    assert (file["name"], file["conversations"]) == ("val.jsonl", 2)
    note = "these conversations were held out in training"
    assert note in llm("eval", "val.jsonl").stderr and note not in llm("eval", "chats.jsonl", "--whole").stderr
    Path("set").mkdir()
    Path("set/train.jsonl").write_text(json.dumps({"text": TEXT}), "utf-8")
    Path("val.jsonl").rename("set/test.jsonl")
    of_set = llm("train", "set", "--steps", 1).stderr
    assert f"--val {Path('set/test.jsonl')} has conversations, but the training data are plain text" in of_set


def test_a_model_without_a_chat_template_reads_conversations_as_text(llm: Llm, tiny_model: Path) -> None:
    [result] = json.loads(llm("eval", "chats.jsonl", "--json").stdout)["results"]
    assert "of" not in result and result["bytes"] == Path("chats.jsonl").stat().st_size
    assert llm(*RUN, "-o", "chat.safetensors").exit_code == 0
    both = llm("eval", "chats.jsonl", "-m", "chat.safetensors", "-m", tiny_model)
    assert both.exit_code == 1 and f"{tiny_model} has no chat template" in both.stderr


def test_known_answers_that_cannot_be_measured_are_stored_with_the_default(
    llm: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("not enough")

    monkeypatch.setattr("llmcli.training.session.open_trained", fail)
    answer = llm(*RUN, "--known-answers")
    assert answer.exit_code == 0
    assert "answers to held-out questions could not be measured: not enough" in answer.stderr
    model = loading.load("model.safetensors")
    assert model.known_answers is not None
    assert len(model.known_answers.pairs) == len(PAIRS) and model.known_answers.min_confidence == TYPICAL
    record = model.record.to_json()
    assert record["answers"] is None and record["known_answers"] is None
