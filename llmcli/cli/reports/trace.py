"""The output of `llm generate --steps`: the candidates for each token, which are filtered out, and which one
is sampled."""

from typing import TYPE_CHECKING

from llmcli import units
from llmcli.cli.reports import tokens as token_output
from llmcli.cli.terminal import console, tables
from llmcli.cli.terminal.safe_text import visible_whitespace
from llmcli.cli.terminal.text_layout import terminal_width, truncate

if TYPE_CHECKING:
    from llmcli.config import SamplingConfig
    from llmcli.data.tokenizers.tokenizer import Tokenizer
    from llmcli.generation.trace import CandidateToken, TraceStep

MAX_TOKEN_WIDTH = 16  # columns
# width of the bars, and of everything else, in columns
MAX_BAR = 40
MIN_BAR = 8
OTHER_COLUMNS = 50


def print_step(
    step: "TraceStep", number: int, text: str, tokenizer: "Tokenizer", sampling: "SamplingConfig"
) -> None:
    """Print a table of a step's candidates, and the sampling settings. `text` is the text so far."""
    console.heading(f"{number}  {token_output.prompt_end(text)}…")
    if step.retokenized:
        console.paragraph(
            "probabilities of the first token are summed over the tokenizations of the prompt's end"
        )
    rows = []
    bar_width = min(MAX_BAR, max(MIN_BAR, terminal_width() - OTHER_COLUMNS))
    for candidate in [*step.candidates, *([step.chosen] if step.chosen not in step.candidates else [])]:
        label = truncate(visible_whitespace(tokenizer.label(candidate.id)), MAX_TOKEN_WIDTH)
        bar = token_output.bar(candidate.sampling_probability, bar_width)
        sampled = units.probability(candidate.sampling_probability), bar
        if candidate.removed_by:
            sampled = "", f"removed by {candidate.removed_by}"
        arrow = "→" if candidate == step.chosen else ""
        rows.append((arrow, label, units.probability(candidate.probability), *sampled))
    tables.table(("", "token", "model", "sampling", ""), rows, numbers=(2, 3))
    console.paragraph("; ".join(_settings(step, sampling)))


def _settings(step: "TraceStep", sampling: "SamplingConfig") -> list[str]:
    """Describe the entropy, and the sampling settings with their effect."""
    phrases = [f"entropy {units.bits(step.entropy)} bits"]
    if sampling.temperature == 0:
        return [*phrases, "temperature 0: the most likely token"]
    phrases.append(f"temperature {sampling.temperature:g}")
    values = {"top-k": sampling.top_k, "top-p": sampling.top_p, "min-p": sampling.min_p}
    for removal in step.removals:
        tokens = units.count(removal.tokens, "token")
        total = units.probability(removal.probability)
        phrases.append(
            f"{removal.filter} {values[removal.filter]:g} removes {tokens} (total probability {total})"
        )
    return [*phrases, f"sampled from {step.remaining:,}" if step.remaining > 1 else "one token remains"]


def print_end(text: str, seed: int) -> None:
    """Print the text after the last step, and explain the columns."""
    console.heading(token_output.prompt_end(text))
    console.caption(
        "model: the probability of the token under the model. sampling: the probability that it is sampled, "
        "after temperature and filters. Entropy: 1 bit is a choice between 2 equally likely tokens, "
        "3 bits one among 8."
    )
    console.note(f"[seed {seed}]")


def trace_json(steps: "list[TraceStep]", prompt: str, tokenizer: "Tokenizer", seed: int) -> dict[str, object]:
    return {
        "prompt": prompt,
        "text": "".join(step.text for step in steps),
        "steps": [
            {
                "text": step.text,
                "chosen": _candidate_json(step.chosen, tokenizer),
                "candidates": [_candidate_json(candidate, tokenizer) for candidate in step.candidates],
                "left": step.remaining,
                "cuts": [
                    {
                        "by": removal.filter,
                        "tokens": removal.tokens,
                        "probability": round(removal.probability, 6),
                    }
                    for removal in step.removals
                ],
                "entropy_bits": round(step.entropy, 6),
                "spelling": step.retokenized,
            }
            for step in steps
        ],
        "finish_reason": steps[-1].finish_reason or "length",
        "seed": seed,
    }


def _candidate_json(candidate: "CandidateToken", tokenizer: "Tokenizer") -> dict[str, object]:
    return {
        "id": candidate.id,
        "text": tokenizer.label(candidate.id),
        "probability": round(candidate.probability, 6),
        "chance": round(candidate.sampling_probability, 6),
        "cut_by": candidate.removed_by,
    }
