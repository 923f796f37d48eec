"""Preparation of a run: split, tokenizer, tokens, plan, and the part of the training record about the
data."""

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmcli import units
from llmcli.config import MAX_DEFAULT_VOCAB_SIZE, MIN_DEFAULT_VOCAB_SIZE
from llmcli.data.conversations.example_prompt import example_prompts
from llmcli.data.text.corpus import Corpus
from llmcli.data.text.decoding import Document
from llmcli.data.text.line_kinds import LineKind, line_kind
from llmcli.data.text.repetitions import find_repetitions
from llmcli.data.text.split import CorpusSplit, split
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokenizers.training import TRAINING_BYTES, nearest_power_of_two, train_tokenizer
from llmcli.data.tokens.corpus_tokens import tokenize_corpus
from llmcli.data.tokens.tokens import TokenIds, count_bytes, tokenize, used_tokens
from llmcli.errors import LLMError, OnNote
from llmcli.evaluation.figures import known_text
from llmcli.evaluation.memorization import occurring_lines
from llmcli.evaluation.training_text import (
    changed_files_note,
    find_small_training_texts,
    recorded_path,
    untrained_part,
)
from llmcli.formats import atomic_io, loading, training_stages
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.training_record import TrainingRecord
from llmcli.training.data.conversations import (
    DividedConversations,
    PreparedConversations,
    corpus_record,
    divide_conversations,
    file_entry,
)
from llmcli.training.data.inputs import MIN_FINE_TUNING_BYTES, MIN_TEXT_BYTES, Inputs
from llmcli.training.planning import recipe
from llmcli.training.planning.cost_model import CorpusSize, Machine, estimated_speed
from llmcli.training.planning.plan import EpochSearch, Plan, PlanRequest, PlanRow
from llmcli.training.planning.planner import make_plan
from llmcli.training.planning.task import Task

# maximum bytes of held-out text to read, sampled evenly; an evaluation never covers more
MAX_HELD_OUT_BYTES = 64_000_000
NOTED_BYTES = 4_000_000  # training a tokenizer on more text takes seconds, so a note is shown
NOTED_SEARCH_BYTES = 200_000_000  # the same for searching a training text
# tokens at the start of a text that are searched for a prompt, and that determine the kind of its lines
MAX_PROMPT_SEARCH_TOKENS = 4_000

SEEN_NOTE = (
    "the base model was trained on the held-out {0}, so the figures will not measure new {0}; hold out other "
    "{0}: `val` FILE"
)


@dataclass(frozen=True)
class Prepared:
    """A plan with the tokens to train on."""

    inputs: Inputs
    plan: Plan
    task: Task
    tokenizer: Tokenizer
    split: CorpusSplit
    training_text: Corpus  # the part of it that the run reads
    tokens: TokenIds  # tokens of `training_text`; may be empty if there are conversations
    held_out: TokenIds  # validation text; may be empty
    max_bytes: int = sys.maxsize  # training text that fits the time budget
    conversations: PreparedConversations | None = None  # fitted to the plan's context
    # the part about the data, which `prepare` adds
    record: TrainingRecord = field(default_factory=TrainingRecord)

    def _beginning(self, ids: TokenIds) -> str:
        """Return the first documents of a text, joined by line ends."""
        tokenizer = self.tokenizer
        documents = itertools.groupby(ids[:MAX_PROMPT_SEARCH_TOKENS].tolist(), tokenizer.eos_id.__ne__)
        return "\n".join(tokenizer.decode(list(document)) for is_text, document in documents if is_text)

    def example_prompt(self) -> str | None:
        """Return the start of a sentence in the held-out (or else the training) text, for trying the
        model."""
        for ids, starts_inside in ((self.held_out, True), (self.tokens, False)):
            if prompts := example_prompts(self._beginning(ids), starts_inside=starts_inside):
                return prompts[0]
        return None

    def line_kind(self) -> LineKind | None:
        """Return the kind of lines in the training text, judged by its beginning."""
        return line_kind(self._beginning(self.tokens))

    def second_run(self, search: EpochSearch, spent: float) -> "Prepared":
        """Return the same data, a text, with the plan of the second run, for the time budget minus the
        `spent` seconds. Other shapes are assumed to have the same ratio of measured to estimated speed as the
        first run's."""
        first = self.plan
        task = replace(self.task, seconds_spent=spent, search=search)
        assert first.expected
        faster = first.expected.tokens_per_second / estimated_speed(first.model, first.train)
        machine = Machine(lambda model, settings, seconds: faster * estimated_speed(model, settings, seconds))
        corpus, vocabulary, *_ = first.rows
        return replace(self, plan=_with_data(make_plan(task, machine), [corpus, vocabulary], None))


