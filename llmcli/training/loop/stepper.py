"""The model of a run and its optimizer, in one process or several.

In distillation a run trains two models of the same shape, one after the other (born-again networks,
arXiv:1805.04770): a teacher, then a student from fresh weights, whose targets include the teacher's
predictions (arXiv:1503.02531, section 2). Each is a stage of the run, with its own learning-rate schedule.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmcli.models.torch.transformer import LanguageModel, Teacher
from llmcli.training.data.position import Position
from llmcli.training.loop.clock import STEP_PATIENCE, Clock
from llmcli.training.loop.job import Job
from llmcli.training.planning import recipe
from llmcli.training.step import base_divergence
from llmcli.training.step.base_divergence import BaseDivergence
from llmcli.training.step.hardware import keep_freed_memory, return_freed_memory
from llmcli.training.step.initialization import compile_layers, fresh_weights, new_model
from llmcli.training.step.optimizer import Optimizer
from llmcli.training.step.thread_tuner import ThreadTuner
from llmcli.training.step.training_step import Batch, training_step

STUDENT_SEED = 2_000_003  # added to the run's seed for the student's fresh weights

Weights = dict[str, NDArray[np.float32]]


class Stepper:
    """Makes `model` and trains it on the batches of a run."""

    def __init__(self, job: Job, clock: Clock) -> None:
        self._job = job
        self._clock = clock
        self._plan = job.plan
        self._settings = job.plan.train
        self._tuner = (job.tuner if self._settings.seconds is not None else None) or ThreadTuner(1)
        torch.set_num_threads(self._settings.threads)
        self._tuner.new_shape()  # sets the number of threads: too many beside another program are many times slower
        return_freed_memory()  # used by planning
        keep_freed_memory()
        self.model = self._new_model(job.data.tokenizer.vocab_size)
        self._optimizer = self._new_optimizer()
        self.is_compiled = compile_layers(self.model, self._settings)
        self._base_divergence: BaseDivergence | None = None
        # size of the base model's text for the divergence; None: not planned
        self.base_tokens: int | None = None
        self._window = 0  # window length in the last step
        self._compiles = False  # whether torch compiled layers for that window length in the last step

    def _new_model(self, vocab_size: int) -> LanguageModel:
        """Make a model with the weights of the job's `start`, or with fresh ones."""
        plan, settings, start = self._plan, self._settings, self._job.start
        added = plan.conversations.new_tokens if plan.conversations else 0
        new_tokens = range(vocab_size - added, vocab_size)  # missing in the base model
        if leader := self._job.leader:
            model = leader.new_model(plan.model, settings, new_tokens, sharded=plan.sharded)
        else:
            model = new_model(plan.model, settings, new_tokens)
        model.load_arrays(
            start.tensors if start else fresh_weights(plan.model, settings.seed, settings.induction)
        )
        return model

    def _new_optimizer(self) -> Optimizer:
        group = self._job.leader.group if self._job.leader else None
        return Optimizer(self.model, self._settings, self._plan.model.hidden_size, group)

    def prepare(self, seconds: float) -> None:
        """Let the base model generate text for the divergence, if planned, for at most `seconds`."""
        conversations, job = self._plan.conversations, self._job
        if job.data.conversations is None or conversations is None or not conversations.base_divergence:
            return
        with self._clock.interruptible(self.model, 0.0, self._clock.elapsed + seconds):
            text = base_divergence.generate(
                self.model, job.data.tokenizer, self._settings.seed, job.on_progress
            )
        self.base_tokens = text.ids[:, 1:].numel() if text else 0
        if text:
            self._base_divergence = BaseDivergence(
                self.model, text, self._settings, conversations.base_divergence
            )

    def step(self, position: Position) -> float | None:
        """Take the next step; return its loss in nats per token, or None if it was cut short."""
        ids, loss_mask = self._job.data.next_batch(position)
        has_new_shape = ids.shape[1] != self._window
        self._window = ids.shape[1]
        self._compiles = has_new_shape and self.is_compiled
        if has_new_shape:
            self._tuner.new_shape()
        on_device = torch.from_numpy(ids).to(self._settings.device)
        batch = Batch(position.step, position.stage_progress, position.dropout, on_device, loss_mask)
        leader = self._job.leader
        if leader:
            leader.send_batch(batch)
        deadline = self._clock.step_deadline(first=not position.step)
        return training_step(
            self.model,
            self._optimizer,
            batch,
            self._settings,
            group=leader.group if leader else None,
            base_divergence=self._base_divergence,
            interruptible=self._clock.interruptible(self.model, STEP_PATIENCE, deadline),
        )

    def count_seconds(self, seconds: float, processor_seconds: float) -> None:
        """Report the duration of the last step and its processor time to the clock and the thread tuner."""
        budget, tokens = self._clock.budget, self._settings.tokens_per_step
        if budget and self._compiles:
            budget.exclude(seconds)
        elif budget:
            budget.add_step(seconds, tokens, processor_seconds)
            self._tuner.add_step(seconds, tokens)

    @contextmanager
    def all_threads(self) -> Iterator[None]:
        """In this context, also use the threads of the other processes on this machine, which are waiting."""
        leader, threads = self._job.leader, self._settings.threads
        if leader and not self._plan.sharded:
            torch.set_num_threads(threads * leader.group.processes.local_count)
        try:
            yield
        finally:
            if leader and not self._plan.sharded:
                torch.set_num_threads(threads)

    def begin_student(self, teacher: Weights) -> None:
        """Start again from fresh weights, with the predictions of a model with weights `teacher` as
        targets."""
        self._set_teacher(teacher)
        seed, induction = self._settings.seed + STUDENT_SEED, self._settings.induction
        self.model.load_arrays(fresh_weights(self._plan.model, seed, induction))
        del self._optimizer  # its state must not stay in memory beside the new one
        self._optimizer = self._new_optimizer()

    def _set_teacher(self, weights: Weights) -> None:
        model: LanguageModel = new_model(self._plan.model, self._settings).eval().requires_grad_(False)
        model.load_arrays(weights)
        self.model.teacher = Teacher(model, recipe.TEACHER_WEIGHT)

    def arrays(self) -> dict[str, Mapping[str, NDArray[Any]]]:
        """Return the arrays that steps change, by kind and name."""
        optimizer, leader, teacher = self._optimizer, self._job.leader, self.model.teacher
        return {
            "model": self.model.trainable_arrays(),
            "optimizer": leader.read_optimizer(optimizer) if leader else optimizer.to_arrays(),
            "teacher": teacher.model.to_arrays() if teacher else {},
        }

    def load(self, arrays: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        """Restore the arrays that `arrays` returned."""
        self.model.load_trainable(arrays["model"])
        self._optimizer.load_arrays(arrays["optimizer"])
        if arrays["teacher"]:
            self._set_teacher(dict(arrays["teacher"]))
