"""The graph in numpy: the small program that runs the file.

The same decoder as model.py (Qwen3 and its kin: Qwen2, Llama, Mistral), one token at a time with a key-value cache.
Weights that are used together are stored together, so that a layer costs four matrix-vector products. Never imports
torch; knows token ids only, no text.

C, F = width, width inside the SwiGLU; H, G, D = heads, key-value heads, head size; V = vocabulary; T = tokens;
B = windows scored together.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.logits import probabilities

Array = NDArray[np.float32]
Attend = Callable[["_Layer", Array, Array, Array], Array]  # layer, q [T, H, D], k, v [T, G, D] -> [T, H * D]
PREFILL = 128  # tokens taken at once
FEW = 6  # tokens that are quicker one by one than as a product of matrices
HEAD = 1 << 22  # logits held at once where many tokens are scored


class Watcher(Protocol):
    """Looks on while tokens are taken in, some [t] at a time; it copies what it keeps and changes nothing."""

    def states(self, x: Array) -> None:
        """The residual stream [t, C]: once before the first layer, then after each."""

    def attention(self, weights: Array) -> None:
        """Of each layer in turn, how much each token looks at each of the S so far: [H, t, S]; rows sum to 1."""


class _SwiGLU:
    """silu(gate x) * (up x), brought back to the width by down (arXiv:2002.05202). The gain of the norm before it is
    multiplied into its matrices."""

    def __init__(self, checkpoint: Checkpoint, layer: int, names: tuple[str, str, str]) -> None:
        """`names` of its tensors: gate, up, down."""
        C, F = checkpoint.config.hidden_size, checkpoint.config.intermediate_size
        gate, up, down = names
        self.gate_up = np.empty((2 * F, C), np.float32)
        checkpoint.read(gate, self.gate_up[:F])
        checkpoint.read(up, self.gate_up[F:])
        self.gate_up *= _gain(checkpoint, layer)
        self.down = _read(checkpoint, down)

    def __call__(self, x: Array) -> Array:
        """[T, C] -> [T, C]"""
        both = _product(x, self.gate_up)
        gate, up = np.split(both, 2, axis=-1)
        return _product(gate / (1 + np.exp(-gate)) * up, self.down)


class _Experts:
    """Several SwiGLUs, of which a router picks a few for each token (arXiv:2401.04088, section 2.1); the weights of
    the others are not touched."""

    def __init__(self, checkpoint: Checkpoint, layer: int) -> None:
        config = checkpoint.config
        self.experts = [_SwiGLU(checkpoint, layer, names) for names in config.swiglu_names(layer)]
        self.router = _read(checkpoint, config.router_name(layer)) * _gain(checkpoint, layer)
        self.active, self.normalize = config.num_experts_per_tok, config.norm_topk_prob
        self.weights = np.zeros((0, config.num_experts), np.float32)  # [T, experts] of the tokens taken in last

    def __call__(self, x: Array) -> Array:
        """[T, C] -> [T, C]"""
        shares = probabilities(_product(x, self.router))
        chosen = np.argsort(-shares, axis=-1, kind="stable")[:, : self.active]  # [T, active]
        picked = np.take_along_axis(shares, chosen, axis=-1)
        if self.normalize:
            picked /= picked.sum(axis=-1, keepdims=True)
        self.weights = np.zeros_like(shares)
        np.put_along_axis(self.weights, chosen, picked, axis=-1)
        y = np.zeros_like(x)
        if len(x) == 1:
            for expert, weight in zip(chosen[0].tolist(), picked[0], strict=True):
                y += self.experts[expert](x) * weight
            return y
        for expert in np.unique(chosen):
            tokens = np.flatnonzero(self.weights[:, expert])
            y[tokens] += self.experts[expert](x[tokens]) * self.weights[tokens, expert, None]
        return y


class _Layer:
    """One layer's weights, and its keys and values so far.

    The gains of the two norms are multiplied into the matrices behind them. The pairs (i, i + D/2) of a query or key
    that turn together lie side by side here, so that a turn is one complex product; scores do not change.
    """

    def __init__(self, checkpoint: Checkpoint, index: int) -> None:
        config = checkpoint.config
        C = config.hidden_size
        H, G, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        name = f"model.layers.{index}."
        self.qkv = np.empty(((H + 2 * G) * D, C), np.float32)
        checkpoint.read(name + "self_attn.q_proj.weight", self.qkv[: H * D])
        checkpoint.read(name + "self_attn.k_proj.weight", self.qkv[H * D : (H + G) * D])
        checkpoint.read(name + "self_attn.v_proj.weight", self.qkv[(H + G) * D :])
        self.qkv *= _read(checkpoint, name + "input_layernorm.weight")
        _pair(self.qkv[: (H + G) * D].reshape(H + G, D, C))
        scale = np.float32(1 / math.sqrt(D))  # of queries
        self.qk_norm: Array | None = None
        if config.qk_norm:
            gains = np.empty((H + G, D), np.float32)
            gains[:H] = _read(checkpoint, name + "self_attn.q_norm.weight") * scale
            gains[H:] = _read(checkpoint, name + "self_attn.k_norm.weight")
            self.qk_norm = _pair(gains)
        else:
            self.qkv[: H * D] *= scale
        self.bias: Array | None = None
        if config.qkv_bias:
            self.bias = np.concatenate([_read(checkpoint, f"{name}self_attn.{which}_proj.bias") for which in "qkv"])
            _pair(self.bias[: (H + G) * D].reshape(H + G, D))
            self.bias[: H * D] *= scale
        self.o = _read(checkpoint, name + "self_attn.o_proj.weight")
        self.mlp: _SwiGLU | _Experts = (
            _Experts(checkpoint, index)
            if config.num_experts
            else _SwiGLU(checkpoint, index, config.swiglu_names(index)[0])
        )
        self.keys = np.zeros((G, 0, D), np.float32)
        self.values = np.zeros((G, 0, D), np.float32)

    def make_room(self, length: int) -> None:
        """Let the cache hold `length` tokens; it grows by doubling."""
        G, room, D = self.keys.shape
        if length > room:
            room = max(length, 2 * room, 64)
            for which in ("keys", "values"):
                old = getattr(self, which)
                new = np.zeros((G, room, D), np.float32)
                new[:, : old.shape[1]] = old
                setattr(self, which, new)


class NumpyRuntime:
    """A model ready to run: `prefill(ids)` and `step(id)` take tokens in and give the logits [V] of the next.

    `length` is the number of tokens taken in so far, at most `context`; `rewind` forgets the last of them. A `watcher`
    sees what flows through the graph.
    """

    watcher: Watcher | None = None

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = checkpoint.config
        self.config = config
        self.context = config.max_position_embeddings
        self.length = 0
        self._embedding = _read(checkpoint, "model.embed_tokens.weight")
        with np.errstate(over="ignore", invalid="ignore"):  # damaged weights are found by their logits
            self._layers = [_Layer(checkpoint, index) for index in range(config.num_hidden_layers)]
        self._norm = _read(checkpoint, "model.norm.weight")
        self._head = self._embedding if config.tie_word_embeddings else _read(checkpoint, "lm_head.weight")
        self._eps = np.float32(config.rms_norm_eps)
        self._turn = np.zeros((0, 1, config.head_dim // 2), np.complex64)

    @property
    def parameters(self) -> int:
        return self.config.parameters

    def prefill(self, ids: Sequence[int]) -> Array:
        """Take in tokens, at least one; the logits [V] of what follows the last."""
        return np.vecdot(self._head, self._states(ids)[-1])

    def step(self, token: int) -> Array:
        """Take in one token; the logits [V] of the next."""
        return self.prefill((token,))

    def logits(self, ids: Sequence[int]) -> Array:
        """Take in tokens; the logits [T, V] after each of them."""
        return _product(self._states(ids), self._head)

    def lens(self, states: Array) -> Array:
        """What the model would say if the residual stream [T, C] stood so after its last layer: logits [T, V]."""
        return _product(self._rms(states) * self._norm, self._head)

    def rewind(self, length: int = 0) -> None:
        """Forget all but the first `length` tokens."""
        self.length = min(length, self.length)

    def expert_weights(self) -> Array:
        """What each expert counted for the token taken in last, [layers, experts]; rows sum to 1 where the config
        normalises them. Empty where there are no experts."""
        found = [layer.mlp.weights[-1] for layer in self._layers if isinstance(layer.mlp, _Experts)]
        return np.stack(found) if found else np.zeros((0, 0), np.float32)

    def _states(self, ids: Sequence[int]) -> Array:
        """Take in tokens, some at a time; the hidden states [T, C] that the head reads."""
        if not len(ids):
            raise ValueError("at least one token is needed")
        if self.length + len(ids) > self.context:
            raise LLMError(f"{self.length + len(ids)} tokens do not fit the context of {self.context}")
        self._make_room(self.length + len(ids))
        with np.errstate(over="ignore"):  # exp(-gate) may be infinite: then the gate is shut
            parts = [self._take(ids[first : first + PREFILL]) for first in range(0, len(ids), PREFILL)]
        x = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return self._rms(x) * self._norm

    def score(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """How well windows ids [B, T + 1] are predicted, each from its own beginning.

        For each of ids[:, 1:], [B, T] both: the nats it costs, and whether it was the likeliest. What was taken in
        before stays as it is. Memory holds B * T hidden states, never B * T * V logits.
        """
        B, T = ids.shape[0], ids.shape[1] - 1
        if self.context < T:
            raise LLMError(f"{T} tokens do not fit the context of {self.context}")
        self._make_turns(T)

        def attend(layer: _Layer, q: Array, k: Array, v: Array) -> Array:
            y = np.empty((B * T, q.shape[1] * q.shape[2]), np.float32)
            for start in range(0, B * T, T):
                keys, values = (part[start : start + T].swapaxes(0, 1) for part in (k, v))
                for first in range(0, T, PREFILL):
                    end = min(T, first + PREFILL)
                    now = slice(start + first, start + end)
                    y[now] = _attention(q[now], keys[:, :end], values[:, :end])
            return y

        with np.errstate(over="ignore"):
            x = self._through(ids[:, :-1].ravel(), np.tile(self._turn[:T], (B, 1, 1)), attend)
        x = self._rms(x) * self._norm
        targets = ids[:, 1:].ravel()
        nats, right = np.empty(B * T), np.empty(B * T, np.bool_)
        rows = max(1, HEAD // len(self._head))
        for start in range(0, B * T, rows):
            now = slice(start, start + rows)
            nats[now], right[now] = costs(_product(x[now], self._head), targets[now])
        return nats.reshape(B, T), right.reshape(B, T)

    def _take(self, ids: Sequence[int]) -> Array:
        """Tokens [T] through all layers, their keys and values into the cache: hidden states [T, C]."""
        start, end = self.length, self.length + len(ids)

        def attend(layer: _Layer, q: Array, k: Array, v: Array) -> Array:
            layer.keys[:, start:end] = k.swapaxes(0, 1)
            layer.values[:, start:end] = v.swapaxes(0, 1)
            return _attention(q, layer.keys[:, :end], layer.values[:, :end], self.watcher)

        x = self._through(list(ids), self._turn[start:end], attend, self.watcher)
        self.length = end
        return x

    def _through(self, ids: Any, turn: NDArray[np.complex64], attend: Attend, watcher: Watcher | None = None) -> Array:
        """Tokens [T], each turned by its position's `turn` [T, 1, D/2], through all layers: hidden states [T, C]."""
        T, config = len(ids), self.config
        H, G, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        x = self._embedding[ids]  # [T, C]
        if watcher:
            watcher.states(x)
        for layer in self._layers:
            qkv = _product(self._rms(x), layer.qkv)
            if layer.bias is not None:
                qkv = qkv + layer.bias
            qkv = qkv.reshape(T, H + 2 * G, D)
            qk = qkv[:, : H + G]
            if layer.qk_norm is not None:
                qk = self._rms(qk) * layer.qk_norm
            qk = (qk.view(np.complex64) * turn).view(np.float32)
            x = x + _product(attend(layer, qk[:, :H], qk[:, H:], qkv[:, H + G :]), layer.o)
            x = x + layer.mlp(self._rms(x))
            if watcher:
                watcher.states(x)
        return x

    def _rms(self, x: Array) -> Array:
        """x / sqrt(mean(x^2) + eps) over the last dimension."""
        return x / np.sqrt(np.vecdot(x, x)[..., None] * np.float32(1 / x.shape[-1]) + self._eps)

    def _make_room(self, length: int) -> None:
        """Let caches and tables hold `length` tokens."""
        for layer in self._layers:
            layer.make_room(length)
        self._make_turns(length)

    def _make_turns(self, length: int) -> None:
        """Let the table of turns hold `length` positions; it grows by doubling."""
        if length > len(self._turn):
            room = max(length, 2 * len(self._turn), 64)
            angle = np.arange(room)[:, None, None] * np.array(self.config.rope_frequencies())
            self._turn = np.exp(1j * angle).astype(np.complex64)  # [room, 1, D/2]


