"""A pass through the model that is given up between two layers."""

import pytest
import torch

from llmcli.config import ModelConfig
from llmcli.models.torch.transformer import LanguageModel, Teacher
from llmcli.training.interruption import CutShortError, stop_between_layers


def test_a_pass_ends_before_the_next_layer_once_it_should_stop() -> None:
    """Also the pass of a teacher, after the four layers of its student."""
    student, teacher = (LanguageModel(ModelConfig(50, 16, 32, 4, 2, 2, 8, 12)) for _ in range(2))
    ids = torch.zeros(1, 5, dtype=torch.int64)
    for with_teacher, checks in ((False, 3), (True, 6)):
        student.teacher = Teacher(teacher, 0.5) if with_teacher else None
        answers = iter([False] * (checks - 1) + [True])
        with stop_between_layers(student, lambda answers=answers: next(answers)), pytest.raises(CutShortError):
            student.loss(ids)
        assert next(answers, None) is None
        assert student.loss(ids).shape == ()  # after the context nothing is checked
