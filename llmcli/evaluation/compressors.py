"""Bytes -> bits per byte by file compressors: what a model of the text has to beat.

A compressor may read a past, such as the text a model learned from; only what the text itself adds is counted. Two
kinds: xz (LZ77, as `xz -9e`) copies what it has met before; PPM (variant H of PPMd, order 6: D. Shkarin 2002, as in
7-Zip) predicts each byte from the six before it, like a small language model that counts. Knows nothing of models or
tokens.
"""

import lzma
from collections.abc import Callable
from dataclasses import dataclass

ORDER = 6  # bytes that PPM looks back
PIECE = 1024  # bytes; so short that PPM learns little from a piece itself
MOST_PIECES, FEWEST_PIECES = 24, 8
PPM_MEMORY = 1 << 28  # bytes at most; it forgets everything when they are full
# bytes coded in a second on one slow core, about, and how the time is shared out; nothing is measured, so that the
# same call gives the same figures
XZ_SPEED, PPM_SPEED = 1.5e6, 4e6
XZ_SHARE, ADAPTING_SHARE, STATIC_SHARE = 0.3, 0.2, 0.5


@dataclass(frozen=True)
class Baseline:
    """What a compressor makes of a text after its past."""

    name: str
    bits_per_byte: float
    bytes: int  # of the text
    past_bytes: int  # read before: the end of the past
    pieces: int | None = None  # of the text that were coded right after the past, where it is not coded as one


def baselines(text: bytes, past: bytes = b"", *, seconds: float = 10.0) -> list[Baseline]:
    """xz, PPM that goes on learning from the text, and with a past also PPM that does not, like a trained model.

    The text is coded whole, at about a second for each megabyte. `seconds` bounds what the past costs on top: from a
    longer one its end is taken, the same for every call.
    """
    if not text:
        return []
    limits = _past_limits(seconds)
    found = [
        Baseline("xz", _added(xz_size, text, past[-limits[0] :]), len(text), min(len(past), limits[0])),
        Baseline("PPM, adapting", _added(ppm_size, text, past[-limits[1] :]), len(text), min(len(past), limits[1])),
    ]
    return [*found, static_ppm(text, past, seconds=STATIC_SHARE * seconds)] if past else found


def affordable(text_bytes: int, past_bytes: int, seconds: float) -> bool:
    """Whether `baselines` can read nearly all of such a past in this time, so that nobody is held to a part of it."""
    return text_bytes / 1e6 <= seconds / 2 and 0.9 * past_bytes <= min(_past_limits(seconds))


def most_past(seconds: float = 10.0) -> int:
    """Bytes of the past that `baselines` reads at most."""
    return max(_past_limits(seconds))


def _past_limits(seconds: float) -> tuple[int, int, int]:
    """Bytes of the past for xz and PPM adapting, which read it twice, and PPM static, which reads it for each piece."""
    speeds = XZ_SHARE * XZ_SPEED / 2, ADAPTING_SHARE * PPM_SPEED / 2, STATIC_SHARE * PPM_SPEED / FEWEST_PIECES
    xz, adapting, static = (max(1, int(speed * seconds)) for speed in speeds)
    return xz, adapting, static


def _added(size: Callable[[bytes], int], text: bytes, past: bytes) -> float:
    """Bits per byte that the text adds to its past; what a container costs by itself falls away."""
    return (size(past + text) - size(past)) * 8 / len(text)


def static_ppm(text: bytes, past: bytes, *, seconds: float = STATIC_SHARE * 10.0) -> Baseline:
    """PPM that knows the past alone: the mean over short pieces of the text, each coded right after it.

    PPM's state cannot be copied, so each piece costs the whole past again; a long past is cut to its end, and of many
    pieces some are taken, evenly spread. How hard just these are would blur the mean, so what is averaged is how much
    more each costs than in its place in the adapting run, and that is added to the adapting run as a whole: on tiny
    Shakespeare the error falls from 0.03 to 0.01 bits per byte. If all pieces are taken it is their plain mean.
    """
    import pyppmd

    work = max(1, int(seconds * PPM_SPEED))
    past = past[-max(1, work // FEWEST_PIECES) :]
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    count = min(len(pieces), MOST_PIECES, max(FEWEST_PIECES, work // len(past)))
    taken = [i * (len(pieces) - 1) // max(1, count - 1) for i in range(count)]
    encoder = pyppmd.Ppmd7Encoder(ORDER, _memory(len(past) + len(text)))
    encoder.encode(past)
    adapting = [len(encoder.encode(piece)) for piece in pieces]
    before = ppm_size(past)
    more = sum(ppm_size(past + pieces[i]) - before - adapting[i] for i in taken)
    size = sum(adapting) / len(text) + more / sum(len(pieces[i]) for i in taken)
    return Baseline("PPM, static", size * 8, len(text), len(past), count)


def xz_size(data: bytes) -> int:
    """Bytes after `xz -9e`, without the container: raw LZMA2 with the last 64 MiB of the data in its window."""
    window = min(max(len(data), 4096), 1 << 26)  # a smaller one takes less memory and finds as much
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window}]
    return len(lzma.compress(data, lzma.FORMAT_RAW, filters=filters))


def ppm_size(data: bytes) -> int:
    """Bytes after PPMd variant H, five of them for the end."""
    import pyppmd

    encoder = pyppmd.Ppmd7Encoder(ORDER, _memory(len(data)))
    return len(encoder.encode(data)) + len(encoder.flush())


def _memory(size: int) -> int:
    """Bytes for PPM's statistics of so much text; measured, 16 for each byte were enough."""
    return min(PPM_MEMORY, max(1 << 20, 32 * size))
