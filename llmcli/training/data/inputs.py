"""The inputs of a training run: texts, conversations, their held-out parts, models and a tokenizer."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from llmcli import units
from llmcli.config import EMBEDDING, HEAD
from llmcli.data.conversations.chat_template import ChatTemplate
from llmcli.data.conversations.messages import learned_answers
from llmcli.data.conversations.record_kinds import ReadOptions
from llmcli.data.files import ConversationFile
from llmcli.data.reading_progress import reading_progress
from llmcli.data.sources import Sources, check_reading, read_sources
from llmcli.data.text.boilerplate import SUGGESTED_SHARE, estimate
from llmcli.data.text.corpus import Corpus
from llmcli.data.text.dataset_directory import HELD_OUT, TRAINING
from llmcli.data.tokenizers.tokenizer import read_tokenizer
from llmcli.errors import LLMError, OnNote, usage
from llmcli.formats import loading
from llmcli.formats.atomic_io import reject_overwriting
from llmcli.formats.checkpoint import Checkpoint, ComputedTensors
from llmcli.formats.huggingface.names import local_path
from llmcli.models.runtime import Array
from llmcli.training.planning import recipe

# minimum for a new model; with less, it would only memorize
MIN_TEXT_BYTES = 1000
MIN_ANSWERS = 5
MIN_FINE_TUNING_BYTES = 100  # minimum for fine-tuning; one answer is enough
NOTHING = Sources(Corpus(()), ())
EXAMPLES = "https://github.com/llmcli/llmcli/tree/main/examples"


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run."""

    sources: Sources  # texts and conversations
    validation: Sources = NOTHING  # validation files
    held_out: float = recipe.HELD_OUT  # fraction to hold out of a kind of data without validation files
    base: Checkpoint | None = None  # the model to fine-tune
    base_path: Path | None = None
    base_sha256: str = ""
    template: ChatTemplate | None = None  # the base model's own; None: ChatML
    new_tokens: int = 0  # appended to the base model's vocabulary for ChatML
    like: Checkpoint | None = None  # the model whose tokenizer and context length are used
    tokenizer: str = "bpe"  # or "char" or a file
    tokenizer_json: str | None = None  # an existing tokenizer; None: a new one is trained
    tokenizer_reason: str = ""
    reading: ReadOptions = field(default_factory=ReadOptions)
    # a line about the kinds of files, and lines about what was left out
    notes: list[str] = field(default_factory=list)

    @property
    def corpus(self) -> Corpus:
        """Plain text; may be empty if there are conversations."""
        return self.sources.text

    @property
    def files(self) -> tuple[ConversationFile, ...]:
        """Conversation files."""
        return self.sources.conversation_files


def load_inputs(
    corpus: Sequence[str] | Sources,
    val: str | float | None,
    base: Path | None,
    like: Path | None,
    tokenizer: str,
    output: Path,
    *,
    reading: ReadOptions | None = None,
    seconds: float | None = None,
    on_note: OnNote = lambda note: None,
) -> Inputs:
    """Open the models and read the texts and conversations. Raises LLMError, for instance if the output would
    overwrite an input, or if reading takes too many of the `seconds` of the time budget."""
    base, like = (path and local_path(path, on_note, progress=sys.stderr.isatty()) for path in (base, like))
    base_model = loading.load(base) if base else None
    like_model = loading.load_any(like).shared if like else None
    reading = reading or ReadOptions()
    progress = reading_progress(seconds, on_note)
    if not isinstance(corpus, Sources):
        splits = (TRAINING, HELD_OUT) if val is None else (TRAINING,)
        corpus = read_sources(corpus, reading, splits=splits, on_read=progress)
    sources, val_sources = corpus.divided()
    reading = replace(reading, boilerplate=sources.boilerplate)
    fraction = recipe.HELD_OUT
    if isinstance(val, str) and Path(val).exists():
        val_sources = read_sources([val], reading, on_read=progress)
    elif val is not None:
        fraction = _fraction(val)
    check_reading(reading, (sources, val_sources))
    sources, left_out = _with_enough_text(sources, fine_tunes=base is not None)
    _check_kinds(val_sources, sources)
    _check_output(sources, val_sources, output)
    base_sha256 = loading.fingerprint(base_model) if base_model else ""
    template = None
    new_tokens = 0
    if base_model and sources.conversation_files:
        base_model, template, new_tokens = with_chat_format(base_model)
    tokenizer_json, reason = _existing_tokenizer(tokenizer, base_model, like_model, output)
    notes = [sources.describe(), *sources.notes, *left_out, *val_sources.notes]
    notes += _boilerplate_note(sources, reading)
    return Inputs(
        sources,
        val_sources,
        fraction,
        base_model,
        base,
        base_sha256,
        template,
        new_tokens,
        like_model,
        tokenizer,
        tokenizer_json,
        reason,
        reading,
        notes,
    )


