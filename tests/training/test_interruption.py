"""A pass through the model that is given up between two layers."""

import pytest
import torch

from llmcli.config import ModelConfig
from llmcli.models.torch.transformer import LanguageModel, Teacher
from llmcli.training.interruption import CutShortError, stop_between_layers


def test_a_pass_ends_before_the_next_layer_once_it_should_stop() -> None:
    model = LanguageModel(ModelConfig(50, 16, 32, 4, 2, 2, 8, 12))
    ids = torch.zeros(1, 4, dtype=torch.int64)
    answers = iter([False, False, True])  # asked before each of the four layers
    with stop_between_layers(model, lambda: next(answers)), pytest.raises(CutShortError):
        model(ids)
    assert next(answers, None) is None
    assert model(ids).shape == (1, 4, 50)  # after the context nothing is checked


def test_the_pass_of_a_teacher_ends_too() -> None:
    student, teacher = (LanguageModel(ModelConfig(50, 16, 32, 4, 2, 2, 8, 12)) for _ in range(2))
    student.teacher = Teacher(teacher, 0.5)
    ids = torch.zeros(1, 5, dtype=torch.int64)
    answers = iter([False] * 5 + [True])
    with stop_between_layers(student, lambda: next(answers)), pytest.raises(CutShortError):
        student.loss(ids)
    assert next(answers, None) is None
    assert student.loss(ids).shape == ()  # after the context nothing is checked
