"""Corpus and conversations -> training and held-out tokens, tokenizer, plan and the start of the training record."""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli import units
from llmcli.config import MAX_DEFAULT_VOCAB_SIZE, MIN_DEFAULT_VOCAB_SIZE, ModelConfig
from llmcli.data.text.corpus import Corpus
from llmcli.data.text.documents import Document
from llmcli.data.text.split import CorpusSplit, split
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokenizers.training import TRAINING_BYTES, nearest_power_of_two, train_tokenizer
from llmcli.data.tokens.corpus_tokens import TokenizingProgress, tokenize_in_shards
from llmcli.data.tokens.shards import TokenShards
from llmcli.data.tokens.tokens import count_bytes, tokenize, used_tokens
from llmcli.evaluation.training_text import trained_part, untrained_part
from llmcli.formats.training_stages import Record
from llmcli.training.data.conversations import (
    ConversationInputs,
    EncodedConversations,
    PreparedConversations,
    corpus_record,
)
from llmcli.training.planning import conversation_rules, recipe, rules
from llmcli.training.planning.cost_model import Machine
from llmcli.training.planning.plan import Plan, PlanRow, Regularization, Request
from llmcli.training.planning.planner import make_plan

MAX_HELD_OUT_BYTES = 64_000_000  # of held-out text that are read, sampled evenly: an evaluation never covers more
NOTED_BYTES = 4_000_000  # that a tokenizer is trained on: a note, for it takes seconds
MAX_TEMPORARY_BYTES = 64_000_000  # of training text whose tokens are not cached: a few seconds make them again

TokenIds = NDArray[np.unsignedinteger]
SEEN_NOTE = (
    "the base model was trained on the held-out {0}, so the figures will not measure new {0}; hold out other {0}: "
    "--val FILE"
)


@dataclass(frozen=True)
class Prepared:
    """A plan with the tokens to train on."""

    plan: Plan
    tokenizer: Tokenizer
    split: CorpusSplit
    tokens: TokenIds | TokenShards  # training text; may be empty if there are conversations
    held_out: TokenIds  # validation text; may be empty
    record: dict[str, Any]  # the corpus, for the training record
    max_bytes: int = sys.maxsize  # of training text that the time budget allows for
    base: ModelConfig | None = None  # the model to fine-tune
    encoded: EncodedConversations | None = None
    conversations: PreparedConversations | None = None  # as the context of the plan has space for them
    # the plan for another speed of the machine, after some seconds of the time budget
    plan_again: Callable[[Machine, float], Plan] | None = field(default=None, compare=False, repr=False)

    def training_text(self) -> Iterator[Iterator[str]]:
        """The text of `tokens`: one iterator of pieces for each of its parts."""
        return self.split.training.sample(self.max_bytes).texts()

    def with_plan(self, plan: Plan) -> "Prepared":
        """The same for another plan; the conversations are fitted into its context, and recorded."""
        if self.encoded is None:
            return replace(self, plan=plan)
        fitted = self.encoded.fit(plan.train.context)
        record = self.record | {
            "held_out": fitted.held_out_record(self.tokenizer, self.record["held_out"].get("files", [])),
            "conversations": fitted.record(self.tokenizer),
        }
        return replace(self, plan=plan, conversations=fitted, record=record)

    def regularization(self, request: Request) -> Callable[[float], Regularization]:
        """The regularization by the number of epochs, which the trainer asks for again when that becomes clear."""
        packed = self.encoded.size.packed(self.plan.train.context).tokens if self.encoded else 0

        def by_epochs(epochs: float) -> Regularization:
            model, tokens = self.plan.model, len(self.tokens) + packed
            if len(self.tokens):
                return rules.regularization(request, model, tokens, epochs)
            return Regularization(conversation_rules.dropout(request, model, tokens, epochs, self.base).value, 0.0)

        return by_epochs


