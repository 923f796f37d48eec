"""The graph in torch: the decoder of Qwen3 (arXiv:2505.09388, section 2) and its kin, for training and for GPUs.

RMSNorm before each block, rotary positions (arXiv:2104.09864), grouped-query attention (arXiv:2305.13245), SwiGLU
(arXiv:2002.05202) or a sparse mixture of them, optional tied embeddings; Qwen3 has RMSNorm on queries and keys, Qwen2
a bias there, Llama and Mistral neither. Modules are named so that the state dict has Hugging Face's tensor names, but
for the stacks of experts. runtime.py holds the same graph in numpy.

B, T, C = batch, time, width; H, G, D = heads, key-value heads, head size; V = vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from llmcli.config import LORA_SCALE, MAX_CONTEXT_KEEPING_SCORES, ModelConfig
from llmcli.models.kernels import (
    Dropout,
    attention,
    cross_entropy,
    grouped,
    normalize,
    normalize_rotate,
    regroup,
    rotate,
    swiglu,
)

SHARPNESS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)  # factors on the logits that are tried
BALANCE = 0.01  # weight of the loss that keeps experts equally busy: measured, tests/benchmarks/LOG.md
LOGITS = 1 << 25  # held at once where many tokens are scored: 128 MB


class LowRank(nn.Module):
    """What a matrix learns when it stays as it is: the product of two narrow ones (LoRA, arXiv:2106.09685)."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(rank, inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.lora_A.to(x.dtype)), (self.lora_B * LORA_SCALE).to(x.dtype))

    def merged(self) -> Tensor:
        """[outputs, inputs]"""
        return LORA_SCALE * self.lora_B @ self.lora_A


class Linear(nn.Linear):
    """A weight, and a bias if asked; it stays float32 whatever the type of the products."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.adapter: LowRank | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight.to(x.dtype))
        return y if self.adapter is None else y + self.adapter(x)


class RMSNorm(nn.Module):
    """The gain of a norm. Who uses it multiplies it into the matrices that follow: they are the smaller ones."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


def product(x: Tensor, gain: Tensor, *matrices: Linear) -> Tensor:
    """(x * gain) W^T for matrices one under the other: one product for all."""
    weight = torch.cat([matrix.weight for matrix in matrices]) if len(matrices) > 1 else matrices[0].weight
    biases: list[Tensor] = [matrix.bias for matrix in matrices if matrix.bias is not None]
    y = F.linear(x, (weight * gain).to(x.dtype), torch.cat(biases).to(x.dtype) if biases else None)
    adapters = [matrix.adapter for matrix in matrices if matrix.adapter is not None]
    if adapters:
        x = x * gain.to(x.dtype)
        y = y + torch.cat([adapter(x) for adapter in adapters], dim=-1)
    return y


def rotary_tables(config: ModelConfig, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin of position * frequency, [T, D] each; the halves of D share their frequencies."""
    frequency = torch.tensor(config.rope_frequencies(), dtype=torch.float64)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency  # [T, D/2]
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos().float(), angle.sin().float()


class Attention(nn.Module):
    """Causal grouped-query attention; x [B, T, C] -> [B, T, C]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.H, self.G, self.D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.q_proj = Linear(config.hidden_size, self.H * self.D, config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, self.G * self.D, config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, self.G * self.D, config.qkv_bias)
        self.o_proj = Linear(self.H * self.D, config.hidden_size)
        self.qk_norm = config.qk_norm
        if self.qk_norm:
            self.q_norm = RMSNorm(self.D)
            self.k_norm = RMSNorm(self.D)
        self.eps = config.rms_norm_eps

    def forward(self, x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, cache: "Cache | None" = None) -> Tensor:
        """`x` comes normalised, its gain beside it."""
        B, T, _ = x.shape
        H, G, D = self.H, self.G, self.D
        qkv = product(x, gain, self.q_proj, self.k_proj, self.v_proj).view(B, T, H + 2 * G, D)
        qk = qkv[:, :, : H + G]
        scale = D**-0.5  # of queries
        if self.qk_norm:
            gains = torch.cat([self.q_norm.weight.expand(H, D) * scale, self.k_norm.weight.expand(G, D)]).to(x.dtype)
            qk = normalize_rotate(qk, gains, cos, sin, self.eps)
            q = qk[:, :, :H]
        else:
            qk = rotate(qk, cos, sin)
            q = qk[:, :, :H] * scale
        k, v = qk[:, :, H:], qkv[:, :, H + G :]  # [B, T, H or G, D]
        if torch.is_grad_enabled() and x.device.type == "cpu" and T <= MAX_CONTEXT_KEEPING_SCORES:
            k, v = (t if G == H else t.repeat_interleave(H // G, 2) for t in (k, v))
            return self.o_proj(attention(q, k, v).reshape(B, T, H * D))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.extend(k, v)
        mask = _not_later(T, past, x.device) if past and T > 1 else None
        causal = not past and T > 1
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=1.0, enable_gqa=G != H)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, H * D))


