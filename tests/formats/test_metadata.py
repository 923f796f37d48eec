"""Whatever the metadata of a model contains, each command works or ends with an error of one line."""

import contextlib
import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from llmcli.errors import LLMError
from llmcli.formats import adapters, loading
from llmcli.formats.safetensors.header import read_header
from llmcli.generation import next_words
from tests.platforms import FULL, in_full
from tests.sample_models import parts, run, write_unhashed

OF_OTHER_TYPES = (7, None)  # in place of each value of a document
MORE = ("x", -1, [], {}, [{}], [[1]], 10**400, float("nan"))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values of a document; in each list and each vocabulary only to the first entry."""
    inner = enumerate(value[:1]) if isinstance(value, list) else ()
    if isinstance(value, dict):
        inner = list(value.items())[: None if len(value) < 100 else 1]
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


def replaced(result: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    result = copy.copy(result)
    result[place[0]] = replaced(result[place[0]], place[1:], new)
    return result


FILES = {  # form -> (its file, its documents)
    "model": ("m.safetensors", ("config.json", "training.json", "tokenizer_config.json", "tokenizer.json")),
    "sparse": ("sparse.safetensors", ("config.json",)),
    "mixture": ("mixture.safetensors", ("config.json", "training.json")),
    "adapter": ("a.safetensors", ("adapter_config.json", "training.json")),
    "hf": ("hf", ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")),
    "int8": ("int8.safetensors", ()),  # for test_untrusted_counts.py
}

CASES = [(form, name) for form, (_, names) in FILES.items() for name in names]

READERS: dict[str, list[tuple[object, ...]]] = {
    "any": [("inspect", "FILE"), ("inspect", "FILE", "--json"), ("inspect", "FILE", "--weights")],
    "model": [
        ("generate", "The cat", "-m", "FILE", "-n", 2),
        ("generate", "The cat", "-m", "FILE", "-n", 2, "--memory"),
        ("generate", "The cat", "-m", "FILE", "--next", 2),
        ("tokenize", "The cat", "-m", "FILE"),
        ("eval", "short.txt", "-m", "FILE"),
        ("explain", "The", "-m", "FILE", "--json"),
        ("export", "FILE", "out.json", "--to", "tokenizer", "--force"),
        ("train", "c.txt", "--like", "FILE", "--dry-run", "--steps", 1),
    ],
    "single": [
        ("export", "FILE", "out", "--to", "hf", "--force"),
        ("export", "FILE", "out.gguf", "--to", "gguf", "--force"),
        ("export", "FILE", "out.safetensors", "--quantize", "int8", "--force"),
        ("import", "FILE", "-o", "i.safetensors", "--force"),
        ("mix", "FILE", "other.safetensors", "-o", "x.safetensors", "--force"),
        ("train", "c.txt", "--from", "FILE", "--dry-run", "--steps", 1),
    ],
    "adapter": [("import", "m.safetensors", "--adapter", "FILE", "-o", "i.safetensors", "--force")],
}

# form -> the groups of READERS that take it; by default those of a single model
READERS_OF = {"adapter": ("any", "adapter"), "mixture": ("any", "model")}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([-1, 0, 1, 2, 2**31, 2**32 - 1, 2**63, 10**30, 10**400, 0.5, 1e-320, 1e300, "\ud800", "\x1b[2J"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


def check(command: tuple[object, ...], path: Path, what: str) -> None:
    """A command works, or ends with an error of one line."""
    answer = run(*(path if word == "FILE" else word for word in command))
    assert answer.exception is None or isinstance(answer.exception, SystemExit), (what, command, answer.exception)
    refused = answer.exit_code in (1, 2) and answer.stderr.splitlines()[-1].startswith("error: ")
    assert answer.exit_code == 0 or refused, (what, command, answer.exit_code, answer.stderr)
    assert answer.stderr.count("error: ") == (answer.exit_code != 0), (what, command, answer.stderr)


def changed(models: Path, form: str, name: str, text: str) -> Path:
    """A copy of a model with another document, in the current directory."""
    file = FILES[form][0]
    source, path = models / file, Path("changed") / file
    if source.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(source, path, copy_function=os.link)  # without reading and writing them
        (path / name).unlink()
        (path / name).write_text(text)
    else:
        path.parent.mkdir(exist_ok=True)
        write_unhashed(path, {name: text}, source=source)
    return path


def original(models: Path, form: str, name: str) -> Any:
    source = models / FILES[form][0]
    text = (source / name).read_text() if source.is_dir() else parts(source)[0]["__metadata__"][name]
    return json.loads(text)


def read_by_all(models: Path, form: str, name: str, text: str, what: str) -> None:
    for file in ("c.txt", "m.safetensors", "other.safetensors"):
        if not Path(file).exists():
            shutil.copy(models / file, file)
    Path("short.txt").write_text("The cat sat.\n" * 9)
    path = changed(models, form, name, text)
    for group in READERS_OF.get(form, ("any", "model", "single")):
        for command in READERS[group]:
            check(command, path, what)


@in_full
@pytest.mark.parametrize(("form", "name"), CASES)
@settings(
    max_examples=12, deadline=None, phases=[Phase.reuse, Phase.generate],  # shrinking takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(data=st.data())
@pytest.mark.slow
def test_every_command_takes_any_value_of_a_key_or_ends_with_an_error(
    models: Path, monkeypatch: pytest.MonkeyPatch, form: str, name: str, data: Any
) -> None:
    monkeypatch.setattr(
        next_words, "max_evaluations", lambda parameters: 4
    )  # on an untrained model the search takes long
    result = original(models, form, name)
    place = data.draw(st.sampled_from(places(result)))
    new = data.draw(json_values)
    read_by_all(models, form, name, json.dumps(replaced(result, place, new)), f"{name}{list(place)} = {new!r}")


@pytest.mark.slow
def test_each_key_with_a_value_of_another_type_is_read_or_an_error(models: Path) -> None:
    """By a command that opens the model, and one that shows all its metadata. A number in place of a key that another
    form has too is refused alike."""
    seen = set[tuple[Any, ...]]()
    for form, name in CASES:
        result, base = original(models, form, name), loading.load(models / "m.safetensors")
        for place in places(result):
            for new in (*OF_OTHER_TYPES, *MORE) if FULL else OF_OTHER_TYPES[(name, *place) in seen :]:
                path = changed(models, form, name, json.dumps(replaced(result, place, new)))
                with contextlib.suppress(LLMError):
                    adapters.merged_tensors(base, read_header(path)) if form == "adapter" else loading.load_any(path)
                check(("inspect", "FILE"), path, f"{name}{list(place)} = {new!r}")
            seen.add((name, *place))
