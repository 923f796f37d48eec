"""Where a command may write: never over its inputs, and under a name that fits the format."""

from collections.abc import Iterable
from pathlib import Path

from llmcli.errors import LLMError, usage


def reject_gguf_name(output: Path) -> None:
    """Raise LLMError if a safetensors file would get the name of a GGUF file."""
    if output.suffix.lower() == ".gguf":
        raise usage(
            f"{output}: this command writes a .safetensors file; to write a .gguf: llm export MODEL {output} --to gguf"
        )


def reject_overwriting(output: Path, kind: str, inputs: Iterable[Path], role: str, by: str = " with -o") -> None:
    """Raise LLMError if an output would replace one of the inputs of the command, or a directory that contains it.

    `kind` says what the output is, `role` what the inputs are, `by` the option that names the output.
    """
    target = output.resolve()
    for path in inputs:
        resolved = path.resolve()
        if resolved == target or (path.exists() and output.exists() and path.samefile(output)):
            raise LLMError(f"{output} is {role}; give the {kind} another name{by}")
        if target in (*resolved.parents, *path.absolute().parents):
            raise LLMError(f"{output} contains {path}, {role}; give the {kind} another name{by}")
