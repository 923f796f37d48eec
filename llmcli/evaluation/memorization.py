"""A model's own words -> how much of its text it knows by heart: the share of 30-character strings that stand there.

New text of the same kind recites too, since people repeat themselves; so the held-out text is asked the same question,
and the difference is what the model learned by heart. Knows nothing of files: the text comes in pieces.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmcli.config import SamplingConfig
from llmcli.data.tokenizer import Tokenizer
from llmcli.formats.checkpoint import Checkpoint
from llmcli.generation.generator import generate
from llmcli.generation.sampler import Sampler
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.runtime import Runtime, Scorer

LENGTH = 30  # characters in a string: longer than almost any phrase that people happen to write twice
CHARACTERS = 2_000  # of the model's own words, in all
SAMPLES = 8  # texts that these come from
APART = 256  # tokens in which a model in few bits is told from itself
MOST_WORK = 3e9  # parameters x tokens generated: about a second or two on one core
MOST_SEARCHED = 64_000_000  # bytes of the training text, about, from its beginning: two seconds or so
_STEPS = (2, 3, 5)  # whose product is LENGTH
_FACTOR = 0x9E3779B97F4A7C15  # odd, its bits well mixed
_TABLE_BITS = 20  # a million slots for a few thousand strings: few chance hits


@dataclass(frozen=True)
class Recital:
    """How much of a model's own words, and of the held-out text, stands in the training text."""

    share: float  # 0 to 1, of the model's strings
    strings: int  # of the model that were looked for
    held_out_share: float | None  # None where there is no held-out text long enough
    searched_bytes: int  # of the training text


def recite(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    held_out: NDArray[np.unsignedinteger],
    documents: Iterable[Iterable[str]],
    seed: int = 0,
) -> Recital | None:
    """Let the model talk, without a prompt and at temperature 1, and look for its words in the documents it learned.

    `held_out` are the tokens of text that the model did not see. Of longer documents MOST_SEARCHED bytes are searched.
    None when the model says too little. Raises LLMError for damaged weights.
    """
    own = list(_own_words(checkpoint, tokenizer, seed))
    new = list(_excerpts(tokenizer, held_out))
    own_strings, new_strings = list(strings(own)), list(strings(new))
    if not own_strings:
        return None
    counter = _Counter()
    found = standing({*own_strings, *new_strings}, map(counter.passing, documents))
    return Recital(
        share=round(share(own_strings, found), 4),
        strings=len(own_strings),
        held_out_share=round(share(new_strings, found), 4) if new_strings else None,
        searched_bytes=counter.bytes,
    )


def strings(texts: Iterable[str]) -> Iterator[str]:
    """Every string of LENGTH characters in each text; none in a shorter one."""
    for text in texts:
        for start in range(len(text) - LENGTH + 1):
            yield text[start : start + LENGTH]


def share(wanted: Sequence[str], found: set[str]) -> float:
    """Of the strings, repeats counted, how many were found: 0 to 1.

    >>> share(["a", "a", "b", "c"], {"a"})
    0.5
    """
    return sum(string in found for string in wanted) / len(wanted)


def standing(wanted: set[str], documents: Iterable[Iterable[str]]) -> set[str]:
    """Those of the strings, each of LENGTH characters, that stand in a document; one pass, 1 MB in about 0.05 s.

    Every string of the documents is hashed at once by numpy, and the few whose hash has the slot of a wanted one are
    compared as they are, so the answer is exact.
    """
    missing = set(wanted)
    slots = _filter(missing)
    for pieces in documents:
        tail = ""
        for piece in pieces:
            if not missing:
                return set(wanted)
            text = tail + piece
            tail = text[-(LENGTH - 1) :]
            if len(text) < LENGTH:
                continue
            places = np.flatnonzero(slots[_slots(text)]).tolist()
            here = missing.intersection([text[at : at + LENGTH] for at in places])
            if here:
                missing -= here
                slots = _filter(missing)  # so that what a text repeats for ever is compared once
    return wanted - missing


def _filter(wanted: set[str]) -> NDArray[np.bool_]:
    """Which slots hold a string."""
    slots = np.zeros(1 << _TABLE_BITS, bool)
    if wanted:
        slots[_slots("".join(wanted))[::LENGTH]] = True
    return slots


def _slots(text: str) -> NDArray[np.uint64]:
    """A slot of the table for the string of LENGTH characters at each place: the top bits of a polynomial of them.

    Strings of 2 characters are made from single ones, those of 6 from 3 of these, those of 30 from 5 of these: seven
    products instead of thirty.
    """
    hashes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    width = 1
    for times in _STEPS:
        places, power = len(hashes) - (times - 1) * width, np.uint64(pow(_FACTOR, width, 1 << 64))
        total = hashes[:places]
        for k in range(1, times):
            total = total * power + hashes[k * width :][:places]
        hashes, width = total, width * times
    return hashes >> np.uint64(64 - _TABLE_BITS)


def _own_words(checkpoint: Checkpoint, tokenizer: Tokenizer, seed: int) -> Iterator[str]:
    """SAMPLES texts at most, CHARACTERS in all at most; fewer from a model so large that it would take long."""
    runtime = NumpyRuntime(checkpoint)
    tokens = int(min(CHARACTERS, max(200, MOST_WORK / checkpoint.config.parameters))) // SAMPLES
    for index in range(SAMPLES):
        sampling = SamplingConfig(
            max_tokens=tokens, temperature=1.0, min_p=0.0, seed=(seed * SAMPLES + index) % (1 << 31)
        )
        text = ""
        for piece in generate(runtime, tokenizer, "\n", sampling):
            text += piece.text
            if len(text) >= CHARACTERS // SAMPLES:
                break
        yield text


def told_apart(one: Runtime, other: Scorer, tokenizer: Tokenizer) -> float:
    """What `other` loses against `one`, in bits per byte of what `one` says by itself: their relative entropy, which
    needs no text. Both are the same model, in many bits and in few."""
    ids = [tokenizer.start_id]
    sampler = Sampler(SamplingConfig(temperature=1.0, min_p=0.0))
    one.rewind()
    count = min(APART, one.context - 1)
    logits = one.prefill(ids)
    while len(ids) <= count:
        ids.append(sampler(logits[: len(tokenizer.token_bytes)], ())[0])
        logits = one.step(ids[-1])
    size = sum(len(tokenizer.token_bytes[i]) for i in ids[1:])
    window = np.array([ids], np.int64)
    lost = float(other.score(window)[0].sum() - one.score(window)[0].sum())
    return round(lost / math.log(2) / max(1, size), 6)


def _excerpts(tokenizer: Tokenizer, ids: NDArray[np.unsignedinteger]) -> Iterator[str]:
    """Texts of about the same lengths, spread evenly over tokens."""
    length = CHARACTERS // SAMPLES
    for start in np.linspace(0, max(0, len(ids) - length), SAMPLES if len(ids) > SAMPLES * length else 1).astype(int):
        tokens = ids[start : start + length].tolist()
        if tokenizer.eos_id in tokens:
            tokens = tokens[: tokens.index(tokenizer.eos_id)]
        yield tokenizer.decode_bytes(tokens).decode("utf-8", "ignore")[:length]


class _Counter:
    """Counts the bytes of text that pass, up to MOST_SEARCHED."""

    def __init__(self) -> None:
        self.bytes = 0

    def passing(self, pieces: Iterable[str]) -> Iterator[str]:
        for piece in pieces:
            if self.bytes >= MOST_SEARCHED:
                return
            self.bytes += len(piece) if piece.isascii() else len(piece.encode("utf-8", "surrogatepass"))
            yield piece
