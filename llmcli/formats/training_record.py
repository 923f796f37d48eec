"""The training record: the information about a model's training in its file, as JSON (training.json) and as a
class.

The fields have the names of the JSON keys, which files of every version share; missing keys have defaults.
Keys that are not read have no field, but are kept in `document`. Standard library only.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple

from llmcli import units
from llmcli.formats.metadata import (
    Amount,
    Count,
    Fraction,
    Hexadecimal,
    Json,
    JsonObject,
    Number,
    is_number,
    parse_document,
    read_as,
)

FEATURES = 4  # per context of an n-gram cache, each with a weight
MAX_ORDERS = 16  # contexts of an n-gram cache
MAX_WEIGHT = 1e3  # a larger weight means damage
KNOWN_ANSWERS = "known_answers.json"  # key in the metadata of a model file


class TrainingFile(JsonObject):
    """A text, or a file of conversations, that a model was trained on, or that was held out."""

    name: str = ""
    path: str = ""  # relative to the model's directory
    bytes: Count = 0
    sha256: str = ""
    shape: str | None = None  # shape of the conversations' records; None: a text
    conversations: Count = 0
    columns: tuple[str, ...] = ()  # columns that were read
    template: str = ""  # template that joins several columns
    encoding: str = ""  # the file's encoding, if it is not UTF-8
    kind: str = ""  # format that the text was extracted from
    member: str = ""  # path in an archive
    held_out: Count | None = None  # bytes at its end; earlier versions held out the end of the whole corpus
    left_out: Count = 0  # bytes before the held-out bytes that were not trained on either


class HeldOut(JsonObject):
    """The held-out text or answers."""

    bytes: Count = 0
    from_: str = ""  # how they were held out, in words
    of: str = ""  # "answers" if conversations were held out
    known_share: Fraction = 0.0  # share of the held-out text that also occurs in the training text
    files: tuple[TrainingFile, ...] = ()  # files named by --val
    seen_by_base: bool = False


class Conversations(JsonObject):
    """The conversations that were trained on, and their answers."""

    training: Count = 0
    held_out: Count = 0
    held_out_share: Fraction | None = None
    # indices of conversations that were not held out because training conversations repeat them: first in the
    # corpus, then in the file of --val
    repeated: tuple[Count, ...] = ()
    train_tokens: Count = 0
    train_bytes: Count = 0
    from_step: Count = 0
    epochs: Amount = 0.0


class Reading(JsonObject):
    """The read options that the user gave."""

    pairs: bool = False
    columns: tuple[str, ...] = ()
    plain: bool = False
    template: str = ""
    encoding: str = ""
    strip_boilerplate: tuple[Hexadecimal, ...] | None = None  # hashes of the lines that were cut


class Stage(JsonObject):
    """The training data and the held-out data of one stage of a model's training (training_stages.py)."""

    corpus: tuple[TrainingFile, ...] = ()
    held_out: HeldOut = HeldOut()
    conversations: Conversations | None = None
    train_bytes: Count | None = None  # training part of the texts
    reading: Reading | None = None
    stage: str = ""  # an earlier stage's role for the model, and its file
    file: str = ""

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of files by name, without directories and web addresses, as recorded in an exported
        model."""
        sizes: dict[str, int] = {}
        for file in self.corpus:
            name = units.file_name(file.name, file.member)
            sizes[name] = sizes.get(name, 0) + file.bytes
        return sizes

    @property
    def texts(self) -> list[TrainingFile]:
        return [file for file in self.corpus if file.shape is None]

    @property
    def conversation_files(self) -> list[TrainingFile]:
        return [file for file in self.corpus if file.shape is not None]


class Base(JsonObject):
    """The model that was fine-tuned."""

    file: str = ""
    sha256: str = ""
    source_sha256: str = ""  # hash of the model that it was imported from


class Settings(JsonObject):
    """The fields of the run's TrainConfig that are read again."""

    steps: Count = 0
    seconds: Number | None = None
    context: Count = 0
    recipe: str = ""
    induction: bool = False


