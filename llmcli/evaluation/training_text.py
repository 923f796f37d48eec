"""A model's training text, found by its record: names, sizes and sha256 hashes of the files.

A record includes earlier stages of training, such as the base model's (formats/training_stages.py).
"""

import itertools
import os
import sys
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmcli import units
from llmcli.data.conversations import split
from llmcli.data.conversations.messages import Conversation
from llmcli.data.conversations.record_kinds import ReadOptions
from llmcli.data.conversations.turns import speakers_in
from llmcli.data.files import ConversationFile
from llmcli.data.sources import Sources, read_if_possible, was_in_memory
from llmcli.data.text.corpus import Corpus, DocumentPart
from llmcli.data.text.decoding import Document
from llmcli.errors import LLMError
from llmcli.formats.training_record import Reading, Stage, TrainingFile, TrainingRecord
from llmcli.formats.training_stages import CACHE, all_stages, describe

MAX_SMALL_BYTES = 16_000_000  # total size of the training files on disk
MAX_NAMES = 3  # files listed in a note
Records = Sequence[TrainingRecord]  # one model has one, an ensemble has several
_JOINED = 1_000  # conversations searched at a time
SEPARATOR = "\ud800"  # between messages: half of a surrogate pair, which occurs in no text


# ---- texts


def trained_lengths(stages: Iterable[Stage]) -> dict[str, int]:
    """Map the sha256 of each text to the number of bytes at its beginning that any stage was trained on; 0
    for a held-out text. Inconsistent stages are left out."""
    return {sha256: trained for sha256, (trained, _) in _divisions(stages).items()}


def _divisions(stages: Iterable[Stage]) -> dict[str, tuple[int, int]]:
    """Map the sha256 of each text to (trained bytes at its beginning, start of the rest). What a stage left
    out before a held-out end repeats it, and belongs to neither; the end of a near-duplicate that was left
    out is the rest."""
    divisions: dict[str, tuple[int, int]] = {}
    for stage in stages:
        for text, trained in zip(stage.texts, _trained_bytes(stage), strict=False):
            rest = text.bytes - text.held_out if text.held_out else trained
            longest = divisions.get(text.sha256, (0, 0))
            divisions[text.sha256] = max(trained, longest[0]), max(rest, longest[1])
    return divisions


def _trained_bytes(stage: Stage) -> list[int]:
    """Return the number of trained bytes of each text; [] if the record does not have it."""
    sizes = [text.bytes for text in stage.texts]
    if any(text.held_out is not None for text in stage.texts):
        return [text.bytes - (text.held_out or 0) - text.left_out for text in stage.texts]
    total = stage.train_bytes  # earlier versions trained on all but the end of the whole corpus
    if total is None or total > sum(sizes):
        return []
    starts = itertools.accumulate(sizes, initial=0)
    return [min(size, max(0, total - start)) for start, size in zip(starts, sizes, strict=False)]


def _divide(corpus: Corpus, stages: Iterable[Stage]) -> Iterator[tuple[DocumentPart, DocumentPart]]:
    """Yield (part that any stage was trained on, rest) of each text."""
    known = _divisions(stages)
    for part in corpus.contents:
        division = known.get(part.document.sha256, (0, 0))
        end, start = (min(max(part.start, position), part.end) for position in division)
        yield DocumentPart(part.document, part.start, end), DocumentPart(part.document, start, part.end)


def trained_part(corpus: Corpus, records: Records) -> Corpus:
    """Return the part of the corpus that any model was trained on, according to the records."""
    return Corpus.of_parts(part for part, _ in _divide(corpus, all_stages(records)))


def untrained_part(corpus: Corpus, records: Records) -> Corpus:
    """Return the part of the corpus that no model was trained on, without what repeats it; it may be
    empty."""
    return Corpus.of_parts(part for _, part in _divide(corpus, all_stages(records)))


def trained_in(corpus: Corpus, record: TrainingRecord) -> list[str]:
    """Describe the stages in which a model was trained on any of this text, by file hashes; "" stands for the
    run that made the model."""
    hashes = {document.sha256 for document in corpus.documents}
    return [
        describe(stage)
        for stage in record.stages
        if not hashes.isdisjoint(file.sha256 for file in stage.conversation_files)
        or any(part.text_bytes for part, _ in _divide(corpus, [stage]))
    ]


def is_held_out(corpus: Corpus, record: TrainingRecord) -> bool:
    """Return whether a text was held out when a model was trained, as part of its corpus or as a separate
    file."""
    files = held_out_files(record)
    trained = trained_lengths(record.stages)
    return bool(corpus.contents) and all(
        part.document.sha256 in files or part.start >= trained.get(part.document.sha256, sys.maxsize)
        for part in corpus.contents
    )


