"""The summary of a run: each sentence, from literal records."""

import math
from typing import Any

import pytest

from llmcli.errors import LLMError
from llmcli.evaluation.compressors import Baseline
from llmcli.formats.training_record import TrainingRecord
from llmcli.training.files import summary
from llmcli.training.files.summary import usage_hint

PLATEAU = "The validation loss has plateaued: longer training at this size would help little."
PLATEAU_ALONE = "The training loss has plateaued: longer training at this size would help little."
MEASURED = "Held-out text: network 1.000 bits per byte at the end (lower is better), on all 5,000 bytes, in float32."
NO_COMPRESSORS = "Compressors to compare with would have taken too long: run llm eval."
FINAL = f"{MEASURED} {NO_COMPRESSORS}"


def summarize(document: dict[str, Any], *arguments: Any, **options: Any) -> list[str]:
    return summary.summarize(TrainingRecord.from_json(document), *arguments, **options)


def read_curve(document: dict[str, Any]) -> summary.Curve:
    return summary.read_curve(TrainingRecord.from_json(document))


def record(**changes: Any) -> dict[str, Any]:
    """A run of 100 steps and an epoch, a token 2 bytes, that ends with losses of 1 bit per byte."""
    nats = 2 * math.log(2)  # per token: 1 bit per byte
    return {
        "train_bytes": 2000, "train_tokens": 1000, "steps": 100, "best_step": 100, "epochs": 1.0, "interrupted": False,
        "bits_per_byte": 1.0, "held_out_measured": {"bytes": 5000}, "held_out": {"bytes": 5000},
        "train": {"steps": 100, "seconds": None}, "validation": {"tokens": 512},
        "curve": {
            "step": list(range(10, 101, 10)), "loss": [4 * nats, 2 * nats] + [nats] * 8,
            "eval_step": [25, 50, 75, 100], "eval_bits_per_byte": [2.0, 1.02, 1.01, 1.0],
        },
    } | changes  # fmt: skip


def with_validation(*bits: float, **changes: Any) -> dict[str, Any]:
    """The same with other validation losses at a quarter, half, three quarters and the end."""
    return record(curve=record()["curve"] | {"eval_bits_per_byte": list(bits)}, **changes)


def test_the_curve_of_an_earlier_version_is_of_the_held_out_text() -> None:
    older = {key: value for key, value in record().items() if key != "validation"}
    assert (read_curve(record()).label, read_curve(older).label) == ("validation", "held-out (interim)")
    assert summarize(older) == [FINAL, PLATEAU.replace("validation", "held-out (interim)")]


def test_the_curve_is_in_bits_per_byte() -> None:
    curve = read_curve(record())
    assert curve.training == pytest.approx([4, 2, 1, 1, 1, 1, 1, 1, 1, 1])
    assert (curve.steps[0], curve.validation_steps, curve.validation) == (10, [25, 50, 75, 100], [2.0, 1.02, 1.01, 1.0])


@pytest.mark.parametrize(
    "broken",
    [{}, {"steps": 3}, record(curve={}), record(train_bytes=0),
     record(curve=record()["curve"] | {"step": []}), record(curve=record()["curve"] | {"loss": [1.0]}),
     record(curve=record()["curve"] | {"eval_step": [1]})],
)  # fmt: skip
def test_a_record_without_a_curve_is_an_error(broken: dict[str, Any]) -> None:
    with pytest.raises(LLMError, match="no readable curve"):
        read_curve(broken)


def test_a_run_that_has_plateaued() -> None:
    assert summarize(record()) == [FINAL, PLATEAU]


def test_the_part_of_the_held_out_text_that_was_measured_is_given() -> None:
    part = summarize(record(held_out={"bytes": 20_000}, bits_per_byte=0.2146))[0]
    assert part == (
        "Held-out text: network 0.215 bits per byte at the end (lower is better), on 5,000 of its 20,000 bytes (a "
        f"sample, to save time), in float32. {NO_COMPRESSORS}"
    )


