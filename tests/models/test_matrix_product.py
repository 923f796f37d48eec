"""The matrix product of a linear layer, compared with that of float64."""

import numpy as np
import pytest

from llmcli.models import matrix_product
from llmcli.models.matrix_product import Matrix, linear


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 16, 17])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (131, 64), (700, 512)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("blas_threads", ["1", "2"])
@pytest.mark.parametrize("small", [0, 1_000_000])
def test_the_product_is_that_of_float64(tokens, shape, threads, blas_threads, small, monkeypatch):
    monkeypatch.setenv(matrix_product.BLAS_THREADS, blas_threads)
    monkeypatch.setattr(matrix_product, "cpu_cores", lambda: threads)
    monkeypatch.setattr(matrix_product, "SMALL_WEIGHTS", small)  # up to which a matrix is kept in both orders
    monkeypatch.setattr(matrix_product, "THREAD_PRODUCTS", 1000)
    matrix_product._threads.cache_clear()
    rng = np.random.default_rng(0)
    weight, x = (rng.normal(size=size).astype(np.float32) for size in (shape, (tokens, shape[1])))
    y = linear(x, Matrix(weight))
    assert y.shape == (tokens, shape[0]) and y.dtype == np.float32 and y.flags.c_contiguous
    np.testing.assert_allclose(y, x.astype(np.float64) @ weight.T.astype(np.float64), atol=1e-4)
    matrix_product._threads.cache_clear()
