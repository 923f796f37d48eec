"""`llm eval`: measure how well models predict a text."""

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmcli.cli.options import (
    DeviceOption,
    JsonOption,
    NoCacheOption,
    QuantizeOption,
    QuietOption,
    column_option,
    model_path,
    note_skipped_files,
    pairs_option,
    plain_option,
    reading,
    reject_options,
    speakers_option,
)
from llmcli.cli.reports.evaluation import ModelScore, TokenSurprisals, baseline_json, print_scores
from llmcli.cli.terminal import console
from llmcli.config import DEFAULT_MODEL, EVALUATION_CONTEXT
from llmcli.errors import LLMError, usage

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from llmcli.data.conversations.chat_template import ChatTemplate
    from llmcli.data.conversations.messages import Conversation
    from llmcli.data.sources import Sources
    from llmcli.data.text.corpus import Corpus
    from llmcli.data.tokenizers.tokenizer import Tokenizer
    from llmcli.evaluation.compressors import Baseline
    from llmcli.evaluation.evaluator import Passage, Score
    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.formats.ensemble_file import Ensemble
    from llmcli.models.runtime import Runtime

    OnTokens = Callable[[NDArray[np.integer], NDArray[np.floating]], None]

MAX_COMPRESSED_BYTES = 1 << 26  # of text: the compressors hold it in memory
MAX_NAMES = 3  # of documents that a note lists


