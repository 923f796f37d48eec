"""Memorization: the 30-character strings of a text that occur verbatim in the training text.

`measure_memorization` measures the share of such strings in text that a model generates without a prompt. The
baseline is their share in held-out text, since people repeat themselves too. `find_verbatim` marks them in
given texts.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmcli.config import SamplingConfig
from llmcli.data.text.string_hashes import string_hashes
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.evaluation.training_text import SEPARATOR, TrainingText
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.metadata import Json
from llmcli.formats.training_record import Memorization
from llmcli.generation.generator import generate
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.runtime import Bools, Check, no_check

Documents = Iterable[Iterable[str]]  # each in pieces
LENGTH = 30  # characters per string: longer than almost any phrase that people write twice by chance
SAMPLED_CHARACTERS = 2_000  # generated in total
SAMPLES = 8  # generated texts
MAX_WORK = 3e9  # parameters x tokens generated: about a second or two on one core
MAX_SEARCHED_BYTES = 64_000_000  # searched beginning of the training text: about two seconds
_TABLE_BITS = 20  # a million slots for a few thousand strings: few hash collisions


def measure_memorization(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    held_out: NDArray[np.unsignedinteger],
    documents: Documents,
    seed: int = 0,
    is_over: Callable[[], bool] = lambda: False,
) -> Memorization | None:
    """Search the training documents for the strings of text that the model generates without a prompt at
    temperature 1, and of the text of the `held_out` ids [N]. None if the generated texts are too short, for
    example because `is_over()` returned True."""
    generated_strings = list(strings(_generate_texts(checkpoint, tokenizer, seed, is_over)))
    held_out_strings = list(strings(_excerpts(tokenizer, held_out)))
    if not generated_strings:
        return None
    searched_bytes = 0

    def counted(pieces: Iterable[str]) -> Iterator[str]:
        nonlocal searched_bytes
        for piece in pieces:
            if searched_bytes >= MAX_SEARCHED_BYTES or (searched_bytes and is_over()):
                return
            searched_bytes += len(piece) if piece.isascii() else len(piece.encode("utf-8", "surrogatepass"))
            yield piece

    occurring = occurring_strings({*generated_strings, *held_out_strings}, map(counted, documents))
    return Memorization(
        share=round(occurring_share(generated_strings, occurring), 4),
        strings=len(generated_strings),
        held_out_share=round(occurring_share(held_out_strings, occurring), 4) if held_out_strings else None,
        searched_bytes=searched_bytes,
    )


@dataclass(frozen=True)
class VerbatimSpans:
    """The parts of a text that occur verbatim in a corpus."""

    spans: tuple[tuple[int, int], ...]  # (first character, one past the last)
    share: float  # share of the characters, 0 to 1
    searched_bytes: int

    def as_json(self, text: str, corpus: Sequence[str]) -> Json:
        """Return the passages as printed by `--memory --json`; `corpus` lists the names of the files."""
        return {
            "corpus": list(corpus),
            "searched_bytes": self.searched_bytes,
            "share": round(self.share, 6),
            "spans": [{"start": start, "end": end, "text": text[start:end]} for start, end in self.spans],
        }


def find_verbatim(
    texts: Sequence[str], training_texts: Sequence[TrainingText], *, check: Check = no_check
) -> list[VerbatimSpans]:
    """Find the spans of each text that occur in the training texts, which are read only once; overlapping
    strings form one span. `check` is called before each piece of the training texts, and may raise an
    exception to end the search."""

    def checked(pieces: Iterable[str]) -> Iterator[str]:
        for piece in pieces:
            check()
            yield piece

    documents = (checked(pieces) for text in training_texts for pieces in text.documents())
    occurring = occurring_strings(set(strings(texts)), documents)
    results = []
    searched = sum(text.bytes for text in training_texts)
    for text in texts:
        covered = bytearray(len(text))
        for start, string in enumerate(strings([text])):
            if string in occurring:
                covered[start : start + LENGTH] = b"\1" * LENGTH
        edges = [i for i, (a, b) in enumerate(itertools.pairwise([0, *covered, 0])) if a != b]
        spans = tuple(itertools.pairwise(edges))[::2]
        results.append(VerbatimSpans(spans, sum(covered) / max(1, len(text)), searched))
    return results


def occurring_lines(candidates: set[str], documents: Documents) -> set[str]:
    """Return the candidates that are lines of a document, ignoring spaces around a line."""
    occurring: set[str] = set()
    for pieces in documents:
        unfinished: list[str] = []
        for piece in itertools.chain(pieces, "\n"):
            first, *lines = piece.replace(SEPARATOR, "\n").split("\n")
            unfinished.append(first)
            if lines:
                complete = ["".join(unfinished), *lines[:-1]]
                occurring |= candidates.intersection(map(str.strip, complete))
                unfinished = lines[-1:]
    return occurring


def strings(texts: Iterable[str]) -> Iterator[str]:
    """Yield every string of LENGTH characters in each text."""
    for text in texts:
        for start in range(len(text) - LENGTH + 1):
            yield text[start : start + LENGTH]


def occurring_share(candidates: Sequence[str], occurring: set[str]) -> float:
    """Return the share (0 to 1) of the strings, including repeats, that occur."""
    return sum(string in occurring for string in candidates) / len(candidates)


def occurring_strings(candidates: set[str], documents: Documents) -> set[str]:
    """Return the candidates (strings of LENGTH characters) that occur in a document. Takes one pass, about
    0.05 s per MB: numpy hashes all strings, and the few that share a slot with a candidate are compared
    exactly."""
    missing = set(candidates)
    slots = _filter(missing)
    for pieces in documents:
        tail = ""
        for piece in pieces:
            if not missing:
                return set(candidates)
            text = tail + piece
            tail = text[-(LENGTH - 1) :]
            if len(text) < LENGTH:
                continue
            places = np.flatnonzero(slots[_slots(text)]).tolist()
            matches = missing.intersection([text[at : at + LENGTH] for at in places])
            if matches:
                missing -= matches
                slots = _filter(missing)  # a repeated string is compared once
    return candidates - missing


def _filter(candidates: set[str]) -> Bools:
    """Mark the slots that hold a candidate, [2 ** _TABLE_BITS]."""
    slots = np.zeros(1 << _TABLE_BITS, bool)
    if candidates:
        slots[_slots("".join(candidates))[::LENGTH]] = True
    return slots


def _slots(text: str) -> NDArray[np.uint64]:
    """Return the table slot of the string that starts at each character."""
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    return string_hashes(characters, LENGTH) >> np.uint64(64 - _TABLE_BITS)


def _generate_texts(
    checkpoint: Checkpoint, tokenizer: Tokenizer, seed: int, is_over: Callable[[], bool]
) -> Iterator[str]:
    """Generate up to SAMPLES texts with SAMPLED_CHARACTERS in total; less with a large model, to limit the
    time."""
    runtime = NumpyRuntime(checkpoint)
    tokens = int(min(SAMPLED_CHARACTERS, max(200, MAX_WORK / checkpoint.config.parameters))) // SAMPLES
    for index in range(SAMPLES):
        text_seed = (seed * SAMPLES + index) % (1 << 31)
        sampling = SamplingConfig(max_tokens=tokens, temperature=1.0, min_p=0.0, seed=text_seed)
        text = ""
        for piece in generate(runtime, tokenizer, "\n", sampling):
            text += piece.text
            if len(text) >= SAMPLED_CHARACTERS // SAMPLES or is_over():
                break
        yield text
        if is_over():
            return


def _excerpts(tokenizer: Tokenizer, ids: NDArray[np.unsignedinteger]) -> Iterator[str]:
    """Yield up to SAMPLES evenly spaced excerpts of the text of ids [N], each as long as the generated
    texts."""
    length = SAMPLED_CHARACTERS // SAMPLES
    for start in np.linspace(
        0, max(0, len(ids) - length), SAMPLES if len(ids) > SAMPLES * length else 1
    ).astype(int):
        tokens = ids[start : start + length].tolist()
        tokens = itertools.takewhile(lambda token: token not in tokenizer.eos_ids, tokens)
        yield tokenizer.decode_bytes(tokens).decode("utf-8", "ignore")[:length]