def prepare(
    request: PlanRequest,
    inputs: Inputs,
    machine: Machine | None = None,
    *,
    output: Path | None = None,
    stopped_plan: Plan | None = None,
    tokenizer: Tokenizer | None = None,
    max_bytes: int | None = None,
    on_note: OnNote = lambda note: None,
    elapsed: Callable[[], float] = lambda: 0.0,
) -> Prepared:
    """Split the corpus, train a tokenizer unless there is one, tokenize, and plan, unless there is a
    `stopped_plan`. At most `max_bytes` of training text are read (default: by the time budget; `elapsed`
    seconds of it have passed)."""
    max_bytes = max_bytes or _max_bytes(request)
    text, read, held_out, divided = _divide(inputs, max_bytes, on_note)
    reason = inputs.tokenizer_reason
    if tokenizer is None:
        tokenizer, reason = _trained_tokenizer(request, inputs, text, read, divided, on_note)
    tokens = tokenize_corpus(read.contents, tokenizer, on_note)
    held_out_tokens = tokenize(held_out.texts(), tokenizer)
    encoded = divided.encode(tokenizer) if divided else None
    if (read_bytes := text.training.text_bytes) > max_bytes:  # only a part was read
        read_bytes = count_bytes(tokens, tokenizer.byte_lengths)
    task = Task(
        request,
        CorpusSize(len(tokens), read_bytes),
        tokenizer.vocab_size,
        tokenizer.eos_id,
        inputs.base.config if inputs.base else None,
        encoded.size if encoded else None,
        seconds_spent=elapsed(),
        has_few_words=_has_few_words(request, inputs, tokenizer, text.training.text_bytes),
    )
    plan = stopped_plan or make_plan(task, machine)
    conversations = encoded.fit(plan.train.context) if encoded else None
    if stopped_plan is None:
        rows = [PlanRow("vocabulary", f"{tokenizer.vocab_size} tokens", reason)]
        if inputs.corpus.documents or not encoded:
            rows.insert(0, _corpus_row(inputs.corpus.text_bytes, text, read_bytes))
        plan = _with_data(plan, rows, conversations)
    if text.seen_by_base:
        on_note(SEEN_NOTE.format("text"))
    if divided and divided.seen_by_base:
        on_note(SEEN_NOTE.format("conversations"))
    seen_bytes = _seen_bytes(tokens, encoded, tokenizer, fine_tunes=inputs.base is not None)
    prepared = Prepared(
        inputs,
        plan,
        task,
        tokenizer.for_model(seen_bytes, plan.model.extra_eos_ids if encoded else ()),
        text,
        read,
        tokens,
        held_out_tokens,
        max_bytes,
        conversations,
    )
    return replace(prepared, record=_record(prepared, output))


def _divide(
    inputs: Inputs, max_bytes: int, on_note: OnNote
) -> tuple[CorpusSplit, Corpus, Corpus, DividedConversations | None]:
    """Return (split of the text, training text to read, held-out text to read, conversations)."""
    records = [inputs.base.record] if inputs.base else []
    base_texts = find_small_training_texts(records, inputs.base_path) if inputs.base_path else []
    if not base_texts and (note := changed_files_note(inputs.sources, records)):
        on_note(note)
    text = _without_text_of_base(_split(inputs), records)
    held_out = text.held_out.sample(_max_held_out_bytes(text, max_bytes))
    text, read = _without_repetitions(text, held_out, max_bytes, on_note)
    known_share = text.known_share
    for base_text in base_texts:
        new = base_text.others(held_out)
        found = find_repetitions(base_text.corpus, new, keeps_training=True).known_share
        known_share = max(known_share, found * new.text_bytes / max(1, held_out.text_bytes))
    divided = None
    if inputs.files:
        base_conversations = [
            conversation for base_text in base_texts for conversation in base_text.conversations
        ]
        divided = divide_conversations(inputs, max_bytes, base_conversations)
        if held_out.contents:
            divided, share = divided.without(held_out, text)
            known_share = max(known_share, share)
        divided = divided.compared_with([read, *(base_text.corpus for base_text in base_texts)])
    return replace(text, known_share=known_share), read, held_out, divided


