"""The two figures of a model, network and adapting, have the same names and the same values in every place."""

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import llmcli
from llmcli.cli.reports.training import show_result
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.evaluation.compressors import baselines
from llmcli.evaluation.evaluator import Score
from llmcli.evaluation.figures import ADAPTING, NETWORK, Figures
from llmcli.formats import checkpoint, loading
from llmcli.formats.training_record import TrainingRecord
from llmcli.training.files.summary import summarize
from llmcli.training.loop.record import FinalEvaluation
from tests.benchmarks import tables
from tests.conftest import TEXT, write_tiny_model
from tests.models.test_ngram_cache import WEIGHTS

ROOT = Path(__file__).parent.parent
NATS = 0.6931471805599453  # a bit
SCORE = Score(1827 * NATS, 500, 1000, network_nats=1921 * NATS)  # network 1.921, adapting 1.827
BASE = Score(2222 * NATS, 500, 1000)
RECORD = {
    "steps": 100, "best_step": 100, "epochs": 1.0, "interrupted": False, "corpus": [{"name": "c.txt", "bytes": 9000}],
    "train_bytes": 9000, "train_tokens": 4500, "train": {"steps": 100, "seconds": None}, "memorised": None,
    "held_out": {"bytes": 1000}, "held_out_measured": {"bytes": 1000, "tokens": 500}, "validation": {"tokens": 512},
    "curve": {"step": [50, 100], "loss": [3.0, 2.0], "eval_step": [50, 100], "eval_bits_per_byte": [2.0, 1.9]},
    **SCORE.figures.as_record(), **BASE.figures.as_record("_before"), "ngram_cache": WEIGHTS._asdict(),
}  # fmt: skip


@pytest.fixture
def model(tiny_model: Path) -> Path:
    """A model that adapts, whose record has both figures."""
    source = loading.load(tiny_model)
    source.record = TrainingRecord.from_json(RECORD)
    checkpoint.save(tiny_model, source)
    return tiny_model


def the_result(*, json_: bool, capsys: pytest.CaptureFixture[str]) -> str:
    done: Any = SimpleNamespace(
        score=SCORE, base_score=BASE, step=100, best_step=100, seconds=1.0, interrupted=False,
        checkpoint=SimpleNamespace(record=TrainingRecord.from_json(RECORD)),
    )  # fmt: skip
    show_result(
        done, Path("m"), parameters=1, baselines=[], sentences=summarize(TrainingRecord.from_json(RECORD)), json_=json_
    )
    shown = capsys.readouterr()
    return shown.out if json_ else shown.err


def exported(llm: Any, output: str, *words: str) -> str:
    answer = llm("export", "model.safetensors", output, *words)
    assert answer.exit_code == 0, answer.stderr
    return str(answer.stderr)


def gguf_description(llm: Any) -> str:
    pytest.importorskip("gguf", reason="needs the extra gguf")
    exported(llm, "out.gguf", "--to", "gguf")
    return str(loading.load("out.gguf").record.document["imported"]["description"])


def model_card(llm: Any) -> str:
    exported(llm, "out", "--to", "hf")
    return Path("out/README.md").read_text("utf-8")


def page(llm: Any) -> str:
    exported(llm, "page.html", "--to", "html")
    return Path("page.html").read_text("utf-8")


BOTH: dict[str, Callable[[Any, Any], str]] = {  # places that show both figures
    "summary": lambda llm, capsys: summarize(TrainingRecord.from_json(RECORD))[0],
    "result of llm train": lambda llm, capsys: the_result(json_=False, capsys=capsys),
    "done event": lambda llm, capsys: the_result(json_=True, capsys=capsys),
    "llm inspect": lambda llm, capsys: llm("inspect").stdout,
    "llm inspect --json": lambda llm, capsys: llm("inspect", "--json").stdout,
    "page with the model inside": lambda llm, capsys: page(llm),
    "note of llm export": lambda llm, capsys: exported(llm, "out", "--to", "hf"),
}
NETWORK_ALONE: dict[str, Callable[[Any], str]] = {  # what leaves the program leaves the cache behind
    "model card": model_card,
    "description in a GGUF file": gguf_description,
}


