"""What training models of 100M to 7B parameters would cost on 1 to 64 GPUs: computed, not measured.

    python -m tests.benchmarks.scaling [--gpu h100] [--mfu 0.3] [--price 2.5] [--network-gbits 100]

Prints the tables of docs/scaling.md, and more about memory, networks and steps; --write FILE writes those of the page
into it, in place of those that are there. Every assumption is a field of CLUSTERS or a constant below, and an option.
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from llmcli.config import ModelConfig, TrainConfig
from llmcli.errors import LLMError
from llmcli.training.planning.cost_model import (
    HALF_PEAK_WIDTH,
    CorpusSize,
    Machine,
    Memory,
    estimated_speed,
    flops_per_token,
    memory_needed,
    micro_batches,
)
from llmcli.training.planning.model_shapes import SIZES, model_config
from llmcli.training.planning.plan import Plan, PlanRequest
from llmcli.training.planning.planner import make_plan
from llmcli.training.planning.task import Task
from tests.benchmarks.collectives import Link
from tests.benchmarks.step_model import Step, bytes_sent, same_link, step

GPUS = (1, 2, 4, 8, 16, 32, 64)
CONTEXT, VOCAB_SIZE, TOKENS_PER_PARAMETER = 2048, 32_768, 20.0  # the last is about that of arXiv:2203.15556, table 3
BYTES_PER_TOKEN = 4.5  # of English text with such a vocabulary
TABLES_OF_PAGE = 4  # the first ones that are printed: models, two of costs, networks
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
        return self.peak_tflops * 1e12 * self.mfu * width / (width + HALF_PEAK_WIDTH["cuda"])

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
class Target:
    """A model, and how many tokens it is trained on."""

    name: str
    model: ModelConfig
    tokens: int

    @property
    def context(self) -> int:
        return self.model.max_position_embeddings


@dataclass(frozen=True)
class Run:
    """A model on some GPUs."""

    target: Target
    gpus: int
    plan: Plan
    step: Step

    @property
    def tokens_per_step(self) -> int:
        return self.plan.train.context * self.plan.train.batch_size

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_step / self.step.seconds

    @property
    def hours(self) -> float:
        return self.target.tokens / self.tokens_per_second / 3600


def targets(context: int, vocab_size: int, tokens_per_parameter: float) -> list[Target]:
    """The models as `llm train --layers --width --context --vocab-size` makes them."""
    found = []
    for name, shape in SIZES.items():
        model = model_config(PlanRequest(device="cuda"), *shape, context, vocab_size, 0, induction=False)
        found.append(Target(name.upper(), model, int(tokens_per_parameter * model.parameters)))
    return found


def plan_of(target: Target, gpus: int, memory: float) -> Plan | None:
    """The plan of `llm train` for a model on GPUs that have so many bytes of memory; None if it does not fit."""
    model = target.model
    request = PlanRequest(
        epochs=1, layers=model.num_hidden_layers, width=model.hidden_size, context=target.context, device="cuda",
        dtype="bfloat16", processes=gpus,
    )  # fmt: skip
    try:
        text = CorpusSize(target.tokens, int(BYTES_PER_TOKEN * target.tokens))
        return make_plan(
            Task(request, text, model.vocab_size, 0), Machine(estimated_speed, Memory(memory, math.inf))
        )  # fmt: skip
    except LLMError:
        return None


def run(target: Target, gpus: int, cluster: Cluster) -> Run | None:
    """A run on some GPUs of a cluster; None if it does not fit."""
    plan = plan_of(target, gpus, cluster.memory_gb * 1e9)
    if plan is None:
        return None
    rate, links = cluster.rate(plan.model), same_link(cluster.link(gpus))
    return Run(target, gpus, plan, step(plan.model, plan.train, gpus, rate, links, plan.sharded))


def least_memory(target: Target, gpus: int, sharded: bool) -> float:
    """Bytes per GPU for a step of one window each."""
    train = TrainConfig(steps=1, context=target.context, batch_size=gpus, device="cuda", dtype="bfloat16")
    return memory_needed(target.model, train, gpus, sharded=sharded).device


# ---- tables


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first, *lines = (f"| {' | '.join(row)} |" for row in (head, *rows))
    return "\n".join([first, "|---" * len(head) + "|", *lines])


def rounded(value: float) -> str:
    """Two digits, since the assumptions are no better.

    >>> [rounded(value) for value in (0, 0.0123, 4.56, 78.9, 12345)]
    ['0', '0.012', '4.6', '79', '12,000']
    """
    if not value:
        return "0"
    digits = 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}"


def models_table(models: Sequence[Target]) -> str:
    rows = []
    for target in models:
        model, per_token = target.model, flops_per_token(target.model, target.context)
        size = f"{model.num_hidden_layers} x {model.hidden_size:,}"
        rows.append(
            [target.name, size, f"{model.parameters / 1e6:,.0f}", f"{per_token / 1e9:.2f}",
             f"{target.tokens / 1e9:.1f}", f"{per_token * target.tokens:.1e}",
             rounded(BYTES_PER_TOKEN * target.tokens / 1e9)]
        )  # fmt: skip
    head = [
        "model",
        "layers x width",
        "million parameters",
        "GFLOPs per token",
        "billion tokens",
        "FLOPs",
        "GB of text",
    ]
    return table(head, rows)


def memory_table(models: Sequence[Target]) -> str:
    """GB per GPU with one window each."""
    rows = []
    for target in models:
        for sharded in (False, True):
            sizes = [least_memory(target, gpus, sharded) if gpus > 1 or not sharded else None for gpus in GPUS]
            cells = ["" if size is None else f"{size / 1e9:.1f}" for size in sizes]
            rows.append([target.name, "sharded" if sharded else "replicated", *cells])
    return table(["model", "weights", *map(str, GPUS)], rows)


def cost_table(models: Sequence[Target], cluster: Cluster) -> str:
    """Time and price by model and number of GPUs."""

    def cell(found: Run | None) -> str:
        if found is None:
            return "does not fit"
        time = f"{rounded(found.hours)} h" if found.hours < 48 else f"{rounded(found.hours / 24)} d"
        return f"{time}, ${rounded(found.hours * found.gpus * cluster.price)}{' (s)' if found.plan.sharded else ''}"

    rows = [[target.name, *(cell(run(target, gpus, cluster)) for gpus in GPUS)] for target in models]
    return table(["model", *map(str, GPUS)], rows)


def step_table(models: Sequence[Target], cluster: Cluster) -> str:
    """What a step consists of."""
    runs = [run(target, gpus, cluster) for target in models for gpus in GPUS]
    rows = [[found.target.name, str(found.gpus), *cells_of(found)] for found in runs if found]
    head = ["model", "GPUs", "weights", "GB per GPU", "tokens per step", "micro-batches", "GB sent",
            "compute, ms", "communication, ms", "not overlapped, ms", "tokens/s", "GPU-hours"]  # fmt: skip
    return table(head, rows)


def cells_of(run: Run) -> list[str]:
    """A row of `step_table`."""
    plan, gpus = run.plan, run.gpus
    shape = (plan.model, plan.train, gpus)
    return [
        "sharded" if plan.sharded else "replicated",
        f"{memory_needed(*shape, sharded=plan.sharded).device / 1e9:.0f}", f"{run.tokens_per_step:,}",
        str(micro_batches(*shape)), rounded(bytes_sent(*shape, plan.sharded) / 1e9), *times_of(run.step),
        rounded(run.tokens_per_second), rounded(run.hours * gpus),
    ]  # fmt: skip


def times_of(time: Step) -> list[str]:
    """Compute, communication, and what of it is not overlapped, in milliseconds."""
    return [rounded(1e3 * seconds) for seconds in (time.compute, time.communication, time.exposed)]


def network_table(target: Target, cluster: Cluster, gpus: int) -> str:
    """One model on several machines, by their network."""
    rows = []
    for gbits in NETWORKS:
        if found := run(target, gpus, replace(cluster, network_gbits=gbits)):
            share = f"{100 * found.step.compute / found.step.seconds:.0f} %"
            rows.append([f"{gbits:,}", *times_of(found.step), share])
    head = ["Gbit/s per machine", "compute, ms", "communication, ms", "not overlapped, ms", "share of compute"]
    return table(head, rows)


def report(models: Sequence[Target], clusters: Mapping[str, Cluster]) -> Iterator[tuple[str, str]]:
    """Headings and tables; the first TABLES_OF_PAGE are those of docs/scaling.md."""
    yield "Models", models_table(models)
    for name, cluster in clusters.items():
        yield f"{name}: time and price, by the number of GPUs; (s): sharded", cost_table(models, cluster)
    for name, cluster in clusters.items():
        target, gpus = next(each for each in models if each.name == "1B"), 2 * cluster.gpus_per_machine
        yield f"{name}: {target.name} on two machines, {gpus} GPUs", network_table(target, cluster, gpus)
    yield "GB per GPU, one window each, by the number of GPUs", memory_table(models)
    for name, cluster in clusters.items():
        yield f"{name}: a step", step_table(models, cluster)


def with_tables(page: str, tables: Sequence[str]) -> str:
    """A page in which the tables, in order, stand in place of those with the same first row."""
    position = 0
    for new in tables:
        start = page.index(new.split("\n")[0], position)
        end = page.index("\n\n", start)
        page = page[:start] + new + page[end:]
        position = start + len(new)
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", choices=CLUSTERS, nargs="+", default=list(CLUSTERS), help="assumptions to start from")
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE)
    parser.add_argument("--tokens-per-parameter", type=float, default=TOKENS_PER_PARAMETER)
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page with these tables, to be updated")
    for field in fields(Cluster):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int if field.type is int else float)
    options = parser.parse_args(arguments)
    given = {field.name: getattr(options, field.name) for field in fields(Cluster)}
    changes = {name: value for name, value in given.items() if value is not None}
    clusters = {name: replace(CLUSTERS[name], **changes) for name in options.gpu}
    found = list(report(targets(options.context, options.vocab_size, options.tokens_per_parameter), clusters))
    if options.write:
        page = with_tables(options.write.read_text("utf-8"), [new for _, new in found][:TABLES_OF_PAGE])
        options.write.write_text(page, "utf-8")
    else:
        print("\n\n".join(f"{heading}\n\n{rows}" for heading, rows in found))


if __name__ == "__main__":
    main()
