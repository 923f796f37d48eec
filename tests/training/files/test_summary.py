"""The summary of a run: each sentence, from literal records."""

import itertools
import math
from typing import Any

import pytest

from llmcli.errors import LLMError
from llmcli.evaluation.compressors import Baseline
from llmcli.formats.training_record import TrainingRecord
from llmcli.training.files import curve, summary
from llmcli.training.files.summary import usage_hint

LITTLE = "longer training at this size would help little, more text would."
PLATEAU = f"The validation loss has plateaued (1.000 bits per byte, training loss 1.000): {LITTLE}"
PLATEAU_ALONE = f"The training loss has plateaued (1.000): {LITTLE}"
MEASURED = "Held-out text: network 1.000 bits per byte at the end (lower is better), on all 5,000 bytes, in float32."


def summarize(document: dict[str, Any], *arguments: Any, **options: Any) -> list[str]:
    return summary.summarize(TrainingRecord.from_json(document), *arguments, **options)


def read_curve(document: dict[str, Any]) -> curve.Curve:
    return curve.read_curve(TrainingRecord.from_json(document))


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
    assert summarize(older) == [MEASURED, PLATEAU.replace("validation", "held-out (interim)")]


def test_a_record_without_a_curve_is_an_error() -> None:
    curve = record()["curve"]
    for broken in (
        {}, {"steps": 3}, record(curve={}), record(train_bytes=0), record(curve=curve | {"step": []}),
        record(curve=curve | {"loss": [1.0]}), record(curve=curve | {"eval_step": [1]}),
    ):  # fmt: skip
        with pytest.raises(LLMError, match="no readable curve"):
            read_curve(broken)


def test_the_held_out_text_that_was_measured_is_described() -> None:
    """In one sentence: how much of it, with which context, and whether it is new."""
    assert summarize(record()) == [MEASURED, PLATEAU]
    for changes, expected in (
        (
            {"held_out": {"bytes": 20_000}, "bits_per_byte": 0.2146},
            "Held-out text: network 0.215 bits per byte at the end (lower is better), on 5,000 of its 20,000 bytes (a "
            "sample, to save time), in float32.",
        ),
        (
            {"held_out_measured": {"bytes": 5000, "context": 2048}},
            MEASURED.replace("in float32.", "in float32 with a context of 2,048 tokens."),
        ),
        (
            {"held_out": {"bytes": 5000, "from": "10% at the end", "known_share": 0.1}},
            MEASURED.replace("text:", "text (10% at the end; 10% of it also occurs in the training text):"),
        ),
        ({"held_out": {"bytes": 5000, "known_share": 0.09}}, MEASURED),
        (
            {"bits_per_byte": None, "held_out_measured": None},
            "The held-out text was not evaluated at the end (it would have taken too long): llm eval TEXT -m MODEL",
        ),
        (
            {"bits_per_byte": None, "held_out_measured": None, "not_evaluated": "out of memory"},
            "The held-out text was not evaluated at the end (out of memory): llm eval TEXT -m MODEL",
        ),
    ):
        assert summarize(record(**changes))[0] == expected


def compressors(**bits: float) -> list[Baseline]:
    """Results by name; static PPM by 24 pieces of 1,024 bytes of a longer text."""
    names = {"xz": "xz", "static": "PPM, static", "adaptive": "PPM, adaptive"}
    return [
        Baseline(names[key], value, 50_000, 99_000, pieces=24 if key == "static" else None)
        for key, value in bits.items()
    ]


ALL = compressors(xz=3.0, static=2.5, adaptive=2.0)


def test_each_figure_is_compared_with_compressors_of_its_kind() -> None:
    for network, adapting, of_network, of_adapting in (
        (0.9, None, " (the network is better)", ""),
        (0.9, 0.8, " (the network is better)", " (adapting is better)"),
        (2.4, 2.1, " (the network is better)", " (adapting is not better than PPM, adaptive)"),
        (2.6, 2.0, " (the network is not better than PPM, static)", " (adapting is not better than PPM, adaptive)"),
        (3.0, 1.9, " (the network is not better than xz and PPM, static)", " (adapting is better)"),
    ):
        of_both = {"bits_per_byte": adapting, "bits_per_byte_without_cache": network}
        first = summarize(record(**(of_both if adapting else {"bits_per_byte": network})), ALL)[0]
        shown = f"network {network:.3f}" + (f", adapting {adapting:.3f}" if adapting else "")
        beside_adapting = f"; beside adapting: PPM, adaptive 2.000{of_adapting}" if adapting else ""
        assert first == (
            f"{MEASURED.replace('network 1.000', shown)} Compressors on the same text, beside the network: xz 3.000 "
            f"and PPM, static about 2.50{of_network}{beside_adapting}."
        )


