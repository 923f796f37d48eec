"""What a run's record means: each sentence, with literal numbers."""

import math
from typing import Any

import pytest

from llmcli.errors import LLMError
from llmcli.verdict import curve, verdict

LEARNED = "At the end it hardly improved any more: it has learned what it can from this text at this size."


def record(**changes: Any) -> dict[str, Any]:
    """A run of 100 steps, a token 2 bytes, its loss and its held-out figure level at 1 bit per byte at the end."""
    nats = 2 * math.log(2)  # per token: 1 bit per byte
    return {
        "train_bytes": 2000, "train_tokens": 1000, "steps": 100, "best_step": 100, "epochs": 1.0, "interrupted": False,
        "bits_per_byte": 1.0, "held_out_measured": {"bytes": 500}, "train": {"steps": 100, "seconds": None},
        "curve": {
            "step": list(range(10, 101, 10)), "loss": [4 * nats, 2 * nats] + [nats] * 8,
            "eval_step": [25, 50, 75, 100], "eval_bits_per_byte": [2.0, 1.02, 1.01, 1.0],
        },
    } | changes  # fmt: skip


def looks(*bits: float, **changes: Any) -> dict[str, Any]:
    """The same with other held-out figures at a quarter, half, three quarters and the end."""
    return record(curve=record()["curve"] | {"eval_bits_per_byte": list(bits)}, **changes)


def test_the_curve_is_in_bits_per_byte() -> None:
    found = curve(record())
    assert found.training == pytest.approx([4, 2, 1, 1, 1, 1, 1, 1, 1, 1])
    assert (found.steps[0], found.held_out_steps, found.held_out) == (10, [25, 50, 75, 100], [2.0, 1.02, 1.01, 1.0])


@pytest.mark.parametrize(
    "broken",
    [{}, {"steps": 3}, record(curve={}), record(curve=7), record(train_bytes=0), record(train_tokens=None),
     record(curve=record()["curve"] | {"step": []}), record(curve=record()["curve"] | {"loss": [1.0]}),
     record(curve=record()["curve"] | {"eval_step": [1]}), record(curve=record()["curve"] | {"loss": ["x"]})],
)  # fmt: skip
def test_a_record_without_a_curve_is_told(broken: dict[str, Any]) -> None:
    with pytest.raises(LLMError, match="no curve"):
        curve(broken)


def test_a_run_that_has_learned_what_it_can() -> None:
    assert verdict(record()) == [
        "Held-out text: 1.000 bits per byte, measured on 500 bytes; less is better.",
        LEARNED,
    ]


@pytest.mark.parametrize(
    ("ours", "said"),
    [(0.9, "It beats them all."), (2.5, "It beats all but PPM, adapting."), (2.0, "It beats all but PPM, adapting."),
     (9.0, "It beats none of them.")],
)  # fmt: skip
def test_beside_compressors(ours: float, said: str) -> None:
    first = verdict(record(bits_per_byte=ours), [("xz", 3.0), ("PPM, adapting", 2.0)])[0]
    assert first == (
        f"Held-out text: {ours:.3f} bits per byte, measured on 500 bytes; less is better. "
        f"Compressors on the same text: xz 3.000; PPM, adapting 2.000. {said}"
    )


def test_without_held_out_text() -> None:
    bare = record(bits_per_byte=None, curve=record()["curve"] | {"eval_step": [], "eval_bits_per_byte": []})
    assert verdict(bare, [("xz", 3.0)]) == [
        "No text was held out, so nothing says how well it predicts text it has not seen.",
        LEARNED,
    ]


# ---- more time


@pytest.mark.parametrize(("last", "improving"), [(0.96, True), (0.97, True), (0.98, False), (1.0, False)])
def test_still_improving_is_three_percent_in_the_second_half(last: float, improving: bool) -> None:
    assert (
        "It was still improving at the end; more time would help." in verdict(looks(2.0, 1.0, 0.99, last))
    ) is improving


def test_with_one_look_the_training_figure_tells() -> None:
    one = record()["curve"] | {"eval_step": [100], "eval_bits_per_byte": [1.0]}
    assert verdict(record(curve=one))[1] == LEARNED
    falling = one | {"loss": [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.5, 3.2, 3.0]}
    assert verdict(record(curve=falling))[1].startswith("It was still improving")


