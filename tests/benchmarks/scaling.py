"""What training models of 100M to 7B parameters would cost on 1 to 64 GPUs: computed, not measured.

    python -m tests.benchmarks.scaling [--gpu h100] [--mfu 0.3] [--price 2.5] [--network-gbits 100]

Prints the tables of docs/scaling.md. Every assumption is a field of CLUSTERS or a constant below, and an option.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from llmcli.config import ModelConfig, TrainConfig
from llmcli.errors import LLMError
from llmcli.training import memory_fit, rules
from llmcli.training.cost_model import GPU_HALF_PEAK_WIDTH, CorpusSize, Memory, flops_per_token
from llmcli.training.model_shapes import model_config
from llmcli.training.plan import Request
from tests.benchmarks.collectives import Link
from tests.benchmarks.step_model import Step, bytes_sent, memory, same_link, step

SHAPES = {"100M": (10, 640), "350M": (22, 1024), "1B": (18, 2048), "3B": (24, 3072), "7B": (32, 4096)}
GPUS = (1, 2, 4, 8, 16, 32, 64)
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022, arXiv:2203.15556, table 3
CONTEXT, VOCAB_SIZE = 2048, 32_768
BYTES_PER_TOKEN = 4.5  # of English text with such a vocabulary
NETWORKS = (10, 100, 400, 3200)  # Gbit/s per machine, in the table of networks


@dataclass(frozen=True)
class Cluster:
    """Machines with GPUs, and what is assumed of them. The fields are options of the command."""

    peak_tflops: float  # of a GPU, in bfloat16 without sparsity
    memory_gb: float  # of a GPU
    mfu: float  # share of the peak that training reaches with very wide matrices
    gpus_per_machine: int
    link_gbytes: float  # GB/s from each GPU to the next one in a machine
    network_gbits: float  # Gbit/s out of a machine, of all its ports together
    link_share: float  # of those two that collective operations reach
    latency_us: float  # of one message between two GPUs; a collective operation has log2(N) one after the other
    price: float  # of a GPU for an hour, in dollars

    def rate(self, model: ModelConfig) -> float:
        """FLOP/s of a GPU: narrower matrices run further below the peak, as the planner assumes too."""
        width = model.hidden_size
        return self.peak_tflops * 1e12 * self.mfu * width / (width + GPU_HALF_PEAK_WIDTH)

    def link(self, gpus: int) -> Link:
        """Between all GPUs. A ring through several machines leaves each once, so the ports of a machine add up."""
        network = self.network_gbits / 8 if gpus > self.gpus_per_machine else math.inf
        bandwidth = self.link_share * min(self.link_gbytes, network) * 1e9
        return Link(self.latency_us * 1e-6 * math.ceil(math.log2(max(gpus, 2))), bandwidth)


CLUSTERS = {
    # NVIDIA's data sheet of the H100 SXM: 989 TFLOPS, 80 GB, NVLink 900 GB/s in both directions together. A DGX H100
    # has eight GPUs and eight ports of 400 Gbit/s. MFU: 38 to 43 % is reported for Llama 3 on H100 (arXiv:2407.21783,
    # table 4). The price is a round figure, not an offer.
    "h100": Cluster(989, 80, 0.4, 8, 450, 3200, 0.8, 10, 3.0),
    # NVIDIA's Ada paper on the RTX 4090: 165 TFLOPS with sums in float32, 24 GB. PCIe 4.0 x16: 32 GB/s in each
    # direction, here halved, since data between these GPUs passes through main memory. The network is an assumption:
    # one port of 100 Gbit/s per machine. The price is a round figure, not an offer.
    "24gb": Cluster(165, 24, 0.4, 8, 16, 100, 0.8, 20, 0.5),
}


@dataclass(frozen=True)
class Run:
    """A model on some GPUs."""

    sharded: bool
    memory: float  # bytes per GPU
    tokens_per_step: int
    sent: float  # bytes per step and GPU
    step: Step

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_step / self.step.seconds


def shape(name: str, context: int, vocab_size: int) -> ModelConfig:
    """As `llm train --layers --width --context --vocab-size` makes it."""
    return model_config(Request(), *SHAPES[name], context, vocab_size, 0, induction=False)


def training_tokens(model: ModelConfig) -> int:
    return TOKENS_PER_PARAMETER * model.parameters


def batch_windows(model: ModelConfig, divisor: int = 1) -> int:
    """Windows per step that the planner chooses for a GPU."""
    tokens, context = training_tokens(model), model.max_position_embeddings
    text = CorpusSize(tokens, int(BYTES_PER_TOKEN * tokens))
    return rules.batch_size(Request(device="cuda"), text, context, tokens, divisor).value


def needed(model: ModelConfig, gpus: int, windows: int, sharded: bool) -> float:
    """Bytes per GPU for a step of so many windows."""
    context = model.max_position_embeddings
    train = TrainConfig(
        steps=1, context=context, batch_size=-(-windows // gpus), device="cuda", dtype="bfloat16", recipe="muon"
    )
    return memory(model, train, gpus, sharded)


def largest_batch(model: ModelConfig, gpus: int, gigabytes: float, sharded: bool) -> int | None:
    """Windows per step that fit, at most those that the planner wants; None if none do."""

    def of(model: ModelConfig, divisor: int) -> Memory:
        return Memory(needed(model, gpus, batch_windows(model, divisor), sharded), 0.0)

    try:
        fit = memory_fit.fit([model], Memory(gigabytes * 1e9, math.inf), of, fixed_batch=False, options="")
    except LLMError:
        return None
    return batch_windows(model, fit.batch_divisor)


def plan(model: ModelConfig, gpus: int, cluster: Cluster) -> Run | None:
    """Replicated weights if they fit, else sharded ones; None if these do not fit either."""
    for sharded in (False, True)[: 1 if gpus == 1 else 2]:
        windows = largest_batch(model, gpus, cluster.memory_gb, sharded)
        if windows:
            tokens = windows * model.max_position_embeddings
            links = same_link(cluster.link(gpus))
            time = step(model, model.max_position_embeddings, tokens, gpus, cluster.rate(model), links, sharded)
            sent = bytes_sent(model, gpus, sharded)
            return Run(sharded, needed(model, gpus, windows, sharded), tokens, sent, time)
    return None


# ---- tables


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def rounded(value: float) -> str:
    """Two digits, since the assumptions are no better.

    >>> [rounded(value) for value in (0, 0.0123, 4.56, 78.9, 12345)]
    ['0', '0.012', '4.6', '79', '12,000']
    """
    if not value:
        return "0"
    digits = 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}"


def models_table(models: dict[str, ModelConfig]) -> str:
    rows = []
    for name, model in models.items():
        per_token, tokens = flops_per_token(model, model.max_position_embeddings), training_tokens(model)
        size = f"{model.num_hidden_layers} x {model.hidden_size:,}"
        rows.append(
            [name, size, f"{model.parameters:,}", f"{per_token / 1e9:.2f}", f"{tokens / 1e9:.1f}",
             f"{per_token * tokens:.1e}", f"{BYTES_PER_TOKEN * tokens / 1e9:,.0f}"]
        )  # fmt: skip
    head = ["model", "layers x width", "parameters", "GFLOPs per token", "billion tokens", "FLOPs in all", "GB of text"]
    return table(head, rows)


def memory_table(models: dict[str, ModelConfig]) -> str:
    """GB per GPU with one window each."""
    rows = []
    for name, model in models.items():
        for sharded in (False, True):
            cells = [
                f"{needed(model, gpus, gpus, sharded) / 1e9:.1f}" if gpus > 1 or not sharded else "" for gpus in GPUS
            ]
            rows.append([name, "sharded" if sharded else "replicated", *cells])
    return table(["model", "weights", *map(str, GPUS)], rows)


def cost_table(models: dict[str, ModelConfig], cluster: Cluster) -> str:
    """Days and price by model and number of GPUs."""
    rows = []
    for name, model in models.items():
        cells = []
        for gpus in GPUS:
            run = plan(model, gpus, cluster)
            if run is None:
                cells.append("does not fit")
                continue
            hours = training_tokens(model) / run.tokens_per_second / 3600
            time = f"{rounded(hours)} h" if hours < 48 else f"{rounded(hours / 24)} d"
            cells.append(f"{time}, ${rounded(hours * gpus * cluster.price)}{' (s)' if run.sharded else ''}")
        rows.append([name, *cells])
    return table(["model", *map(str, GPUS)], rows)


def step_table(models: dict[str, ModelConfig], cluster: Cluster) -> str:
    """What a step consists of."""
    rows = []
    for name, model in models.items():
        for gpus in GPUS:
            run = plan(model, gpus, cluster)
            if run is None:
                continue
            time = run.step
            hours = training_tokens(model) / run.tokens_per_second / 3600
            rows.append(
                [name, str(gpus), "sharded" if run.sharded else "replicated", f"{run.memory / 1e9:.0f}",
                 f"{run.tokens_per_step:,}", rounded(run.sent / 1e9), rounded(1e3 * time.compute),
                 rounded(1e3 * time.communication), rounded(1e3 * time.exposed), rounded(run.tokens_per_second),
                 rounded(hours * gpus)]
            )  # fmt: skip
    head = ["model", "GPUs", "weights", "GB per GPU", "tokens per step", "GB sent", "compute, ms", "communication, ms",
            "not overlapped, ms", "tokens/s", "GPU-hours"]  # fmt: skip
    return table(head, rows)


def network_table(model: ModelConfig, cluster: Cluster, gpus: int) -> str:
    """One model on several machines, by their network."""
    rows = []
    for gbits in NETWORKS:
        run = plan(model, gpus, replace(cluster, network_gbits=gbits))
        if run:
            time = run.step
            busy = f"{100 * time.compute / time.seconds:.0f} %"
            cells = [rounded(1e3 * time.compute), rounded(1e3 * time.exposed), busy]
            rows.append([f"{gbits:,}", *cells])
    return table(["Gbit/s per machine", "compute, ms", "not overlapped, ms", "share of compute"], rows)


def report(models: dict[str, ModelConfig], clusters: dict[str, Cluster]) -> Iterator[str]:
    """Headings and tables."""
    yield "Models\n\n" + models_table(models)
    yield "GB per GPU, one window each, by the number of GPUs\n\n" + memory_table(models)
    for name, cluster in clusters.items():
        yield f"{name}: time and price, by the number of GPUs; (s): sharded\n\n{cost_table(models, cluster)}"
    for name, cluster in clusters.items():
        yield f"{name}: a step\n\n{step_table(models, cluster)}"
    for name, cluster in clusters.items():
        gpus = 2 * cluster.gpus_per_machine
        yield f"{name}: 1B on {gpus} GPUs in two machines\n\n{network_table(models['1B'], cluster, gpus)}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", choices=CLUSTERS, nargs="+", default=list(CLUSTERS), help="assumptions to start from")
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE)
    for field in fields(Cluster):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type if callable(field.type) else float)
    options = parser.parse_args(arguments)
    given = {field.name: getattr(options, field.name) for field in fields(Cluster)}
    changes = {name: value for name, value in given.items() if value is not None}
    models = {name: shape(name, options.context, options.vocab_size) for name in SHAPES}
    clusters = {name: replace(CLUSTERS[name], **changes) for name in options.gpu}
    print("\n\n".join(report(models, clusters)))


if __name__ == "__main__":
    main()