def test_compressors_are_not_missed_where_none_would_be_compared() -> None:
    short = summarize(record(held_out={"bytes": 1999}, held_out_measured={"bytes": 1999}))[0]
    assert short == MEASURED.replace("5,000", "1,999")
    assert NO_COMPRESSORS not in summarize(chat_record())[0]


def compressors(**bits: float) -> list[Baseline]:
    """Results by name; static PPM by 24 pieces of 1,024 bytes of a longer text."""
    names = {"xz": "xz", "static": "PPM, static", "adaptive": "PPM, adaptive"}
    return [
        Baseline(names[key], value, 50_000, 99_000, pieces=24 if key == "static" else None)
        for key, value in bits.items()
    ]


ALL = compressors(xz=3.0, static=2.5, adaptive=2.0)


@pytest.mark.parametrize(
    ("network", "adapting", "of_network", "of_adapting"),
    [(0.9, None, " (the network is better)", ""),
     (0.9, 0.8, " (the network is better)", " (adapting is better)"),
     (2.4, 2.1, " (the network is better)", " (adapting is not better than PPM, adaptive)"),
     (2.6, 2.0, " (the network is not better than PPM, static)", " (adapting is not better than PPM, adaptive)"),
     (3.0, 1.9, " (the network is not better than xz and PPM, static)", " (adapting is better)")],
)  # fmt: skip
def test_each_figure_is_compared_with_compressors_of_its_kind(
    network: float, adapting: float | None, of_network: str, of_adapting: str
) -> None:
    of_both = {"bits_per_byte": adapting, "bits_per_byte_without_cache": network}
    first = summarize(record(**(of_both if adapting else {"bits_per_byte": network})), ALL)[0]
    shown = f"network {network:.3f}" + (f", adapting {adapting:.3f}" if adapting else "")
    beside_adapting = f"; beside adapting: PPM, adaptive 2.000{of_adapting}" if adapting else ""
    assert first == (
        f"{MEASURED.replace('network 1.000', shown)} Compressors on the same text, beside the network: xz 3.000 and "
        f"PPM, static about 2.50{of_network}{beside_adapting}."
    )


@pytest.mark.parametrize(
    ("measured", "held_out", "text"),
    [(1999, 1999, "the same text"), (38, 38, "the same text"), (5000, 20_000, "all of it")],
)
def test_there_is_no_verdict_on_little_text_or_on_other_bytes(measured: int, held_out: int, text: str) -> None:
    for bits in (0.5, 9.0):
        sentences = summarize(
            record(bits_per_byte=bits, held_out_measured={"bytes": measured}, held_out={"bytes": held_out}), ALL
        )
        assert sentences[0].endswith(
            f" Compressors on {text}, beside the network: xz 3.000 and PPM, static about 2.50."
        )
        assert sentences[1:] == [PLATEAU]


def test_without_held_out_text() -> None:
    curve = record()["curve"] | {"eval_step": [], "eval_bits_per_byte": []}
    bare = record(bits_per_byte=None, held_out={"bytes": 0}, curve=curve)
    assert summarize(bare, ALL) == ["No text was held out, so the loss on unseen text is unknown.", PLATEAU_ALONE]


def test_a_capped_context_and_an_unmeasured_text_are_mentioned() -> None:
    capped = summarize(record(held_out_measured={"bytes": 5000, "context": 2048}))[0]
    assert capped == FINAL.replace("in float32.", "in float32 with a context of 2,048 tokens.")
    unmeasured = summarize(record(bits_per_byte=None, held_out_measured=None))[0]
    assert unmeasured == (
        "The held-out text was not evaluated at the end (it would have taken too long): run llm eval."
    )
    short = record(bits_per_byte=None, held_out_measured=None, not_evaluated="out of memory")
    assert summarize(short)[0] == ("The held-out text was not evaluated at the end (out of memory): run llm eval.")


# ---- undertrained


