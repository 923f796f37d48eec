"""Input: absurd options, long prompts, a long line."""

from pathlib import Path

from llmcli.formats.loading import load
from tests.reliability.runs import invoke, measured, small_model

NUMBERS = ("0", "-1", "1e-320", "1e308", "nan", "inf", "-inf", "1e400", "x", "")
WHOLE = ("0", "-1", "1000000000", "99999999999999999999", "1.5", "nan", "x", "")
OPTIONS = {
    "--temperature": NUMBERS, "--top-p": NUMBERS, "--min-p": NUMBERS, "--top-k": WHOLE,
    "--seed": WHOLE, "--samples": ("0", "-1", "2", "x"), "--next": ("0", "-1", "1000000000", "x"),
    "--stop": ("", "\n", "りんご"),
}  # fmt: skip


def sampling_options(where: Path, tries: int) -> list[str]:
    """R21: absurd values of every sampling option: output, or one line of error and exit code 2."""
    path = where / "model.safetensors"
    small_model(path)
    failures = []
    for option, values in OPTIONS.items():
        for value in values:
            length = [] if option == "--next" else ["-n", "3"]
            answer = invoke("generate", "Anna", "-m", str(path), *length, option, value)
            line = answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1
            if not (answer.exit_code == 0 or (answer.exit_code == 2 and line)) or "Traceback" in answer.stderr:
                failures.append(f"{option} {value!r}: {answer.exit_code}, {answer.stderr!r}, {answer.exception!r}")
    return failures


def long_prompts(where: Path, tries: int) -> list[str]:
    """R22: prompts without a token, of about a context length, and of `tries` MB."""
    path = where / "model.safetensors"
    small_model(path)
    context = load(path).config.max_position_embeddings
    failures = []
    for length in (0, 1, context - 1, context, context + 1, 10 * context, tries * 1_000_000):
        prompt = b"\xc3\xa9"[:length] if length < 2 else b"q" * length
        answer = invoke("generate", "-", "-n", "3", "-m", path, stdin=prompt)
        expected = 0 if length > 1 else 1
        noted = "only its end is used" in answer.stderr or length <= context or expected != 0
        if answer.exit_code != expected or answer.stderr.count("\n") > 1 or not noted:
            failures.append(f"{length}: {answer.exit_code}, {answer.stderr[-200:]!r}, {answer.exception!r}")
    return failures


def long_line(where: Path, tries: int) -> list[str]:
    """R13: `tries` MB of text in one line are planned for, or refused, with less than 1500 MB of memory."""
    path = where / "long.txt"
    with open(path, "wb") as file:
        for _ in range(tries):
            file.write(b"a" * 1_000_000)
    code, stderr, megabytes, _ = measured(where, "train", str(path), "--dry-run", "--steps", "1")
    return [f"{code}, {megabytes:.0f} MB, {stderr[-200:]!r}"] if code not in (0, 1) or megabytes > 1500 else []
