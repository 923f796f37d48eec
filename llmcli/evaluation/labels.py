"""How well a model chooses among labels: accuracy, a confusion table, and calibration."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmcli.data.conversations.messages import Conversation
from llmcli.errors import LLMError, brief
from llmcli.evaluation.evaluator import OnProgress
from llmcli.generation.chat import Assistant
from llmcli.generation.choices import ranked

BINS = 10


@dataclass(frozen=True)
class LabelScore:
    """The choices of a model for some questions, with their labels."""

    choices: list[str]
    labels: list[str]
    chosen: list[str]
    confidences: list[float]  # probability of the chosen label, normalized over the choices

    @property
    def _correct(self) -> list[bool]:
        return [label == chosen for label, chosen in zip(self.labels, self.chosen, strict=True)]

    @property
    def accuracy(self) -> float:
        return sum(self._correct) / len(self.labels)

    @property
    def calibration_error(self) -> float:
        return expected_calibration_error(self.confidences, self._correct)

    @property
    def confusion(self) -> list[list[int]]:
        """Number of questions by label (rows) and chosen label (columns)."""
        pairs = list(zip(self.labels, self.chosen, strict=True))
        return [[pairs.count((label, chosen)) for chosen in self.choices] for label in self.choices]


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[bool]) -> float:
    """Return the mean difference between confidence and accuracy, over ten bins of equal width weighted by
    their size (Guo et al. 2017, arXiv:1706.04599, equation 3). A confidence on a boundary belongs to the
    lower bin.

    >>> round(expected_calibration_error([0.95, 0.95, 0.55, 0.55], [True, True, True, False]), 6)
    0.05
    """
    confidence = np.asarray(confidences, np.float64)
    is_correct = np.asarray(correct, np.float64)
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    differences = [abs(float((is_correct - confidence)[bins == i].sum())) for i in range(BINS)]
    return sum(differences) / len(confidence)


def score_labels(
    conversations: Sequence[Conversation],
    assistant: Assistant,
    choices: Sequence[str],
    on_progress: OnProgress,
) -> LabelScore:
    """Choose the last answer of each conversation. Raises LLMError if the answer of a conversation is not
    among the choices."""
    labels = [conversation.messages[-1].content.strip() for conversation in conversations]
    for conversation, label in zip(conversations, labels, strict=True):
        if label not in choices:
            raise LLMError(
                f"{conversation.source}: the answer {brief(label)} is not among the choices; add it"
            )
    chosen = []
    confidences = []
    for number, conversation in enumerate(conversations, 1):
        best, probability = ranked(assistant.score(conversation.messages[:-1], choices))[0]
        chosen.append(best.text)
        confidences.append(probability)
        on_progress(number / len(conversations))
    return LabelScore(list(choices), labels, chosen, confidences)
