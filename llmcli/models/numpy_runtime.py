"""The decoder in numpy, for models on a CPU. Read this module to see how a language model works.

Token ids go in, logits come out; text does not appear here. `NumpyRuntime._forward` is the whole network:

    x = the embedding of each token           [T, C], called the residual stream
    for each layer:
        x = x + attention(RMSNorm(x))         lets each token attend to itself and to earlier tokens
        x = x + SwiGLU(RMSNorm(x))            transforms each token independently of the others
    logits = output embedding of RMSNorm(x)   [T, V]

This is the decoder of Qwen3 (arXiv:2505.09388, section 2) and its relatives Qwen2, Llama, Mistral, SmolLM3,
OLMo 2 and Gemma 3; their differences are in ModelConfig. OLMo 2 normalizes the outputs of attention and
SwiGLU instead of their inputs; Gemma 3 (arXiv:2503.19786, section 2) both, and most of its layers attend to a
window of tokens. GPT-2 (Radford et al. 2019) has LayerNorm, an MLP without gates, and an embedding of each
position instead of rotary ones; GPT-NeoX (arXiv:2204.06745) rotates a part of each head, and adds attention
and MLP to the stream at once. torch/transformer.py is the same network for training. This module never
imports torch.

T = tokens; S = tokens in the cache; B = windows scored together; V = vocabulary size; C = hidden size;
F = intermediate size of a SwiGLU; L = layers; E = experts; H, G = query heads, key-value heads; D = head
size.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from llmcli.config import EMBEDDING, FINAL_NORM, HEAD, POSITIONS, ModelConfig, bias_of, cpu_cores
from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.kv_cache import KVCache, KVCacheRuntime
from llmcli.models.logits import softmax, token_losses
from llmcli.models.matrix_product import Matrix, linear
from llmcli.models.runtime import (
    LOGITS_AT_ONCE,
    PREFILL_CHUNK,
    Array,
    Bools,
    Ints,
    Scores,
    check_context,
)

ModelPart = tuple[int, int | None]  # (layer, head), or (layer, None) for a whole layer; both counted from 0
# a model with at least this many is read in threads, and takes little longer for two tokens than for one
LARGE_PARAMETERS = 10_000_000
# (index of a layer, queries [T, H, D], keys [T, G, D], values [T, G, D]) -> attention outputs [T, H * D]
Attend = Callable[[int, Array, Array, Array], Array]


class ActivationRecorder:
    """Records the activations of the last `kept` of T tokens, which a runtime processes in chunks."""

    def __init__(self, config: ModelConfig, tokens: int, kept: int) -> None:
        L, H = config.num_hidden_layers, config.num_attention_heads
        self.first = tokens - kept  # position of the first recorded token
        # after layers 0 (the embedding) to L
        self.residuals = np.zeros((L + 1, kept, config.hidden_size), np.float32)
        self.weights = np.zeros((L, H, kept, kept), np.float32)
        self.head_outputs = np.zeros((L, H * config.head_dim), np.float32)  # at the last token
        self._depth = 0  # layers completed for the current chunk
        self.processed = 0  # tokens in previous chunks, or not recorded

    def residual(self, x: Array) -> None:
        """Receive the residual stream [t, C] of a chunk, before the first layer and after each."""
        start = self.processed - self.first
        self.residuals[self._depth, max(0, start) : max(0, start + len(x))] = x[max(0, -start) :]
        self._depth += 1
        if self._depth == len(self.residuals):
            self._depth = 0
            self.processed += len(x)

    def attention(self, weights: Array, y: Array) -> None:
        """Receive the attention weights [H, t, S] and the outputs of heads [t, H * D] of a chunk in the next
        layer."""
        self.head_outputs[self._depth - 1] = y[-1]
        # positions relative to the recorded tokens
        start = self.processed - self.first
        end = weights.shape[-1] - self.first
        if end > 0:
            rows = weights[:, max(0, -start) :, self.first :]
            self.weights[self._depth - 1, :, max(0, start) : end, :end] = rows


class NumpyRuntime(KVCacheRuntime):
    """A checkpoint ready to run in numpy."""

    has_adjacent_pairs = True  # see _Layer

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.config)
        config = self.config
        self._embedding = checkpoint.stacked([EMBEDDING])
        # [context, C]
        self._positions = checkpoint.stacked([POSITIONS]) if config.architecture.learned_positions else None
        self._layers = _read_layers(checkpoint)
        self._norm = _Norm(checkpoint, FINAL_NORM)
        self._head = Matrix(self._embedding if config.tie_word_embeddings else checkpoint.stacked([HEAD]))
        self._eps = np.float32(config.rms_norm_eps)
        self._embedding_scale = np.float32(config.embedding_scale)
        # rotations by position, [positions, 1, D/2] for each of ModelConfig.layer_kinds
        self._rotations = [np.zeros((0, 1, config.head_dim // 2), np.complex64) for _ in config.layer_kinds]
        self.draft_tokens = 1 if config.parameters >= LARGE_PARAMETERS and not config.num_experts else 0
        self._expert_weights: list[Array] = []  # [E] for the last token, in each layer

    def prefill(self, ids: Sequence[int], recorder: ActivationRecorder | None = None) -> Array:
        return linear(self._process(ids, recorder)[-1:], self._head)[0]

    def read(self, ids: Sequence[int]) -> None:
        self._process(ids)

    def logits(self, ids: Sequence[int]) -> Array:
        return linear(self._process(ids), self._head)

    def continuation_logits(self, texts: Sequence[Sequence[int]]) -> Iterator[Array]:
        """See `Runtime`. Matrix products process all texts together, attention one text at a time: each
        overwrites the keys and values of the previous text, which follow the cache."""
        first = self.length
        longest = max(map(len, texts))
        self.check_input(range(longest))
        self._extend_rotations(first + longest)
        self.cache.reserve(first + longest)
        ends = list(accumulate(map(len, texts)))
        spans = [slice(end - len(ids), end) for end, ids in zip(ends, texts, strict=True)]

        def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
            window = self._layers[layer].window
            cached = (self.cache.extend(layer, k[span], v[span]) for span in spans)
            return np.concatenate(
                [_attention(q[span], *kv, window) for span, kv in zip(spans, cached, strict=True)]
            )

        positions = np.concatenate([np.arange(first, first + len(ids)) for ids in texts])
        x = self._final_norm(self._forward(np.concatenate(texts), positions, attend))
        yield from np.split(linear(x, self._head), ends[:-1])

    def logit_lens(self, x: Array) -> Array:
        """Return the logits [T, V] of a residual stream [T, C], as if no layer followed (nostalgebraist
        2020)."""
        return linear(self._final_norm(x), self._head)

    def logit_direction(self, x: Array, token: int) -> Array:
        """Return the vector [C] whose product with the final residual stream x [C] is the logit of a
        token."""
        return self._head.rows[token] * self._norm.gain / np.sqrt(x @ x / len(x) + self._eps)

    def logit_bias(self, token: int) -> float:
        """Return the contribution of the last norm's bias to the logit of a token."""
        return 0.0 if self._norm.bias is None else float(self._head.rows[token] @ self._norm.bias)

    def head_outputs(self, layer: int, y: Array) -> Array:
        """Return the contribution of each head to the residual stream, [H, C]; y [H * D] are the heads'
        outputs."""
        o = self._layers[layer].o.rows
        gain = self._layers[layer].after_attention
        added = (o * y).reshape(len(o), self.config.num_attention_heads, -1).sum(-1).T
        return added if gain is None else added * gain / np.sqrt(np.mean(added.sum(0) ** 2) + self._eps)

    def without(self, parts: Iterable[ModelPart]) -> "NumpyRuntime":
        """Return a fork in which some heads and layers add nothing to the residual stream."""
        forked = self.fork()
        forked._layers = self._layers.copy()
        for layer, head in parts:
            forked._layers[layer] = forked._layers[layer].without(head)
        return forked

    def expert_weights(self) -> Array:
        """Return the weights [layers, E] of the experts for the last token; empty for a model without
        experts."""
        return np.stack(self._expert_weights) if self._expert_weights else np.zeros((0, 0), np.float32)

    def score(self, ids: Ints) -> Scores:
        """Score windows with B * T hidden states in memory, never B * T * V logits."""
        B = ids.shape[0]
        T = ids.shape[1] - 1
        check_context(T, self.context)
        x = self._final_norm(self._forward_windows(ids[:, :-1]))
        targets = ids[:, 1:].ravel()
        losses = np.empty(B * T)
        correct = np.empty(B * T, np.bool_)
        rows = max(1, LOGITS_AT_ONCE // self.config.vocab_size)
        for start in range(0, B * T, rows):
            block = slice(start, start + rows)
            losses[block], correct[block] = token_losses(linear(x[block], self._head), targets[block])
        return losses.reshape(B, T), correct.reshape(B, T)

    def _process(self, ids: Sequence[int], recorder: ActivationRecorder | None = None) -> Array:
        """Add tokens to the cache; return their final hidden states [T, C], the input of the output
        embedding."""
        self.check_input(ids)
        self._extend_rotations(self.length + len(ids))
        self.cache.reserve(self.length + len(ids))

        def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
            return _attention(q, *self.cache.extend(layer, k, v), self._layers[layer].window, recorder)

        chunks = []
        for first in range(0, len(ids), PREFILL_CHUNK):
            self.check()
            chunk = np.array(ids[first : first + PREFILL_CHUNK])
            end = self.length + len(chunk)
            chunks.append(self._forward(chunk, slice(self.length, end), attend, recorder))
            self.cache.length = end
        return self._final_norm(chunks[0] if len(chunks) == 1 else np.concatenate(chunks))

    def _forward_windows(self, ids: Ints) -> Array:
        """Run windows [B, T] through all layers without the cache; return the residual stream [B * T, C].
        Matrix products process all windows together, attention one window at a time."""
        B, T = ids.shape
        self._extend_rotations(T)

        def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
            y = np.empty((B * T, q.shape[1] * q.shape[2]), np.float32)
            window = self._layers[layer].window
            for start in range(0, B * T, T):
                keys, values = (array[start : start + T].swapaxes(0, 1) for array in (k, v))
                for first in range(0, T, PREFILL_CHUNK):
                    end = min(T, first + PREFILL_CHUNK)
                    chunk = slice(start + first, start + end)
                    y[chunk] = _attention(q[chunk], keys[:, :end], values[:, :end], window)
            return y

        return self._forward(ids.ravel(), np.tile(np.arange(T), B), attend)

    def _step_slots(self, ids: Ints, past: Ints, cache: KVCache) -> Array:
        # [B], [S], [B, 1]
        rows = np.arange(len(ids))
        positions = np.arange(past.max() + 1)
        last = past[:, None]
        windows = {layer.window for layer in self._layers}
        masked = {window: (positions > last) | (positions <= last - window) for window in windows}  # [B, S]

        def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
            keys, values = cache.keys[layer], cache.values[layer]  # [B, G, capacity, D]
            keys[rows, :, past] = k
            values[rows, :, past] = v
            window = self._layers[layer].window
            return _attention_together(q, keys, values, past + 1, masked[window], window)

        self._extend_rotations(len(positions))
        return linear(self._final_norm(self._forward(ids, past, attend)), self._head)

    def _forward(
        self, ids: Ints, positions: slice | Ints, attend: Attend, recorder: ActivationRecorder | None = None
    ) -> Array:
        """Run tokens [T] at their positions [T] through all layers; return the residual stream [T, C].
        `attend` is attention to the cache, or within windows."""
        x = self._embed(ids, positions)
        rotations = [table[positions] for table in self._rotations]
        if recorder:
            recorder.residual(x)
        expert_weights: list[Array] = []
        is_parallel = self.config.use_parallel_residual  # attention and the MLP have the same input
        # exp(-gate) in a SwiGLU may be infinite; silu(gate) is then correctly 0
        with np.errstate(over="ignore"):
            for index, layer in enumerate(self._layers):
                q, k, v = layer.project(x, rotations[layer.is_sliding])
                attended = x + layer.attention_output(attend(index, q, k, v))
                x = attended + layer.mlp_output(x if is_parallel else attended, expert_weights)
                if recorder:
                    recorder.residual(x)
        self._expert_weights = expert_weights
        return x

    def _embed(self, ids: Ints, positions: slice | Ints) -> Array:
        x = self._embedding[ids] * self._embedding_scale  # [T, C]
        if self._positions is not None:
            x = x + self._positions[positions]
        return x - x.mean(axis=-1, keepdims=True) if self.config.architecture.layer_norm else x  # see _Layer

    def _final_norm(self, x: Array) -> Array:
        normed = _rms_norm(x, self._eps) * self._norm.gain
        return normed if self._norm.bias is None else normed + self._norm.bias

    def _extend_rotations(self, length: int) -> None:
        """Extend the tables of rotary embeddings (arXiv:2104.09864) to `length` positions or more."""
        if length > len(self._rotations[0]):
            positions = np.arange(max(length, 2 * len(self._rotations[0]), 64))[:, None, None]
            angles = [
                positions * np.array(self.config.rope_frequencies(kind)) for kind in self.config.layer_kinds
            ]
            # [positions, 1, D/2] each
            self._rotations = [np.exp(1j * angle).astype(np.complex64) for angle in angles]


class _Layer:
    """The weights of one layer.

    Matrices with the same input are stacked, so that a layer takes four matrix-vector products per token. The
    gains and biases of norms and the scale of attention scores are folded into the matrices once. Rotary
    embeddings rotate the pairs (i, i + D/2) of a head; here the elements of a pair are adjacent, so that a
    pair is one complex number and a rotation one complex product. Queries and keys are permuted in the same
    way, so attention scores do not change.

    LayerNorm (arXiv:1607.06450) is RMSNorm of x minus its mean. Here, the mean is subtracted from the
    embeddings and from the outputs of the matrices that add to the residual stream: the stream then has a
    mean of 0, and LayerNorm equals RMSNorm.
    """

    def __init__(self, weights: "_Weights", index: int) -> None:
        config = weights.config
        H = config.num_attention_heads
        G = config.num_key_value_heads
        D = config.head_dim
        self.config = config
        self.eps = np.float32(config.rms_norm_eps)
        self.is_rotary = config.is_rotary(index)
        self.is_sliding = config.is_sliding(index)
        self.window = config.window(index)
        name = f"model.layers.{index}."
        attention = name + "self_attn."
        scale = np.float32(config.attention_scale)  # folded into the queries
        norms = [
            _Norm(weights, f"{name}{norm}.weight") if norm else None
            for norm in config.architecture.norm_names
        ]
        before_attention, after_attention, before_mlp, after_mlp = norms
        self.norms_inputs = before_attention is not None
        self.after_attention = None if after_attention is None else after_attention.gain
        self.after_mlp = None if after_mlp is None else after_mlp.gain

        qkv, bias = _stacked(weights, [f"{attention}{kind}_proj.weight" for kind in "qkv"], before_attention)
        self.qk_norm: Array | None = None
        if config.architecture.qk_norm:
            gains = np.empty((H + G, D), np.float32)
            gains[:H] = weights.stacked([attention + "q_norm.weight"]).reshape(-1, D) * scale
            gains[H:] = weights.stacked([attention + "k_norm.weight"]).reshape(-1, D)
            self.qk_norm = _interleave_halves(gains)[None]
        for array in (qkv,) if bias is None else (qkv, bias):
            _interleave_halves(array[: (H + G) * D].reshape(H + G, D, -1))
            if not config.architecture.qk_norm:
                array[: H * D] *= scale
        self.qkv = Matrix(qkv, bias)
        self.o = _output_matrix(weights, attention + "o_proj.weight")
        mlps = [_MLP(weights, names, before_mlp) for names in config.mlp_names(index)]
        self.mlp: Callable[[Array], Array | tuple[Array, Array]] = mlps[0]
        if config.num_experts:
            router, _ = _stacked(weights, [config.router_name(index)], before_mlp)
            self.mlp = _Experts(mlps, Matrix(router), config.num_experts_per_tok, config.norm_topk_prob)

    def without(self, head: int | None) -> "_Layer":
        """Return a copy in which the output of a head is zero; None: of the attention and the SwiGLU."""
        changed = copy(self)
        o = self.o.rows.copy()
        bias = self.o.bias
        if head is None:
            o[:] = 0
            bias = None
            changed.mlp = np.zeros_like
        else:
            D = self.config.head_dim
            o[:, head * D : (head + 1) * D] = 0
        changed.o = Matrix(o, bias)
        return changed

    def project(self, x: Array, rotations: NDArray[np.complex64]) -> tuple[Array, Array, Array]:
        """Residual stream x [T, C] -> rotated queries [T, H, D] and keys [T, G, D], and values [T, G, D]."""
        config = self.config
        H = config.num_attention_heads
        G = config.num_key_value_heads
        D = config.head_dim
        qkv = linear(self._normalized(x), self.qkv).reshape(len(x), H + 2 * G, D)
        qk = qkv[:, : H + G]
        if self.qk_norm is not None:
            if config.architecture.joint_qk_norm:
                q, k = (_rms_norm(part.reshape(len(x), -1), self.eps) for part in (qk[:, :H], qk[:, H:]))
                qk = np.concatenate([q, k], axis=1).reshape(len(x), H + G, D)
            else:
                qk = _rms_norm(qk, self.eps)
            qk = qk * self.qk_norm
        if self.is_rotary:
            qk = (qk.view(np.complex64) * rotations).view(np.float32)
        return qk[:, :H], qk[:, H:], qkv[:, H + G :]

    def attention_output(self, y: Array) -> Array:
        """Outputs of the heads [T, H * D] -> output of the attention, which is added to the residual stream
        [T, C]."""
        return self._normalized_output(linear(y, self.o), self.after_attention)

    def mlp_output(self, x: Array, expert_weights: list[Array]) -> Array:
        """Residual stream x [T, C] -> output of the MLP, which is added to it. Appends the last token's
        expert weights, if any."""
        y = self.mlp(self._normalized(x))
        if isinstance(y, tuple):
            y, weights = y
            expert_weights.append(weights[-1])
        return self._normalized_output(y, self.after_mlp)

    def _normalized(self, x: Array) -> Array:
        return _rms_norm(x, self.eps) if self.norms_inputs else x

    def _normalized_output(self, y: Array, gain: Array | None) -> Array:
        return y if gain is None else _rms_norm(y, self.eps) * gain


class _MLP:
    """down(silu(gate(x)) * up(x)), a SwiGLU (arXiv:2002.05202), or down(silu(up(x))) for a model without
    gates; or with another activation."""

    def __init__(self, weights: "_Weights", names: tuple[str, ...], norm: "_Norm | None") -> None:
        """`names` of the tensors: gate [F, C], if any, up [F, C], down [C, F]."""
        *inputs, down = names
        self.gate_up = Matrix(*_stacked(weights, inputs, norm))
        self.down = _output_matrix(weights, down)
        self.is_gated = len(inputs) > 1
        self.activation = ACTIVATIONS[weights.config.hidden_act]

    def __call__(self, x: Array) -> Array:
        gate_up = linear(x, self.gate_up)
        F = self.down.rows.shape[1]
        inner = self.activation(gate_up[:, :F])
        return linear(inner * gate_up[:, F:] if self.is_gated else inner, self.down)


class _Weights:
    """Reads tensors of a checkpoint, one after the other, into a block of memory."""

    def __init__(self, checkpoint: Checkpoint, memory: Array) -> None:
        self.config = checkpoint.config
        self._checkpoint = checkpoint
        self._free = memory

    def stacked(self, names: Sequence[str]) -> Array:
        """Stack tensors along their first dimension."""
        stacked = self._checkpoint.stacked(names, self._free)
        self._free = self._free[stacked.size :]
        return stacked


def _read_layers(checkpoint: Checkpoint) -> list[_Layer]:
    """Read all layers, those of a large model in a thread per core, into one array: for a large one, numpy
    asks for huge pages of memory, of which the processor has to translate fewer addresses."""
    indices = range(checkpoint.config.num_hidden_layers)
    sizes = [0] * len(indices)
    for name, shape in checkpoint.config.tensor_shapes().items():
        if name.startswith("model.layers."):
            sizes[int(name.split(".")[2])] += math.prod(shape)
    memory = np.split(np.empty(sum(sizes), np.float32), np.cumsum(sizes)[:-1])

    def read(index: int) -> _Layer:
        with np.errstate(over="ignore", invalid="ignore"):  # damaged weights are detected in the logits
            return _Layer(_Weights(checkpoint, memory[index]), index)

    if checkpoint.parameters < LARGE_PARAMETERS:
        return list(map(read, indices))
    # imported here because it imports logging, which a small model does not need
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(cpu_cores(), "layers") as pool:
        return list(pool.map(read, indices))


class _Norm:
    """The gain [C] of a norm, and its bias [C] if it is a LayerNorm."""

    def __init__(self, weights: _Weights | Checkpoint, name: str) -> None:
        self.gain = weights.stacked([name])
        self.bias = weights.stacked([bias_of(name)]) if weights.config.architecture.layer_norm else None


def _stacked(
    weights: _Weights, names: Sequence[str], norm: _Norm | None = None
) -> tuple[Array, Array | None]:
    """Stack matrices [., C] with the same input, and their biases if they have any. The gain g and the bias b
    of the norm of their input are folded in: W (g x + b) + c = (W g) x + (W b + c)."""
    rows = weights.stacked(names)
    biases = [bias_of(name) for name in names]
    bias = weights.stacked(biases) if biases[0] in weights.config.tensor_shapes() else None
    if norm is not None:
        if norm.bias is not None:
            bias = rows @ norm.bias + (0 if bias is None else bias)
        rows *= norm.gain
    return rows, bias


def _output_matrix(weights: _Weights, name: str) -> Matrix:
    """Read a matrix [C, .] whose outputs are added to the residual stream; see _Layer."""
    rows, bias = _stacked(weights, [name])
    if weights.config.architecture.layer_norm:
        rows -= rows.mean(axis=0)
        bias = None if bias is None else bias - bias.mean()
    return Matrix(rows, bias)


@dataclass
class _Experts:
    """A sparse mixture of SwiGLUs: a router chooses `active` experts for each token (arXiv:2401.04088,
    section 2.1). The other experts are not computed."""

    experts: list[_MLP]
    router: Matrix  # [E, C]
    active: int
    normalize: bool

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """[T, C] -> ([T, C], the weights of the experts [T, E])"""
        probabilities = softmax(linear(x, self.router))  # [T, E]
        chosen = np.argsort(-probabilities, axis=-1, kind="stable")[:, : self.active]  # [T, active]
        weights = np.take_along_axis(probabilities, chosen, axis=-1)
        if self.normalize:
            weights /= weights.sum(axis=-1, keepdims=True)
        all_weights = np.zeros_like(probabilities)
        np.put_along_axis(all_weights, chosen, weights, axis=-1)
        y = np.zeros_like(x)
        if len(x) == 1:
            for expert, weight in zip(chosen[0].tolist(), weights[0], strict=True):
                y += self.experts[expert](x) * weight
            return y, all_weights
        for expert in np.unique(chosen):
            tokens = np.flatnonzero(all_weights[:, expert])
            y[tokens] += self.experts[expert](x[tokens]) * all_weights[tokens, expert, None]
        return y, all_weights


def _attention(
    q: Array, keys: Array, values: Array, window: int, recorder: ActivationRecorder | None = None
) -> Array:
    """Causal attention (arXiv:1706.03762, section 3.2.1) of the last T of S positions to the `window`
    positions up to each: q [T, H, D], keys and values [G, S, D] -> [T, H * D]. H / G query heads share each
    key-value head."""
    T, H, D = q.shape
    before = max(0, keys.shape[1] - T - window + 1)  # positions before all windows
    if before:
        keys = keys[:, before:]
        values = values[:, before:]
    G, S = keys.shape[:2]
    weights = q.swapaxes(0, 1).reshape(G, H // G * T, D) @ keys.swapaxes(1, 2)  # [G, H/G * T, S]
    if T > 1:
        weights.reshape(H, T, S)[:, _masked(T, S, window)] = -np.inf
    _softmax_in_place(weights)
    y = (weights @ values).reshape(H, T, D).swapaxes(0, 1).reshape(T, H * D)
    if recorder:
        recorder.attention(np.pad(weights.reshape(H, T, S), ((0, 0), (0, 0), (before, 0))), y)
    return y


def _attention_together(
    q: Array, keys: Array, values: Array, lengths: Ints, masked: Bools, window: int
) -> Array:
    """Attention of the last token of B texts: q [B, H, D], keys and values [B, G, capacity, D] -> [B, H * D].
    The first `lengths` [B] positions of each text are in use; the others, and those before its window, are
    `masked` [B, S]."""
    B, H, D = q.shape
    G = keys.shape[1]
    S = masked.shape[1]
    if 2 * lengths.sum() < B * S:  # one long text among short ones: most scores would be masked
        texts = enumerate(lengths.tolist())
        return np.concatenate(
            [_attention(q[b : b + 1], keys[b, :, :n], values[b, :, :n], window) for b, n in texts]
        )
    weights = q.reshape(B, G, H // G, D) @ keys[:, :, :S].swapaxes(2, 3)  # [B, G, H/G, S]
    np.copyto(weights, -np.inf, where=masked[:, None, None])
    _softmax_in_place(weights)
    return (weights @ values[:, :, :S]).reshape(B, H * D)


def _softmax_in_place(x: Array) -> None:
    x -= np.maximum.reduce(x, axis=-1, keepdims=True)  # as x.max, without its checks in Python
    np.exp(x, out=x)
    x /= np.add.reduce(x, axis=-1, keepdims=True)


@lru_cache(maxsize=32)
def _masked(T: int, S: int, window: int) -> Bools:
    """The causal mask [T, S]: True where a position comes after the query or before its window, for the last
    T of S positions."""
    distance = np.arange(S - T, S)[:, None] - np.arange(S)
    return (distance < 0) | (distance >= window)


def _silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def _gelu_tanh(x: Array) -> Array:
    """x * (1 + tanh(z)) / 2 for z = sqrt(2 / pi) * (x + 0.044715 * x^3): an approximation of GELU
    (arXiv:1606.08415, section 2)."""
    return x / (1 + np.exp(x * (1 + 0.044715 * x * x) * np.float32(-2 * math.sqrt(2 / math.pi))))


def _gelu(x: Array) -> Array:
    """x * (1 + erf(x / sqrt(2))) / 2 (arXiv:1606.08415); erf by formula 7.1.26 of Abramowitz and Stegun."""
    factors = np.array([1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0], np.float32)
    tail = np.polyval(factors, 1 / (1 + np.float32(0.3275911 / math.sqrt(2)) * np.abs(x))) * np.exp(
        -x * x / 2
    )
    return x * np.where(x < 0, tail, 2 - tail) * np.float32(0.5)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": _silu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu": _gelu,
}


def _rms_norm(x: Array, eps: np.float32) -> Array:
    """x / sqrt(mean(x^2) + eps) over the last dimension: RMSNorm (arXiv:1910.07467) without its gain."""
    if x.size == x.shape[-1]:  # one token: fewer numpy calls, and the same bits
        vector = x.ravel()
        return x / np.float32(math.sqrt(vector.dot(vector) * np.float32(1 / x.size) + eps))
    mean_square = np.vecdot(x, x)
    mean_square *= np.float32(1 / x.shape[-1])
    mean_square += eps
    return x / np.sqrt(mean_square)[..., None]


def _interleave_halves(heads: Array) -> Array:
    """Put entries i and i + D/2 of each head [N, D, ...] side by side, in place; return the same array."""
    N, D, *inner = heads.shape
    heads[...] = heads.reshape(N, 2, D // 2, *inner).swapaxes(1, 2).reshape(heads.shape)
    return heads