def test_a_run_too_short_to_tell_should_go_on() -> None:
    short = {"step": [1], "loss": [5.0], "eval_step": [1], "eval_bits_per_byte": [4.0]}
    assert verdict(record(steps=1, best_step=1, curve=short))[1].startswith("It was still improving")


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"train": {"steps": 100, "seconds": None}}, "--steps 200"),
        ({"train": {"steps": 400, "seconds": 300.0}}, "--time 10m"),
        ({"train": {"steps": 400, "seconds": 45.0}}, "--time 90s"),
        ({"train": {"steps": 400, "seconds": 3600.0}}, "--time 2h"),
    ],
)
def test_the_command_doubles_what_ended_the_run(changes: dict[str, Any], option: str) -> None:
    found = verdict(looks(2.0, 1.5, 1.2, 1.0, **changes), again="llm train c.txt --force")
    assert f"It was still improving at the end; more time would help: llm train c.txt --force {option}" in found


def test_a_run_that_its_text_ended_needs_more_text() -> None:
    ended: dict[str, Any] = {"train": {"steps": 100, "seconds": 300.0}, "epochs": 19.98}
    found = verdict(looks(2.0, 1.5, 1.2, 1.0, **ended), again="llm train c.txt --force")[1:]
    assert found == [
        "It went through its text 20 times, as often as pays, before the time was up: more text would help, more time "
        "would not."
    ]
    found = verdict(looks(2.0, 1.5, 1.4, 1.3, **ended))[1:]  # it knows its text better besides
    assert len(found) == 1 and "more text would help" in found[0]


def test_an_interrupted_run_should_end() -> None:
    cut = looks(2.0, 1.5, 1.2, 1.0, interrupted=True, train={"steps": 1000, "seconds": None})
    assert verdict(cut, again="llm train c.txt --force")[1:] == [
        "It was interrupted at step 100; the same command goes on from there."
    ]


def test_a_run_that_ended_in_a_problem_does_not_go_on_from_there() -> None:
    told = verdict(looks(2.0, 1.5, 1.2, 1.0, problem="the loss is no longer a number at step 101"))
    assert told[1:] == ["It ended early: the loss is no longer a number at step 101."]


# ---- more text


def test_worse_after_the_best_weights() -> None:
    found = verdict(looks(2.0, 1.0, 1.1, 1.2, best_step=50))
    assert found[1:] == [
        "After step 50 it got worse on text it has not seen, so the weights of that step are kept: more text would "
        "help, more time would not."
    ]
    assert verdict(looks(2.0, 1.0, 1.0, 1.01, best_step=50))[1:] == [LEARNED]  # hardly worse


@pytest.mark.parametrize(
    ("epochs", "held", "short"), [(4, 1.2, True), (4, 1.14, False), (1.5, 1.2, False), (2, 1.15, True)]
)
def test_a_gap_after_seeing_the_text_often(epochs: float, held: float, short: bool) -> None:
    found = verdict(looks(2.0, held, held, held, epochs=epochs))
    assert found[1:] == (
        [f"It went through its text {epochs:.1f} times and now knows it better than new text (1.000 bits per byte, not "
         f"{held:.3f}): more text would help."] if short else [LEARNED]
    )  # fmt: skip


def test_more_text_and_more_time_may_both_help() -> None:
    found = verdict(looks(2.0, 1.5, 1.4, 1.3, epochs=5.0))
    assert len(found) == 3 and "more text would help" in found[1] and "more time would help" in found[2]


# ---- by heart


@pytest.mark.parametrize(
    ("own", "new", "told"),
    [
        (0.30, 0.05, True),
        (0.16, 0.05, True),
        (0.14, 0.05, False),
        (0.99, 0.97, False),
        (0.5, None, True),
        (0.4, None, False),
    ],
)
def test_by_heart_is_more_than_new_text_repeats(own: float, new: float | None, told: bool) -> None:
    found = verdict(record(memorised={"share": own, "held_out_share": new}))
    beside = "" if new is None else f", of new text {new:.0%}"
    assert found[1:] == (
        [f"It learns by heart: {own:.0%} of the 30-character strings it writes stand in its text word for "
         f"word{beside}. More text or a smaller model would help."] if told else [LEARNED]
    )  # fmt: skip


def test_without_held_out_text_learning_by_heart_is_no_improvement() -> None:
    bare = {"step": [1, 2, 3, 4], "loss": [4.0, 3.0, 2.0, 1.0], "eval_step": [], "eval_bits_per_byte": []}
    run = record(curve=bare, bits_per_byte=None, steps=4, best_step=4)
    assert verdict(run)[1].startswith("It was still improving")
    found = verdict(run | {"memorised": {"share": 0.6, "held_out_share": None}})
    assert len(found) == 2 and found[1].startswith("It learns by heart: 60%")


# ---- what to type


def test_what_to_type_names_the_model_where_it_must() -> None:
    assert verdict(record(), model="")[-1] == 'Ask it: llm generate "..."; look into it: llm inspect'
    assert verdict(record(), model="my model.safetensors")[-1] == (
        "Ask it: llm generate \"...\" -m 'my model.safetensors'; look into it: llm inspect 'my model.safetensors'"
    )