def test_there_is_no_verdict_on_little_text_or_on_other_bytes() -> None:
    for measured, held_out, text in ((1999, 1999, "the same text"), (5000, 20_000, "all of it")):
        for bits in (0.5, 9.0):
            run = record(bits_per_byte=bits, held_out_measured={"bytes": measured}, held_out={"bytes": held_out})
            assert summarize(run, ALL)[0].endswith(
                f" Compressors on {text}, beside the network: xz 3.000 and PPM, static about 2.50."
            )


def test_without_held_out_text() -> None:
    curve = record()["curve"] | {"eval_step": [], "eval_bits_per_byte": []}
    bare = record(bits_per_byte=None, held_out={"bytes": 0}, curve=curve)
    assert summarize(bare, ALL) == ["No text was held out, so the loss on unseen text is unknown.", PLATEAU_ALONE]


# ---- advice


def test_undertrained() -> None:
    lora = {"steps": 9, "seconds": None, "recipe": "lora"}
    for changes, reasons in (
        ({"steps": 1, "best_step": 1, "epochs": 0.004}, "1 step, less than 1% of the training text seen"),
        ({"steps": 99, "best_step": 99}, "99 steps"),
        ({"epochs": 0.31}, "31% of the training text seen"),
        ({"epochs": 0.9999}, "99% of the training text seen"),
        ({"steps": 99, "best_step": 99, "epochs": 10.0}, ""),  # short of text, not of steps
        ({"epochs": 0.6, "train_bytes": 9000, "read_bytes": 2000}, ""),  # no epoch is ever full
        ({"steps": 9, "best_step": 9, "base": {}}, "9 steps"),
        ({"steps": 10, "best_step": 10, "base": {}}, ""),
        ({"steps": 9, "best_step": 9, "train": lora}, "9 steps"),
        # the text ended the run
        ({"steps": 30, "best_step": 30, "epochs": 9.0, "train": {"steps": 30, "seconds": 300.0}}, ""),
        ({"steps": 2, "best_step": 2, "interrupted": True}, ""),
    ):
        _, advice = summarize(record(**changes))
        assert advice == f"Undertrained: {reasons}. Train longer." if reasons else "Undertrained" not in advice, changes


def test_a_run_that_diverged_needs_a_lower_learning_rate() -> None:
    """However few its steps were."""
    nats = 2 * math.log(2)
    runs = [(4, 4.3, False, False), (4, 4.5, False, True), (4, 7.9, True, False), (4, 8.1, True, True)]
    runs += [(8.1, 8.1, False, False), (20, 15, False, True), (12, 9, True, False)]  # 12: of another language
    for first, last, fine_tuned, diverged in runs:
        curve = record()["curve"] | {"loss": [first * nats] + [last * nats] * 9}
        base = {"base": {"file": "base.safetensors"}} if fine_tuned else {}
        advice = summarize(record(steps=20, best_step=20, epochs=0.4, curve=curve, **base))[1]
        loss = f"the training loss was {first:.3f} bits per byte at the start and {last:.3f} at the end"
        assert (advice == f"Diverged: {loss}. A lower --lr-scale would help.") == diverged, advice


def test_the_suggested_time_is_at_least_twice_that_of_the_run() -> None:
    run = record(steps=2, best_step=2, epochs=0.1)
    for taken, time in ((3.0, "5m"), (151.0, "6m"), (4000.0, "134m")):
        advice = summarize(run, command="llm train c.csv --force", seconds=taken)[1]
        assert advice.startswith("Undertrained: ")
        assert advice.endswith(f" Train longer: llm train c.csv --force --time {time}")


def test_still_improving_means_three_percent_in_the_second_half() -> None:
    for last, improving in ((0.96, True), (0.97, True), (0.98, False), (1.0, False)):
        sentences = summarize(with_validation(2.0, 1.0, 0.99, last))
        assert ("Still improving at the end; more time would help." in sentences) is improving