class SpeedRecord(JsonObject):
    """The duration and speed of a run with a time limit."""

    seconds: Amount = 0.0
    tokens_per_second: Amount = 0.0


class CurvePoints(JsonObject):
    """The loss in nats per token by step, and the evaluations in bits per byte."""

    step: tuple[Count, ...] = ()
    loss: tuple[Number, ...] = ()
    eval_step: tuple[Count, ...] = ()
    eval_bits_per_byte: tuple[Number, ...] = ()


class Distillation(JsonObject):
    """A run with a teacher and a student."""

    from_step: Count = 0
    teacher_bits_per_byte: Number = 0.0


class EpochSearchRecord(JsonObject):
    """The number of epochs that a first run found."""

    found: Number = 0.0
    confirmed: bool = False


class EvaluatedData(JsonObject):
    """The amount of held-out data that was evaluated at the end, or of validation data."""

    bytes: Count = 0
    tokens: Count = 0
    conversations: Count | None = None
    context: Count = 0  # 0: the model's


class Memorization(NamedTuple):
    """The share of a model's generated text, and of held-out text, that occurs verbatim in the training
    text."""

    share: Fraction = 0.0  # share of the generated strings
    strings: Count = 0  # generated strings that were searched for
    held_out_share: Fraction | None = None  # None if there is not enough held-out text
    searched_bytes: Count = 0  # searched part of the training text


class AnswerShares(NamedTuple):
    """Greedy answers to held-out questions (training/data/held_out_questions.py)."""

    questions: Count = 0
    verbatim: Fraction = 0.0  # share of the questions (0 to 1) whose answer is a training answer
    exact: Fraction = 0.0  # share whose answer is the reference answer
    near: Fraction = 0.0  # share whose answer is not exact, but has a similarity of NEAR or more
    # share whose answer is not exact, not near, and not a training answer; None in files of earlier versions
    garbled: Fraction | None = None
    seen: Fraction = 0.0  # share whose reference answer is one of the training answers


class KnownAnswerShares(NamedTuple):
    """Answers to held-out questions, chosen among the training answers (training/data/known_answers.py)."""

    questions: Count = 0
    right: Count = 0
    wrong: Count = 0  # the remaining questions are not answered, because the confidence is too low
    answerable: Count | None = None  # held-out questions with a training answer, if not all were asked


class PlainTextScores(NamedTuple):
    """Bits per byte of plain text under a model that was trained on conversations."""

    from_: str = ""  # the source of the text
    tokens: Count = 0
    before: Number | None = None  # under the base model, if there is one
    after: Number | None = None


class Samples(JsonObject):
    """The texts that the model wrote during training, each with its step."""

    prompt: str | None = ""  # None: there are no texts
    texts: tuple[tuple[Count, str], ...] = ()


class ProbeRecord(JsonObject):
    """The likeliest next words of one prompt by step: (step, pairs of a word, or a token, and its
    probability)."""

    prompt: str = ""
    predictions: tuple[tuple[Count, tuple[tuple[str, Fraction], ...]], ...] = ()


class KnownAnswers(JsonObject):
    """The questions and answers that a model was trained on, which are stored in its file only on request
    (known_answers.json)."""

    pairs: tuple[tuple[str, str], ...] = ()
    min_confidence: Fraction = 0.0  # minimum for answering a question (training/data/known_answers.py)
    # weight of the network's probability in the score (generation/known_answers.py)
    network_weight: Fraction = 0.0

    @classmethod
    def parse(cls, text: str) -> "KnownAnswers":
        """Read a known_answers.json. Raises LLMError."""
        return parse_document(text, "its known_answers.json", cls)

    def to_json(self) -> Json:
        return {
            "pairs": self.pairs,
            "min_confidence": self.min_confidence,
            "network_weight": self.network_weight,
        }


