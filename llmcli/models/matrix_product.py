"""Matrix products of a linear layer in numpy, for one, a few or many tokens.

With one token, memory bandwidth is the limit: every weight is read for one multiplication. A few tokens, as
when several texts are generated together, should cost little more. But except for small matrices, BLAS first
copies the weights into another layout, which pays off only for many tokens. Small matrices are also stored by
columns, an order in which BLAS multiplies one token faster, and a few tokens up to twice as fast. Figures:
tests/benchmarks/LOG.md.

BLAS's own threads wait for each other by spinning, so a product can take thirty times as long while other
programs are running. The command line sets BLAS_THREADS to 1 before numpy is imported; this module then uses
Python's threads.
"""

import os
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from llmcli.config import cpu_cores
from llmcli.models.runtime import Array

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

DOT_TOKENS = 3  # maximum number of tokens for a dot product per output and token
FEW_TOKENS = 16  # maximum number of tokens for products of blocks of the weights
BLOCK_PRODUCTS = 250_000  # multiplications per block; OpenBLAS starts no threads for fewer than 262,144
THREAD_PRODUCTS = 3_000_000  # minimum multiplications for which several threads pay off
SMALL_WEIGHTS = 200_000  # a smaller matrix is stored in both orders
BLAS_THREADS = "OPENBLAS_NUM_THREADS"  # environment variable


class Matrix:
    """The constant weights [outputs, inputs] and optional bias [outputs] of a linear layer."""

    def __init__(self, rows: Array, bias: Array | None = None) -> None:
        self.rows = rows
        self.bias = bias
        # [inputs, outputs]
        self.columns = np.ascontiguousarray(rows.T) if rows.size <= SMALL_WEIGHTS else None


def linear(x: Array, matrix: Matrix) -> Array:
    """x [T, inputs] -> [T, outputs]."""
    # with one token, `dot` takes 0.7 us less than `@`
    y = _product(x, matrix) if matrix.columns is None else x.dot(matrix.columns)
    return y if matrix.bias is None else y + matrix.bias


def _product(x: Array, matrix: Matrix) -> Array:
    """x [T, inputs] -> [T, outputs] without the bias, for a matrix that is not small."""
    weight = matrix.rows
    T = len(x)
    outputs = len(weight)
    if T == 1:  # vecdot reads weights at 20 GB/s on one core, BLAS's matrix-vector product at 10
        return np.vecdot(weight, x[0])[None]
    if T <= DOT_TOKENS:
        return np.ascontiguousarray(np.vecdot(weight[:, None], x[None]).T)
    in_threads = weight.size * T >= THREAD_PRODUCTS
    if T <= FEW_TOKENS:
        y = np.empty((outputs, T), np.float32)
        if in_threads:
            _for_each_core(outputs, lambda rows: _multiply_blocks(weight[rows], x, y[rows]))
        else:
            _multiply_blocks(weight, x, y)
        return np.ascontiguousarray(y.T)
    if not in_threads or os.environ.get(BLAS_THREADS) != "1":
        return x @ weight.T
    y = np.empty((T, outputs), np.float32)
    _for_each_core(outputs, lambda rows: np.matmul(x, weight[rows].T, out=y[:, rows]))
    return y


def _for_each_core(outputs: int, multiply: Callable[[slice], object]) -> None:
    """Call `multiply` for a range of the outputs in one thread per core."""
    cores = cpu_cores()
    first, *others = [slice(outputs * i // cores, outputs * (i + 1) // cores) for i in range(cores)]
    futures = [_threads().submit(multiply, rows) for rows in others]
    multiply(first)
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
def _threads() -> "ThreadPoolExecutor":
    # imported here because it imports logging, which a small model does not need
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(max(1, cpu_cores() - 1), "linear")
