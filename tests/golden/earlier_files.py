"""Model files that earlier versions of llmcli wrote, and what those versions said of them (see record_files.py).

A version that reads such a file must give the same: tokens, log probabilities, bits per byte, exported files.
"""

import hashlib
import importlib.util
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.golden.results import described, environment, invoke

FILES = Path(__file__).parent / "files"
RECORD = "record.json"
CORPUS, RESUME = "corpus.txt", "stopped.resume.safetensors"
STOPPED_RUN = (  # the program that left the resume file
    f"import llmcli; [*llmcli.train({CORPUS!r}, 'stopped.safetensors', steps=4000, layers=1, width=4, heads=2, "
    "kv_heads=1, batch_tokens=512, threads=1, seed=1, tie=True, context=32, vocab_size=280)]"
)
TOLERANCE = 1e-5  # of log probabilities and bits per byte, which are printed with 6 decimals
PROMPTS = ("Anna", "Ben likes milk.\n")
EVALUATED = "Ben likes milk and りんご likes rice🍎.\nCarla? Anna likes tea.\n"
LONGEST_VALUE = 100  # characters of a value of an exported file's metadata; of longer ones a hash is recorded

VERSIONS = sorted(path.name for path in FILES.iterdir() if path.is_dir()) if FILES.exists() else []


def record_of(version: str) -> dict[str, Any]:
    return json.loads((FILES / version / RECORD).read_text("utf-8"))


def differences(version: str, kind: str) -> list[str]:
    """Where what we say of a model file differs from what the version said that wrote it, one line each."""
    recorded = record_of(version)["models"][kind]
    with tempfile.TemporaryDirectory() as name, environment(Path(name)):
        shutil.copy(FILES / version / f"{kind}.safetensors", name)
        found = different_texts(kind, recorded["texts"])
        if "bits_per_byte" in recorded:
            found += different_evaluation(kind, recorded["bits_per_byte"])
        for form, exported in recorded["exports"].items():
            if form == "hf" or importlib.util.find_spec(form):
                found += different_export(kind, form, exported)
    return [f"{version}/{kind}: {line}" for line in found]


def different_texts(kind: str, recorded: dict[str, Any]) -> list[str]:
    """Where greedy texts differ from the recorded ones."""
    found = []
    for prompt, text in recorded.items():
        words = f"generate '{prompt}' -m {kind}.safetensors -t 0 -n {len(text['tokens'])} --json --literal"
        exit_code, output = invoke(words)
        tokens = [[token["id"], token["logprob"]] for token in json.loads(output)["tokens"]] if not exit_code else []
        pairs = zip(tokens, text["tokens"], strict=False)
        same = [one == other and is_close(p, other_p) for (one, p), (other, other_p) in pairs]
        if len(tokens) != len(text["tokens"]) or not all(same):
            found.append(f"{prompt!r} is continued by {tokens}, recorded {text['tokens']}")
    return found


def different_evaluation(kind: str, recorded: float) -> list[str]:
    """Whether a text has other bits per byte than the recorded ones."""
    Path("evaluated.txt").write_bytes(EVALUATED.encode())
    exit_code, output = invoke(f"eval evaluated.txt -m {kind}.safetensors --json")
    value = json.loads(output)["results"][0]["bits_per_byte"] if not exit_code else math.nan
    return [] if is_close(value, recorded) else [f"{value} bits per byte, recorded {recorded}"]


def is_close(value: float, recorded: float) -> bool:
    return math.isclose(value, recorded, rel_tol=0, abs_tol=TOLERANCE)


def export_name(form: str) -> str:
    return "exported" if form == "hf" else f"exported.{form}"


def exported_values(path: Path) -> dict[str, Any]:
    """The content of an exported file, or of the files of a directory, as values and hashes by name."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".safetensors"))
        return {f"{file.name} {key}": value for file in files for key, value in exported_values(file).items()}
    content = described(path, exact=True)
    if path.suffix == ".json":
        return {key: shortened(value) for key, value in content.items()}
    values = {key: shortened(value) for key, value in content["metadata"].items()}
    return values | {"tensors": shortened(sorted(content["tensors"].items()))}


def shortened(value: Any) -> Any:
    """A value of JSON, or the hash of a long one."""
    text = json.dumps(value, sort_keys=True, default=lambda other: other.tolist())
    return json.loads(text) if len(text) <= LONGEST_VALUE else hashlib.sha256(text.encode()).hexdigest()[:16]


def different_export(kind: str, form: str, recorded: dict[str, Any]) -> list[str]:
    """Where an export differs from the recorded one; what we add is no difference."""
    exit_code, _ = invoke(f"export {kind}.safetensors {export_name(form)} --to {form} --name {kind}")
    if exit_code:
        return [f"export to {form} ends with exit code {exit_code}"]
    found = exported_values(Path(export_name(form)))
    return [
        f"exported {key} is {found.get(key)!r}, recorded {value!r}"
        for key, value in recorded.items()
        if found.get(key) != value
    ]