def _are_gates(rows: Any) -> bool:
    return (
        isinstance(rows, list)
        and 1 <= len(rows) <= MAX_ORDERS
        and all(isinstance(row, list) and len(row) == FEATURES for row in rows)
        and all(is_number(weight, -MAX_WEIGHT, MAX_WEIGHT) for row in rows for weight in row)
    )


class CacheWeights(NamedTuple):
    """The weights w_k of the gates of an n-gram cache (models/ngram_cache.py), [K][FEATURES]."""

    weights: Annotated[
        Sequence[Sequence[float]], f"1 to {MAX_ORDERS} lists of {FEATURES} numbers", _are_gates
    ]


class TrainingRecord(Stage):
    """The record of the run that made a model. Change it with `|` and `without`, which change its JSON."""

    average_of: tuple[str, ...] = ()
    adapter: str = ""  # name of the adapter that was merged into the model
    base: Base | None = None
    earlier_stages: tuple[Stage, ...] = ()
    imported: Json | None = None  # the origin of a published model
    seen_bytes: Hexadecimal = ""  # the byte values in the training text; "": unknown
    train_tokens: Count = 0
    read_bytes: Count = 0  # part of the training text that was read; 0: all
    versions: Json | None = None
    train: Settings | None = None
    steps: Count = 0
    best_step: Count = 0
    epochs: Amount = 0.0
    interrupted: bool = False
    problem: str = ""  # why training ended early
    not_evaluated: str = ""  # why the held-out data was not evaluated, if not for lack of time
    # held-out loss of the model as it runs; see `evaluation.figures.Figures`
    bits_per_byte: Number | None = None
    bits_per_byte_without_cache: Number | None = None
    bits_per_byte_before: Number | None = None
    bits_per_byte_before_without_cache: Number | None = None
    ngram_cache: CacheWeights | None = None
    expert_shares: tuple[tuple[Number, ...], ...] = ()  # shares of the tokens, by layer and expert
    held_out_measured: EvaluatedData | None = None
    plain_text: PlainTextScores | None = None
    validation: EvaluatedData | None = None
    distillation: Distillation | None = None
    epoch_search: EpochSearchRecord | None = None
    curve: CurvePoints = CurvePoints()
    samples: Samples = Samples()
    probe: ProbeRecord | None = None
    clock: SpeedRecord | None = None
    memorised: Memorization | None = None  # a key of stored files: it keeps its British spelling
    answers: AnswerShares | None = None
    known_answers: KnownAnswerShares | None = None
    verdict: tuple[str, ...] = ()  # the summary of the run
    experts: "tuple[TrainingRecord, ...]" = ()  # records of an ensemble's models; its only entry

    @classmethod
    def from_json(cls, document: Json) -> "TrainingRecord":
        """Read a record from its JSON object. Raises LLMError for a value of the wrong type."""
        return read_as(cls, json.loads(json.dumps(dict(document))))

    @classmethod
    def parse(cls, text: str) -> "TrainingRecord":
        """Read a training.json. Raises LLMError."""
        return parse_document(text, "its training.json", cls)

    def to_json(self) -> Json:
        """Return the JSON object of the record, with all keys in their original order."""
        return dict(self.document)

    def __or__(self, entries: Json) -> "TrainingRecord":
        """Return the record with other JSON entries, new keys last. Raises LLMError, like `from_json`."""
        return self.from_json(self.document | dict(entries))

    def without(self, *keys: str) -> "TrainingRecord":
        return self.from_json({key: value for key, value in self.document.items() if key not in keys})

    @property
    def stages(self) -> list[Stage]:
        """List the run and the earlier stages; only the latter for an averaged model, which has no run."""
        return [*([] if self.average_of and self.earlier_stages else [self]), *self.earlier_stages]


def seen_bytes(records: Iterable[TrainingRecord]) -> bytes | None:
    """Return the byte values in the training text of any of several models; None if unknown for one of
    them."""
    known = [record.seen_bytes for record in records]
    return bytes(sorted(set(bytes.fromhex("".join(known))))) if all(known) else None