@pytest.mark.parametrize(
    ("changes", "baselines", "reasons"),
    [
        ({"steps": 2, "best_step": 2}, [], "2 steps"),
        ({"steps": 1, "best_step": 1, "epochs": 0.004}, [], "1 step, less than 1% of the training text seen"),
        ({"steps": 99, "best_step": 99}, [], "99 steps"),
        ({"epochs": 0.31}, [], "31% of the training text seen"),
        ({"epochs": 0.9999}, [], "99% of the training text seen"),
        ({}, compressors(xz=0.9, static=0.8), "worse than every compressor"),
        ({"steps": 2, "best_step": 2}, compressors(xz=0.9), "2 steps, worse than every compressor"),
        ({"steps": 2, "best_step": 1}, [], "2 steps"),
        ({}, compressors(xz=0.9, static=1.8), ""),  # worse than xz alone
        ({"steps": 99, "best_step": 99, "epochs": 10.0}, [], ""),  # short of text, not of steps
        ({"epochs": 0.6, "train_bytes": 9000, "read_bytes": 2000}, [], ""),  # no epoch is ever full
        ({"steps": 9, "best_step": 9, "base": {}}, [], "9 steps"),
        ({"steps": 10, "best_step": 10, "base": {}}, [], ""),
        ({"steps": 9, "best_step": 9, "train": {"steps": 9, "seconds": None, "recipe": "lora"}}, [], "9 steps"),
        ({"steps": 1, "best_step": 0, "epochs": 0.02, "base": {}}, [], "1 step, 2% of the training text seen"),
        # the text ended the run
        ({"steps": 30, "best_step": 30, "epochs": 9.0, "train": {"steps": 30, "seconds": 300.0}}, [], ""),
        ({"steps": 2, "best_step": 2, "interrupted": True}, compressors(xz=0.9), ""),
    ],
)
def test_undertrained(changes: dict[str, Any], baselines: list[Baseline], reasons: str) -> None:
    sentences = summarize(record(**changes), baselines)[1:]
    if reasons:
        assert sentences == [f"Undertrained: {reasons}. Train longer."]
    else:
        assert len(sentences) == 1 and "Undertrained" not in sentences[0]


@pytest.mark.parametrize(("taken", "time"), [(3.0, "5m"), (151.0, "6m"), (4000.0, "134m")])
def test_the_suggested_time_is_at_least_twice_that_of_the_run(taken: float, time: str) -> None:
    run = record(steps=2, best_step=2, epochs=0.1)
    sentences = summarize(run, command="llm train c.csv --force", seconds=taken)[1]
    assert sentences.startswith("Undertrained: ")
    assert sentences.endswith(f" Train longer: llm train c.csv --force --time {time}")


def test_overfitting_explains_why_no_compressor_is_beaten() -> None:
    sentences = summarize(with_validation(2.0, 1.2, 1.2, 1.2, epochs=4), compressors(xz=0.5))[1:]
    assert len(sentences) == 1 and sentences[0].startswith("Overfitting: after 4 epochs")


# ---- more time


@pytest.mark.parametrize(("last", "improving"), [(0.96, True), (0.97, True), (0.98, False), (1.0, False)])
def test_still_improving_means_three_percent_in_the_second_half(last: float, improving: bool) -> None:
    assert (
        "Still improving at the end; more time would help." in summarize(with_validation(2.0, 1.0, 0.99, last))
    ) is improving


def test_with_one_evaluation_the_training_loss_decides() -> None:
    one = record()["curve"] | {"eval_step": [100], "eval_bits_per_byte": [1.0]}
    assert summarize(record(curve=one))[1] == PLATEAU
    falling = one | {"loss": [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.5, 3.2, 3.0]}
    assert summarize(record(curve=falling))[1].startswith("Still improving")


def test_the_command_for_more_time() -> None:
    improving = with_validation(2.0, 1.5, 1.2, 1.0, clock={"seconds": 300.0})
    sentences = summarize(improving, command="llm train c.txt --force")
    assert "Still improving at the end; more time would help: llm train c.txt --force --time 10m" in sentences


ENDED: dict[str, Any] = {"train": {"steps": 100, "seconds": 300.0}, "epochs": 19.98}