def eval_(
    context_: typer.Context,
    texts: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT", help="Text to measure: files, directories or globs, also .gz; - reads standard input."
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            metavar="FILE",
            help=f"Model to measure; can be repeated (default: $LLMCLI_MODEL or {DEFAULT_MODEL}).",
        ),
    ] = None,
    past: Annotated[
        list[str] | None,
        typer.Option(
            "--past",
            metavar="FILE",
            help="Text that the compressors read first; can be repeated (default: the models' training text).",
        ),
    ] = None,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="Measure all of a text that a model was trained on, not only what was held out."),
    ] = False,
    per_token: Annotated[
        bool,
        typer.Option("--per-token", help="Show the surprisal of each token and the most surprising passages."),
    ] = False,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            metavar="N",
            min=2,
            help=f"Context length in tokens (default: that of the model, at most {EVALUATION_CONTEXT}, or that of its "
            "training if longer).",
        ),
    ] = None,
    quantize: QuantizeOption = None,
    no_cache: NoCacheOption = False,
    device: DeviceOption = "cpu",
    speakers: Annotated[str | None, speakers_option()] = None,
    pairs: Annotated[bool, pairs_option()] = False,
    column: Annotated[str | None, column_option()] = None,
    plain: Annotated[bool, plain_option()] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure bits per byte and perplexity on text or answers.

    The compressors xz and PPM are measured on the same text as baselines. Lower is better; 8 bits per byte is a
    uniform guess over all byte values.

    Example: llm eval held-out.txt -m a.safetensors -m b.safetensors
    """
    from llmcli.data.sources import ReadingProgress, check_reading, read_sources
    from llmcli.data.text.corpus import Corpus
    from llmcli.evaluation.training_text import recorded_reading, trained_part, untrained_part
    from llmcli.formats.loading import load_any

    if per_token:
        reject_options(context_, "with --per-token", "past")
        if len(model or ()) > 1:
            raise usage(f"--per-token shows one model, found {len(model or ())}; name one with -m")
    models = {path: load_any(path) for path in (model_path(name) for name in model or (None,))}
    typed = reading(speakers, pairs, column, plain)
    how = typed
    records = [record for source in models.values() for record in source.records]
    if not typed.is_requested:  # as in training
        how = replace(recorded_reading(records), speakers=typed.speakers)
    templates = _chat_templates(models)
    sources = read_sources(texts, how, text_only=not templates, on_read=ReadingProgress(None, console.note))
    check_reading(typed, [sources])
    if any(group.detail for group in sources.groups()):  # not only plain text
        for note in (sources.describe(), *sources.notes):
            console.note(note)
    if templates:
        if sources.conversation_files:
            reject_options(context_, "with conversations", "past", "per_token")
            answers = _AnswerEvaluation(sources, templates, device, context, whole, cache=not no_cache)
            answers.show(models, quantize, json_=json_)
            return
        _note_speakers(models)
    text = sources.text
    note_skipped_files(text)
    past_text = read_sources(past, how, text_only=True).text if past else None
    measured = text if whole else untrained_part(text, records)
    measured = measured if measured.contents else text
    trained = trained_part(text, records) if measured.text_bytes < text.text_bytes else Corpus(())
    _note_training_text(measured, trained, models)
    evaluation = _Evaluation(measured, device, context, cache=not no_cache)
    if per_token:
        [(path, source)] = models.items()
        _show_surprisals(evaluation.surprisals(path, source, quantize), _first_byte(text, measured), json_=json_)
    else:
        scores = evaluation.scores(models, quantize)
        files = list(dict.fromkeys(score.file for score in scores))
        baselines = _baselines(measured, past_text, trained)
        if json_:
            console.json_result({
                "results": [score.as_json() for score in scores],
                "baselines": [baseline_json(baseline, files[-1]) for baseline in baselines],
                "from_byte": _first_byte(text, measured),
            })  # fmt: skip
        else:
            print_scores(scores, baselines, files[-1])


def _note_speakers(models: dict[Path, "Checkpoint | Ensemble"]) -> None:
    """Say of a text that is measured as plain text how a model that was trained with --speakers reads it as turns."""
    from llmcli.evaluation.training_text import recorded_speakers

    for path, source in models.items():
        if speakers := recorded_speakers(source.records):
            names = ",".join(speakers)
            console.note(f"{path}: trained on turns of {names}; to measure the answers in such a text: "
                         f"--speakers {shlex.quote(names)}")  # fmt: skip


def _note_training_text(measured: "Corpus", trained: "Corpus", models: dict[Path, "Checkpoint | Ensemble"]) -> None:
    """Say which part of the text is measured, and what each model has to do with it."""
    from llmcli.evaluation.training_text import is_held_out, trained_in, trained_part

    if trained.contents:
        console.note(
            f"{trained.text_bytes:,} bytes of this text were trained on; the {measured.text_bytes:,} others are "
            f"measured: {_listed(measured)} (--whole measures all)"
        )
    for path, source in models.items():
        if earlier := _earlier_stages(trained, source):
            console.note(f"{path}: trained on some of the {trained.text_bytes:,} bytes {earlier}")
        if any(trained_in(measured, record) for record in source.records):
            earlier = _earlier_stages(measured, source)
            when = f" ({earlier})" if earlier else ""
            is_all = trained_part(measured, source.records).text_bytes == measured.text_bytes
            share = "all" if is_all else "some"
            console.note(f"{path}: trained on {share} of this text{when}, so its scores do not measure generalization")
        elif any(is_held_out(measured, record) for record in source.records):
            console.note(f"{path}: this text was held out in training")
        elif not any(record.get("corpus") or record.get("earlier_stages") for record in source.records):
            console.note(f"{path}: has no record of its training text, so this text may be part of it")


def _earlier_stages(text: "Corpus", source: "Checkpoint | Ensemble") -> str:
    """The stages in which a model was trained on any of a text, other than the run that made it."""
    from llmcli.evaluation.training_text import trained_in

    stages = [stage for record in source.records for stage in trained_in(text, record)]
    return ", ".join(dict.fromkeys(filter(None, stages)))


def _listed(measured: "Corpus") -> str:
    """Which parts of documents are measured."""
    parts = [
        f"{part.document.name} from byte {part.start:,} on" if part.start else part.document.name
        for part in measured.contents
    ]
    more = f" and {len(parts) - MAX_NAMES:,} more documents" if len(parts) > MAX_NAMES else ""
    return ", ".join(parts[:MAX_NAMES]) + more


def _first_byte(text: "Corpus", measured: "Corpus") -> int:
    """The position in a text of the first byte that is measured."""
    part, first = measured.contents[0], 0
    for one in text.contents:
        if one.document == part.document:
            return first + part.start
        first += one.text_bytes
    return 0


# ---- models


@dataclass(frozen=True)
class _Evaluation:
    """What is measured, and how."""

    text: "Corpus"
    device: str
    context: int | None  # requested context length
    cache: bool  # whether the models use their n-gram caches

    def scores(self, models: dict[Path, "Checkpoint | Ensemble"], quantize: str | None) -> list[ModelScore]:
        """The score of each model on each document and on all together, the best first for each document; with
        `quantize` also of the quantized models."""
        scores = [
            score
            for path, source in models.items()
            for kind in dict.fromkeys([None, quantize])
            for score in self._model_scores(path, source, kind)
        ]
        if not scores:
            raise self._nothing_measured()
        files = list(dict.fromkeys(score.file for score in scores))
        return sorted(scores, key=lambda score: (files.index(score.file), round(score.score.bits_per_byte, 6)))

    def _model_scores(self, path: Path, source: "Checkpoint | Ensemble", quantize: str | None) -> Iterator[ModelScore]:
        """The score of one model on each document, and on all together if there are several."""
        from llmcli.evaluation.evaluator import Score, evaluation_context, passages, stride, trained_context

        name = f"{path}, {quantize}" if quantize else str(path)
        runtime, tokenizer = self._open(source, quantize)
        documents = passages(self.text)
        total = Score(0.0, 0, 0)
        try:
            context = evaluation_context(runtime.context, self.context, trained_context(source.records))
            step = stride(context)
            _note_windows(name, context, step, runtime.context)
            for document in documents:
                score = _measure(document, name, runtime, tokenizer, context)
                total += score
                if score.tokens:
                    yield ModelScore(name, document.name, score, context, step)
        except LLMError as error:
            raise LLMError(f"{path}: {error}", error.exit_code) from error
        if len(documents) > 1:
            yield ModelScore(name, None, total, context, step)

    def surprisals(self, path: Path, source: "Checkpoint | Ensemble", quantize: str | None) -> TokenSurprisals:
        """The surprisal of each token under one model."""
        import numpy as np

        from llmcli.evaluation.evaluator import Score, evaluation_context, passages, trained_context

        ids: list[int] = []
        bits: list[float] = []
        files: list[str] = []
        first_tokens: list[int] = []
        total = Score(0.0, 0, 0)

        def add_tokens(tokens: "NDArray[np.integer]", nats: "NDArray[np.floating]") -> None:
            ids.extend(tokens.tolist())
            bits.extend((np.asarray(nats, np.float64) / math.log(2)).tolist())

        runtime, tokenizer = self._open(source, quantize)
        try:
            context = evaluation_context(runtime.context, self.context, trained_context(source.records))
            for document in passages(self.text):
                first_tokens.append(len(ids))
                files.append(document.name)
                total += _measure(document, str(path), runtime, tokenizer, context, add_tokens)
        except LLMError as error:
            raise LLMError(f"{path}: {error}", error.exit_code) from error
        if not ids:
            raise self._nothing_measured()
        return TokenSurprisals(str(path), tokenizer, ids, bits, files, first_tokens, total)

    def _open(self, source: "Checkpoint | Ensemble", quantize: str | None) -> "tuple[Runtime, Tokenizer]":
        from llmcli.formats.loading import open_tokenizer
        from llmcli.models.open_runtime import open_runtime

        runtime = open_runtime(source, self.device, quantize, console.note, cache=self.cache)
        return runtime, open_tokenizer(source)

    def _nothing_measured(self) -> LLMError:
        return LLMError("the text has no tokens to measure; add --whole to measure what was trained on too")


# ---- conversations


def _chat_templates(models: dict[Path, "Checkpoint | Ensemble"]) -> "dict[Path, ChatTemplate]":
    """The chat templates of the models that have one."""
    from llmcli.formats.loading import open_chat_template, open_tokenizer

    templates = {}
    for path, source in models.items():
        if '"chat_template"' in source.shared.tokenizer_config_json:  # else the tokenizer need not be opened yet
            try:
                template = open_chat_template(source, open_tokenizer(source))
            except LLMError as error:
                raise LLMError(f"{path}: {error}", error.exit_code) from error
            if template is not None:
                templates[path] = template
    return templates


@dataclass(frozen=True)
class _AnswerEvaluation:
    """Which answers are measured, and how."""

    sources: "Sources"
    templates: "dict[Path, ChatTemplate]"
    device: str
    context: int | None  # requested context length
    whole: bool
    cache: bool  # whether the models use their n-gram caches

    def show(self, models: dict[Path, "Checkpoint | Ensemble"], quantize: str | None, *, json_: bool) -> None:
        """Measure and print. Raises LLMError if there is also text, or a model that has no chat template."""
        from llmcli.evaluation.held_out_conversations import measured_conversations
        from llmcli.evaluation.training_text import held_out_files

        files = self.sources.conversation_files
        if self.sources.text.documents:
            text, other = self.sources.text.documents[0].name, files[0].name
            raise usage(f"{text} is text and {other} holds conversations; measure one kind at a time")
        for path in models:
            if path not in self.templates:
                raise LLMError(f"{path} has no chat template, so its answers cannot be measured; leave it out")
        records = [record for source in models.values() for record in source.records]
        measured = measured_conversations(files, records, whole=self.whole)
        if measured.contains_training:
            console.note(
                "a model was trained on some of these conversations, so its score does not measure generalization"
            )
        elif measured.trained:
            console.note(
                f"{measured.trained:,} conversations were trained on; the {len(measured.conversations):,} others are "
                "measured (--whole measures all)"
            )
        for path, source in models.items():
            if any({file.sha256 for file in files} <= held_out_files(record) for record in source.records):
                console.note(f"{path}: these conversations were held out in training")
        scores = [
            self._score(path, source, kind, measured.conversations)
            for path, source in models.items()
            for kind in dict.fromkeys([None, quantize])
        ]
        scores.sort(key=lambda score: round(score.score.bits_per_byte, 6))
        if json_:
            console.json_result({"results": [score.as_json() for score in scores], "baselines": [], "from_byte": 0})
        else:
            print_scores(scores, [], None)

    def _score(
        self, path: Path, source: "Checkpoint | Ensemble", quantize: str | None, conversations: "list[Conversation]"
    ) -> ModelScore:
        from llmcli.evaluation.answers import measure_answers
        from llmcli.evaluation.evaluator import evaluation_context, trained_context
        from llmcli.models.open_runtime import open_runtime

        name = f"{path}, {quantize}" if quantize else str(path)

        def show_progress(share: float) -> None:
            console.status(f"{share:4.0%}  {name}")

        try:
            runtime = open_runtime(source, self.device, quantize, console.note, cache=self.cache)
            context = evaluation_context(runtime.context, self.context, trained_context(source.records))
            result = measure_answers(conversations, runtime, self.templates[path], context, show_progress)
        except LLMError as error:
            raise LLMError(f"{path}: {error}", error.exit_code) from error
        finally:
            console.status("")
        if result.truncated or result.left_out:
            console.note(
                f"{name}: {result.truncated:,} conversations are truncated to the context of {context:,} tokens, "
                f"{result.left_out:,} have no answer within it"
            )
        files = self.sources.conversation_files
        file = files[0].name if len(files) == 1 else None
        return ModelScore(name, file, result.score, context, context, result.conversations)


def _note_windows(name: str, context: int, stride: int, model_context: int) -> None:
    longer = f" (of {model_context:,}; --context changes it)" if context < model_context else ""
    console.note(
        f"{name}: context windows of {context:,} tokens{longer}, stride {stride:,}; each token is predicted from "
        f"at least {stride:,} preceding tokens (fewer only at the start of a text)"
    )


def _measure(
    document: "Passage",
    name: str,
    runtime: "Runtime",
    tokenizer: "Tokenizer",
    context: int,
    on_tokens: "OnTokens" = lambda ids, nats: None,
) -> "Score":
    """The score of a model on a document, with progress on stderr."""
    from llmcli.evaluation.evaluator import measure

    def show_progress(share: float) -> None:
        console.status(f"{share:4.0%}  {name}  {document.name}")

    try:
        return measure(document, runtime, tokenizer, show_progress, on_tokens, context=context)
    finally:
        console.status("")


def _show_surprisals(surprisals: TokenSurprisals, from_byte: int, *, json_: bool) -> None:
    import numpy as np

    from llmcli.evaluation.evaluator import most_surprising

    spans = most_surprising(np.array(surprisals.bits), breaks=surprisals.first_tokens)
    if json_:
        console.json_result(surprisals.as_json(spans, from_byte))
    else:
        surprisals.show(spans)


# ---- compressors


def _baselines(text: "Corpus", past_text: "Corpus | None", trained: "Corpus") -> "list[Baseline]":
    """Compressors on the measured text, the best first. They first read `past_text`, or else what the models were
    trained on."""
    from llmcli.evaluation import compressors

    end = min(text.text_bytes, MAX_COMPRESSED_BYTES)
    if end < text.text_bytes:
        console.note(f"xz and PPM compress only the first {end:,} bytes of the text")
    past = past_text or trained
    past_start = max(0, past.text_bytes - compressors.max_past_bytes())
    baselines = compressors.baselines(text.cut(0, end).utf8(), past.cut(past_start).utf8())
    if past.text_bytes:
        limited = ", ".join(f"{b.name} {b.past_bytes:,}" for b in baselines if b.past_bytes < past.text_bytes)
        only_the_end = f", but use only the last of them: {limited}" if limited else ""
        source = "the --past text" if past_text else "the training text"
        console.note(f"xz and PPM first read {past.text_bytes:,} bytes of {source}{only_the_end}")
    return sorted(baselines, key=lambda baseline: baseline.bits_per_byte)
