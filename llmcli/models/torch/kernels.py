"""Operations of the decoder with hand-written gradients that make few passes over memory.

At these model sizes a training step on a CPU is limited by memory bandwidth and by the number of operations.
Storing and reading the intermediate results of a norm, a rotation or a loss, as autograd does, takes as long
as the matrix products. Each class is one formula, forward and backward; the tests compare both with autograd.

B, T, C = batch, tokens, hidden size; N, D = heads, head size; V = vocabulary size; R = rows, mostly B * T.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from llmcli.config import LOSS_LOGITS, LOSS_ROWS, MAX_CONTEXT_KEEPING_SCORES, QUERY_BLOCK

MAX_CONTEXT_KEEPING_SCORES_WITH_AMX = 512  # tokens; see `has_faster_attention`
_APPROXIMATIONS = {"gelu": "none", "gelu_pytorch_tanh": "tanh"}  # torch's names
MIN_PROBABILITY = 1e-37  # lower bound of probabilities before the logarithm


def contiguous_on_mps(x: Tensor) -> Tensor:
    """Return x, copied if it is a view on MPS: there, several torch versions silently compute wrong results
    for attention and SiLU's gradient on views (issues 163597, 175188 and 181133 in pytorch/pytorch)."""
    return x.contiguous() if _is_on_mps(x) else x


def _is_on_mps(x: Tensor) -> bool:
    return x.device.type == "mps"


def _is_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


class _Function(torch.autograd.Function):
    if TYPE_CHECKING:  # torch leaves this untyped

        @classmethod
        def apply(cls, *inputs: Any) -> Tensor: ...


class _Normalize(_Function):
    """x / sqrt(mean(x^2) + eps) over the last dimension: RMSNorm (arXiv:1910.07467) without its gain."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        y, scale = _normalized(x, eps)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        y, scale = ctx.saved_tensors
        grad = grads[0]
        projection = (grad * y).mean(-1, keepdim=True)  # projection of the gradient onto y
        return torch.addcmul(grad, y, projection, value=-1).mul_(scale), None


normalize = _Normalize.apply


def _normalized(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x / rms(x), 1 / rms(x))"""
    size = x.shape[-1]
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_sum_dtype(x))
    scale = norm.square_().div_(size).add_(eps).rsqrt_().to(x.dtype)
    return x * scale, scale


