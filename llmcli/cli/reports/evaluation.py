"""The output of `llm eval`: scores of models and compressors, or the surprisal of each token."""

import sys
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.cli.reports import tokens as token_output
from llmcli.cli.terminal import console, tables
from llmcli.cli.terminal.safe_text import one_line, visible_whitespace
from llmcli.evaluation.figures import ADAPTING, NETWORK, Figures, as_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmcli.data.tokenizers.tokenizer import Tokenizer
    from llmcli.evaluation.compressors import Baseline
    from llmcli.evaluation.evaluator import Score, Span
    from llmcli.formats.training_record import KnownAnswerShares

# column headings
EXACT = "exact answers"
TEXT = "text"


def score_record(
    model: str, file: str | None, score: "Score", context: int, stride: int, **others: object
) -> dict[str, Any]:
    """Describe a model's score on a document (None: all documents together), measured in windows of `context`
    tokens, `stride` tokens apart, and `others`, its answers to questions."""
    figures = score.figures
    return {
        "model": model,
        "file": file,
        "bytes": score.bytes,
        "tokens": score.tokens,
        "bits_per_byte": round(score.bits_per_byte, 6),
        **({} if figures.adapting is None else {"bits_per_byte_without_cache": round(figures.network, 6)}),
        **as_json(figures),
        "perplexity": round(score.perplexity, 6),
        "accuracy": round(score.accuracy, 6),
        "context": context,
        "stride": stride,
        **others,
    }


def print_scores(
    scores: list[dict[str, Any]], baselines: "Sequence[Baseline]", from_byte: int, *, json_: bool
) -> None:
    """Print the scores of models on each document (see `score_record`), best first, and of compressors on all
    documents. `from_byte` is the start of the measured text."""
    files = list(dict.fromkeys(score["file"] for score in scores))
    scores.sort(key=lambda score: (files.index(score["file"]), score["bits_per_byte"]))
    if json_:
        compressors = [
            {
                "name": row.name,
                "file": files[-1],
                "bytes": row.bytes,
                "bits_per_byte": round(row.bits_per_byte, 6),
                "adaptive": row.is_adaptive,
                "estimate": row.is_estimate,
                "past_bytes": row.past_bytes,
                "pieces": row.pieces,
            }
            for row in baselines
        ]
        console.json_result({"results": scores, "baselines": compressors, "from_byte": from_byte})
    else:
        _print_table(scores, baselines, files)


def _print_table(
    scores: list[dict[str, Any]], baselines: "Sequence[Baseline]", files: "Sequence[str | None]"
) -> None:
    """Print a table in which each compressor is in the column with comparable figures."""
    rows = [
        {
            "model": row["model"],
            NETWORK: units.bits_per_byte(row["network_bits_per_byte"]),
            ADAPTING: "" if (bits := row["adapting_bits_per_byte"]) is None else units.bits_per_byte(bits),
            "perplexity": f"{row['perplexity']:.2f}",
            "accuracy": f"{row['accuracy']:.3f}",
            EXACT: f"{row['exact']:,} of {row['questions']:,}" if "exact" in row else "",
            "tokens": str(row["tokens"]),
            "bytes": str(row["bytes"]),
            TEXT: row["file"] or "all",
        }
        for row in scores
    ]
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    for row in baselines:
        column = ADAPTING if row.is_adaptive else NETWORK
        names = names if column in names else [*names[:2], column, *names[2:]]
        rows.append({"model": row.name, column: row.shown, "bytes": str(row.bytes), TEXT: files[-1] or "all"})
    texts = list(dict.fromkeys(row[TEXT] for row in rows)) if len(files) > 1 else []
    is_divided = bool(texts) and sys.stdout.isatty()  # one table for all texts would be too wide
    if is_divided or not texts:
        names.remove(TEXT)
    numbers = [i for i, name in enumerate(names) if name not in ("model", TEXT)]
    for text in texts if is_divided else [""]:
        if text:
            console.result(f"text: {text}")
        shown = [row for row in rows if text in ("", row[TEXT])]
        tables.table(names, [[row.get(name, "") for name in names] for row in shown], numbers=numbers)
    beside = "; beside it, compressors whose statistics do not adapt" if baselines else ""
    estimate = ' ("about": estimated from a sample)' if any(row.is_estimate for row in baselines) else ""
    console.caption(
        f"{NETWORK}: bits per byte of the network alone, as other programs run it{beside}{estimate}."
    )
    if ADAPTING in names:
        console.caption(
            f"{ADAPTING}: bits per byte of models with their n-gram cache, and of adaptive compressors."
        )
    of_adapting = f" ({ADAPTING}, where there is a figure)" if ADAPTING in names else ""
    console.caption(
        "Bits per byte: lower is better, 8 is a uniform guess over all byte values; comparable across all "
        f"models. perplexity{of_adapting}: as uncertain as a choice among that many equally likely tokens; "
        "comparable only between models with the same tokenizer. accuracy: "
        "share of tokens that were the network's most likely one."
    )
    if EXACT in names:
        console.caption(f"{EXACT}: last answers that llm chat -t 0 writes exactly as in the text.")