def _with_data(plan: Plan, rows: Sequence[PlanRow], conversations: PreparedConversations | None) -> Plan:
    """Complete a plan with what depends on the data: the first `rows`, of which the last is the vocabulary,
    and the tokens of a chat template."""
    if conversations is None or plan.conversations is None:
        return replace(plan, rows=(*rows, *plan.rows))
    stop_ids = {*plan.model.extra_eos_ids, *conversations.template.stop_ids} - {plan.model.eos_token_id}
    about_conversations = conversations.rows("conversations" if len(rows) > 1 else "corpus")
    return replace(
        plan,
        model=replace(plan.model, extra_eos_ids=tuple(sorted(stop_ids))),
        rows=(*rows[:-1], *about_conversations, rows[-1], *plan.rows),
        conversations=replace(plan.conversations, new_tokens=conversations.divided.inputs.new_tokens),
    )


def _trained_tokenizer(
    request: PlanRequest,
    inputs: Inputs,
    text: CorpusSplit,
    read: Corpus,
    divided: DividedConversations | None,
    on_note: OnNote,
) -> tuple[Tokenizer, str]:
    """Train a tokenizer on the text to read. Returns (tokenizer, reason for its vocabulary size)."""
    size = min(read.text_bytes, TRAINING_BYTES)
    if size >= NOTED_BYTES:
        on_note(f"training a tokenizer on {units.size(size)} of text")
    largest = MAX_DEFAULT_VOCAB_SIZE
    # a large output layer takes time from the other layers
    if request.device != "cuda" and request.has_time_budget:
        best = recipe.VOCABULARY_FACTOR * math.sqrt(request.core_seconds)
        largest = nearest_power_of_two(best, MIN_DEFAULT_VOCAB_SIZE, MAX_DEFAULT_VOCAB_SIZE)
    training = divided.split.training if divided else []
    return train_tokenizer(
        read,
        request.vocab_size,
        max_vocab_size=largest,
        characters=inputs.tokenizer == "char",
        contents=divided.texts() if divided else (),
        other_bytes=text.training.text_bytes
        - read.text_bytes
        + sum(conversation.text_bytes for conversation in training),
    )


def _has_few_words(request: PlanRequest, inputs: Inputs, tokenizer: Tokenizer, text_bytes: int) -> bool:
    """Return whether the tokenizer of the run has fewer tokens than it may have, because no pair was left to
    merge: each word is one token. In short texts most pairs occur once and are not merged."""
    is_own = inputs.tokenizer == "bpe" and inputs.tokenizer_json is None and request.vocab_size is None
    return is_own and tokenizer.vocab_size < MIN_DEFAULT_VOCAB_SIZE and text_bytes > recipe.SEARCH_MAX_BYTES


def _split(inputs: Inputs) -> CorpusSplit:
    """Hold out a part of the text. Raises LLMError if `val` leaves too little for training, or holds out
    nothing."""
    corpus, held_out = inputs.corpus, inputs.held_out
    if documents := inputs.validation.text.documents:
        names = ", ".join(dict.fromkeys(document.short_name for document in documents))
        return CorpusSplit(corpus, inputs.validation.text, names, is_from_corpus=False)
    text = split(corpus, held_out)
    wanted = MIN_FINE_TUNING_BYTES if inputs.base else MIN_TEXT_BYTES
    left = text.training.text_bytes
    if not corpus.documents:
        return text
    if held_out > recipe.HELD_OUT and left < wanted:
        found = f"leaves {units.count(left, 'byte')} of the text for training; wanted at least {wanted:,}"
        advice = "less"
    elif 0 < held_out < recipe.HELD_OUT and not text.held_out.text_bytes:
        found = f"holds out nothing of {units.count(left, 'byte')} of text"
        advice = "more"
    else:
        return text
    raise LLMError(f"`val` {held_out:g} {found}; hold out {advice}: `val` {recipe.HELD_OUT}")


