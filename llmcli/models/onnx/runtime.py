"""Runs models on a CPU with onnxruntime, faster than numpy: quantized to 8 or 4 bits, which need less memory
bandwidth, or in float32, with fused operations on all cores.

Quantized models give slightly different results than in numpy_runtime.py, since matrix products quantize
their inputs to int8, block by block. Float32 weights are in memory twice, because onnxruntime copies each
matrix into its own layout. Needs onnxruntime and onnx, which are optional. Never imports torch.

T = tokens; B = texts processed together; V = vocabulary size; C = hidden size; D = head size.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from llmcli.config import POSITIONS, ModelConfig, cpu_cores
from llmcli.errors import LLMError, missing_extra
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.quantization import QuantizedMatrix
from llmcli.models.kv_cache import KVCache, KVCacheRuntime
from llmcli.models.logits import token_losses
from llmcli.models.onnx.graph import Graph, decoder_graph, head_graph, read_weight, rotary_inputs
from llmcli.models.runtime import LOGITS_AT_ONCE, Array, Ints, Scores, check_context

PREFILL_CHUNK = 256  # tokens processed at a time; more than in numpy
# parameters; a quantized model with fewer takes less time for a token in one thread than in two
ONE_THREAD = 2_000_000
DRAFT_TOKENS = 3  # further tokens take a tenth more time in a large model, and two fifths in a small one


def is_installed() -> bool:
    return find_spec("onnxruntime") is not None and find_spec("onnx") is not None


def unsupported(config: ModelConfig) -> str | None:
    """Return a property of a model that onnxruntime's operators do not support, or None."""
    if config.num_experts:
        return "mixture-of-experts layers"
    if config.architecture.joint_qk_norm:
        return "norms of all heads together"
    return f"a head size of {config.head_dim} (only multiples of 16)" if config.head_dim % 16 else None