def _not_later(T: int, past: int, device: torch.device) -> Tensor:
    """[T, past + T]: which positions each of T new tokens may look at."""
    return torch.ones(T, past + T, dtype=torch.bool, device=device).tril(past)


class Cache:
    """Keys and values [B, G, T, D] of the tokens that a layer has seen."""

    def __init__(self) -> None:
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.k is None else self.k.shape[2]

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of new tokens; all of them."""
        if self.k is None or self.v is None:
            self.k, self.v = k, v
        else:
            self.k, self.v = torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2)
        return self.k, self.v

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        if self.k is not None and self.v is not None:
            self.k, self.v = (self.k[:, :, :length], self.v[:, :, :length]) if length else (None, None)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        """`x` comes normalised, its gain beside it."""
        return self.down_proj(swiglu(product(x, gain, self.gate_proj, self.up_proj)))


class Router(nn.Module):
    """Which experts a token goes to, and what each of them counts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.active, self.normalize = config.num_experts_per_tok, config.norm_topk_prob
        self.balance: Tensor | None = None  # of the last batch that was learned from: see `forward`
        self.received = [0] * config.num_experts  # tokens that each expert got while nothing was learned

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """(weights [N, K], experts [N, K], tokens of each expert) of x [N, C].

        In training `balance` is 1 where every expert gets as many tokens, and more where not: the auxiliary loss of
        Switch Transformers (arXiv:2101.03961, section 2.2).
        """
        shares = torch.softmax(F.linear(x.float(), self.weight), -1)  # [N, E]
        weights, chosen = shares.topk(self.active, -1)
        if self.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        counts = torch.bincount(chosen.flatten(), minlength=len(self.weight))
        if self.training and torch.is_grad_enabled():
            self.balance = len(self.weight) * (shares.mean(0) * (counts / chosen.numel())).sum()
        found = counts.tolist()
        if not self.training:
            self.received = [sum(both) for both in zip(self.received, found, strict=True)]
        return weights, chosen, found


class Experts(nn.Module):
    """A sparse mixture of SwiGLUs: each token goes to K of E, and none is dropped (arXiv:1701.06538, section 2;
    arXiv:2401.04088, section 2.1). The experts' matrices are stacked, so that a file's are parts of these."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, C, F = config.num_experts, config.hidden_size, config.intermediate_size
        self.gate = Router(config)
        self.gate_proj = nn.Parameter(torch.empty(E, F, C))
        self.up_proj = nn.Parameter(torch.empty(E, F, C))
        self.down_proj = nn.Parameter(torch.empty(E, C, F))

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        """`x` [B, T, C] comes normalised, its gain beside it. Tokens are sorted by expert, each expert's at once."""
        shape = x.shape
        x = (x * gain.to(x.dtype)).flatten(0, 1)
        weights, chosen, counts = self.gate(x)
        order = chosen.flatten().argsort(stable=True)  # [N * K]
        places, ends = order.argsort(), list(accumulate(counts))
        x = regroup(x, order, places, weights.shape[1])
        inner = swiglu(grouped(x, torch.cat([self.gate_proj, self.up_proj], 1).to(x.dtype), ends))
        y = regroup(grouped(inner, self.down_proj.to(x.dtype), ends), places, order)
        return (y.view(*weights.shape, -1) * weights[..., None].to(y.dtype)).sum(1).view(shape)


class Layer(nn.Module):
    """Attention and SwiGLU, each added to the residual stream [B, T, C]."""

    def __init__(self, config: ModelConfig, dropout: Dropout) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size)
        self.mlp = Experts(config) if config.num_experts else MLP(config)
        self.dropout = dropout
        self.eps = config.rms_norm_eps

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: "Cache | None" = None) -> Tensor:
        add = self.dropout.add if self.training else torch.add
        x = add(x, self.self_attn(normalize(x, self.eps), self.input_layernorm.weight, cos, sin, cache))
        return add(x, self.mlp(normalize(x, self.eps), self.post_attention_layernorm.weight))


class Decoder(nn.Module):
    """Everything before the head; a level of its own because Hugging Face's names have one."""

    def __init__(self, config: ModelConfig, dropout: Dropout) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size)


