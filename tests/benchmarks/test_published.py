"""The published tables: the documents agree with the stored results, a call of `publish` goes on where another ended,
and results that do not belong together are not mixed."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from llmcli.errors import LLMError
from tests.benchmarks import load, measure, plots, publish, results, tables, texts
from tests.benchmarks.figures import Figures
from tests.benchmarks.measure import Measurement
from tests.benchmarks.results import Environment
from tests.benchmarks.texts import SHAKESPEARE, TEXTS

ROOT = Path(__file__).parents[2]
PATHS = {path for paths in results.SOURCES.values() for path in paths}
HERE = Environment(
    "1234567",
    dict.fromkeys(PATHS, "aaaa"),
    {"cpu": "A", "cores": 2, "memory_gb": 8},
    {"python": "3.12.0"} | dict.fromkeys(results.PACKAGES, "2.0"),
)
NEWER = dataclasses.replace(HERE, commit="89abcde", hashes=dict.fromkeys(PATHS, "aaaa") | {"llmcli": "bbbb"})
ELSEWHERE = dataclasses.replace(HERE, machine={"cpu": "B", "cores": 4, "memory_gb": 8})
WANTED = [
    Measurement("ours", SHAKESPEARE, "20s", 0), Measurement("ours", SHAKESPEARE, "20s", 1),
    Measurement("xz", SHAKESPEARE),
]  # fmt: skip


def a_run(bits: float, **scores: float) -> dict[str, Any]:
    record = {"clock": {"tokens_per_second": 9000}, "epochs": 2.0, "train_tokens": 1000}
    return {
        "seconds": 19.9, "megabytes": 600, "parameters": 1000, "planned_tokens_per_second": 10_000,
        "plan": {"training tokens": "about 3,000"}, "record": record,
        "eval": {"results": [{"bits_per_byte": bits, **scores}]},
    }  # fmt: skip


def a_result(measurement: Measurement, bits: float = 2.0, **scores: float) -> dict[str, Any]:
    if measurement.kind in ("ours", "fixed"):
        return {"runs": [a_run(bits, **scores)] * (3 if measurement.beside == load.THREE else 1)}
    if measurement.kind == "engines":
        return {"parameters": {"1M": 1_000_000}, "speeds": {"llmcli, float32": {"1M": 1234.5}}}
    if measurement.kind == "mixtures":
        model = {"model": "dense", "bits_per_byte": {"a": 2.0, "all": 2.1}, "parameters": 10, "active": 5}
        return {"models": [{**model, "network_bits_per_byte": {"a": 2.2, "all": 2.3}, "tokens_per_second": 100.0}]}
    return {"bits_per_byte": bits, "static_bits_per_byte": bits + 0.1, "seconds": 100.0}


def stored(environment: Environment, *measurements: Measurement) -> dict[str, results.Stored]:
    return {
        each.name: environment.result(each, 1.0, a_result(each, bits_per_byte_without_cache=2.1))
        for each in measurements
    }


def test_a_document_agrees_with_the_results() -> None:
    for document in tables.DOCUMENTS:
        text = (ROOT / document).read_text("utf-8")
        assert list(tables.generated(text))
        assert tables.updated(text, Figures(results.load())) == text, "run python -m tests.benchmarks.tables"


def test_a_plot_shows_the_results() -> None:
    for ending in plots.THEMES:
        for name in plots.PLOTS:
            select, _ = plots.PLOTS[name]
            svg = (ROOT / "docs" / f"{name}{ending}.svg").read_text("utf-8")
            assert plots.digest(select(Figures(results.load()))) in svg, "run python -m tests.benchmarks.tables"


def test_the_results_belong_together() -> None:
    found = results.load()
    results.check_consistent(found)
    for name, result in found.items():
        assert Measurement(**result["measurement"]).name == name
        assert str(Path.home()) not in json.dumps(result)

    for text in TEXTS:  # models and compressors predict the same bytes
        of_text = [stored["result"] for stored in found.values() if stored["measurement"]["text"] == text]
        held_out = {result["bytes"] for result in of_text if "bytes" in result}
        held_out |= {run["eval"]["results"][0]["bytes"] for result in of_text for run in result.get("runs", [])}
        assert len(held_out) <= 1


def test_every_part_is_used_in_a_document() -> None:
    used = {match[1] for name in tables.DOCUMENTS for match in tables.generated((ROOT / name).read_text("utf-8"))}
    assert used == set(tables.SECTIONS)


def test_tables_with_and_without_results() -> None:
    everything = Figures(stored(HERE, *publish.all_measurements()))
    for name, make in tables.SECTIONS.items():
        assert bool(make(Figures({}))) == (name not in ("busy", "fixed-shape", "mixtures")), name
        never_measured = 2 if name == "busy" else 0  # three runs of an hour at once: bits per byte, seconds
        assert make(everything).count(tables.DASH) == never_measured, name


def test_only_what_is_between_markers_is_written() -> None:
    page = "before\n<!-- begin summary -->\nold\n<!-- end summary -->\nafter\n"
    new = tables.updated(page, Figures({}))
    assert new.startswith("before\n<!-- begin summary -->\n\nNot measured yet.")
    assert new.endswith("<!-- end summary -->\nafter\n")
    assert tables.updated(new, Figures({})) == new
    left_out = "<!-- begin busy -->\n\n<!-- end busy -->"  # a section without results has no heading either
    assert tables.updated("<!-- begin busy -->\nold\n<!-- end busy -->", Figures({})) == left_out
    with pytest.raises(LLMError, match="a part called unknown"):
        tables.updated("<!-- begin unknown -->\n<!-- end unknown -->", Figures({}))


def test_without_all_the_measurements_take_three_quarters_of_an_hour() -> None:
    found = publish.measurements()
    assert publish.all_measurements()[: len(found)] == found
    assert 30 < sum(map(publish.estimated_seconds, found)) / 60 < 47
    roles = [TEXTS[name].role for name in publish.PUBLISHED]
    assert roles.count(texts.DEVELOPMENT) >= 2 and roles.count(texts.TEST) >= 2
    everything = Figures(stored(HERE, *found))
    for role in (texts.DEVELOPMENT, texts.TEST):
        assert tables.DASH not in tables.texts(everything, role).replace("xz", "")


class FakeMeasure:
    """Counts its calls; the clock advances by what each takes."""

    def __init__(self, seconds: float = 1.0, fail: Callable[[Measurement], bool] = lambda measurement: False) -> None:
        self.seconds = seconds
        self.fail = fail
        self.now = 0.0
        self.measured: list[str] = []

    def __call__(self, measurement: Measurement) -> Mapping[str, Any]:
        if self.fail(measurement):
            raise KeyboardInterrupt
        self.now += self.seconds
        self.measured.append(measurement.name)
        return a_result(measurement)

    def run(self, directory: Path, **options: Any) -> int:
        return publish.run_missing(
            WANTED, directory, HERE, self, clock=lambda: self.now, report=lambda line: None, **options
        )


def test_a_second_call_measures_what_is_missing_and_each_result_says_where_it_comes_from(tmp_path: Path) -> None:
    first = FakeMeasure(fail=lambda measurement: measurement.seed == 1)
    with pytest.raises(KeyboardInterrupt):
        first.run(tmp_path)
    assert [path.stem for path in tmp_path.iterdir()] == first.measured == [WANTED[0].name]  # not the interrupted one
    second = FakeMeasure(seconds=7.0)
    assert second.run(tmp_path) == 0
    assert second.measured == [each.name for each in WANTED[1:]]
    third = FakeMeasure()
    assert third.run(tmp_path) == 0 and not third.measured
    found = results.load(tmp_path)[WANTED[1].name]
    assert Measurement(**found["measurement"]) == WANTED[1]
    assert (found["commit"], found["seconds"], found["machine"]["cores"]) == ("1234567", 7.0, 2)
    assert found["depends_on"]["llmcli"] == "aaaa" and found["depends_on"]["machine"] == "A, 2 cores, 8 GB of memory"
    assert found["result"] == a_result(WANTED[1])


def test_results_of_another_source_tree_or_machine_are_out_of_date() -> None:
    for environment, key in [(NEWER, "llmcli"), (ELSEWHERE, "machine")]:
        stale = publish.out_of_date(WANTED, stored(HERE, *WANTED), environment)
        assert stale == {WANTED[0].name: [key], WANTED[1].name: [key]}  # the compressor's stays
        assert not publish.out_of_date(WANTED, stored(HERE, *WANTED), HERE)
        removed = publish.out_of_date(WANTED[:2], stored(HERE, *WANTED), HERE)
        assert removed == {WANTED[2].name: ["list of measurements"]}
        mixed = stored(HERE, WANTED[0]) | stored(environment, *WANTED[1:])
        with pytest.raises(LLMError, match=f"of another {key} than those before it"):
            results.check_consistent(mixed)
        results.check_consistent(stored(HERE, *WANTED[2:]) | stored(environment, *WANTED[:2]))


@pytest.fixture
def published(tmp_path: Path, monkeypatch) -> Callable[..., Path]:
    """Calls the command with fake measurements and texts; returns the directory of results."""
    monkeypatch.setattr(results, "present", lambda: HERE)
    monkeypatch.setattr(publish, "in_own_process", lambda command: a_result(WANTED[0]))
    monkeypatch.setattr(texts, "build", lambda text, cache, shakespeare: tmp_path / text.name)
    directory = tmp_path / "results"

    def call(*arguments: str) -> Path:
        publish.main(["--results", str(directory), "--all", "--only", "*.ours.20s.seed*", *arguments])
        return directory

    return call


def test_the_command_does_not_mix_and_starts_afresh_if_asked(
    published: Callable[..., Path], monkeypatch, capsys
) -> None:
    directory = published()
    assert len(list(directory.iterdir())) == 3
    assert "all measured" in capsys.readouterr().out
    monkeypatch.setattr(results, "present", lambda: NEWER)
    with pytest.raises(SystemExit, match=r"3 results in .* are of another llmcli; --start-afresh removes them"):
        published()
    published("--list")
    assert "of another llmcli" in capsys.readouterr().out
    published("--start-afresh")
    assert {stored["commit"] for stored in results.load(directory).values()} == {"89abcde"}


def test_a_modified_engine_is_refused(monkeypatch) -> None:
    answers = {"status": "M llmcli/config.py"}
    monkeypatch.setattr(results, "_git", lambda command, *arguments: answers[command])
    with pytest.raises(LLMError, match=r"llmcli/config\.py differs from the last commit; commit it first"):
        results.present()


def test_compressors_read_the_training_text_first(tmp_path: Path) -> None:
    """The second half of a text whose halves are equal adds next to nothing; the tenth is that of `llm train`."""
    text = tmp_path / "text.txt"
    half = "".join(f"{number * 7919 % 1000003} " for number in range(2000))
    text.write_text(half + half, "utf-8")
    past, held_out = measure.split(text)
    assert (past + held_out).decode() == half + half and len(held_out) == round(0.1 * len(half + half))
    assert measure.xz(Measurement("xz"), text)["bits_per_byte"] < 0.05


def test_the_file_of_a_text_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "shakespeare.txt"
    path.write_text("something else", "utf-8")
    with pytest.raises(LLMError, match=r"expected SHA-256 86c4e6aa.*, found "):
        texts.build(TEXTS[SHAKESPEARE], tmp_path, path)
    with pytest.raises(LLMError, match="give its file: --shakespeare FILE"):
        texts.build(TEXTS[SHAKESPEARE], tmp_path)
