"""The record of a run -> what it means: its curve in one unit, and a few plain sentences.

The rules are rough and stated where they are applied; each needs only figures that the record holds. Knows nothing of
models or files, and never prints.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmcli.errors import LLMError, command_line

IMPROVING = 0.03  # the second half of the run lowered the held-out figure by this share: twice the run would again
WORSE = 0.02  # it rose by this share after the best weights
GAP = 1.15  # held-out over training bits per byte: from here on the model knows its text better than the language
SEEN_OFTEN = 2.0  # times through the text before a gap means that; before, the two texts just differ
BY_HEART = 0.1  # the share of its strings that a model recites beyond what new text of this kind does
ALONE_BY_HEART = 0.5  # that share where there is no new text to compare with


@dataclass(frozen=True)
class Curve:
    """How a run went, all in bits per byte."""

    steps: list[int]
    training: list[float]  # means up to these steps; with dropout, and with less context than the held-out figures
    held_out_steps: list[int]
    held_out: list[float]


def curve(record: Mapping[str, Any]) -> Curve:
    """The curve of a record. Raises LLMError when it holds none that can be read."""
    try:
        found = record["curve"]
        nat = (
            record["train_tokens"] / record.get("read_bytes", record["train_bytes"]) / math.log(2)
        )  # of loss, in bits per byte
        read = Curve(
            [int(step) for step in found["step"]],
            [float(loss) * nat for loss in found["loss"]],
            [int(step) for step in found["eval_step"]],
            [float(bits) for bits in found["eval_bits_per_byte"]],
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise LLMError("there is no curve of a training in it that can be read") from error
    if not read.steps or len(read.steps) != len(read.training) or len(read.held_out_steps) != len(read.held_out):
        raise LLMError("there is no curve of a training in it that can be read")
    return read


def verdict(
    record: Mapping[str, Any],
    baselines: Sequence[tuple[str, float]] = (),
    *,
    again: str | None = None,
    model: str | None = None,
) -> list[str]:
    """A few sentences on a run that has ended: how good, what would help, what to type.

    `baselines` are (name, bits per byte) of compressors on the same held-out text. `again` is the command of the run
    without its budget; with it, the sentence on more time ends in what to type. `model` is the file; with it the last
    sentence says how to use it ("" for the file that needs no naming). Raises LLMError for a record without a curve.

    The rules, in order:
    1. Bits per byte on held-out text, beside the baselines, and which are not beaten.
    2. A run that was interrupted, or that ended in a problem, is told so.
    3. Short of text: the held-out figure rose by WORSE after the best weights, or after SEEN_OFTEN times through the
       text it is GAP times the training figure (the mean of the last tenth). Then more text would help.
    4. Still improving: the best weights are the last, and their held-out figure is better by IMPROVING than the one
       at half the run; with fewer than two such figures the training figure is. What the last doubling of the time
       brought, the next brings about again, so more time would help; where the plan's times through the text ended
       the run before its time, more text would, and is not said twice where 3 holds. Nor when the training figure is
       all there is and 5 holds: then it falls because the text is learned by heart.
    5. By heart: the share of its strings that stand in the training text is BY_HEART above that of held-out text, or
       above ALONE_BY_HEART where there is none.
    6. None of 2 to 5: it has learned what it can.
    """
    read = curve(record)
    by_heart = _by_heart(record.get("memorised"))
    blind = not read.held_out and by_heart
    short = _short_of_text(record, read)
    found = [
        *_ended_early(record),
        *short,
        *([] if blind or (short and _went_through(record)) else _improving(record, read, again)),
        *by_heart,
    ] or ["At the end it hardly improved any more: it has learned what it can from this text at this size."]
    return [_how_good(record, baselines), *found, *([] if model is None else [_next(model)])]


def _how_good(record: Mapping[str, Any], baselines: Sequence[tuple[str, float]]) -> str:
    bits = record.get("bits_per_byte")
    if bits is None:
        return "No text was held out, so nothing says how well it predicts text it has not seen."
    measured = record["held_out_measured"]["bytes"]
    said = f"Held-out text: {bits:.3f} bits per byte, measured on {measured:,} bytes; less is better."
    if not baselines:
        return said
    beside = "; ".join(f"{name} {other:.3f}" for name, other in baselines)
    return f"{said} Compressors on the same text: {beside}. It beats {_beaten(bits, baselines)}."


def _beaten(bits: float, baselines: Sequence[tuple[str, float]]) -> str:
    beaten = [name for name, other in baselines if other > bits]
    ahead = [name for name, other in baselines if other <= bits]
    if not ahead:
        return "them all"
    if not beaten:
        return "none of them"
    return f"all but {ahead[0]}" if len(ahead) == 1 else f"only {' and '.join(beaten)}"


def _ended_early(record: Mapping[str, Any]) -> list[str]:
    if record.get("problem"):
        return [f"It ended early: {record['problem']}."]
    if not record.get("interrupted"):
        return []
    return [f"It was interrupted at step {record['steps']:,}; the same command goes on from there."]


def _short_of_text(record: Mapping[str, Any], read: Curve) -> list[str]:
    if not read.held_out:
        return []
    best, last = min(read.held_out), read.held_out[-1]
    epochs = record.get("epochs", 0.0)
    if record["best_step"] < record["steps"] and last > best * (1 + WORSE):
        return [
            f"After step {record['best_step']:,} it got worse on text it has not seen, so the weights of that step are "
            f"kept: more text would help, more time would not."
        ]
    training = _mean_of_last_tenth(read.training)
    if epochs >= SEEN_OFTEN and last >= GAP * training:
        return [
            f"It went through its text {epochs:.1f} times and now knows it better than new text ({training:.3f} bits "
            f"per byte, not {last:.3f}): more text would help."
        ]
    return []


def _improving(record: Mapping[str, Any], read: Curve, again: str | None) -> list[str]:
    if record.get("problem") or record.get("interrupted") or record["best_step"] < record["steps"]:
        return []
    held_out = len(read.held_out) > 1
    steps, bits = (read.held_out_steps, read.held_out) if held_out else (read.steps, read.training)
    before = [found for step, found in zip(steps, bits, strict=True) if step <= record["steps"] / 2]
    last = bits[-1] if held_out else _mean_of_last_tenth(bits)
    if before and last > before[-1] * (1 - IMPROVING):
        return []
    if _went_through(record):
        return [
            f"It went through its text {record['epochs']:.0f} times, as often as pays, before the time was up: more "
            f"text would help, more time would not."
        ]
    command = f": {again} {_twice(record)}" if again else "."
    return [f"It was still improving at the end; more time would help{command}"]


def _twice(record: Mapping[str, Any]) -> str:
    """The option for twice the budget that ended the run: the clock, or the steps."""
    settings = record["train"]
    if settings.get("seconds") is None:
        return f"--steps {2 * settings['steps']}"
    return f"--time {_time(2 * settings['seconds'])}"


def _went_through(record: Mapping[str, Any]) -> bool:
    """The text, as often as planned before the time was up."""
    settings = record["train"]
    return settings.get("seconds") is not None and record["steps"] >= settings["steps"]


def _time(seconds: float) -> str:
    """As --time takes it.

    >>> [_time(s) for s in (600, 90, 7200, 5400.4)]
    ['10m', '90s', '2h', '90m']
    """
    whole = max(1, round(seconds))
    return next((f"{whole // size}{unit}" for size, unit in ((3600, "h"), (60, "m")) if whole % size == 0), f"{whole}s")


def _by_heart(memorised: Mapping[str, Any] | None) -> list[str]:
    if not memorised:
        return []
    own, new = memorised["share"], memorised["held_out_share"]
    if own < (ALONE_BY_HEART if new is None else new + BY_HEART):
        return []
    beside = "" if new is None else f", of new text {new:.0%}"
    return [
        f"It learns by heart: {own:.0%} of the 30-character strings it writes stand in its text word for word{beside}. "
        f"More text or a smaller model would help."
    ]


def _next(model: str) -> str:
    file = f" {command_line([model])}" if model else ""
    option = f" -m{file}" if model else ""
    return f'Ask it: llm generate "..."{option}; look into it: llm inspect{file}'


def _mean_of_last_tenth(values: Sequence[float]) -> float:
    tenth = values[-max(1, len(values) // 10) :]
    return sum(tenth) / len(tenth)