def _boilerplate_note(sources: Sources, reading: ReadOptions) -> list[str]:
    """Suggest the option that cuts boilerplate, if there is much of it."""
    share = 0.0 if reading.strip_boilerplate else estimate(sources.text.documents)
    if share < SUGGESTED_SHARE:
        return []
    return [
        f"about {share:.0%} of the text is boilerplate that documents repeat; to cut it: `strip_boilerplate`"
    ]


def _check_kinds(held_out: Sources, sources: Sources) -> None:
    """Raise LLMError if there are validation files of a kind (text or conversations) that the training data
    lack."""
    if held_out.text.documents and not sources.text.documents:
        name = held_out.text.documents[0].name
        raise LLMError(f"`val` {name} has no conversations; name a file of conversations, or a fraction")
    if held_out.conversation_files and not sources.conversation_files:
        name = held_out.conversation_files[0].name
        raise LLMError(f"`val` {name} has conversations, but the training data are plain text; name a text")


def _fraction(val: str | float) -> float:
    """Parse a value of --val that is not a file. Raises LLMError."""
    try:
        fraction = float(val)
    except ValueError:
        raise LLMError(f"`val` {val} is neither a file nor a fraction of the corpus such as 0.1") from None
    if not 0 <= fraction < 1:
        raise usage(f"`val` must be a file, or a fraction from 0 (nothing held out) to below 1, found {val}")
    return fraction


def _check_output(sources: Sources, val: Sources, output: Path) -> None:
    """Raise LLMError if the output would overwrite an input file."""
    for each in (sources, val):
        texts = [document.path for document in each.text.documents]
        reject_overwriting(output, "model", texts, "the training text")
        files = [file.path for file in each.conversation_files]
        reject_overwriting(output, "model", files, "a file of conversations")


def _with_enough_text(sources: Sources, *, fine_tunes: bool) -> tuple[Sources, list[str]]:
    """Leave out text shorter than a window if there are also conversations; also return notes about it.
    Raises LLMError if there is too little text, or too few answers to learn from."""
    wanted, answers_wanted = (MIN_FINE_TUNING_BYTES, 1) if fine_tunes else (MIN_TEXT_BYTES, MIN_ANSWERS)
    size = sources.text.text_bytes
    advice = f"add more; examples: {EXAMPLES}"
    names = units.listed([document.name for document in sources.text.documents], 3)
    answers = sum(len(learned_answers(conversation.messages)) for conversation in sources.conversations)
    if size < wanted and 0 < answers < answers_wanted:
        raise LLMError(
            f"{units.count(answers, 'answer')} to learn; wanted at least {answers_wanted}, and several "
            f"hundred for a model that answers new questions; {advice}"
        )
    if size >= wanted or not size:
        return sources, []
    actual = units.count(size, "byte")
    if not answers:
        more = "" if fine_tunes else ", and 100,000 for a model that writes words"
        raise LLMError(f"{names} is too short: {actual} of text; wanted at least {wanted:,}{more}; {advice}")
    note = f"left out {names}: {actual} of plain text in addition to conversations; wanted {wanted:,} or more"
    return replace(sources, text=Corpus((), sources.text.skipped, sources.text.not_read)), [note]


def _existing_tokenizer(
    tokenizer: str, base: Checkpoint | None, like: Checkpoint | None, output: Path
) -> tuple[str | None, str]:
    """Return (tokenizer.json of --tokenizer or of another model, None if a tokenizer is trained; reason)."""
    if tokenizer not in ("bpe", "char"):
        reject_overwriting(output, "model", [Path(tokenizer)], "the tokenizer to use")
        return read_tokenizer(tokenizer, "bpe, char or a tokenizer.json")[0], "from the tokenizer given"
    if base:
        return base.tokenizer_json, "from the base model"
    return (like.tokenizer_json, "same as the --like model") if like else (None, "")


# ---- base models whose vocabulary lacks the tokens of a chat template


def with_chat_format(base: Checkpoint) -> tuple[Checkpoint, ChatTemplate | None, int]:
    """Add the tokens of its chat template (or ChatML) to a base model, in unused rows of the embeddings if
    there are any. Returns (model, its own template or None, number of tokens appended to the vocabulary)."""
    tokenizer = loading.open_tokenizer(base)
    template = loading.open_chat_template(base, tokenizer)
    first = tokenizer.vocab_size
    if template is not None or (extended := tokenizer.with_chat_tokens()).vocab_size == first:
        return base, template, 0
    config = replace(base.config, vocab_size=max(base.config.vocab_size, extended.vocab_size))
    count = extended.vocab_size - first

    def compute(name: str) -> Array:
        """Append rows with the mean of the existing rows, so that a new token starts out as likely as an
        average token."""
        tensor = base.tensors[name]
        if name not in (EMBEDDING, HEAD):
            return tensor
        known = tensor[:first]
        mean = known.mean(axis=0, dtype=np.float64).astype(np.float32)
        return np.concatenate([known, np.tile(mean, (count, 1)), tensor[first + count :]])

    tensors = ComputedTensors(base.tensors, compute)
    return replace(base, config=config, tensors=tensors, tokenizer_source=extended.to_json()), None, count