def test_with_one_evaluation_the_training_loss_decides() -> None:
    one = record()["curve"] | {"eval_step": [100], "eval_bits_per_byte": [1.0]}
    assert summarize(record(curve=one))[1] == PLATEAU
    falling = one | {"loss": [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.5, 3.2, 3.0]}
    assert summarize(record(curve=falling))[1].startswith("Still improving")


def test_a_run_that_nearly_reached_its_limit_of_epochs_gets_more_epochs() -> None:
    for steps, advice in (
        (110, "Still improving after 20 epochs, the limit for this much data; more epochs would help: llm --epochs 40"),
        (112, "Still improving at the end; more time would help: llm --time 5m"),
    ):
        run = with_validation(2.0, 1.5, 1.2, 1.0, epochs=19.98, train={"steps": steps, "seconds": 300.0})
        assert summarize(run, command="llm")[1:] == [advice]


def test_the_second_run_on_a_short_text_needs_more_text() -> None:
    curve = record()["curve"] | {"eval_step": [], "eval_bits_per_byte": []}
    curve |= {"loss": [9.0 - i / 2 for i in range(10)]}  # the training loss falls
    for confirmed, advice in ((True, "The training loss has plateaued"), (False, "Still improving after 20 epochs")):
        found = {"found": 19.98, "confirmed": confirmed}
        run = record(curve=curve, epoch_search=found, train={"steps": 100, "seconds": 300.0}, epochs=19.98)
        assert summarize(run)[1].startswith(advice)


def test_an_interrupted_run_can_be_resumed() -> None:
    cut = with_validation(2.0, 1.5, 1.2, 1.0, interrupted=True, train={"steps": 1000, "seconds": None})
    assert summarize(cut)[1:] == ["Interrupted at step 100; the same command resumes from there."]
    assert summarize(cut, resumable=False)[1:] == [
        "Interrupted at step 100; no resume file could be written, so the same command starts over."
    ]
    ended = with_validation(2.0, 1.5, 1.2, 1.0, problem="the loss is no longer a number at step 101")
    assert summarize(ended)[1:] == ["Training ended early: the loss is no longer a number at step 101."]


def test_overfitting_after_the_best_weights() -> None:
    assert summarize(with_validation(2.0, 1.0, 1.1, 1.2, best_step=50))[1:] == [
        "Overfitting after step 50: the validation loss rose from 1.000 to 1.200 bits per byte, so the weights of that "
        "step are kept. More text would help."
    ]
    assert "plateaued" in summarize(with_validation(2.0, 1.0, 1.0, 1.01, best_step=50))[1]  # hardly worse
    assert summarize(with_validation(1.0, 1.1, 1.1, 1.2, best_step=0, base={}))[1:] == [
        "Fine-tuning did not improve on the base model (validation loss: 1.000 bits per byte before, 1.200 at the "
        "end), so its weights are kept. A lower learning rate or more text would help."
    ]


def test_more_text_and_more_time_are_never_advised_together() -> None:
    for shape, epochs, seconds, memorised, best in itertools.product(
        [(2.0, 1.5, 1.4, 1.3), (2.0, 1.0, 1.1, 1.2), (2.0, 1.0, 0.99, 0.9), (1, 1, 1, 1)],
        [0.5, 1.0, 5.0, 20.0], [None, 300.0], [None, {"share": 0.6, "held_out_share": 0.1}], [50, 100],
    ):  # fmt: skip
        settings = {"steps": 100, "seconds": seconds}
        run = with_validation(*shape, epochs=epochs, train=settings, memorised=memorised, best_step=best)
        lines = summarize(run, compressors(xz=0.5), command="llm train c.txt")
        assert len(lines) == 2
        text, time = "More text" in lines[1] or "more text" in lines[1], "more time" in lines[1]
        assert not (text and (time or "Train longer" in lines[1])), lines[1]


def test_memorization_is_measured_against_held_out_text() -> None:
    for own, new, memorized in (
        (0.30, 0.05, True), (0.16, 0.05, True), (0.14, 0.05, False), (0.58, 0.49, False), (0.5, None, True),
        (0.4, None, False),
    ):  # fmt: skip
        beside = "" if new is None else f" (held-out text itself: {new:.0%})"
        sentence = f"Memorization: {own:.0%} of generated 30-character strings occur verbatim in the training text"
        assert summarize(record(memorised={"share": own, "held_out_share": new}))[1:] == (
            [f"{sentence}{beside}. More text or a smaller model would help."] if memorized else [PLATEAU]
        )


