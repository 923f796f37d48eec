"""Three ways to use equal time: a dense model, a model with sparse experts, and an ensemble of one model per domain.

    python -m tests.benchmarks.mixtures ENGLISH JAPANESE CODE [--time 3m] [--seed 0] [--experts 8] [--json]

Each text is one domain; its last tenth is held out. The dense and the sparse model train on all domains for the whole
time, each domain's model on its own domain for an equal share of it, with the tokenizer of the dense model. All
commands are `llm` itself with default options, except for the time, the seed and the number of experts. Prints for each
model: held-out bits per byte of each domain and of all together (network / adapting), parameters, active parameters,
and tokens per second of `llm generate`.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmcli.cli.options import parse_duration
from llmcli.formats import loading
from llmcli.formats.checkpoint import Checkpoint
from tests.benchmarks.llm_command import llm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domains", nargs="+", type=Path, help="text files, one per domain")
    parser.add_argument("--time", default="3m", help="of the dense, the sparse and all domains' models each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--experts", type=int, default=8, help="of the sparse model, per layer")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = rows(Path(directory), options.domains, parse_duration(options.time), options.seed, options.experts)
        if options.json:
            print(json.dumps({"time": options.time, "models": list(found)}))
            return
        names = [*(path.stem for path in options.domains), "all"]
        print(f"| model | {' | '.join(names)} | parameters | active | tokens/s |")
        print("|---" * (len(names) + 4) + "|")
        for row in found:
            bits = " | ".join(
                f"{row['network_bits_per_byte'][name]:.3f} / {row['bits_per_byte'][name]:.3f}" for name in names
            )
            print(f"| {row['model']} | {bits} | {row['parameters']:,} | {row['active']:,} "
                  f"| {row['tokens_per_second']:,.0f} |", flush=True)  # fmt: skip


def split(directory: Path, domains: list[Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Files of the training and of the held-out text of each domain, by its name."""
    training: dict[str, Path] = {}
    held_out: dict[str, Path] = {}
    for path in domains:
        text = path.read_text("utf-8")
        cut = text.rindex("\n", 0, len(text) * 9 // 10) + 1
        for kind, part, files in (("train", text[:cut], training), ("held-out", text[cut:], held_out)):
            files[path.stem] = directory / f"{path.stem}.{kind}.txt"
            files[path.stem].write_text(part, "utf-8")
    return training, held_out


def rows(directory: Path, domains: list[Path], total: float, seed: int, experts: int) -> Iterator[dict[str, Any]]:
    """The results of each model, as JSON. `total` is in seconds."""
    training, held_out = split(directory, domains)
    all_held_out = directory / "held-out.txt"
    all_held_out.write_text("".join(path.read_text("utf-8") for path in held_out.values()), "utf-8")

    def train(name: str, texts: list[Path], val: Path, seconds: float, *more: str) -> str:
        model = str(directory / f"{name}.safetensors")
        options = ["--val", str(val), "--time", f"{seconds}s", "--seed", str(seed), "-o", model, "-q"]
        llm("train", *map(str, texts), *options, *more)
        return model

    texts = list(training.values())
    dense = train("dense", texts, all_held_out, total)
    sparse = train("sparse", texts, all_held_out, total, "--like", dense, "--experts", str(experts))
    singles = [
        train(name, [path], held_out[name], total / len(domains), "--like", dense) for name, path in training.items()
    ]
    ensemble = str(directory / "ensemble.safetensors")
    llm("mix", *singles, "-o", ensemble, "-q")
    for model in (dense, sparse, *singles, ensemble):
        yield measure(model, {path.stem: held_out[path.stem] for path in domains})


def measure(model: str, texts: dict[str, Path]) -> dict[str, Any]:
    """The results of a model, as JSON; `texts` are the held-out texts of the domains, by their names."""
    paths = list(texts.values())
    results = json.loads(llm("eval", *map(str, paths), "-m", model, "--whole", "--json", "-q")[0])["results"]
    by_file = {Path(result["file"]).name if result["file"] else "all": result for result in results}
    loaded = loading.load_any(model)
    parameters = loaded.parameters
    active = loaded.config.active_parameters if isinstance(loaded, Checkpoint) else parameters
    prompt = paths[0].read_text("utf-8")[:200]
    speed = statistics.median(
        json.loads(llm("generate", "-m", model, "-n", "200", "--seed", "1", "--json", "--", prompt)[0])[
            "tokens_per_second"
        ]
        for _ in range(3)
    )
    rows = {name: by_file[path.name] for name, path in texts.items()} | {"all": by_file["all"]}
    figures = {
        key: {name: row[key] for name, row in rows.items()}
        for key in ("bits_per_byte", "network_bits_per_byte", "adapting_bits_per_byte")
    }
    return {
        "model": Path(model).stem, **figures, "parameters": parameters, "active": active,
        "tokens_per_second": speed,
    }  # fmt: skip


if __name__ == "__main__":
    main()
