"""Pieces of the graph with their gradients written out, so that each takes few passes over memory.

On a processor at these sizes a step is bound by memory and by the number of operations, not by arithmetic alone:
what autograd would save and pass over for a norm, a rotation or a loss costs as much as the products between them.
Each function here is one formula, forward and backward; the tests hold them against autograd.

B, T, C = batch, time, width; N, D = heads, head size; F = width inside the SwiGLU; V = vocabulary.
"""

import math
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

ROWS = 512  # of logits computed at once: they stay in the cache, and V may be large
QUERIES = 128  # of each head taken at once: fewer copy keys and values more often, more see what they must not


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        y, scale = _normalized(x, eps)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        y, scale = ctx.saved_tensors
        g = grads[0]
        along = (g * y).mean(-1, keepdim=True)
        return torch.addcmul(g, y, along, value=-1).mul_(scale), None


def _normalized(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x / rms(x), 1 / rms(x))"""
    size = x.shape[-1]
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_for_sums(x))
    scale = norm.square_().div_(size).add_(eps).rsqrt_().to(x.dtype)
    return x * scale, scale


def _for_sums(x: Tensor) -> torch.dtype:
    """float32 at least: sums lose too much in bfloat16."""
    return torch.promote_types(x.dtype, torch.float32)


def normalize(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension: RMSNorm (arXiv:1910.07467) without its gain."""
    return _Normalize.apply(x, eps)