def test_both_figures_are_named(model: Path, llm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for place in BOTH:
        shown = BOTH[place](llm, capsys)
        assert re.search(r'network(_bits_per_byte": | )1\.921', shown), shown
        assert re.search(r'adapting(_bits_per_byte": | )1\.827', shown), shown
    result = the_result(json_=False, capsys=capsys)  # before and after, of the same kind
    assert "bits per byte: network 2.222 before, 1.921 after; adapting 1.827 after" in result


def test_what_other_programs_run_states_the_figure_of_the_network(model: Path, llm: Any) -> None:
    for place in NETWORK_ALONE:
        shown = NETWORK_ALONE[place](llm)
        assert "Held-out text: network 1.921 bits per byte." in shown
        assert "1.827" not in shown and "adapting" not in shown


def test_a_record_gives_the_figures_that_were_written() -> None:
    for figures in (Figures(2.5), Figures(2.5, 2.25)):
        for when in ("", "_before"):
            record = TrainingRecord.from_json(figures.as_record(when))
            assert Figures.of_record(record, before=bool(when)) == figures
            assert Figures.of_record(record, before=not when) is None
    assert Figures.of_record(TrainingRecord.from_json({"bits_per_byte": None})) is None
    assert FinalEvaluation().score is None


def test_each_way_to_measure_a_text_gives_the_same_two_figures(model: Path, llm: Any) -> None:
    Path("t.txt").write_text(TEXT, "utf-8")
    [row] = json.loads(llm("eval", "t.txt", "--json", "-q").stdout)["results"]
    [alone] = json.loads(llm("eval", "t.txt", "--no-cache", "--json", "-q").stdout)["results"]
    network, adapting = row["network_bits_per_byte"], row["adapting_bits_per_byte"]
    assert adapting < network
    assert (row["bits_per_byte"], row["bits_per_byte_without_cache"]) == (adapting, network)
    assert (alone["bits_per_byte"], alone["network_bits_per_byte"]) == (network, network)
    assert alone["adapting_bits_per_byte"] is None and "bits_per_byte_without_cache" not in alone
    shown = llm("eval", "t.txt", "-q").stdout.splitlines()[1].split("\t")
    assert shown[:3] == ["model.safetensors", f"{network:.3f}", f"{adapting:.3f}"]
    score = llmcli.load(model).score(TEXT)
    assert (score.bytes, score.tokens) == (row["bytes"], row["tokens"])
    assert score.network_bits_per_byte == pytest.approx(network, abs=1e-6)
    assert score.adapting_bits_per_byte == pytest.approx(adapting, abs=1e-6) == score.bits_per_byte
    without = llmcli.load(model, cache=False).score(TEXT)
    assert without.bits_per_byte == without.network_bits_per_byte and without.adapting_bits_per_byte is None
    tokens = llm("eval", "t.txt", "--per-token", "--json", "-q").stdout
    assert f'"network_bits_per_byte": {network}, "adapting_bits_per_byte": {adapting}' in tokens
    heading = llm("eval", "t.txt", "--per-token", "-q").stdout
    assert f"network {network:.3f}, adapting {adapting:.3f} bits per byte; the most surprising" in heading


def test_an_estimate_is_shown_as_one() -> None:
    text = (TEXT * 10).encode()
    exact, estimate = (baselines(part, text[:3000])[2] for part in (text[:5000], text[:30_000]))
    assert not exact.is_estimate and exact.shown == f"{exact.bits_per_byte:.3f}"
    assert estimate.is_estimate and estimate.shown == f"about {estimate.bits_per_byte:.2f}"


@pytest.mark.slow
def test_the_figures_of_a_run_are_those_of_llm_eval(tmp_path: Path, llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcli.training.data import cache_fit
    from llmcli.training.planning import recipe

    monkeypatch.setattr(recipe, "MIN_VALIDATION_TOKENS", 64)
    monkeypatch.setattr(cache_fit, "MIN_TOKENS", 10)
    monkeypatch.setattr(cache_fit, "MIN_GAIN", -9.0)
    plain = write_tiny_model(tmp_path / "plain.safetensors")
    base = loading.load(plain)
    tokenizer = Tokenizer(Tokenizer.from_json(base.tokenizer_json)._inner, "char", bos_token="<|im_start|>")
    assert tokenizer.bos_id != tokenizer.eos_id
    checkpoint.save(tmp_path / "base.safetensors", replace(base, tokenizer_source=tokenizer.to_json()))
    Path("texts").mkdir()
    for number in range(60):
        words = random.Random(number).choices(TEXT.split(), k=50)  # in another order each, so no near-duplicates
        Path(f"texts/{number}.txt").write_text(f"{number}: {' '.join(words)}\n", "utf-8")
    answer = llm("train", "texts", "--from", "base.safetensors", "-o", "m.safetensors", "--steps", 3, "--json")
    assert answer.exit_code == 0, answer.stderr
    done = json.loads(answer.stdout.splitlines()[-1])
    record = loading.load(tmp_path / "m.safetensors").record.to_json()
    rows = json.loads(llm("eval", "texts", "-m", "m.safetensors", "--json", "-q").stdout)["results"]
    assert len(rows) > 2 and rows[-1]["bytes"] == record["held_out_measured"]["bytes"]  # all, of several documents
    for key in ("network_bits_per_byte", "adapting_bits_per_byte", "bits_per_byte"):
        assert done[key] == pytest.approx(rows[-1][key], rel=1e-4)
    assert done["adapting_bits_per_byte"] != done["network_bits_per_byte"]


def test_published_tables_have_both_figures() -> None:
    """Every generated part with bits per byte names the two, and no other name of them is left."""
    for document in ["README.md", "README.ja.md", "docs/benchmarks.md"]:
        text = (ROOT / document).read_text("utf-8")
        for match in tables.generated(text):
            if re.search(r"\b[01]\.\d{3}\b", match[2]):
                before = text[max(0, match.start() - 400) : match.start()]
                assert {NETWORK, ADAPTING} <= set(re.findall(r"[a-z]+", before + match[2])), match[1]
        assert "without cache" not in text and "adapting to the held-out" not in text


def test_the_documentation_explains_both() -> None:
    for name in ["docs/training.md", "docs/api.md", "docs/file-format.md", "docs/benchmarks.md"]:
        text = (ROOT / name).read_text("utf-8")
        assert re.search(r"\*network\*|\*\*network\*\*|`\.network_", text)
        assert re.search(r"\*adapting\*|\*\*adapting\*\*|`\.adapting_", text)