def test_without_held_out_text_memorization_is_not_taken_for_improvement() -> None:
    bare = {"step": [25, 50, 75, 100], "loss": [4.0, 3.0, 2.0, 1.0], "eval_step": [], "eval_bits_per_byte": []}
    run = record(curve=bare, bits_per_byte=None, held_out={"bytes": 0})
    assert summarize(run) == ["No text was held out, so the loss on unseen text is unknown."]
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
    alone = read_curve(record())
    assert alone.training == pytest.approx([4, 2, 1, 1, 1, 1, 1, 1, 1, 1])
    assert (alone.steps[0], alone.validation_steps) == (10, [25, 50, 75, 100])
    assert alone.validation == [2.0, 1.02, 1.01, 1.0]
    curve = read_curve(chat_record())
    assert curve.steps[3] == 40
    assert curve.training == pytest.approx([4, 2, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])


def test_the_figure_of_conversations_is_of_answers() -> None:
    first, *rest = summarize(chat_record(curve=record()["curve"] | {"loss": [9.0] * 10}))
    assert first == (
        "Held-out answers: network 1.000 bits per byte at the end (lower is better), on all 5,000 bytes, in float32."
    )
    assert len(rest) == 1 and rest[0].endswith("more conversations would.")
    assert "No conversations were held out" in summarize(
        chat_record(bits_per_byte=None, held_out={"bytes": 0, "of": "answers"})
    )[0]  # fmt: skip


def test_inexact_answers_are_improved_by_time() -> None:
    """278 of 300 answers are exact, at a loss that is small: twice the time made it 296."""
    curve = record()["curve"] | {"eval_bits_per_byte": [0.05, 0.01, 0.008, 0.005], "loss": [0.03] * 10}
    for exact, advice in ((0.9267, "Still improving at the end"), (1.0, "The validation loss has plateaued")):
        answers = {"questions": 300, "verbatim": 0.0, "exact": exact, "near": 0.0, "garbled": 0.0, "seen": 0.0}
        assert summarize(chat_record(answers=answers, curve=curve))[2].startswith(advice)


def test_the_figures_of_conversations_are_one_line() -> None:
    answers = {"questions": 40, "verbatim": 0.0, "seen": 1.0, "exact": 0.1, "near": 0.025, "garbled": 0.775}
    plain_text = {"from": "the held-out text", "tokens": 99, "before": 2.0, "after": 2.03}
    known = {"questions": 15, "right": 11, "wrong": 1}
    counted = "4 exact, 1 near (at least 80% alike), 4 another training answer, 31 garbled"
    before = "Plain text (the held-out text): network 2.000 bits per byte"
    help_ = "Plain text in the training data or a lower --lr-scale would help to keep it."
    for changes, line in (
        ({"answers": answers}, f"Greedy answers to 40 held-out questions: {counted}."),
        (
            {"known_answers": known, "plain_text": plain_text},
            "With --known-answers, of 15 held-out questions with a training answer: 11 right, 1 wrong, 3 not answered. "
            f"{before} before, 2.030 after (+1.5%).",
        ),
        (
            {"known_answers": known | {"answerable": 20}},
            "With --known-answers, of 20 held-out questions with a training answer (15 asked): 11 right, 1 wrong, 3 "
            "not answered.",
        ),
        ({"plain_text": plain_text | {"after": 2.2}}, f"{before} before, 2.200 after (+10.0%). {help_}"),
        ({"plain_text": plain_text | {"before": None, "after": 2.0}}, f"{before}."),
    ):
        assert summarize(chat_record(**changes))[1] == line
    earlier = {"questions": 12, "verbatim": 0.25, "exact": 0.1667}  # an earlier version counted less
    assert len(summarize(chat_record(answers=earlier))) == 2


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
    assert "plateaued" in summarize(distilled(curve=curve))[1]
    # the first is kept where the second is not better
    curve = distilled()["curve"] | {"eval_bits_per_byte": [1.11, 1.1, 9.0, 3.0, 1.3, 1.3, 1.2]}
    assert "plateaued" in summarize(distilled(curve=curve, best_step=50))[1]


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
