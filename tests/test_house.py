"""The picture of the house holds: rooms import downwards only, and each does what its floor does."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [  # from the words at the bottom to the door at the top
    {"errors", "config", "characters", "charts", "metadata", "prompts", "verdict"},
    {
        "durable",
        "compressors",
        "safetensors_file",
        "checkpoint",
        "gguf_tokenizer",
        "gguf_file",
        "hf_directory",
        "importer",
        "mixture",
        "mixture_file",
        "adapters",
        "quantized",
        "fast_runtime",
        "corpus",
        "file_types",
        "tokenizer_json",
        "tokenizer",
        "sampler",
        "vocabulary",
        "runtime",
        "kernels",
        "cgroups",
        "machine",
        "model",
        "optimizer",
        "induction",
    },
    {
        "forecast",
        "planner",
        "resume",
        "run_clock",
        "thread_tuner",
        "prompt",
        "generator",
        "walker",
        "words",
        "explainer",
        "evaluator",
        "surprise",
        "inspector",
        "differ",
        "trainer",
        "recital",
        "memory",
        "plot",
        "page",
    },
    {"console"},
    {
        "commands.options",
        "commands.suggestions",
        "commands.eval",
        "commands.explain",
        "commands.export",
        "commands.generate",
        "commands.import_",
        "commands.inspect",
        "commands.mix",
        "commands.tokenize",
        "commands.train",
    },
    {"cli", "__main__"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
TORCH = {"kernels", "machine", "model", "optimizer", "trainer"}
STANDARD_ONLY = {
    "errors", "config", "metadata", "charts", "durable", "compressors", "verdict", "tokenizer_json", "gguf_tokenizer",
}  # fmt: skip
STANDARD_ONLY |= {"cgroups"}
STANDARD_ONLY |= {"file_types"}
STANDARD_ONLY |= {"prompts"}


def rooms() -> dict[str, Path]:
    files = (ROOT / "llmcli").rglob("*.py")
    named = {".".join(file.relative_to(ROOT / "llmcli").with_suffix("").parts): file for file in files}
    return {name: file for name, file in named.items() if not name.endswith("__init__")}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def ours(file: Path) -> set[str]:
    """The rooms that a file imports."""
    known = rooms()
    return {name.removeprefix("llmcli.") for name in imports(file)} & set(known)


def test_every_room_has_a_floor() -> None:
    assert set(rooms()) == set(FLOOR)


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_imports_point_downwards(room: str) -> None:
    file = rooms()[room]
    assert all(FLOOR[other] <= FLOOR[room] for other in ours(file))
    outside = {name.split(".")[0] for name in imports(file)}
    if "torch" in outside:
        assert room in TORCH
    if "rich" in outside:
        assert room == "console"
    if outside & {"onnx", "onnxruntime"}:
        assert room == "fast_runtime"
    if "gguf" in outside:
        assert room == "gguf_file"
    if "matplotlib" in outside:
        assert room == "plot"
    if "typer" in outside:
        assert room == "cli" or room.startswith("commands.")
    if "pyppmd" in outside:
        assert room == "compressors"
    if room in STANDARD_ONLY:
        assert not outside & {"numpy", "torch", "tokenizers", "safetensors", "typer", "rich"}


def test_no_room_needs_itself_by_a_detour() -> None:
    graph = {room: ours(file) for room, file in rooms().items()}

    def reaches(room: str, goal: str, seen: set[str]) -> bool:
        return any(
            other == goal or (other not in seen and reaches(other, goal, seen | {other})) for other in graph[room]
        )

    assert [room for room in graph if reaches(room, room, {room})] == []


def test_rooms_below_the_hall_never_print() -> None:
    for room, file in rooms().items():
        if FLOOR[room] < FLOOR["console"]:
            calls = [n for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.Call)]
            assert not any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls), room


def test_all_that_is_said_goes_out_through_the_console() -> None:
    """There, and nowhere else, what comes from outside is made harmless; JSON has a way of its own, since marks in it
    would be other text."""
    for room, file in rooms().items():
        if room in ("console", "cli"):
            continue
        source = file.read_text("utf-8")
        assert not re.search(r"\bprint\(|\.(stdout|stderr)\.(write|buffer\.write)\(|\becho\(", source), room
        for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and call.func.attr in ("result", "verbatim", "note"):
                assert "json.dumps" not in ast.unparse(call), f"{room}: use console.json_result"


def test_nothing_unpickles_or_evaluates() -> None:
    for file in rooms().values():
        assert not re.search(
            r"\bpickle\b(?! or)|torch\.load\(|[^.\w]eval\(|[^.\w]exec\(",
            file.read_text("utf-8").split('"""', 2)[2].replace("PyTorch pickle", "").replace("Python pickle", ""),
        ), file


def test_the_readme_shows_every_room() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for room in rooms():
        assert f"{room.split('.')[-1]}.py" in readme, room