class OnnxRuntime(KVCacheRuntime):
    """A checkpoint ready to run in onnxruntime."""

    def __init__(self, checkpoint: Checkpoint, scheme: str | None) -> None:
        """`scheme` is "int8", "int4", or None for float32; `checkpoint` must not be `unsupported`. Raises
        LLMError if onnxruntime is not installed."""
        super().__init__(checkpoint.config)
        self._is_quantized = scheme is not None
        # a quantized model's results depend on the number of tokens
        self.draft_tokens = 0 if self._is_quantized else DRAFT_TOKENS
        self._network = _Network(checkpoint, scheme)
        self._few: dict[int, _Binding] = {}  # arrays for one token and for drafts, by the number of tokens

    def fork(self, length: int = 0) -> "OnnxRuntime":
        forked = super().fork(length)
        forked._few = {}
        return forked

    def _step_slots(self, ids: Ints, past: Ints, cache: KVCache) -> Array:
        bindings = self._network.bindings
        if (binding := bindings.get(cache)) is None:
            binding = bindings[cache] = _Binding(self._network, 1, len(ids))
        binding.run(ids[:, None], past, cache)
        return binding.last_logits()

    def step(self, token: int) -> Array:
        check_context(self.length + 1, self.context)
        self.cache.reserve(self.length + 1)
        single = self._binding(1)
        single.run(token, self.length, self.cache)
        self.cache.length += 1
        return single.last_logits()[0]

    def prefill(self, ids: Sequence[int]) -> Array:
        """Process at least one token; return the logits [V] of the next token. A quantized model processes
        the last token separately: rounding depends on the batch, and so the logits do not depend on the
        number of tokens that were already cached."""
        if self._is_quantized and len(ids) > 1:
            self.check_input(ids)
            self.cache.reserve(self.length + len(ids))
            self.read(ids[:-1])
            return self.step(ids[-1])
        for binding in self._process(ids):
            last = binding
        return last.last_logits()[0]

    def read(self, ids: Sequence[int]) -> None:
        for _ in self._process(ids):
            pass

    def logits(self, ids: Sequence[int]) -> Array:
        return np.concatenate([binding.logits()[0] for binding in self._process(ids)])

    def score(self, ids: Ints) -> Scores:
        B = ids.shape[0]
        T = ids.shape[1] - 1
        check_context(T, self.context)
        losses = np.empty((B, T))
        correct = np.empty((B, T), np.bool_)
        cache = KVCache(self.config, capacity=T)
        size = max(1, min(PREFILL_CHUNK, LOGITS_AT_ONCE // self.config.vocab_size))
        for b in range(B):
            for first in range(0, T, size):
                end = min(T, first + size)
                binding = _Binding(self._network, end - first)
                binding.run(ids[None, b, first:end], end - 1, cache)
                targets = ids[b, first + 1 : end + 1]
                losses[b, first:end], correct[b, first:end] = token_losses(binding.logits()[0], targets)
        return losses, correct

    def _binding(self, tokens: int) -> "_Binding":
        """Return arrays for some tokens; those for a draft are kept."""
        binding = self._few.get(tokens) or _Binding(self._network, tokens)
        if tokens <= 1 + DRAFT_TOKENS:
            self._few[tokens] = binding
        return binding

    def _process(self, ids: Sequence[int]) -> "Iterator[_Binding]":
        """Run tokens through the decoder; yields the binding with the results of each chunk."""
        self.check_input(ids)
        self.cache.reserve(self.length + len(ids))
        for first in range(0, len(ids), PREFILL_CHUNK):
            self.check()
            chunk = ids[first : first + PREFILL_CHUNK]
            binding = self._binding(len(chunk))
            binding.run(np.array([chunk]), self.length + len(chunk) - 1, self.cache)
            self.cache.length += len(chunk)
            yield binding


class _Network:
    """The state shared by all forks of a runtime: embedding, sessions of the two graphs, rotary tables."""

    def __init__(self, checkpoint: Checkpoint, scheme: str | None) -> None:
        try:
            import onnx  # noqa: F401
            import onnxruntime
        except ImportError as error:
            raise missing_extra("running quantized weights", "onnxruntime", "fast") from error
        self._ort = onnxruntime
        self.config = checkpoint.config
        self._is_small = scheme is not None and self.config.parameters < ONE_THREAD
        embedding = read_weight(checkpoint, scheme, "model.embed_tokens.weight")  # [V, C]
        self._embedding = _rows(embedding, slice(None)) if self._is_small else embedding
        self._embedding_scale = np.float32(self.config.embedding_scale)
        self._positions = (
            read_weight(checkpoint, scheme, POSITIONS) if self.config.architecture.learned_positions else None
        )
        tied = self.config.tie_word_embeddings
        head = embedding if tied else read_weight(checkpoint, scheme, "lm_head.weight")
        self._weights: list[Any] = []  # float32 only
        self.decoder = self._session(decoder_graph(checkpoint, scheme))
        self.head = self._session(head_graph(checkpoint, head))
        self._rotary: list[Any] = []  # cos and sin of the positions used so far: [positions, D/2]
        # for one token in each of several texts, by their slots; dropped when these move to larger memory
        self.bindings: WeakKeyDictionary[KVCache, _Binding] = WeakKeyDictionary()

    def _session(self, graph: Graph) -> Any:
        options = self._ort.SessionOptions()
        shares_threads = _share_threads.cache_info().currsize > 0  # if one session does, all sessions must
        if self._is_small and not shares_threads:
            options.intra_op_num_threads = 1
        else:
            _share_threads()
            options.use_per_session_threads = False
        options.log_severity_level = 3
        model, arrays = graph
        weights = [self.value(array) for array in arrays.values()]
        self._weights += weights  # they must live as long as the session
        options.add_external_initializers(list(arrays), weights)
        try:
            return self._ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base class
            raise LLMError(f"onnxruntime {self._ort.__version__} cannot run this model: {error}") from error

    def value(self, array: NDArray[Any]) -> Any:
        """Wrap an array for onnxruntime, which uses its memory."""
        return self._ort.OrtValue.ortvalue_from_numpy(array)

    def embed(self, ids: Ints | int, last: Ints | int, x: Array) -> None:
        """Set x [B, T, C] to the embeddings of tokens ids [B, T]. `last` [B] are the positions of the last
        tokens. For a single token, both are one number."""
        np.multiply(_rows(self._embedding, ids), self._embedding_scale, out=x)
        if self._positions is not None:
            x += _rows(self._positions, np.asarray(last)[..., None] + np.arange(1 - x.shape[1], 1))

    def rotary_tables(self, length: int) -> list[Any]:
        """Return the `rotary_inputs` for at least `length` positions, but not for the whole context, which
        may be far longer than is ever used."""
        tables = self._rotary  # another thread may replace them
        known = tables[0].shape()[0] if tables else 0
        if length > known:
            positions = np.arange(min(self.config.max_position_embeddings, max(length, 2 * known, 128)))
            frequencies = [np.array(self.config.rope_frequencies(kind)) for kind in self.config.layer_kinds]
            angles = [positions[:, None] * frequency for frequency in frequencies]
            tables = [
                self.value(table(angle).astype(np.float32)) for angle in angles for table in (np.cos, np.sin)
            ]
            self._rotary = tables
        return tables


class _Binding:
    """Arrays for `count` tokens in each of `batch` texts, bound to the two graphs so that nothing is
    copied."""

    def __init__(self, network: _Network, count: int, batch: int = 1) -> None:
        self._network = network
        config = network.config
        self._x = np.zeros((batch, count, config.hidden_size), np.float32)
        self._hidden = np.zeros_like(self._x)
        self._past = np.zeros(batch, np.int32)
        self._total = np.zeros(1, np.int32)
        self._logits = np.zeros((batch, 1, config.vocab_size), np.float32)  # for the last token
        self._decoder = network.decoder.io_binding()
        self._head = network.head.io_binding()
        # a value must live as long as it is bound
        inputs = {"x": self._x, "past": self._past, "total": self._total}
        bound = inputs | {"hidden": self._hidden, "logits": self._logits}
        self._values = {name: network.value(array) for name, array in bound.items()}
        self._values["last"] = (
            self._values["hidden"] if count == 1 else network.value(self._hidden[:, -1:].copy())
        )
        for name in inputs:
            self._decoder.bind_ortvalue_input(name, self._values[name])
        self._decoder.bind_ortvalue_output("hidden", self._values["hidden"])
        self._head.bind_ortvalue_input("hidden", self._values["last"])
        self._head.bind_ortvalue_output("logits", self._values["logits"])
        self._keys: list[Array] | None = None  # keys of the bound cache

    def run(self, ids: Ints | int, last: Ints | int, cache: KVCache) -> None:
        """Run tokens ids [B, T] through the decoder. `last` [B] are the positions of the last tokens in
        `cache`. For a single token, both are one number."""
        if self._keys is not cache.keys:  # another cache, or a moved one
            self._bind(cache)
        self._network.embed(ids, last, self._x)
        self._past[:] = last
        self._total[0] = max(self._past.tolist()) + 1
        self._network.decoder.run_with_iobinding(self._decoder)

    def _bind(self, cache: KVCache) -> None:
        for name, arrays in (("keys", cache.keys), ("values", cache.values)):
            for layer, array in enumerate(arrays):
                value = self._values[f"{name}.{layer}"] = self._network.value(array)
                self._decoder.bind_ortvalue_input(f"{name}.{layer}", value)
                self._decoder.bind_ortvalue_output(f"{name}.{layer}.now", value)
        self._tables = self._network.rotary_tables(cache.capacity)
        for name, table in zip(rotary_inputs(self._network.config), self._tables, strict=True):
            self._decoder.bind_ortvalue_input(name, table)
        self._keys = cache.keys

    def logits(self) -> Array:
        """Return the logits [B, T, V] after each token."""
        return self._network.head.run(None, {"hidden": self._hidden})[0]

    def last_logits(self) -> Array:
        """Return the logits [B, V] after the last token of each text."""
        if self._values["last"] is not self._values["hidden"]:
            self._values["last"].numpy()[...] = self._hidden[:, -1:]
        self._network.head.run_with_iobinding(self._head)
        return self._logits[:, 0].copy()


def _rows(matrix: QuantizedMatrix | Array, rows: Any) -> Array:
    return matrix.dequantize(rows) if isinstance(matrix, QuantizedMatrix) else matrix[rows]


@lru_cache(maxsize=1)
def _share_threads() -> None:
    """Use one thread pool for all sessions: idle threads of a second pool would compete with the first by
    spinning."""
    import onnxruntime

    onnxruntime.set_global_thread_pool_sizes(cpu_cores(), 1)
