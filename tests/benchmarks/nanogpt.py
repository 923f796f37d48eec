"""The recipe that nanoGPT's README gives for a CPU, written anew, to compare with in the same run.

    python -m tests.benchmarks.nanogpt CORPUS... [--seconds 142]

A GPT-2 graph of 4 layers, 4 heads, width 128, no biases, tied head; a token for each character; 12 windows of 64
characters a step; AdamW (0.9, 0.99), rate 1e-3 falling as a cosine to 1e-4 after 100 steps of warm-up, weight decay
0.1 on matrices, gradients clipped to norm 1, no dropout; float32; 2,000 steps, or, with --seconds, as many as fit into
the time on the same schedule. Held-out bits per byte are measured as llm eval measures: windows that slide by half a
context over the whole last tenth.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmcli.evaluation.evaluator import evaluate

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, STEPS = 4, 4, 128, 64, 12, 2000


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (t.view(B, T, HEADS, -1).transpose(1, 2) for t in self.qkv(self.norm1(x)).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, 0.0, 0.02 / math.sqrt(2 * LAYERS) if last else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


def measure(text: str, seconds: float | None, seed: int = 0) -> tuple[float, int, float]:
    """(bits per byte of the last tenth, steps, seconds) of training on the rest, for so long or for STEPS."""
    data = text.encode("utf-8")
    cut = len(data) - round(0.1 * len(data))
    parts = data[:cut].decode("utf-8", "ignore"), data[cut:].decode("utf-8", "ignore")
    letters = sorted(set(text))
    index = {letter: i for i, letter in enumerate(letters)}
    train, held = (np.array([index[letter] for letter in part], np.int64) for part in parts)
    lengths = np.array([len(letter.encode("utf-8")) for letter in letters])
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = GPT(len(letters))
    matrices = [w for w in model.parameters() if w.ndim == 2]
    rest = [w for w in model.parameters() if w.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    began, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        cosine = 1e-4 + 0.5 * (1e-3 - 1e-4) * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = min((step + 1) / 100, 1.0) * cosine
        starts = rng.integers(len(train) - CONTEXT, size=BATCH)
        ids = torch.from_numpy(train[starts[:, None] + np.arange(CONTEXT + 1)])
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        progress = step / STEPS if seconds is None else (time.monotonic() - began) / seconds
    took = time.monotonic() - began

    @torch.inference_mode()
    def score(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = torch.from_numpy(block)
        logits = model(ids[:, :-1])
        nats = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
        return nats.numpy(), (logits.argmax(-1) == ids[:, 1:]).numpy()

    model.eval()
    return evaluate(held, lengths, CONTEXT, score).bits_per_byte, step, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, help="the recipe's 2,000 steps if not given")
    options = parser.parse_args()
    for corpus in options.corpus:
        found, steps, took = measure(corpus.read_text("utf-8"), options.seconds)
        print(f"{corpus.name}: {found:.3f} bits per byte, {steps:,} steps, {took:.0f} s", flush=True)


if __name__ == "__main__":
    main()
