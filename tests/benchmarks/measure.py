"""One measurement: a text, what is trained or compressed on it, a time budget, a seed, and what else the machine does.

    python -m tests.benchmarks.measure CORPUS... [--kind ours] [--budgets 20s,60s,142s] [--seeds 3]
                                       [--beside nothing] [--options "--layers 3"] [--json]

The last tenth of a corpus is held out, as `llm train` does it. Kinds:

- ours: `llm train CORPUS --time BUDGET --seed SEED` with all defaults, then `llm eval`, each a process of its own;
- fixed: the same with a fixed shape (FIXED), so that speeds can be compared;
- nanogpt: the recipe that nanoGPT's README gives for a CPU (nanogpt.py), for its own number of steps or for BUDGET;
- xz, ppm (static, and adapting to the held-out text), zpaq (`-m5`, adapting): the bytes that the held-out text adds to
  the compressed size of the training text.

Prints one line for each, or, with --json, everything as JSON. `publish.py` starts it for each published measurement.
"""

import argparse
import json
import os
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcli.cli.options import parse_duration
from llmcli.evaluation.figures import ADAPTING, NETWORK
from tests.benchmarks import load
from tests.benchmarks.llm_command import llm

FIXED = ("--layers", "3", "--width", "128", "--batch-tokens", "2048")
MODEL = "model.safetensors"
LEFT_OUT = {"curve", "samples", "seen_bytes", "plan", "verdict", "memorised", "corpus", "versions"}  # of the record

Result = dict[str, Any]  # as JSON


@dataclass(frozen=True)
class Measurement:
    """What is measured."""

    kind: str
    text: str = ""  # its name; empty where several are used
    budget: str = ""  # a value of --time; empty: as long as it takes
    seed: int = 0
    beside: str = load.NOTHING  # one of load.CHOICES

    @property
    def name(self) -> str:
        """
        >>> Measurement("ours", "novel-en", "60s", 1, "first half").name
        'novel-en.ours.60s.first-half.seed1'
        >>> Measurement("xz", "novel-en").name
        'novel-en.xz'
        """
        beside = self.beside.replace(" ", "-") if self.beside != load.NOTHING else ""
        seed = f"seed{self.seed}" if self.budget or self.kind == "nanogpt" else ""
        return ".".join(filter(None, (self.text, self.kind, self.budget, beside, seed)))

    @property
    def seconds(self) -> float:
        """The time budget; 0 if there is none."""
        return parse_duration(self.budget) if self.budget else 0.0


# ---- training


def ours(measurement: Measurement, text: Path, options: tuple[str, ...] = ()) -> Result:
    """One run of `llm train` or, if the measurement says so, three at once; then the score of each."""
    with tempfile.TemporaryDirectory() as parent:
        count = 3 if measurement.beside == load.THREE else 1
        directories = [Path(parent) / str(number) for number in range(count)]
        for directory in directories:
            directory.mkdir()
            shutil.copyfile(text, directory / text.name)
        scenario = load.NOTHING if measurement.beside == load.THREE else measurement.beside
        arguments = ["--time", measurement.budget, "--seed", str(measurement.seed), "-o", MODEL, "-q", *options]
        with load.beside(scenario, measurement.seconds), ThreadPoolExecutor(count) as pool:
            trained = pool.map(lambda at: llm("train", text.name, *arguments, directory=at), directories)
            costs = [(finished.seconds, finished.megabytes) for finished in trained]
        runs = [
            {"seconds": round(seconds, 2), "megabytes": round(megabytes), **_trained(directory, text.name)}
            for directory, (seconds, megabytes) in zip(directories, costs, strict=True)
        ]
    return {"runs": runs}


