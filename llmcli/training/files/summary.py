"""The record of a run -> its loss curve, and a summary: a few sentences on its quality and on what would improve it.

The rules are rough. Each needs only figures that the record holds, so that `llm inspect` can say the same later.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmcli import units
from llmcli.config import FINE_TUNING_RECIPES
from llmcli.data.conversations.example_prompt import shell_quoted
from llmcli.errors import LLMError, command_line
from llmcli.evaluation.compressors import Baseline
from llmcli.evaluation.figures import ADAPTING, NETWORK, Figures

# Undertrained
MIN_STEPS = 100  # of a model trained from scratch ...
MIN_STEPS_FINE_TUNING = 10  # ... and of a fine-tuned one
MANY_EPOCHS = 10.0  # with these a run of few steps lacks text, not steps
# Still improving
IMPROVEMENT = 0.03  # share by which the second half of the run lowered the loss: doubling the run would do so again
NEGLIGIBLE = 0.002  # bits per byte; answers that follow from their questions are predicted with less
NEAR_THE_LIMIT = 0.9  # of the limit of epochs: twice the time would train for hardly more of them
# Answers
COUNTED_ANSWERS = {"near", "garbled", "seen"}  # keys that files of earlier versions lack
CORRECT_SHARE = 0.9  # of held-out questions that are answered exactly or nearly: what remains is rare
KNOWN_ANSWERS = 0.02  # bits per byte: with less training loss the training answers are known, and time does not help
# Overfitting
DETERIORATION = 0.02  # share by which the validation loss rose after the best weights
OVERFITTING_RATIO = 1.15  # of validation to training loss ...
OVERFITTING_EPOCHS = 2.0  # ... after this many epochs; before, the two texts just differ
# Forgetting: share by which training on conversations raised the bits per byte of plain text
FORGETTING = 0.02
# Memorization: share of generated strings that occur in the training text ...
MEMORIZED_SHARE = 0.1  # ... beyond that of the held-out text
MEMORIZED_SHARE_ALONE = 0.5  # ... where there is no held-out text
# Repetitive text: share of the strings of the held-out text that occur in the training text
KNOWN_SHARE = 0.5  # a held-out text of its own is hardly new text then
REPEATED_SHARE = 0.9  # a text says the same again and again; what a model cannot predict in it is mostly chance
NEAR_FLOOR = 0.05  # bits per byte by which the second half of a run improved: with such a text, nearly all there was

MIN_COMPARED_BYTES = 2000  # of held-out text; on less, a comparison with compressors says nothing
SPEED_TOLERANCE = 1.25  # factor between the planned and the reached speed
SUGGESTED_MINUTES = (5, 10, 15, 20, 30, 60, 120, 180, 240, 360, 480, 720, 1440)  # for --time; the first is its default

Record = Mapping[str, Any]  # of a training run, as JSON holds it
Baselines = Sequence[Baseline]  # compressors on the held-out text


@dataclass(frozen=True)
class Curve:
    """The losses of a model in its training, in bits per byte."""

    steps: list[int]
    training: list[float]  # mean of the steps up to each of these, with dropout
    validation_steps: list[int]
    validation: list[float]
    name: str = "validation"  # in files of earlier versions these losses are of the held-out text, and named "held-out"

    @property
    def label(self) -> str:
        """Of the validation losses in a legend."""
        return self.name if self.name == "validation" else f"{self.name} (interim)"


def read_curve(record: Record) -> Curve:
    """The curve of a record; where the run trained two models, that of the one that was kept. Raises LLMError when it
    holds none that can be read."""
    try:
        points = record["curve"]
        steps = [int(step) for step in points["step"]]
        curve = Curve(
            steps,
            [
                float(loss) * (_tokens_per_byte(record, step) / math.log(2))  # a loss is in nats per token
                for step, loss in zip(steps, points["loss"], strict=True)
            ],
            [int(step) for step in points["eval_step"]],
            [float(bits) for bits in points["eval_bits_per_byte"]],
            "validation" if "validation" in record else "held-out",
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise LLMError("there is no readable curve in its training record") from error
    lengths = len(curve.training), len(curve.validation)
    if not curve.steps or (len(curve.steps), len(curve.validation_steps)) != lengths:
        raise LLMError("there is no readable curve in its training record")
    return _part(curve, _steps_of_model(record)) if "distillation" in record else curve


def _part(curve: Curve, steps: range) -> Curve:
    """What a curve shows of some steps; the whole curve if that is nothing."""
    training = {step: loss for step, loss in zip(curve.steps, curve.training, strict=True) if step in steps}
    validation = [
        (step, loss) for step, loss in zip(curve.validation_steps, curve.validation, strict=True) if step in steps
    ]
    if not training:
        return curve
    return replace(
        curve,
        steps=list(training),
        training=list(training.values()),
        validation_steps=[step for step, _ in validation],
        validation=[loss for _, loss in validation],
    )


def student_was_kept(record: Record) -> bool:
    """Whether a run of two models kept the student; False after a run of one."""
    first = record.get("distillation", {}).get("from_step")
    return first is not None and bool(record.get("best_step", 0) > first)


def _steps_of_model(record: Record) -> range:
    """The evaluated steps of the model that was kept: all, or of two models those of the teacher or the student."""
    last, first = int(record["steps"]), record.get("distillation", {}).get("from_step")
    if first is None:
        return range(last + 1)
    return range(first + 1, last + 1) if student_was_kept(record) else range(first + 1)


def _tokens_per_byte(record: Record, step: int) -> float:
    """Tokens that a step was trained to predict per byte of their text: of plain text, or of answers. Raises KeyError,
    TypeError or ZeroDivisionError if the record does not say."""
    conversations = record.get("conversations")
    if conversations and step > conversations["from_step"]:
        return float(conversations["train_tokens"] / conversations["train_bytes"])
    return float(record["train_tokens"] / record.get("read_bytes", record["train_bytes"]))


def summarize(
    record: Record,
    baselines: Baselines = (),
    *,
    command: str | None = None,
    seconds: float | None = None,
    resumable: bool = True,
    again: str = "the same command",
) -> list[str]:
    """A few sentences on a run that has ended: how good the model is, and what would help.

    `command` is the command of the run without its budget: with it the advice to train longer ends in a command, whose
    time is estimated from the `seconds` that the run took. `resumable` says whether an interrupted run can be resumed,
    `again` how. Raises LLMError for a record without a curve.

    The rules. Of 3 to 6 only the first that applies is given; 7 may stand beside any of 2 to 6.
    1. Bits per byte of held-out text at the end, of the network and adapting, each beside its baselines; which of these
       are beaten, if model and compressors read the same bytes, at least MIN_COMPARED_BYTES.
    2. Interrupted, or ended by a problem.
    3. Undertrained: fewer than MIN_STEPS steps (MIN_STEPS_FINE_TUNING for fine-tuning) and MANY_EPOCHS epochs; less
       than one epoch of a text that was read whole; or worse than every compressor. A longer time is suggested. Not
       where the limit of epochs ended the run, nor, for the compressors, where 4 explains it.
    4. Overfitting: the validation loss rose by DETERIORATION after the best weights, or after OVERFITTING_EPOCHS it is
       OVERFITTING_RATIO times the training loss; or the limit of epochs ended the run, or nearly did. More text would
       help, unless the text is so repetitive (REPEATED_SHARE) that the rest of its loss is mostly chance.
    5. Still improving: the best weights are the last, and their validation loss is lower by IMPROVEMENT than that at
       half the run (the training loss, where there are fewer than two validation losses). More time would help. Not by
       the training loss alone where 7 applies: then it falls because the text is memorized. Nor for a repetitive
       text, if the loss fell by less than NEAR_FLOOR.
    6. xz, which only finds repeated strings, predicts the text better; or there was time to read a part of the text
       only. More time would help.
    7. Memorization: the share of generated strings that occur in the training text is MEMORIZED_SHARE above that of the
       held-out text, or above MEMORIZED_SHARE_ALONE where there is none.
    8. None of 2 to 7: the loss has plateaued.
    9. The speed was not the one that the plan assumed: the model was chosen for another number of tokens.
    10. After training on conversations: how held-out questions are answered, and the loss of plain text before and
        after. If CORRECT_SHARE of the answers are exact or near, nothing is advised. If the training answers are known
        (KNOWN_ANSWERS), more time is not advised, but more wordings of the questions or a published model.
    11. KNOWN_SHARE of a held-out text that the user named, or more, is in the training text too.
    12. The run trained a teacher and a student: which of them was kept.

    Of two models the rules on losses are about the one that was kept.
    """
    run = _Run(record, read_curve(record), baselines)
    remarks = [*_early_end(run, resumable, again), *_advice(run, command, seconds)]
    if memorization := _memorization(run):
        advice = "" if remarks else " More text or a smaller model would help."
        remarks.append(memorization + advice)
    if not remarks:
        loss = run.curve.name if run.curve.validation else "training"
        remarks = [f"The {loss} loss has plateaued: longer training at this size would help little."]
    facts = [
        *_known_text(run), *_teacher(run), *_answers(run), *_plain_text(run), *_missing_divergence(run), *_speed(run)
    ]  # fmt: skip
    return [_quality(run), *facts, *remarks]


def usage_hints(
    model: str, prompt: str | None = None, *, has_chat_template: bool = False, chats: bool = False
) -> list[str]:
    """What to type next. `model` is the file, "" for the default one; `prompt` is a text for it to continue.
    `has_chat_template` says whether the model can answer in a chat, `chats` whether that is what it was trained for."""
    file = f" {command_line([model])}" if model else ""
    option = f" -m{file}" if model else ""
    note = "" if has_chat_template else "The model continues text; it does not answer questions. "
    command = "llm chat" if chats else f"llm generate {shell_quoted(prompt or '...')}"
    return [f"Try it: {command}{option}", f"{note}Details of the file: llm inspect{file}"]


@dataclass(frozen=True)
class _Run:
    """A run that has ended."""

    record: Record
    curve: Curve
    baselines: Baselines

    @property
    def steps(self) -> int:
        return int(self.record["steps"])

    @property
    def best_step(self) -> int:
        return int(self.record["best_step"])

    @property
    def model_steps(self) -> range:
        """The steps of the model that was kept, see `_steps_of_model`."""
        return _steps_of_model(self.record)

    @property
    def is_student(self) -> bool:
        """Whether the model also learned from the predictions of another one."""
        return self.model_steps.start > 0

    @property
    def last_step(self) -> int:
        """Of the model that was kept."""
        return self.model_steps.stop - 1

    @property
    def epochs(self) -> float:
        """Of the conversations, if the held-out figures are of their answers; of two models, those of the one kept."""
        record = self.record["conversations"] if self.of_answers else self.record
        steps = len(self.model_steps) - (0 if self.is_student else 1)
        return float(record.get("epochs", 0.0)) * steps / max(1, self.steps)

    @property
    def figures(self) -> Figures | None:
        """Of the held-out text, at the end."""
        return Figures.of_record(self.record)

    @property
    def is_comparable(self) -> bool:
        """Whether the model was measured on what the compressors read, and on enough of it."""
        held_out = self.record["held_out"]["bytes"]
        return bool(self.record["held_out_measured"]["bytes"] == held_out >= MIN_COMPARED_BYTES)

    @property
    def verdicts(self) -> list[tuple[Baseline, bool]]:
        """Whether the model is better than each compressor that its figures can be compared with: the network, or
        adapting."""
        if not self.baselines or not self.figures or not self.is_comparable:
            return []
        network, adapting = self.figures.network, self.figures.adapting
        sides = [(baseline, adapting if baseline.is_adaptive else network) for baseline in self.baselines]
        return [(baseline, bits < baseline.bits_per_byte) for baseline, bits in sides if bits is not None]

    @property
    def of_answers(self) -> bool:
        """Whether the held-out figures are of the answers in conversations."""
        return bool(self.record.get("held_out", {}).get("of") == "answers")

    @property
    def data(self) -> str:
        """What more of would help."""
        return "conversations" if self.of_answers else "text"

    @property
    def ended_early(self) -> bool:
        return bool(self.record.get("problem") or self.record.get("interrupted"))

    @property
    def fine_tuned(self) -> bool:
        return "base" in self.record or self.record["train"].get("recipe") in FINE_TUNING_RECIPES

    @property
    def read_in_part(self) -> bool:
        """Whether the text was longer than there was time for: then no epoch is ever complete."""
        return bool(self.record.get("read_bytes", self.record["train_bytes"]) < self.record["train_bytes"])

    @property
    def ended_by_epochs(self) -> bool:
        """Whether the limit of epochs ended the run before its time was up."""
        settings = self.record["train"]
        return settings.get("seconds") is not None and self.steps >= settings["steps"]

    @property
    def nearly_ended_by_epochs(self) -> bool:
        settings = self.record["train"]
        return settings.get("seconds") is not None and self.steps >= NEAR_THE_LIMIT * settings["steps"]

    @property
    def is_repetitive(self) -> bool:
        """Whether the held-out text says hardly anything that the training text does not."""
        share = (self.record.get("memorised") or {}).get("held_out_share")
        return share is not None and share >= REPEATED_SHARE

    @property
    def answers(self) -> Mapping[str, Any]:
        """How held-out questions were answered; {} where that is unknown, as in files of earlier versions."""
        measured = self.record.get("answers") or {}
        return measured if measured.keys() >= COUNTED_ANSWERS else {}

    @property
    def answers_correctly(self) -> bool:
        return bool(self.answers and self.answers["exact"] + self.answers["near"] >= CORRECT_SHARE)

    @property
    def knows_its_answers(self) -> bool:
        """Whether the model predicts the answers that it was trained on with near certainty, but not those of new
        questions."""
        knows_new_ones = self.curve.validation[-1:] and self.curve.validation[-1] < KNOWN_ANSWERS
        return bool(self.record.get("conversations")) and self.training_loss < KNOWN_ANSWERS and not knows_new_ones

    @property
    def beats_a_compressor(self) -> bool:
        return not self.verdicts or any(better for _, better in self.verdicts)

    @property
    def training_loss(self) -> float:
        """The mean of the last tenth of the run, in bits per byte."""
        tenth = self.curve.training[-max(1, len(self.curve.training) // 10) :]
        return sum(tenth) / len(tenth)


def _quality(run: _Run) -> str:
    """Rule 1."""
    record, figures = run.record, run.figures
    held_out = record.get("held_out", {}).get("bytes", 0)
    what = "answers" if run.of_answers else "text"
    if figures is None and held_out:
        was = "were" if run.of_answers else "was"
        why = record.get("not_evaluated", "which would have taken too long")
        return f"The held-out {what} {was} not evaluated at the end, {why}: run llm eval."
    if figures is None:
        what = "conversations were" if run.of_answers else "text was"
        return f"No {what} held out, so the loss on unseen {run.data} is unknown."
    measured, context = record["held_out_measured"]["bytes"], record["held_out_measured"].get("context")
    part, sample = f"all {measured:,}", ""
    if measured < held_out:
        part, sample = f"{measured:,} of its {held_out:,}", " (a sample, to save time)"
    window = f" with a context of {context:,} tokens" if context else ""
    if cached := record["held_out_measured"].get("cached_tokens"):
        window += f" and an n-gram cache of at most {cached:,} tokens of the text, for this sample"
    source = record["held_out"].get("from")
    rule = f" ({source})" if source else ""
    quality = (
        f"Held-out {what}{rule}: {figures} at the end (lower is better), on {part} bytes{sample}, in float32{window}."
    )
    if not run.baselines:
        left_out = " Compressors to compare with would have taken too long: run llm eval."
        return quality + (left_out if held_out >= MIN_COMPARED_BYTES and not run.of_answers else "")
    text = "the same text" if measured == held_out else "all of it"
    beside = [_beside(run, f"the {NETWORK}", adaptive=False)]
    if figures.adapting is not None:
        beside.append(_beside(run, ADAPTING, adaptive=True))
    return f"{quality} Compressors on {text}, {'; '.join(filter(None, beside))}."


def _beside(run: _Run, figure: str, *, adaptive: bool) -> str:
    """The compressors that stand beside a figure, and whether it is better; "" if there are none."""
    shown = [f"{baseline.name} {baseline.shown}" for baseline in run.baselines if baseline.is_adaptive == adaptive]
    verdicts = {baseline.name: better for baseline, better in run.verdicts if baseline.is_adaptive == adaptive}
    ahead = [name for name, better in verdicts.items() if not better]
    verdict = f" ({figure} is {_better(len(verdicts), ahead)})" if verdicts else ""
    return f"beside {figure}: {' and '.join(shown)}{verdict}" if shown else ""


def _known_text(run: _Run) -> list[str]:
    """Rule 11."""
    if run.figures and run.record["held_out"].get("seen_by_base"):
        what = "conversations" if run.of_answers else "text"
        return [
            f"The base model was trained on the held-out {what}, so neither its figures nor those after fine-tuning "
            f"measure new {what}; hold out other {what}: --val FILE."
        ]
    share = (run.record.get("memorised") or {}).get("held_out_share") or 0.0
    if share < KNOWN_SHARE or not run.record["held_out"].get("files"):
        return []
    return [
        f"{share:.0%} of the 30-character strings of the held-out text occur verbatim in the training text, so its "
        "bits per byte say little about new text."
    ]


def _teacher(run: _Run) -> list[str]:
    """Rule 12."""
    distillation = run.record.get("distillation")
    if not distillation:
        return []
    teacher = units.bits_per_byte(distillation["teacher_bits_per_byte"])
    if run.is_student:
        best = units.bits_per_byte(min(run.curve.validation))
        return [f"Distillation: the student was kept (validation loss: {best} bits per byte, its teacher's {teacher})."]
    yet = " yet" if run.ended_early else ""
    kept = f"so its teacher was kept (validation loss: {teacher} bits per byte)"
    return [f"Distillation: the student was not better{yet}, {kept}."]


def _speed(run: _Run) -> list[str]:
    """Rule 9."""
    clock = run.record.get("clock", {})
    reached, planned = clock.get("tokens_per_second"), clock.get("planned_tokens_per_second")
    if run.ended_early or not reached or not planned or 1 / SPEED_TOLERANCE <= reached / planned <= SPEED_TOLERANCE:
        return []
    reason = " Other programs may have been running." if reached < planned else ""
    if reached > planned and run.epochs < clock["planned_epochs"]:  # the time went elsewhere: to measurements
        return []
    if run.ended_by_epochs and run.record["epochs"] <= SPEED_TOLERANCE * clock["planned_epochs"]:
        return []  # there was time enough
    return [
        f"The plan assumed {planned:,} tokens per second and {units.epochs(clock['planned_epochs'])}; the run reached "
        f"{reached:,} and {units.epochs(run.record['epochs'])}.{reason}"
    ]


def _answers(run: _Run) -> list[str]:
    """Rule 10: greedy answers to held-out questions."""
    counts = answer_counts(run.record)
    return [f"Greedy answers to {counts}."] if counts else []


def answer_counts(record: Record) -> str:
    """How many greedy answers to held-out questions were right, "" where none was asked."""
    measured = record.get("answers")
    if not measured:
        return ""
    count = measured["questions"]
    questions = units.count(count, "held-out question")
    verbatim, exact = (round(measured[key] * count) for key in ("verbatim", "exact"))
    if not measured.keys() >= COUNTED_ANSWERS:  # in files of earlier versions
        return (
            f"{questions}: {verbatim:,} occur verbatim among the training answers, {exact:,} equal the reference answer"
        )
    near, garbled = (round(measured[key] * count) for key in ("near", "garbled"))
    others = [f"{near:,} near (at least 80% alike)", f"{count - exact - near - garbled:,} another training answer"]
    return f"{questions}: {exact:,} exact, {', '.join(others)}, {garbled:,} garbled"


def _plain_text(run: _Run) -> list[str]:
    """Rule 10: plain text, before and after."""
    measured = run.record.get("plain_text")
    if not measured:
        return []
    source, before, after = measured["from"], measured["before"], measured["after"]
    if before is None:
        return [f"Plain text ({source}): {Figures(after)}."]
    change = after / before - 1 if before else 0.0
    advice = ""
    if change > FORGETTING:
        advice = " Adding plain text to the training data, --lora, or a lower --lr-scale would help to keep it."
    return [
        f"Plain text ({source}): {Figures(before)} before, {units.bits_per_byte(after)} after "
        f"({units.change(change)}).{advice}"
    ]


def _missing_divergence(run: _Run) -> list[str]:
    """Whether the time was too short for the text that a base model generates (base_behaviour.py)."""
    if run.record.get("conversations", {}).get("base_tokens") != 0:
        return []
    return [
        "There was no time for the base model to generate text, so no KL divergence limited catastrophic forgetting: a "
        "longer --time or a smaller base model would help."
    ]


def _better(compared: int, ahead: Sequence[str]) -> str:
    """How a model compares, where these compressors are ahead of it or level.

    >>> _better(2, []), _better(2, ["xz"]), _better(2, ["xz", "PPM"])
    ('better', 'not better than xz', 'not better')
    """
    if not ahead:
        return "better"
    return "not better" if len(ahead) == compared else f"not better than {' and '.join(ahead)}"


def _early_end(run: _Run, resumable: bool, again: str) -> list[str]:
    """Rule 2."""
    if run.record.get("problem"):
        return [f"Training ended early: {run.record['problem']}."]
    if not run.record.get("interrupted"):
        return []
    then = f"{again} resumes from there"
    if not resumable:
        then = "no resume file could be written, so the same command starts over"
    return [f"Interrupted at step {run.steps:,}; {then}."]


def _advice(run: _Run, command: str | None, seconds: float | None) -> list[str]:
    """The first of rules 3 to 6 that applies, if any."""
    overfitting = _overfitting(run)
    if not run.ended_early and not run.ended_by_epochs:
        reasons = _undertrained(run)
        if not (run.beats_a_compressor or overfitting):
            reasons.append("worse than every compressor")
        if reasons:
            then = f": {command} --time {_suggested_time(run, seconds)}" if command else "."
            return [f"Undertrained: {', '.join(reasons)}. Train longer{then}"]
    if advice := _answer_advice(run):
        return [advice]
    if overfitting:
        return [overfitting]
    if run.ended_early or (_memorization(run) and not run.curve.validation):
        return []
    if run.nearly_ended_by_epochs:
        return [_epochs_advice(run)]
    reason = _needs_time(run)
    then = f": {command} {_double_budget(run)}" if command else "."
    return [f"{reason}; more time would help{then}"] if reason else []


def _answer_advice(run: _Run) -> str:
    """What would improve the answers of a model that knows those of its training data, "" where that is open."""
    if run.answers_correctly:
        return "Nearly all of these answers are exact or near: longer training would help little."
    if run.ended_early or not run.knows_its_answers:
        return ""
    unseen = ""
    if run.answers and run.answers["seen"] < 1 - KNOWN_SHARE:
        unseen = (
            " Most of the held-out answers do not occur among the training answers: to train on all of them, hold none "
            "out (--val 0)."
        )
    return (
        "The model knows its training answers, so longer training would help little. Several wordings of each question "
        f"in the training data, or fine-tuning a published model (--from), would help with new questions.{unseen}"
    )


def _epochs_advice(run: _Run) -> str:
    """Rule 4, for a run that its limit of epochs ended, or nearly did."""
    early = ", before the time was up" if run.ended_by_epochs else ""
    ended = f"Training stopped after {units.epochs(run.epochs)}{early}"
    if run.is_repetitive:
        share = run.record["memorised"]["held_out_share"]
        return (
            f"{ended}. The text is repetitive ({share:.0%} of the 30-character strings of its held-out part occur in "
            "the training part): more time or text would help little."
        )
    return f"{ended}: further epochs would only make the model memorize the {run.data}. More {run.data} would help."


def _undertrained(run: _Run) -> list[str]:
    """What rule 3 finds in the length of the run."""
    reasons = []
    enough = MIN_STEPS_FINE_TUNING if run.fine_tuned else MIN_STEPS
    if run.steps < enough and run.epochs < MANY_EPOCHS:
        reasons.append(units.count(run.steps, "step"))
    if run.epochs < 1 and not run.read_in_part:
        reasons.append(f"{_percent(run.epochs)} of the training {run.data} seen")
    return reasons


def _percent(share: float) -> str:
    """A share below 1.

    >>> [_percent(x) for x in (0.001, 0.126, 0.999)]
    ['less than 1%', '13%', '99%']
    """
    return "less than 1%" if share < 0.01 else f"{min(share, 0.99):.0%}"


def _suggested_time(run: _Run, seconds: float | None) -> str:
    """For --time: one of SUGGESTED_MINUTES, at least twice the time of the run. Fine-tuning, which cannot choose a
    smaller model, gets the time for MIN_STEPS_FINE_TUNING and for an epoch."""
    taken = seconds if seconds is not None else run.record.get("clock", {}).get("seconds", 0.0)
    times = [2 * taken]
    if run.fine_tuned:
        epoch = max(1e-3, min(1.0, run.record.get("epochs", 1.0)))
        times += [taken * MIN_STEPS_FINE_TUNING / max(1, run.steps), taken / epoch]
    minutes = max(times) / 60
    return _time_option(60 * next((most for most in SUGGESTED_MINUTES if most >= minutes), SUGGESTED_MINUTES[-1]))


def _overfitting(run: _Run) -> str:
    """Rule 4 as a sentence, "" where it does not apply."""
    if not run.curve.validation:
        return ""
    best, last = min(run.curve.validation), run.curve.validation[-1]
    lowest, at_end = units.bits_per_byte(best), units.bits_per_byte(last)
    if run.best_step < run.last_step and last > max(best * (1 + DETERIORATION), NEGLIGIBLE):
        if run.best_step == 0:
            return (
                f"Fine-tuning did not improve on the base model ({run.curve.name} loss: {lowest} bits per byte before, "
                f"{at_end} at the end), so its weights are kept. A lower learning rate or more {run.data} would help."
            )
        return (
            f"Overfitting after step {run.best_step:,}: the {run.curve.name} loss rose from {lowest} to {at_end} bits "
            f"per byte, so the weights of that step are kept. More {run.data} would help.{_without_held_out(run)}"
        )
    if run.epochs >= OVERFITTING_EPOCHS and last >= max(OVERFITTING_RATIO * run.training_loss, NEGLIGIBLE):
        return (
            f"Overfitting: after {units.epochs(run.epochs)} the training loss is "
            f"{units.bits_per_byte(run.training_loss)} bits per byte, the {run.curve.name} loss {at_end}. More "
            f"{run.data} would help."
        )
    return ""


def _without_held_out(run: _Run) -> str:
    """For a model of conversations alone, which may serve those who ask what is in its file."""
    return " For a model that repeats the answers in the file, hold none out: --val 0." if run.of_answers else ""


def _needs_time(run: _Run) -> str:
    """Why more time would help by rules 5 and 6, "" where it would not."""
    if _still_improving(run):
        return "Still improving at the end"
    if run.read_in_part:
        read, whole = run.record["read_bytes"], run.record["train_bytes"]
        return f"There was time for only {read:,} of {whole:,} bytes of text"
    if any(baseline.name == "xz" and not better for baseline, better in run.verdicts):
        return "xz, which only finds repeated strings, still compresses this text better than the network"
    return ""


def _still_improving(run: _Run) -> bool:
    if run.best_step < run.last_step:
        return False
    curve = run.curve
    if len(curve.validation) > 1:
        steps, losses, last = curve.validation_steps, curve.validation, curve.validation[-1]
    else:
        steps, losses, last = curve.steps, curve.training, run.training_loss
    if last < NEGLIGIBLE:
        return False
    half = (run.model_steps.start + run.last_step) / 2
    first_half = [loss for step, loss in zip(steps, losses, strict=True) if step <= half]
    if run.is_repetitive and first_half and first_half[-1] - last < NEAR_FLOOR:
        return False
    return not first_half or last <= first_half[-1] * (1 - IMPROVEMENT)


def _double_budget(run: _Run) -> str:
    """The option for twice the budget that ended the run: time or steps."""
    settings = run.record["train"]
    if settings.get("seconds") is None:
        return f"--steps {2 * settings['steps']}"
    return f"--time {_time_option(2 * settings['seconds'])}"


def _time_option(seconds: float) -> str:
    """A duration as --time takes it.

    >>> [_time_option(s) for s in (600, 90, 7200, 5400.4)]
    ['10m', '90s', '2h', '90m']
    """
    whole = max(1, round(seconds))
    return next((f"{whole // size}{unit}" for size, unit in ((3600, "h"), (60, "m")) if whole % size == 0), f"{whole}s")


def _memorization(run: _Run) -> str:
    """Rule 7 as a sentence, "" where it does not apply."""
    measured = run.record.get("memorised")
    if not measured:
        return ""
    share, held_out_share = measured["share"], measured["held_out_share"]
    if share < (MEMORIZED_SHARE_ALONE if held_out_share is None else held_out_share + MEMORIZED_SHARE):
        return ""
    beside = "" if held_out_share is None else f" (held-out text itself: {held_out_share:.0%})"
    return f"Memorization: {share:.0%} of generated 30-character strings occur verbatim in the training text{beside}."
