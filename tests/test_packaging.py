"""What pyproject.toml says agrees with the other files that say it too."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8")))


def test_ci_runs_every_python_that_the_classifiers_name(pyproject: dict[str, Any]) -> None:
    classifiers = "\n".join(pyproject["project"]["classifiers"])
    named = re.findall(r"Python :: (3\.\d+)", classifiers)
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8")
    assert re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.*)\]", workflow)[1]) == named  # type: ignore[index]
    assert pyproject["project"]["requires-python"] == f">={named[0]}"


def test_pre_commit_and_ci_use_the_same_ruff(pyproject: dict[str, Any]) -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    versions = set(re.findall(r"ruff==([\d.]+)", hooks))
    requirement = next(one for one in pyproject["project"]["optional-dependencies"]["dev"] if one.startswith("ruff"))
    assert len(versions) == 1 and requirement.startswith(f"ruff>={versions.pop()},")


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "llmcli" / "py.typed").exists()


def test_on_the_package_index_the_readme_has_no_relative_links(pyproject: dict[str, Any]) -> None:
    """The substitutions that the build makes, made here."""
    text = (ROOT / "README.md").read_text("utf-8")
    for rule in pyproject["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"].replace("$HFPR_VERSION", "1.2.3"), text)
    links = [a or b for a, b in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", text)]
    assert links and all(link.startswith(("https://", "#", "mailto:")) for link in links)
    for path in re.findall(r"/llmcli/llmcli/(?:blob/)?v1\.2\.3/([^)\"#]+)", text):
        assert (ROOT / path).exists(), path