def _trained(directory: Path, text: str) -> Result:
    """The model, its training record and its score."""
    info = json.loads(llm("inspect", MODEL, "--json", directory=directory).output)
    record = info["training"]
    if record["interrupted"]:
        sys.exit("llm train was interrupted")
    rows = {row["name"]: row for row in record["plan"]}
    return {
        "parameters": info["parameters"],
        "plan": {name: row["value"] for name, row in rows.items()},
        "planned_tokens_per_second": planned_speed(rows.get("training tokens", {}).get("reason", "")),
        "record": {key: value for key, value in record.items() if key not in LEFT_OUT},
        "eval": json.loads(llm("eval", text, "-m", MODEL, "--json", "-q", directory=directory).output),
    }


def planned_speed(reason: str) -> int | None:
    """The tokens per second that the plan assumed.

    >>> planned_speed("about 1 epoch at 39,918 tokens/s")
    39918
    """
    match = re.search(r"at ([\d,]+) tokens/s", reason)
    return int(match[1].replace(",", "")) if match else None


def fixed(measurement: Measurement, text: Path) -> Result:
    return ours(measurement, text, FIXED)


def nanogpt(measurement: Measurement, text: Path) -> Result:
    from tests.benchmarks.nanogpt import measure

    bits, steps, seconds = measure(text.read_text("utf-8"), measurement.seconds or None, measurement.seed)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {
        "bits_per_byte": round(bits, 6), "steps": steps, "seconds": round(seconds, 2), "megabytes": round(megabytes)
    }  # fmt: skip


# ---- compressors


def split(text: Path) -> tuple[bytes, bytes]:
    """The training part and the held-out part of a text, as `llm train` divides it."""
    from llmcli.training.planning import recipe
    from tests.data.corpora import read_corpus

    corpus = read_corpus([str(text)])
    start = corpus.text_bytes - round(corpus.text_bytes * recipe.HELD_OUT)
    return corpus.cut(0, start).utf8(), corpus.cut(start).utf8()


def xz(measurement: Measurement, text: Path) -> Result:
    from llmcli.evaluation.compressors import xz_size

    return _added(text, lambda data, _: xz_size(data))


def ppm(measurement: Measurement, text: Path) -> Result:
    from llmcli.evaluation.compressors import ppm_size

    past, held_out = split(text)
    static = 8 * static_ppm_bytes(held_out, past) / len(held_out)
    return {**_added(text, lambda data, _: ppm_size(data)), "static_bits_per_byte": round(static, 6)}


def static_ppm_bytes(text: bytes, past: bytes) -> int:
    """Bytes of all pieces of a text, each compressed right after the past: what `compressors.static_ppm` estimates from
    some of them. The state of PPM cannot be copied, but a process that knows the past can be forked for each piece."""
    import pyppmd

    from llmcli.evaluation.compressors import PIECE_BYTES, PPM_ORDER, memory

    encoder = pyppmd.Ppmd7Encoder(PPM_ORDER, memory(len(past) + PIECE_BYTES))
    encoder.encode(past)

    def size(piece: bytes) -> int:
        """Bytes from here to the end of the stream."""
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.write(writer, str(len(encoder.encode(piece)) + len(encoder.flush())).encode())
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as answer:
            found = int(answer.read())
        os.waitpid(child, 0)
        return found

    end = size(b"")
    return sum(size(text[start : start + PIECE_BYTES]) - end for start in range(0, len(text), PIECE_BYTES))


def zpaq(measurement: Measurement, text: Path) -> Result:
    program = shutil.which("zpaq")
    if not program:
        sys.exit("error: zpaq is not installed; on Debian: apt install zpaq")

    def size(data: bytes, directory: Path) -> int:
        (directory / "text").write_bytes(data)
        archive = directory / "archive.zpaq"
        archive.unlink(missing_ok=True)
        subprocess.run([program, "add", archive.name, "text", "-m5"], cwd=directory, capture_output=True, check=True)
        return archive.stat().st_size

    return _added(text, size)


