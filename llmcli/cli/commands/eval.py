"""`llm eval`: measure how well models predict a text."""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.cli.options import CHOICES_HELP, ResultOptions, argument, flag, model_path, option, read_choices
from llmcli.cli.reports.evaluation import TokenSurprisals, print_scores, score_record
from llmcli.cli.terminal import console
from llmcli.config import DEFAULT_MODEL, EVALUATION_CONTEXT
from llmcli.errors import LLMError, usage, with_hub_names

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmcli.data.conversations.chat_template import ChatTemplate
    from llmcli.data.conversations.messages import Conversation
    from llmcli.data.files import ConversationFile
    from llmcli.data.sources import Sources
    from llmcli.data.text.corpus import Corpus
    from llmcli.evaluation.compressors import Baseline
    from llmcli.evaluation.evaluator import OnTokens
    from llmcli.evaluation.training_text import MeasuredConversations
    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.formats.ensemble_file import Ensemble
    from llmcli.formats.training_record import TrainingRecord
    from llmcli.generation.chat import Assistant
    from llmcli.models.runtime import Runtime

MAX_COMPRESSED_BYTES = 1 << 26  # compressors hold the text in memory
TOP_LINES = 20
MAX_NAMES = 3  # documents listed in a note
NO_TOKENS = "the text has no tokens to measure; add --whole to measure what was trained on too"


class _Options(ResultOptions):
    texts: list[str] = argument(
        "TEXT", "Text: files, directories or globs, also .gz; - reads standard input.", ...
    )
    models: list[str] | None = option(
        "FILE",
        f"Model to measure; can be repeated (default: $LLMCLI_MODEL or {DEFAULT_MODEL}).",
        names="-m --model",
    )
    whole: bool = flag("Measure the whole text, not only the part that was held out in training.")
    per_token: bool = flag("Show the surprisal of each token and the most surprising passages.")
    per_line: bool = flag(
        f"Rank the {TOP_LINES} most surprising lines, each with its most surprising token; --json prints all."
    )
    choices: str | None = option(
        "LIST",
        f"Measure how well models choose the answers among these: {CHOICES_HELP}; or answers, "
        "for those in the text.",
    )
    known_answers: bool = flag(
        "Measure how many answers are correct when chosen as by llm chat --known-answers."
    )
    context: int | None = option(
        "N",
        f"Context length in tokens (default: the model's, at most {EVALUATION_CONTEXT} or its training's).",
        min=2,
    )
    no_cache: bool
    device: str


def eval_(options: _Options) -> None:
    """Files are read as in the model's training; to read them differently: llm text FILE --column NAME | llm
    eval -. For questions and answers, exact answers are counted too. The compressors xz and PPM are measured
    on the same text as baselines. Lower is better; 8 bits per byte is a uniform guess over all byte values.

    Example: llm eval held-out.txt -m a.safetensors -m b.safetensors
    """
    from llmcli.cli.reports.files import note_skipped_files
    from llmcli.data.reading_progress import reading_progress
    from llmcli.data.sources import read_sources
    from llmcli.data.text.dataset_directory import ALL_SPLITS
    from llmcli.evaluation.training_text import recorded_reading
    from llmcli.formats.loading import load_any

    options.check({"per_line": "per_token", "known_answers": "choices context", "choices": "context"})
    per, choosing = options.typed("per_token", "per_line"), options.typed("choices", "known_answers")
    if per and len(options.models or ()) > 1:
        raise usage(f"{per[0]} shows one model, found {len(options.models or ())}; name one with -m")
    paths = dict.fromkeys(map(model_path, options.models or (None,)))
    models = [_EvaluatedModel(options, path, load_any(path)) for path in paths]
    chats = [model for model in models if model.chat_template()]
    progress = reading_progress(None, console.note)
    reading = replace(recorded_reading(_records(models)), text_only=not chats)
    sources = read_sources(options.texts, reading, splits=ALL_SPLITS, on_read=progress)
    if sources.cuts or any(group.detail for group in sources.groups()):  # more than plain text
        for note in (sources.describe(options=False), *sources.notes):
            console.note(note)
    if chats and sources.conversation_files:
        options.reject("with conversations", "per_token", "per_line")
        _evaluate_answers(options, models, chats, sources)
        return
    if choosing:
        raise usage(
            f"{choosing[0]} needs conversations, and models that can chat: a table of texts and labels or "
            "answers, for example"
        )
    note_skipped_files(sources.text)
    _evaluate_text(options, models, sources.text)