def prepare(
    request: Request,
    corpus: Corpus,
    machine: Machine | None = None,
    *,
    held_out: Corpus | float = recipe.HELD_OUT,
    tokenizer: Tokenizer | None = None,
    characters: bool = False,
    base: ModelConfig | None = None,
    tokenizer_reason: str = "from the tokenizer given",
    conversations: ConversationInputs | None = None,
    max_bytes: int | None = None,
    base_record: Record | None = None,
    on_note: Callable[[str], None] = lambda note: None,
    elapsed: Callable[[], float] = lambda: 0.0,
) -> Prepared:
    """Split the corpus, train a tokenizer unless one is given, tokenize, plan.

    `held_out` is another corpus, or a share of this one to hold out. `characters` makes each character a
    token. `max_bytes` of training text are read; by default the time budget limits them. `base` is the model to
    fine-tune, if any, and `base_record` its training record. `tokenizer_reason` says where a given tokenizer comes
    from. With `conversations` the corpus may be empty. `elapsed` returns how many seconds of the time budget are over.
    Raises LLMError when the corpus is too short, or no conversation
    has an answer.
    """
    max_bytes = max_bytes or _max_bytes(request)
    text = _without_text_of_base(_split(corpus, held_out), base_record)
    divided = conversations.divide(max_bytes, [base_record] if base_record else []) if conversations else None
    if tokenizer is None:
        size = min(text.training.text_bytes, max_bytes, TRAINING_BYTES)
        if size >= NOTED_BYTES:
            on_note(f"training a tokenizer on {units.size(size)} of text")
        tokenizer, tokenizer_reason = train_tokenizer(
            text.training, request.vocab_size,
            max_vocab_size=_max_vocab_size(request), max_bytes=max_bytes, characters=characters,
            contents=divided.texts() if divided else (), content_bytes=divided.text_bytes if divided else 0,
        )  # fmt: skip
    tokens = _training_tokens(text.training, max_bytes, tokenizer, on_note)
    held_out_tokens = tokenize(text.held_out.sample(_max_held_out_bytes(text, max_bytes)).texts(), tokenizer)
    encoded = divided.encode(tokenizer) if divided else None
    train_bytes = text.training.text_bytes
    read_bytes = train_bytes if train_bytes <= max_bytes else _text_bytes(tokens, tokenizer)
    vocab_size, eos_id = tokenizer.vocab_size, tokenizer.eos_id
    corpus_row = PlanRow("corpus", f"{corpus.text_bytes:,} bytes", _description(text, read_bytes))
    vocabulary_row = PlanRow("vocabulary", f"{vocab_size} tokens", tokenizer_reason)
    corpus_rows = [corpus_row] if corpus.documents or not encoded else []

    def plan_for(machine: Machine | None, seconds_spent: float) -> Plan:
        plan = make_plan(
            request,
            train_tokens=len(tokens),
            train_bytes=read_bytes,
            vocab_size=vocab_size,
            eos_id=eos_id,
            base=base,
            machine=machine,
            conversations=encoded.size if encoded else None,
            seconds_spent=seconds_spent,
        )
        if encoded:
            return _with_conversations(plan, encoded, corpus_rows, vocabulary_row)
        return replace(plan, rows=(*corpus_rows, vocabulary_row, *plan.rows))

    plan = plan_for(machine, elapsed())
    record = _record(corpus, text, read_bytes, len(tokens), len(held_out_tokens))
    if base_record and trained_part(text.held_out, [base_record]).contents:
        record["held_out"]["seen_by_base"] = True
        on_note(SEEN_NOTE.format("text"))
    if divided and divided.seen_by_base:
        on_note(SEEN_NOTE.format("conversations"))
    seen_bytes = _seen_bytes(tokens, encoded, tokenizer, base is not None)
    if seen_bytes:
        record["seen_bytes"] = seen_bytes.hex()
    tokenizer = tokenizer.with_seen_bytes(seen_bytes)
    if encoded:
        record["corpus"] += corpus_record(encoded.divided.inputs.files)
        # as it is opened with the model: answers to questions end
        tokenizer = tokenizer.with_eos_ids(plan.model.extra_eos_ids)
    prepared = Prepared(plan, tokenizer, text, tokens, held_out_tokens, record, max_bytes, base, encoded)
    return replace(prepared, plan_again=plan_for).with_plan(plan)


def _with_conversations(
    plan: Plan, encoded: EncodedConversations, corpus_rows: list[PlanRow], vocabulary_row: PlanRow
) -> Plan:
    """Complete the plan of a run on conversations, after text if there are `corpus_rows`."""
    assert plan.conversations
    stop_ids = {*plan.model.extra_eos_ids, *encoded.template.stop_ids} - {plan.model.eos_token_id}
    conversation_rows = encoded.fit(plan.train.context).rows("conversations" if corpus_rows else "corpus")
    return replace(
        plan,
        model=replace(plan.model, extra_eos_ids=tuple(sorted(stop_ids))),
        rows=(*corpus_rows, *conversation_rows, vocabulary_row, *plan.rows),
        conversations=replace(plan.conversations, new_tokens=encoded.divided.inputs.new_tokens),
    )


def _split(corpus: Corpus, held_out: Corpus | float) -> CorpusSplit:
    if isinstance(held_out, float):
        return split(corpus, held_out)
    names = ", ".join(Path(document.name).name for document in held_out.documents)
    return CorpusSplit(corpus, held_out, names, is_from_corpus=False)


def _without_text_of_base(text: CorpusSplit, base_record: Record | None) -> CorpusSplit:
    """The split without held-out text that the base model was trained on: it cannot measure what either model says of
    new text. If there is no other held-out text, it stays."""
    held_out = untrained_part(text.held_out, [base_record]) if base_record else text.held_out
    seen = text.held_out.text_bytes - held_out.text_bytes
    if not seen or not held_out.contents:
        return text
    rule = f"{text.rule}, without {seen:,} bytes that the base model was trained on"
    left_out = dict(text.left_out)
    kept = {part.document: part.text_bytes for part in held_out.contents}
    for part in text.held_out.contents if text.is_from_corpus else ():
        if size := part.text_bytes - kept.get(part.document, 0):
            left_out[part.document] = left_out.get(part.document, 0) + size
    return replace(text, held_out=held_out, rule=rule, left_out=left_out)


