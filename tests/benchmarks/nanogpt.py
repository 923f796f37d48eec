"""A reimplementation of the recipe that nanoGPT's README gives for a CPU, as a baseline.

    python -m tests.benchmarks.nanogpt CORPUS... [--seconds 142]

A GPT-2 with 4 layers, 4 heads, hidden size 128, no biases, tied embeddings; one token per character; batches of 12
windows of 64 characters; AdamW (0.9, 0.99), learning rate 1e-3 with 100 steps of warm-up and cosine decay to 1e-4,
weight decay 0.1 on matrices, gradients clipped to norm 1, no dropout; float32; 2,000 steps, or, with --seconds, as many
as fit into the time on the same schedule. Held-out bits per byte are measured as `llm eval` does: windows that advance
by half a context over the whole last tenth.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.evaluation.scoring import evaluate

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, STEPS = 4, 4, 128, 64, 12, 2000


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, bias=False)
        self.norm2 = nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (t.view(B, T, HEADS, -1).transpose(1, 2) for t in self.qkv(self.norm1(x)).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                into_residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, 0.0, 0.02 / math.sqrt(2 * LAYERS) if into_residual else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


def measure(text: str, seconds: float | None, seed: int = 0) -> tuple[float, int, float]:
    """Train on all but the last tenth, for `seconds` or for STEPS; (held-out bits per byte, steps, seconds taken)."""
    data = text.encode("utf-8")
    cut = len(data) - round(0.1 * len(data))
    parts = data[:cut].decode("utf-8", "ignore"), data[cut:].decode("utf-8", "ignore")
    characters = sorted(set(text))
    index = {character: i for i, character in enumerate(characters)}
    training, held_out = (np.array([index[character] for character in part], np.int64) for part in parts)
    token_bytes = np.array([len(character.encode("utf-8")) for character in characters])
    torch.manual_seed(seed)
    model = GPT(len(characters))
    began = time.monotonic()
    steps = train(model, training, seconds, seed)
    took = time.monotonic() - began

    @torch.inference_mode()
    def score(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = torch.from_numpy(block)
        logits = model(ids[:, :-1])
        nats = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
        return nats.numpy(), (logits.argmax(-1) == ids[:, 1:]).numpy()

    model.eval()
    return evaluate(held_out, token_bytes, CONTEXT, score).bits_per_byte, steps, took


def train(model: GPT, tokens: np.ndarray, seconds: float | None, seed: int) -> int:
    """The number of steps taken."""
    rng = np.random.default_rng(seed)
    matrices = [w for w in model.parameters() if w.ndim == 2]
    rest = [w for w in model.parameters() if w.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    began, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        cosine = 1e-4 + 0.5 * (1e-3 - 1e-4) * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = min((step + 1) / 100, 1.0) * cosine
        starts = rng.integers(len(tokens) - CONTEXT, size=BATCH)
        ids = torch.from_numpy(tokens[starts[:, None] + np.arange(CONTEXT + 1)])
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        progress = step / STEPS if seconds is None else (time.monotonic() - began) / seconds
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, help="training time; default: the 2,000 steps of the recipe")
    options = parser.parse_args()
    for corpus in options.corpus:
        bits, steps, seconds = measure(corpus.read_text("utf-8"), options.seconds)
        print(f"{corpus.name}: {bits:.3f} bits per byte, {steps:,} steps, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
