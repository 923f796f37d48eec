"""The record of a run -> a summary for people: its curve in one unit, and a few sentences on what would help.

The rules are rough and stated where they are applied; each needs only figures that the record holds. Knows nothing of
models or files, and never prints.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmcli import units
from llmcli.data.example_prompt import quoted
from llmcli.errors import LLMError, command_line

FEW_STEPS = 100  # a model that began with random weights has barely started before
FEW_STEPS_FINE_TUNING = 10  # and one that goes on from another
MANY_EPOCHS = 10.0  # from here on a run of few steps is short of text, not of steps
IMPROVING = 0.03  # the second half of the run lowered the held-out figure by this share: twice the run would again
WORSE = 0.02  # it rose by this share after the best weights
GAP = 1.15  # held-out over training bits per byte: from here on the model has fitted its text more than the language
SEEN_OFTEN = 2.0  # epochs before a gap means that; before, the two texts just differ
MEMORIZED = 0.1  # the share of its strings that a model repeats verbatim, beyond what held-out text does
MEMORIZED_ALONE = 0.5  # that share where there is no held-out text to compare with
_TIMES = (5, 10, 15, 20, 30, 60, 120, 180, 240, 360, 480, 720, 1440)  # minutes, suggested; the first is the default


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
    seconds: float | None = None,
    model: str | None = None,
    prompt: str | None = None,
    chats: bool = False,
    resumable: bool = True,
) -> list[str]:
    """A few sentences on a run that has ended: how good the model is, what would help, what to type.

    `baselines` are (name, bits per byte) of compressors on the held-out text. `again` is the command of the run
    without its budget; with it the advice to train longer ends in a command, whose time is estimated from the
    `seconds` that the run took. `model` is the file; with it the last sentences say how to use it ("" for the file that
    needs no naming), with `prompt` to begin with. `chats`: a model with a chat template.
    `resumable`: an interrupted run left a file to go on from. Raises LLMError for a record without a curve.

    The rules; of all that follow 2, only 7 may stand beside another:
    1. Bits per byte on held-out text at the end, beside the baselines, and which are not beaten.
    2. A run that was interrupted, or that ended in a problem, says so.
    3. Barely started: fewer than FEW_STEPS steps (FEW_STEPS_FINE_TUNING after another model) and MANY_EPOCHS epochs;
       less than one epoch of a text that was read whole; or no compressor beaten. Then a longer time is suggested. Not
       where the number of epochs ended the run before its time, nor where 4 explains why no compressor is beaten.
    4. Short of text: the held-out figure rose by WORSE after the best weights, or after SEEN_OFTEN epochs it is GAP
       times the training figure (the mean of the last tenth), or the largest number of epochs that helps ended the
       run before its time. Then more text would help.
    5. Still improving: the best weights are the last, and their held-out figure is better by IMPROVING than the one
       at half the run; with fewer than two such figures the training figure is. What the last doubling of the time
       brought, the next brings about again, so more time would help. Not where the training figure is all there is
       and 7 holds: then it falls because the text is memorized.
    6. xz, which only finds repeated strings, predicts the text better; or there was time for a part of the text only:
       more time would help.
    7. Memorization: the share of generated strings that occur in the training text is MEMORIZED above that of
       held-out text, or above MEMORIZED_ALONE where there is none. What would help is said only where nothing else is.
    8. None of 2 to 7: the figures had levelled off.
    """
    read = curve(record)
    memorized = _memorized(record.get("memorised"))
    ended = _ended_early(record, resumable)
    advice = _advice(record, read, baselines, again, seconds, blind=bool(memorized and not read.held_out))
    remarks = [*ended, *advice]
    if memorized:
        remarks.append(memorized if remarks else f"{memorized} More text or a smaller model would help.")
    if not remarks:
        what = "held-out figure" if read.held_out else "training loss"
        remarks = [f"The {what} had levelled off: longer training at this size would bring little."]
    usage = [] if model is None else _usage(model, prompt, chats)
    return [_how_good(record, baselines), *remarks, *usage]


def _how_good(record: Mapping[str, Any], baselines: Sequence[tuple[str, float]]) -> str:
    bits = record.get("bits_per_byte")
    held_out = record.get("held_out", {}).get("bytes", 0)
    if bits is None and held_out:
        return "The held-out text was not measured at the end, since that would have taken too long: use llm eval."
    if bits is None:
        return "No text was held out, so nothing says how well the model predicts text it has not seen."
    measured, context = record["held_out_measured"]["bytes"], record["held_out_measured"].get("context")
    part = f"{measured:,} of its {held_out:,}" if measured < held_out else f"its {measured:,}"
    figure = units.bits_per_byte(bits)
    seen = f" and a context of {context:,} tokens" if context else ""
    said = f"Held-out text: {figure} bits per byte at the end (lower is better), on {part} bytes, in float32{seen}."
    if not baselines:
        return said
    beside = "; ".join(f"{name} {units.bits_per_byte(other)}" for name, other in baselines)
    return f"{said} Compressors on the same text: {beside}. It beats {_beaten(bits, baselines)}."


def _beaten(bits: float, baselines: Sequence[tuple[str, float]]) -> str:
    beaten = [name for name, other in baselines if other > bits]
    ahead = [name for name, other in baselines if other <= bits]
    if not ahead:
        return "them all"
    if not beaten:
        return "none of them"
    return f"all but {ahead[0]}" if len(ahead) == 1 else f"only {' and '.join(beaten)}"


def _ended_early(record: Mapping[str, Any], resumable: bool) -> list[str]:
    if record.get("problem"):
        return [f"Training ended early: {record['problem']}."]
    if not record.get("interrupted"):
        return []
    then = "the same command continues from there"
    if not resumable:
        then = "the disk took no resume file, so the same command starts from the beginning"
    return [f"Interrupted at step {record['steps']:,}; {then}."]


def _advice(
    record: Mapping[str, Any],
    read: Curve,
    baselines: Sequence[tuple[str, float]],
    again: str | None,
    seconds: float | None,
    *,
    blind: bool,
) -> list[str]:
    """The one sentence of rules 3 to 6 that holds first, or none."""
    ended = bool(record.get("problem") or record.get("interrupted"))
    short = _short_of_text(record, read)
    beaten = not baselines or record.get("bits_per_byte") is None or _beaten_any(record["bits_per_byte"], baselines)
    if not ended and not _went_through(record):
        reasons = _too_little(record) + ([] if beaten or short else ["no compressor beaten"])
        if reasons:
            command = f": {again} --time {_sensible_time(record, seconds)}" if again else "."
            return [f"Barely started: {', '.join(reasons)}. Train longer{command}"]
    if short:
        return [short]
    if ended or blind:
        return []
    if _went_through(record):
        return [
            f"Training ended after {_epochs(record['epochs'])}, as many as help, before the time was up: more text "
            f"would help."
        ]
    reason = _more_time(record, read, baselines)
    command = f": {again} {_twice(record)}" if again else "."
    return [f"{reason}; more time would help{command}"] if reason else []


def _too_little(record: Mapping[str, Any]) -> list[str]:
    """What of a run is too little to judge the model by."""
    steps, epochs = record["steps"], record.get("epochs", 0.0)
    few = FEW_STEPS_FINE_TUNING if _fine_tuned(record) else FEW_STEPS
    return [
        *([f"{steps:,} step{'s' * (steps != 1)}"] if steps < few and epochs < MANY_EPOCHS else []),
        *([f"{_share(epochs)} of the training text seen"] if epochs < 1 and not _read_in_part(record) else []),
    ]


def _share(part: float) -> str:
    """A share below 1.

    >>> [_share(x) for x in (0.001, 0.126, 0.999)]
    ['less than 1%', '13%', '99%']
    """
    return "less than 1%" if part < 0.01 else f"{min(part, 0.99):.0%}"


def _fine_tuned(record: Mapping[str, Any]) -> bool:
    return "base" in record or record["train"].get("recipe") in ("fine-tune", "lora")


def _read_in_part(record: Mapping[str, Any]) -> bool:
    """Whether the text was longer than the time allowed to read: then no epoch is ever full."""
    return record.get("read_bytes", record["train_bytes"]) < record["train_bytes"]


def _sensible_time(record: Mapping[str, Any], seconds: float | None) -> str:
    """For --time: twice what the run took, and at least what is the default; a model that goes on from another, whose
    size is given, needs the time of the fewest steps that count and of an epoch.

    >>> _sensible_time({"steps": 2, "epochs": 0.5, "train": {}}, 40.0)
    '5m'
    >>> _sensible_time({"steps": 1, "epochs": 0.04, "train": {"recipe": "lora"}}, 960.0)
    '8h'
    """
    taken = seconds if seconds is not None else record.get("clock", {}).get("seconds", 0.0)
    times = [2 * taken]
    if _fine_tuned(record):
        epoch = max(1e-3, min(1.0, record.get("epochs", 1.0)))
        times += [taken * FEW_STEPS_FINE_TUNING / max(1, record["steps"]), taken / epoch]
    minutes = max(times) / 60
    return _time(60 * next((most for most in _TIMES if most >= minutes), _TIMES[-1]))


def _beaten_any(bits: float, baselines: Sequence[tuple[str, float]]) -> bool:
    return any(other > bits for _, other in baselines)


def _short_of_text(record: Mapping[str, Any], read: Curve) -> str:
    """The sentence on overfitting, or "" """
    if not read.held_out:
        return ""
    best, last, best_step = min(read.held_out), read.held_out[-1], record["best_step"]
    lowest, at_end = units.bits_per_byte(best), units.bits_per_byte(last)
    if best_step < record["steps"] and last > best * (1 + WORSE):
        if best_step == 0:
            return (
                f"No step improved on the base model ({lowest} bits per byte of held-out text, {at_end} at the "
                f"end), so its weights are kept: a lower learning rate or more text would help."
            )
        return (
            f"Overfitting after step {best_step:,}: from there the figure for held-out text rose from {lowest} to "
            f"{at_end}, so the weights of that step are kept. More text would help."
        )
    training = _mean_of_last_tenth(read.training)
    epochs = record.get("epochs", 0.0)
    if epochs >= SEEN_OFTEN and last >= GAP * training:
        return (
            f"Overfitting: after {_epochs(epochs)} the model predicts its training text at "
            f"{units.bits_per_byte(training)} bits per byte, held-out text at {at_end}. More text would help."
        )
    return ""


def _more_time(record: Mapping[str, Any], read: Curve, baselines: Sequence[tuple[str, float]]) -> str:
    """Why more time would help, or "" """
    if _still_improving(record, read):
        return "Still improving at the end"
    if _read_in_part(record):
        return f"There was time for only {record['read_bytes']:,} of {record['train_bytes']:,} bytes of text"
    bits = record.get("bits_per_byte")
    if bits is not None and any(name == "xz" and other <= bits for name, other in baselines):
        return "xz, which only finds repeated strings, still predicts this text better"
    return ""


def _still_improving(record: Mapping[str, Any], read: Curve) -> bool:
    if record["best_step"] < record["steps"]:
        return False
    held_out = len(read.held_out) > 1
    steps, bits = (read.held_out_steps, read.held_out) if held_out else (read.steps, read.training)
    before = [found for step, found in zip(steps, bits, strict=True) if step <= record["steps"] / 2]
    last = bits[-1] if held_out else _mean_of_last_tenth(bits)
    return not before or last <= before[-1] * (1 - IMPROVING)


def _twice(record: Mapping[str, Any]) -> str:
    """The option for twice the budget that ended the run: the clock, or the steps."""
    settings = record["train"]
    if settings.get("seconds") is None:
        return f"--steps {2 * settings['steps']}"
    return f"--time {_time(2 * settings['seconds'])}"


def _went_through(record: Mapping[str, Any]) -> bool:
    """Whether the planned number of epochs ended the run, before the time was up."""
    settings = record["train"]
    return settings.get("seconds") is not None and record["steps"] >= settings["steps"]


def _epochs(count: float) -> str:
    """
    >>> [_epochs(x) for x in (1.0, 3.64, 19.98)]
    ['1 epoch', '3.6 epochs', '20 epochs']
    """
    said = f"{count:.0f}" if abs(count - round(count)) < 0.05 else f"{count:.1f}"
    return f"{said} epoch{'s' * (said != '1')}"


def _time(seconds: float) -> str:
    """As --time takes it.

    >>> [_time(s) for s in (600, 90, 7200, 5400.4)]
    ['10m', '90s', '2h', '90m']
    """
    whole = max(1, round(seconds))
    return next((f"{whole // size}{unit}" for size, unit in ((3600, "h"), (60, "m")) if whole % size == 0), f"{whole}s")


def _memorized(share: Mapping[str, Any] | None) -> str:
    """The sentence on memorization, or "" """
    if not share:
        return ""
    own, new = share["share"], share["held_out_share"]
    if own < (MEMORIZED_ALONE if new is None else new + MEMORIZED):
        return ""
    beside = "" if new is None else f" (held-out text: {new:.0%})"
    return f"Memorization: {own:.0%} of the 30-character strings it writes occur verbatim in the training text{beside}."


def _usage(model: str, prompt: str | None, chats: bool) -> list[str]:
    """What to type next, and what to expect of it."""
    file = f" {command_line([model])}" if model else ""
    option = f" -m{file}" if model else ""
    nature = "" if chats else "The model continues a text; it does not answer questions. "
    return [
        f"Try it: llm generate {quoted(prompt or '...')}{option}",
        f"{nature}What is in the file: llm inspect{file}",
    ]


def _mean_of_last_tenth(values: Sequence[float]) -> float:
    tenth = values[-max(1, len(values) // 10) :]
    return sum(tenth) / len(tenth)