def _description(text: CorpusSplit, read_bytes: int) -> str:
    """The split in words, for the plan; `read_bytes` of the training text are used."""
    train_bytes, held_out_bytes = text.training.text_bytes, text.held_out.text_bytes
    if not held_out_bytes:
        description = f"{train_bytes:,} for training, nothing held out"
    elif text.is_from_corpus:
        description = f"{train_bytes:,} for training, {held_out_bytes:,} held out: {text.rule}"
    else:
        description = f"all for training; held out: the {held_out_bytes:,} bytes of {text.rule}"
    if read_bytes < train_bytes:
        description += f"; the time budget allows for {read_bytes:,} bytes of training text, sampled evenly"
    return description


def _max_held_out_bytes(text: CorpusSplit, max_bytes: int) -> int:
    """Bytes of held-out text to read: of a corpus of which a part is read, as large a part."""
    held_out_bytes = text.held_out.text_bytes
    if text.is_from_corpus and held_out_bytes:
        max_bytes = max(1, round(max_bytes * held_out_bytes / (text.training.text_bytes + held_out_bytes)))
    return min(max_bytes, MAX_HELD_OUT_BYTES)


def _training_tokens(
    training: Corpus, max_bytes: int, tokenizer: Tokenizer, on_note: Callable[[str], None]
) -> TokenIds | TokenShards:
    """The tokens of the training text that the run reads; those of a long text are cached."""
    size, read = min(training.text_bytes, max_bytes), training.sample(max_bytes)
    if size <= MAX_TEMPORARY_BYTES:
        return tokenize(TokenizingProgress(size, 0, on_note).counted(read.texts()), tokenizer)
    return tokenize_in_shards(read.contents, tokenizer, on_note)


def _text_bytes(tokens: TokenIds | TokenShards, tokenizer: Tokenizer) -> int:
    """The number of bytes that tokens stand for."""
    return tokens.text_bytes if isinstance(tokens, TokenShards) else count_bytes(tokens, tokenizer.byte_lengths)


def _byte_values(tokens: TokenIds | TokenShards, tokenizer: Tokenizer) -> frozenset[int]:
    """The byte values that occur in the text of tokens."""
    if isinstance(tokens, TokenShards):
        return tokens.seen_bytes
    return frozenset(b"".join(tokenizer.token_bytes[i] for i in used_tokens(tokens, tokenizer.vocab_size)))


def _record(corpus: Corpus, text: CorpusSplit, read_bytes: int, tokens: int, held_out_tokens: int) -> dict[str, Any]:
    """The corpus as the training record describes it."""
    held_out: dict[str, Any] = {"bytes": text.held_out.text_bytes, "tokens": held_out_tokens, "from": text.rule}
    ends: dict[Document, dict[str, int]] = {}
    if text.is_from_corpus:
        ends = {part.document: {"held_out": part.text_bytes} for part in text.held_out.contents}
        for document, size in text.left_out.items():
            ends[document] = ends.get(document, {}) | {"left_out": size}
    else:
        held_out["files"] = [_document_record(document) for document in text.held_out.documents]
    return {
        "corpus": [_document_record(document) | ends.get(document, {}) for document in corpus.documents],
        "train_bytes": text.training.text_bytes,
        "read_bytes": read_bytes,  # of them
        "train_tokens": tokens,
        "held_out": held_out,
    }


def _document_record(document: Document) -> dict[str, Any]:
    columns = {"columns": list(document.columns)} if document.columns else {}
    return {"name": document.relative_name, "bytes": document.text_bytes, "sha256": document.sha256, **columns}


def _seen_bytes(
    tokens: TokenIds | TokenShards,
    conversations: EncodedConversations | None,
    tokenizer: Tokenizer,
    fine_tunes: bool,
) -> bytes | None:
    """The byte values that occur in the training text and conversations, and, for fine-tuning, in the text of the base
    model; None where the latter are not known."""
    before = tokenizer.seen_bytes if fine_tunes else b""
    if before is None:
        return None
    learned = _byte_values(conversations.training.ids, tokenizer) if conversations else frozenset()
    return bytes(sorted({*before, *_byte_values(tokens, tokenizer), *learned}))


def _max_bytes(request: Request) -> int:
    """Bytes of training text to read: more could not be seen in the time budget, but reading and tokenizing them would
    take time."""
    if math.isinf(request.core_seconds):
        return sys.maxsize
    factor = recipe.GPU_BYTES_FACTOR if request.device == "cuda" else recipe.CPU_BYTES_FACTOR
    return max(recipe.MIN_BYTES, int(factor * request.core_seconds**recipe.BYTES_EXPONENT))


def _max_vocab_size(request: Request) -> int:
    """The largest vocabulary for the time budget: the output layer takes its time from the other layers."""
    if math.isinf(request.core_seconds) or request.device == "cuda":
        return MAX_DEFAULT_VOCAB_SIZE
    return nearest_power_of_two(
        recipe.VOCABULARY_FACTOR * math.sqrt(request.core_seconds), MIN_DEFAULT_VOCAB_SIZE, MAX_DEFAULT_VOCAB_SIZE
    )
