"""The step of runtime.py with weights in few bits, as onnxruntime's operators: what reads less memory runs faster.

runtime.py is the description to read and the truth: the tests hold this one against it. Here a step is one graph of
nine operators a layer, since products alone in the library and the rest in numpy took 1.7 times as long
(tests/benchmarks/LOG.md). Products also round what they multiply to eight bits, a block at a time.

Needs onnxruntime and onnx, an extra. Never imports torch; knows token ids only, no text.
H, G, D = heads, key-value heads, head size; C, F = width, width inside the SwiGLU; T = tokens; V = vocabulary.
"""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.config import ModelConfig
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.quantization import BLOCK, Blocks
from llmcli.models.numpy_runtime import costs

Array = NDArray[np.float32]
PREFILL = 256  # tokens taken at once
HEAD = 1 << 22  # logits held at once where many tokens are scored
_OURS = "com.microsoft"  # onnxruntime's own operators


def is_installed() -> bool:
    """Whether onnxruntime and onnx are installed."""
    from importlib.util import find_spec

    return find_spec("onnxruntime") is not None and find_spec("onnx") is not None


def unsupported(config: ModelConfig) -> str | None:
    """The property of the model that onnxruntime's operators do not support; None if they run it."""
    if config.num_experts:
        return "mixture-of-experts layers"
    return f"a head size of {config.head_dim} (only multiples of 16)" if config.head_dim % 16 else None


@lru_cache(maxsize=1)
def _share_threads() -> None:
    """One pool for all graphs: idle threads of a second would spin in the way of the first."""
    import onnxruntime

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    onnxruntime.set_global_thread_pool_sizes(cores, 1)


