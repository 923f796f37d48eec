"""Plan -> training steps, as a generator of events. It never prints and never writes a file.

Everything random is a function of (seed, step): the order of the data, dropout, fresh weights.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens.batches import Tokens
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.training.data.conversations import PreparedConversations
from llmcli.training.data.plain_text import PlainText
from llmcli.training.data.run_data import RunData
from llmcli.training.loop.evaluation_schedule import EvaluationSchedule
from llmcli.training.loop.events import Event, State
from llmcli.training.loop.run import Run
from llmcli.training.loop.run_timer import RunTimer
from llmcli.training.planning.plan import Plan, Regularization
from llmcli.training.step.compute import Compute
from llmcli.training.step.data_parallel import Leader
from llmcli.training.step.thread_tuner import ThreadTuner


def train(
    plan: Plan,
    tokenizer: Tokenizer,
    start: Checkpoint | None,
    tokens: Tokens,
    held_out: NDArray[np.unsignedinteger],
    record: dict[str, Any],
    *,
    sample_prompt: str | None = None,
    started_at: float | None = None,
    reserve_seconds: float = 0.0,
    stop: Callable[[], bool] = lambda: False,
    save_due: Callable[[], bool] = lambda: False,
    resume_from: State | None = None,
    regularize: Callable[[float], Regularization] | None = None,
    tuner: ThreadTuner | None = None,
    schedule: EvaluationSchedule | None = None,
    compute: Compute | None = None,
    clock: Callable[[], float] = time.monotonic,
    conversations: PreparedConversations | None = None,
    plain_text: PlainText | None = None,
    leader: Leader | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Iterator[Event]:
    """Train on `tokens` according to `plan`, from the weights of `start` or from fresh ones. The last event is Done.

    With `conversations` the run turns to them when the plan says so, at once if there are no tokens, and evaluates
    their held-out answers instead of `held_out`. `plain_text` is scored at its end; if it fine-tunes a model and there
    is no such text, one that the base model generates.

    `record` describes the corpus; it becomes part of the training record. `sample_prompt` is the prompt of
    the samples.

    Stopping and resuming: `stop` is called after every step and evaluation, and within one that takes long; when it
    returns True the run ends early, with the best weights so far. When `save_due` returns True, and before long
    evaluations, a State is yielded. Given as `resume_from` to another call, it leads to exactly the same weights.

    Time: a plan with a time limit counts seconds of `clock` from `started_at` on, and leaves `reserve_seconds` of them
    to the caller. `regularize` (epochs -> regularization) is called again as the number of epochs that the run
    will reach becomes clear, and `tuner` chooses the number of threads from step to step.

    With a `leader` of several processes, each step is computed by all of them.

    `on_progress` gets the share that is done, 0 to 1, while a base model generates text before the first step.

    Raises LLMError if the loss becomes NaN or infinite before the first evaluation (after it, the run ends with the
    best weights so far), if the run is stopped before its first step, or if `resume_from` is of another run.
    """
    data = RunData(plan, tokenizer, tokens, held_out, conversations, plain_text)
    run = Run(
        plan, start, data, RunTimer(plan.train, clock, stop), sample_prompt=sample_prompt, regularize=regularize,
        tuner=tuner, schedule=schedule or EvaluationSchedule(), compute=compute or Compute(), leader=leader,
    )  # fmt: skip
    run.begin(clock() if started_at is None else started_at, reserve_seconds, resume_from, on_progress)
    del resume_from  # or its copy of the weights and of the optimizer would be in memory for the whole run
    stopped = stop()
    if start and run.is_new and not stopped:
        yield from run.evaluate_start()
        stopped = stop()
    while True:
        if run.is_evaluation_due() and not stopped:
            yield from run.evaluate()
            stopped = stop()
        if run.problem or (run.is_over and not stopped):
            break
        # saved before the evaluation that only an interrupted run makes: a resumed run must not depend on that
        if stopped or (run.has_begun and save_due()):
            yield run.state()
        if stopped:
            break
        if run.is_student_due:
            yield from run.begin_student()
        else:
            if step := run.step():
                yield step
            stopped = stop()
        if run.is_over and run.has_long_final_evaluation():
            yield run.state()  # a failure in any of the evaluations that follow loses no step
    if not (run.has_begun or run.problem):
        raise LLMError("stopped before the first training step was finished; no model was written")
    if stopped and not (run.is_evaluated or run.problem):
        yield from run.evaluate(hurried=True)
    yield run.finish(record, interrupted=stopped and not run.problem)
