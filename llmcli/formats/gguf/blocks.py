"""Decoding the block-quantized types of GGUF files (ggml's ggml-common.h and ggml-quants.c) to float32.

Each block has one or two scales in float16, and small integers as codes; in the "K" types, also a small
integer scale for each 16 or 32 codes. A value is scale * code, sometimes minus or plus a minimum. Each
function decodes blocks [N, bytes] to values [N, values per block], in the order of the operations of the gguf
package, so that the values are the same bit for bit.
"""

import numpy as np
from numpy.typing import NDArray

from llmcli.formats.gguf.header import TYPES

Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def _float16(blocks: Bytes, first: int) -> Array:
    """Return the float16 number that begins at byte `first` of each block, [N, 1]."""
    return np.ascontiguousarray(blocks[:, first : first + 2]).view("<f2").astype(np.float32)


def _unpack(packed: Bytes, bits: int, width: int) -> Bytes:
    """Split bytes [N, bytes] into codes of `bits` bits, [N, bytes * 8 / bits]. Of each `width` bytes, the
    lowest bits come first, then the next ones."""
    groups = packed.reshape(len(packed), -1, width)
    codes = np.empty((len(packed), groups.shape[1], 8 // bits, width), np.uint8)
    for i in range(8 // bits):
        np.right_shift(groups, i * bits, out=codes[:, :, i])
    codes &= (1 << bits) - 1
    return codes.reshape(len(packed), -1)


def _scaled(codes: Bytes | NDArray[np.int8], scales: Array, minima: Array | None = None) -> Array:
    """Return codes [N, values] * scales + minima; both [N, parts], one for each equal part of a block."""
    values = codes.astype(np.float32).reshape(*scales.shape, -1)
    values *= scales[..., None]
    if minima is not None:
        values += minima[..., None]
    return values.reshape(len(codes), -1)


def _with_high_bits(codes: Bytes, high: Bytes) -> Bytes:
    """Return codes of four bits with further bits above them."""
    high <<= 4
    codes |= high
    return codes


def _signed(codes: Bytes, zero: int) -> NDArray[np.int8]:
    """Return codes of at most seven bits minus `zero`."""
    signed = codes.view(np.int8)
    signed -= np.int8(zero)
    return signed


def _q4_0(blocks: Bytes) -> Array:
    return _scaled(_signed(_unpack(blocks[:, 2:], 4, 16), 8), _float16(blocks, 0))


def _q4_1(blocks: Bytes) -> Array:
    return _scaled(_unpack(blocks[:, 4:], 4, 16), _float16(blocks, 0), _float16(blocks, 2))


def _five_bits(blocks: Bytes, first: int) -> Bytes:
    """Codes of which byte `first` begins the fifth bits, one for each code in turn, then the lower four."""
    high = np.unpackbits(blocks[:, first : first + 4], axis=1, bitorder="little")
    return _with_high_bits(_unpack(blocks[:, first + 4 :], 4, 16), high)


def _q5_0(blocks: Bytes) -> Array:
    return _scaled(_signed(_five_bits(blocks, 2), 16), _float16(blocks, 0))


def _q5_1(blocks: Bytes) -> Array:
    return _scaled(_five_bits(blocks, 4), _float16(blocks, 0), _float16(blocks, 2))


def _q8_0(blocks: Bytes) -> Array:
    return _scaled(blocks[:, 2:].view(np.int8), _float16(blocks, 0))


def _q2_k(blocks: Bytes) -> Array:
    """Four bits for each of 16 scales and minima, codes of two bits, a scale and a minimum."""
    scales = _float16(blocks, 80) * (blocks[:, :16] & 15)
    minima = _float16(blocks, 82) * (blocks[:, :16] >> 4)
    return _scaled(_unpack(blocks[:, 16:80], 2, 32), scales, -minima)


def _q3_k(blocks: Bytes) -> Array:
    """The third bits of the codes, inverted, then the lower two; six bits for each of 16 scales; a scale."""
    high = _unpack(blocks[:, :32], 1, 32) ^ 1
    codes = _unpack(blocks[:, 32:96], 2, 32).view(np.int8) - (high << 2).view(np.int8)
    scales = _with_high_bits(_unpack(blocks[:, 96:104], 4, 8), _unpack(blocks[:, 104:108], 2, 4))
    return _scaled(codes, _float16(blocks, 108) * _signed(scales, 32))


def _scales_and_minima(blocks: Bytes) -> tuple[Array, Array]:
    """Return the eight scales and minima [N, 8] of Q4_K and Q5_K: two in float16, and six bits for each."""
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 6) << 4], axis=1)
    minima = np.concatenate([second & 63, (rest >> 4) | (second >> 6) << 4], axis=1)
    return _float16(blocks, 0) * scales, _float16(blocks, 2) * minima


def _q4_k(blocks: Bytes) -> Array:
    scales, minima = _scales_and_minima(blocks)
    return _scaled(_unpack(blocks[:, 16:], 4, 32), scales, -minima)


def _q5_k(blocks: Bytes) -> Array:
    """Scales and minima, then the fifth bits of the codes and the lower four."""
    scales, minima = _scales_and_minima(blocks)
    codes = _with_high_bits(_unpack(blocks[:, 48:], 4, 32), _unpack(blocks[:, 16:48], 1, 32))
    return _scaled(codes, scales, -minima)


def _q6_k(blocks: Bytes) -> Array:
    """The lower four bits of the codes, then the upper two; 16 integer scales of eight bits; a scale."""
    codes = _with_high_bits(_unpack(blocks[:, :128], 4, 64), _unpack(blocks[:, 128:192], 2, 32))
    scales = _float16(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return _scaled(_signed(codes, 32), scales)


_DECODERS = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
_BLOCK_BYTES = {name: size for name, _, size in TYPES.values()}


def is_decodable(dtype: str) -> bool:
    return dtype in _DECODERS


def decode(data: bytes, dtype: str) -> Array:
    """Return the values of whole blocks of a type, flat. A damaged scale causes infinities and NaN."""
    blocks = np.frombuffer(data, np.uint8).reshape(-1, _BLOCK_BYTES[dtype])
    with np.errstate(all="ignore"):
        return _DECODERS[dtype](blocks).reshape(-1)
