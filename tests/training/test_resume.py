"""A run that was stopped, however often and however hard, ends as one that never was."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from llmcli.data.corpus import read_corpus
from llmcli.errors import LLMError
from llmcli.training import resume, trainer
from llmcli.training.memory_fit import check_fits
from llmcli.training.plan import Request
from llmcli.training.prepare import Prepared, prepare
from tests import platforms
from tests.golden.models import read_safetensors
from tests.reliability.runs import BESIDE, OPTIONS, TEXT, end, kept, train, wait_until_kept

Llm = Callable[..., Result]
HERE = Path()


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.setattr(trainer, "EVAL_SHARE", 1)  # a look every other step
    (tmp_path / "c.txt").write_text(TEXT, "utf-8")
    request = Request(steps=24, batch_tokens=512, context=32, dropout=0.2)
    found = prepare(request, read_corpus([str(tmp_path / "c.txt")]))
    settings = replace(found.plan.train, token_split=0.3, calibration_tokens=65)
    return replace(found, plan=replace(found.plan, train=settings))


def run(ready: Prepared, **options: object) -> list[trainer.Event]:
    return list(
        trainer.train(ready.plan, ready.tokenizer, None, ready.tokens, ready.held_out, ready.record, **options)  # type: ignore[arg-type]
    )


def through_a_file(ready: Prepared, state: resume.State) -> resume.State:
    path = Path("model.resume.safetensors")
    resume.save(path, resume.Stopped({}, ready.plan, ready.tokenizer.to_json(), state))
    found = resume.load(path)
    assert found.plan == ready.plan and found.tokenizer_json == ready.tokenizer.to_json()
    return found.state


def assert_same_end(first: list[trainer.Event], second: list[trainer.Event]) -> None:
    ours, theirs = first[-1], second[-1]
    assert isinstance(ours, trainer.Done) and isinstance(theirs, trainer.Done)
    assert ours.checkpoint.record == theirs.checkpoint.record
    assert ours.checkpoint.tensors.keys() == theirs.checkpoint.tensors.keys()
    for name, array in ours.checkpoint.tensors.items():
        assert np.array_equal(array, theirs.checkpoint.tensors[name]), name


def test_from_every_step_a_run_goes_on_to_the_same_end(ready: Prepared) -> None:
    """Also with the losses, to the last bit; in between the state goes through a file."""
    whole = run(ready, save=lambda: True)
    states = [event for event in whole if isinstance(event, resume.State)]
    assert [state.step for state in states] == list(range(1, 24))
    assert any(isinstance(event, trainer.Evaluation) for event in whole[: len(whole) // 2])
    for state in (states[0], states[9], states[10], states[22]):
        rest = run(ready, go_on=through_a_file(ready, state))
        losses = [[e.loss for e in events if isinstance(e, trainer.Step)] for events in (whole, rest)]
        assert losses[1] == losses[0][state.step :]
        assert_same_end(whole, rest)


def test_a_run_with_experts_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "EVAL_SHARE", 1)
    (tmp_path / "c.txt").write_text(TEXT, "utf-8")
    request = Request(steps=12, batch_tokens=512, context=32, dropout=0.2, experts=4)
    ready = prepare(request, read_corpus([str(tmp_path / "c.txt")]))
    whole = run(ready, save=lambda: True)
    states = [event for event in whole if isinstance(event, resume.State)]
    for state in (states[0], states[6]):
        assert_same_end(whole, run(ready, go_on=through_a_file(ready, state)))
    assert isinstance(whole[-1], trainer.Done)
    shares = whole[-1].checkpoint.record["expert_shares"]
    assert [len(layer) for layer in shares] == [4, 4] and all(sum(s) == pytest.approx(1, abs=1e-3) for s in shares)


@pytest.mark.parametrize("step", [1, 8, 9])
def test_a_run_asked_to_stop_goes_on_as_if_it_had_not_been(ready: Prepared, step: int) -> None:
    """Though the stop brings a look at the held-out text that the whole run does not have."""
    asked = iter([False] * (step - 1) + [True])
    cut = run(ready, stop=lambda: next(asked))
    (state,) = (event for event in cut if isinstance(event, resume.State))
    assert state.step == step and isinstance(cut[-1], trainer.Done) and cut[-1].interrupted
    assert_same_end(run(ready), run(ready, go_on=through_a_file(ready, state)))


def test_time_already_used_counts(ready: Prepared) -> None:
    settings = replace(ready.plan.train, seconds=1000.0, steps=10**6)
    timed = replace(ready, plan=replace(ready.plan, train=settings))
    asked = iter([False, True])
    (state,) = (event for event in run(timed, stop=lambda: next(asked)) if isinstance(event, resume.State))
    late = replace(state, figures=state.figures | {"seconds": 999.9999, "trained_seconds": 990.0})
    done = run(timed, go_on=late)[-1]
    assert isinstance(done, trainer.Done) and not done.interrupted and done.step == 2  # another would end too late
    assert done.seconds > 999


# ---- the file


def test_the_keys_of_the_file_stay(ready: Prepared) -> None:
    """A run that an earlier version stopped can be resumed: what is in the file is a format, not a module's names."""
    state = next(event for event in run(ready, save=lambda: True) if isinstance(event, resume.State))
    through_a_file(ready, state)
    metadata, tensors = read_safetensors(Path("model.resume.safetensors"))
    assert list(metadata) == [
        "llmcli.resume", "identity", "config.json", "train", "choices", "tokenizer.json", "figures", "sha256",
    ]  # fmt: skip
    assert list(json.loads(metadata["figures"])) == [
        "step", "progress", "evaluated_step", "evaluated_progress", "best_step", "best_bits", "best_factor", "dropout",
        "token_split", "regularized_progress", "regularizations", "evaluations", "samples", "seconds",
        "trained_seconds",
    ]  # fmt: skip
    assert {name.split(".")[0] for name in tensors} >= {"model", "optimizer", "losses"}


