"""Which weights of a run to keep: those of the end, those that the validation slice chooses, those that the held-out
data would choose.

    python -m tests.benchmarks.selection TEXT [--steps 800 | --epochs 20] [--layers 2 --width 128] [--seeds 3]
    python -m tests.benchmarks.selection CONVERSATIONS --from MODEL [--lora 8] [--validation 30]

A run evaluates as it does anyway; here the held-out data are scored with the same weights besides. One run so yields
all three figures, in bits per byte of the held-out data, by the rule of `Run` (of nearly equal evaluations the later
counts). "nothing reserved" is a run without validation slice, which trains on that part too: its last weights.
--validation sets the size of the slice, in tokens of text, or in conversations.
"""

import argparse
import math
import statistics
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.training import recipe, trainer
from llmcli.training.events import Done
from llmcli.training.inputs import Inputs, load_inputs
from llmcli.training.output import dry_run_output
from llmcli.training.plan import Plan, Request
from llmcli.training.prepare import Prepared
from llmcli.training.run import Run
from llmcli.training.session import plan_run
from llmcli.training.validation import HeldOutEvaluation

MOST_TOKENS = 65_536  # of the held-out text
OUTPUT = Path("selection.safetensors")  # never written


class ObservedRun(Run):
    """A run that also scores the held-out data in each evaluation."""

    scores: list[tuple[int, float]]  # (step, bits per byte of the held-out data); of the newest run
    final = math.nan  # of the weights that the newest run kept

    def _keep_if_best(self, bits: float, weights: dict[str, NDArray[np.float32]], factor: float) -> bool:
        type(self).scores.append((self.position.step, self.held_out_bits(weights)))
        return super()._keep_if_best(bits, weights, factor)

    def finish(self, record: dict[str, Any], interrupted: bool) -> Done:
        done = super().finish(record, interrupted)
        type(self).final = self.held_out_bits(self._best)
        return done

    def held_out_bits(self, weights: dict[str, NDArray[np.float32]]) -> float:
        """Of any weights."""
        data = self._conversations.held_out if self._conversations else observed_text[0]
        settings = replace(self._settings, seconds=None, eval_tokens=MOST_TOKENS)
        evaluation = HeldOutEvaluation(self.model, self._tokenizer, data, settings)
        score = evaluation.evaluate(weights, 0, math.inf, lambda: 0.0, lambda model: nullcontext(), hurried=False)
        assert score
        return score.bits_per_byte


observed_text: list[Any] = []


def chosen(scores: list[tuple[int, float]]) -> tuple[int, float]:
    """(step, bits per byte) of the evaluation that `Run` would keep if it were chosen by these scores."""
    best, kept = math.inf, scores[0]
    for step, bits in scores:
        if bits <= best * (1 + recipe.TIE_MARGIN):
            kept = step, bits
            best = min(best, bits)
    return kept


def run(plan: Plan, prepared: Prepared, inputs: Inputs) -> tuple[Done, list[tuple[int, float]]]:
    """(the end of a run, the scores of its evaluations)."""
    ObservedRun.scores = []
    observed_text[:] = [prepared.held_out]
    events = trainer.train(
        plan, prepared.tokenizer, inputs.base, prepared.tokens, prepared.held_out, prepared.record,
        conversations=prepared.conversations, sample_prompt=None,
    )  # fmt: skip
    done = None
    for event in events:
        done = event
    assert isinstance(done, Done)
    return done, ObservedRun.scores


def with_validation(plan: Plan, count: int) -> Plan:
    """The same plan with a slice of another size."""
    if plan.conversations:
        return replace(plan, conversations=replace(plan.conversations, validation=count))
    return replace(plan, train=replace(plan.train, calibration_tokens=count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="+")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--context", type=int)
    parser.add_argument("--vocab-size", type=int)
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--lora", type=int, default=0)
    parser.add_argument("--from", dest="base", type=Path)
    parser.add_argument("--val")
    parser.add_argument("--validation", type=int)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    names = ("steps", "epochs", "layers", "width", "context", "vocab_size", "batch_tokens", "dropout", "lora")
    trainer.Run = ObservedRun  # type: ignore[misc]
    print("| seed | evaluations | slice | end | chosen by the slice | chosen by the held-out data | nothing reserved |")
    print("|---|---|---|---|---|---|---|", flush=True)
    rows = []
    for seed in range(options.seeds):
        request = Request(**{name: getattr(options, name) for name in names}, seed=seed, threads=1)
        output = dry_run_output(OUTPUT)
        inputs = load_inputs(options.corpus, options.val, options.base, None, "bpe", output.path)
        prepared = plan_run(request, inputs, output, "cpu", options.dtype, options={}, fixed_threads=True).prepared
        rows.append(measure(prepared, inputs, options.validation))
        print(f"| {seed} | {' | '.join(rows[-1][0])} |", flush=True)
    medians = [statistics.median(row[1][i] for row in rows) for i in range(4)]
    print(f"| median | | | {' | '.join(f'{bits:.4f}' for bits in medians)} |")


def measure(prepared: Prepared, inputs: Inputs, validation: int | None) -> tuple[list[str], list[float]]:
    """(the cells of a row, its four figures)."""
    plan = prepared.plan if validation is None else with_validation(prepared.plan, validation)
    run(with_validation(plan, 0), prepared, inputs)
    nothing = ObservedRun.final
    size = plan.conversations.validation if plan.conversations else plan.train.calibration_tokens
    if not size:
        return ["0", "0", f"{nothing:.4f}", "", "", f"{nothing:.4f}"], [nothing] * 4
    done, scores = run(plan, prepared, inputs)
    by_step = dict(scores)
    best_step, best = chosen(scores)
    figures = [scores[-1][1], by_step[done.best_step], best, nothing]
    cells = [
        f"{len(scores)}", f"{size:,}", f"{figures[0]:.4f}", f"{figures[1]:.4f} (step {done.best_step:,})",
        f"{best:.4f} (step {best_step:,})", f"{nothing:.4f}",
    ]  # fmt: skip
    return cells, figures


if __name__ == "__main__":
    main()
