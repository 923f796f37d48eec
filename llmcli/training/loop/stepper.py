"""The steps of a run: the model, its optimizer, and how a batch updates them, in one process or several.

What comes before and after a step (the clock, evaluations, saving) is the matter of `Run`.
"""

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.position import Position
from llmcli.training.data.run_data import RunData
from llmcli.training.interruption import CutShortError
from llmcli.training.loop.best_weights import Weights
from llmcli.training.loop.distillation import new_teacher, student_weights
from llmcli.training.loop.run_timer import STEP_PATIENCE, RunTimer
from llmcli.training.planning.cost_model import micro_batches
from llmcli.training.planning.plan import Plan
from llmcli.training.step import base_behaviour
from llmcli.training.step.base_behaviour import BaseBehaviour
from llmcli.training.step.compute import Compute
from llmcli.training.step.data_parallel import Leader, all_threads
from llmcli.training.step.hardware import keep_freed_memory, return_freed_memory
from llmcli.training.step.initialization import compile_layers, fresh_weights, new_model
from llmcli.training.step.optimizer import Optimizer
from llmcli.training.step.shares import share_gradients
from llmcli.training.step.thread_tuner import ThreadTuner


class Stepper:
    """Trains `model`, which it makes, on the batches of a run."""

    def __init__(
        self,
        plan: Plan,
        start: Checkpoint | None,
        data: RunData,
        timer: RunTimer,
        tuner: ThreadTuner,
        compute: Compute,
        leader: Leader | None,
    ) -> None:
        """The model has the weights of `start`, or fresh ones. `leader` is that of several processes."""
        self._plan, self._settings, self._data, self._leader = plan, plan.train, data, leader
        self._timer, self._tuner, self._compute = timer, tuner, compute
        torch.set_num_threads(plan.train.threads)
        return_freed_memory()  # of planning
        keep_freed_memory()
        self.is_sharded = plan.sharded and leader is not None
        self.model = _initial_model(plan, start, data.tokenizer.vocab_size, leader)
        self._optimizer = self._new_optimizer()
        self._base_behaviour: BaseBehaviour | None = None
        self.is_compiled = compile_layers(self.model, plan.train)
        self.base_tokens: int | None = None  # of the base model's text for the divergence; None: the plan has none
        self._window = 0  # tokens in a window of the last step
        self._compiles = False  # whether torch compiled layers in the last step, for windows of that length

    def prepare(self, deadline: float, on_progress: Callable[[float], None]) -> None:
        """Before the first step, and before the state of a stopped run is loaded: if the plan wants the divergence from
        the base model, let that generate text, until `deadline` in seconds of the timer at most."""
        conversations, model = self._plan.conversations, self.model
        if self._data.conversations is None or conversations is None or not conversations.base_divergence:
            return
        self._tuner.new_shape()  # sets the number of threads: too many beside another program are many times as slow
        with self._timer.interruptible_until(model, deadline):
            text = base_behaviour.generate(model, self._data.tokenizer, self._settings.seed, on_progress)
        self.base_tokens = text.tokens if text else 0
        if text:
            self._base_behaviour = BaseBehaviour(model, text, self._settings, conversations.base_divergence)

    def _new_optimizer(self) -> Optimizer:
        group = self._leader.group if self._leader else None
        width = self._plan.model.hidden_size
        return Optimizer(self.model, self._settings, width, group, sharded=self.is_sharded)

    def step(self, position: Position) -> float | None:
        """Take the next step; its loss in nats per token, or None if it was cut short."""
        loss = self._gradients(position)
        if loss is None:
            self.model.zero_grad(set_to_none=True)
            return None
        self._optimizer.step(position.stage_progress)
        return float(loss.item())

    def _gradients(self, position: Position) -> torch.Tensor | None:
        """Accumulate the gradients of the next step; its loss, or None if it was cut short."""
        model, gradients = self.model, self._compute.gradients
        ids, learned = self._next_batch(position)
        if self._leader:
            share = self._leader.begin_step(model, position.step, position.stage_progress, ids, learned)
            compute = partial(share_gradients, gradients, model, share)
        else:
            compute = partial(gradients, model, ids, micro_batches(self._plan.model, self._settings), learned)
        loss: torch.Tensor | None = None
        deadline = self._timer.step_deadline(first=not position.step)
        with contextlib.suppress(CutShortError), self._timer.interruptible(model, STEP_PATIENCE, deadline):
            computed = compute()
            if self._base_behaviour:
                model.dropout.set_rows(None)
                self._base_behaviour.add_gradients(position.step)
            loss = computed
        return self._leader.end_step(loss) if self._leader else loss

    def _next_batch(self, position: Position) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(token ids [B, T + 1] of the next step, which of them are learned [B, T + 1], None for all), for which
        dropout is seeded as well."""
        ids, learned = self._data.next_batch(position)
        self.model.dropout.set_rate(position.dropout)
        self.model.dropout.seed(self._settings.seed, position.step)
        self.model.train()
        has_new_shape = ids.shape[1] != self._window
        self._window, self._compiles = ids.shape[1], has_new_shape and self.is_compiled
        if has_new_shape:
            self._tuner.new_shape()
        return torch.from_numpy(ids).to(self._settings.device), learned

    def count_seconds(self, seconds: float) -> None:
        """What the last step took, for the clock and for the choice of the number of threads."""
        clock, tokens = self._timer.clock, self._settings.tokens_per_step
        if clock and self._compiles:
            clock.exclude(seconds)
        elif clock:
            clock.add_step(seconds, tokens)
            self._tuner.add_step(seconds, tokens)

    def all_threads(self) -> AbstractContextManager[None]:
        """Inside, the threads of other processes on this machine, which wait, are used as well."""
        waiting = None if self.is_sharded or not self._leader else self._leader.group
        return all_threads(waiting, self._settings.threads)

    # ---- distillation

    def begin_student(self, teacher: Weights) -> None:
        """Start again from fresh weights, with the predictions of a model with the weights `teacher` as targets."""
        self.set_teacher(teacher)
        self.model.load_arrays(student_weights(self._plan.model, self._settings))
        del self._optimizer  # or the state of both would be in memory
        self._optimizer = self._new_optimizer()

    def set_teacher(self, weights: Weights) -> None:
        """The teacher of the following steps."""
        self.model.teacher = new_teacher(self._plan.model, self._settings, weights)

    def teacher_arrays(self) -> Weights:
        """The weights of the teacher; empty without one."""
        return self.model.teacher.model.to_arrays() if self.model.teacher else {}

    # ---- the state of a stopped run

    def optimizer_arrays(self) -> dict[str, NDArray[np.float32]]:
        """The state of the optimizer, by name."""
        return self._leader.read_optimizer(self._optimizer) if self._leader else self._optimizer.to_arrays()

    def values(self) -> dict[str, int]:
        """The number of processes, if there are several."""
        return {"processes": self._leader.group.count} if self._leader else {}

    def load(self, weights: Mapping[str, NDArray[Any]], optimizer: Mapping[str, NDArray[Any]]) -> None:
        """Take the weights that are trained, and what `optimizer_arrays` returned."""
        self.model.load_trainable(weights)
        self._optimizer.load_arrays(optimizer)

    def send_state(self, optimizer: Mapping[str, NDArray[Any]] | None) -> None:
        """Give the other processes, if there are any, the weights, and the state of the optimizer of a resumed run."""
        if self._leader and not self.is_sharded:
            self._leader.send_weights(self.model)
        if self._leader and optimizer is not None:
            self._leader.send_optimizer(optimizer)


def _initial_model(plan: Plan, start: Checkpoint | None, vocab_size: int, leader: Leader | None) -> LanguageModel:
    """With the weights of `start`, or fresh ones. `vocab_size` is that of the tokenizer. Of several processes the
    others make one too."""
    settings, new_tokens = plan.train, _new_tokens(plan, vocab_size)
    if leader:
        leader.start(plan.model, settings, new_tokens, sharded=plan.sharded)
    model: LanguageModel
    if leader and plan.sharded:
        from llmcli.training.step.sharded_model import new_sharded_model  # its import takes time

        model = new_sharded_model(plan.model, settings, new_tokens, leader.group, leader.tell)
    else:
        model = new_model(plan.model, settings, new_tokens)
    model.load_arrays(start.tensors if start else fresh_weights(plan.model, settings.seed, settings.induction))
    return model


def _new_tokens(plan: Plan, vocab_size: int) -> range:
    """The tokens that a base model does not have."""
    return range(vocab_size - (plan.conversations.new_tokens if plan.conversations else 0), vocab_size)
