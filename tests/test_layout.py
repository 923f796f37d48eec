"""The layout of the package: imports go only downwards, and each library is imported in one place."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = [  # from the bottom to the top; what is not named here stands alone beside them
    "errors", "units", "config", "data", "formats", "models", "generation", "evaluation", "analysis", "training",
    "reports", "server", "api", "cli", "__main__",
]  # fmt: skip
ONLY_IN = {  # library -> the modules, or the packages, that may import it
    "torch": {
        "training",
        "models.devices",
        "models.experts",
        "models.kernels",
        "models.linear",
        "models.token_rows",
        "models.torch_runtime",
        "models.torch_scoring",
        "models.transformer",
    },
    "rich": {"cli.console", "cli.text_layout", "cli.tables", "cli.progress"},
    "typer": {"cli"},
    "prompt_toolkit": {"cli.line_editor"},
    "onnx": {"models.onnx_graph", "models.onnx_runtime"},
    "onnxruntime": {"models.onnx_runtime"},
    "gguf": {"formats.gguf_package"},
    "matplotlib": {"cli.plot"},
    "pyppmd": {"evaluation.compressors"},
    "starlette": {"server"},
    "uvicorn": {"server.connection", "server.listening"},
    "jinja2": {"data.template_worker"},
    "pyarrow": {"data.parquet_records"},
    "backports": {"data.text_lines"},
    "compression": {"data.text_lines"},
}
HEAVY = {"numpy", "torch", "tokenizers", "safetensors", "typer", "rich"}
STANDARD_LIBRARY_ONLY = {
    "errors", "units", "config", "data.characters", "data.conversation_files", "data.conversation_turns",
    "data.conversations", "data.documents", "data.example_prompt", "data.file_types", "data.json_records",
    "data.record_kinds", "data.tables", "data.template_renderer", "data.temporary_files", "data.text_lines",
    "data.text_pieces", "data.token_cache", "data.token_names", "data.tokenizer_json", "data.vocabulary_limits",
    "evaluation.compressors", "evaluation.figures", "formats.atomic_io", "formats.gguf_tokenizer", "formats.metadata",
    "training.cgroups", "training.recipe", "training.summary",
}  # fmt: skip


def modules() -> dict[str, Path]:
    """Each module of the package by its name without "llmcli."."""
    files = (ROOT / "llmcli").rglob("*.py")
    named = {".".join(file.relative_to(ROOT / "llmcli").with_suffix("").parts): file for file in files}
    return {name: file for name, file in named.items() if not name.endswith("__init__")}


MODULES = modules()


@cache
def imports(file: Path) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return frozenset(found)


def internal_imports(file: Path) -> set[str]:
    """The modules of this package that a file imports, anywhere in it."""
    return {name.removeprefix("llmcli.") for name in imports(file)} & set(MODULES)


def level(module: str) -> int:
    return PACKAGES.index(module.split(".")[0])


def test_every_module_is_in_a_known_package() -> None:
    assert {module.split(".")[0] for module in MODULES} <= set(PACKAGES)
    assert set(MODULES) >= STANDARD_LIBRARY_ONLY | {"cli.app"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_downwards(module: str) -> None:
    file = MODULES[module]
    upwards = [other for other in internal_imports(file) if level(other) > level(module)]
    assert not upwards
    libraries = {name.split(".")[0] for name in imports(file)}
    for library in libraries & set(ONLY_IN):
        assert {module, module.split(".")[0]} & ONLY_IN[library], f"{module} imports {library}"
    if module in STANDARD_LIBRARY_ONLY:
        assert not libraries & HEAVY


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: internal_imports(file) for module, file in MODULES.items()}

    def reaches(module: str, goal: str, seen: set[str]) -> bool:
        return any(
            other == goal or (other not in seen and reaches(other, goal, seen | {other})) for other in graph[module]
        )

    assert [module for module in graph if reaches(module, module, {module})] == []


@pytest.mark.slow
def test_only_the_command_line_prints() -> None:
    """All output goes through the console, where untrusted text is made safe for a terminal; JSON has a function of
    its own, since replaced characters would make it other text."""
    for module, file in MODULES.items():
        if module in ("cli.console", "cli.app"):
            continue
        source = file.read_text("utf-8")
        assert not re.search(r"\bprint\(|\.(stdout|stderr)\.(write|buffer\.write)\(|\becho\(", source), module
        for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and call.func.attr in ("result", "verbatim", "note"):
                assert "json.dumps" not in ast.unparse(call), f"{module}: use console.json_result"


def test_nothing_unpickles_or_evaluates() -> None:
    for file in MODULES.values():
        assert not re.search(
            r"\bpickle\b(?! or)|torch\.load\(|[^.\w]eval\(|[^.\w]exec\(",
            file.read_text("utf-8").split('"""', 2)[2].replace("PyTorch pickle", "").replace("Python pickle", ""),
        ), file


def test_the_readme_shows_every_package() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for package in {module.split(".")[0] for module in MODULES} - {"__main__"}:
        assert re.search(rf"\b{package}\b", readme), package
