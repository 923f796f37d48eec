"""Training and held-out conversations as tokens, with their rows in the plan and their entries in the record.

The steps of a run, in order: `divide_conversations`, before a tokenizer is trained on the contents; `encode`
with the tokenizer; `fit` once the context length is planned.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmcli import units
from llmcli.data.conversations.batches import ConversationTokens
from llmcli.data.conversations.chat_template import CHATML, ChatTemplate
from llmcli.data.conversations.messages import Conversation, learned_answers
from llmcli.data.conversations.split import ConversationSplit, answers, divide, is_known, split
from llmcli.data.files import ConversationFile
from llmcli.data.text.corpus import Corpus
from llmcli.data.text.decoding import Document
from llmcli.data.text.repetitions import find_in_texts
from llmcli.data.text.split import CorpusSplit
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.evaluation.figures import known_text
from llmcli.evaluation.memorization import MAX_SEARCHED_BYTES, find_verbatim
from llmcli.evaluation.training_text import TrainingText, trained_indices
from llmcli.formats.training_stages import all_stages
from llmcli.training.data.inputs import Inputs
from llmcli.training.planning.plan import PlanRow
from llmcli.training.planning.task import ConversationSize

MAX_NAMES = 3  # files listed in a row of the plan
MAX_ANSWER_BYTES = 200_000  # held-out conversations whose answers are searched for: a second
# answers are labels if at most MAX_LABELS of them differ, and each answers at least MIN_QUESTIONS questions
MAX_LABELS = 20
MIN_QUESTIONS = 3


def divide_conversations(
    inputs: Inputs, max_bytes: int, base_conversations: Iterable[Conversation] = ()
) -> "DividedConversations":
    """Split the conversations into training and held-out ones. The base model was not trained on the held-out
    ones, unless it was trained on all; `base_conversations` are those that it was trained on, as far as their
    files are found. A part larger than `max_bytes` is sampled evenly."""
    validation = inputs.validation.conversation_files
    every = [*inputs.sources.conversations, *inputs.validation.conversations]
    if validation:
        divided = divide(every, range(len(inputs.sources.conversations), len(every)))
        rule = ", ".join(Path(file.name).name for file in validation)
    else:
        divided = split(every, inputs.held_out)
        rule = f"{100 * inputs.held_out:.3g}% of the conversations, spread evenly"
    files = (*inputs.files, *validation)
    stages = all_stages([inputs.base.record] if inputs.base else [])
    seen = answers(every[i] for stage in stages for i in trained_indices(files, stage))
    seen |= answers(base_conversations)
    held_out = [conversation for conversation in divided.held_out if not is_known(conversation, seen)]
    seen_by_base = not held_out and bool(divided.held_out)
    if seen_by_base:
        held_out = divided.held_out
    elif excluded := len(divided.held_out) - len(held_out):
        rule += f", without {excluded:,} that the base model was trained on"
    sampled = ConversationSplit(
        _sample(divided.training, max_bytes), _sample(held_out, max_bytes), divided.repeated
    )
    return DividedConversations(inputs, sampled, len(divided.training), rule, seen_by_base)


def _text_bytes(conversations: Sequence[Conversation]) -> int:
    return sum(conversation.text_bytes for conversation in conversations)


def _sample(conversations: list[Conversation], max_bytes: int) -> list[Conversation]:
    total = _text_bytes(conversations)
    if total <= max_bytes:
        return conversations
    count = max(1, int(len(conversations) * max_bytes / total))
    return [conversations[i * len(conversations) // count] for i in range(count)]


@dataclass(frozen=True)
class DividedConversations:
    """Training and held-out conversations as text."""

    inputs: Inputs
    split: ConversationSplit
    # number of training conversations; `split` has only a sample if there is no time for all of them
    available: int
    rule: str  # description of the held-out conversations
    seen_by_base: bool = False  # whether the base model was trained on all held-out conversations
    left_out: Sequence[Conversation] = ()  # training conversations in which held-out text occurs
    known_share: float = 0.0  # share of the held-out answers that occurs verbatim in the training text

    def without(self, held_out: Corpus, text: CorpusSplit) -> tuple["DividedConversations", float]:
        """Leave out training conversations that contain passages of `held_out`, a sample of the held-out part
        of `text`. Returns the rest, and the share of `held_out` that still occurs in it."""
        training = self.split.training
        texts = ("\n".join(message.content for message in conversation.messages) for conversation in training)
        left_out, known_share = find_in_texts(
            held_out, texts, versions=text.versions, keeps_training=not text.is_from_corpus
        )
        kept = [conversation for index, conversation in enumerate(training) if index not in left_out]
        divided = replace(
            self,
            split=replace(self.split, training=kept),
            available=self.available - len(left_out),
            left_out=[training[index] for index in sorted(left_out)],
        )
        return divided, known_share

    def compared_with(self, training: Iterable[Corpus]) -> "DividedConversations":
        """Search training texts for the held-out answers."""
        texts = [
            conversation.messages[i].content
            for conversation in _sample(self.split.held_out, MAX_ANSWER_BYTES)
            for i in learned_answers(conversation.messages)
        ]
        found = find_verbatim(texts, [TrainingText(corpus.sample(MAX_SEARCHED_BYTES)) for corpus in training])
        known = sum(spans.share * len(text) for spans, text in zip(found, texts, strict=True))
        return replace(self, known_share=known / max(1, sum(map(len, texts))))

    def texts(self) -> Iterator[str]:
        """Yield the text to train a tokenizer on: the role and the content of each training message."""
        for conversation in self.split.training:
            for message in conversation.messages:
                yield f"{message.role}\n{message.content}\n"

    def encode(self, tokenizer: Tokenizer) -> "PreparedConversations":
        """Tokenize. Raises LLMError if there is nothing to learn."""
        if not self.split.training:
            raise LLMError("`val` leaves no conversation for training; hold out fewer: `val` 0.1")
        template = self.inputs.template or ChatTemplate(CHATML, tokenizer)
        training = ConversationTokens.encode(self.split.training, template)
        if not len(training):
            names = ", ".join(file.name for file in self.inputs.files[:MAX_NAMES])
            raise LLMError(
                f"there is nothing to learn from in {names}: "
                f"none of {len(self.split.training):,} conversations has an answer to learn; each needs a "
                'message with the role "assistant", whose "weight" is not 0, and a chat template '
                "that marks it"
            )
        held_out = ConversationTokens.encode(self.split.held_out, template)
        unanswered = len(self.split.training) + len(self.split.held_out) - len(training) - len(held_out)
        return PreparedConversations(self, template, training, held_out, unanswered)


@dataclass(frozen=True)
class PreparedConversations:
    """Conversations as tokens: of any length, or fitted to the context of a plan by `fit`."""

    divided: DividedConversations
    template: ChatTemplate
    training: ConversationTokens
    held_out: ConversationTokens
    unanswered: int  # conversations left out because they have no answer
    truncated: int = 0  # training conversations cut to the context
    too_long: int = 0  # training conversations left out because their first answer begins after the context

    @property
    def size(self) -> ConversationSize:
        return ConversationSize(tuple(self.training.lengths.tolist()), _text_bytes(self.training.texts))

    @property
    def labels(self) -> list[str]:
        """The distinct training answers, most frequent first, if all conversations are question-answer pairs
        with a few recurring answers; otherwise empty."""
        pairs = [conversation.messages for conversation in self.training.texts]
        if any(len([message for message in pair if message.role == "assistant"]) > 1 for pair in pairs):
            return []
        counts = Counter(pair[-1].content for pair in pairs)
        is_labels = 1 < len(counts) <= MAX_LABELS and min(counts.values()) >= MIN_QUESTIONS
        return [label for label, _ in counts.most_common()] if is_labels else []

    def fit(self, context: int) -> "PreparedConversations":
        """Truncate conversations longer than a row of `context` inputs. Raises LLMError if nothing is left to
        learn."""
        training, truncated = self.training.truncated(context + 1)
        if not len(training):
            model = self.divided.inputs.base or self.divided.inputs.like
            is_longest = model and context == model.config.max_position_embeddings
            advice = "use a model with a longer context" if is_longest else "give a larger `context`"
            raise LLMError(
                f"no answer begins within a context of {context} tokens: the shortest conversation has "
                f"{int(self.training.lengths.min()):,}; {advice}"
            )
        held_out, _ = self.held_out.truncated(context + 1)
        too_long = len(self.training) - len(training)
        return replace(self, training=training, held_out=held_out, truncated=truncated, too_long=too_long)

    def rows(self, name: str) -> list[PlanRow]:
        """Return the rows of the plan about the conversations; the first has this name."""
        total = len(self.training) + len(self.held_out)
        learned = f"{self.training.targets:,} of {len(self.training.ids):,}"
        return [
            PlanRow(name, units.count(total, "conversation"), "; ".join(self._remarks())),
            PlanRow("learned tokens", learned, "loss on the answers only; questions are context"),
        ]

    @property
    def _without_answer(self) -> int:
        return self.unanswered + sum(file.dropped for file in self.divided.inputs.files)

    def _remarks(self) -> Iterator[str]:
        files = self.divided.inputs.files
        chosen = len(self.divided.split.training)
        held_out = f"{len(self.held_out):,} held out" if len(self.held_out) else "nothing held out"
        if known := known_text(self.divided.known_share):
            held_out += f" ({known})"
        yield f"{len(self.training):,} for training, {held_out}"
        names = units.listed([Path(file.name).name for file in files], MAX_NAMES)
        yield f"{', '.join(dict.fromkeys(file.shape for file in files))} in {names}"
        if self.divided.available > chosen:
            yield f"the time budget allows for {chosen:,} of {self.divided.available:,}"
        for count, what in (
            (self.truncated, "truncated to the context"),
            (self.too_long, "left out: no answer begins within the context"),
            (len(self.divided.left_out), "left out: passages of the held-out text occur in them"),
            (
                len(self.divided.split.repeated),
                "not held out: training conversations have the same questions and answers",
            ),
            (self._without_answer, "left out: no answer"),
        ):
            if count:
                yield f"{count:,} {what}"

    def record(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """Describe the conversations for the training record."""
        inputs = self.divided.inputs
        return {
            "training": len(self.training),
            "held_out": len(self.held_out),
            "held_out_share": None if inputs.validation.conversation_files else inputs.held_out,
            "repeated": self.divided.split.repeated,
            "dropped": self._without_answer + self.too_long + len(self.divided.left_out),
            "truncated": self.truncated,
            "train_tokens": self.training.targets,
            "train_bytes": self.training.answer_bytes(tokenizer.byte_lengths),
        }


def corpus_record(files: Sequence[ConversationFile]) -> list[dict[str, Any]]:
    """Return the entries for conversation files in the training record's list of texts."""
    return [
        file_entry(Path(f.name).name, f, shape=f.shape, conversations=len(f.conversations)) for f in files
    ]


def file_entry(name: str, file: Document | ConversationFile, **others: object) -> dict[str, Any]:
    """Describe a file for the training record."""
    optional = {"columns": list(file.columns), "encoding": file.encoding, "member": file.member}
    if isinstance(file, Document):
        optional |= {"template": file.template, "kind": file.kind}
    given = {key: value for key, value in optional.items() if value}
    return {"name": name, "bytes": file.text_bytes, "sha256": file.sha256, **others, **given}
