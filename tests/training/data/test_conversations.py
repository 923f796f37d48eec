"""From files of conversations to tokens, their mask, a plan and a record."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmcli.data.conversations.chat_template import CHATML
from llmcli.data.conversations.messages import Conversation, Message
from llmcli.data.conversations.split import held_out_indices
from llmcli.data.sources import Sources
from llmcli.data.text.corpus import Corpus
from llmcli.errors import LLMError
from llmcli.formats.loading import open_chat_template, open_tokenizer
from llmcli.training.data.conversations import divide_conversations
from llmcli.training.data.inputs import Inputs
from llmcli.training.data.known_answers import store_known_answers
from llmcli.training.planning import recipe
from llmcli.training.planning.plan import PlanRequest
from tests.conftest import random_checkpoint
from tests.data.corpora import read_corpus
from tests.data.text.test_split import letters
from tests.training.chats import PAIRS, conversation, conversation_file, inputs, prepared, run_to_end, text_of
from tests.training.plans import prepare, row


def test_conversations_become_chatml_of_which_the_answers_are_learned() -> None:
    every = [conversation("Who?", "Ann.", "Why?", "So.", system="Be brief."), *(conversation(*pair) for pair in PAIRS)]
    ready = prepared(conversations=inputs(every, held_out=0.0))
    tokens = ready.conversations.training
    ids, learned = (array[tokens.span(0)] for array in (tokens.ids, tokens.loss_mask))
    assert text_of(ready.tokenizer, ids.tolist()) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nAnn."
        "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
    )
    assert text_of(ready.tokenizer, ids[learned].tolist()) == "Ann.<|im_end|>So.<|im_end|>"


def test_a_tenth_is_held_out_and_no_tokenizer_is_trained_on_it() -> None:
    secret = "りんご"
    chosen = held_out_indices(len(PAIRS), 0.1)
    every = [conversation(question, secret if i in chosen else answer) for i, (question, answer) in enumerate(PAIRS)]
    ready = prepared(conversations=inputs(every))
    assert [every.index(one) for one in ready.conversations.held_out.texts] == chosen
    assert len(ready.conversations.held_out) == len(chosen) and len(ready.conversations.training) == 35 - len(chosen)
    assert not any("り".encode() in data for data in ready.tokenizer.token_bytes)


def test_conversations_that_the_base_model_was_trained_on_are_not_held_out() -> None:
    """The base model held out a tenth of the file; now a quarter is, or the file is that of --val."""
    file = conversation_file([conversation(*pair) for pair in PAIRS])
    base = prepared(conversations=inputs())
    unseen = [file.conversations[i] for i in held_out_indices(35, 0.1)]
    quarter = [file.conversations[i] for i in held_out_indices(35, 0.25)]
    other = conversation_file([conversation("New?", "Yes.")], "new.jsonl")
    model = random_checkpoint(base.plan.model)
    model.record = base.record
    new = inputs(list(other.conversations), held_out=file)
    for given, before in ((inputs(held_out=0.25), quarter), (new, list(file.conversations))):
        divided = divide_conversations(replace(given, base=model), 10**9)
        assert divided.split.held_out == [one for one in before if one in unseen] != before and not divided.seen_by_base
        excluded = len(before) - len(divided.split.held_out)
        assert divided.rule.endswith(f", without {excluded} that the base model was trained on")


def test_conversations_of_the_base_model_in_another_file_are_not_held_out() -> None:
    """The base model was trained on an earlier version of the file, of which only the first ten remain."""
    every = [conversation(*pair) for pair in PAIRS]
    divided = divide_conversations(inputs(every), 10**9, every[:10])
    chosen = held_out_indices(35, 0.1)
    assert divided.split.held_out == [every[i] for i in chosen if i >= 10]
    assert 0 < len(divided.split.held_out) < len(chosen)


def test_the_share_of_held_out_answers_that_the_training_text_has_is_noted(tmp_path: Path) -> None:
    answers = [letters(60, seed) for seed in range(40)]
    file = inputs([conversation(f"{i}?", answer) for i, answer in enumerate(answers)])
    chosen = held_out_indices(40, 0.1)
    for quoted, share in ([], 0), (chosen[:1], 1 / len(chosen)), (chosen, 1):
        (tmp_path / "faq.txt").write_text(
            "\n".join([letters(2000, 100), *(answers[i] for i in quoted), letters(2000, 99)])
        )
        ready = prepare(PlanRequest(steps=30), read_corpus([str(tmp_path / "faq.txt")]), conversations=file)
        assert ready.record.held_out.known_share == pytest.approx(share, abs=0.01)
        known = f"4 held out ({share:.0%} of it also occurs in the training text)" if quoted else "4 held out;"
        assert known in row(ready.plan, "conversations").reason


def test_if_the_base_model_knows_all_held_out_conversations_that_is_recorded() -> None:
    base = prepared(conversations=inputs(held_out=0.0))
    notes: list[str] = []
    ready = prepare(
        PlanRequest(steps=30, batch_tokens=256, context=64, dtype="float32"), Corpus(()), conversations=inputs(),
        base_record=base.record, on_note=notes.append,
    )  # fmt: skip
    assert len(ready.conversations.held_out) == len(held_out_indices(35, 0.1))
    assert ready.record.held_out.seen_by_base is True
    assert notes and notes[0].startswith("the base model was trained on the held-out conversations, so")


def test_conversations_with_held_out_text_are_left_out(tmp_path: Path) -> None:
    """Except those of a validation file; the known answers have all in any case."""
    for is_file in [False, True]:
        text = letters(9000, 0)
        (tmp_path / "c.txt").write_text(text)
        (tmp_path / "val.txt").write_text(text[-900:])
        corpus, val = (read_corpus([str(tmp_path / name)]) for name in ("c.txt", "val.txt"))
        quoting = conversation("What does the end say?", f"It says: {text[-500:-200]}.")
        every = [*(conversation(*pair) for pair in PAIRS), quoting]
        ready = prepare(
            PlanRequest(steps=30, context=512), corpus, conversations=inputs(every),
            held_out=val if is_file else 0.1,
        )  # fmt: skip
        assert (quoting in ready.conversations.training.texts) == is_file
        record = ready.record.document["conversations"]
        assert (record["training"], record["dropped"]) == ((32, 0) if is_file else (31, 1))
        assert ("of it also occurs in the training text" in row(ready.plan, "corpus").reason) == is_file
        left_out = "1 left out: passages of the held-out text occur in them"
        assert (left_out in row(ready.plan, "conversations").reason) != is_file
        checkpoint = random_checkpoint(ready.plan.model)
        store_known_answers(checkpoint, ready.conversations)
        assert checkpoint.known_answers is not None and len(checkpoint.known_answers.pairs) == 36


def test_the_record_describes_the_conversations() -> None:
    ready = prepared()
    chosen = held_out_indices(35, 0.1)
    answers = [len(answer.encode()) for _, answer in PAIRS]
    held_out_bytes = sum(answers[i] for i in chosen)
    assert ready.record.document["corpus"] == [
        {
            "name": "chats.jsonl", "bytes": sum(len(q) + len(a) for q, a in PAIRS), "sha256": "0" * 64,
            "shape": "messages", "conversations": 35,
        }
    ]  # fmt: skip
    assert ready.record.train_bytes == ready.record.train_tokens == 0  # of plain text
    assert ready.record.document["held_out"] == {
        "bytes": held_out_bytes, "tokens": ready.conversations.held_out.targets,
        "from": "10% of the conversations, spread evenly", "of": "answers",
    }  # fmt: skip
    assert ready.record.document["conversations"] == {
        "training": 35 - len(chosen), "held_out": len(chosen), "held_out_share": 0.1, "repeated": [], "dropped": 0,
        "truncated": 0, "train_tokens": ready.conversations.training.targets,
        "train_bytes": sum(answers) - held_out_bytes,
    }  # fmt: skip
    trained = [PAIRS[i] for i in range(35) if i not in chosen]
    text = "".join(q + a for q, a in trained) + "user" + "assistant" + "\n"
    assert bytes.fromhex(ready.record.document["seen_bytes"]) == bytes(sorted(set(text.encode())))


def test_few_different_answers_are_labels() -> None:
    for answers, labels in [
        (["a"] * 5 + ["b"] * 20 + ["c"] * 5, ["b", "a", "c"]),
        (["a"] * 28 + ["b"] * 2, []),  # too rare
        (["a"] * 30, []),  # no choice
        ([str(i % 21) for i in range(210)], []),  # too many
    ]:
        pairs = [conversation(f"question {i}", answer) for i, answer in enumerate(answers)]
        ready = prepared(conversations=inputs(pairs, held_out=0.0))
        assert ready.conversations.labels == labels


def test_the_plan_says_what_is_trained_on() -> None:
    file = conversation_file([conversation(*pair) for pair in PAIRS], dropped=3)
    ready = prepared(conversations=Inputs(Sources(Corpus(()), (file,))))
    corpus, learned = row(ready.plan, "corpus"), row(ready.plan, "learned tokens")
    assert corpus.value == "35 conversations"
    assert corpus.reason == ("31 for training, 4 held out; messages in chats.jsonl; 3 left out: no answer")
    tokens = ready.conversations.training
    assert learned.value == f"{tokens.targets:,} of {len(tokens.ids):,}"
    assert [one.name for one in ready.plan.rows][:3] == ["corpus", "learned tokens", "vocabulary"]
    several = prepared(conversations=Inputs(Sources(Corpus(()), (file,) * 4)))
    assert "; messages in chats.jsonl, chats.jsonl, chats.jsonl and 1 more;" in row(several.plan, "corpus").reason


def test_the_model_has_the_tokenizer_and_the_chat_template_of_its_run() -> None:
    ready = prepared(steps=1)
    checkpoint = run_to_end(ready).checkpoint
    opened = open_tokenizer(checkpoint)
    ours, theirs = (one.vocabulary.allowed() for one in (ready.tokenizer, opened))
    assert ours is not None and np.array_equal(ours, theirs)
    assert json.loads(checkpoint.tokenizer_config_json)["chat_template"] == CHATML
    assert opened.eos_ids == ready.tokenizer.eos_ids == {opened.eos_id, opened.control_ids["<|im_end|>"]}
    assert open_chat_template(checkpoint, opened).stop_ids == opened.eos_ids


def test_what_is_longer_than_the_context_is_truncated_and_counted() -> None:
    numbers = " ".join(map(str, range(300)))
    long, too_long = conversation("Who?", "Ann.", "Why?", numbers), conversation(numbers, "No.")
    every = [*(conversation(*pair) for pair in PAIRS), long, too_long]
    ready = prepared(conversations=inputs(every, held_out=0.0))
    assert (ready.conversations.truncated, ready.conversations.too_long) == (1, 1)
    assert ready.conversations.training.lengths.max() <= 65
    counts = ready.record.document["conversations"]
    assert (counts["truncated"], counts["dropped"]) == (1, 1)
    assert row(ready.plan, "corpus").reason.endswith(
        "1 truncated to the context; 1 left out: no answer begins within the context"
    )
    tokens = ready.conversations.training
    assert "Ann." in ready.tokenizer.decode(tokens.ids[tokens.span(35)].tolist())
    assert ready.conversations.training.texts[-1] == long
    longer = prepared(conversations=inputs(every, held_out=0.0), context=5000)
    assert (longer.conversations.truncated, longer.conversations.too_long) == (0, 0)


def test_conversations_without_anything_to_learn_are_left_out_or_an_error() -> None:
    silent = Conversation((Message("user", "Hello?"),))
    ready = prepared(conversations=inputs([*(conversation(*pair) for pair in PAIRS), silent], held_out=0.0))
    assert ready.record.document["conversations"]["dropped"] == 1 and ready.record.conversations.training == 35
    with pytest.raises(LLMError, match=r"nothing to learn from in chats.jsonl: none of 2 conversations has an answer"):
        prepared(conversations=inputs([silent, silent]))
    with pytest.raises(LLMError, match=r"^`val` leaves no conversation for training; hold out fewer: `val` 0\.1$"):
        prepared(conversations=inputs([conversation(*pair) for pair in PAIRS], held_out=0.999))
    with pytest.raises(LLMError, match=r"no answer begins within a context of 8 tokens.*larger `context`"):
        prepared(context=8)
    like = random_checkpoint(replace(ready.plan.model, max_position_embeddings=8))
    with pytest.raises(LLMError, match=r"no answer begins within a context of 8 tokens.*; use a model with a longer"):
        prepared(conversations=replace(inputs(), like=like), context=8)


def test_of_more_than_there_is_time_for_an_even_sample_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "CPU_BYTES_FACTOR", 1)
    monkeypatch.setattr(recipe, "MIN_BYTES", 500)
    ready = prepared(steps=None, seconds=5.0)
    read = [
        PAIRS.index((one.messages[0].content, one.messages[1].content)) for one in ready.conversations.training.texts
    ]
    total = sum(len(q) + len(a) for q, a in PAIRS)
    assert len(read) == pytest.approx(31 * 500 / (total * 31 / 35), abs=2)
    assert max(np.diff(read)) <= 2 * 35 / len(read) + 2
    assert f"the time budget allows for {len(read)} of 31" in row(ready.plan, "corpus").reason