def print_known_scores(scores: "Sequence[tuple[str, KnownAnswerShares, float]]", *, json_: bool) -> None:
    """Print the number of correct, wrong and missing answers of each model, and its minimum confidence."""
    results = [
        {
            "model": name,
            "questions": score.questions,
            "right": score.right,
            "wrong": score.wrong,
            "unanswered": score.questions - score.right - score.wrong,
            "answerable": score.answerable,
            "min_confidence": min_confidence,
        }
        for name, score, min_confidence in scores
    ]
    if json_:
        console.json_result({"results": results})
        return
    names = ("model", "right", "wrong", "unanswered", "answerable")
    rows = [[*(str(result[name]) for name in names), f"{result['min_confidence']:.2f}"] for result in results]
    tables.table((*names, "minimum confidence"), rows, numbers=range(1, 6))
    console.caption(
        "answerable: questions whose answer is one of the known answers; for the others, "
        "every known answer is wrong."
    )


@dataclass(frozen=True)
class TokenSurprisals:
    """The surprisal of every token in some documents under a model."""

    model: str
    tokenizer: "Tokenizer"
    ids: list[int]
    bits: list[float]
    files: list[str]
    first_tokens: list[int]  # index of the first token of each file
    score: dict[str, Any]  # on all documents; see `score_record`

    @property
    def _figures(self) -> Figures:
        return Figures(self.score["network_bits_per_byte"], self.score["adapting_bits_per_byte"])

    def _documents(self) -> "Iterator[tuple[str, list[int], list[bytes], list[float]]]":
        """Yield (file, ids of its tokens, their bytes, their surprisals)."""
        ends = [*self.first_tokens[1:], len(self.ids)]
        for file, start, end in zip(self.files, self.first_tokens, ends, strict=True):
            ids = self.ids[start:end]
            yield file, ids, [self.tokenizer.token_bytes[token] for token in ids], self.bits[start:end]

    def as_json(self, spans: "Sequence[Span]", from_byte: int) -> dict[str, object]:
        """`spans` are the most surprising passages; `from_byte` is the start of the measured text."""
        return {
            "model": self.model,
            "files": [
                {"file": file, "first_token": first}
                for file, first in zip(self.files, self.first_tokens, strict=True)
            ],
            "from_byte": from_byte,
            "bits_per_byte": self.score["bits_per_byte"],
            **as_json(self._figures),
            "tokens": [
                {"id": token, "text": self.tokenizer.label(token), "bits": round(bits, 4)}
                for token, bits in zip(self.ids, self.bits, strict=True)
            ],
            "most_surprising": [
                {
                    "first_token": span.start,
                    "tokens": span.end - span.start,
                    "bits": round(span.bits, 4),
                    "text": self.tokenizer.decode(self.ids[span.start : span.end]),
                }
                for span in spans
            ],
        }

    def show(self, spans: "Sequence[Span]") -> None:
        """Print the texts with their tokens colored by surprisal, then the most surprising passages."""
        for file, _, tokens, bits in self._documents():
            if len(self.files) > 1:
                console.heading(file)
            texts = _characters_of_tokens(tokens)  # tokens that share a character are joined
            token_output.surprisals([(text, sum(bits[i:j])) for text, i, j in texts])
        console.heading(f"{self._figures}; the most surprising passages:")
        rows = [
            (
                f"{span.bits:.1f}",
                f"{span.bits / (span.end - span.start):.2f}",
                f"{span.start + 1:,}",
                one_line(
                    self.tokenizer.decode_bytes(self.ids[span.start : span.end]).decode("utf-8", "ignore")
                ),
            )
            for span in spans
        ]
        tables.table(("bits", "per token", "at token", "passage"), rows, numbers=(0, 1, 2))
        console.caption(
            "The surprisal of a token with probability 1/2 is 1 bit, with 1/4 2 bits, with 1/1024 10 bits."
        )

    def show_lines(self, first_lines: "Sequence[int]", top: int, *, json_: bool) -> None:
        """Print the lines with the highest surprisal. `first_lines` is the number of the first line in each
        file."""
        from llmcli.evaluation.evaluator import tokens_of_lines

        rows: list[dict[str, Any]] = []
        for (file, ids, tokens, bits), first_line in zip(self._documents(), first_lines, strict=True):
            texts = b"".join(tokens).split(b"\n")
            for number, inside in tokens_of_lines(tokens):
                line_bits = sum(bits[i] for i in inside)
                highest = max(inside, key=bits.__getitem__)
                row = {
                    "file": file,
                    "line": first_line + number - 1,
                    "text": texts[number - 1].decode("utf-8", "replace"),
                    "bits": round(line_bits, 4),
                    "bits_per_byte": round(line_bits / sum(len(tokens[i]) for i in inside), 6),
                    "most_surprising": {
                        "text": self.tokenizer.label(ids[highest]),
                        "bits": round(bits[highest], 4),
                    },
                }
                rows.append(row)
        rows.sort(key=lambda row: -row["bits"])
        if json_:
            console.json_result({"model": self.model, **as_json(self._figures), "lines": rows})
            return
        names = ["bits", "per byte", "line", "file", "most surprising token", "text"]
        shown = [
            [
                f"{row['bits']:.1f}",
                f"{row['bits_per_byte']:.2f}",
                f"{row['line']:,}",
                row["file"],
                visible_whitespace(row["most_surprising"]["text"]),
                one_line(row["text"]),
            ]
            for row in rows[:top]
        ]
        if len(self.files) == 1:
            for cells in (names, *shown):
                del cells[3]
        tables.table(names, shown, numbers=(0, 1, 2))
        console.caption(
            f"The {min(top, len(rows)):,} of {len(rows):,} lines with the most bits. A token is counted in "
            "the line in which it begins. Each line is predicted from the lines before it."
        )


def _characters_of_tokens(tokens: "Sequence[bytes]") -> "Iterator[tuple[str, int, int]]":
    """Yield (characters that begin in a token, index of the token, index of the next token in which a
    character begins).

    >>> list(_characters_of_tokens(["a赤".encode()[:2], "赤".encode()[1:], b"b"]))
    [('a赤', 0, 2), ('b', 2, 3)]
    """
    begins = []  # (token, byte offset of its first character)
    offset = 0
    for i, token in enumerate(tokens):
        begins += [(i, offset + k) for k, byte in enumerate(token) if byte & 0xC0 != 0x80][:1]
        offset += len(token)
    data = b"".join(tokens)
    for (first, begin), (next_, end) in pairwise([*begins, (len(tokens), len(data))]):
        yield data[begin:end].decode("utf-8", "replace"), first, next_
