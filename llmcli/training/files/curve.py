"""Figures derived from a training record: the loss curve, the predictions of the probe, the kept model's
steps, the counts of answers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from llmcli import units
from llmcli.errors import LLMError
from llmcli.formats.training_record import TrainingRecord


class Curve(NamedTuple):
    """The losses of a model during training, in bits per byte."""

    steps: list[int]
    training: list[float]  # mean over the steps up to each point, with dropout
    validation_steps: list[int]
    validation: list[float]
    label: str = "validation"  # earlier versions recorded the loss on held-out text


def read_curve(record: TrainingRecord) -> Curve:
    """Read the curve in a record; after distillation, the curve of the kept model. Raises LLMError if it
    cannot be read."""
    try:
        training = {
            step: loss * (_tokens_per_byte(record, step) / math.log(2))  # a loss is in nats per token
            for step, loss in zip(record.curve.step, record.curve.loss, strict=True)
        }
        validation = dict(zip(record.curve.eval_step, record.curve.eval_bits_per_byte, strict=True))
        if not training:
            raise ValueError("no points")
    except (ValueError, ZeroDivisionError) as error:
        raise LLMError("there is no readable curve in its training record") from error
    kept = steps_of_model(record)
    if record.distillation and any(step in kept for step in training):
        training, validation = (
            {step: loss for step, loss in losses.items() if step in kept} for losses in (training, validation)
        )
    label = "validation" if record.validation else "held-out (interim)"
    return Curve([*training], [*training.values()], [*validation], [*validation.values()], label)


def probe_points(record: TrainingRecord) -> list[tuple[int, float | None, Sequence[tuple[str, float]]]]:
    """List the probe's predictions by the kept model, in the order of the run, as (step, validation loss in
    bits per byte, pairs of a likely next word and its probability; a token in files of earlier versions)."""
    losses = dict(zip(record.curve.eval_step, record.curve.eval_bits_per_byte, strict=False))
    kept = steps_of_model(record)
    points = record.probe.predictions if record.probe else ()
    return [(step, losses.get(step), likeliest) for step, likeliest in points if step in kept and likeliest]


def student_was_kept(record: TrainingRecord) -> bool:
    """Return whether a run with two models kept the student; False after a run with one model."""
    return record.distillation is not None and record.best_step > record.distillation.from_step


def steps_of_model(record: TrainingRecord) -> range:
    """Return the evaluated steps of the kept model: all, or with two models the teacher's or the
    student's."""
    if record.distillation is None:
        return range(record.steps + 1)
    first = record.distillation.from_step
    return range(first + 1, record.steps + 1) if student_was_kept(record) else range(first + 1)


def _tokens_per_byte(record: TrainingRecord, step: int) -> float:
    """Return the tokens in the loss per byte of text at a step, which trains on plain text or on answers."""
    if (chats := record.conversations) and step > chats.from_step:
        return chats.train_tokens / chats.train_bytes
    return record.train_tokens / (record.read_bytes or record.train_bytes or 0)


def answer_counts(record: TrainingRecord) -> str:
    """Count the greedy answers to held-out questions in a sentence; "" if no question was asked."""
    measured = record.answers
    if measured is None or measured.garbled is None:  # files of earlier versions lack some counts
        return ""
    count = measured.questions
    exact, near, garbled = (
        round(share * count) for share in (measured.exact, measured.near, measured.garbled)
    )
    return (
        f"{units.count(count, 'held-out question')}: {exact:,} exact, {near:,} near (at least 80% alike), "
        f"{count - exact - near - garbled:,} another training answer, {garbled:,} garbled"
    )
