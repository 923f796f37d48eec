"""Runs models on a CPU with onnxruntime, faster than numpy: quantized, where weights of 8 or 4 bits need less memory
bandwidth, or in float32, where several operations are one and all cores work.

numpy_runtime.py is the reference, and the tests compare this runtime with it. Results of quantized models differ
slightly, since matrix products quantize their inputs to int8, block by block. onnx_graph.py builds the graphs.

In float32 the weights are twice in memory: onnxruntime copies each matrix into the order in which it multiplies.

Needs onnxruntime and onnx, which are extras. Never imports torch.
T = tokens; B = texts processed together; V = vocabulary size; C = hidden size; G = key-value heads; D = head size.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.config import ModelConfig, cpu_cores
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.quantization import QuantizedMatrix
from llmcli.models.kv_cache import CacheSlots
from llmcli.models.logits import token_losses
from llmcli.models.onnx.graph import Graph, decoder_graph, head_graph, read_weight
from llmcli.models.runtime import LOGITS_AT_ONCE, Array, check_context, check_input

PREFILL_CHUNK = 256  # tokens processed at a time; numpy takes fewer


def is_installed() -> bool:
    """Whether onnxruntime and onnx are installed."""
    return find_spec("onnxruntime") is not None and find_spec("onnx") is not None


def unsupported(config: ModelConfig) -> str | None:
    """The property of the model that onnxruntime's operators do not support; None if they run it."""
    if config.num_experts:
        return "mixture-of-experts layers"
    return f"a head size of {config.head_dim} (only multiples of 16)" if config.head_dim % 16 else None


