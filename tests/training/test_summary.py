"""The summary of a run: each sentence, from literal records."""

import math
from typing import Any

import pytest

from llmcli.errors import LLMError
from llmcli.training.summary import curve, verdict

LEVEL = "The held-out figure had levelled off: longer training at this size would bring little."
LEVEL_ALONE = "The training loss had levelled off: longer training at this size would bring little."
FINAL = "Held-out text: 1.000 bits per byte at the end (lower is better), on its 500 bytes, in float32."


def record(**changes: Any) -> dict[str, Any]:
    """A run of 100 steps and an epoch, a token 2 bytes, whose figures are level at 1 bit per byte at the end."""
    nats = 2 * math.log(2)  # per token: 1 bit per byte
    return {
        "train_bytes": 2000, "train_tokens": 1000, "steps": 100, "best_step": 100, "epochs": 1.0, "interrupted": False,
        "bits_per_byte": 1.0, "held_out_measured": {"bytes": 500}, "held_out": {"bytes": 500},
        "train": {"steps": 100, "seconds": None},
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


def test_a_run_that_has_levelled_off() -> None:
    assert verdict(record()) == [FINAL, LEVEL]


def test_the_figure_says_how_much_of_the_held_out_text_it_is_of() -> None:
    part = verdict(record(held_out={"bytes": 20_000}, bits_per_byte=0.2146))[0]
    assert part == (
        "Held-out text: 0.215 bits per byte at the end (lower is better), on 500 of its 20,000 bytes, in float32."
    )


@pytest.mark.parametrize(
    ("ours", "said"),
    [(0.9, "It beats them all."), (2.5, "It beats all but PPM, adapting."), (2.0, "It beats all but PPM, adapting."),
     (9.0, "It beats none of them.")],
)  # fmt: skip
def test_beside_compressors(ours: float, said: str) -> None:
    first = verdict(record(bits_per_byte=ours), [("xz", 3.0), ("PPM, adapting", 2.0)])[0]
    assert first == (
        f"{FINAL.replace('1.000', f'{ours:.3f}')} Compressors on the same text: xz 3.000; PPM, adapting 2.000. {said}"
    )


def test_without_held_out_text() -> None:
    curve = record()["curve"] | {"eval_step": [], "eval_bits_per_byte": []}
    bare = record(bits_per_byte=None, held_out={"bytes": 0}, curve=curve)
    assert verdict(bare, [("xz", 3.0)]) == [
        "No text was held out, so nothing says how well the model predicts text it has not seen.",
        LEVEL_ALONE,
    ]


def test_a_context_that_was_capped_and_a_text_that_was_not_measured_are_told() -> None:
    capped = verdict(record(held_out_measured={"bytes": 500, "context": 2048}))[0]
    assert capped == FINAL.replace("in float32.", "in float32 and a context of 2,048 tokens.")
    unmeasured = verdict(record(bits_per_byte=None, held_out_measured=None))[0]
    assert unmeasured.startswith("The held-out text was not measured at the end")


# ---- barely started


@pytest.mark.parametrize(
    ("changes", "baselines", "reasons"),
    [
        ({"steps": 2, "best_step": 2}, [], "2 steps"),
        ({"steps": 1, "best_step": 1, "epochs": 0.004}, [], "1 step, less than 1% of the training text seen"),
        ({"steps": 99, "best_step": 99}, [], "99 steps"),
        ({"epochs": 0.31}, [], "31% of the training text seen"),
        ({"epochs": 0.9999}, [], "99% of the training text seen"),
        ({}, [("xz", 0.9), ("PPM", 0.8)], "no compressor beaten"),
        ({"steps": 2, "best_step": 2}, [("xz", 0.9)], "2 steps, no compressor beaten"),
        ({"steps": 2, "best_step": 1}, [], "2 steps"),
        ({}, [("xz", 0.9), ("PPM", 1.8)], ""),  # worse than xz alone: rule 6
        ({"steps": 99, "best_step": 99, "epochs": 10.0}, [], ""),  # short of text, not of steps
        ({"epochs": 0.6, "train_bytes": 9000, "read_bytes": 2000}, [], ""),  # no epoch is ever full
        ({"steps": 9, "best_step": 9, "base": {}}, [], "9 steps"),
        ({"steps": 10, "best_step": 10, "base": {}}, [], ""),
        ({"steps": 9, "best_step": 9, "train": {"steps": 9, "seconds": None, "recipe": "lora"}}, [], "9 steps"),
        ({"steps": 1, "best_step": 0, "epochs": 0.02, "base": {}}, [], "1 step, 2% of the training text seen"),
        # the text ended the run
        ({"steps": 30, "best_step": 30, "epochs": 9.0, "train": {"steps": 30, "seconds": 300.0}}, [], ""),
        ({"steps": 2, "best_step": 2, "interrupted": True}, [("xz", 0.9)], ""),
    ],
)
def test_barely_started(changes: dict[str, Any], baselines: list[tuple[str, float]], reasons: str) -> None:
    found = verdict(record(**changes), baselines)[1:]
    if reasons:
        assert found == [f"Barely started: {reasons}. Train longer."]
    else:
        assert len(found) == 1 and "Barely" not in found[0]


@pytest.mark.parametrize(
    ("steps", "epochs", "taken", "tuned", "time"),
    [
        (2, 0.1, 3.0, False, "5m"),
        (2, 0.1, 151.0, False, "10m"),
        (90, 0.1, 400.0, False, "15m"),
        (99, 0.5, 4000.0, False, "3h"),
        (1, 0.5, 960.0, True, "3h"),  # ten steps
        (1, 0.04, 960.0, True, "8h"),  # an epoch
        (1, 0.0001, 9e9, True, "24h"),
    ],
)
def test_the_time_suggested_is_a_sensible_one(steps: int, epochs: float, taken: float, tuned: bool, time: str) -> None:
    run = record(steps=steps, best_step=steps, epochs=epochs, **({"base": {}} if tuned else {}))
    found = verdict(run, again="llm train c.csv --force", seconds=taken)[1]
    assert found.startswith("Barely started: ")
    assert found.endswith(f" Train longer: llm train c.csv --force --time {time}")


def test_overfitting_explains_why_no_compressor_is_beaten() -> None:
    found = verdict(looks(2.0, 1.2, 1.2, 1.2, epochs=4), [("xz", 0.5)])[1:]
    assert len(found) == 1 and found[0].startswith("Overfitting: after 4 epochs")


# ---- more time


@pytest.mark.parametrize(("last", "improving"), [(0.96, True), (0.97, True), (0.98, False), (1.0, False)])
def test_still_improving_is_three_percent_in_the_second_half(last: float, improving: bool) -> None:
    assert ("Still improving at the end; more time would help." in verdict(looks(2.0, 1.0, 0.99, last))) is improving


def test_with_one_look_the_training_figure_tells() -> None:
    one = record()["curve"] | {"eval_step": [100], "eval_bits_per_byte": [1.0]}
    assert verdict(record(curve=one))[1] == LEVEL
    falling = one | {"loss": [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.5, 3.2, 3.0]}
    assert verdict(record(curve=falling))[1].startswith("Still improving")


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
    assert f"Still improving at the end; more time would help: llm train c.txt --force {option}" in found


def test_worse_than_xz_alone_is_not_the_end() -> None:
    assert verdict(record(), [("xz", 0.9), ("PPM", 1.8)])[1:] == [
        "xz, which only finds repeated strings, still predicts this text better; more time would help."
    ]


def test_a_text_longer_than_the_time() -> None:
    assert verdict(record(epochs=0.7, train_bytes=9000, read_bytes=2000))[1:] == [
        "There was time for only 2,000 of 9,000 bytes of text; more time would help."
    ]


def test_a_run_that_its_text_ended_needs_more_text() -> None:
    ended: dict[str, Any] = {"train": {"steps": 100, "seconds": 300.0}, "epochs": 19.98}
    found = verdict(looks(2.0, 1.5, 1.2, 1.0, **ended), again="llm train c.txt --force")[1:]
    assert found == ["Training ended after 20 epochs, as many as help, before the time was up: more text would help."]
    found = verdict(looks(2.0, 1.5, 1.4, 1.3, **ended))[1:]  # it overfits besides
    assert len(found) == 1 and found[0].startswith("Overfitting") and found[0].endswith("More text would help.")


def test_an_interrupted_run_should_end() -> None:
    cut = looks(2.0, 1.5, 1.2, 1.0, interrupted=True, train={"steps": 1000, "seconds": None})
    assert verdict(cut, again="llm train c.txt --force")[1:] == [
        "Interrupted at step 100; the same command continues from there."
    ]
    assert verdict(cut, again="llm train c.txt --force", resumable=False)[1:] == [
        "Interrupted at step 100; the disk took no resume file, so the same command starts from the beginning."
    ]


def test_a_run_that_ended_in_a_problem_does_not_go_on_from_there() -> None:
    told = verdict(looks(2.0, 1.5, 1.2, 1.0, problem="the loss is no longer a number at step 101"))
    assert told[1:] == ["Training ended early: the loss is no longer a number at step 101."]


# ---- more text


def test_worse_after_the_best_weights() -> None:
    found = verdict(looks(2.0, 1.0, 1.1, 1.2, best_step=50))
    assert found[1:] == [
        "Overfitting after step 50: from there the figure for held-out text rose from 1.000 to 1.200, so the weights "
        "of that step are kept. More text would help."
    ]
    assert verdict(looks(2.0, 1.0, 1.0, 1.01, best_step=50))[1:] == [LEVEL]  # hardly worse


def test_fine_tuning_that_did_not_help() -> None:
    assert verdict(looks(1.0, 1.1, 1.1, 1.2, best_step=0, base={}))[1:] == [
        "No step improved on the base model (1.000 bits per byte of held-out text, 1.200 at the end), so its weights "
        "are kept: a lower learning rate or more text would help."
    ]


@pytest.mark.parametrize(
    ("epochs", "held", "short"), [(4, 1.2, True), (4, 1.14, False), (1.5, 1.2, False), (2, 1.15, True)]
)
def test_a_gap_after_seeing_the_text_often(epochs: float, held: float, short: bool) -> None:
    found = verdict(looks(2.0, held, held, held, epochs=epochs))
    assert found[1:] == (
        [f"Overfitting: after {epochs} epochs the model predicts its training text at 1.000 bits per byte, held-out "
         f"text at {held:.3f}. More text would help."] if short else [LEVEL]
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(2.0, 1.5, 1.4, 1.3), (2.0, 1.0, 1.1, 1.2), (2.0, 1.0, 0.99, 0.9), (1, 1, 1, 1)])
@pytest.mark.parametrize("epochs", [0.5, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("seconds", [None, 300.0])
@pytest.mark.parametrize("memorised", [None, {"share": 0.6, "held_out_share": 0.1}])
@pytest.mark.parametrize("best", [50, 100])
def test_more_text_and_more_time_never_stand_together(
    shape: tuple[float, ...], epochs: float, seconds: float | None, memorised: Any, best: int
) -> None:
    run = looks(*shape, epochs=epochs, train={"steps": 100, "seconds": seconds}, memorised=memorised, best_step=best)
    for baselines in ([], [("xz", 0.5)], [("xz", 0.5), ("PPM", 9.0)]):
        said = " ".join(verdict(run, baselines, again="llm train c.txt")[1:]).lower()
        text, time = "more text" in said, "more time" in said or "train longer" in said
        assert not (text and time), said
        assert not ("levelled off" in said and (text or time)), said


# ---- memorization


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
def test_memorization_is_more_than_new_text_repeats(own: float, new: float | None, told: bool) -> None:
    found = verdict(record(memorised={"share": own, "held_out_share": new}))
    beside = "" if new is None else f" (held-out text: {new:.0%})"
    assert found[1:] == (
        [f"Memorization: {own:.0%} of the 30-character strings it writes occur verbatim in the training text{beside}. "
         f"More text or a smaller model would help."] if told else [LEVEL]
    )  # fmt: skip


def test_without_held_out_text_memorization_is_no_improvement() -> None:
    bare = {"step": [25, 50, 75, 100], "loss": [4.0, 3.0, 2.0, 1.0], "eval_step": [], "eval_bits_per_byte": []}
    run = record(curve=bare, bits_per_byte=None)
    assert verdict(run)[1].startswith("Still improving")
    found = verdict(run | {"memorised": {"share": 0.6, "held_out_share": None}})
    assert len(found) == 2 and found[1].startswith("Memorization: 60%")


# ---- what to type


def test_what_to_type_names_the_model_where_it_must() -> None:
    assert verdict(record(), model="", prompt="I like to eat")[-2:] == [
        'Try it: llm generate "I like to eat"',
        "The model continues a text; it does not answer questions. What is in the file: llm inspect",
    ]
    assert verdict(record(), model="my model.safetensors", prompt="It's $5", chats=True)[-2:] == [
        "Try it: llm generate 'It'\"'\"'s $5' -m 'my model.safetensors'",
        "What is in the file: llm inspect 'my model.safetensors'",
    ]
    assert verdict(record(), model="", prompt=None)[-2] == 'Try it: llm generate "..."'
