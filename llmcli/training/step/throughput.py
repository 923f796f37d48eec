"""Measuring this machine's training speed for a model shape, with a few real steps on random tokens."""

import math
from dataclasses import replace
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from llmcli.config import ModelConfig, TrainConfig
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.run_data import window_length
from llmcli.training.planning.cost_model import estimated_speed, micro_batches
from llmcli.training.step.hardware import keep_freed_memory
from llmcli.training.step.initialization import fold_frozen, new_model
from llmcli.training.step.optimizer import Optimizer
from llmcli.training.step.thread_tuner import ThreadTuner
from llmcli.training.step.training_step import accumulate_gradients

MAX_SECONDS = 4.0  # after this time, two steps are sufficient
BLOCK = (1 << 16) + 1  # number of random numbers, which are repeated; odd, so that rows differ
MIN_LAYER_SHARE = 1 / 6  # minimum share of the layers that represents a model
COUNTED_SHARE = 0.4  # assumed share of a conversation's tokens that count in the loss


def measure_throughput(
    config: ModelConfig,
    settings: TrainConfig,
    seconds: float,
    tuner: ThreadTuner | None = None,
    *,
    conversations: bool = False,
) -> float:
    """Measure training tokens per second, averaged over the window lengths of a run. Takes about `seconds`,
    or up to ten times that (0.5 s to MAX_SECONDS) until four steps are done and the `tuner` has tried its
    numbers of threads. `conversations`: full rows, with a loss mask."""
    tuner = tuner or ThreadTuner(1)
    longest = min(MAX_SECONDS, max(0.5, 10 * seconds))
    part = _affordable_part(config, settings, longest)
    torch.set_num_threads(settings.threads)
    # before any work: with too many threads while other programs run, steps are many times slower
    tuner.new_shape()
    keep_freed_memory()
    model = _random_model(part, settings)
    optimizer = Optimizer(model, settings)
    rng = np.random.default_rng(0)
    # shortest and longest, in turn
    lengths = settings.context if conversations else window_length(0.0, settings), settings.context
    paces: list[tuple[int, int, float]] = []  # (window length, threads, seconds per token)
    began = perf_counter()
    spent = 0.0
    while len(paces) < 2 or spent < (longest if len(paces) < 4 or tuner.trial is not None else seconds):
        length = lengths[len(paces) % 2]
        threads = tuner.threads
        rows = max(1, settings.tokens_per_step // length)
        tokens = rows * length
        ids = torch.from_numpy(rng.integers(part.vocab_size, size=(rows, length + 1))).to(settings.device)
        pace = _step_pace(model, optimizer, settings, ids, conversations, began + MAX_SECONDS)
        paces.append((length, threads, pace))
        tuner.add_step(pace * tokens, tokens)
        if pace * tokens > longest:
            break
        spent = perf_counter() - began
    chosen = [step for step in paces if step[1] == tuner.threads] or paces
    # the first steps are slower than the rest
    after_warm_up = chosen[2:] if len(chosen) >= 4 else chosen[-2:]
    median_paces = [
        median(pace for length, _, pace in after_warm_up if length == n)
        for n in {length for length, _, _ in after_warm_up}
    ]
    factor = estimated_speed(config, settings) / estimated_speed(part, settings)
    return factor * len(median_paces) / sum(median_paces)


def _affordable_part(config: ModelConfig, settings: TrainConfig, seconds: float) -> ModelConfig:
    """Reduce a model to the largest number of layers with which a step takes at most about `seconds`; all
    layers take the same time."""
    min_layers = max(1, int(MIN_LAYER_SHARE * config.num_hidden_layers))
    for layers in range(config.num_hidden_layers, min_layers, -1):
        part = replace(config, num_hidden_layers=layers)
        if settings.tokens_per_step / estimated_speed(part, settings) <= seconds:
            return part
    return replace(config, num_hidden_layers=min_layers)


@torch.no_grad()
def _random_model(config: ModelConfig, settings: TrainConfig) -> LanguageModel:
    """Return a model whose matrices have the same random numbers: drawing new ones for a large model takes a
    second or more."""
    model = new_model(config, settings)
    generator = torch.Generator(settings.device).manual_seed(0)
    block = torch.randn(BLOCK, device=model.cos.device, generator=generator)
    for weight in model.parameters():
        if weight.ndim >= 2:
            scale = 1 / math.sqrt(weight.shape[-1])
            for part in torch.split(weight.view(-1), BLOCK):
                torch.mul(block[: len(part)], scale, out=part)
    fold_frozen(model, settings, {})
    return model.train()


def _step_pace(
    model: LanguageModel, optimizer: Optimizer, settings: TrainConfig, ids: Tensor, masked: bool, end: float
) -> float:
    """Return the seconds per token of a step, which is interrupted at `end` (perf_counter)."""
    length = ids.shape[1] - 1
    loss_mask = torch.arange(length + 1) < COUNTED_SHARE * (length + 1)
    _synchronize(settings.device)
    began = perf_counter()
    done = 0
    for micro_batch in ids.chunk(micro_batches(model.config, settings)):
        mask = loss_mask.expand(micro_batch.shape) if masked else None
        accumulate_gradients(model, micro_batch, 1, mask)
        done += micro_batch.shape[0] * length
        if perf_counter() > end:
            break
    _synchronize(settings.device)
    gradients = perf_counter() - began
    optimizer.step(0.5)
    _synchronize(settings.device)
    update = perf_counter() - began - gradients
    return gradients / done + update / (len(ids) * length)


def _synchronize(device: str) -> None:
    """Wait until the device has finished all queued work."""
    getattr(torch, device).synchronize()  # torch.cuda, torch.mps, or torch.cpu, where nothing is queued