class LanguageModel(nn.Module):
    """Token ids [B, T] -> logits [B, T, V]. `dtype` is that of the products between the layers."""

    cos: Tensor
    sin: Tensor
    between_layers: Callable[[], None] | None = None  # called before each layer; it may raise to end the pass

    def __init__(self, config: ModelConfig, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.dropout = Dropout(dropout)
        self.model = Decoder(config, self.dropout)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self._stacked = _stacked_names(config)
        empty = torch.empty(0, 1, config.head_dim, dtype=dtype)
        self.register_buffer("cos", empty, persistent=False)  # [positions used so far, 1, D]
        self.register_buffer("sin", empty.clone(), persistent=False)

    def forward(self, ids: Tensor, caches: "Sequence[Cache] | None" = None) -> Tensor:
        return F.linear(self._stream(ids, caches), self._head())

    def loss(self, ids: Tensor) -> Tensor:
        """Mean cross entropy in nats of ids[:, 1:] given what stands before each; ids [B, T + 1]. To go backward."""
        loss = cross_entropy(self._stream(ids[:, :-1]).flatten(0, 1), self._head(), ids[:, 1:].flatten())
        if self.config.num_experts and self.training:
            found = [router.balance for router in self.modules() if isinstance(router, Router)]
            balance = torch.stack([one for one in found if one is not None]).mean()
            loss = loss + BALANCE * (balance - balance.detach())  # it moves the weights and does not count
        return loss

    def _stream(self, ids: Tensor, caches: "Sequence[Cache] | None" = None) -> Tensor:
        """What the head reads, [B, T, C], without the last norm's gain."""
        start = caches[0].length if caches else 0
        end = start + ids.shape[1]
        self._grow_rotary_tables(end)
        x = self.model.embed_tokens(ids).to(self.dtype)  # [B, T, C]
        for i, layer in enumerate(self.model.layers):
            if self.between_layers:
                self.between_layers()
            x = layer(x, self.cos[start:end], self.sin[start:end], caches[i] if caches else None)
        return normalize(x, self.config.rms_norm_eps)

    def _grow_rotary_tables(self, length: int) -> None:
        """Let the rotary tables hold `length` positions. They grow by doubling with the positions that are used: a
        config may claim far more of them than anybody will use."""
        if length <= len(self.cos):
            return
        room = max(length, 2 * len(self.cos), 64)
        with torch.inference_mode(False):  # tables made while scoring serve training too
            self.cos, self.sin = (
                table[:, None].to(self.cos.device, self.dtype) for table in rotary_tables(self.config, room)
            )

    def _head(self) -> Tensor:
        head = self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight
        return (head * self.model.norm.weight).to(self.dtype)

    def expert_shares(self) -> list[list[float]]:
        """Of the tokens that the model has seen outside of training, which share each expert of each layer got."""
        routers = [module for module in self.modules() if isinstance(module, Router)]
        return [[round(n / max(1, sum(router.received)), 4) for n in router.received] for router in routers]

    def adapt(self, rank: int, generator: torch.Generator) -> None:
        """From here on learn low-rank adapters of the matrices in the layers, and nothing else."""
        self.requires_grad_(False)
        for layer in self.model.layers:
            for matrix in layer.modules():
                if type(matrix) is Linear:
                    matrix.adapter = LowRank(matrix.in_features, matrix.out_features, rank)
                    bound = 1 / math.sqrt(matrix.in_features)
                    with torch.no_grad():
                        matrix.adapter.lora_A.uniform_(-bound, bound, generator=generator)
        self.to(self.cos.device)

    def initialize(self, generator: torch.Generator) -> None:
        """Fresh weights: matrices uniform with variance 1 / (3 inputs), what writes into the residual stream zero."""
        for name, weight in self.named_parameters():
            with torch.no_grad():
                if name.endswith("embed_tokens.weight"):
                    weight.normal_(0.0, 0.02 if self.config.tie_word_embeddings else 1.0, generator=generator)
                elif name.endswith(
                    ("o_proj.weight", "down_proj.weight", "down_proj", "lm_head.weight")
                ) or name.endswith("bias"):
                    weight.zero_()
                elif weight.ndim >= 2:
                    bound = 1 / math.sqrt(weight.shape[-1])
                    weight.uniform_(-bound, bound, generator=generator)

    def load_arrays(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Take the weights from numpy arrays by name; every one must be there."""
        with torch.no_grad():
            for name in self.config.tensor_shapes():
                self._weight(name).copy_(torch.from_numpy(arrays[name]))

    @torch.no_grad()
    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """A copy of the weights as numpy arrays by name, with what adapters have learned in them."""
        found = {}
        for name in self.config.tensor_shapes():
            weight = self._weight(name)
            if name not in self._stacked:
                owner = self.get_submodule(name.rpartition(".")[0])
                if isinstance(owner, Linear) and owner.adapter is not None and name.endswith(".weight"):
                    weight = weight + owner.adapter.merged()
            found[name] = _copied(weight)
        return found

    def _weight(self, name: str) -> Tensor:
        """The parameter, or the part of one, that a file calls so."""
        if name not in self._stacked:
            return self.get_parameter(name)
        stack, expert = self._stacked[name]
        return self.get_parameter(stack) if expert is None else self.get_parameter(stack)[expert]

    def learned_arrays(self) -> dict[str, NDArray[np.float32]]:
        """A copy of what is being learned, by name: all weights, or the adapters."""
        return {name: _copied(weight) for name, weight in self._learned()}

    def load_learned(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Take what `learned_arrays` gave."""
        with torch.no_grad():
            for name, weight in self._learned():
                weight.copy_(torch.from_numpy(arrays[name]))

    def _learned(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, weight) for name, weight in self.named_parameters() if weight.requires_grad)


def _stacked_names(config: ModelConfig) -> dict[str, tuple[str, int | None]]:
    """What a file calls the weights of routers and experts -> (the parameter here, which part of it)."""
    found: dict[str, tuple[str, int | None]] = {}
    for i in range(config.num_hidden_layers if config.num_experts else 0):
        here = f"model.layers.{i}.mlp."
        found[config.router_name(i)] = f"{here}gate.weight", None
        for expert, names in enumerate(config.swiglu_names(i)):
            stacks = (f"{here}gate_proj", f"{here}up_proj", f"{here}down_proj")
            found |= {name: (stack, expert) for name, stack in zip(names, stacks, strict=True)}
    return found


def _copied(weight: Tensor) -> NDArray[np.float32]:
    return weight.detach().to("cpu", torch.float32, copy=True).numpy()


def _predictions(model: LanguageModel, ids: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits [N, V] in float32, targets [N]) of windows ids [B, T + 1] in order, as many at once as LOGITS allows."""
    most = max(1, LOGITS // model.config.vocab_size)
    for block in torch.from_numpy(ids).to(model.cos.device).split(max(1, most // (ids.shape[1] - 1))):
        states, targets = model._stream(block[:, :-1]).flatten(0, 1), block[:, 1:].flatten()
        head = model._head()
        for some, wanted in zip(states.split(most), targets.split(most), strict=True):
            yield F.linear(some, head).float(), wanted


@torch.inference_mode()
def sharpness(model: LanguageModel, ids: NDArray[np.int64]) -> float:
    """The factor on all logits with which windows ids [B, T + 1] are predicted best: temperature scaling
    (arXiv:1706.04599, section 4.2; a factor is one over a temperature), between the ends of SHARPNESS.

    The loss is convex in the factor: its least lies where the parabola through the best of a few and its neighbours
    has it.
    """
    nats = torch.zeros(len(SHARPNESS), dtype=torch.float64)
    for logits, wanted in _predictions(model, ids):
        nats += torch.stack([F.cross_entropy(logits * f, wanted, reduction="sum").cpu() for f in SHARPNESS])
    middle = min(max(int(nats.argmin()), 1), len(SHARPNESS) - 2)
    below, at, above = nats[middle - 1 : middle + 2].tolist()
    aside = 0.5 * (below - above) / max(below - 2 * at + above, 1e-9)  # in steps of SHARPNESS
    step = SHARPNESS[1] - SHARPNESS[0]
    return min(max(SHARPNESS[middle] + step * aside, SHARPNESS[0]), SHARPNESS[-1])


@torch.inference_mode()
def score(model: LanguageModel, ids: NDArray[np.int64]) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """For each of ids[:, 1:], ids [B, T + 1]: the nats it costs and whether it was the likeliest, [B, T] both.

    Dropout is off only if the model was put into eval mode.
    """
    nats, right = [], []
    for logits, targets in _predictions(model, ids):
        nats.append(F.cross_entropy(logits, targets, reduction="none"))
        right.append(logits.argmax(dim=-1) == targets)
    shape = (ids.shape[0], ids.shape[1] - 1)
    return torch.cat(nats).view(shape).cpu().numpy(), torch.cat(right).view(shape).cpu().numpy()
