"""Small trained models in every format, for tests that change or rename them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner


def run(*words: object) -> Any:
    """The command in this process: exit_code, stdout, stderr, exception."""
    from llmcli.cli.app import app

    return CliRunner().invoke(app, [str(word) for word in words])


def make_models(where: Path) -> Path:
    """Fill a directory: a text, a model trained on it, one with experts, one to be mixed with the first, adapters for
    the first, the mixture, a Hugging Face directory, a tokenizer. Returns the directory."""
    here = Path.cwd()
    os.chdir(where)
    try:
        Path("c.txt").write_text("The cat sat on the mat. The dog ate the hat.\n" * 150)
        shape = ("--layers", 1, "--width", 16, "--threads", 1)
        small = (*shape, "--vocab-size", 270, "--context", 16, "--batch-tokens", 64)
        for command in (
            ("train", "c.txt", "-o", "m.safetensors", "--steps", 3, *small),
            ("train", "c.txt", "-o", "sparse.safetensors", "--steps", 2, "--experts", 2, *small),
            ("train", "c.txt", "-o", "other.safetensors", "--like", "m.safetensors", "--steps", 1, *shape),
            ("train", "c.txt", "-o", "a.safetensors", "--from", "m.safetensors", "--lora", 1, "--steps", 1,
             "--adapter-only", "--threads", 1),
            ("mix", "m.safetensors", "other.safetensors", "-o", "mixture.safetensors"),
            ("export", "m.safetensors", "hf", "--to", "hf"),
            ("export", "m.safetensors", "tokenizer.json", "--to", "tokenizer"),
        ):  # fmt: skip
            answer = run(*command)
            assert answer.exit_code == 0, answer.stderr
    finally:
        os.chdir(here)
    return where


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its tensors."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_unhashed(
    path: Path,
    metadata: dict[str, str] | None = None,
    body: Callable[[bytes], bytes] = lambda body: body,
    source: Path | None = None,
) -> None:
    """Change a model's metadata or its tensor bytes, and remove the hash that would reveal it. The model is that in
    `source`, if given."""
    header, tensors = parts(source or path)
    header["__metadata__"].pop("sha256", None)
    header["__metadata__"] |= metadata or {}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body(tensors))