def _without_text_of_base(text: CorpusSplit, records: list[TrainingRecord]) -> CorpusSplit:
    """Remove held-out text that the base model was trained on, unless that is all of it."""
    held_out = untrained_part(text.held_out, records)
    seen = text.held_out.text_bytes - held_out.text_bytes
    if not seen or not held_out.contents:
        return replace(text, seen_by_base=seen > 0)
    rule = f"{text.rule}, without {seen:,} bytes that the base model was trained on"
    return replace(text, held_out=held_out, rule=rule)


def _without_repetitions(
    text: CorpusSplit, held_out: Corpus, max_bytes: int, on_note: OnNote
) -> tuple[CorpusSplit, Corpus]:
    """Leave out training text that repeats `held_out`, unless that is the file of --val. Returns (split,
    training text to read)."""
    read = text.training.sample(max_bytes)
    if held_out.contents and read.text_bytes >= NOTED_SEARCH_BYTES:
        on_note(f"searching {units.size(read.text_bytes)} of training text for held-out passages")
    repetitions = find_repetitions(
        read, held_out, versions=text.versions, keeps_training=not text.is_from_corpus
    )
    if repetitions.left_out:
        text = replace(
            text, rule=f"{text.rule}; {repetitions.left_out:,} bytes elsewhere, which repeat it, are left out"
        )
    if read is text.training:
        text = replace(text, training=repetitions.training)
    known_share = max(repetitions.known_share, _known_rows(repetitions.training, held_out))
    return replace(text, known_share=known_share), repetitions.training


def _known_rows(training: Corpus, held_out: Corpus) -> float:
    """Return the share of held-out text in rows of tables that are also in the training text. The search for
    passages does not find short rows, which have other neighbors there. Only tables whose rows are one line
    each are compared: in others, lines such as those of a template repeat without their rows."""
    lines: list[str] = []
    for part in held_out.contents:
        if part.document.columns and not part.document.template:
            rows = "".join(part.text()).strip().split("\n\n")
            lines += [] if any("\n" in row for row in rows) else map(str.strip, rows)
    if not lines:
        return 0.0
    occurring = occurring_lines(set(lines), training.texts())
    return sum(len(line.encode("utf-8")) for line in lines if line in occurring) / held_out.text_bytes


def _corpus_row(corpus_bytes: int, text: CorpusSplit, read_bytes: int) -> PlanRow:
    """Describe the corpus and its split for the plan; `read_bytes` of the training text are used."""
    train_bytes = text.training.text_bytes
    held_out_bytes = text.held_out.text_bytes
    if not held_out_bytes:
        description = f"{train_bytes:,} for training, nothing held out"
    elif text.is_from_corpus:
        description = f"{train_bytes:,} for training, {held_out_bytes:,} held out: {text.rule}"
    else:
        description = f"all for training; held out: the {held_out_bytes:,} bytes of {text.rule}"
    if known := known_text(text.known_share):
        description += f"; {known}"
    if read_bytes < train_bytes:
        description += f"; the time budget allows for {read_bytes:,} bytes of training text, sampled evenly"
    return PlanRow("corpus", f"{corpus_bytes:,} bytes", description)


def _max_held_out_bytes(text: CorpusSplit, max_bytes: int) -> int:
    """Return the bytes of held-out text to read; if it was split from the corpus, read the same share as of
    the training text."""
    held_out_bytes = text.held_out.text_bytes
    if text.is_from_corpus and held_out_bytes:
        max_bytes = max(1, round(max_bytes * held_out_bytes / (text.training.text_bytes + held_out_bytes)))
    return min(max_bytes, MAX_HELD_OUT_BYTES)


def _byte_values(tokens: TokenIds, tokenizer: Tokenizer) -> frozenset[int]:
    """Return the byte values that occur in the text of the tokens."""
    return frozenset(b"".join(tokenizer.token_bytes[i] for i in used_tokens(tokens, tokenizer.vocab_size)))


