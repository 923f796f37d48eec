"""The matrix product of a linear layer, compared with that of float64."""

from itertools import product

import numpy as np
import pytest

from llmcli.models import matrix_product
from llmcli.models.matrix_product import Matrix, linear

TOKENS = (1, 2, 3, 4, 7, 16, 17)
SHAPES = ((1, 1), (5, 3), (131, 64), (700, 512))


def test_the_product_is_that_of_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_product, "THREAD_PRODUCTS", 1000)
    for threads, blas_threads, small in product((1, 3), ("1", "2"), (0, 1_000_000)):
        monkeypatch.setenv(matrix_product.BLAS_THREADS, blas_threads)
        monkeypatch.setattr(matrix_product, "cpu_cores", lambda threads=threads: threads)
        monkeypatch.setattr(matrix_product, "SMALL_WEIGHTS", small)  # up to which a matrix is kept in both orders
        matrix_product._threads.cache_clear()
        for tokens, shape in product(TOKENS, SHAPES):
            rng, case = np.random.default_rng(0), (tokens, shape, threads, blas_threads, small)
            weight, x = (rng.normal(size=size).astype(np.float32) for size in (shape, (tokens, shape[1])))
            y = linear(x, Matrix(weight))
            assert y.shape == (tokens, shape[0]) and y.dtype == np.float32 and y.flags.c_contiguous, case
            np.testing.assert_allclose(
                y, x.astype(np.float64) @ weight.T.astype(np.float64), atol=1e-4, err_msg=str(case)
            )
    matrix_product._threads.cache_clear()
