"""What the n-gram cache adds to a prediction: the tokens that followed the same context earlier in the text, and where.

V = vocabulary size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_COPIES = 5
MIN_ADDED = 0.001  # of probability; less is not worth a line


@dataclass(frozen=True)
class Copy:
    """A token that the cache makes more likely."""

    token: int
    network: float  # its probability under the network alone
    probability: float  # ... and with the cache
    matched: int  # tokens of the longest context that it followed
    positions: tuple[int, ...]  # where it followed that context, in the tokens of the text


def find_copies(
    context: Sequence[int],
    orders: int,
    network: NDArray[np.floating],
    mixed: NDArray[np.floating],
) -> tuple[Copy, ...]:
    """The tokens that a cache of `orders` makes more likely after `context`, the one that it adds most to first.

    `network` and `mixed` [V] are log probabilities of the next token, without and with the cache.
    """
    found: dict[int, tuple[int, list[int]]] = {}  # token -> (tokens of the context, positions)
    for matched in range(1, min(orders, len(context) - 1) + 1):
        end = tuple(context[-matched:])
        for position in range(matched, len(context)):
            if tuple(context[position - matched : position]) == end:
                token = context[position]
                if found.get(token, (0, []))[0] < matched:
                    found[token] = matched, []
                found[token][1].append(position)
    copies = [
        Copy(token, math.exp(network[token]), math.exp(mixed[token]), matched, tuple(positions))
        for token, (matched, positions) in found.items()
    ]
    ranked = sorted(copies, key=lambda copy: copy.network - copy.probability)
    return tuple(copy for copy in ranked[:MAX_COPIES] if copy.probability - copy.network >= MIN_ADDED)
