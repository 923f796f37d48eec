"""The decoder in torch, for training and for GPUs: Qwen3 (arXiv:2505.09388, section 2) and its relatives.

Pre-norm blocks with RMSNorm, rotary embeddings (arXiv:2104.09864), grouped-query attention
(arXiv:2305.13245), SwiGLU (arXiv:2002.05202) or a sparse mixture of them, optional tied embeddings. Qwen3
normalizes queries and keys; Qwen2 adds biases to queries, keys and values; Llama and Mistral do neither.
SmolLM3 has layers without rotary embeddings, and OLMo 2 has norms after attention and SwiGLU instead of
before them. GPT-2 and GPT-NeoX have LayerNorm, biases, and MLPs without gates. Modules are named so that the
state dict has Hugging Face's tensor names (Llama's for GPT-2 and GPT-NeoX), except that experts are stacked.
numpy_runtime.py is the same network in numpy, and easier to read.

B, T = batch, tokens; C = hidden size; H, G = query heads, key-value heads; D = head size; V = vocabulary
size.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmcli.config import FINAL_NORM, HEAD, ModelConfig, bias_of
from llmcli.models.runtime import Array
from llmcli.models.torch.experts import Experts, Router
from llmcli.models.torch.kernels import (
    Dropout,
    SoftTargets,
    activate,
    attention,
    contiguous_on_mps,
    cross_entropy,
    has_faster_attention,
    normalize,
    normalize_rotate,
    rotate,
    swiglu,
)
from llmcli.models.torch.linear import Linear, LowRankAdapter, TokenRows, fold, stacked_linear

Norm = nn.LayerNorm | nn.RMSNorm
BALANCE_WEIGHT = 0.01  # weight of the experts' load-balancing loss: measured, tests/benchmarks/LOG.md


class LayerKVCache:
    """The KV cache of a layer, like KVCache in kv_cache.py. Forks share its tensors, which are replaced but
    never modified."""

    def __init__(self) -> None:
        self.tensors: tuple[Tensor, ...] = ()  # keys and values [B, G, length, D]

    @property
    def length(self) -> int:
        return self.tensors[0].shape[2] if self.tensors else 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens; return the keys and values of all tokens so far."""
        if self.tensors:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self.tensors, (k, v), strict=True))
        self.tensors = k, v
        return k, v

    def rewind(self, length: int = 0) -> None:
        self.tensors = tuple(tensor[:, :, :length] for tensor in self.tensors) if length else ()

    def remove(self, positions: range, rotation: tuple[Tensor, Tensor] | None) -> None:
        """Remove the tokens at some positions. The keys of the tokens after them are rotated by an angle,
        given by its cos and sin [1, D]."""
        keys, values = (
            (tensor[:, :, : positions.start], tensor[:, :, positions.stop :]) for tensor in self.tensors
        )
        if rotation:
            keys = keys[0], rotate(keys[1], *rotation)
        self.tensors = torch.cat(keys, dim=2), torch.cat(values, dim=2)

    def repeated(self, batch: int) -> "LayerKVCache":
        """Return a cache of `batch` texts that all begin with the tokens of this one."""
        repeated = copy(self)
        repeated.tensors = tuple(tensor.expand(batch, -1, -1, -1) for tensor in self.tensors)
        return repeated

    def fork(self, length: int = 0) -> "LayerKVCache":
        forked = copy(self)
        forked.rewind(length)
        return forked


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.H = config.num_attention_heads
        self.G = config.num_key_value_heads
        self.D = config.head_dim
        self.q_proj = Linear(config.hidden_size, self.H * self.D, config.architecture.qkv_bias)
        self.k_proj = Linear(config.hidden_size, self.G * self.D, config.architecture.qkv_bias)
        self.v_proj = Linear(config.hidden_size, self.G * self.D, config.architecture.qkv_bias)
        self.o_proj = Linear(self.H * self.D, config.hidden_size, config.architecture.linear_bias)
        self.qk_norm = config.architecture.qk_norm
        if self.qk_norm:
            self.q_norm = nn.RMSNorm(self.H * self.D if config.architecture.joint_qk_norm else self.D)
            self.k_norm = nn.RMSNorm(self.G * self.D if config.architecture.joint_qk_norm else self.D)
        self.joint_qk_norm = config.architecture.joint_qk_norm
        self.eps = config.rms_norm_eps
        self.is_rotary = config.is_rotary(layer)
        self.kind = int(config.is_sliding(layer))
        self.window = config.window(layer)
        self.scale = config.attention_scale

    def forward(
        self, x: Tensor, gain: Tensor | None, cos: Tensor, sin: Tensor, cache: LayerKVCache | None = None
    ) -> Tensor:
        """Normalized x [B, T, C] before its gain, or x itself without one -> [B, T, C]. cos and sin are
        [kinds of layers, T, 1, D]."""
        q, k, v = self._project(x, gain, cos, sin)
        B, T = x.shape[:2]
        if torch.is_grad_enabled() and not has_faster_attention(x):
            k, v = (t if self.G == self.H else t.repeat_interleave(self.H // self.G, 2) for t in (k, v))
            y = attention(q, k, v, self.window)
        else:
            y = self._attention_with_cache(q, k, v, cache)
        return self.o_proj(y.reshape(B, T, self.H * self.D))

    def fold(self, dtype: torch.dtype, gain: Tensor | None) -> None:
        fold(dtype, gain, self.q_proj, self.k_proj, self.v_proj)
        fold(dtype, None, self.o_proj)

    def _project(
        self, x: Tensor, gain: Tensor | None, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries [B, T, H, D], scaled for attention, rotated keys and values [B, T, G, D]."""
        B, T, _ = x.shape
        H = self.H
        G = self.G
        D = self.D
        qkv = stacked_linear(x, gain, self.q_proj, self.k_proj, self.v_proj).view(B, T, H + 2 * G, D)
        qk = qkv[:, :, : H + G]
        cos, sin, scale = cos[self.kind], sin[self.kind], self.scale  # the scale is applied to the queries
        if self.joint_qk_norm:
            parts = (qk[:, :, :H], self.q_norm.weight * scale), (qk[:, :, H:], self.k_norm.weight)
            normed = [normalize(part.flatten(2), self.eps) * weight.to(x.dtype) for part, weight in parts]
            qk = rotate(torch.cat(normed, -1).view(B, T, H + G, D), cos, sin)
            q = qk[:, :, :H]
        elif self.qk_norm:
            gains = torch.cat([self.q_norm.weight.expand(H, D) * scale, self.k_norm.weight.expand(G, D)]).to(
                x.dtype
            )
            qk = normalize_rotate(qk, gains, cos, sin, self.eps)
            q = qk[:, :, :H]
        else:
            qk = rotate(qk, cos, sin) if self.is_rotary else qk
            q = qk[:, :, :H] * scale
        return q, qk[:, :, H:], qkv[:, :, H + G :]

    def _attention_with_cache(self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKVCache | None) -> Tensor:
        """Attention with torch's own kernel, including tokens in the cache: [B, T, H or G, D] -> [B, T, H,
        D]."""
        q, k, v = (contiguous_on_mps(t.transpose(1, 2)) for t in (q, k, v))  # [B, H or G, T, D]
        T = q.shape[2]
        past = cache.length if cache else 0
        mask: Tensor | None = None
        if cache:
            k, v = cache.extend(k, v)
        is_windowed = past + T > self.window
        # [T, past + T]: True where one of T new tokens may attend to a position
        if is_windowed or (past and T > 1):
            mask = (
                torch.ones(T, past + T, dtype=torch.bool, device=q.device)
                .tril(past)
                .triu(past - self.window + 1)
            )
        grouped = self.G != self.H
        if grouped and not _has_grouped_kernel(q, mask):
            k, v = (t.repeat_interleave(self.H // self.G, 1) for t in (k, v))
            grouped = False
        causal = not past and T > 1 and not is_windowed
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=1.0, enable_gqa=grouped)
        return y.transpose(1, 2)


def _has_grouped_kernel(q: Tensor, mask: Tensor | None) -> bool:
    """Return whether torch computes grouped-query attention without holding all scores in memory. On CUDA
    only FlashAttention does, which needs half precision and no mask."""
    return q.device.type != "cuda" or (q.dtype is torch.bfloat16 and mask is None)


class MLP(nn.Module):
    """A SwiGLU, with any activation; or without a gate."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inputs = config.hidden_size
        inner = config.intermediate_size
        bias = config.architecture.linear_bias
        self.gate_proj = Linear(inputs, inner, bias) if config.architecture.gated_mlp else None
        self.up_proj = Linear(inputs, inner, bias)
        self.down_proj = Linear(inner, inputs, bias)
        self.activation = config.hidden_act

    def forward(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """Normalized x [B, T, C] before its gain, or x itself without one -> [B, T, C]."""
        if self.gate_proj is None:
            return self.down_proj(activate(stacked_linear(x, gain, self.up_proj), self.activation))
        return self.down_proj(swiglu(stacked_linear(x, gain, self.gate_proj, self.up_proj), self.activation))

    def fold(self, dtype: torch.dtype, gain: Tensor | None) -> None:
        fold(dtype, gain, *([self.gate_proj] if self.gate_proj else []), self.up_proj)
        fold(dtype, None, self.down_proj)


class Layer(nn.Module):
    """Attention and an MLP, each added to the residual stream [B, T, C]."""

    def __init__(self, config: ModelConfig, index: int, dropout: Dropout) -> None:
        super().__init__()
        self.norms = config.architecture.norm_names
        self._add_norms(config, self.norms.before_attention)
        self.self_attn = Attention(config, index)
        self._add_norms(config, self.norms.after_attention, self.norms.before_mlp)
        self.mlp = Experts(config) if config.num_experts else MLP(config)
        self._add_norms(config, self.norms.after_mlp)
        self.dropout = dropout
        self.is_parallel = config.use_parallel_residual

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: LayerKVCache | None = None) -> Tensor:
        add = self.dropout.add if self.training else torch.add
        y = self.self_attn(*self._before(x, self.norms.before_attention), cos, sin, cache)
        attended = add(x, self._after(y, self.norms.after_attention))
        y = self.mlp(*self._before(x if self.is_parallel else attended, self.norms.before_mlp))
        return add(attended, self._after(y, self.norms.after_mlp))

    def _before(self, x: Tensor, norm: str) -> tuple[Tensor, Tensor | None]:
        return normalized(x, self._norm(norm)), _gain(self._norm(norm))

    def _after(self, y: Tensor, norm: str) -> Tensor:
        gain = _gain(self._norm(norm))
        return y if gain is None else normalized(y, self._norm(norm)) * gain.to(y.dtype)

    def _norm(self, name: str) -> Norm | None:
        return getattr(self, name) if name else None

    def _add_norms(self, config: ModelConfig, *names: str) -> None:
        for name in filter(None, names):
            self.add_module(name, new_norm(config))

    def fold(self, dtype: torch.dtype) -> None:
        self.self_attn.fold(dtype, _gain(self._norm(self.norms.before_attention)))
        self.mlp.fold(dtype, _gain(self._norm(self.norms.before_mlp)))


def new_norm(config: ModelConfig) -> Norm:
    C, eps = config.hidden_size, config.rms_norm_eps
    return nn.LayerNorm(C, eps) if config.architecture.layer_norm else nn.RMSNorm(C, eps)


def normalized(x: Tensor, norm: Norm | None) -> Tensor:
    """RMSNorm (arXiv:1910.07467) without its gain, or LayerNorm (arXiv:1607.06450), in the dtype of x."""
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(
            x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps
        )
    return x if norm is None else normalize(x, norm.eps)


def _gain(norm: Norm | None) -> Tensor | None:
    """Return the gain that `normalized` leaves out."""
    return norm.weight if isinstance(norm, nn.RMSNorm) else None


class Decoder(nn.Module):
    """Everything before the output embedding ("model." in Hugging Face's tensor names)."""

    def __init__(self, config: ModelConfig, dropout: Dropout) -> None:
        super().__init__()
        shape = config.vocab_size, config.hidden_size
        self.embed_tokens = nn.Embedding(*shape, _weight=torch.empty(shape))  # not initialized twice
        self.embed_positions: nn.Embedding | None = None
        if config.architecture.learned_positions:
            shape = config.max_position_embeddings, config.hidden_size
            self.embed_positions = nn.Embedding(*shape, _weight=torch.empty(shape))
        self.layers = nn.ModuleList(
            Layer(config, index, dropout) for index in range(config.num_hidden_layers)
        )
        self.norm = new_norm(config)


class LanguageModel(nn.Module):
    """Token ids [B, T] -> logits [B, T, V]. `dtype` applies to activations and matrix products; weights are
    float32. A new model has no weights: call `initialize` or `load_arrays`."""

    cos: Tensor
    sin: Tensor
    # called before each layer; may raise an exception to abort the pass
    between_layers: Callable[[], None] | None = None
    teacher: "Teacher | None" = None  # in distillation; its predictions are part of the training targets

    def __init__(self, config: ModelConfig, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.dropout = Dropout(dropout)
        self.model = Decoder(config, self.dropout)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.token_rows: TokenRows | None = None  # set by `train_token_rows`
        self._frozen: Mapping[str, Array] | None = None  # see `fold_frozen`
        self._frozen_head: Tensor | None = None
        self.logit_factor = 1.0  # on all logits, as if the gain of the last norm were multiplied by it
        self._stacked = _stacked_names(config)
        empty = torch.empty(len(config.layer_kinds), 0, 1, config.head_dim, dtype=dtype)
        self.register_buffer("cos", empty, persistent=False)  # [kinds of layers, positions used so far, 1, D]
        self.register_buffer("sin", empty.clone(), persistent=False)

    def forward(self, ids: Tensor, caches: Sequence[LayerKVCache] | None = None) -> Tensor:
        return F.linear(self.hidden_states(ids, caches), self.head())

    def loss(self, ids: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy in nats of ids[:, 1:] in windows ids [B, T + 1], for training; for a
        `teacher` see `cross_entropy`. `loss_mask` [B, T + 1], on the CPU, selects the counted tokens, at
        least one."""
        hidden = self.hidden_states(ids[:, :-1]).flatten(0, 1)
        targets = ids[:, 1:].flatten()
        soft = self.teacher.targets(ids[:, :-1]) if self.teacher else None
        if loss_mask is not None:
            rows = loss_mask[:, 1:].flatten().nonzero().squeeze(1).to(hidden.device)
            hidden = hidden.index_select(0, rows)
            targets = targets.index_select(0, rows)
            soft = soft and replace(soft, x=soft.x.index_select(0, rows))
        loss = cross_entropy(hidden, self.head(), targets, soft)
        if self.config.num_experts and self.training:
            balance_losses = [router.balance_loss for router in self._routers()]
            balance = torch.stack([term for term in balance_losses if term is not None]).mean()
            loss = loss + BALANCE_WEIGHT * (balance - balance.detach())  # adds the gradient but not the value
        return loss

    def hidden_states(self, ids: Tensor, caches: Sequence[LayerKVCache] | None = None) -> Tensor:
        """Return the final hidden states [B, T, C], the input of `head`: normalized, without the gain of the
        last norm if that is an RMSNorm."""
        start = caches[0].length if caches else 0
        end = start + ids.shape[1]
        self._extend_rotary_tables(end)
        x = self.model.embed_tokens(ids)  # [B, T, C]
        if self.token_rows is not None:
            x = self.token_rows.embed(x, ids)
        x = x.to(self.dtype)
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        if self.model.embed_positions is not None:
            x = x + self.model.embed_positions.weight[start:end].to(self.dtype)
        cos = self.cos[:, start:end]
        sin = self.sin[:, start:end]
        for i, layer in enumerate(self.model.layers):
            self._check_interruption()
            x = layer(x, cos, sin, caches[i] if caches else None)
        return normalized(x, self.model.norm)

    def remove_cached(self, positions: range, caches: Sequence[LayerKVCache]) -> None:
        """Remove the tokens at some positions, as KVCache.remove."""
        for layer, cache in enumerate(caches):
            angle = int(self.config.is_sliding(layer)), len(positions)
            is_rotary = self.config.is_rotary(layer)
            cache.remove(positions, (self.cos[angle], -self.sin[angle]) if is_rotary else None)

    def _check_interruption(self) -> None:
        if self.between_layers:
            self.between_layers()

    def head(self) -> Tensor:
        """Return the output embedding [V, C] times the gain of the last norm that `hidden_states` leaves
        out."""
        if self._frozen_head is not None:
            return self._frozen_head
        head = self._head_weight()
        if self.token_rows is not None:
            head = self.token_rows.merged(HEAD, head)
        return (head * self._final_gain()).to(self.dtype)

    def _head_weight(self) -> Tensor:
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def _final_gain(self) -> Tensor | float:
        gain = _gain(self.model.norm)
        if gain is None:
            return self.logit_factor
        return gain if self.logit_factor == 1 else gain * self.logit_factor

    def logits(self, hidden: Tensor) -> Tensor:
        """Final hidden states [T, C] of a few tokens -> logits [T, V] in float32; the gain is applied to the
        hidden states."""
        return F.linear(hidden * self._final_gain(), self._head_weight())

    def fold_gains(self) -> None:
        """Fold the gains of the norms in the layers into the following matrices, for inference, or for
        training only adapters: otherwise every pass would read and write these matrices three times."""
        for layer in self.modules():
            if isinstance(layer, Layer):
                layer.fold(self.dtype)

    def fold_frozen(self, arrays: Mapping[str, Array]) -> None:
        """Keep only the folded matrices for training adapters, which are merged into `arrays`, the frozen
        weights. Models with experts are not folded."""
        if self.config.num_experts:
            return
        self._frozen = arrays
        self.fold_gains()
        if self.token_rows is None:
            self._frozen_head = self.head()

    def expert_shares(self) -> list[list[float]]:
        """Return the share of routed tokens that each expert received in eval mode, [layers, experts]."""
        counts = [router.expert_counts for router in self._routers()]
        return [[round(count / max(1, sum(row)), 4) for count in row] for row in counts]

    def _routers(self) -> list[Router]:
        return [module for module in self.modules() if isinstance(module, Router)]

    def _extend_rotary_tables(self, length: int) -> None:
        """Extend the rotary tables to at least `length` positions, but not to the whole context, which may be
        far longer than is ever used."""
        known = self.cos.shape[1]
        if length <= known:
            return
        positions = max(length, 2 * known, 64)
        with torch.inference_mode(False):  # tables made during scoring are also used in training
            self.cos, self.sin = (
                table[:, :, None].to(self.cos.device, self.dtype)
                for table in rotary_tables(self.config, positions)
            )

    # ---- weights

    def initialize(self, generator: torch.Generator) -> None:
        """Initialize all weights: embeddings normal with standard deviation 1, or 0.02 if tied; matrices
        uniform with variance 1 / (3 * inputs); zero for biases, the output embedding, and matrices that write
        into the residual stream. The gains of norms keep their 1."""
        for name, weight in self.named_parameters():
            with torch.no_grad():
                if name.endswith("embed_tokens.weight"):
                    weight.normal_(0.0, 0.02 if self.config.tie_word_embeddings else 1.0, generator=generator)
                elif name.endswith(
                    ("o_proj.weight", "down_proj.weight", "down_proj", "lm_head.weight", "bias")
                ):
                    weight.zero_()
                elif weight.ndim >= 2:
                    bound = 1 / math.sqrt(weight.shape[-1])
                    weight.uniform_(-bound, bound, generator=generator)

    def add_adapters(self, rank: int, generator: torch.Generator) -> None:
        """Freeze all weights, and add trainable low-rank adapters to the matrices in the layers."""
        self.requires_grad_(False)
        for layer in self.model.layers:
            for matrix in layer.modules():
                if type(matrix) is Linear:
                    matrix.adapter = LowRankAdapter(matrix.in_features, matrix.out_features, rank)
                    bound = 1 / math.sqrt(matrix.in_features)
                    with torch.no_grad():
                        matrix.adapter.lora_A.uniform_(-bound, bound, generator=generator)
        self.to(self.cos.device)

    def train_token_rows(self, first: int, count: int) -> None:
        """Train the embeddings of tokens `first` to `first` + `count` - 1 while the others are frozen."""
        self.token_rows = TokenRows(first, count, self.config.hidden_size, self.config.tie_word_embeddings)
        self.token_rows.to(self.cos.device)

    def load_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Copy the weights from numpy arrays by Hugging Face's names; all of them must be present."""
        with torch.no_grad():
            for name in self.config.tensor_shapes():
                self._weight(name).copy_(torch.from_numpy(arrays[name]))
                if self.token_rows is not None:
                    self.token_rows.load(name, torch.from_numpy(arrays[name]))

    def scoring_model(self, arrays: Mapping[str, Array]) -> "LanguageModel":
        """Return a model of the same config on the same device with other weights, in float32, as users will
        run it."""
        model = LanguageModel(self.config).to(self.cos.device)
        model.load_arrays(arrays)
        return model

    @torch.no_grad()
    def to_arrays(self) -> dict[str, Array]:
        """Copy the weights under Hugging Face's names, with adapters and `logit_factor` merged."""
        arrays = {}
        for name in self.config.tensor_shapes():
            weight = self._weight(name)
            if name not in self._stacked:
                owner = self.get_submodule(name.rpartition(".")[0])
                if isinstance(owner, Linear) and owner.adapter is not None and name.endswith(".weight"):
                    weight = weight + owner.adapter.merged()
            if self.token_rows is not None:
                weight = self.token_rows.merged(name, weight)
            is_final_norm = name in (FINAL_NORM, bias_of(FINAL_NORM))
            arrays[name] = copied(weight * self.logit_factor if is_final_norm else weight)
        return arrays

    def trainable_arrays(self) -> dict[str, Array]:
        """Copy the trained weights by parameter name: all weights, or the adapters and token rows."""
        return {name: copied(weight) for name, weight in self._trainable()}

    def load_trainable(self, arrays: Mapping[str, Array]) -> None:
        with torch.no_grad():
            for name, weight in self._trainable():
                weight.copy_(torch.from_numpy(arrays[name]))

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, weight) for name, weight in self.named_parameters() if weight.requires_grad)

    def _weight(self, name: str) -> Tensor:
        if self._frozen is not None:
            return torch.from_numpy(self._frozen[name])
        if name not in self._stacked:
            return self.get_parameter(name)
        stack, expert = self._stacked[name]
        return self.get_parameter(stack) if expert is None else self.get_parameter(stack)[expert]


@dataclass(frozen=True)
class Teacher:
    """A trained model that another model learns from."""

    model: LanguageModel
    weight: float  # weight of its predictions in the targets, 0 to 1

    @torch.no_grad()
    def targets(self, ids: Tensor) -> SoftTargets:
        """Return the teacher's predictions after each of ids [B, T], as B * T rows."""
        return SoftTargets(self.model.hidden_states(ids).flatten(0, 1), self.model.head(), self.weight)


def rotary_tables(config: ModelConfig, length: int) -> tuple[Tensor, Tensor]:
    """Compute cos and sin of position * frequency, [kinds of layers, T, D] each; both halves of D have the
    same frequencies."""
    frequencies = torch.tensor(
        [config.rope_frequencies(kind) for kind in config.layer_kinds], dtype=torch.float64
    )
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies[:, None]  # [kinds, T, D/2]
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().float(), angles.sin().float()


def _stacked_names(config: ModelConfig) -> dict[str, tuple[str, int | None]]:
    """Map tensor names of routers and experts to (parameter name, index into its stack; None for a
    router)."""
    stacked: dict[str, tuple[str, int | None]] = {}
    for i in range(config.num_hidden_layers if config.num_experts else 0):
        prefix = f"model.layers.{i}.mlp."
        stacked[config.router_name(i)] = f"{prefix}gate.weight", None
        for expert, names in enumerate(config.mlp_names(i)):
            stacks = (f"{prefix}gate_proj", f"{prefix}up_proj", f"{prefix}down_proj")
            stacked |= {name: (stack, expert) for name, stack in zip(names, stacks, strict=True)}
    return stacked


def copied(weight: Tensor) -> Array:
    """Copy to the CPU in float32."""
    return weight.detach().to("cpu", torch.float32, copy=True).numpy()