def costs(logits: Array, targets: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The nats that each of targets [N] costs under logits [N, V], which are overwritten, and whether it was the
    likeliest."""
    logits -= logits.max(axis=-1, keepdims=True)
    right = logits.argmax(axis=-1) == targets
    wanted = np.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return np.log(np.exp(logits, out=logits).sum(axis=-1, dtype=np.float64)) - wanted, right


def _pair(heads: Array) -> Array:
    """Let the numbers i and i + D/2 of each head [N, D, ...] lie side by side, in place; the same array."""
    N, D, *inner = heads.shape
    heads[...] = heads.reshape(N, 2, D // 2, *inner).swapaxes(1, 2).reshape(heads.shape)
    return heads


def _attention(q: Array, keys: Array, values: Array, watcher: Watcher | None = None) -> Array:
    """What queries [T, H, D] of the last T positions find among keys and values [G, S, D] up to theirs: [T, H * D]."""
    T, H, D = q.shape
    G, S = keys.shape[:2]
    weights = q.swapaxes(0, 1).reshape(G, H // G * T, D) @ keys.swapaxes(1, 2)  # [G, H/G * T, S]
    if T > 1:
        weights.reshape(H, T, S)[:, _later(T, S)] = -np.inf
    weights -= weights.max(axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(axis=-1, keepdims=True)
    if watcher:
        watcher.attention(weights.reshape(H, T, S))
    return (weights @ values).reshape(H, T, D).swapaxes(0, 1).reshape(T, H * D)


@lru_cache(maxsize=32)
def _later(T: int, S: int) -> NDArray[np.bool_]:
    """[T, S]: which positions come after each of the last T."""
    return np.arange(S) > np.arange(S - T, S)[:, None]


def _product(x: Array, weight: Array) -> Array:
    """x [T, inputs], weight [outputs, inputs] -> [T, outputs].

    One token is a dot product for each row: that streams weights from memory at twice the rate of BLAS's
    matrix-vector product (measured: 20 against 10 GB/s on one core). A few are as many dot products while a row is at
    hand: BLAS first copies the weights into another order, which pays only for more.
    """
    if len(x) == 1:
        return np.vecdot(weight, x[0])[None]
    return np.ascontiguousarray(np.vecdot(weight[:, None], x[None]).T) if len(x) <= FEW else x @ weight.T


def _gain(checkpoint: Checkpoint, layer: int) -> Array:
    """Of the norm before a layer's SwiGLU."""
    return _read(checkpoint, f"model.layers.{layer}.post_attention_layernorm.weight")


def _read(checkpoint: Checkpoint, name: str) -> Array:
    out = np.empty(checkpoint.config.tensor_shapes()[name], np.float32)
    checkpoint.read(name, out)
    return out
