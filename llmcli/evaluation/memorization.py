"""Memorization: which 30-character strings of a text occur verbatim in the training text.

`measure_memorization` gives the share for text that a model generates without a prompt. People repeat themselves too,
so the same share of held-out text is the baseline. `find_verbatim` marks the strings in given texts.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmcli.config import SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.evaluation.training_text import TrainingText
from llmcli.formats.checkpoint import Checkpoint
from llmcli.generation.generator import generate
from llmcli.models.numpy_runtime import NumpyRuntime

LENGTH = 30  # characters in a string: longer than almost any phrase that people write twice by chance
SAMPLED_CHARACTERS = 2_000  # generated in all
SAMPLES = 8  # texts that are generated
MAX_WORK = 3e9  # parameters x tokens generated: about a second or two on one core
MAX_SEARCHED_BYTES = 64_000_000  # of the training text, from its beginning: about two seconds
_STEPS = (2, 3, 5)  # their product is LENGTH
_HASH_FACTOR = 0x9E3779B97F4A7C15  # odd, with well-mixed bits
_TABLE_BITS = 20  # a million slots for a few thousand strings: few hash collisions


@dataclass(frozen=True)
class Memorization:
    """The share of a model's generated text, and of held-out text, that occurs verbatim in the training text."""

    share: float  # 0 to 1, of the generated strings
    strings: int  # generated strings that were searched for
    held_out_share: float | None  # None if there is not enough held-out text
    searched_bytes: int  # of the training text


def measure_memorization(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    held_out: NDArray[np.unsignedinteger],
    documents: Iterable[Iterable[str]],
    seed: int = 0,
    is_over: Callable[[], bool] = lambda: False,
) -> Memorization | None:
    """Generate text without a prompt at temperature 1; search the training documents for its strings, and for the
    strings of the `held_out` token ids [N]. Once `is_over` returns True, no more is generated or searched. None if
    the generated texts are too short. Raises LLMError for damaged weights."""
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
        share=round(share(generated_strings, occurring), 4),
        strings=len(generated_strings),
        held_out_share=round(share(held_out_strings, occurring), 4) if held_out_strings else None,
        searched_bytes=searched_bytes,
    )


@dataclass(frozen=True)
class VerbatimSpans:
    """The parts of a text that occur verbatim in a corpus."""

    spans: tuple[tuple[int, int], ...]  # (first character, one past the last)
    share: float  # of the characters, 0 to 1
    searched_bytes: int

    def as_json(self, text: str, corpus: Sequence[str]) -> dict[str, object]:
        """The passages as `--memory --json` prints them; `corpus` are the names of the files."""
        return {
            "corpus": list(corpus),
            "searched_bytes": self.searched_bytes,
            "share": round(self.share, 6),
            "spans": [{"start": start, "end": end, "text": text[start:end]} for start, end in self.spans],
        }


def find_verbatim(
    texts: Sequence[str], training_texts: Sequence[TrainingText], *, check: Callable[[], None] = lambda: None
) -> list[VerbatimSpans]:
    """The spans of each text that occur in the training texts, which are read only once; overlapping strings form one
    span. `check`, called before each piece of the training texts, may raise an exception to end the search."""

    def checked(pieces: Iterable[str]) -> Iterator[str]:
        for piece in pieces:
            check()
            yield piece

    documents = (checked(pieces) for one in training_texts for pieces in one.documents())
    occurring, found = occurring_strings(set(strings(texts)), documents), []
    for text in texts:
        covered = bytearray(len(text))
        for start, string in enumerate(strings([text])):
            if string in occurring:
                covered[start : start + LENGTH] = b"\1" * LENGTH
        edges = [i for i, (a, b) in enumerate(itertools.pairwise([0, *covered, 0])) if a != b]
        spans = tuple(itertools.pairwise(edges))[::2]
        found.append(VerbatimSpans(spans, sum(covered) / max(1, len(text)), sum(one.bytes for one in training_texts)))
    return found


def strings(texts: Iterable[str]) -> Iterator[str]:
    """Every string of LENGTH characters in each text; none in a shorter one."""
    for text in texts:
        for start in range(len(text) - LENGTH + 1):
            yield text[start : start + LENGTH]


def share(candidates: Sequence[str], occurring: set[str]) -> float:
    """The share of the strings, repeats counted, that occur: 0 to 1."""
    return sum(string in occurring for string in candidates) / len(candidates)


def occurring_strings(candidates: set[str], documents: Iterable[Iterable[str]]) -> set[str]:
    """The candidates, strings of LENGTH characters, that occur in a document. One pass, about 0.05 s per MB: numpy
    hashes all strings of the documents, and the few whose slot a candidate shares are compared exactly."""
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
                slots = _filter(missing)  # a string that the text keeps repeating is compared once
    return candidates - missing


def _filter(candidates: set[str]) -> NDArray[np.bool_]:
    """Which slots hold a candidate, [2 ** _TABLE_BITS]."""
    slots = np.zeros(1 << _TABLE_BITS, bool)
    if candidates:
        slots[_slots("".join(candidates))[::LENGTH]] = True
    return slots


def _slots(text: str) -> NDArray[np.uint64]:
    """The table slot of the string that starts at each character: the top bits of a polynomial rolling hash. Hashes of
    2 characters are combined to hashes of 6, and those to hashes of 30: seven products instead of thirty."""
    hashes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    width = 1
    for times in _STEPS:
        places, power = len(hashes) - (times - 1) * width, np.uint64(pow(_HASH_FACTOR, width, 1 << 64))
        total = hashes[:places]
        for k in range(1, times):
            total = total * power + hashes[k * width :][:places]
        hashes, width = total, width * times
    return hashes >> np.uint64(64 - _TABLE_BITS)


def _generate_texts(
    checkpoint: Checkpoint, tokenizer: Tokenizer, seed: int, is_over: Callable[[], bool]
) -> Iterator[str]:
    """Up to SAMPLES texts with SAMPLED_CHARACTERS in all; less from a large model, to limit the time."""
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
    """Up to SAMPLES excerpts of the text of ids [N], spread evenly, as long as the generated texts."""
    length = SAMPLED_CHARACTERS // SAMPLES
    for start in np.linspace(0, max(0, len(ids) - length), SAMPLES if len(ids) > SAMPLES * length else 1).astype(int):
        tokens = ids[start : start + length].tolist()
        tokens = itertools.takewhile(lambda token: token not in tokenizer.eos_ids, tokens)
        yield tokenizer.decode_bytes(tokens).decode("utf-8", "ignore")[:length]
