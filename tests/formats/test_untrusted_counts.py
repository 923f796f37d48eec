"""Whatever numbers are in a config or in the header of a GGUF, each command works or ends with an error of one line,
and does not allocate memory in proportion to the number. Each form runs in its own process, with limited memory, whose
peak is measured."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmcli.errors import LLMError
from llmcli.formats import loading
from tests import platforms
from tests.formats.gguf_by_hand import FIELDS, gguf_bytes, tensors_of_model
from tests.formats.test_metadata import READERS, READERS_OF, changed, original, replaced
from tests.platforms import FULL
from tests.sample_models import run

pytestmark = pytest.mark.slow

# tried with every command; what follows with those that open a model in different ways
HUGE = (10**7, 2**32 - 1) if FULL else (2**32 - 1,)
OTHERS = (0, -1, 2**31, 2**63 - 1, None)  # None: no such key
MORE = (1, 3, 10**6, 2**31 - 1, 1e30, 1.5, "8", [], [7], True)
MAX_EXTRA_MEMORY = 300.0  # MB, above the peak of the same commands with the unchanged file
CONSTRAINTS = ("model", "gguf")
OTHER_FORMS = ("mixture", "hf", "adapter", "sparse", "int8", "sparse gguf")  # each takes about ten seconds
EXPERTS = {
    "llama.expert_count": 2, "llama.expert_used_count": 1, "llama.expert_feed_forward_length": 64,
    "llama.attention.key_length": 8, "llama.attention.value_length": 8, "llama.rope.dimension_count": 8,
    "llama.vocab_size": 300,
}  # fmt: skip


def is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def variants(form: str, values: tuple[Any, ...]) -> Iterator[tuple[str, Path]]:
    """(description of the change, the file) for each number of a form and each value; first the unchanged file."""
    if "gguf" in form:
        path, fields = Path("changed.gguf"), FIELDS | (EXPERTS if form == "sparse gguf" else {})
        changes: list[tuple[str, dict[str, Any]]] = [("nothing", fields)]
        keys = [key for key, value in fields.items() if is_number(value)] + ["general.alignment", "llama.expert_count"]
        for key in dict.fromkeys(keys):
            for value in values:
                without = {k: v for k, v in fields.items() if k != key}
                changes.append((f"{key} = {value!r}", without if value in (None, []) else without | {key: value}))
        for what, result in changes:
            path.write_bytes(gguf_bytes(result, tensors_of_model(sparse=form == "sparse gguf")))
            yield what, path
        return
    name = "adapter_config.json" if form == "adapter" else "config.json"
    result = original(Path(), form, name)
    yield "nothing", changed(Path(), form, name, json.dumps(result))
    inside = [(("experts", 0), result["experts"][0])] if form == "mixture" else [((), result)]
    for start, config in inside:
        for key in [key for key, value in config.items() if is_number(value)] + ["sliding_window", "num_experts"]:
            for value in values:
                other = {k: v for k, v in config.items() if k != key} | ({} if value is None else {key: value})
                yield f"{key} = {value!r}", changed(Path(), form, name, json.dumps(replaced(result, start, other)))


def peak() -> float:
    """The peak memory of this process in MB."""
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def raise_timeout(*_: object) -> None:
    raise TimeoutError("it hangs")


def work(form: str) -> None:
    """Run all commands on all variants of a form in this process; each failure is a line on stdout."""
    import resource

    from llmcli.generation import next_words

    next_words.max_evaluations = lambda parameters: 4  # on an untrained model the search takes long
    os.fsync = lambda descriptor: None
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    signal.signal(signal.SIGALRM, raise_timeout)
    groups = READERS_OF.get(form, ("any", "model", "single"))
    commands = [command for group in groups for command in READERS[group]]
    quick = [
        command for command in commands if command[0] in ("import", "tokenize") or command[2:] in ((), ("--json",))
    ]

    def check(command: tuple[object, ...], path: Path, what: str) -> None:
        signal.alarm(60)
        answer = run(*(path if word == "FILE" else word for word in command))
        signal.alarm(0)
        refused = answer.exit_code in (1, 2) and answer.stderr.count("error: ") == 1
        if not (answer.exit_code == 0 or refused) or not isinstance(answer.exception, SystemExit | None):
            print(f"{what}, {command}: {answer.exit_code}, {answer.exception!r}, {answer.stderr[-200:]!r}", flush=True)
        runs = command[0] not in ("mix", "export") and "--memory" not in command  # which are errors with some forms
        if what == "nothing" and runs and answer.exit_code:
            print(f"as it was made, {command}: {answer.stderr}", flush=True)

    before = 0.0
    for values, part in ((HUGE, commands), (OTHERS + MORE if FULL else OTHERS, quick)):
        for what, path in variants(form, values):
            for command in part:
                check(command, path, what)
            before = before or peak()
    if peak() - before > MAX_EXTRA_MEMORY:
        print(f"memory grew by {peak() - before:.0f} MB")


@platforms.linux
@pytest.mark.parametrize("form", CONSTRAINTS + OTHER_FORMS if FULL else CONSTRAINTS)
def test_no_number_in_a_file_decides_how_much_memory_is_taken(form: str, models: Path, own_directory: Path) -> None:
    if "gguf" in form or form == "int8":
        pytest.importorskip("gguf", reason="needs the extra gguf")
    shutil.copytree(models, own_directory, dirs_exist_ok=True)
    Path("short.txt").write_text("The cat sat.\n" * 9)
    assert run("export", "m.safetensors", "int8.safetensors", "--quantize", "int8").exit_code == 0
    root = str(Path(__file__).parent.parent.parent)
    code = f"import sys; sys.path.insert(0, {root!r}); from {__name__} import work; work({form!r})"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1200)
    assert (answer.returncode, answer.stdout) == (0, ""), answer.stdout + answer.stderr[-2000:]


def test_a_stack_of_another_number_of_experts_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(FIELDS | EXPERTS | {"llama.expert_count": 3}, tensors_of_model(sparse=True)))
    with pytest.raises(LLMError, match=r"ffn_gate_exps\.weight has shape \[2, .*; expected 3 matrices"):
        loading.load(path)