@dataclass(frozen=True)
class _EvaluatedModel:
    """A model to measure."""

    options: _Options
    path: Path
    source: "Checkpoint | Ensemble"

    @property
    def name(self) -> str:
        return with_hub_names(str(self.path))

    @contextmanager
    def opened(self) -> "Iterator[tuple[Runtime, int]]":
        """Yield (runtime, context length of the evaluation). LLMErrors raised in this context are prefixed
        with the name of the model."""
        from llmcli.evaluation.evaluator import evaluation_context, trained_context
        from llmcli.models.open_runtime import open_runtime

        cache = not self.options.no_cache
        runtime = open_runtime(self.source, self.options.device, None, console.note, cache=cache)
        with _named(self.path):
            trained = trained_context(self.source.records)
            yield runtime, evaluation_context(runtime.context, self.options.context, trained)

    def chat_template(self) -> "ChatTemplate | None":
        from llmcli.formats.loading import open_chat_template, open_tokenizer

        # otherwise the tokenizer need not be opened yet
        if '"chat_template"' not in self.source.shared.tokenizer_config_json:
            return None
        with _named(self.path):
            return open_chat_template(self.source, open_tokenizer(self.source))

    def assistant(self, runtime: "Runtime") -> "Assistant":
        from llmcli.formats.loading import open_tokenizer
        from llmcli.generation.chat import open_assistant

        return open_assistant(self.source, runtime, open_tokenizer(self.source))

    def show_progress(self, share: float, document: str = "") -> None:
        console.status(f"{share:4.0%}  {self.name}  {document}".rstrip())


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the name of the model to an LLMError, and remove the status line at the end."""
    try:
        yield
    except LLMError as error:
        raise LLMError(f"{path}: {error}", error.exit_code) from error
    finally:
        console.status("")


def _records(models: "Sequence[_EvaluatedModel]") -> "list[TrainingRecord]":
    return [record for model in models for record in model.source.records]


# ---- text


def _evaluate_text(options: _Options, models: "Sequence[_EvaluatedModel]", text: "Corpus") -> None:
    """Measure and print the part that no model was trained on; the whole text with --whole, or if there is no
    such part."""
    import numpy as np

    from llmcli.data.text.corpus import Corpus
    from llmcli.data.text.near_duplicates import largest_group
    from llmcli.data.text.repetitions import find_repetitions
    from llmcli.evaluation.evaluator import most_surprising
    from llmcli.evaluation.training_text import trained_part, unrecorded_part, untrained_part, without_files

    records = _records(models)
    measured = text if options.whole else untrained_part(text, records)
    measured = measured if measured.contents else text
    trained = trained_part(text, records) if measured.text_bytes < text.text_bytes else Corpus(())
    if trained.contents:
        new = {document.sha256 for document in unrecorded_part(measured, records).documents}
        held_out = without_files(measured, new)
        # passages that repeat held-out text were left out in training too, but not those that repeat other
        # files
        trained = find_repetitions(trained, held_out, versions=largest_group(text.documents)).training
    _note_other_files(measured, trained, models)
    _note_training_text(measured, trained, models)
    if options.per_token or options.per_line:
        [model] = models
        surprisals = _surprisals(model, measured)
        if options.per_line:
            surprisals.show_lines(
                [part.first_line for part in measured.contents], TOP_LINES, json_=options.json
            )
            return
        spans = most_surprising(np.array(surprisals.bits), breaks=surprisals.first_tokens)
        if options.json:
            console.json_result(surprisals.as_json(spans, _first_byte(text, measured)))
        else:
            surprisals.show(spans)
        return
    scores = [score for model in models for score in _text_scores(model, measured)]
    if not scores:
        raise LLMError(NO_TOKENS)
    past = trained if trained.contents else _separate_training_text(measured, models)
    print_scores(scores, _baselines(measured, past), _first_byte(text, measured), json_=options.json)


def _separate_training_text(measured: "Corpus", models: "Sequence[_EvaluatedModel]") -> "Corpus":
    """Return the training text of a single model for which --val named the measured text; an empty corpus for
    others, and if the text is not found. The compressors that run beside training read it first, too."""
    from llmcli.data.text.corpus import Corpus
    from llmcli.evaluation.training_text import find_small_training_texts, is_held_out

    [model, *others] = models
    if others or not all(is_held_out(measured, record) for record in model.source.records):
        return Corpus(())
    texts = find_small_training_texts(model.source.records, model.path)
    return texts[0].corpus if texts else Corpus(())


def _text_scores(
    model: _EvaluatedModel, text: "Corpus", on_tokens: "OnTokens" = lambda ids, nats: None
) -> Iterator[dict[str, Any]]:
    """Score a model on each document, and on all together if there are several."""
    from llmcli.evaluation.evaluator import Score, measure, stride
    from llmcli.formats.loading import open_tokenizer

    total = Score(0.0, 0, 0)
    tokenizer = open_tokenizer(model.source)
    with model.opened() as (runtime, context):
        step = stride(context)
        longer = f" (of {runtime.context:,}; --context changes it)" if context < runtime.context else ""
        console.note(
            f"{model.name}: context windows of {context:,} tokens{longer}, stride {step:,}; each token is "
            f"predicted from at least {step:,} preceding tokens (fewer only at the start of a text)"
        )
        for part in text.contents:
            document = part.document.name
            progress = partial(model.show_progress, document=document)
            score = measure(document, part.text(), runtime, tokenizer, progress, on_tokens, context=context)
            total += score
            if score.tokens:
                yield score_record(model.name, document, score, context, step)
    if len(text.contents) > 1:
        yield score_record(model.name, None, total, context, step)


def _surprisals(model: _EvaluatedModel, text: "Corpus") -> TokenSurprisals:
    """Compute the surprisal of each token under a model."""
    import numpy as np

    from llmcli.formats.loading import open_tokenizer

    ids: list[int] = []
    bits: list[float] = []

    def add_tokens(tokens: "NDArray[np.integer]", nats: "NDArray[np.floating]") -> None:
        ids.extend(tokens.tolist())
        bits.extend((np.asarray(nats, np.float64) / math.log(2)).tolist())

    first_tokens = [0]
    files = []
    for score in _text_scores(model, text, add_tokens):
        if score["file"] is not None:
            first_tokens.append(len(ids))
            files.append(score["file"])
        total = score  # the last one is of all documents
    if not ids:
        raise LLMError(NO_TOKENS)
    return TokenSurprisals(
        str(model.path), open_tokenizer(model.source), ids, bits, files, first_tokens[:-1], total
    )


def _note_other_files(measured: "Corpus", trained: "Corpus", models: "Sequence[_EvaluatedModel]") -> None:
    """Note if texts that a record does not name, such as an edited file, repeat the text that its model was
    trained on: its part of `trained`, and what is found beside the model."""
    from llmcli.data.sources import Sources
    from llmcli.data.text.corpus import Corpus
    from llmcli.data.text.repetitions import find_repetitions
    from llmcli.evaluation.figures import known_text
    from llmcli.evaluation.training_text import (
        changed_files_note,
        find_small_training_texts,
        trained_part,
        unrecorded_part,
    )

    known_share = 0.0
    repeating = Corpus(())
    for model in models:
        for record in model.source.records:
            unrecorded = unrecorded_part(measured, [record])
            if not unrecorded.contents and len(record.stages) == 1:
                continue  # the files of the training text need not be read
            texts = find_small_training_texts([record], model.path)
            parts = {part.document.sha256: part for part in trained_part(trained, [record]).contents}
            for text in texts:
                parts |= {part.document.sha256: part for part in text.corpus.contents}
            searches = [(Corpus.of_parts(parts.values()), unrecorded)]
            # a stage may have been trained on text that another one held out
            searches += [(text.corpus, text.others(measured)) for text in texts if len(texts) > 1]
            for searched, others in searches:
                found = find_repetitions(searched, others, keeps_training=True)
                if (found.known_share, others.text_bytes) > (known_share, repeating.text_bytes):
                    known_share, repeating = found.known_share, others
    if known := known_text(known_share):
        names = units.listed([document.name for document in repeating.documents], MAX_NAMES)
        console.note(
            f"text of {names} ({repeating.text_bytes:,} bytes) was not trained on, but {known}, so its score "
            "does not measure generalization"
        )
        return
    records = _records(models)
    if note := changed_files_note(Sources(unrecorded_part(measured, records), ()), records):
        console.note(note)


def _note_training_text(measured: "Corpus", trained: "Corpus", models: "Sequence[_EvaluatedModel]") -> None:
    """Note which part of the text is measured, and whether each model was trained on it."""
    from llmcli.evaluation.training_text import is_held_out, trained_in, trained_part

    if trained.contents:
        parts = [
            f"{part.document.name} from byte {part.start:,} on" if part.start else part.document.name
            for part in measured.contents
        ]
        console.note(
            f"{trained.text_bytes:,} bytes of this text were trained on; {measured.text_bytes:,} others "
            f"are measured: {units.listed(parts, MAX_NAMES)} (--whole measures all)"
        )
    for model in models:
        records, path = model.source.records, model.path
        if earlier := _earlier_stages(trained, records):
            console.note(f"{path}: trained on some of the {trained.text_bytes:,} bytes {earlier}")
        if any(trained_in(measured, record) for record in records):
            earlier = _earlier_stages(measured, records)
            when = f" ({earlier})" if earlier else ""
            is_all = trained_part(measured, records).text_bytes == measured.text_bytes
            share = "all" if is_all else "some"
            console.note(
                f"{path}: trained on {share} of this text{when}, so its scores do not measure generalization"
            )
        else:
            held_out = [record for record in records if is_held_out(measured, record)]
            _note_held_out(model, "this text", "was", held_out)


def _note_held_out(
    model: _EvaluatedModel, what: str, verb: str, held_out: "Sequence[TrainingRecord]"
) -> None:
    """Note that the training runs `held_out` held out `what`, or that a model's record does not say."""
    from llmcli.evaluation.figures import known_text
    from llmcli.evaluation.training_text import names_training_data

    if held_out:
        known = known_text(max(record.held_out.known_share for record in held_out))
        console.note(f"{model.path}: {what} {verb} held out in training{known and f', but {known}'}")
    elif not any(map(names_training_data, model.source.records)):
        console.note(f"{model.path}: has no record of its training data, so {what} may be part of it")