def test_damage_is_found(ready: Prepared) -> None:
    state = next(event for event in run(ready, save=lambda: True) if isinstance(event, resume.State))
    through_a_file(ready, state)
    path = Path("model.resume.safetensors")
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(LLMError, match="damaged: its hash is another; begin anew with --force"):
        resume.load(path)
    path.write_bytes(data[:-1000])
    with pytest.raises(LLMError, match=r"cut off.*; begin anew with --force"):
        resume.load(path)


def test_values_that_do_not_fit_the_plan_are_told(ready: Prepared) -> None:
    state = next(event for event in run(ready, save=lambda: True) if isinstance(event, resume.State))
    embedding = "model.model.embed_tokens.weight"
    for arrays, figures in (
        ({name: array for name, array in state.arrays.items() if name != "losses"}, {}),
        (state.arrays | {embedding: state.arrays[embedding][:3]}, {}),
        (state.arrays | {"optimizer.muon.0": np.zeros((2, 3), np.float32)}, {}),
        (state.arrays, {"evaluations": 7}),
        (state.arrays, {"seconds": "long"}),
        (state.arrays, {"step": -5}),
        (state.arrays, {"step": 10**30}),
        (state.arrays, {"best_step": None}),
        (state.arrays, {"progress": float("nan")}),
        (state.arrays, {"best_factor": float("inf")}),
    ):
        with pytest.raises(LLMError, match=r"left other values than its plan has .*; begin anew with --force"):
            run(ready, go_on=resume.State(arrays, state.figures | figures))


@pytest.mark.parametrize("change", [{"dtype": "x"}, {"threads": 10**9}, {"steps": 1.5}, {"token_split": -1.0}])
def test_a_plan_that_is_none_is_told(ready: Prepared, change: dict[str, object]) -> None:
    state = next(event for event in run(ready, save=lambda: True) if isinstance(event, resume.State))
    wrong = replace(ready.plan)
    settings = replace(ready.plan.train)
    for name, value in change.items():
        object.__setattr__(settings, name, value)
    object.__setattr__(wrong, "train", settings)
    path = Path("model.resume.safetensors")
    resume.save(path, resume.Stopped({}, wrong, ready.tokenizer.to_json(), state))
    with pytest.raises(LLMError, match=r"is damaged: .*; begin anew with --force"):
        resume.load(path)