class OnnxRuntime:
    """A checkpoint ready to run; runtime.py describes the interface."""

    def __init__(self, checkpoint: Checkpoint, scheme: str | None) -> None:
        """`scheme` is "int8", "int4", or None for float32. Raises LLMError without onnxruntime, and for a model that
        it does not support."""
        try:
            import onnx  # noqa: F401
            import onnxruntime
        except ImportError as error:
            raise LLMError("quantized weights need onnxruntime; install it: pip install 'llmcli[fast]'") from error
        self._ort = onnxruntime
        _share_threads()
        self.config = checkpoint.config
        self.context = self.config.max_position_embeddings
        self.length = 0
        if reason := unsupported(self.config):
            raise LLMError(f"onnxruntime does not support {reason}")
        self._embedding = read_weight(checkpoint, scheme, "model.embed_tokens.weight")  # [V, C]
        self._is_quantized = scheme is not None
        tied = self.config.tie_word_embeddings
        head = self._embedding if tied else read_weight(checkpoint, scheme, "lm_head.weight")
        self._weights: list[Any] = []  # in float32
        self.decoder = self._session(decoder_graph(checkpoint, scheme))
        self.head = self._session(head_graph(head))
        self.rotary: list[Any] = []  # cos and sin of the positions used so far: [positions, D/2]
        self.cache_arrays: list[Array] = []  # keys, then values, of each layer: [1, G, capacity, D]
        self._reserve(1)
        self._batches = _Batches(self)  # of all forks

    def fork(self, length: int = 0) -> "OnnxRuntime":
        """A runtime of the same weights, whose own KV cache begins with the first `length` tokens of this one's."""
        forked = copy(self)
        forked.length = 0
        forked.use_cache(self._new_cache(min(self.context, max(length, 128))))
        forked._single = _Binding(forked, 1)
        for values, forked_values in zip(self.cache_arrays, forked.cache_arrays, strict=True):
            forked_values[:, :, :length] = values[:, :, :length]
        forked.length = length
        return forked

    @staticmethod
    def step_batch(runtimes: "Sequence[OnnxRuntime]", tokens: Sequence[int]) -> Array:
        """Process one token in each of several forks of one runtime; return the logits [B, V] after them."""
        for runtime in runtimes:
            check_input((0,), runtime.length, runtime.context)
        logits = runtimes[0]._batches.step(runtimes, tokens)
        for runtime in runtimes:
            runtime.length += 1
        return logits

    def use_cache(self, arrays: list[Array]) -> None:
        """Use other arrays as the KV cache, which hold the same tokens."""
        self._extend_rotary_tables(arrays[0].shape[2])
        self.cache_arrays, self._cache = arrays, self._values(arrays)

    @property
    def cache_bytes_per_token(self) -> int:
        """Memory that a token takes in the KV cache."""
        return self.config.cache_bytes_per_token

    @property
    def cache_bytes(self) -> int:
        """Memory of the KV cache."""
        return sum(values.nbytes for values in self.cache_arrays)

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return self.config.parameters

    def prefill(self, ids: Sequence[int]) -> Array:
        """Process one token or more; return the logits [V] of the next one. In a quantized model they come from a step
        with the last token alone, whose rounding is another: so they do not depend on what was in the cache before."""
        if self._is_quantized and len(ids) > 1:
            check_input(ids, self.length, self.context)
            self._reserve(self.length + len(ids))
            self.read(ids[:-1])
            ids = ids[-1:]
        for binding in self._process(ids):
            last = binding
        logits: Array = last.last_logits()[0]
        return logits

    def read(self, ids: Sequence[int]) -> None:
        """Process one token or more, without computing logits."""
        for _ in self._process(ids):
            pass

    def step(self, token: int) -> Array:
        """Process one token; return the logits [V] of the next one."""
        return self.prefill((token,))

    def logits(self, ids: Sequence[int]) -> Array:
        """Process one token or more; return the logits [T, V] after each of them."""
        return np.concatenate([binding.logits()[0] for binding in self._process(ids)])

    def rewind(self, length: int = 0) -> None:
        """Drop all but the first `length` tokens from the cache."""
        self.length = min(length, self.length)

    def score(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The loss of each of ids[:, 1:] in windows ids [B, T + 1], each window independently. The cache is unchanged.

        Returns (losses in nats [B, T], whether the target was the most likely token [B, T]).
        """
        B, T = ids.shape[0], ids.shape[1] - 1
        check_context(T, self.context)
        losses, correct = np.empty((B, T)), np.empty((B, T), np.bool_)
        cache = self._values(self._new_cache(T))
        self._extend_rotary_tables(T)
        size = max(1, min(PREFILL_CHUNK, LOGITS_AT_ONCE // self.config.vocab_size))
        for b in range(B):
            for first in range(0, T, size):
                end = min(T, first + size)
                binding = _Binding(self, end - first)
                binding.run(ids[None, b, first:end], [first], cache)
                targets = ids[b, first + 1 : end + 1]
                losses[b, first:end], correct[b, first:end] = token_losses(binding.logits()[0], targets)
        return losses, correct

    def _process(self, ids: Sequence[int]) -> "Iterator[_Binding]":
        """Run tokens through the decoder, a chunk at a time; yields the binding that holds the results of a chunk."""
        check_input(ids, self.length, self.context)
        self._reserve(self.length + len(ids))
        for first in range(0, len(ids), PREFILL_CHUNK):
            chunk = ids[first : first + PREFILL_CHUNK]
            binding = self._single if len(chunk) == 1 else _Binding(self, len(chunk))
            binding.run([chunk], [self.length], self._cache)
            self.length += len(chunk)
            yield binding

    def embed(self, ids: NDArray[np.int64]) -> Array:
        """The embeddings of tokens, [..., C]."""
        if isinstance(self._embedding, QuantizedMatrix):
            return self._embedding.dequantize(ids)
        embeddings: Array = self._embedding[ids]
        return embeddings

    def _session(self, graph: Graph) -> Any:
        options = self._ort.SessionOptions()
        options.use_per_session_threads = False
        options.log_severity_level = 3
        names, weights = list(graph.arrays), self._values(graph.arrays.values())
        self._weights += weights  # they must live as long as the session
        options.add_external_initializers(names, weights)
        try:
            return self._ort.InferenceSession(graph.model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's errors have no common base class
            raise LLMError(f"onnxruntime {self._ort.__version__} cannot run this model: {error}") from error

    def _reserve(self, length: int) -> None:
        """Make space in the cache for `length` tokens; its capacity grows by doubling."""
        capacity = self.cache_arrays[0].shape[2] if self.cache_arrays else 0
        if length > capacity:
            old, new = self.cache_arrays, self._new_cache(min(self.context, max(length, 2 * capacity, 128)))
            for old_values, new_values in zip(old, new, strict=False):
                new_values[:, :, :capacity] = old_values
            self.use_cache(new)
            self._single = _Binding(self, 1)

    def _new_cache(self, capacity: int) -> list[Array]:
        """Empty keys and values for `capacity` tokens."""
        shape = (1, self.config.num_key_value_heads, capacity, self.config.head_dim)
        return [np.zeros(shape, np.float32) for _ in range(2 * self.config.num_hidden_layers)]

    def _values(self, arrays: Iterable[Array]) -> list[Any]:
        """The arrays for onnxruntime, which uses their memory."""
        return [self._ort.OrtValue.ortvalue_from_numpy(array) for array in arrays]

    def _extend_rotary_tables(self, length: int) -> None:
        """Extend cos and sin [positions, D/2] to `length` positions. They grow by doubling as positions are used, since
        a config may claim a far longer context than is ever used."""
        known = self.rotary[0].shape()[0] if self.rotary else 0
        if length <= known:
            return
        positions = np.arange(min(self.context, max(length, 2 * known, 128)))
        angles = positions[:, None] * np.array(self.config.rope_frequencies())
        value = self._ort.OrtValue.ortvalue_from_numpy
        self.rotary = [value(table(angles).astype(np.float32)) for table in (np.cos, np.sin)]


class _Binding:
    """Arrays for a fixed number of tokens in each of some texts, bound to the two graphs as inputs and outputs so that
    nothing is copied."""

    def __init__(self, runtime: OnnxRuntime, count: int, batch: int = 1) -> None:
        value, config = runtime._ort.OrtValue.ortvalue_from_numpy, runtime.config
        self._runtime = runtime
        self._x = np.zeros((batch, count, config.hidden_size), np.float32)
        self._hidden = np.zeros_like(self._x)
        self._past, self._total = np.zeros(batch, np.int32), np.zeros(1, np.int32)
        self._logits = np.zeros((batch, 1, config.vocab_size), np.float32)  # of the last token
        self._decoder, self._head = runtime.decoder.io_binding(), runtime.head.io_binding()
        # a value must live as long as it is bound
        self._values = {
            "x": value(self._x), "past": value(self._past), "total": value(self._total), "hidden": value(self._hidden),
            "logits": value(self._logits),
        }  # fmt: skip
        self._values["last"] = self._values["hidden"] if count == 1 else value(self._hidden[:, -1:].copy())
        for name in ("x", "past", "total"):
            self._decoder.bind_ortvalue_input(name, self._values[name])
        self._decoder.bind_ortvalue_output("hidden", self._values["hidden"])
        self._head.bind_ortvalue_input("hidden", self._values["last"])
        self._head.bind_ortvalue_output("logits", self._values["logits"])
        self._cache: list[Any] | None = None  # the cache that is currently bound

    def run(
        self,
        ids: Sequence[Sequence[int]] | NDArray[np.int64],
        past: Sequence[int] | NDArray[np.int32],
        cache: list[Any],
    ) -> None:
        """Run tokens ids [B, T] through the decoder, after past [B] others whose keys and values are in `cache`."""
        if self._cache is not cache:
            self._bind(cache)
        ids = np.asarray(ids)
        self._x[...] = self._runtime.embed(ids.ravel()).reshape(self._x.shape)
        self._past[:] = np.asarray(past) + (ids.shape[1] - 1)
        self._total[0] = self._past.max() + 1
        self._runtime.decoder.run_with_iobinding(self._decoder)

    def _bind(self, cache: list[Any]) -> None:
        for i, (keys, values) in enumerate(zip(cache[::2], cache[1::2], strict=True)):
            for name, bound in ((f"keys.{i}", keys), (f"values.{i}", values)):
                self._decoder.bind_ortvalue_input(name, bound)
                self._decoder.bind_ortvalue_output(f"{name}.now", bound)
        self._tables = self._runtime.rotary  # the runtime may replace its own by longer ones
        for name, table in zip(("cos", "sin"), self._tables, strict=True):
            self._decoder.bind_ortvalue_input(name, table)
        self._cache = cache

    def logits(self) -> Array:
        """Logits [B, T, V] after each token."""
        logits: Array = self._runtime.head.run(None, {"hidden": self._hidden})[0]
        return logits

    def last_logits(self) -> Array:
        """Logits [B, V] after the last token of each text."""
        if self._values["last"] is not self._values["hidden"]:
            self._values["last"].numpy()[...] = self._hidden[:, -1:]
        self._runtime.head.run_with_iobinding(self._head)
        logits: Array = self._logits[:, 0].copy()
        return logits


class _Batches:
    """Steps of several forks of one runtime, whose caches are side by side."""

    def __init__(self, runtime: OnnxRuntime) -> None:
        self._runtime, config = runtime, runtime.config
        self._slots = CacheSlots(config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
        self._arrays = self._slots.arrays  # those that the bindings use
        self._bindings: dict[int, tuple[_Binding, list[Any]]] = {}  # by the number of texts, with their caches

    def step(self, runtimes: Sequence[OnnxRuntime], tokens: Sequence[int]) -> Array:
        """Process one token of each; the logits [B, V]. The lengths of the runtimes are not changed."""
        slots, count = self._slots.arrange(runtimes, self._runtime.context), len(runtimes)
        if self._arrays is not self._slots.arrays:  # they were replaced by larger ones
            self._arrays = self._slots.arrays
            self._bindings.clear()
            self._runtime._extend_rotary_tables(self._arrays[0].shape[2])
        if count not in self._bindings:
            caches = self._runtime._values([array[:count] for array in self._arrays])
            self._bindings[count] = _Binding(self._runtime, 1, count), caches
        binding, caches = self._bindings[count]
        ids, past = np.zeros((count, 1), np.int64), np.zeros(count, np.int32)
        ids[slots, 0], past[slots] = tokens, [runtime.length for runtime in runtimes]
        binding.run(ids, past, caches)
        logits: Array = binding.last_logits()[slots]
        return logits


@lru_cache(maxsize=1)
def _share_threads() -> None:
    """Use one thread pool for all sessions: idle threads of a second pool would compete with the first by spinning."""
    import onnxruntime

    onnxruntime.set_global_thread_pool_sizes(cpu_cores(), 1)
