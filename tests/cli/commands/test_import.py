"""`llm import`: an n-gram cache for a model that was not trained here, and models that another program changed."""

import json
import random
import re
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from llmcli.formats import loading
from llmcli.training.data import cache_fit

NAMES = ["Anna", "Ben", "Cleo", "Dora", "Emil", "Fritz", "Gerd", "Hans", "Ida", "Jonas"]


@pytest.fixture
def directory(tiny_model: Path, llm) -> Path:
    """A published model: random weights in a Hugging Face directory."""
    assert llm("export", tiny_model, "hf", "--to", "hf").exit_code == 0
    return Path("hf")


def repetitive(seed: int) -> str:
    """Sentences of a few words each: most follow from the ones before."""
    pick = random.Random(seed)
    names = pick.sample(NAMES, 4)
    return "".join(f"{pick.choice(names)} meets {pick.choice(names)} in the garden.\n" for _ in range(300))


@pytest.mark.slow
def test_a_cache_is_fitted_and_lowers_the_loss_of_another_text(directory: Path, llm) -> None:
    Path("text.txt").write_text(repetitive(1), "utf-8")
    Path("new.txt").write_text(repetitive(2), "utf-8")
    result = llm("import", directory, "-o", "cached.safetensors", "--fit-cache", "text.txt")
    assert result.exit_code == 0 and "n-gram cache: fitted on text.txt" in result.stderr
    assert loading.load("cached.safetensors").record.ngram_cache
    shown = llm("inspect", "cached.safetensors").stdout
    assert "n-gram cache" in shown and not re.search(r"^  (corpus|steps|best weights|held-out) ", shown, re.M), shown
    assert llm("import", directory, "-o", "plain.safetensors").exit_code == 0
    answer = llm("eval", "text.txt", "-m", "cached.safetensors")
    assert "cached.safetensors: trained on all of this text (to fit its n-gram cache), so its scores" in answer.stderr

    def bits(model: str) -> tuple[float, float | None]:
        (measured,) = json.loads(llm("eval", "new.txt", "-m", model, "--json").stdout)["results"]
        return measured["bits_per_byte"], measured.get("bits_per_byte_without_cache")

    plain, nothing = bits("plain.safetensors")
    cached, alone = bits("cached.safetensors")
    assert nothing is None and alone == pytest.approx(plain)
    assert cached < 0.7 * plain  # the network knows nothing, the text repeats itself


@pytest.mark.slow
def test_where_it_does_not_help_the_model_gets_no_cache(directory: Path, llm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_fit, "MIN_GAIN", 1.0)  # no cache lowers the loss to 0
    Path("text.txt").write_text(repetitive(1), "utf-8")
    result = llm("import", directory, "-o", "m.safetensors", "--fit-cache", "text.txt")
    assert result.exit_code == 0
    assert "warning: an n-gram cache does not help the model on text.txt, so it has none" in result.stderr
    assert loading.load("m.safetensors").record.ngram_cache is None


@pytest.mark.parametrize(("text", "problem"), [("Anna meets Ben.\n", "--fit-cache: "), (None, "missing.txt")])
def test_a_text_that_cannot_be_used_writes_no_model(directory: Path, llm, text: str | None, problem: str) -> None:
    file = Path("short.txt" if text else "missing.txt")
    if text:
        file.write_text(text, "utf-8")
    result = llm("import", directory, "-o", "m.safetensors", "--fit-cache", file)
    assert result.exit_code != 0 and problem in result.stderr and result.stderr.count("\n") <= 2
    assert not Path("m.safetensors").exists()


def test_a_model_whose_weights_were_changed_is_imported_without_the_figures_of_its_run(llm) -> None:
    Path("text.txt").write_text(repetitive(1), "utf-8")
    assert llm("train", "text.txt", "--steps", 2, "--layers", 1, "--width", 32).exit_code == 0
    trained = loading.load("model.safetensors")
    with safe_open("model.safetensors", "numpy") as file:
        save_file({key: 2 * array for key, array in file.get_tensors().items()}, "edited.safetensors", file.metadata())
    for words in (["generate", "Anna", "-m"], ["inspect", "--verify"]):
        assert re.match("error: edited.safetensors .*changed", llm(*words, "edited.safetensors").stderr)
    result = llm("import", "edited.safetensors", "-o", "imported.safetensors")
    assert result.exit_code == 0 and result.stderr.startswith("warning: edited.safetensors was changed")
    imported = loading.load("imported.safetensors")
    assert all((imported.tensors[name] == 2 * array).all() for name, array in trained.tensors.items())
    assert trained.record.train and not imported.record.train and imported.record.seen_bytes
    (stage,) = imported.record.earlier_stages
    assert [file.sha256 for file in stage.corpus] == [file.sha256 for file in trained.record.corpus]
    shown = llm("inspect", "imported.safetensors").stdout
    assert "imported by llmcli from a changed safetensors file" in shown and "edited.safetensors: text.txt, " in shown
    assert llm("generate", "Anna", "-n", 1, "-m", "imported.safetensors").exit_code == 0