def _earlier_stages(text: "Corpus", records: "Sequence[TrainingRecord]") -> str:
    """Describe the stages before the model's own run in which it was trained on part of a text."""
    from llmcli.evaluation.training_text import trained_in

    stages = [stage for record in records for stage in trained_in(text, record)]
    return ", ".join(dict.fromkeys(filter(None, stages)))


def _first_byte(text: "Corpus", measured: "Corpus") -> int:
    """Return the position of the first byte that is measured in a text."""
    first = measured.contents[0]
    before = itertools.takewhile(lambda part: part.document != first.document, text.contents)
    return sum(part.text_bytes for part in before) + first.start


def _baselines(text: "Corpus", trained: "Corpus") -> "list[Baseline]":
    """Measure compressors, best first. They read the models' training text first."""
    from llmcli.evaluation import compressors

    end = min(text.text_bytes, MAX_COMPRESSED_BYTES)
    if end < text.text_bytes:
        console.note(f"xz and PPM compress only the first {end:,} bytes of the text")
    past_start = max(0, trained.text_bytes - compressors.max_past_bytes())
    baselines = compressors.baselines(text.cut(0, end).utf8(), trained.cut(past_start).utf8())
    if trained.text_bytes:
        shorter = [f"{b.past_bytes:,} ({b.name})" for b in baselines if b.past_bytes < trained.text_bytes]
        limits = f"; only the last {', '.join(shorter)}" if shorter else ""
        console.note(f"compressors first read the {trained.text_bytes:,} bytes of the training text{limits}")
    return sorted(baselines, key=lambda baseline: baseline.bits_per_byte)