def _added(text: Path, size: Callable[[bytes, Path], int]) -> Result:
    """What the held-out part adds to the compressed size of the training part, in bits per byte."""
    past, held_out = split(text)
    with tempfile.TemporaryDirectory() as directory:
        before, after = (size(data, Path(directory)) for data in (past, past + held_out))
    bits = (after - before) * 8 / len(held_out)
    return {"bits_per_byte": round(bits, 6), "bytes": len(held_out), "past_bytes": len(past)}


KINDS: dict[str, Callable[[Measurement, Path], Result]] = {
    "ours": ours, "fixed": fixed, "nanogpt": nanogpt, "xz": xz, "ppm": ppm, "zpaq": zpaq,
}  # fmt: skip


# ---- the command


def score(run: Mapping[str, Any], figure: str) -> float | None:
    """NETWORK or ADAPTING of a run, by `llm eval`; None if the model does not adapt."""
    row = run["eval"]["results"][0]
    network = row.get("bits_per_byte_without_cache")  # only of a model with an n-gram cache
    if figure == ADAPTING:
        return None if network is None else float(row["bits_per_byte"])
    return float(row["bits_per_byte"] if network is None else network)


def _shown(runs: Sequence[Result], figure: str) -> str:
    """One of the two figures of each run."""
    found = [score(run, figure) for run in runs]
    return f"{figure} {' '.join('-' if bits is None else f'{bits:.3f}' for bits in found)}"


def summary(result: Result) -> str:
    """A result in one line."""
    if "runs" in result:
        runs = result["runs"]
        speed = sum(run["record"]["clock"]["tokens_per_second"] for run in runs)
        planned = runs[0]["planned_tokens_per_second"]
        return (
            f"{_shown(runs, NETWORK)}, {_shown(runs, ADAPTING)} bits per byte, {runs[0]['parameters']:,} parameters, "
            f"{max(run['seconds'] for run in runs):.1f} s, "
            f"{max(run['megabytes'] for run in runs):,} MB, {speed:,} tokens/s"
            + (f" (planned {planned * len(runs):,})" if planned else "")
            + f", {runs[0]['record']['epochs']:.2f} epochs"
        )
    return ", ".join(f"{key} {value}" for key, value in result.items() if not isinstance(value, (dict, list)))


def _requested(options: argparse.Namespace) -> Iterator[tuple[Measurement, Path]]:
    budgets = options.budgets.split(",") if options.kind in ("ours", "fixed", "nanogpt") else [""]
    seeds = range(options.first_seed, options.first_seed + options.seeds) if any(budgets) else [options.first_seed]
    for corpus in options.corpus:
        for budget in budgets:
            for seed in seeds:
                yield Measurement(options.kind, corpus.stem, budget, seed, options.beside), corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="+", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="ours")
    parser.add_argument("--budgets", default="20s,60s,142s", help="values of --time")
    parser.add_argument("--seeds", type=int, default=3, help="runs for each budget")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--beside", choices=load.CHOICES, default=load.NOTHING, help="what else the machine does")
    parser.add_argument("--options", default="", help="more options of llm train, for the kind ours")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    all_runs: dict[tuple[str, str], list[Result]] = {}
    for measurement, corpus in _requested(options):
        if options.options:
            result = ours(measurement, corpus, tuple(shlex.split(options.options)))
        else:
            result = KINDS[measurement.kind](measurement, corpus)
        print(json.dumps(result) if options.json else f"{measurement.name}: {summary(result)}", flush=True)
        all_runs.setdefault((measurement.text, measurement.budget), []).extend(result.get("runs", []))
    if not options.json and options.seeds > 1:
        for (text, budget), runs in all_runs.items():
            for figure in (NETWORK, ADAPTING):
                if values := [bits for run in runs if (bits := score(run, figure)) is not None]:
                    print(f"{text}, {budget}: {figure}, median {statistics.median(values):.3f} of {len(values)}")


if __name__ == "__main__":
    main()
