"""Mutation testing: changes one operator, constant or statement at a time and counts how many changes a test detects.

    python -m tests.benchmarks.mutants [--count 60] [--seed 1] [--only PART OF A PATH ...] [--skip 0] [--time-limit 240]

Works in a temporary copy of the project. A mutant of llmcli/PACKAGE/MODULE.py is "killed" when a fast test in
tests/PACKAGE/test_MODULE.py fails (in all of tests/PACKAGE, if there is no such file), "killed by other tests" when
only another fast test of the top-level package fails, "killed by slow tests" when only a slow one of the module or
tests/test_golden.py fails, "timeout" when the tests exceed the time limit, else "survived". A survivor is equivalent
to the original, or a constant that only benchmarks can judge, or a missing test. Modules take turns, so that each has
about equally many mutants. `--skip` omits the first mutants, to continue an earlier run with the same seed.
"""

import argparse
import ast
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

# Only pytest is used here. The others are imported once, so that the process forked for each mutant starts fast.
import hypothesis  # noqa: F401
import numpy  # noqa: F401
import pytest
import rich.console  # noqa: F401
import tokenizers  # noqa: F401
import torch  # noqa: F401
import typer.testing  # noqa: F401

ROOT = Path(__file__).parents[2]
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And},
}
# No behavior to test in these: messages, types, decorators.
SKIPPED_NODES = (ast.Raise, ast.Assert, ast.JoinedStr)
SKIPPED_FIELDS = ("annotation", "returns", "decorator_list")
SKIPPED_FUNCTIONS = ("__repr__", "__str__")
MAX_BYTES = 6 * 2**30  # of memory, since a mutant may allocate without end
SKIPPED_CALLS = ("on_note", "note", "print")


@dataclass
class Mutant:
    """The child of `parent` in `field` (at `index`, if that is a list) is to be replaced."""

    tree: ast.Module
    module: Path  # relative to the root
    line: int
    parent: ast.AST
    field: str
    index: int | None
    replacement: ast.AST
    change: str = ""

    def swap(self) -> None:
        """Exchanges the child and its replacement; a second call restores the tree."""
        children = getattr(self.parent, self.field)
        if self.index is None:
            setattr(self.parent, self.field, self.replacement)
            self.replacement = children
        else:
            children[self.index], self.replacement = self.replacement, children[self.index]

    def source(self) -> str:
        """The module's source with the replacement."""
        self.swap()
        source = ast.unparse(self.tree)
        self.swap()
        return source


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """Possible mutations of a node, other than of its descendants."""
    if swapped := SWAPS.get(type(node)):
        yield swapped()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield from (ast.Constant(node.value + 1), ast.Constant(node.value - 1))
    elif isinstance(node, ast.Constant) and type(node.value) is float:
        yield from (ast.Constant(0.0), ast.Constant(2 * node.value)) if node.value else [ast.Constant(1.0)]
    elif isinstance(node, ast.AugAssign):
        yield ast.Pass()
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield from [] if ast.unparse(node.value.func).endswith(SKIPPED_CALLS) else [ast.Pass()]


def mutants(tree: ast.Module, module: Path) -> Iterator[Mutant]:
    """All mutants of a module."""

    def visit(parent: ast.AST, line: int) -> Iterator[Mutant]:
        if isinstance(parent, SKIPPED_NODES) or getattr(parent, "name", None) in SKIPPED_FUNCTIONS:
            return
        line = getattr(parent, "lineno", line)
        for field, value in ast.iter_fields(parent):
            for index, child in enumerate(value if isinstance(value, list) else [value]):
                if not isinstance(child, ast.AST) or field in SKIPPED_FIELDS:
                    continue
                for new in replacements(child):
                    place = index if isinstance(value, list) else None
                    yield Mutant(tree, module, getattr(child, "lineno", line), parent, field, place, new)
                yield from visit(child, line)

    yield from visit(tree, 0)


def describe(mutant: Mutant) -> str:
    """The changed expression or statement, before and after."""
    is_statement = isinstance(mutant.replacement, ast.Pass)
    before = ast.unparse(getattr(mutant.parent, mutant.field)[mutant.index] if is_statement else mutant.parent)
    mutant.swap()
    after = "pass" if is_statement else ast.unparse(mutant.parent)
    mutant.swap()
    first = next((i for i, pair in enumerate(zip(before, after, strict=False)) if len({*pair}) > 1), 0)
    start = 0 if is_statement else max(0, first - 40)
    return " -> ".join(text[start : start + 90].replace("\n", " ") for text in (before, after))


def sample(only: list[str], seed: int) -> Iterator[Mutant]:
    """Mutants in random order, one of each module per round."""
    rng = random.Random(seed)
    modules = sorted(path.relative_to(ROOT) for path in (ROOT / "llmcli").rglob("*.py"))
    chosen = [module for module in modules if not only or any(part in str(module) for part in only)]
    by_module = [list(mutants(ast.parse((ROOT / module).read_text("utf-8")), module)) for module in chosen]
    for found in by_module:
        rng.shuffle(found)
    while by_module := [found for found in by_module if found]:
        rng.shuffle(by_module)
        for found in by_module:
            mutant = found.pop()
            mutant.change = describe(mutant)
            yield mutant


def run_pytest(copy: Path, words: tuple[str, ...]) -> None:
    """Ends this process with pytest's exit code, after the tests in the copy of the project."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("llmcli", "tests")]:
        del sys.modules[name]
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    os.chdir(copy)
    os.setsid()  # a mutant may send a signal to its process group
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
    sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *words])))


def passes(copy: Path, time_limit: float, *words: str) -> bool:
    """Whether the tests pass in the copy of the project. Raises TimeoutError."""
    process = multiprocessing.get_context("fork").Process(target=run_pytest, args=(copy, words))
    process.start()
    process.join(time_limit)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError
    if process.exitcode == -signal.SIGTERM:  # by another program: no result
        sys.exit("the tests were terminated")
    return process.exitcode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


def outcome(mutant: Mutant, copy: Path, time_limit: float) -> str:
    """Runs the tests of the mutant's module with the mutant in place."""
    path = copy / mutant.module
    original = path.read_text("utf-8")
    tests = "tests" / mutant.module.parent.relative_to("llmcli")
    mirror = tests / f"test_{mutant.module.name}"
    tests = mirror if (copy / mirror).exists() else tests
    path.write_text(mutant.source(), "utf-8")
    try:
        if not passes(copy, time_limit, "-m", "not slow", str(tests)):
            return "killed"
        if not passes(copy, time_limit, "-m", "not slow", "/".join(tests.parts[:2])):
            return "killed by other tests"
        is_alive = passes(copy, 3 * time_limit, "-m", "slow", str(tests), "tests/test_golden.py")
        return "survived" if is_alive else "killed by slow tests"
    except TimeoutError:
        return "timeout"
    finally:
        path.write_text(original, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="parts of paths, such as models/ or sampler.py")
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--time-limit", type=float, default=240, help="seconds for the tests of one mutant")
    options = parser.parse_args()
    outcomes = Counter[str]()
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        for mutant in islice(sample(options.only, options.seed), options.skip, options.skip + options.count):
            result = outcome(mutant, copy, options.time_limit)
            outcomes[result] += 1
            print(f"| {mutant.module}:{mutant.line} | `{mutant.change}` | {result} |", flush=True)
    print(", ".join(f"{number} {result}" for result, number in outcomes.most_common()))


if __name__ == "__main__":
    main()
