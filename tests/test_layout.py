"""The layout of the package: imports go only downwards, and each library is imported in one place."""

import ast
import graphlib
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = [  # from the bottom to the top; what is not named here stands alone beside them
    "version", "errors", "signals", "units", "notebook", "config", "data", "formats", "models", "generation",
    "evaluation", "analysis", "training", "handover", "pages", "server", "api", "cli", "__main__",
]  # fmt: skip
SUB_PACKAGES = {  # of each package, likewise; the modules beside them may import them and be imported by them
    "data": ["text", "tokenizers", "conversations", "documents", "tokens"],
    "formats": ["safetensors", "huggingface", "gguf"],
    "models": ["torch", "onnx"],
    "generation": ["engine"],
    "training": ["planning", "data", "distributed", "step", "loop", "files"],
    "server": ["api", "http"],
    "cli": ["terminal", "reports", "chat", "commands"],
}
ONLY_IN = {  # library -> the modules, or the packages, that may import it
    "torch": {"training", "models.torch"},
    "rich": {"cli.terminal.console", "cli.terminal.text_layout", "cli.terminal.tables", "cli.terminal.progress"},
    "typer": {"cli"},
    "prompt_toolkit": {"cli.terminal.line_editor"},
    "onnx": {"models.onnx"},
    "onnxruntime": {"models.onnx.runtime"},
    "gguf": {"formats.gguf.reader"},
    "pyppmd": {"evaluation.compressors"},
    "safetensors": {"formats.safetensors.file"},
    "ml_dtypes": {"formats.safetensors.dtypes"},
    "starlette": {"server"},
    "uvicorn": {"server.http.listening"},
    "segno": {"server.http.classroom"},
    "pydantic": {"server.api.schema", "server.api.bodies"},
    "jinja2": {"data.conversations.template_worker"},
    "huggingface_hub": {"formats.huggingface"},
    "pyarrow": {"data.text.parquet_records"},
    "resiliparse": {"data.documents"},
    "fastwarc": {"data.documents"},
    "llguidance": {"generation.grammar", "generation.grammar_compiler"},
    "pypdfium2": {"data.documents"},
    "backports": {"data.documents.compressed"},
    "compression": {"data.documents.compressed"},
}
HEAVY = {"numpy", "torch", "tokenizers", "safetensors", "typer", "rich"}
STANDARD_LIBRARY_ONLY = {
    "config", "data.child_process", "data.conversations.example_prompt", "data.conversations.messages",
    "data.conversations.record_kinds", "data.conversations.tables", "data.conversations.template_renderer",
    "data.conversations.turns", "data.documents.compressed", "data.documents.extracted", "data.documents.reader",
    "data.documents.worker", "data.files", "data.regular_file", "data.text.boilerplate",
    "data.text.dataset_directory", "data.text.decoding", "data.text.encodings", "data.text.file_types",
    "data.text.json_records", "data.text.templates", "data.text.temporary_files", "data.text.words",
    "data.tokenizers.tokenizer_json", "errors", "evaluation.compressors",
    "evaluation.figures", "formats.atomic_io", "formats.gguf.tokenizer", "formats.metadata",
    "formats.training_record", "notebook", "training.files.curve", "training.files.summary",
    "training.planning.recipe", "units",
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


def test_imports_go_downwards() -> None:
    for module in sorted(MODULES):
        file = MODULES[module]
        upwards = [other for other in internal_imports(file) if level(other) > level(module)]
        assert not upwards
        libraries = {name.split(".")[0] for name in imports(file)}
        for library in libraries & set(ONLY_IN):
            places = {module, module.split(".")[0], module.rpartition(".")[0]}
            assert places & ONLY_IN[library], f"{module} imports {library}"
        if module in STANDARD_LIBRARY_ONLY:
            assert not libraries & HEAVY


def test_sub_packages_import_downwards() -> None:
    for module, file in MODULES.items():
        package, *rest = module.split(".")
        order = SUB_PACKAGES.get(package, [])
        if len(rest) == 2:
            assert rest[0] in order, f"{module} is in no known sub-package"
            for other in internal_imports(file):
                if other.startswith(f"{package}.") and other.count(".") == 2:
                    assert order.index(other.split(".")[1]) <= order.index(rest[0]), f"{module} imports {other}"


def test_no_folder_has_more_than_16_modules() -> None:
    folders = Counter(file.parent for file in MODULES.values())
    assert {folder.name: count for folder, count in folders.items() if count > 16} == {}


def test_no_module_imports_itself_through_others() -> None:
    graphlib.TopologicalSorter({module: internal_imports(file) for module, file in MODULES.items()}).prepare()


@pytest.mark.slow
def test_only_the_command_line_prints() -> None:
    """All output goes through the console, where untrusted text is made safe for a terminal; JSON has a function of
    its own, since replaced characters would make it other text."""
    for module, file in MODULES.items():
        if module in ("cli.terminal.console", "cli.main", "cli.reports.model_card"):  # the card shows a program
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


def test_the_guide_for_contributors_lists_every_package_in_order() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("| package |")[2].partition("\n\n")[0]
    listed = re.findall(r"`(\w+)`", "\n".join(row.split("|")[1] for row in guide.splitlines()[2:]))
    assert listed == [package for package in PACKAGES if package != "__main__"]
