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
    from llmcli.formats.metadata import Json
    from llmcli.generation.trace import CandidateToken, TraceStep

MAX_TOKEN_WIDTH = 16  # columns
# width of the bars, and of everything else, in columns
MAX_BAR = 40
MIN_BAR = 8
OTHER_COLUMNS = 50


def print_step(step: "Json", number: int, text: str, sampling: "SamplingConfig") -> None:
    """Print a table of a step's candidates, and the sampling settings. `text` is the text so far; `step` is
    what `step_json` returns."""
    console.heading(f"{number}  {token_output.prompt_end(text)}…")
    if step["spelling"]:
        console.paragraph(
            "probabilities of the first token are summed over the tokenizations of the prompt's end"
        )
    rows = []
    bar_width = min(MAX_BAR, max(MIN_BAR, terminal_width() - OTHER_COLUMNS))
    chosen = step["chosen"]
    for candidate in [*step["candidates"], *([chosen] if chosen not in step["candidates"] else [])]:
        label = truncate(visible_whitespace(candidate["text"]), MAX_TOKEN_WIDTH)
        sampled = units.probability(candidate["chance"]), token_output.bar(candidate["chance"], bar_width)
        if candidate["cut_by"]:
            sampled = "", f"removed by {candidate['cut_by']}"
        arrow = "→" if candidate == chosen else ""
        rows.append((arrow, label, units.probability(candidate["probability"]), *sampled))
    tables.table(("", "token", "model", "sampling", ""), rows, numbers=(2, 3))
    console.paragraph("; ".join(_settings(step, sampling)))


def _settings(step: "Json", sampling: "SamplingConfig") -> list[str]:
    """Describe the entropy, and the sampling settings with their effect."""
    phrases = [f"entropy {units.bits(step['entropy_bits'])} bits"]
    if sampling.temperature == 0:
        return [*phrases, "temperature 0: the most likely token"]
    phrases.append(f"temperature {sampling.temperature:g}")
    values = {"top-k": sampling.top_k, "top-p": sampling.top_p, "min-p": sampling.min_p}
    for cut in step["cuts"]:
        tokens = units.count(cut["tokens"], "token")
        total = units.probability(cut["probability"])
        phrases.append(f"{cut['by']} {values[cut['by']]:g} removes {tokens} (total probability {total})")
    return [*phrases, f"sampled from {step['left']:,}" if step["left"] > 1 else "one token remains"]


def print_end(text: str, seed: int) -> None:
    """Print the text after the last step, and explain the columns."""
    console.heading(token_output.prompt_end(text))
    console.caption(
        "model: the probability of the token under the model. sampling: the probability that it is sampled, "
        "after temperature and filters. Entropy: 1 bit is a choice between 2 equally likely tokens, "
        "3 bits one among 8."
    )
    console.note(f"[seed {seed}]")


def step_json(step: "TraceStep", tokenizer: "Tokenizer") -> "Json":
    def candidate_json(candidate: "CandidateToken") -> "Json":
        return {
            "id": candidate.id,
            "text": tokenizer.label(candidate.id),
            "probability": round(candidate.probability, 6),
            "chance": round(candidate.sampling_probability, 6),
            "cut_by": candidate.removed_by,
        }

    return {
        "text": step.text,
        "chosen": candidate_json(step.chosen),
        "candidates": list(map(candidate_json, step.candidates)),
        "left": step.remaining,
        "cuts": [
            {"by": name, "tokens": tokens, "probability": round(probability, 6)}
            for name, tokens, probability in step.removals
        ],
        "entropy_bits": round(step.entropy, 6),
        "spelling": step.retokenized,
    }
