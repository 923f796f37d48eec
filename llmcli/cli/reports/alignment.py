"""What `llm explain --prompt-pair` shows: a model's answer, and the words of the prompt that each of its words attends
to."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmcli import units
from llmcli.cli.reports.explanation import attention_title
from llmcli.cli.terminal import charts, console, tables
from llmcli.cli.terminal.safe_text import visible_whitespace

if TYPE_CHECKING:
    from llmcli.analysis.alignment import Alignment

BAR_WIDTH = 12  # columns


@dataclass(frozen=True)
class AlignmentReport:
    """An alignment with all that is needed to print it."""

    alignment: "Alignment"
    prompt: str
    answer: str
    layer: int | None  # whose attention is shown, from 1; None: the mean of all
    head: int | None  # of this layer, from 1

    def show(self) -> None:
        alignment, weights = self.alignment, self.alignment.mean(self.layer, self.head)
        console.result(f"answer: {self.answer}")
        L, H, _, _ = alignment.weights.shape
        title = attention_title(L, H, self.layer, self.head)
        console.heading(f"attention from the answer to the prompt, {title}")
        rows = []
        for i, word in enumerate(alignment.answer):
            source = int(weights[i].argmax())
            layer, head, largest = alignment.strongest_head(i, source)
            texts = (visible_whitespace(text) for text in (word.text, alignment.prompt[source].text))
            weight = float(weights[i, source])
            strongest = f"{units.probability(largest)} in layer {layer}, head {head}"
            rows.append((*texts, units.probability(weight), charts.bar(weight, BAR_WIDTH), strongest))
        tables.table(("answer", "attends to", "weight", "", "largest weight"), rows, numbers=(2,))
        console.caption(
            "For each word of the answer, the word of the prompt to which the model attends most while it predicts it."
        )

    def as_json(self) -> dict[str, object]:
        """With the weights that are shown: a row for each word of the answer."""
        return {
            "prompt": self.prompt,
            "answer": self.answer,
            "layer": self.layer,
            "head": self.head,
            "prompt_words": [word.text for word in self.alignment.prompt],
            "answer_words": [word.text for word in self.alignment.answer],
            "weights": self.alignment.mean(self.layer, self.head).astype(float).round(6).tolist(),
        }
