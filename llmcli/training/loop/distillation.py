"""Distillation: a run that trains two models of the same shape, one after the other (born-again networks,
arXiv:1805.04770).

The first, the teacher, learns from the text. The second, the student, starts from fresh weights, and a part of its
targets are the predictions of the teacher (arXiv:1503.02531, section 2). Both have a learning-rate schedule of their
own: each is a stage of the run.
"""

from llmcli.config import ModelConfig, TrainConfig
from llmcli.models.torch.transformer import LanguageModel, Teacher
from llmcli.training.loop.best_weights import Weights
from llmcli.training.planning import recipe
from llmcli.training.step.initialization import fresh_weights, new_model

STUDENT_SEED = 2_000_003  # added to that of the run: the fresh weights of the student are others


def new_teacher(config: ModelConfig, settings: TrainConfig, weights: Weights) -> Teacher:
    """A teacher with these weights, which are not trained any more."""
    model: LanguageModel = new_model(config, settings).eval().requires_grad_(False)
    model.load_arrays(weights)
    return Teacher(model, recipe.TEACHER_WEIGHT)


def student_weights(config: ModelConfig, settings: TrainConfig) -> Weights:
    """Those that a student starts from."""
    return fresh_weights(config, settings.seed + STUDENT_SEED, settings.induction)