def _record(prepared: Prepared, output: Path | None) -> TrainingRecord:
    """Describe the data and the base model for the training record, with the paths of files relative to the
    `output`."""
    inputs = prepared.inputs
    documents = inputs.corpus.documents
    text = prepared.split
    tokenizer = prepared.tokenizer
    ends: dict[Document, dict[str, int]] = {}
    if text.is_from_corpus:
        ends = {part.document: {"held_out": part.text_bytes} for part in text.held_out.contents}
        trained = {part.document: part.end for part in text.training.contents}  # of several parts, the last
        for document in documents:
            known = ends.get(document, {})
            if left_out := document.text_bytes - trained.get(document, 0) - known.get("held_out", 0):
                ends[document] = known | {"left_out": left_out}
    entries = [
        *(file_entry(file.relative_name, file) | ends.get(file, {}) for file in documents),
        *corpus_record(inputs.files),
    ]
    for file, entry in zip((*documents, *inputs.files), entries, strict=True):
        if output and (path := recorded_path(file.path, output)):
            entry["path"] = path
    record = {
        "corpus": entries,
        "train_bytes": text.training.text_bytes,
        "read_bytes": prepared.task.text.bytes,  # part of train_bytes
        "train_tokens": len(prepared.tokens),
        "held_out": _held_out_record(prepared),
    }
    if tokenizer.seen_bytes:
        record["seen_bytes"] = tokenizer.seen_bytes.hex()
    if conversations := prepared.conversations:
        record["conversations"] = conversations.record(tokenizer)
    if inputs.base and inputs.base_path:
        record |= _base_record(inputs.base, inputs.base_path, inputs.base_sha256)
    if reading := inputs.reading.as_record():
        record["reading"] = reading
    return TrainingRecord.from_json(record)


def _held_out_record(prepared: Prepared) -> dict[str, Any]:
    """Describe the held-out answers of conversations or, without conversations, the held-out text."""
    text = prepared.split
    chats = prepared.conversations
    divided = chats.divided if chats else text
    size, tokens = text.held_out.text_bytes, len(prepared.held_out)
    if chats:
        size, tokens = chats.held_out.answer_bytes(prepared.tokenizer.byte_lengths), chats.held_out.targets
    record: dict[str, Any] = {"bytes": size, "tokens": tokens, "from": divided.rule}
    if chats:
        record["of"] = "answers"
    if divided.known_share:
        record["known_share"] = round(divided.known_share, 4)
    texts = () if text.is_from_corpus else text.held_out.documents
    files = corpus_record(prepared.inputs.validation.conversation_files)
    if files := [*(file_entry(file.relative_name, file) for file in texts), *files]:
        record["files"] = files
    if divided.seen_by_base:
        record["seen_by_base"] = True
    return record


def _base_record(base: Checkpoint, path: Path, sha256: str) -> dict[str, Any]:
    """Describe the base model and its origin for the training record."""
    name = atomic_io.name_of(path.resolve())
    entries: dict[str, Any] = {"base": {"file": name, "sha256": sha256}}
    entries |= training_stages.joined(training_stages.as_earlier(base.record, training_stages.BASE, name))
    if source := loading.source_fingerprint(base):
        entries["base"]["source_sha256"] = source
    if base.record.imported is not None:
        entries["imported"] = base.record.imported
    return entries


def _seen_bytes(
    tokens: TokenIds, conversations: PreparedConversations | None, tokenizer: Tokenizer, fine_tunes: bool
) -> bytes | None:
    """Return the byte values that the model has seen, including those of its base model; None if these are
    unknown."""
    before = tokenizer.seen_bytes if fine_tunes else b""
    if before is None:
        return None
    answers = _byte_values(conversations.training.ids, tokenizer) if conversations else frozenset()
    return bytes(sorted({*before, *_byte_values(tokens, tokenizer), *answers}))


def _max_bytes(request: PlanRequest) -> int:
    """Return the maximum bytes of training text to read: as many as can be trained on in the time budget."""
    if not request.has_time_budget:
        return sys.maxsize
    factor = recipe.GPU_BYTES_FACTOR if request.device == "cuda" else recipe.CPU_BYTES_FACTOR
    return max(recipe.MIN_BYTES, int(factor * request.core_seconds**recipe.BYTES_EXPONENT))
