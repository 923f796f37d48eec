"""Equal time, three ways: one dense model, one with sparse experts, one model for each domain and all of them mixed.

    python -m tests.benchmarks.mixtures ENGLISH JAPANESE CODE [--time 3m] [--seed 0] [--experts 8]

Each text is one domain; its last tenth is held out. The dense model and the sparse one learn from all domains for the
whole time, each domain's model from its own for an equal share of it, with the tokenizer of the dense one. All commands
are `llm` itself with nothing but `--time` and what is said here. Printed for each model: bits per byte of the held-out
part of each domain and of all together, parameters, active parameters, and tokens a second in `llm generate`.
"""

import argparse
import json
import tempfile
from pathlib import Path

from llmcli.cli.options import parse_duration
from llmcli.formats import loading
from llmcli.formats.checkpoint import Checkpoint
from tests.benchmarks.quality import llm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domains", nargs="+", type=Path)
    parser.add_argument("--time", default="3m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--experts", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        run(Path(directory), options.domains, parse_duration(options.time), options.seed, options.experts)


def run(where: Path, domains: list[Path], total: float, seed: int, experts: int) -> None:
    learned, held_out = {}, {}
    for path in domains:
        whole = path.read_text("utf-8")
        cut = whole.rindex("\n", 0, len(whole) * 9 // 10) + 1
        for kind, part, found in (("train", whole[:cut], learned), ("held-out", whole[cut:], held_out)):
            found[path.stem] = where / f"{path.stem}.{kind}.txt"
            found[path.stem].write_text(part, "utf-8")
    everything = where / "held-out.txt"
    everything.write_text("".join(path.read_text("utf-8") for path in held_out.values()), "utf-8")

    def train(name: str, texts: list[Path], val: Path, time: float, *more: str) -> str:
        model = str(where / f"{name}.safetensors")
        words = [*map(str, texts), "--val", str(val), "--time", f"{time}s", "--seed", str(seed), "-o", model, "-q"]
        llm("train", *words, *more)
        return model

    dense = train("dense", list(learned.values()), everything, total)
    sparse = train("sparse", list(learned.values()), everything, total, "--like", dense, "--experts", str(experts))
    singles = [train(name, [learned[name]], held_out[name], total / len(domains), "--like", dense) for name in learned]
    mixture = str(where / "mixture.safetensors")
    llm("mix", *singles, "-o", mixture, "-q")
    print(f"| model | {' | '.join(learned)} | all | parameters | active | tokens/s |")
    print("|---" * (len(domains) + 5) + "|")
    for model in (dense, sparse, *singles, mixture):
        print(row(model, list(held_out.values())), flush=True)


def row(model: str, texts: list[Path]) -> str:
    """A line of the table."""
    found = json.loads(llm("eval", *map(str, texts), "-m", model, "--whole", "--json", "-q")[0])["results"]
    by_file = {Path(one["file"]).name if one["file"] else "all": one["bits_per_byte"] for one in found}
    bits = [by_file[text.name] for text in texts] + [by_file["all"]]
    opened = loading.load_any(model)
    parameters = opened.parameters
    active = opened.config.active_parameters if isinstance(opened, Checkpoint) else parameters
    prompt = texts[0].read_text("utf-8")[:200]
    speeds = [
        json.loads(llm("generate", prompt, "-m", model, "-n", "200", "--seed", "1", "--json")[0])["tokens_per_second"]
        for _ in range(3)
    ]
    figures = [f"{value:.3f}" for value in bits]
    return f"| {Path(model).stem} | {' | '.join(figures)} | {parameters:,} | {active:,} | {sorted(speeds)[1]:,.0f} |"


if __name__ == "__main__":
    main()
