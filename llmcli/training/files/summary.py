"""A summary of a finished run, by rules of thumb that need only its training record."""

import math
from collections.abc import Sequence

from llmcli import units
from llmcli.config import FINE_TUNING_RECIPES
from llmcli.data.conversations.example_prompt import shell_quoted
from llmcli.data.text.line_kinds import LineKind
from llmcli.errors import command_line
from llmcli.evaluation.compressors import Baseline
from llmcli.evaluation.figures import ADAPTING, NETWORK, Figures, known_text
from llmcli.formats.training_record import EvaluatedData, Settings, TrainingRecord
from llmcli.training.files.curve import answer_counts, read_curve, steps_of_model

# fewer steps leave a model undertrained ...
MIN_STEPS = 100
MIN_STEPS_FINE_TUNING = 10
MANY_EPOCHS = 10.0  # ... except after this many epochs: the run lacks text, not steps
MIN_SUGGESTED_MINUTES = 5  # minimum value suggested for --time
IMPROVEMENT = 0.03  # relative gain in the second half of a run; doubling the length would gain as much again
DIVERGENCE = 1.1  # a model's training loss at the end, relative to its first one
UNIFORM = 8.0  # bits per byte of a guess that gives all bytes the same probability
KNOWN = 0.02  # bits per byte; below this loss the answers are memorized, and more time or data would not help
DETERIORATION = 0.02  # overfitting: relative rise of the validation loss after the best weights
NEAR_THE_LIMIT = 0.9  # share of the limit of epochs beyond which twice the time would add few epochs
FORGETTING = 0.02  # relative rise of the bits per byte of plain text by training on conversations
# share of generated strings in the training text, beyond the share of held-out strings, ...
MEMORIZED_SHARE = 0.1
ASSUMED_SHARE = 0.4  # ... which is assumed if nothing is held out
# share of held-out questions answered exactly, above which there is little left to improve
EXACT_SHARE = 0.99
MAX_LISTED_CHARACTERS = 200  # maximum length of the answers in a command
MIN_COMPARED_BYTES = 2000  # minimum held-out text for a meaningful comparison with compressors


def summarize(
    record: TrainingRecord,
    baselines: Sequence[Baseline] = (),
    *,
    command: str | None = None,
    seconds: float = 0.0,
    resumable: bool = True,
    again: str = "the same command",
) -> list[str]:
    """Summarize a finished run in at most three lines: its figures, its answers, and advice. The advice may
    be `command` (the run's, without its budget) with twice the time of `seconds`; `again` says how to
    resume a `resumable` run."""
    run = _FinishedRun(record)
    minutes = max(MIN_SUGGESTED_MINUTES, math.ceil(2 * seconds / 60))
    advice = _early_end(record, resumable, again) or _advice(run, command, minutes)
    return [line for line in (_quality(run, baselines), _conversations(record), advice) if line]


def usage_hint(
    model: str,
    prompt: str | None = None,
    *,
    has_chat_template: bool = False,
    chats: bool = False,
    labels: Sequence[str] = (),
    knows_answers: bool = False,
    kind: LineKind | None = None,
) -> str:
    """Return the command to try next with the file `model` ("": the default one) and a `prompt`. `chats`: the
    model was trained on conversations; `labels`: their answers, if few; `knows_answers`: whether the file
    stores them; `kind`: the kind of lines in its training text."""
    option = f" -m {command_line([model])}" if model else ""
    note = "" if has_chat_template else "The model continues text; it does not answer questions. "
    text = shell_quoted(prompt or "...")
    command = f"llm generate {text}{option}"
    if chats:
        command = f"llm chat{option}{' --known-answers' if knows_answers else ''}"
    if labels:
        command = f"llm chat {text}{option} --choices {_choices(labels)}"
    elif kind == "list":
        command = f"llm generate{option} --lines 10 --new"
    elif kind == "log":
        command = f"llm eval OTHER_LOG{option} --per-line"
    return f"{note}Try it: {command}"


def _choices(labels: Sequence[str]) -> str:
    """Return the labels as the value of --choices."""
    is_list = all("," not in label and label == " ".join(label.split()) for label in labels)
    is_list &= sum(map(len, labels)) <= MAX_LISTED_CHARACTERS
    return command_line([",".join(labels)]) if is_list else "FILE (with one on each line)"


class _FinishedRun:
    """A finished run. After distillation, losses and steps belong to the kept model."""

    def __init__(self, record: TrainingRecord) -> None:
        self.record = record
        self.curve = read_curve(record)
        self.steps = steps_of_model(record)
        of_answers = record.held_out.of == "answers"
        self.data = "conversations" if of_answers else "text"
        settings = record.train or Settings()  # with a time limit, `steps` comes from the limit of epochs
        self.fine_tuned = bool(record.base or settings.recipe in FINE_TUNING_RECIPES)
        self.limit_share = 0.0 if settings.seconds is None else record.steps / settings.steps
        epochs = record.conversations.epochs if record.conversations and of_answers else record.epochs
        self.epochs = epochs * (len(self.steps) - (self.steps.start == 0)) / max(1, record.steps)


