"""Which weights of a run to keep: those of the end, those that the validation slice chooses, those that the held-out
data would choose.

    python -m tests.benchmarks.selection TEXT [--steps 800 | --epochs 20] [--layers 2 --width 128] [--seeds 3]
    python -m tests.benchmarks.selection CONVERSATIONS --from MODEL [--lora 8] [--validation 30]

A run evaluates as it does anyway; here the held-out data are scored with the same weights besides. One run so yields
all three figures, in bits per byte of the held-out data, by the rule of `BestWeights` (of nearly equal evaluations the
later counts). "nothing reserved" is a run without validation slice, which trains on that part too: its last weights.
--validation sets the size of the slice, in tokens of text, or in conversations.
"""

import argparse
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.inputs import Inputs, load_inputs
from llmcli.training.data.prepare import Prepared
from llmcli.training.data.run_data import RunData
from llmcli.training.files.output import dry_run_output
from llmcli.training.loop import trainer
from llmcli.training.loop.best_weights import BestWeights, CandidateWeights
from llmcli.training.loop.clock import Clock
from llmcli.training.loop.events import Done
from llmcli.training.loop.job import Job
from llmcli.training.loop.validation import HeldOutEvaluation
from llmcli.training.planning import recipe
from llmcli.training.planning.plan import Plan, PlanRequest
from llmcli.training.session import plan_run

MOST_TOKENS = 65_536  # of the held-out text
OUTPUT = Path("selection.safetensors")  # never written


class ObservedWeights(BestWeights):
    """The best weights of a run, which also notes the score of each candidate."""

    plan: Plan
    prepared: Prepared
    scores: list[tuple[int, float]]  # (step, bits per byte of the held-out data); of the newest run

    def keep_if_best(self, candidate: CandidateWeights) -> bool:
        self.scores.append((self._position.step, held_out_bits(self.plan, self.prepared, candidate.weights)))
        return super().keep_if_best(candidate)


def held_out_bits(plan: Plan, prepared: Prepared, weights: Mapping[str, NDArray[np.float32]]) -> float:
    """Of any weights of a model."""
    data = prepared.conversations.held_out if prepared.conversations else prepared.held_out
    settings = replace(plan.train, seconds=None, eval_tokens=MOST_TOKENS)
    evaluation = HeldOutEvaluation(LanguageModel(plan.model), prepared.tokenizer, data, settings)
    score = evaluation.evaluate(weights, 0)
    assert score
    return score.bits_per_byte


def chosen(scores: list[tuple[int, float]]) -> tuple[int, float]:
    """(step, bits per byte) of the evaluation that `BestWeights` would keep if it were chosen by these scores."""
    best, kept = math.inf, scores[0]
    for step, bits in scores:
        if bits <= best * (1 + recipe.TIE_MARGIN):
            kept = step, bits
            best = min(best, bits)
    return kept


def run(plan: Plan, prepared: Prepared, inputs: Inputs) -> tuple[Done, list[tuple[int, float]]]:
    """(the end of a run, the scores of its evaluations)."""
    ObservedWeights.plan, ObservedWeights.prepared, ObservedWeights.scores = plan, prepared, []
    data = RunData(plan, prepared.tokenizer, prepared.tokens, prepared.held_out, prepared.conversations)
    *_, done = trainer.train(Job(plan, data, prepared.record, inputs.base), Clock(plan.train))
    assert isinstance(done, Done)
    return done, ObservedWeights.scores


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
    trainer.BestWeights = ObservedWeights  # type: ignore[misc]
    print("| seed | evaluations | slice | end | chosen by the slice | chosen by the held-out data | nothing reserved |")
    print("|---|---|---|---|---|---|---|", flush=True)
    rows = []
    for seed in range(options.seeds):
        request = PlanRequest(**{name: getattr(options, name) for name in names}, seed=seed, threads=1)
        output = dry_run_output(OUTPUT)
        inputs = load_inputs(options.corpus, options.val, options.base, None, "bpe", output.path)
        prepared = plan_run(
            replace(request, dtype=options.dtype), inputs, output, fixed_threads=True,
            started=time.monotonic(),
        ).prepared  # fmt: skip
        rows.append(measure(prepared, inputs, options.validation))
        print(f"| {seed} | {' | '.join(rows[-1][0])} |", flush=True)
    medians = [statistics.median(row[1][i] for row in rows) for i in range(4)]
    print(f"| median | | | {' | '.join(f'{bits:.4f}' for bits in medians)} |")


def measure(prepared: Prepared, inputs: Inputs, validation: int | None) -> tuple[list[str], list[float]]:
    """(the cells of a row, its four figures)."""
    plan = prepared.plan if validation is None else with_validation(prepared.plan, validation)
    last, _ = run(with_validation(plan, 0), prepared, inputs)
    nothing = held_out_bits(plan, prepared, last.checkpoint.tensors)
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
