"""When a run evaluates the validation slice, and how much of the held-out text at its end. Pure arithmetic."""

from dataclasses import dataclass

from llmcli.training.planning import recipe


@dataclass(frozen=True)
class EvaluationSchedule:
    """How much training has to lie between two evaluations."""

    training_per_evaluated: float = recipe.TRAINING_PER_EVALUATED  # tokens trained on, per token evaluated, at least
    min_progress: float = recipe.EVALUATION_INTERVAL  # of the run, at least
    long_evaluation: float = 5e11  # FLOPs (a few seconds on a few cores), before which the state of the run is saved

    def is_due(self, trained: int, evaluated: int, progress: float) -> bool:
        """Whether to evaluate `evaluated` tokens again, after training on `trained` tokens and making `progress`
        (0 to 1 of the run) since the last time.

        >>> EvaluationSchedule().is_due(trained=24_000, evaluated=1000, progress=0.1)
        True
        """
        return trained >= self.training_per_evaluated * evaluated and progress >= self.min_progress


def final_evaluation_tokens(trained: int, least: int, held_out: int) -> int:
    """Tokens that the final evaluation covers, of `held_out`: as many as is reasonable after training on `trained`
    tokens, and no fewer than `least`.

    >>> final_evaluation_tokens(trained=120_000, least=4096, held_out=50_000)
    20000
    >>> final_evaluation_tokens(trained=10**7, least=4096, held_out=10**9)
    625000
    """
    short = min(trained // recipe.SHORT_FINAL_DIVISOR, recipe.FINAL_TOKENS)
    long = min(trained // recipe.FINAL_DIVISOR, recipe.MAX_FINAL_TOKENS)
    return min(max(short, long, least), held_out)