def test_a_plan_too_large_for_what_is_free_now_is_told(ready: Prepared) -> None:
    check_fits(ready.plan, 1e12)
    large = replace(ready.plan, train=replace(ready.plan.train, context=10**12))
    with pytest.raises(LLMError, match=r"resuming needs about .* GB of memory, 1,000\.0 GB are free"):
        check_fits(large, 1e12)


def test_a_model_is_no_stopped_run(tiny_model: Path) -> None:
    with pytest.raises(LLMError, match="not what a stopped run left"):
        resume.load(tiny_model)


def test_differences_are_told() -> None:
    before = {"--steps": 10, "--lr": 1.0, "the text": "a"}
    assert resume.differences(before, before) == []
    assert resume.differences(before, {"--steps": 12, "the text": "a", "--width": 64}) == [
        "--steps was 10, is 12",
        "--lr was 1.0, is not given",
        "--width was not given, is 64",
    ]


def test_a_disk_that_refuses_is_told_once(ready: Prepared) -> None:
    state = next(event for event in run(ready, save=lambda: True) if isinstance(event, resume.State))
    told: list[str] = []
    keeper = resume.Keeper(Path("nowhere/m.resume.safetensors"), {}, ready.plan, "{}", told.append)
    assert keeper.resumable
    keeper.keep(state)
    keeper.keep(state)
    assert len(told) == 1 and "if this run is stopped it cannot go on" in told[0] and not keeper.due()
    assert not keeper.resumable


# ---- the command (killed runs, signals and two runs at once are rows of the scorecard: tests/reliability)


@platforms.posix
def test_killed_between_the_model_and_the_end_it_goes_on_to_the_same_model() -> None:
    code = (
        "from pathlib import Path; import os; import llmcli.training.resume as t;"
        "t.FIRST_KEPT = t.MOST_APART = t.KEPT_SHARE = 0.0;"
        "Path.unlink = lambda self, missing_ok=False: os.kill(os.getpid(), 9); from llmcli.cli.app import main; main()"
    )
    process = train(HERE, steps=5, code=code)
    end(process)
    assert process.returncode == -9
    before = Path("model.safetensors").read_bytes()
    assert Path(BESIDE).exists()
    again = train(HERE, steps=5)
    assert end(again) == b"" and again.returncode == 0
    assert Path("model.safetensors").read_bytes() == before and not Path(BESIDE).exists()


@platforms.posix
def test_adapters_alone_go_on_where_they_were_stopped(tiny_model: Path) -> None:
    tiny_model.rename("base.safetensors")
    before = 0
    for _ in range(2):
        process = train(HERE, "--from", "base.safetensors", "--lora", "2", "--adapter-only", steps=4000)
        wait_until_kept(process, HERE, before)
        said = end(process, signal.SIGINT)
        assert process.returncode == 130, said
        assert Path("model.safetensors").exists()
        before = kept(HERE)


@platforms.posix
def test_another_command_does_not_go_on_silently(llm: Llm) -> None:
    process = train(HERE, steps=4000)
    wait_until_kept(process, HERE)
    end(process, signal.SIGINT)
    assert process.returncode == 130
    beside = Path(BESIDE)
    before = beside.read_bytes()

    def told(*words: str) -> str:
        answer = llm("train", "c.txt", *OPTIONS, "--steps", "4000", *words)
        assert answer.exit_code == 1 and answer.stderr.count("\n") == 1, answer.stderr
        assert beside.read_bytes() == before
        return answer.stderr

    assert "--steps was 4000, is 4001; give the same to go on, --force to begin anew" in told("--steps", "4001")
    assert "--threads was 1, is 2" in told("--threads", "2", "-q")
    assert "--lr-scale was 1.0, is 0.5" in told("--lr", "0.5")
    Path("c.txt").write_text(TEXT[:-1] + "!", "utf-8")
    assert "the text was 1 file of" in told()
    Path("c.txt").write_text(TEXT, "utf-8")
    assert llm("train", "c.txt", *OPTIONS, "--steps", "24", "--force", "-q").exit_code == 0  # begins anew
    assert not beside.exists()