def _sum_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype for sums, at least float32: bfloat16 loses too much precision."""
    return torch.promote_types(x.dtype, torch.float32)


def _empty_heads_first(like: Tensor) -> Tensor:
    """Allocate [B, T, N, D] in memory order [N, B, T, D], so that attention needs no copy. torch.compile does
    not support it."""
    B, T, N, D = like.shape
    return like.new_empty(N, B, T, D).permute(1, 2, 0, 3)


class _NormalizeRotate(_Function):
    """RMSNorm of each head, times its gain, then the rotary embedding of its position (arXiv:2104.09864): x
    [B, T, N, D], gain [N, D]; cos and sin [T, 1, D] of position * frequency; the two halves of D are
    equal."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        y, scale = _normalized(x, eps)
        ctx.save_for_backward(y, scale, gain, cos, sin)
        return _rotated(y * gain, cos, sin, _empty_heads_first(x) if _is_on_cpu(x) else None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        y, scale, gain, cos, sin = ctx.saved_tensors
        # the gradient of a rotation is the rotation by the opposite angle
        grad = _rotated(grads[0], cos, -sin)
        product = grad * y  # [B, T, N, D]
        grad_gain = product.sum((0, 1), dtype=_sum_dtype(product)).to(gain.dtype)
        projection = product.mul_(gain).mean(-1, keepdim=True)
        return grad.mul_(gain).addcmul_(y, projection, value=-1).mul_(scale), grad_gain, None, None, None


normalize_rotate = _NormalizeRotate.apply


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    half = x.shape[-1] // 2
    y = torch.mul(x, cos, out=out)
    y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    y[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return y


class _Rotate(_Function):
    """The rotary embedding of each head's position (arXiv:2104.09864); x [B, T, N, D], cos and sin [T, 1,
    D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, -sin), None, None


rotate = _Rotate.apply


class _Attention(_Function):
    """Causal softmax(q k^T) v (arXiv:1706.03762, section 3.2.1) of each position and the `window` - 1 before
    it; [B, T, N, D] all. Queries must be scaled already.

    The attention weights [B, N, T, T], without most of their masked half, are kept for the backward pass,
    which is faster than recomputing them for T up to about a thousand.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        B, T, N, D = q.shape
        q, k, v = (x.permute(2, 0, 1, 3).reshape(N * B, T, D) for x in (q, k, v))
        outputs = []
        weights = []
        for start in range(0, T, QUERY_BLOCK):
            end = min(T, start + QUERY_BLOCK)
            first = max(0, start - window + 1)
            scores = torch.bmm(q[:, start:end], k[:, first:end].mT)
            scores[:, :, start - first :].masked_fill_(_future(end - start, q.device), -math.inf)
            if end > window:
                scores.masked_fill_(_before_windows(end - start, end - first, window, q.device), -math.inf)
            weights.append(torch.softmax(scores, -1))
            outputs.append(torch.bmm(weights[-1], v[:, first:end]))
        y = torch.cat(outputs, 1)
        ctx.save_for_backward(q, k, v, y, *weights)
        ctx.shape = B, N, T, D
        return y.view(N, B, T, D).permute(1, 2, 0, 3)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        B, N, T, D = ctx.shape
        q, k, v, y, *weights = ctx.saved_tensors
        grad = grads[0].permute(2, 0, 1, 3).reshape(N * B, T, D)
        projection = (grad * y).sum(-1, keepdim=True)
        grad_q = []
        grad_k, grad_v = (torch.zeros_like(x, dtype=_sum_dtype(x)) for x in (k, v))
        for i, weight in enumerate(weights):
            start = i * QUERY_BLOCK
            end = min(T, (i + 1) * QUERY_BLOCK)
            grad_block = grad[:, start:end]
            keys = slice(end - weight.shape[2], end)
            grad_v[:, keys] += torch.bmm(weight.mT, grad_block)
            grad_scores = torch.bmm(grad_block, v[:, keys].mT).sub_(projection[:, start:end]).mul_(weight)
            grad_q.append(torch.bmm(grad_scores, k[:, keys]))
            grad_k[:, keys] += torch.bmm(grad_scores.mT, q[:, start:end])
        grads_qkv = torch.cat(grad_q, 1), grad_k.to(k.dtype), grad_v.to(v.dtype)
        return *(x.view(N, B, T, D).permute(1, 2, 0, 3) for x in grads_qkv), None


attention = _Attention.apply


def has_faster_attention(x: Tensor) -> bool:
    """Return whether torch's own attention trains faster than `attention` on x [B, T, C]: on GPUs, in long
    windows, and also in shorter windows in bfloat16 on processors with AMX, Intel's matrix unit (measured:
    tests/benchmarks/LOG.md)."""
    if not _is_on_cpu(x):
        return True
    uses_amx = x.dtype is torch.bfloat16 and _has_amx()
    return x.shape[1] > (MAX_CONTEXT_KEEPING_SCORES_WITH_AMX if uses_amx else MAX_CONTEXT_KEEPING_SCORES)


@lru_cache(maxsize=1)
def _has_amx() -> bool:
    is_supported = getattr(torch.cpu, "_is_amx_tile_supported", None)  # torch has no public name for it
    return bool(is_supported and is_supported())


@lru_cache(maxsize=8)
def _future(T: int, device: torch.device) -> Tensor:
    """The causal mask [T, T]: True where a position comes after the query."""
    return torch.ones(T, T, dtype=torch.bool, device=device).triu(1)


@lru_cache(maxsize=8)
def _before_windows(T: int, S: int, window: int, device: torch.device) -> Tensor:
    """The mask [T, S]: True where a position comes before the window of the query, for the last T of S
    positions."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T - window)


class _StackedLinear(_Function):
    """See `stacked_linear`. `tensors` are a gain if `gains` is 1, a bias if `biases` is 1, and the weights.
    Numbers come first and no tensor is None, because torch.compile would confuse them."""

    @staticmethod
    def forward(ctx: Any, recompute: bool, gains: int, biases: int, x: Tensor, *tensors: Tensor) -> Tensor:
        gain, bias, weights = _unpacked(tensors, gains, biases)
        joined, matrix = _joined_and_folded(weights, gain, x.dtype)
        is_trained = any(ctx.needs_input_grad[4 + gains + biases :])
        kept = () if recompute else (joined if is_trained else matrix, matrix)
        ctx.save_for_backward(x, *tensors, *kept)
        ctx.gains = gains
        ctx.biases = biases
        ctx.kept = len(kept)
        return functional.linear(x, matrix, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, *tensors = ctx.saved_tensors
        tensors, kept = tensors[: len(tensors) - ctx.kept], tensors[len(tensors) - ctx.kept :]
        gain, _, weights = _unpacked(tensors, ctx.gains, ctx.biases)
        joined, matrix = kept or _joined_and_folded(weights, gain, x.dtype)
        grad = grads[0].flatten(0, -2)  # [R, outputs]
        grad_x = (grad @ matrix).view_as(x) if ctx.needs_input_grad[3] else None
        if not any(ctx.needs_input_grad[4:]):
            return None, None, None, grad_x, *(None for _ in tensors)
        grad_bias = [grad.sum(0)] * ctx.biases
        grad_matrix = (grad.mT @ x.flatten(0, -2)).to(joined.dtype)
        grad_gain = [(grad_matrix * joined).sum(0)] * ctx.gains
        if gain is not None:
            grad_matrix = grad_matrix * gain
        grad_weights = torch.split(grad_matrix, [len(weight) for weight in weights])
        return None, None, None, grad_x, *grad_gain, *grad_bias, *grad_weights


def _unpacked(
    tensors: Sequence[Tensor], gains: int, biases: int
) -> tuple[Tensor | None, Tensor | None, Sequence[Tensor]]:
    """(gain, bias, weights)"""
    return tensors[0] if gains else None, tensors[gains] if biases else None, tensors[gains + biases :]


def stacked_linear(
    x: Tensor, gain: Tensor | None, bias: Tensor | None, weights: Sequence[Tensor], *, recompute: bool
) -> Tensor:
    """(x * gain) W^T + bias for several stacked matrices in one product: [..., inputs] -> [..., sum of
    outputs], in the dtype of x. The folded matrix is kept for the backward pass, or recomputed there
    (`recompute`): in a large model the copies would take more memory than the weights."""
    others = [tensor for tensor in (gain, bias) if tensor is not None]
    return _StackedLinear.apply(recompute, int(gain is not None), int(bias is not None), x, *others, *weights)


def _joined_and_folded(
    weights: Sequence[Tensor], gain: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return (stacked weights, stacked weights times the gain in `dtype`)."""
    joined = torch.cat(list(weights)) if len(weights) > 1 else weights[0]
    return joined, (joined if gain is None else joined * gain).to(dtype)


def activate(x: Tensor, activation: str) -> Tensor:
    """`activation` is one of ACTIVATIONS in config.py."""
    return (
        functional.silu(x)
        if activation == "silu"
        else functional.gelu(x, approximate=_APPROXIMATIONS[activation])
    )


def _activation_gradient(activation: str, grad: Tensor, x: Tensor, **out: Tensor) -> Tensor:
    if activation == "silu":
        return cast(Tensor, torch.ops.aten.silu_backward(grad, x, **out))
    return cast(Tensor, torch.ops.aten.gelu_backward(grad, x, approximate=_APPROXIMATIONS[activation], **out))


class _SwiGLU(_Function):
    """silu(gate) * up, or with another activation (arXiv:2002.05202); gate and up are the two halves of the
    last dimension."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, activation: str) -> Tensor:
        gate, up = map(contiguous_on_mps, gate_up.chunk(2, dim=-1))
        activated = activate(gate, activation)
        ctx.save_for_backward(gate_up, activated)
        ctx.activation = activation
        return activated * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        gate_up, activated = ctx.saved_tensors
        gate, up = map(contiguous_on_mps, gate_up.chunk(2, dim=-1))
        if not _is_on_cpu(gate_up):  # torch.compile fuses this into one kernel, unlike the steps below
            grad_gate = _activation_gradient(ctx.activation, grads[0] * up, gate)
            return torch.cat([grad_gate, grads[0] * activated], -1), None
        grad = torch.empty_like(gate_up)
        grad_gate, grad_up = grad.chunk(2, dim=-1)
        torch.mul(grads[0], activated, out=grad_up)
        torch.mul(grads[0], up, out=grad_gate)
        _activation_gradient(ctx.activation, grad_gate, gate, grad_input=grad_gate)
        return grad, None


swiglu = _SwiGLU.apply


class _Regroup(_Function):
    """Reorder rows of x [R, C], each repeated `times` times, [R * times, C]: row i is x[order[i] // times].
    `inverse` is the inverse permutation of `order`. The gradient is deterministic."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, times: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.times = times
        return x.index_select(0, order // times if times > 1 else order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (inverse,) = ctx.saved_tensors
        grad = grads[0].index_select(0, inverse)
        return grad.view(-1, ctx.times, grad.shape[-1]).sum(1) if ctx.times > 1 else grad, None, None, None


regroup = _Regroup.apply


class _GroupedLinear(_Function):
    """x [R, inputs] times one matrix per group of rows, weights [groups, outputs, inputs]: [R, outputs].
    Group i ends before row ends[i]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, ends: list[int]) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.ends = ends
        y = x.new_empty(len(x), weights.shape[1])
        for weight, (start, end) in zip(weights, pairwise((0, *ends)), strict=True):
            torch.mm(x[start:end], weight.mT, out=y[start:end])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weights = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        grad_weights = torch.empty_like(weights)
        for i, (start, end) in enumerate(pairwise((0, *ctx.ends))):
            grad = grads[0][start:end]
            torch.mm(grad, weights[i], out=grad_x[start:end])
            torch.mm(grad.mT, x[start:end], out=grad_weights[i])
        return grad_x, grad_weights, None


grouped_linear = _GroupedLinear.apply


class Dropout:
    """Adds the output of a sublayer to the residual stream, with dropout. numpy draws the masks, one byte per
    value: twenty times as fast as torch, which uses one core, but the rate is rounded to a multiple of
    1/256."""

    def __init__(self, rate: float) -> None:
        self.set_rate(rate)
        self._rng = np.random.Generator(np.random.SFC64(0))
        self._device_rng: torch.Generator | None = None  # used on a GPU
        self._rows: tuple[range, int] | None = None  # (rows of this process, number of all rows); None: all

    def set_rows(self, rows: range | None, count: int = 0) -> None:
        """Draw masks for these rows of a batch of `count` rows, the same as in the whole batch. None: all
        rows."""
        self._rows = None if rows is None else (rows, count)

    def set_rate(self, rate: float) -> None:
        self._dropped = round(rate * 256)  # in 256ths

    def seed(self, *numbers: int) -> None:
        """Make the next masks a function of these numbers: the seed, the step, ..."""
        if self._dropped:
            self._rng = np.random.Generator(np.random.SFC64(numbers))
            self._device_rng = None

    def exclude_from_compilation(self) -> None:
        """Exclude this from torch.compile, which cannot compile random numbers that depend on a seed."""
        self._mask = torch.compiler.disable(self._mask)  # type: ignore[method-assign, no-untyped-call]

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + dropout(y)"""
        return torch.addcmul(x, y, self._mask(y)) if self._dropped else x + y

    def _mask(self, like: Tensor) -> Tensor:
        """1 / (1 - rate) where a value is kept, 0 where it is dropped."""
        shape = like.shape if self._rows is None else (self._rows[1], *like.shape[1:])
        if like.device.type != "cpu":
            if self._device_rng is None:
                self._device_rng = torch.Generator(like.device).manual_seed(int(self._rng.integers(2**62)))
            kept = torch.rand(shape, generator=self._device_rng, device=like.device) >= self._dropped / 256
        else:
            count = math.prod(shape)
            words = self._rng.integers(0, 2**64, -(-count // 8), np.uint64)
            kept = torch.from_numpy(words.view(np.uint8)[:count]).ge(self._dropped).view(shape)
        if self._rows is not None:
            kept = kept[self._rows[0].start : self._rows[0].stop]
        return kept.to(like.dtype).mul_(256 / (256 - self._dropped))


# ---- losses of logits x head^T

RowLoss = Callable[[slice], tuple[Tensor, Tensor]]  # block of rows -> (summed loss, gradient of the logits)


class _HeadLoss(_Function):
    """The mean over rows of a loss on the logits x head^T; x [R, C], head [V, C].

    The forward pass already computes the gradients, one block of rows at a time (about `max_logits` logits
    on a GPU), so that the logits [R, V] are never held in memory. Call it only in training; backward scales
    these gradients in place, so call it at most once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, max_logits: int, row_loss: RowLoss) -> Tensor:
        sum_dtype = _sum_dtype(x)
        ctx.head_is_trained = ctx.needs_input_grad[1]
        loss = x.new_zeros((), dtype=sum_dtype)
        grad_x = torch.empty_like(x)
        grad_head = torch.zeros_like(head if ctx.head_is_trained else head[:0], dtype=sum_dtype)
        rows = LOSS_ROWS if _is_on_cpu(x) else max(LOSS_ROWS, max_logits // head.shape[0])
        for start in range(0, len(x), rows):
            block = slice(start, start + rows)
            block_loss, grad_logits = row_loss(block)
            loss += block_loss
            grad_logits = grad_logits.mul_(1 / len(x)).to(x.dtype)
            torch.mm(grad_logits, head, out=grad_x[block])
            if ctx.head_is_trained and x.dtype == sum_dtype:
                grad_head.addmm_(grad_logits.mT, x[block])
            elif ctx.head_is_trained:
                grad_head += grad_logits.mT @ x[block]
        ctx.save_for_backward(grad_x, grad_head.to(head.dtype))
        return loss / len(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad_x, grad_head = ctx.saved_tensors
        return grad_x.mul_(grads[0]), grad_head.mul_(grads[0]) if ctx.head_is_trained else None, None, None


@dataclass(frozen=True)
class SoftTargets:
    """A teacher's predictions softmax(x head^T), part of the targets in distillation (arXiv:1503.02531,
    section 2)."""

    x: Tensor  # [R, C]
    head: Tensor  # [V, C]
    weight: float  # 0 to 1; the rest is the targets' weight


def cross_entropy(x: Tensor, head: Tensor, targets: Tensor, soft: SoftTargets | None = None) -> Tensor:
    """Mean cross-entropy in nats of targets [R] under softmax(x head^T), as a `_HeadLoss`. With `soft`, the
    gradients are a weighted sum for both kinds of targets; the value still counts only `targets`."""

    def row_loss(block: slice) -> tuple[Tensor, Tensor]:
        targets_block = targets[block, None]
        probabilities = torch.softmax(_logits(x, head, block), -1)
        target_probabilities = probabilities.gather(-1, targets_block)
        loss = -target_probabilities.clamp_min(MIN_PROBABILITY).log().sum()
        if soft is None:
            return loss, probabilities.scatter_(-1, targets_block, target_probabilities - 1)
        probabilities.sub_(torch.softmax(_logits(soft.x, soft.head, block), -1), alpha=soft.weight)
        others = torch.full_like(target_probabilities, soft.weight - 1)
        return loss, probabilities.scatter_add_(-1, targets_block, others)

    return _HeadLoss.apply(x, head, LOSS_LOGITS // 2 if soft else LOSS_LOGITS, row_loss)


def divergence(x: Tensor, head: Tensor, base_x: Tensor, base_head: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence in nats of softmax(x head^T) from softmax(base_x base_head^T), which
    is not trained, as a `_HeadLoss`; base_x [R, C], base_head [V, C]."""

    def row_loss(block: slice) -> tuple[Tensor, Tensor]:
        logs = torch.log_softmax(_logits(x, head, block), -1)
        base_logs = torch.log_softmax(_logits(base_x, base_head, block), -1)
        base_probabilities = base_logs.exp()
        loss = (base_probabilities * (base_logs - logs)).sum()
        return loss, logs.exp_().sub_(base_probabilities)

    return _HeadLoss.apply(x, head, LOSS_LOGITS // 2, row_loss)


def _logits(x: Tensor, head: Tensor, block: slice) -> Tensor:
    return functional.linear(x[block], head).to(_sum_dtype(x))
