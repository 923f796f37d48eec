"""A sparse mixture of experts in torch: a router and its SwiGLUs.

B, T, C = batch, tokens, hidden size; N = B * T; E, K = experts, active experts per token; I = intermediate
size.
"""

from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmcli.config import ModelConfig
from llmcli.models.torch.kernels import grouped_linear, regroup, swiglu


class Router(nn.Module):
    """Routes each token to the K experts with the highest probabilities."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.active = config.num_experts_per_tok
        self.normalize = config.norm_topk_prob
        self.balance_loss: Tensor | None = None  # for the last training batch; see `forward`
        self.expert_counts = [0] * config.num_experts  # tokens routed to each expert in eval mode

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """x [N, C] -> (weights [N, K], experts [N, K], number of tokens for each expert [E]). In training it
        sets `balance_loss` (Switch Transformers, arXiv:2101.03961, section 2.2): 1 for an even load, more
        otherwise."""
        probabilities = torch.softmax(F.linear(x.float(), self.weight), -1)  # [N, E]
        weights, chosen = probabilities.topk(self.active, -1)
        if self.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        counts = torch.bincount(chosen.flatten(), minlength=len(self.weight))
        if self.training and torch.is_grad_enabled():
            self.balance_loss = len(self.weight) * (probabilities.mean(0) * (counts / chosen.numel())).sum()
        listed = counts.tolist()
        if not self.training:
            self.expert_counts = [
                total + count for total, count in zip(self.expert_counts, listed, strict=True)
            ]
        return weights, chosen, listed


class Experts(nn.Module):
    """E SwiGLUs; K of them process each token, without a capacity limit (arXiv:1701.06538, section 2;
    arXiv:2401.04088, section 2.1). Their matrices are stacked here, but separate in a file."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, C, I = config.num_experts, config.hidden_size, config.intermediate_size  # noqa: E741
        self.gate = Router(config)
        self.gate_proj = nn.Parameter(torch.empty(E, I, C))
        self.up_proj = nn.Parameter(torch.empty(E, I, C))
        self.down_proj = nn.Parameter(torch.empty(E, C, I))
        self.activation = config.hidden_act
        self.gate_up: Tensor | None = None  # see `fold`

    def fold(self, dtype: torch.dtype, gain: Tensor | None) -> None:
        """Stack the gate and up matrices once, for inference only. Their gain is still applied to the
        activations."""
        self.gate_up = torch.cat([self.gate_proj.detach(), self.up_proj.detach()], 1)
        self.register_parameter("gate_proj", None)
        self.register_parameter("up_proj", None)

    def forward(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """Normalized x [B, T, C] before its gain -> [B, T, C]. Tokens are sorted by expert, so that each
        expert processes all of its tokens in one product."""
        shape = x.shape
        assert gain is not None
        x = (x * gain.to(x.dtype)).flatten(0, 1)  # [N, C]
        weights: Tensor
        weights, chosen, counts = self.gate(x)
        order = chosen.flatten().argsort(stable=True)  # [N * K], by expert
        inverse = order.argsort()
        ends = list(accumulate(counts))
        x = regroup(x, order, inverse, weights.shape[1])  # [N * K, C]
        gate_up = torch.cat([self.gate_proj, self.up_proj], 1) if self.gate_up is None else self.gate_up
        inner = swiglu(grouped_linear(x, gate_up.to(x.dtype), ends), self.activation)
        y = regroup(grouped_linear(inner, self.down_proj.to(x.dtype), ends), inverse, order, 1)
        y = (y.view(*weights.shape, -1) * weights[..., None].to(y.dtype)).sum(1)
        return y.view(shape)