@pytest.mark.parametrize(
    ("validation", "advice"),
    [((2.0, 1.0, 1.0, 1.0),
      "Training stopped after 20 epochs: the validation loss no longer falls, so further epochs would only make the "
      "model memorize the text. More text would help."),
     ((2.0, 1.5, 1.2, 1.0),
      "Still improving after 20 epochs, the limit for this much data; more epochs would help: llm train c.txt --force "
      "--epochs 40"),
     ((2.0, 1.5, 1.4, 1.3),  # far above the training loss, but falling
      "Still improving after 20 epochs, the limit for this much data; more epochs would help: llm train c.txt --force "
      "--epochs 40"),
     ((2.0, 1.3, 1.3, 1.3),
      "Overfitting: after 20 epochs the training loss is 1.000 bits per byte, the validation loss 1.300, and it no "
      "longer falls. More text would help.")],
)  # fmt: skip
def test_the_validation_loss_tells_whether_a_run_ended_by_its_epochs_needs_more_text(
    validation: tuple[float, ...], advice: str
) -> None:
    assert summarize(with_validation(*validation, **ENDED), command="llm train c.txt --force")[1:] == [advice]


def test_without_a_validation_loss_nothing_is_said_of_further_epochs() -> None:
    curve = record()["curve"] | {"eval_step": [], "eval_bits_per_byte": []}
    assert summarize(record(curve=curve, **ENDED))[1:] == [PLATEAU_ALONE]
    found = {"found": 19.98, "confirmed": True}  # by a first run
    assert summarize(record(curve=curve, epoch_search=found, **ENDED))[1:] == [
        "Training stopped after 20 epochs: more did not lower the validation loss of the first run, so further epochs "
        "would only make the model memorize the text. More text would help."
    ]
    unconfirmed = record(curve=curve, epoch_search=found | {"confirmed": False}, **ENDED)
    assert summarize(unconfirmed)[1:] == [PLATEAU_ALONE]


def test_an_interrupted_run_can_be_resumed() -> None:
    cut = with_validation(2.0, 1.5, 1.2, 1.0, interrupted=True, train={"steps": 1000, "seconds": None})
    assert summarize(cut, command="llm train c.txt --force")[1:] == [
        "Interrupted at step 100; the same command resumes from there."
    ]
    assert summarize(cut, command="llm train c.txt --force", resumable=False)[1:] == [
        "Interrupted at step 100; no resume file could be written, so the same command starts over."
    ]


def test_a_run_that_ended_in_a_problem_is_not_resumed() -> None:
    sentences = summarize(with_validation(2.0, 1.5, 1.2, 1.0, problem="the loss is no longer a number at step 101"))
    assert sentences[1:] == ["Training ended early: the loss is no longer a number at step 101."]


# ---- more text


def test_overfitting_after_the_best_weights() -> None:
    sentences = summarize(with_validation(2.0, 1.0, 1.1, 1.2, best_step=50))
    assert sentences[1:] == [
        "Overfitting after step 50: the validation loss rose from 1.000 to 1.200 bits per byte, so the weights of that "
        "step are kept. More text would help."
    ]
    assert summarize(with_validation(2.0, 1.0, 1.0, 1.01, best_step=50))[1:] == [PLATEAU]  # hardly worse


def test_fine_tuning_without_improvement() -> None:
    assert summarize(with_validation(1.0, 1.1, 1.1, 1.2, best_step=0, base={}))[1:] == [
        "Fine-tuning did not improve on the base model (validation loss: 1.000 bits per byte before, 1.200 at the "
        "end), so its weights are kept. A lower learning rate or more text would help."
    ]