class OnnxRuntime:
    """A model ready to run in "int8" or "int4", behind the interface of runtime.py's Runtime."""

    def __init__(self, checkpoint: Checkpoint, kind: str) -> None:
        """Raises LLMError without the extra, and for a shape that its operators do not take."""
        try:
            import onnx  # noqa: F401
            import onnxruntime
        except ImportError as error:
            raise LLMError("to run in few bits onnxruntime is needed: pip install 'llmcli[fast]'") from error
        self._ort = onnxruntime
        _share_threads()
        self.config = checkpoint.config
        self.context = self.config.max_position_embeddings
        self.length = 0
        if reason := unsupported(self.config):
            raise LLMError(f"onnxruntime does not support {reason}")
        self._embedding = checkpoint.blocks("model.embed_tokens.weight", kind)
        head = self._embedding
        if not self.config.tie_word_embeddings:
            head = checkpoint.blocks("lm_head.weight", kind)
        assert self._embedding is not None and head is not None
        self._body = self._session(_body(checkpoint, kind))
        self._head = self._session(_head(head))
        self.rotary: list[Any] = []  # cos and sin of the positions used so far: [positions, D/2]
        self._cache: list[Any] = []  # keys, then values, of each layer: [1, G, room, D]
        self._make_room(1)

    @property
    def parameters(self) -> int:
        return self.config.parameters

    def prefill(self, ids: Sequence[int]) -> Array:
        """Take in tokens, at least one; the logits [V] of what follows the last."""
        for place in self._take(ids):
            last = place
        return last.logits()

    def step(self, token: int) -> Array:
        """Take in one token; the logits [V] of the next."""
        return self.prefill((token,))

    def logits(self, ids: Sequence[int]) -> Array:
        """Take in tokens; the logits [T, V] after each of them."""
        return np.concatenate([place.every_logits() for place in self._take(ids)])

    def rewind(self, length: int = 0) -> None:
        """Forget all but the first `length` tokens."""
        self.length = min(length, self.length)

    def score(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """How well windows ids [B, T + 1] are predicted, each from its own beginning: see runtime.py."""
        B, T = ids.shape[0], ids.shape[1] - 1
        if self.context < T:
            raise LLMError(f"{T} tokens do not fit the context of {self.context}")
        nats, right = np.empty((B, T)), np.empty((B, T), np.bool_)
        cache = self._new_cache(T)
        rows = max(1, min(PREFILL, HEAD // self.config.vocab_size))
        for b in range(B):
            for first in range(0, T, rows):
                some, targets = ids[b, first : min(T, first + rows)], ids[b, first + 1 : min(T, first + rows) + 1]
                place = _Place(self, len(some))
                place.take(some, first, cache)
                now = slice(first, first + rows)
                nats[b, now], right[b, now] = costs(place.every_logits(), targets)
        return nats, right

    def _take(self, ids: Sequence[int]) -> "Iterator[_Place]":
        """Tokens through all layers, some at a time: where each of these are."""
        if not len(ids):
            raise ValueError("at least one token is needed")
        if self.length + len(ids) > self.context:
            raise LLMError(f"{self.length + len(ids)} tokens do not fit the context of {self.context}")
        self._make_room(self.length + len(ids))
        for first in range(0, len(ids), PREFILL):
            some = ids[first : first + PREFILL]
            place = self._one if len(some) == 1 else _Place(self, len(some))
            place.take(some, self.length, self._cache)
            self.length += len(some)
            yield place

    def _session(self, model: Any) -> Any:
        options = self._ort.SessionOptions()
        options.use_per_session_threads = False
        options.log_severity_level = 3
        try:
            return self._ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's errors have no common name
            raise LLMError(f"onnxruntime {self._ort.__version__} cannot run this model: {error}") from error

    def _make_room(self, length: int) -> None:
        """Let the cache hold `length` tokens; it grows by doubling."""
        room = self._cache[0].shape()[2] if self._cache else 0
        if length > room:
            old, self._cache = self._cache, self._new_cache(min(self.context, max(length, 2 * room, 128)))
            for before, now in zip(old, self._cache, strict=False):
                now.numpy()[:, :, :room] = before.numpy()
            self._one = _Place(self, 1)

    def _new_cache(self, room: int) -> list[Any]:
        """Empty keys and values for `room` tokens, which the rotary tables then reach too."""
        self._grow_rotary_tables(room)
        G, D = self.config.num_key_value_heads, self.config.head_dim
        count = 2 * self.config.num_hidden_layers
        return [self._ort.OrtValue.ortvalue_from_numpy(np.zeros((1, G, room, D), np.float32)) for _ in range(count)]

    def _grow_rotary_tables(self, length: int) -> None:
        """Let cos and sin [positions, D/2] reach `length` positions. They grow by doubling with the positions that are
        used: a config may claim far more of them than anybody will use."""
        known = self.rotary[0].shape()[0] if self.rotary else 0
        if length <= known:
            return
        positions = np.arange(min(self.context, max(length, 2 * known, 128)))
        angles = positions[:, None] * np.array(self.config.rope_frequencies())
        value = self._ort.OrtValue.ortvalue_from_numpy
        self.rotary = [value(table(angles).astype(np.float32)) for table in (np.cos, np.sin)]


class _Place:
    """Arrays for so many tokens, which the two graphs read and write where they lie."""

    def __init__(self, runtime: OnnxRuntime, count: int) -> None:
        value, config = runtime._ort.OrtValue.ortvalue_from_numpy, runtime.config
        self._runtime = runtime
        self._x = np.zeros((1, count, config.hidden_size), np.float32)
        self.hidden = np.zeros_like(self._x)
        self._logits = np.zeros((1, 1, config.vocab_size), np.float32)
        self._past, self._total = np.zeros(1, np.int32), np.zeros(1, np.int32)
        self._body = runtime._body.io_binding()
        self._values = {
            "x": value(self._x), "past": value(self._past), "total": value(self._total), "hidden": value(self.hidden),
        }  # fmt: skip
        for name in ("x", "past", "total"):
            self._body.bind_ortvalue_input(name, self._values[name])
        self._body.bind_ortvalue_output("hidden", self._values["hidden"])
        self._head = runtime._head.io_binding()
        last = self._values["hidden"] if count == 1 else value(self.hidden[:, -1:].copy())
        self._last = None if count == 1 else last
        self._head.bind_ortvalue_input("hidden", last)
        self._out = value(self._logits)
        self._head.bind_ortvalue_output("logits", self._out)
        self._cache: list[Any] | None = None

    def take(self, ids: Sequence[int] | NDArray[np.int64], past: int, cache: list[Any]) -> None:
        """Tokens through all layers, after `past` others whose keys and values the cache has."""
        if self._cache is not cache:
            for i, (key, value) in enumerate(zip(cache[::2], cache[1::2], strict=True)):
                for name, bound in ((f"keys.{i}", key), (f"values.{i}", value)):
                    self._body.bind_ortvalue_input(name, bound)
                    self._body.bind_ortvalue_output(f"{name}.now", bound)
            for name, table in zip(("cos", "sin"), self._runtime.rotary, strict=True):
                self._body.bind_ortvalue_input(name, table)
            self._cache = cache
        embedding = self._runtime._embedding
        assert embedding is not None
        self._x[0] = embedding.rows(np.asarray(ids))
        self._past[0], self._total[0] = past + len(ids) - 1, past + len(ids)
        self._runtime._body.run_with_iobinding(self._body)

    def every_logits(self) -> Array:
        """Of what follows each token, [T, V]."""
        found: Array = self._runtime._head.run(None, {"hidden": self.hidden})[0][0]
        return found

    def logits(self) -> Array:
        """Of what follows the last token, [V]."""
        if self._last is not None:
            self._last.numpy()[...] = self.hidden[:, -1:]
        self._runtime._head.run_with_iobinding(self._head)
        return self._logits[0, 0].copy()


class _Graph:
    """Nodes and constants, as they are added."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._tensor = helper, numpy_helper.from_array
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, shape: Sequence[int | str], whole: bool = False) -> str:
        kind = self._helper.np_dtype_to_tensor_dtype(np.dtype(np.int32 if whole else np.float32))
        self._inputs.append(self._helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, shape: Sequence[int | str]) -> None:
        kind = self._helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
        self._outputs.append(self._helper.make_tensor_value_info(name, kind, shape))

    def constant(self, array: NDArray[Any]) -> str:
        name = f"constant.{len(self._constants)}"
        self._constants.append(self._tensor(np.ascontiguousarray(array), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **settings: Any) -> str:
        """The name of the first output."""
        node = self._helper.make_node(
            kind, inputs, outputs, name=f"{kind}.{len(self._nodes)}", domain=domain, **settings
        )
        self._nodes.append(node)
        return outputs[0]

    def product(self, x: str, weight: Blocks, out: str, bias: Array | None = None) -> str:
        """x [1, T, columns] -> [1, T, rows]"""
        inputs = [x, self.constant(weight.codes), self.constant(weight.scales.astype(np.float32))]
        if bias is not None:
            inputs += ["", "", self.constant(bias)]
        return self.add(
            "MatMulNBits", inputs, [out], _OURS, K=weight.columns, N=len(weight.codes), bits=weight.bits,
            block_size=BLOCK, accuracy_level=4,  # multiply in whole numbers of eight bits
        )  # fmt: skip

    def norm(self, x: str, gain: Array, eps: float, out: str) -> str:
        return self.add("SimplifiedLayerNormalization", [x, self.constant(gain)], [out], axis=-1, epsilon=eps)

    def add_and_norm(self, x: str, y: str, gain: Array, eps: float, name: str) -> tuple[str, str]:
        """(the norm of x + y, x + y)"""
        normed, total = f"{name}.normed", f"{name}.sum"
        inputs = [x, y, self.constant(gain)]
        self.add("SkipSimplifiedLayerNormalization", inputs, [normed, "", "", total], _OURS, epsilon=eps)
        return normed, total

    def model(self) -> bytes:
        helper = self._helper
        graph = helper.make_graph(self._nodes, "step", self._inputs, self._outputs, self._constants)
        versions = [helper.make_opsetid("", 17), helper.make_opsetid(_OURS, 1)]
        try:
            return helper.make_model(graph, opset_imports=versions, ir_version=9).SerializeToString()
        except ValueError as error:
            raise LLMError("a model of over 2 GB in few bits does not run here; run it as it is") from error


def _head(weight: Blocks) -> bytes:
    graph = _Graph()
    graph.input("hidden", [1, "T", weight.columns])
    graph.product("hidden", weight, "logits")
    graph.output("logits", [1, "T", len(weight.codes)])
    return graph.model()


def _body(checkpoint: Checkpoint, kind: str) -> bytes:
    """Token embeddings x [1, T, C] -> what the head reads, [1, T, C]; keys and values go into the cache in place."""
    config, tensors, eps = checkpoint.config, checkpoint.tensors, checkpoint.config.rms_norm_eps
    H, G, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    C, F, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    graph = _Graph()
    x = graph.input("x", [1, "T", C])
    past, total = graph.input("past", [1], whole=True), graph.input("total", [1], whole=True)
    cos, sin = graph.input("cos", ["positions", D // 2]), graph.input("sin", ["positions", D // 2])
    normed = graph.norm(x, tensors["model.layers.0.input_layernorm.weight"], eps, "first")
    for i in range(layers):
        name = f"model.layers.{i}."
        attn, mlp = name + "self_attn.", name + "mlp."
        bias = np.concatenate([tensors[f"{attn}{w}_proj.bias"] for w in "qkv"]) if config.qkv_bias else None
        qkv = graph.product(normed, _stacked(checkpoint, kind, [f"{attn}{w}_proj.weight" for w in "qkv"]), attn, bias)
        parts = [qkv, "", ""]
        if config.qk_norm:
            sizes = graph.constant(np.array([H * D, G * D, G * D], np.int64))
            parts = [f"{attn}{w}" for w in "qkv"]
            graph.add("Split", [qkv, sizes], parts, axis=-1)
            for which, N in (("q", H), ("k", G)):
                heads = graph.constant(np.array([0, -1, N, D], np.int64))
                flat = graph.constant(np.array([0, -1, N * D], np.int64))
                split = graph.add("Reshape", [f"{attn}{which}", heads], [f"{attn}{which}.heads"])
                gain = tensors[f"{attn}{which}_norm.weight"]
                turned = graph.norm(split, gain, eps, f"{attn}{which}.normed")
                parts["qk".index(which)] = graph.add("Reshape", [turned, flat], [f"{attn}{which}.flat"])
        caches = [graph.input(f"{part}.{i}", [1, G, "room", D]) for part in ("keys", "values")]
        for part in ("keys", "values"):
            graph.output(f"{part}.{i}.now", [1, G, "room", D])
        outputs = [f"{attn}y", f"keys.{i}.now", f"values.{i}.now"]
        y = graph.add(
            "GroupQueryAttention", [*parts, *caches, past, total, cos, sin], outputs, _OURS,
            num_heads=H, kv_num_heads=G, do_rotary=1,
        )  # fmt: skip
        y = graph.product(y, _stacked(checkpoint, kind, [attn + "o_proj.weight"]), attn + "o")
        gain = tensors[name + "post_attention_layernorm.weight"]
        normed, x = graph.add_and_norm(x, y, gain, eps, attn + "added")
        both = _stacked(checkpoint, kind, [mlp + "gate_proj.weight", mlp + "up_proj.weight"])
        gate_up = graph.product(normed, both, mlp + "both")
        halves = graph.constant(np.array([F, F], np.int64))
        graph.add("Split", [gate_up, halves], [mlp + "gate", mlp + "up"], axis=-1)
        gate = graph.add("QuickGelu", [mlp + "gate"], [mlp + "opened"], _OURS, alpha=1.0)  # gate * sigmoid(gate)
        inner = graph.add("Mul", [gate, mlp + "up"], [mlp + "inner"])
        y = graph.product(inner, _stacked(checkpoint, kind, [mlp + "down_proj.weight"]), mlp + "down")
        following = "model.norm.weight" if i == layers - 1 else f"model.layers.{i + 1}.input_layernorm.weight"
        normed, x = graph.add_and_norm(x, y, tensors[following], eps, mlp + "added")
    graph.add("Identity", [normed], ["hidden"])
    graph.output("hidden", [1, "T", C])
    return graph.model()


def _stacked(checkpoint: Checkpoint, kind: str, names: Sequence[str]) -> Blocks:
    """Matrices of the same inputs one under the other: one product for all."""
    found = [blocks for name in names if (blocks := checkpoint.blocks(name, kind)) is not None]
    if len(found) == 1:
        return found[0]
    codes, scales = (np.concatenate([getattr(blocks, part) for blocks in found]) for part in ("codes", "scales"))
    return Blocks(codes, scales, found[0].columns)