def names_training_data(record: TrainingRecord) -> bool:
    """Return whether a record has the hash of any training file; the record of an exported model has
    none."""
    return any(file.sha256 for stage in record.stages for file in stage.corpus)


def held_out_files(record: TrainingRecord) -> set[str]:
    """Return the sha256 of each text or conversation file that --val named when a model was trained."""
    return {file.sha256 for stage in record.stages for file in stage.held_out.files}


# ---- conversations


@dataclass(frozen=True)
class MeasuredConversations:
    """The conversations on which the answers of models are measured."""

    conversations: list[Conversation]
    # number of conversations that a model was trained on; they are left out, unless no others remain
    trained: int
    contains_training: bool  # True if all are measured although a model was trained on some


def measured_conversations(
    files: Sequence[ConversationFile],
    records: Records,
    others: Iterable[Conversation] = (),
    *,
    whole: bool = False,
) -> MeasuredConversations:
    """Select the conversations that no model was trained on; all conversations if there are none, or if
    `whole`. `others` are training conversations in other files."""
    conversations = [conversation for file in files for conversation in file.conversations]
    known = split.answers(others)
    trained = _trained_in_any(files, records)
    trained |= {i for i, conversation in enumerate(conversations) if split.is_known(conversation, known)}
    rest = split.divide(conversations, [i for i in range(len(conversations)) if i not in trained]).held_out
    if whole or not rest:
        return MeasuredConversations(conversations, len(trained), bool(trained))
    return MeasuredConversations(rest, len(conversations) - len(rest), False)


def trained_indices(files: Sequence[ConversationFile], stage: Stage) -> set[int]:
    """Return the indices, counted over all files, of the conversations that a stage was trained on, and of
    their duplicates."""
    shares = stage.conversations
    repeated = set((shares and shares.repeated) or ())
    count = sum(entry.conversations for entry in stage.conversation_files)  # 0 in a damaged record
    validation = [file for file in stage.held_out.files if file.shape is not None]
    copies: dict[str, list[tuple[int, int]]] = {}  # sha256 -> (index of the first conversation, number)
    start = 0
    for entry in (*stage.conversation_files, *validation) if count else ():
        copies.setdefault(entry.sha256, []).append((start, entry.conversations))
        start += entry.conversations
    trained: set[int] = set()
    first = 0
    for file in files:
        number = len(file.conversations)
        for start, recorded_number in copies.get(file.sha256, ()):
            # read with other options than in training, so any of them may have been trained on
            share = (shares and shares.held_out_share) or 0.0 if number == recorded_number else 0.0
            for i in range(start, start + number):
                is_held_out = i >= count or split.is_held_out(i, count, share)
                if not is_held_out or i in repeated:
                    trained.add(first + i - start)
        first += number
    return trained


def _trained_in_any(files: Sequence[ConversationFile], records: Records) -> set[int]:
    return set[int]().union(*(trained_indices(files, stage) for stage in all_stages(records)))


# ---- both


@dataclass(frozen=True)
class TrainingText:
    """The texts (or parts of texts) and the conversations that a model was trained on."""

    corpus: Corpus
    files: tuple[ConversationFile, ...] = ()
    conversations: Sequence[Conversation] = field(default=(), repr=False)  # conversations in these files
    # sha256 of each file that was trained on or held out with this text
    recorded: frozenset[str] = frozenset()

    @classmethod
    def of(cls, sources: Sources, records: Records, *, whole: bool = False) -> "TrainingText":
        """Select the parts that were trained on according to the records. Other files are kept whole, as are
        all files with `whole`."""
        if whole:
            return cls(sources.text, sources.conversation_files, sources.conversations)
        known = trained_lengths(all_stages(records))
        divided = _divide(sources.text, all_stages(records))
        parts = [trained if trained.document.sha256 in known else rest for trained, rest in divided]
        conversations, files = sources.conversations, sources.conversation_files
        if trained_on := _trained_in_any(files, records):
            conversations = [conversations[i] for i in sorted(trained_on)]
        return cls(Corpus.of_parts(parts), files, conversations)

    def others(self, corpus: Corpus) -> Corpus:
        """Return the parts of a corpus whose files were neither trained on nor held out with this text: other
        versions of it, or files that repeat it."""
        return without_files(corpus, self.recorded)

    @property
    def names(self) -> list[str]:
        return [document.name for document in self.corpus.documents] + [file.name for file in self.files]

    @property
    def bytes(self) -> int:
        """Size of the text and the messages."""
        return self.corpus.text_bytes + sum(conversation.text_bytes for conversation in self.conversations)

    def documents(self) -> Iterator[Iterable[str]]:
        """Yield texts and conversations in pieces. No match can cross the separators between messages."""
        yield from self.corpus.texts()
        yield map(self._messages, range(0, len(self.conversations), _JOINED))

    def _messages(self, first: int) -> str:
        chosen = self.conversations[first : first + _JOINED]
        return "".join(
            message.content + SEPARATOR for conversation in chosen for message in conversation.messages
        )


