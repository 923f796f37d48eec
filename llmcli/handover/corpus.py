"""The split of a model's training text, reproduced from its record."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmcli.data.sources import Sources, read_sources
from llmcli.data.text.corpus import Corpus, DocumentPart
from llmcli.data.text.dataset_directory import ALL_SPLITS
from llmcli.data.text.decoding import Document
from llmcli.data.text.near_duplicates import largest_group
from llmcli.data.text.repetitions import Repetitions, find_repetitions
from llmcli.data.text.split import split
from llmcli.errors import LLMError
from llmcli.evaluation.training_text import find_corpus, find_texts, recorded_reading, trained_lengths
from llmcli.formats.training_record import Stage, TrainingFile, TrainingRecord
from llmcli.training.planning.recipe import HELD_OUT

MANIFEST = "handover.json"


@dataclass(frozen=True)
class RecordedSplit:
    """The training text and the held-out text of a model."""

    repetitions: Repetitions  # its `training` is the training text
    held_out: Corpus
    names: dict[str, str]  # sha256 of a document -> its name in the record
    new: tuple[str, ...]  # names of documents that the record does not have
    conversations: tuple[str, ...]  # names of files of conversations, which are not part of the split
    read: Sources
    has_record: bool  # whether the record of the model names a text


def recorded_split(record: TrainingRecord, model: Path, corpus: Sequence[str]) -> RecordedSplit:
    """Reproduce the split of a model's training text from its record. The text is found by the names in the
    record, or among the files in `corpus`; other files in `corpus` are newly split. Training text that
    repeats held-out text is left out.

    Raises LLMError if a file is missing or has changed, or if there is no text.
    """
    stage = next((stage for stage in record.stages if stage.texts), record)
    held_out_files = [file for file in stage.held_out.files if file.shape is None]
    if not (corpus or stage.texts) and record.conversation_files:
        raise LLMError(
            f"{model} was trained on conversations, which are not handed over; name a text: `corpus` FILE"
        )
    if not corpus:
        trained_on = find_corpus(stage, model).documents
        read = Sources(Corpus.of(trained_on + find_texts(stage, held_out_files, model).documents), ())
    else:
        read = read_sources(corpus, recorded_reading([record]), splits=ALL_SPLITS)
        _check_not_handed_over(read.text.documents)
    documents = read.text.documents
    by_hash = {document.sha256: document for document in documents}
    recorded: list[TrainingFile] = [entry for entry in (*stage.texts, *held_out_files) if entry.bytes]
    for entry in recorded:
        if entry.sha256 not in by_hash:
            raise LLMError(
                f"the training text of {model}, {entry.name[:200]}, is missing or has changed: no file in "
                f"{', '.join(corpus)} has its sha256, {entry.sha256[:16]}; add the file to `corpus`"
            )
    names = {entry.sha256: entry.name for entry in recorded}
    training, held_out = _recorded_parts(stage, by_hash)
    for entry in held_out_files:
        if entry.bytes:
            document = by_hash[entry.sha256]
            held_out.append(DocumentPart(document, 0, document.text_bytes))
    used = read.divided()[0].text.documents
    new = Corpus.of(document for document in used if document.sha256 not in names)
    if new.contents:
        divided = split(new, HELD_OUT)
        training += divided.training.contents
        held_out += divided.held_out.contents
    trained, kept = map(Corpus.of_parts, (training, held_out))
    conversations = [file.name for file in record.conversation_files]
    conversations += [file.name for file in read.conversation_files]
    return RecordedSplit(
        find_repetitions(trained, kept, versions=largest_group(documents)),
        kept,
        names | {document.sha256: document.relative_name for document in new.documents},
        tuple(document.name for document in new.documents),
        tuple(dict.fromkeys(conversations)),
        read,
        bool(stage.texts),
    )


def _check_not_handed_over(documents: Sequence[Document]) -> None:
    """Raise LLMError for a file in a handover directory: it may be held-out text."""
    for document in documents:
        for place in document.path.absolute().parents:
            if (place / MANIFEST).is_file():
                raise LLMError(
                    f"{document.name} is part of an earlier handover, which contains held-out text; name "
                    f"files outside {place}"
                )


def _recorded_parts(
    stage: Stage, by_hash: dict[str, Document]
) -> tuple[list[DocumentPart], list[DocumentPart]]:
    """Return (training parts, held-out parts) of the texts of a stage."""
    trained = trained_lengths([stage])
    training = list[DocumentPart]()
    held_out = list[DocumentPart]()
    for entry in {file.sha256: file for file in stage.texts if file.bytes}.values():
        document = by_hash[entry.sha256]
        middle = trained.get(entry.sha256, entry.bytes)
        size = entry.bytes - middle - entry.left_out if entry.held_out is None else entry.held_out
        training.append(DocumentPart(document, 0, middle))
        held_out.append(DocumentPart(document, document.text_bytes - size, document.text_bytes))
    return training, held_out
