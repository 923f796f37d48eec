"""The loop of a training run, as a generator of events. It never prints and never writes a file.

All randomness (the order of the data, dropout, fresh weights) is a function of (seed, step). New, fine-tuning
and resumed runs take the same path.
"""

from collections.abc import Callable, Iterator

from llmcli.errors import LLMError
from llmcli.training.loop.events import Event
from llmcli.training.loop.run import Run


def train(run: Run, save_due: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Train a run that has begun until it is over. The last event is Done.

    When `stop_requested` of the run's clock returns True, the run ends early with the best weights so far.
    When `save_due` returns True, and before long evaluations, a State is yielded; a run that resumes from it
    reaches the same weights.

    Raises LLMError if the loss becomes NaN or infinite before the first evaluation (later, the run ends with
    the best weights so far), or if it is stopped before its first step.
    """
    stop_requested = run.clock.stop_requested
    stopped = stop_requested()
    if run.data.base and run.is_new and not stopped:
        yield from run.evaluate()  # if training does not improve on these weights, the run ends with them
        run.clock.begin_steps()
        stopped = stop_requested()
    while True:
        if run.is_evaluation_due() and not stopped:
            yield from run.evaluate()
            stopped = stop_requested()
        if run.problem or (run.is_over and not stopped):
            break
        # save first: only an interrupted run makes this evaluation, so a resumed run must not depend on it
        if stopped or (run.has_begun and save_due()):
            yield run.state()
        if stopped:
            break
        if run.is_student_due:
            yield from run.begin_student()
        else:
            if step := run.step():
                yield step
            stopped = stop_requested()
        if run.is_over and run.has_long_final_evaluation():
            yield run.state()  # a failure in the following evaluations loses no steps
    if not (run.has_begun or run.problem):
        raise LLMError("stopped before the first training step was finished; no model was written")
    if stopped and not (run.is_evaluated or run.problem):
        yield from run.evaluate(hurried=True)
    yield run.finish(interrupted=stopped and not run.problem)