# ---- conversations


def _evaluate_answers(
    options: _Options,
    models: "Sequence[_EvaluatedModel]",
    chats: "Sequence[_EvaluatedModel]",
    sources: "Sources",
) -> None:
    """Measure and print. Raises LLMError if there is also text, or a model that has no chat template."""
    from llmcli.evaluation.training_text import (
        changed_files_note,
        find_small_training_texts,
        measured_conversations,
    )

    files = sources.conversation_files
    if sources.text.documents:
        text = sources.text.documents[0].name
        other = files[0].name
        raise usage(f"{text} is text and {other} has conversations; measure one kind at a time")
    if others := [model for model in models if model not in chats]:
        raise LLMError(
            f"{others[0].path} has no chat template, so its answers cannot be measured; leave it out"
        )
    trained = [
        conversation
        for model in models
        for text in find_small_training_texts(model.source.records, model.path)
        for conversation in text.conversations
    ]
    measured = measured_conversations(files, _records(models), trained, whole=options.whole)
    if not trained and (note := changed_files_note(sources, _records(models))):
        console.note(note)
    _note_trained_and_held_out(models, measured, {file.sha256 for file in files})
    if options.choices is not None:
        _evaluate_choices(options, models, measured.conversations, files)
        return
    if options.known_answers:
        _evaluate_known_answers(options, models, measured)
        return
    file = files[0].name if len(files) == 1 else None
    scores = [_answer_score(model, measured.conversations, file) for model in models]
    print_scores(scores, [], 0, json_=options.json)