def names_sources(record: TrainingRecord, sources: Sources) -> bool:
    """Return whether a record names any of these texts (trained on or held out) or conversations (trained
    on)."""
    hashes = {document.sha256 for document in sources.text.documents}
    trained = trained_lengths(record.stages).keys()
    return bool(hashes & trained or _trained_in_any(sources.conversation_files, [record]))


def unrecorded_part(corpus: Corpus, records: Records) -> Corpus:
    """Return the parts of a corpus whose files no record names, for instance because they have been edited
    since."""
    return without_files(corpus, _recorded_hashes(records))


def without_files(corpus: Corpus, hashes: Container[str]) -> Corpus:
    """Return the parts of a corpus whose files have other hashes."""
    return Corpus.of_parts(part for part in corpus.contents if part.document.sha256 not in hashes)


def changed_files_note(sources: Sources, records: Records) -> str:
    """Return a note about the files that have the name of a training file and other content; "" if there are
    none."""
    entries = [entry for stage in all_stages(records) for entry in stage.corpus]
    # an exported model's record has names without hashes
    trained = {units.file_name(entry.name, entry.member) for entry in entries if entry.sha256}
    hashes = _recorded_hashes(records)
    names = [
        file.name
        for file in (*sources.text.documents, *sources.conversation_files)
        if file.sha256 not in hashes and units.file_name(file.name, file.member) in trained
    ]
    if not names:
        return ""
    return (
        f"{units.listed(names, MAX_NAMES)}: a model was trained on a file of this name with other content; "
        "if that was an earlier version, the figures do not measure generalization"
    )


def _recorded_hashes(records: Records) -> set[str]:
    """Return the sha256 of each file that a model was trained on or that was held out."""
    trained = {entry.sha256 for stage in all_stages(records) for entry in stage.corpus}
    return trained.union(*map(held_out_files, records))


def recorded_reading(records: Records) -> ReadOptions:
    """Return the read options that the user gave when a model was trained."""
    shapes = (file.shape or "" for record in records for file in record.conversation_files)
    reading = next((record.reading for record in records if record.reading), Reading())
    columns = reading.columns if reading.template else reading.columns[:2]
    cut = reading.strip_boilerplate
    return ReadOptions(
        next(filter(None, map(speakers_in, shapes)), None),
        reading.pairs,
        columns,
        reading.plain,
        reading.template,
        reading.encoding,
        strip_boilerplate=cut is not None,
        boilerplate=cut,
    )


# ---- finding the files again


def find_training_texts(
    records: Records, model: Path, *, whole: bool = False
) -> tuple[list[TrainingText], list[str]]:
    """Return (texts and conversations of all stages, missing files of earlier stages). Raises LLMError when a
    record names no text, or when a file of the last stage is missing or has changed."""
    texts: list[TrainingText] = []
    missing: list[str] = []
    searched = set[str]()
    for record in records:
        for number, stage in enumerate(recorded for recorded in record.stages if recorded.stage != CACHE):
            hashes = {file.sha256 for file in stage.corpus}
            if number and hashes <= searched:
                continue
            try:
                text = TrainingText.of(find_sources(stage, model), [record], whole=whole)
                files = {file.sha256 for file in stage.held_out.files}
                texts.append(replace(text, recorded=frozenset(hashes | files)))
                searched |= hashes
            except LLMError:
                if not number:
                    raise
                missing += [file.name for file in stage.corpus]
    return texts, missing


def find_small_training_texts(records: Sequence[TrainingRecord], model: Path) -> list[TrainingText]:
    """Like `find_training_texts`, but returns [] if a file is missing, or if the files are so large that
    reading them takes more than a few seconds."""
    entries = [entry for stage in all_stages(records) for entry in stage.corpus]
    paths = {path for entry in entries for path in _paths(entry, model)}
    try:
        # the record of an untrusted model may name any file, and give it any size
        if sum(path.stat().st_size for path in paths) > MAX_SMALL_BYTES:
            return []
        return find_training_texts(records, model)[0]
    except (LLMError, OSError):
        return []


