"""Results of the published measurements: one JSON file each, and what a result depends on.

A file holds the measurement; the commit; the machine and the versions; `depends_on`, the hash or name of everything
that decides the result; the seconds it took; and what `measure.py`, `engines.py` or `mixtures.py` said. Results belong
together if they agree in every key of `depends_on` that they share: those of a compressor do not depend on the engine
or on the machine, so they stay when these change.
"""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import llmcli
from llmcli.errors import LLMError
from llmcli.formats import atomic_io
from tests.benchmarks.llm_command import ROOT
from tests.benchmarks.measure import Measurement
from tests.benchmarks.texts import TEXTS

DIRECTORY = Path(__file__).parent / "results"
ENGINE = "llmcli"
MACHINE, VERSIONS = "machine", "versions"
MIXTURE_TEXTS = ("tiny-shakespeare", "manual-ja", "python-library")  # English, Japanese, code
# The paths of this repository, beside the texts, whose content decides the result of a kind
SOURCES = {
    "ours": (ENGINE,), "fixed": (ENGINE,), "engines": (ENGINE,), "mixtures": (ENGINE,),
    "nanogpt": ("tests/benchmarks/nanogpt.py", "llmcli/evaluation/evaluator.py"),
    "xz": ("llmcli/evaluation/compressors.py",), "ppm": ("llmcli/evaluation/compressors.py",), "zpaq": (),
}  # fmt: skip
COMPRESSORS = ("xz", "ppm", "zpaq")  # whose results are those of any machine
PACKAGES = ("numpy", "tokenizers", "torch")  # whose versions matter to all others
ENGINE_PACKAGES = ("onnxruntime", "transformers", "xllamacpp")  # and to the speed of generation

Stored = dict[str, Any]  # a result as its file holds it


@dataclass(frozen=True)
class Environment:
    """Where measurements are made: the commit, its trees, the machine, the versions."""

    commit: str
    hashes: Mapping[str, str]  # of each path in SOURCES, as git computes them
    machine: Mapping[str, Any]
    versions: Mapping[str, str]

    def depends_on(self, measurement: Measurement) -> dict[str, str]:
        """What decides the result of a measurement."""
        texts = MIXTURE_TEXTS if measurement.kind == "mixtures" else filter(None, [measurement.text])
        found = {path: self.hashes[path] for path in SOURCES[measurement.kind]}
        found |= {f"text {name}": TEXTS[name].sha256 for name in texts}
        if measurement.kind not in COMPRESSORS:
            packages = (*PACKAGES, *(ENGINE_PACKAGES if measurement.kind == "engines" else ()))
            found[MACHINE] = machine_name(self.machine)
            found |= {f"version of {name}": self.versions.get(name, "none") for name in ("python", *packages)}
        return found

    def result(self, measurement: Measurement, seconds: float, result: Mapping[str, Any]) -> Stored:
        return {
            "measurement": asdict(measurement),
            "commit": self.commit,
            "depends_on": self.depends_on(measurement),
            MACHINE: dict(self.machine),
            VERSIONS: dict(self.versions),
            "seconds": round(seconds, 1),
            "result": dict(result),
        }


# ---- the present environment


def present() -> Environment:
    """That of this process. Raises LLMError if a source is modified: a result must belong to a commit."""
    paths = sorted({path for sources in SOURCES.values() for path in sources})
    if changed := _git("status", "--porcelain", "--", *paths):
        first = changed.split("\n")[0].split(maxsplit=1)[-1]
        raise LLMError(f"{first} differs from the last commit; commit it first, or measure in a clean work tree")
    hashes = {path: _git("rev-parse", f"HEAD:{path}") for path in paths}
    return Environment(_git("rev-parse", "--short=7", "HEAD"), hashes, _machine(), _versions())


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8")
    if run.returncode:
        raise LLMError(f"git {arguments[0]}: {run.stderr.strip()}")
    return run.stdout.strip()


def _machine() -> dict[str, Any]:
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {"cpu": _cpu(), "cores": os.cpu_count(), "memory_gb": round(gigabytes)}


def _cpu() -> str:
    """The name of the processor, with family and model, since some virtual machines give no more than the vendor."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n")[0].split("\n")
        found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        return f"{found['model name']} (family {found['cpu family']}, model {found['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "llmcli": llmcli.__version__}
    for package in (*PACKAGES, *ENGINE_PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine_name(machine: Mapping[str, Any]) -> str:
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB of memory"


# ---- files


def load(directory: Path = DIRECTORY) -> dict[str, Stored]:
    """The stored results by the names of their measurements."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(directory.glob("*.json"))}


def save(stored: Stored, directory: Path = DIRECTORY) -> None:
    """All at once, or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(stored, indent=1, ensure_ascii=False) + "\n"
    atomic_io.write(directory / f"{Measurement(**stored['measurement']).name}.json", text.encode("utf-8"))


def remove(names: Iterable[str], directory: Path = DIRECTORY) -> None:
    for name in names:
        (directory / f"{name}.json").unlink(missing_ok=True)


def differences(depends_on: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """The keys in which two results that should belong together differ.

    >>> differences({"llmcli": "12ab", "text a": "3"}, {"llmcli": "99ff", "text b": "4"})
    ['llmcli']
    """
    return [key for key, value in depends_on.items() if others.get(key, value) != value]


def check_consistent(results: Mapping[str, Stored]) -> None:
    """Raises LLMError if results are not of one source tree, one machine and the same versions."""
    together: dict[str, str] = {}
    for name, stored in results.items():
        if different := differences(stored["depends_on"], together):
            raise LLMError(
                f"the result {name} is of another {', '.join(different)} than those before it; "
                "python -m tests.benchmarks.publish --start-afresh measures again what is out of date"
            )
        together |= stored["depends_on"]