def _note_trained_and_held_out(
    models: "Sequence[_EvaluatedModel]", measured: "MeasuredConversations", hashes: set[str]
) -> None:
    """Note which of the conversations in files with these hashes the models were trained on, and which were
    held out."""
    from llmcli.evaluation.training_text import held_out_files

    is_rest = measured.trained > 0 and not measured.contains_training
    if measured.contains_training:
        share = "all" if measured.trained == len(measured.conversations) else "some"
        console.note(
            f"a model was trained on {share} of these conversations, "
            "so its score does not measure generalization"
        )
    elif is_rest:
        console.note(
            f"{measured.trained:,} conversations were trained on; the {len(measured.conversations):,} others "
            "are measured (--whole measures all)"
        )
    for model in models:
        held_out = [
            record
            for record in model.source.records
            if hashes <= held_out_files(record)
            or (is_rest and hashes <= {file.sha256 for file in record.conversation_files})
        ]
        _note_held_out(model, "these conversations", "were", held_out)


def _answer_score(
    model: _EvaluatedModel, conversations: "list[Conversation]", file: str | None
) -> dict[str, Any]:
    from llmcli.evaluation.answers import measure_answers
    from llmcli.evaluation.exact_answers import score_exact

    with model.opened() as (runtime, context):
        assistant = model.assistant(runtime)
        result = measure_answers(conversations, runtime, assistant.template, context, model.show_progress)
        show_progress = partial(model.show_progress, document="exact answers")
        exact, questions = score_exact(conversations, assistant, show_progress)
    if result.truncated or result.left_out:
        console.note(
            f"{model.name}: {result.truncated:,} conversations are truncated to the context of {context:,} "
            f"tokens, {result.left_out:,} have no answer within it"
        )
    return score_record(
        model.name,
        file,
        result.score,
        context,
        context,
        of="answers",
        conversations=result.conversations,
        exact=exact,
        questions=questions,
    )


def _evaluate_known_answers(
    options: _Options, models: "Sequence[_EvaluatedModel]", measured: "MeasuredConversations"
) -> None:
    """Measure how well each model chooses the last answers of conversations among its known answers, and
    print it."""
    from llmcli.cli.reports.evaluation import print_known_scores
    from llmcli.data.conversations.split import answer_hash
    from llmcli.evaluation.exact_answers import last_answers, score_known
    from llmcli.formats.training_record import KnownAnswers
    from llmcli.generation.known_answers import AnswerFinder, open_known_answers

    held_out = {
        answer_hash(messages[-1].content, answer)
        for messages, answer in last_answers(measured.conversations if measured.trained else ())
        if not measured.contains_training
    }
    scores = []
    for model in models:
        known = open_known_answers(model.source)
        with model.opened() as (runtime, _):
            # the file stores these too
            pairs = tuple(pair for pair in known.pairs if answer_hash(*pair) not in held_out)
            finder = AnswerFinder(
                KnownAnswers(
                    pairs=pairs, min_confidence=known.min_confidence, network_weight=known.network_weight
                )
            )
            conversations = measured.conversations
            assistant = model.assistant(runtime)
            score = score_known(conversations, assistant, finder, model.show_progress)
            scores.append((model.name, score, known.min_confidence))
    print_known_scores(scores, json_=options.json)


def _evaluate_choices(
    options: _Options,
    models: "Sequence[_EvaluatedModel]",
    conversations: "list[Conversation]",
    files: "Sequence[ConversationFile]",
) -> None:
    """Measure how well each model chooses the last answers of conversations, and print it."""
    from llmcli.cli.reports.choices import print_label_scores
    from llmcli.evaluation.labels import score_labels
    from llmcli.generation.choices import check_choices

    if options.choices == "answers":
        choices = list(
            dict.fromkeys(
                conversation.messages[-1].content.strip()
                for file in files
                for conversation in file.conversations
            )
        )
        check_choices(choices, "--choices answers")
    else:
        choices = read_choices(str(options.choices), strips=True)
    scores = []
    for model in models:
        with model.opened() as (runtime, _):
            score = score_labels(conversations, model.assistant(runtime), choices, model.show_progress)
            scores.append((model.name, score))
    print_label_scores(scores, json_=options.json)