def find_sources(stage: Stage, model: Path) -> Sources:
    """Find the texts and conversations of a stage by their sha256, in the current directory and the model's.
    Raises LLMError if the record names none, or if a file is missing or has changed."""
    files = [
        file for file in _find(stage, stage.conversation_files, model) if isinstance(file, ConversationFile)
    ]
    corpus = find_corpus(stage, model) if stage.texts or not files else Corpus(())
    return Sources(corpus, tuple(files))


def find_corpus(stage: Stage, model: Path) -> Corpus:
    """Find the texts that a record names; see `find_sources`."""
    if not stage.texts:
        raise LLMError(f"{model} does not record its training text; name it: `corpus` FILE")
    return find_texts(stage, stage.texts, model)


def find_texts(stage: Stage, texts: Sequence[TrainingFile], model: Path) -> Corpus:
    """Find some of a stage's texts, trained on or held out; see `find_sources`."""
    documents: dict[tuple[Path, str], Document] = {}
    for document in _find(stage, texts, model):
        if isinstance(document, Document):
            documents.setdefault((document.path.resolve(), document.member), document)
    return Corpus.of(documents.values())


def _find(stage: Stage, entries: Sequence[TrainingFile], model: Path) -> list[Document | ConversationFile]:
    """Find files of a stage. Raises LLMError when one is missing or has changed."""
    contents: dict[int, Document | ConversationFile] = {}
    directories = _directories(stage)
    # the first path of each file, then the second if another file has the first path, and so on
    for paths in itertools.zip_longest(*(_paths(entry, model, directories) for entry in entries)):
        groups: dict[ReadOptions, dict[int, Path]] = {}  # files that are read in the same way
        for index, path in enumerate(paths):
            if path and index not in contents:
                groups.setdefault(_recorded_way(entries[index], stage), {})[index] = path
        for reading, group in groups.items():
            matches = read_if_possible(dict.fromkeys(group.values()), reading)
            by_content = {(content.path, content.sha256): content for content in matches}
            for index, path in group.items():
                if content := by_content.get((path, entries[index].sha256)):
                    contents[index] = content
    for index, entry in enumerate(entries):
        if index not in contents:
            missing = f"{entry.name[:200]}, is missing or has changed (searched here and next to the model)"
            if was_in_memory(entry.name, entry.kind):
                missing = f"{entry.name}, was in memory and has no file"
            raise LLMError(f"the training text of {model}, {missing}; name it: `corpus` FILE")
    return [contents[index] for index in range(len(entries))]


def _recorded_way(entry: TrainingFile, stage: Stage) -> ReadOptions:
    """Return the read options for a file of a stage."""
    columns = entry.columns if entry.template else entry.columns[:2]
    reading = ReadOptions(
        speakers_in(entry.shape or ""), columns=columns, template=entry.template, encoding=entry.encoding
    )
    if entry.shape is not None:
        return reading
    cut = (stage.reading or Reading()).strip_boilerplate
    plain = not (reading.columns or entry.kind)
    return replace(reading, plain=plain, text_only=True, strip_boilerplate=cut is not None, boilerplate=cut)


def _directories(stage: Stage) -> list[str]:
    """List the directories that the names of a stage's texts begin at, relative to the model. Held-out files
    of a data set, whose own paths are not recorded, are in the same ones."""
    directories = {
        text.path.removesuffix(_given_name(text))
        for text in stage.texts
        if text.path.endswith(_given_name(text))
    }
    return sorted(directories)


def _given_name(entry: TrainingFile) -> str:
    """Return the name of a file, without the path in an archive."""
    return entry.name.removesuffix(f"/{entry.member}") if entry.member else entry.name


def _paths(entry: TrainingFile, model: Path, directories: Iterable[str] = ()) -> Iterator[Path]:
    """Yield the existing paths at which a file of a record may be. Without a recorded path, it may be in one
    of `directories`."""
    given = Path(_given_name(entry))
    beside = [model.parent / directory / given for directory in directories]
    if entry.path:
        beside = [model.parent / entry.path]
    places = (*beside, given, model.parent / given, Path(given.name), model.parent / given.name)
    for path in dict.fromkeys(places):
        with suppress(OSError, ValueError):  # the name in the record may not be a valid file name
            if path.is_file():
                yield path


def recorded_path(file: Path, model: Path) -> str | None:
    """Return a training file's path relative to the model, so that both can be moved together. None for
    standard input and outside the current directory, because a record must not reveal directories that the
    user did not name."""
    directory = Path.cwd()
    file = Path(os.path.abspath(file))
    model = Path(os.path.abspath(model))
    if not (file.is_file() and file.is_relative_to(directory) and model.is_relative_to(directory)):
        return None
    return Path(os.path.relpath(file, model.parent)).as_posix()
