"""File compressors as baselines for language models: bits per byte of a text, given preceding text (its
past).

The past, usually a model's training text, is compressed first; only the bytes that the text adds count. xz
(LZ77, as `xz -9e`) copies earlier passages. PPM (variant H of PPMd, order 6; D. Shkarin, "PPM: one step to
practicality", 2002; as in 7-Zip) predicts each byte from the six bytes before it, like a small language model
made of counts.
"""

import lzma
from collections.abc import Callable
from dataclasses import dataclass

from llmcli import units

ADAPTIVE_PPM = "PPM, adaptive"
STATIC_PPM = "PPM, static"
PPM_ORDER = 6  # bytes of context
PIECE_BYTES = 1024  # short enough that PPM adapts little within a piece
MAX_PIECES = 24
MIN_PIECES = 8
PPM_MEMORY = 1 << 28  # maximum bytes; the model is reset when this memory is full
# bytes per second on one slow core, and shares of the time. They are constants, not measurements, so that
# results are the same on every machine
XZ_SPEED = 1.5e6
PPM_SPEED = 4e6
XZ_SHARE = 0.3
ADAPTING_SHARE = 0.2
STATIC_SHARE = 0.5
DEFAULT_SECONDS = 10.0


@dataclass(frozen=True)
class Baseline:
    """The result of a compressor on a text."""

    name: str
    bits_per_byte: float
    bytes: int  # size of the text
    past_bytes: int  # end of the past that was compressed first
    pieces: int | None = None  # pieces of the text compressed independently; None if it was not divided

    @property
    def is_adaptive(self) -> bool:
        """Whether its statistics adapt to the text; it is then compared with a model's adapting figure."""
        return self.name == ADAPTIVE_PPM

    @property
    def is_estimate(self) -> bool:
        """Whether only a sample of the pieces was measured."""
        return self.pieces is not None and self.pieces * PIECE_BYTES < self.bytes

    @property
    def shown(self) -> str:
        """Bits per byte; an estimate has two decimals."""
        return (
            f"about {self.bits_per_byte:.2f}" if self.is_estimate else units.bits_per_byte(self.bits_per_byte)
        )


def baselines(text: bytes, past: bytes = b"", *, seconds: float = DEFAULT_SECONDS) -> list[Baseline]:
    """Compress a text with xz and PPM, which adapt to the text, and, given a past, with static PPM, which
    like a trained model does not adapt. Only as much of the end of the past is used as can be compressed in
    about `seconds`. Returns [] for an empty text."""
    if not text:
        return []
    xz_past, ppm_past, _ = (past[-limit:] for limit in _past_limits(seconds))
    results = [
        Baseline("xz", _added_bits_per_byte(xz_size, text, xz_past), len(text), len(xz_past)),
        Baseline(ADAPTIVE_PPM, _added_bits_per_byte(ppm_size, text, ppm_past), len(text), len(ppm_past)),
    ]
    return [*results, static_ppm(text, past, seconds=STATIC_SHARE * seconds)] if past else results


def affordable(text_bytes: int, past_bytes: int, seconds: float) -> bool:
    """Return whether `baselines` can read at least 90% of the past in this time, as a fair comparison
    requires."""
    return text_bytes / 1e6 <= seconds / 2 and 0.9 * past_bytes <= min(_past_limits(seconds))


def max_past_bytes(seconds: float = DEFAULT_SECONDS) -> int:
    return max(_past_limits(seconds))


def _past_limits(seconds: float) -> tuple[int, int, int]:
    """Return the bytes of the past for xz and adaptive PPM, which read it twice, and for static PPM, which
    reads it once per piece."""
    speeds = XZ_SHARE * XZ_SPEED / 2, ADAPTING_SHARE * PPM_SPEED / 2, STATIC_SHARE * PPM_SPEED / MIN_PIECES
    xz, adapting, static = (max(1, int(speed * seconds)) for speed in speeds)
    return xz, adapting, static


def _added_bits_per_byte(size: Callable[[bytes], int], text: bytes, past: bytes) -> float:
    """Return the compressed size that a text adds to its past, in bits per byte; fixed headers cancel out."""
    return (size(past + text) - size(past)) * 8 / len(text)


def static_ppm(text: bytes, past: bytes, *, seconds: float = STATIC_SHARE * DEFAULT_SECONDS) -> Baseline:
    """Measure PPM that has seen only the past: the mean over pieces of the text, each compressed right after
    the past.

    PPM's state cannot be copied, so the past is read again for each piece, and only a sample of the pieces is
    measured. The sample gives the difference from adaptive PPM, which is added to the result of adaptive PPM
    on the whole text (a control variate)."""
    import pyppmd

    budget = max(1, int(seconds * PPM_SPEED))  # total bytes to read
    past = past[-max(1, budget // MIN_PIECES) :]
    pieces = [text[start : start + PIECE_BYTES] for start in range(0, len(text), PIECE_BYTES)]
    count = min(len(pieces), MAX_PIECES, max(MIN_PIECES, budget // len(past)))
    sample = [i * (len(pieces) - 1) // max(1, count - 1) for i in range(count)]
    encoder = pyppmd.Ppmd7Encoder(PPM_ORDER, memory(len(past) + len(text)))
    encoder.encode(past)
    adapting_sizes = [len(encoder.encode(piece)) for piece in pieces]
    past_size = ppm_size(past)
    difference = sum(ppm_size(past + pieces[i]) - past_size - adapting_sizes[i] for i in sample)
    # bytes per byte
    size = sum(adapting_sizes) / len(text) + difference / sum(len(pieces[i]) for i in sample)
    return Baseline(STATIC_PPM, size * 8, len(text), len(past), count)


def xz_size(data: bytes) -> int:
    """Return the size of `xz -9e` output without its container: raw LZMA2 with a window of at most 64 MiB."""
    window = min(max(len(data), 4096), 1 << 26)  # no larger than the data, to save memory
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window}]
    return len(lzma.compress(data, lzma.FORMAT_RAW, filters=filters))


def ppm_size(data: bytes) -> int:
    """Return the size of PPMd variant H output, including the five bytes that end the stream."""
    import pyppmd

    encoder = pyppmd.Ppmd7Encoder(PPM_ORDER, memory(len(data)))
    return len(encoder.encode(data)) + len(encoder.flush())


def memory(size: int) -> int:
    """Return PPM's memory for `size` bytes of text: 32 times the size, twice the measured requirement."""
    return min(PPM_MEMORY, max(1 << 20, 32 * size))
