"""The matrix product of a linear layer in numpy, for one token, a few, or many.

One token is limited by memory bandwidth: every weight is read for one multiplication. A few tokens should cost hardly
more, as when several texts are generated together. BLAS copies the weights into another layout first, which pays off
only for many tokens; its products of small matrices do without. Figures: tests/benchmarks/LOG.md.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from llmcli.config import cpu_cores
from llmcli.models.runtime import Array

DOT_TOKENS = 3  # up to this many: a dot product for each output and token
FEW_TOKENS = 16  # up to this many: products of blocks of the weights
BLOCK_PRODUCTS = 250_000  # multiplications of a block; OpenBLAS starts no threads for fewer than 262,144
THREAD_PRODUCTS = 3_000_000  # fewer are not worth another thread


def linear(x: Array, weight: Array) -> Array:
    """x [T, inputs], weight [outputs, inputs] -> [T, outputs]."""
    T, outputs = len(x), len(weight)
    if T == 1:  # vecdot reads weights twice as fast as BLAS's matrix-vector product: 20 against 10 GB/s on one core
        y: Array = np.vecdot(weight, x[0])
        return y[None]
    if T > FEW_TOKENS:
        y = x @ weight.T
        return y
    if T <= DOT_TOKENS:
        return np.ascontiguousarray(np.vecdot(weight[:, None], x[None]).T)
    y = np.empty((outputs, T), np.float32)
    if weight.size * T < THREAD_PRODUCTS:
        _multiply_blocks(weight, x, y)
    else:
        _multiply_in_threads(weight, x, y)
    return np.ascontiguousarray(y.T)


def _multiply_in_threads(weight: Array, x: Array, y: Array) -> None:
    """Set y [outputs, T] to the product; each core computes as many of the outputs."""
    cores = cpu_cores()
    bounds = [len(weight) * i // cores for i in range(cores + 1)]
    first, *others = [slice(*bounds[i : i + 2]) for i in range(cores)]
    futures = [_threads().submit(_multiply_blocks, weight[rows], x, y[rows]) for rows in others]
    _multiply_blocks(weight[first], x, y[first])
    for future in futures:
        future.result()


def _multiply_blocks(weight: Array, x: Array, y: Array) -> None:
    """Set y [outputs, T] to the product, computed in blocks of rows of the weights [outputs, inputs]."""
    T, inputs = x.shape
    rows = max(1, BLOCK_PRODUCTS // (T * inputs))
    whole = len(weight) // rows * rows
    np.matmul(weight[:whole].reshape(-1, rows, inputs), x.T, out=y[:whole].reshape(-1, rows, T))
    if whole < len(weight):
        np.matmul(weight[whole:], x.T, out=y[whole:])


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, cpu_cores() - 1), "linear")