@pytest.mark.parametrize(
    ("epochs", "held", "short"), [(4, 1.2, True), (4, 1.14, False), (1.5, 1.2, False), (2, 1.15, True)]
)
def test_a_gap_between_the_losses_after_many_epochs(epochs: float, held: float, short: bool) -> None:
    sentences = summarize(with_validation(2.0, held, held, held, epochs=epochs))
    assert sentences[1:] == (
        [f"Overfitting: after {epochs} epochs the training loss is 1.000 bits per byte, the validation loss "
         f"{held:.3f}, and it no longer falls. More text would help."] if short else [PLATEAU]
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(2.0, 1.5, 1.4, 1.3), (2.0, 1.0, 1.1, 1.2), (2.0, 1.0, 0.99, 0.9), (1, 1, 1, 1)])
@pytest.mark.parametrize("epochs", [0.5, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("seconds", [None, 300.0])
@pytest.mark.parametrize("memorised", [None, {"share": 0.6, "held_out_share": 0.1}])
@pytest.mark.parametrize("best", [50, 100])
def test_more_text_and_more_time_are_never_advised_together(
    shape: tuple[float, ...], epochs: float, seconds: float | None, memorised: Any, best: int
) -> None:
    run = with_validation(
        *shape, epochs=epochs, train={"steps": 100, "seconds": seconds}, memorised=memorised, best_step=best
    )
    for baselines in ([], compressors(xz=0.5), compressors(xz=0.5, static=9.0)):
        summary = " ".join(summarize(run, baselines, command="llm train c.txt")[1:]).lower()
        text, time = "more text" in summary, "more time" in summary or "train longer" in summary
        assert not (text and time), summary
        assert not ("plateaued" in summary and (text or time)), summary


# ---- memorization


@pytest.mark.parametrize(
    ("own", "new", "memorized"),
    [
        (0.30, 0.05, True),
        (0.16, 0.05, True),
        (0.14, 0.05, False),
        (0.58, 0.49, False),
        (0.5, None, True),
        (0.4, None, False),
    ],
)
def test_memorization_is_measured_against_held_out_text(own: float, new: float | None, memorized: bool) -> None:
    sentences = summarize(record(memorised={"share": own, "held_out_share": new}))
    beside = "" if new is None else f" (held-out text itself: {new:.0%})"
    assert sentences[1:] == (
        [f"Memorization: {own:.0%} of generated 30-character strings occur verbatim in the training text{beside}. "
         f"More text or a smaller model would help."] if memorized else [PLATEAU]
    )  # fmt: skip


@pytest.mark.parametrize(("known_share", "is_noted"), [(0.0, False), (0.09, False), (0.1, True)])
def test_held_out_text_that_is_in_the_training_text_is_noted(known_share: float, is_noted: bool) -> None:
    note = "Held-out text: 10% of it also occurs in the training text, so its figures say little about new text."
    sentences = summarize(record(held_out={"bytes": 5000, "known_share": known_share}))
    assert sentences == [FINAL, *([note] if is_noted else []), PLATEAU]


def test_a_base_model_that_knows_the_held_out_data_is_noted() -> None:
    for what, run in (
        ("text", record(held_out={"bytes": 5000, "seen_by_base": True})),
        ("conversations", chat_record(held_out={"bytes": 5000, "of": "answers", "seen_by_base": True})),
    ):
        assert (
            f"The base model was trained on the held-out {what}, so neither its figures nor those after fine-tuning "
            f"measure new {what}; hold out other {what}: --val FILE."
        ) in summarize(run)


def test_without_held_out_text_memorization_is_not_taken_for_improvement() -> None:
    bare = {"step": [25, 50, 75, 100], "loss": [4.0, 3.0, 2.0, 1.0], "eval_step": [], "eval_bits_per_byte": []}
    run = record(curve=bare, bits_per_byte=None)
    assert summarize(run)[1].startswith("Still improving")
    sentences = summarize(run | {"memorised": {"share": 0.6, "held_out_share": None}})
    assert len(sentences) == 2 and sentences[1].startswith("Memorization: 60%")


# ---- conversations


def chat_record(**changes: Any) -> dict[str, Any]:
    """A run of 100 steps, the last 60 on conversations, whose learned tokens are 4 bytes each."""
    made = record(
        held_out={"bytes": 5000, "of": "answers"}, epochs=0.5,
        conversations={"from_step": 40, "epochs": 3.0, "train_tokens": 250, "train_bytes": 1000},
    )  # fmt: skip
    return made | changes


def test_the_training_loss_is_per_byte_of_what_was_learned() -> None:
    """Text of 2 bytes a token before, answers of 4 bytes a token after the 40th step."""
    curve = read_curve(chat_record())
    assert curve.steps[3] == 40
    assert curve.training == pytest.approx([4, 2, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])


def test_the_figure_of_conversations_is_of_answers() -> None:
    first, *rest = summarize(chat_record(curve=record()["curve"] | {"loss": [9.0] * 10}))
    assert first == (
        "Held-out answers: network 1.000 bits per byte at the end (lower is better), on all 5,000 bytes, in float32."
    )
    assert rest == [PLATEAU]
    assert "No conversations were held out" in summarize(
        chat_record(bits_per_byte=None, held_out={"bytes": 0, "of": "answers"})
    )[0]  # fmt: skip


def test_more_conversations_would_help() -> None:
    overfitted = chat_record(curve=record()["curve"] | {"eval_bits_per_byte": [2.0, 1.0, 1.1, 1.2]}, best_step=50)
    assert summarize(overfitted)[1].endswith("More conversations would help.")
    ended = chat_record(train={"steps": 100, "seconds": 60.0}, curve=record()["curve"] | {"loss": [9.0] * 10})
    assert summarize(ended)[1] == (
        "Training stopped after 3 epochs: the validation loss no longer falls, so further epochs would only make the "
        "model memorize the conversations. More conversations would help."
    )


def test_answers_that_are_certain_need_no_advice() -> None:
    for bits, best in (([2.0, 0.01, 0.001, 0.0001], 100), ([2.0, 0.0001, 0.001, 0.001], 50)):
        curve = record()["curve"] | {"eval_bits_per_byte": bits, "loss": [0.0] * 10}
        assert summarize(chat_record(curve=curve, best_step=best))[1:] == [PLATEAU]


@pytest.mark.parametrize(
    ("exact", "near", "garbled", "sentence"),
    [(40, 0, 0, "40 exact, 0 near (at least 80% alike), 0 another training answer, 0 garbled."),
     (37, 3, 0, "37 exact, 3 near (at least 80% alike), 0 another training answer, 0 garbled."),
     (4, 1, 31, "4 exact, 1 near (at least 80% alike), 4 another training answer, 31 garbled.")],
)  # fmt: skip
def test_held_out_answers_decide_on_the_advice(exact: int, near: int, garbled: int, sentence: str) -> None:
    measured = {"verbatim": 0.0, "seen": 1.0} | {
        key: round(count / 40, 4) for key, count in (("exact", exact), ("near", near), ("garbled", garbled))
    }
    curve = record()["curve"] | {"eval_bits_per_byte": [2.0, 1.0, 1.1, 1.2]}
    run = chat_record(answers={"questions": 40, **measured}, curve=curve, best_step=50)
    counted, advice = summarize(run)[1:]
    assert counted == f"Greedy answers to 40 held-out questions: {sentence}"
    if exact == 40:
        assert advice == "All of these answers are exact: longer training would help little."
    else:
        assert advice.startswith("Overfitting after step 50")


@pytest.mark.parametrize(
    ("bits", "advice"),
    [((0.05, 0.01, 0.008, 0.005), "Still improving at the end; more time would help."),
     ((0.05, 0.01, 0.01, 0.01), f"{PLATEAU} More conversations would help.")],
)  # fmt: skip
def test_the_curve_tells_what_inexact_answers_need(bits: tuple[float, ...], advice: str) -> None:
    """278 of 300 answers are exact, at a loss that is small: twice the time made it 296."""
    answers = {"questions": 300, "verbatim": 0.0, "exact": 0.9267, "near": 0.0733, "garbled": 0.0, "seen": 0.0}
    curve = record()["curve"] | {"eval_bits_per_byte": list(bits), "loss": [0.03] * 10}
    assert summarize(chat_record(answers=answers, curve=curve))[2:] == [advice]


def test_known_answers_call_for_other_wordings_rather_than_for_time() -> None:
    losses = [4.0, 2.0, 0.05, 0.04, 0.03, 0.03, 0.02, 0.02, 0.015, 0.012]
    alone = record()["curve"] | {"loss": losses, "eval_step": [], "eval_bits_per_byte": []}
    run = chat_record(curve=alone, bits_per_byte=None, held_out={"bytes": 0, "of": "answers"})
    knows = "The model knows its training answers: longer training would help little."
    assert summarize(run)[1:] == [
        f"{knows} Several wordings of each question in the training data would help with new ones."
    ]
    assert summarize(run, has_labels=True)[1:] == [f"{knows} More rows would help with new ones."]
    unsure = summarize(run | {"curve": alone | {"loss": [100 * loss for loss in losses]}})[1]
    assert unsure.startswith("Still improving")


def test_a_run_that_nearly_reached_its_limit_of_epochs_would_be_hardly_longer() -> None:
    for steps, advice in ((110, "Still improving after 20 epochs"), (112, "Still improving at the end")):
        run = with_validation(2.0, 1.5, 1.2, 1.0, epochs=19.98, train={"steps": steps, "seconds": 300.0})
        assert summarize(run)[1].startswith(advice)


@pytest.mark.parametrize(("share", "half", "improving"), [(0.97, 0.27, False), (0.89, 0.27, True), (0.97, 0.28, True)])
def test_a_repetitive_text_near_its_floor_needs_no_more_time(share: float, half: float, improving: bool) -> None:
    """food.txt after 20 seconds: .27 at half of the run, .225 at the end; twice the time gives hardly more."""
    run = with_validation(0.6, half, 0.25, 0.225, memorised={"share": share, "held_out_share": share})
    advice = "Still improving at the end; more time would help." if improving else PLATEAU
    assert summarize(run)[1:] == [advice]


@pytest.mark.parametrize(("share", "repetitive"), [(0.97, True), (0.9, True), (0.89, False)])
@pytest.mark.parametrize("steps", [100, 110])
def test_a_repetitive_text_calls_for_neither_text_nor_time(share: float, repetitive: bool, steps: int) -> None:
    """What is left near the floor is hardly worth it: a gain of 4% in the second half."""
    run = with_validation(
        2.0, 1.04, 1.02, 1.0 if repetitive else 1.02, epochs=19.98, train={"steps": steps, "seconds": 300.0},
        memorised={"share": share, "held_out_share": share},
    )  # fmt: skip
    [advice] = summarize(run, command="llm train c.txt --force")[1:]
    if repetitive:
        assert advice == PLATEAU
    else:
        assert advice.startswith("Training stopped after 20 epochs") and advice.endswith("More text would help.")


def test_greedy_answers_and_plain_text_have_a_sentence_each() -> None:
    answers = {"questions": 40, "verbatim": 0.0, "seen": 1.0, "exact": 0.1, "near": 0.025, "garbled": 0.775}
    plain_text = {"from": "the held-out text", "tokens": 99, "before": 2.0, "after": 2.03}
    sentences = summarize(chat_record(answers=answers, plain_text=plain_text))
    assert sentences[1:3] == [
        "Greedy answers to 40 held-out questions: 4 exact, 1 near (at least 80% alike), 4 another training answer, 31 "
        "garbled.",
        "Plain text (the held-out text): network 2.000 bits per byte before, 2.030 after (+1.5%).",
    ]
    forgot = summarize(chat_record(plain_text=plain_text | {"after": 2.2}))[1]
    assert forgot.endswith(
        "(+10.0%). Adding plain text to the training data, --lora, or a lower --lr-scale would help to keep it."
    )
    adapters = chat_record(plain_text=plain_text | {"after": 2.2}, train={"steps": 100, "recipe": "lora"})
    assert "--lora" not in " ".join(summarize(adapters))
    alone = summarize(chat_record(plain_text=plain_text | {"before": None}))[1]
    assert alone == "Plain text (the held-out text): network 2.030 bits per byte."
    assert "1 held-out question:" in summarize(chat_record(answers=answers | {"questions": 1}))[1]
    earlier = {"questions": 12, "verbatim": 0.25, "exact": 0.1667}  # an earlier version counted less
    assert not any("Greedy" in sentence for sentence in summarize(chat_record(answers=earlier)))


# ---- two models


def distilled(**changes: Any) -> dict[str, Any]:
    """A run whose second half trains a student, from fresh weights, and ends as in `record`."""
    nats = 2 * math.log(2)
    curve = {
        "step": list(range(10, 101, 10)), "loss": [9 * nats, nats, nats, nats, nats] * 2,
        "eval_step": [25, 50, 55, 60, 75, 80, 100], "eval_bits_per_byte": [1.2, 1.1, 9.0, 3.0, 1.3, 1.01, 1.0],
    }  # fmt: skip
    distillation = {"from_step": 50, "teacher_bits_per_byte": 1.1}
    return record(curve=curve, distillation=distillation, epochs=12.0) | changes


def test_the_second_of_two_models_is_judged_by_its_own_losses() -> None:
    assert summarize(distilled())[1:] == ["Still improving at the end; more time would help."]
    curve = distilled()["curve"] | {"eval_bits_per_byte": [1.2, 1.1, 9.0, 3.0, 1.005, 1.001, 1.0]}
    assert summarize(distilled(curve=curve))[1:] == [PLATEAU]


def test_the_first_of_two_models_is_kept_where_the_second_is_not_better() -> None:
    curve = distilled()["curve"] | {"eval_bits_per_byte": [1.11, 1.1, 9.0, 3.0, 1.3, 1.3, 1.2]}
    assert summarize(distilled(curve=curve, best_step=50))[1:] == [PLATEAU]


# ---- hints


def test_the_hint_names_the_model_where_it_must() -> None:
    continues = "The model continues text; it does not answer questions. Try it: llm"
    assert usage_hint("", "I like to eat") == f'{continues} generate "I like to eat"'
    assert usage_hint("my model.safetensors", "It's $5", has_chat_template=True) == (
        "Try it: llm generate 'It'\"'\"'s $5' -m 'my model.safetensors'"
    )
    assert usage_hint("") == f'{continues} generate "..."'
    assert usage_hint("m.st", "Ada", kind="list") == f"{continues} generate -m m.st --lines 10 --new"
    assert usage_hint("m.st", "12", kind="log") == f"{continues} eval OTHER_LOG -m m.st --per-line"


def test_a_model_of_conversations_is_asked_for_answers() -> None:
    chat = {"chats": True, "has_chat_template": True}
    assert usage_hint("my model.safetensors", **chat) == "Try it: llm chat -m 'my model.safetensors'"
    assert usage_hint("m.st", knows_answers=True, **chat) == "Try it: llm chat -m m.st --known-answers"
    assert usage_hint("m.st", "It was good.", labels=["yes", "not sure"], **chat) == (
        "Try it: llm chat \"It was good.\" -m m.st --choices 'yes,not sure'"
    )
    for long in (["yes, sir", "no"], ["x" * 300, "no"]):
        hint = usage_hint("", labels=long, **chat)
        assert hint == 'Try it: llm chat "..." --choices FILE (with one on each line)'


def test_known_answers_are_counted() -> None:
    known = {"questions": 15, "right": 11, "wrong": 1}
    assert (
        "With --known-answers, of 15 held-out questions with a training answer: 11 right, 1 wrong, 3 not answered."
        in summarize(chat_record(known_answers=known))
    )


@pytest.mark.parametrize("validation", [(2.0, 1.5, 1.2, 1.0), (2.0, 1.0, 1.1, 1.2), (2.0, 1.0, 1.0, 1.0)])
@pytest.mark.parametrize("epochs", [0.5, 20.0])
def test_there_is_one_sentence_of_advice(validation: tuple[float, ...], epochs: float) -> None:
    """With the warning about known text and the command to try, three."""
    run = with_validation(*validation, epochs=epochs, memorised={"share": 0.9, "held_out_share": 0.1})
    assert len(summarize(run)) == 2
