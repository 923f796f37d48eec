"""The Python API gives the results of the command line, and importing it loads no heavy library."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

import llmcli
from llmcli import api

Llm = Callable[..., Result]
PROMPT = "The cat sat"


def output(run: Result) -> dict:
    assert run.exit_code == 0, run.stderr
    return json.loads(run.stdout)


def test_importing_loads_neither_numpy_nor_torch() -> None:
    code = "import llmcli, sys; print(sorted({'numpy', 'torch', 'typer', 'rich', 'tokenizers'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_public_name_is_there() -> None:
    assert set(llmcli._MODULES) | {"__version__"} == set(llmcli.__all__) <= set(dir(llmcli))
    assert llmcli.load is api.load and llmcli.Model is api.Model
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        llmcli.lode  # noqa: B018


def test_generate_gives_the_text_of_the_command(tiny_model: Path, llm: Llm) -> None:
    model = llmcli.load(tiny_model)
    answer = output(llm("generate", PROMPT, "-m", tiny_model, "-n", 12, "--seed", 3, "--json"))
    assert model.generate(PROMPT, max_tokens=12, seed=3) == answer["text"]
    pieces = list(model.pieces(PROMPT, max_tokens=12, seed=3))
    assert [piece.id for piece in pieces if piece.id is not None] == [token["id"] for token in answer["tokens"]]
    assert "".join(model.stream(PROMPT, max_tokens=12, seed=3)) == answer["text"]


def test_calls_without_a_seed_give_different_texts(tiny_model: Path) -> None:
    model = llmcli.load(tiny_model)
    assert len({model.generate(PROMPT, max_tokens=8) for _ in range(8)}) > 1
    assert len({model.generate(PROMPT, max_tokens=8, temperature=0) for _ in range(3)}) == 1


def test_a_single_stop_string_is_accepted(tiny_model: Path) -> None:
    model = llmcli.load(tiny_model)
    text = model.generate(PROMPT, max_tokens=20, seed=1)
    assert model.generate(PROMPT, max_tokens=20, seed=1, stop=text[2]) == text[: text.index(text[2])]


def test_an_unknown_option_is_named(tiny_model: Path) -> None:
    with pytest.raises(TypeError, match="unknown option 'tokens'; the options are max_tokens, min_p,"):
        llmcli.load(tiny_model).generate(PROMPT, tokens=5)


@pytest.mark.usefixtures("short_search")
def test_next_words_are_those_of_the_command(tiny_model: Path, llm: Llm) -> None:
    answer = output(llm("generate", PROMPT, "-m", tiny_model, "--next", 4, "--json"))
    words = llmcli.load(tiny_model).next_words(PROMPT, 4)
    assert [word for word, _ in words] == [entry["text"] for entry in answer["next"]]
    assert [p for _, p in words] == pytest.approx([entry["probability"] for entry in answer["next"]], abs=1e-6)


def test_the_score_is_that_of_eval(tiny_model: Path, llm: Llm) -> None:
    text = "The dog ate the hat. りんごを食べる。\n" * 5
    Path("t.txt").write_text(text, "utf-8")
    [row] = output(llm("eval", "t.txt", "-m", tiny_model, "--json"))["results"]
    score = llmcli.load(tiny_model).score(text)
    assert score.bits_per_byte == pytest.approx(row["bits_per_byte"], rel=1e-4)
    assert (score.bytes, score.tokens) == (row["bytes"], row["tokens"])


def test_the_score_is_the_sum_of_the_log_probabilities(tiny_model: Path) -> None:
    """By hand: the logits of the runtime after each token of a text that fits the context."""
    model = llmcli.load(tiny_model)
    ids = model.tokenize(PROMPT)
    logits = model.runtime.logits([model.tokenizer.bos_id, *ids])[:-1].astype(np.float64)
    model.runtime.rewind()
    nats = sum(math.log(np.exp(row - row.max()).sum()) + row.max() - row[i] for row, i in zip(logits, ids, strict=True))
    assert model.score(PROMPT).bits_per_byte == pytest.approx(nats / math.log(2) / len(PROMPT), rel=1e-5)


def test_explain_predicts_what_generate_chooses(tiny_model: Path) -> None:
    model = llmcli.load(tiny_model)
    explanation = model.explain(PROMPT)
    assert model.detokenize(explanation.ids) + explanation.tail == PROMPT
    [piece, *_] = model.pieces(PROMPT, max_tokens=1, temperature=0)
    assert piece.id == explanation.most_likely(1)[0]


def test_detokenize_reverses_tokenize(tiny_model: Path) -> None:
    model = llmcli.load(tiny_model)
    for text in (PROMPT, "りんご🍎", ""):
        assert model.detokenize(model.tokenize(text)) == text


def test_a_model_describes_itself(tiny_model: Path) -> None:
    model = llmcli.load(str(tiny_model))
    assert model.path == tiny_model and model.context == 32 and model.record == {"steps": 0}
    assert f"{model.parameters:,} parameters, context 32" in repr(model)


def test_every_error_is_an_llm_error(tmp_path: Path) -> None:
    (tmp_path / "no.safetensors").write_bytes(b"no model")
    for name in ("missing.safetensors", "no.safetensors"):
        with pytest.raises(llmcli.LLMError):
            llmcli.load(tmp_path / name)


TEXT = "The cat sat on the mat. The dog ate the hat.\n" * 60
RUN = {"steps": 4, "threads": 1, "seed": 2, "layers": 1, "width": 32, "context": 16, "batch_tokens": 64}


@pytest.mark.slow
def test_training_gives_the_model_of_the_command(own_directory: Path, llm: Llm) -> None:
    Path("c.txt").write_text(TEXT * 60, "utf-8")
    words = [word for key, value in RUN.items() for word in (f"--{key.replace('_', '-')}", value)]
    assert llm("train", "c.txt", "-o", "command.safetensors", "-q", *words).exit_code == 0
    *events, result = llmcli.train("c.txt", "api.safetensors", **RUN)
    assert isinstance(result, llmcli.Result) and result.file == Path("api.safetensors") and result.done.step == 4
    assert {llmcli.Step, llmcli.Evaluation} <= {type(event) for event in events}
    assert Path("api.safetensors").read_bytes() == Path("command.safetensors").read_bytes()
    assert llmcli.load("api.safetensors").record["bits_per_byte"] == pytest.approx(result.bits_per_byte, abs=1e-4)


def test_a_stopped_run_of_the_command_is_resumed_by_the_api_to_the_same_bytes(own_directory: Path, llm: Llm) -> None:
    """Both give a run the same identity."""
    from llmcli.training import resume

    Path("c.txt").write_text(TEXT, "utf-8")
    *_, whole = llmcli.train("c.txt", "whole.safetensors", **RUN)
    events = llmcli.train("c.txt", "api.safetensors", **RUN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume.StateSaver, "is_due", lambda self: True)
        for event in events:
            if isinstance(event, llmcli.Step) and event.step == 3:
                events.close()
                break
    assert Path("api.resume.safetensors").exists() and not Path("api.safetensors").exists()
    words = [word for key, value in RUN.items() for word in (f"--{key.replace('_', '-')}", value)]
    run = llm("train", "c.txt", "-o", "api.safetensors", *words)
    assert run.exit_code == 0 and "resuming from step" in run.stderr, run.stderr
    assert Path("api.safetensors").read_bytes() == whole.file.read_bytes()


def test_a_file_is_replaced_only_with_overwrite(own_directory: Path) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    Path("m.safetensors").write_text("mine", "utf-8")
    with pytest.raises(llmcli.LLMError, match="exists"):
        list(llmcli.train("c.txt", "m.safetensors", **RUN))
    assert Path("m.safetensors").read_text("utf-8") == "mine"
    assert list(llmcli.train("c.txt", "m.safetensors", overwrite=True, **RUN))[-1].file == Path("m.safetensors")
