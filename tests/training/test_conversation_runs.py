"""Runs on conversations: they learn to answer, turn to the conversations in time, and resume to the bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llmcli.data.conversations.batches import ConversationTokens
from llmcli.evaluation.answers import conversation_windows
from llmcli.evaluation.evaluator import Score, evaluate_windows
from llmcli.generation.next_words import next_words
from llmcli.generation.token_healing import Prompt
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.run_data import RunData, reserve_conversations
from llmcli.training.loop.events import Done, Evaluation, Sample, State
from llmcli.training.loop.previews import EVALUATIONS
from llmcli.training.step.training_step import accumulate_gradients
from tests.platforms import in_full
from tests.training.chats import prepared, run, run_to_end
from tests.training.small_runs import Compute, Schedule, assert_resumes_to_the_same_end, losses

OFTEN = Schedule(training_per_evaluated=1)


class Recorder:
    """Takes real steps, and notes what each saw."""

    def __init__(self) -> None:
        self.batches: list[tuple[np.ndarray, np.ndarray | None]] = []
        self.rates: list[int] = []
        self.compute = Compute(self._gradients)

    def _gradients(
        self, model: LanguageModel, ids: torch.Tensor, micro_batches: int, loss_mask: torch.Tensor | None
    ) -> torch.Tensor:
        self.batches.append((ids.numpy().copy(), None if loss_mask is None else loss_mask.numpy().copy()))
        self.rates.append(model.dropout._dropped)
        return accumulate_gradients(model, ids, micro_batches, loss_mask)


@pytest.mark.slow
@in_full
def test_a_model_learns_to_answer_in_other_wordings() -> None:
    ready = prepared(steps=400, layers=2, width=64)
    done = run_to_end(ready)
    assert done.score is not None and done.score.bits_per_byte < 0.5
    assert done.checkpoint.record.bits_per_byte == pytest.approx(done.score.bits_per_byte, abs=1e-6)
    assert done.checkpoint.record.conversations.epochs > 40


@pytest.mark.slow
def test_the_validation_figure_is_what_the_numpy_graph_computes() -> None:
    ready = prepared()
    done = run_to_end(ready)
    held_out: ConversationTokens = ready.conversations.held_out
    lengths = np.array([len(data) for data in ready.tokenizer.token_bytes])
    runtime = NumpyRuntime(done.checkpoint)
    windows = conversation_windows(held_out)
    scores = evaluate_windows(
        held_out.ids, lengths, windows, runtime.score, batch_tokens=1, loss_mask=held_out.loss_mask
    )
    expected = sum((score for _, score in scores), Score(0.0, 0, 0))
    assert done.score.bits_per_byte == pytest.approx(expected.bits_per_byte, abs=1e-4)
    assert done.score.bytes == ready.record.held_out.bytes == held_out.answer_bytes(lengths)
    assert done.score.tokens == held_out.targets
    assert "context" not in done.checkpoint.record.document["held_out_measured"]


@pytest.mark.slow
def test_a_sample_answers_a_held_out_question() -> None:
    ready = prepared(steps=60, layers=2, width=64)
    events = run(ready, schedule=OFTEN)
    samples = [event for event in events if isinstance(event, Sample)]
    questions = {one.messages[0].content for one in ready.conversations.held_out.texts}
    assert samples and {sample.prompt for sample in samples} <= questions
    assert all("assistant" not in sample.text and "<|im" not in sample.text for sample in samples)
    done = events[-1]
    assert isinstance(done, Done) and done.checkpoint.record.document["samples"]["prompt"] == samples[0].prompt
    probe = done.checkpoint.record.probe  # of the same question
    assert probe and probe.prompt == samples[0].prompt
    phase = RunData(ready).conversations
    assert phase and list(phase.prompt(None)) == list(phase.prompt(probe.prompt))
    ids = phase.prompt(None)
    assert ready.tokenizer.decode(list(ids)).endswith("assistant\n")
    likeliest = dict(probe.predictions)[done.best_step][0][0]
    words = next_words(NumpyRuntime(done.checkpoint), ready.tokenizer, Prompt(list(ids)), evaluations=EVALUATIONS).words
    assert likeliest == words[0].text


def test_a_run_turns_from_text_to_conversations(tmp_path: Path) -> None:
    ready = prepared(tmp_path / "c.txt", steps=10, dropout=0.1)
    assert ready.plan.conversations is not None
    share = replace(ready.plan.conversations, share=0.3, dropout=0.5)
    ready = replace(ready, plan=replace(ready.plan, conversations=share))
    recorder = Recorder()
    done = run_to_end(ready, compute=recorder.compute)
    assert [learned is None for _, learned in recorder.batches] == [True] * 7 + [False] * 3
    assert recorder.rates == [round(256 * 0.1)] * 7 + [128] * 3
    start = ready.tokenizer.control_ids["<|im_start|>"]
    for ids, learned in recorder.batches:
        if learned is not None:
            assert (ids[:, 0] == start).all() and learned.any(axis=1).all()
        else:
            assert start not in ids
    chats = done.checkpoint.record.document["conversations"]
    assert chats["from_step"] == 7
    assert ready.conversations is not None
    assert done.checkpoint.record.held_out.of == "answers"


@pytest.mark.slow
@pytest.mark.parametrize("with_text", [False, True])
def test_a_run_resumed_from_any_step_ends_the_same(tmp_path: Path, with_text: bool) -> None:
    text = tmp_path / "c.txt" if with_text else None
    ready = prepared(text, steps=16, dropout=0.2)
    assert ready.plan.conversations is not None
    ready = replace(ready, plan=replace(ready.plan, conversations=replace(ready.plan.conversations, validation=6)))
    whole = assert_resumes_to_the_same_end(ready, (1, 11, 12, 13, 15), schedule=OFTEN)
    saved = [event for event in whole if isinstance(event, State)]
    assert [state.step for state in saved] == list(range(1, 16))
    assert any(isinstance(event, Evaluation) for event in whole[: len(whole) // 2])
    turn = 12 if with_text else 0  # the step before which it turns to the conversations
    assert [state.values["conversations_from"] for state in saved] == [
        turn if state.step > turn else None for state in saved
    ]


@pytest.mark.slow
def test_conversations_of_the_validation_slice_are_not_trained_on() -> None:
    ready = prepared(steps=10)
    assert ready.plan.conversations is not None and ready.conversations is not None
    plan = replace(ready.plan, conversations=replace(ready.plan.conversations, validation=6))
    training, validation = reserve_conversations(ready.conversations.training, 6)
    assert len(validation) == 6 and len(training) + 6 == len(ready.conversations.training)
    events = run(replace(ready, plan=plan), schedule=OFTEN)
    others = replace(ready, conversations=replace(ready.conversations, training=training))
    assert losses(events) == losses(run(others))
    [done] = [event for event in events if isinstance(event, Done)]
    assert done.checkpoint.record.document["validation"] == {"conversations": 6, "tokens": validation.targets}
    assert len([event for event in events if isinstance(event, Evaluation)]) > 1


def test_a_conversation_that_equals_a_training_conversation_is_not_in_the_validation_slice() -> None:
    ready = prepared(steps=1)
    tokens = ready.conversations.training
    twice = tokens.select([i // 2 for i in range(2 * len(tokens))])
    training, validation = reserve_conversations(twice, 6)
    assert len(validation) == 0 and len(training) == len(twice) - 6