def _quality(run: _FinishedRun, baselines: Sequence[Baseline]) -> str:
    """Report the final bits per byte on held-out text, for the network and adapting, each beside its
    compressors."""
    record, held_out = run.record, run.record.held_out
    what, was = ("answers", "were") if held_out.of == "answers" else ("text", "was")
    if (figures := Figures.of_record(record)) is None:
        why = record.not_evaluated or "it would have taken too long"
        none = f"No {run.data} {was} held out, so the loss on unseen {run.data} is unknown."
        unmeasured = f"The held-out {what} {was} not evaluated at the end ({why}): llm eval TEXT -m MODEL"
        return unmeasured if held_out.bytes else none
    measured = record.held_out_measured or EvaluatedData()
    source = "; ".join(filter(None, (held_out.from_, known_text(held_out.known_share))))
    part = f"all {held_out.bytes:,} bytes"
    if measured.bytes < held_out.bytes:
        part = f"{measured.bytes:,} of its {held_out.bytes:,} bytes (a sample, to save time)"
    window = f" with a context of {measured.context:,} tokens" if measured.context else ""
    quality = (
        f"Held-out {what}{f' ({source})' if source else ''}: {figures} at the end (lower is better), on "
        f"{part}, in float32{window}."
    )
    is_compared = measured.bytes == held_out.bytes >= MIN_COMPARED_BYTES
    beside = [
        _beside(
            name, bits, [base for base in baselines if base.is_adaptive == (name == ADAPTING)], is_compared
        )
        for name, bits in ((f"the {NETWORK}", figures.network), (ADAPTING, figures.adapting))
        if bits is not None
    ]
    text = "the same text" if measured.bytes == held_out.bytes else "all of it"
    return f"{quality} Compressors on {text}, {'; '.join(filter(None, beside))}." if baselines else quality


def _beside(name: str, bits: float, baselines: Sequence[Baseline], is_compared: bool) -> str:
    """List the compressors that a figure is comparable with, and whether it beats them; "" without any."""
    if not baselines:
        return ""
    ahead = " and ".join(base.name for base in baselines if base.bits_per_byte <= bits)
    verdict = f" ({name} is {f'not better than {ahead}' if ahead else 'better'})" if is_compared else ""
    return f"beside {name}: {' and '.join(f'{base.name} {base.shown}' for base in baselines)}{verdict}"


def _conversations(record: TrainingRecord) -> str:
    """After training on conversations, report answers to held-out questions, and plain text before and
    after."""
    sentences = []
    if counts := answer_counts(record):
        sentences.append(f"Greedy answers to {counts}.")
    if (known := record.known_answers) and known.questions:
        unanswered = known.questions - known.right - known.wrong
        questions = units.count(known.answerable or known.questions, "held-out question")
        asked = f" ({known.questions:,} asked)" if known.answerable else ""
        sentences.append(
            f"With --known-answers, of {questions} with a training answer{asked}: {known.right:,} right, "
            f"{known.wrong:,} wrong, {unanswered:,} not answered."
        )
    if (plain_text := record.plain_text) and (after := plain_text.after) is not None:
        before = after if plain_text.before is None else plain_text.before
        figures = f"{Figures(before)}"
        change = after / before - 1 if before else 0.0
        if plain_text.before is not None:
            figures += f" before, {units.bits_per_byte(after)} after ({units.change(change)})"
        keep = " Plain text in the training data or a lower --lr-scale would help to keep it."
        sentences.append(f"Plain text ({plain_text.from_}): {figures}.{keep if change > FORGETTING else ''}")
    return " ".join(sentences)


def _early_end(record: TrainingRecord, resumable: bool, again: str) -> str:
    if record.problem or not record.interrupted:
        return f"Training ended early: {record.problem}." if record.problem else ""
    lost = "no resume file could be written, so the same command starts over"
    then = f"{again} resumes from there" if resumable else lost
    return f"Interrupted at step {record.steps:,}; {then}."