class _NormalizeRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        y, scale = _normalized(x, eps)
        ctx.save_for_backward(y, scale, gain, cos, sin)
        return _turned(y * gain, cos, sin, _heads_first(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        y, scale, gain, cos, sin = ctx.saved_tensors
        g = _turned(grads[0], cos, -sin)  # the way back is the turn by the opposite angle
        along = g * y  # [B, T, N, D]
        for_gain = along.sum((0, 1), dtype=_for_sums(along)).to(gain.dtype)
        along = along.mul_(gain).mean(-1, keepdim=True)
        return g.mul_(gain).addcmul_(y, along, value=-1).mul_(scale), for_gain, None, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    half = x.shape[-1] // 2
    y = torch.mul(x, cos, out=out)
    y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    y[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return y


def _heads_first(like: Tensor) -> Tensor:
    """An empty [B, T, N, D] whose heads lie one after the other in memory: so attention takes them as they lie."""
    B, T, N, D = like.shape
    return like.new_empty(N, B, T, D).permute(1, 2, 0, 3)


def normalize_rotate(x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """RMSNorm of each head, times its gain, turned by its position's angle (arXiv:2104.09864).

    x [B, T, N, D], gain [N, D]; cos and sin [T, 1, D], of position * frequency, whose halves of D are alike.
    """
    return _NormalizeRotate.apply(x, gain, cos, sin, eps)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, -sin), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each head turned by its position's angle (arXiv:2104.09864); x [B, T, N, D], cos and sin [T, 1, D]."""
    return _Rotate.apply(x, cos, sin)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, T, N, D = q.shape
        q, k, v = (x.permute(2, 0, 1, 3).reshape(N * B, T, D) for x in (q, k, v))
        outputs, weights = [], []
        for start in range(0, T, QUERIES):
            end = min(T, start + QUERIES)
            scores = torch.bmm(q[:, start:end], k[:, :end].mT)
            scores[:, :, start:].masked_fill_(_later(end - start, q.device), -math.inf)
            weights.append(torch.softmax(scores, -1))
            outputs.append(torch.bmm(weights[-1], v[:, :end]))
        y = torch.cat(outputs, 1)
        ctx.save_for_backward(q, k, v, y, *weights)
        ctx.shape = B, N, T, D
        return y.view(N, B, T, D).permute(1, 2, 0, 3)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        B, N, T, D = ctx.shape
        q, k, v, y, *weights = ctx.saved_tensors
        g = grads[0].permute(2, 0, 1, 3).reshape(N * B, T, D)
        along = (g * y).sum(-1, keepdim=True)
        for_q = []
        for_k, for_v = (torch.zeros_like(x, dtype=_for_sums(x)) for x in (k, v))
        for i, weight in enumerate(weights):
            start, end = i * QUERIES, min(T, (i + 1) * QUERIES)
            some = g[:, start:end]
            for_v[:, :end] += torch.bmm(weight.mT, some)
            slope = torch.bmm(some, v[:, :end].mT).sub_(along[:, start:end]).mul_(weight)
            for_q.append(torch.bmm(slope, k[:, :end]))
            for_k[:, :end] += torch.bmm(slope.mT, q[:, start:end])
        for_each = torch.cat(for_q, 1), for_k.to(k.dtype), for_v.to(v.dtype)
        return tuple(x.view(N, B, T, D).permute(1, 2, 0, 3) for x in for_each)


@lru_cache(maxsize=8)
def _later(T: int, device: torch.device) -> Tensor:
    return torch.ones(T, T, dtype=torch.bool, device=device).triu(1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T) v, each position seeing itself and those before it (arXiv:1706.03762, section 3.2.1); [B, T, N, D]
    all. Queries come scaled.

    What each saw of each, [B, N, T, T] without most of its empty half, is kept for the way back: for T up to a
    thousand or so that costs less than computing it anew.
    """
    return _Attention.apply(q, k, v)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        opened = functional.silu(gate)
        ctx.save_for_backward(both, opened)
        return opened * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        both, opened = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        out = torch.empty_like(both)
        for_gate, for_up = out.chunk(2, dim=-1)
        torch.mul(grads[0], opened, out=for_up)
        torch.mul(grads[0], up, out=for_gate)
        torch.ops.aten.silu_backward(for_gate, gate, grad_input=for_gate)
        return out


def swiglu(both: Tensor) -> Tensor:
    """silu(gate) * up of [gate, up] side by side in the last dimension, 2F -> F (arXiv:2002.05202)."""
    return _SwiGLU.apply(both)


class _Regroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, places: Tensor, times: int) -> Tensor:
        ctx.save_for_backward(places)
        ctx.times = times
        return x.index_select(0, order // times if times > 1 else order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (places,) = ctx.saved_tensors
        back = grads[0].index_select(0, places)
        return back.view(-1, ctx.times, back.shape[-1]).sum(1) if ctx.times > 1 else back, None, None, None


def regroup(x: Tensor, order: Tensor, places: Tensor, times: int = 1) -> Tensor:
    """Rows of x [N, C] in another order, each `times` times: row i of the result [N * times, C] is row order[i] //
    times; `places` is the inverse of `order`. The way back is a sum in a fixed order, so that it is always the same."""
    return _Regroup.apply(x, order, places, times)


class _Grouped(torch.autograd.Function):
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
        for_x, for_weights = torch.empty_like(x), torch.empty_like(weights)
        for i, (start, end) in enumerate(pairwise((0, *ctx.ends))):
            some = grads[0][start:end]
            torch.mm(some, weights[i], out=for_x[start:end])
            torch.mm(some.mT, x[start:end], out=for_weights[i])
        return for_x, for_weights, None


def grouped(x: Tensor, weights: Tensor, ends: list[int]) -> Tensor:
    """x [N, inputs] times a matrix for each group of rows, weights [E, outputs, inputs]: [N, outputs]. Group i ends
    before row ends[i]."""
    return _Grouped.apply(x, weights, ends)


class _AddDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, keep: Tensor) -> Tensor:
        ctx.save_for_backward(keep)
        return torch.addcmul(x, y, keep)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (keep,) = ctx.saved_tensors
        return grads[0], grads[0] * keep, None


class Dropout:
    """Adds to a stream what is left of a branch after dropout. torch draws its masks on one core, one number for
    each value; here numpy draws a byte for each, twenty times as fast. So the rate is a whole number of 256ths."""

    def __init__(self, rate: float) -> None:
        self.set_rate(rate)
        self._rng = np.random.Generator(np.random.SFC64(0))
        self._elsewhere: torch.Generator | None = None  # on another device

    def set_rate(self, rate: float) -> None:
        self._drop = round(rate * 256)

    def seed(self, seed: int, step: int) -> None:
        """Masks from here on are a function of these."""
        if self._drop:
            self._rng = np.random.Generator(np.random.SFC64([seed, step]))
            self._elsewhere = None

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + dropout(y)"""
        if not self._drop:
            return x + y
        return _AddDropped.apply(x, y, self._mask(y))

    def _mask(self, like: Tensor) -> Tensor:
        """1 / (1 - rate) where a value stays, 0 where it goes."""
        if like.device.type != "cpu":
            if self._elsewhere is None:
                self._elsewhere = torch.Generator(like.device).manual_seed(int(self._rng.integers(2**62)))
            kept = torch.rand(like.shape, generator=self._elsewhere, device=like.device) >= self._drop / 256
        else:
            count = like.numel()
            words = self._rng.integers(0, 2**64, -(-count // 8), np.uint64)
            kept = torch.from_numpy(words.view(np.uint8)[:count]).ge(self._drop).view(like.shape)
        return kept.to(like.dtype).mul_(256 / (256 - self._drop))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        wide = _for_sums(x)
        total = x.new_zeros((), dtype=wide)
        for_x = torch.empty_like(x)
        learns = ctx.needs_input_grad[1]
        for_head = torch.zeros_like(head if learns else head[:0], dtype=wide)
        rows = ROWS if x.device.type == "cpu" else max(ROWS, (1 << 28) // head.shape[0])
        for start in range(0, len(x), rows):
            part, wanted = x[start : start + rows], targets[start : start + rows, None]
            chances = torch.softmax(functional.linear(part, head).to(wide), -1)
            hit = chances.gather(-1, wanted)
            total -= hit.clamp_min(1e-37).log().sum()
            slope = chances.scatter_(-1, wanted, hit - 1).mul_(1 / len(x)).to(x.dtype)
            torch.mm(slope, head, out=for_x[start : start + rows])
            if learns and x.dtype == wide:
                for_head.addmm_(slope.mT, part)
            elif learns:
                for_head += slope.mT @ part
        ctx.learns = learns
        ctx.save_for_backward(for_x, for_head.to(head.dtype))
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        for_x, for_head = ctx.saved_tensors
        return for_x.mul_(grads[0]), for_head.mul_(grads[0]) if ctx.learns else None, None


def cross_entropy(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy in nats of targets [R] under softmax(x head^T); x [R, C], head [V, C].

    The gradients are computed on the way forward, a block of rows at a time, so that the logits [R, V] are never
    held: call it only to go backward.
    """
    return _CrossEntropy.apply(x, head, targets)