def _advice(run: _FinishedRun, command: str | None, minutes: int) -> str:
    """Say what would help most: a lower learning rate, more time, more epochs, more data, or none of them."""
    longer = f": {command} --time {minutes}m" if command else "."
    if diverged := _divergence(run):
        return diverged
    if undertrained := _undertrained(run):
        return f"Undertrained: {undertrained}. Train longer{longer}"
    if overfitting := _overfitting(run):
        return overfitting
    memorization = _memorization(run.record)
    validation = run.curve.validation
    search = run.record.epoch_search  # a first run, which may have found that more epochs do not help
    is_improving = _still_improving(run)
    # without validation, a lower training loss may be memorization, unless a first run improved up to its end
    epochs_would_help = search is not None and not search.confirmed and not memorization
    if is_improving and (validation or epochs_would_help):
        if run.limit_share < NEAR_THE_LIMIT:
            return f"Still improving at the end; more time would help{longer}"
        more = f": {command} --epochs {math.ceil(2 * run.epochs)}" if command else "."
        limit = f"after {units.epochs(run.epochs)}, the limit for this much data"
        return f"Still improving {limit}; more epochs would help{more}"
    if memorization or (is_improving and search is None):
        return memorization
    loss = run.curve.label if validation else "training"
    training = run.curve.training[-1]
    values = f"{units.bits_per_byte(validation[-1])} bits per byte, training loss " if validation else ""
    return (
        f"The {loss} loss has plateaued ({values}{units.bits_per_byte(training)}): longer training at this "
        f"size would help little, more {run.data} would."
    )


def _divergence(run: _FinishedRun) -> str:
    """Report a training loss that ended higher than it began in a new model, or higher than both that and a
    uniform guess in other runs: text in another language, or answers of one letter, may begin above that."""
    first, last = run.curve.training[0], run.curve.training[-1]
    is_new = not run.fine_tuned and run.data == "text"
    # the loss of a new model may have exploded before the first point
    if last <= (DIVERGENCE * min(first, UNIFORM) if is_new else max(DIVERGENCE * first, UNIFORM)):
        return ""
    return (
        f"Diverged: the training loss was {units.bits_per_byte(first)} bits per byte at the start and "
        f"{units.bits_per_byte(last)} at the end. A lower --lr-scale would help."
    )


def _undertrained(run: _FinishedRun) -> str:
    """Report too few steps, or less than one epoch of a text that was read completely."""
    if run.limit_share >= 1:
        return ""
    reasons = []
    record = run.record
    if record.steps < (MIN_STEPS_FINE_TUNING if run.fine_tuned else MIN_STEPS) and run.epochs < MANY_EPOCHS:
        reasons.append(units.count(record.steps, "step"))
    if run.epochs < 1 and (not record.read_bytes or record.read_bytes >= (record.train_bytes or 0)):
        share = f"{min(run.epochs, 0.99):.0%}" if run.epochs >= 0.01 else "less than 1%"
        reasons.append(f"{share} of the training {run.data} seen")
    return ", ".join(reasons)


def _overfitting(run: _FinishedRun) -> str:
    """Report a validation loss that rose after the best weights."""
    losses = run.curve.validation or [0.0]
    name = run.curve.label
    best_step = run.record.best_step
    best = min(losses)
    last = losses[-1]
    if best_step >= run.steps[-1] or last <= max(best * (1 + DETERIORATION), KNOWN):
        return ""
    lowest = units.bits_per_byte(best)
    at_end = units.bits_per_byte(last)
    if best_step == 0:
        return (
            f"Fine-tuning did not improve on the base model ({name} loss: {lowest} bits per byte before, "
            f"{at_end} at the end), so its weights are kept. A lower learning rate or "
            f"more {run.data} would help."
        )
    return (
        f"Overfitting after step {best_step:,}: the {name} loss rose from {lowest} to {at_end} bits per "
        f"byte, so the weights of that step are kept. More {run.data} would help."
    )


def _still_improving(run: _FinishedRun) -> bool:
    """Return whether the best weights are the last, and the second half of the run lowered the loss by
    IMPROVEMENT."""
    curve = run.curve
    steps = run.curve.steps
    losses = run.curve.training
    tenth = losses[-max(1, len(losses) // 10) :]
    last = sum(tenth) / len(tenth)
    if len(curve.validation) > 1:
        steps = curve.validation_steps
        losses = curve.validation
        last = curve.validation[-1]
    has_inexact_answers = run.record.answers is not None and run.record.answers.exact < EXACT_SHARE
    if run.record.best_step < run.steps[-1] or (last < KNOWN and not has_inexact_answers):
        return False
    half = (run.steps[0] + run.steps[-1]) / 2
    first_half = [loss for step, loss in zip(steps, losses, strict=True) if step <= half]
    return not first_half or last <= first_half[-1] * (1 - IMPROVEMENT)


def _memorization(record: TrainingRecord) -> str:
    """Report a model that repeats clearly more training text than held-out text does; "" otherwise."""
    if record.memorised is None:
        return ""
    share = record.memorised.share
    held_out_share = record.memorised.held_out_share
    if share < MEMORIZED_SHARE + (ASSUMED_SHARE if held_out_share is None else held_out_share):
        return ""
    beside = "" if held_out_share is None else f" (held-out text itself: {held_out_share:.0%})"
    return (
        f"Memorization: {share:.0%} of generated 30-character strings occur verbatim in the training "
        f"text{beside}. More text or a smaller model would help."
    )
