"""A run that was stopped, however often and by whatever means, ends with the same file as one that was not."""

import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.errors import LLMError
from llmcli.formats import file_lock
from llmcli.training import session
from llmcli.training.data.prepare import Prepared
from llmcli.training.files import resume
from llmcli.training.loop.best_weights import BestWeights
from llmcli.training.loop.events import Done, Evaluation, Event, State
from llmcli.training.planning.cost_model import Memory, check_fits
from llmcli.training.planning.plan import PlanRequest
from tests import platforms
from tests.conftest import Llm
from tests.data.corpora import read_corpus
from tests.golden.models import read_safetensors
from tests.reliability.runs import OPTIONS, RESUME_FILE, TEXT, end, interrupted_here, train, train_here
from tests.training import small_runs
from tests.training.plans import prepare
from tests.training.small_runs import Schedule, assert_resumes_to_the_same_end, assert_same_end, through_a_file

pytestmark = pytest.mark.slow

HERE = Path()
OFTEN = Schedule(training_per_evaluated=1)  # an evaluation every other step


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    tmp_path = tmp_path_factory.mktemp("resume")
    (tmp_path / "c.txt").write_text(TEXT, "utf-8")
    request = PlanRequest(steps=24, batch_tokens=512, context=32, layers=2, width=32, dropout=0.2)
    ready = prepare(request, read_corpus([str(tmp_path / "c.txt")]))
    settings = replace(ready.plan.train, token_split=0.3, calibration_tokens=65)
    return replace(ready, plan=replace(ready.plan, train=settings))


def run(ready: Prepared, **options: object) -> list[Event]:
    return small_runs.run(ready, schedule=OFTEN, **options)


@pytest.fixture(scope="module")
def whole(ready: Prepared) -> list[Event]:
    """The events of the whole run, with its state after each step."""
    return run(ready, save_due=lambda: True)


def states(events: list[Event]) -> list[State]:
    return [event for event in events if isinstance(event, State)]


def test_a_run_resumed_from_any_step_ends_the_same(ready: Prepared) -> None:
    whole = assert_resumes_to_the_same_end(ready, (1, 10, 11, 23), schedule=OFTEN)
    assert [state.step for state in states(whole)] == list(range(1, 24))
    assert any(isinstance(event, Evaluation) for event in whole[: len(whole) // 2])


@pytest.mark.parametrize("step", [1, 8, 9])
def test_an_interrupted_run_resumes_as_if_it_had_not_been_interrupted(ready, whole, step) -> None:
    """Though the interruption causes an evaluation that the whole run does not have."""
    interrupted = small_runs.run_until(ready, step, schedule=OFTEN)
    (state,) = states(interrupted)
    done = interrupted[-1]
    assert state.step == step and isinstance(done, Done) and done.interrupted
    assert_same_end(whole, run(ready, resume_from=through_a_file(ready, state)))


@pytest.mark.parametrize("number", [1, 3])
def test_a_run_stopped_in_an_evaluation_resumes_with_that_evaluation(
    ready: Prepared, whole: list[Event], monkeypatch, number: int
) -> None:
    evaluate, calls = BestWeights.evaluate, list[int]()

    def cut_short(self: BestWeights, *, hurried: bool) -> object:
        calls.append(1)
        return None if len(calls) == number else evaluate(self, hurried=hurried)

    monkeypatch.setattr(BestWeights, "evaluate", cut_short)
    interrupted = run(ready, stop=lambda: len(calls) >= number)
    (state,) = states(interrupted)
    cut = [event.step for event in whole if isinstance(event, Evaluation)][number - 1]
    assert state.step == cut and isinstance(interrupted[-1], Done) and interrupted[-1].interrupted
    rest = run(ready, resume_from=through_a_file(ready, state))
    assert isinstance(rest[0], Evaluation) and rest[0].step == cut
    assert_same_end(whole, rest)


def test_a_resumed_run_evaluates_as_much_of_the_validation_slice(ready: Prepared) -> None:
    """Of ten windows two, where a limit had ended the first evaluation of the stopped run there."""
    whole = small_runs.with_slice(ready)
    (state,) = states(small_runs.run_until(whole, 8))
    assert state.values["validation_units"] == 10
    part = State(state.arrays, state.values | {"validation_units": 2})
    found = [
        [event.bits_per_byte for event in run(whole, resume_from=one) if isinstance(event, Evaluation)]
        for one in (state, part)
    ]
    assert len(found[0]) == len(found[1]) and not set(found[0]) & set(found[1])


def test_a_state_saved_while_progress_was_lower_than_before_resumes(ready: Prepared) -> None:
    (state,) = states(small_runs.run_until(ready, 8))
    values = state.values | {"evaluated_progress": state.values["progress"] + 0.01}
    done = run(ready, resume_from=State(state.arrays, values))[-1]
    assert isinstance(done, Done) and done.step == 24


def test_the_keys_of_the_file_stay(ready: Prepared, whole: list[Event]) -> None:
    """What is in the file is a format, not a module's names."""
    state = states(whole)[0]
    through_a_file(ready, state)
    metadata, tensors = read_safetensors(Path("model.resume.safetensors"))
    assert list(metadata) == [
        "llmcli.resume", "identity", "config.json", "train", "choices", "tokenizer.json", "figures", "sha256",
    ]  # fmt: skip
    assert list(json.loads(metadata["figures"])) == [
        "step", "progress", "evaluated_step", "evaluated_progress", "best_step", "best_bits", "best_factor", "dropout",
        "token_split", "regularized_progress", "regularizations", "conversations_from", "stage_start", "stage_end",
        "student_from", "evaluations", "samples", "predictions", "validation_units", "seconds", "trained_seconds",
        "step_seconds",
    ]  # fmt: skip
    assert {name.split(".")[0] for name in tensors} >= {"model", "optimizer", "losses"}


def test_damage_is_detected(ready: Prepared, whole: list[Event]) -> None:
    state = states(whole)[0]
    through_a_file(ready, state)
    path = Path("model.resume.safetensors")
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(LLMError, match="damaged: its hash does not match; start over with `overwrite=True`"):
        resume.load(path)
    path.write_bytes(data[:-1000])
    with pytest.raises(LLMError, match=r"cut off.*; start over with `overwrite=True`"):
        resume.load(path)


def test_a_state_that_does_not_fit_the_plan_is_refused(ready: Prepared, whole: list[Event]) -> None:
    state = states(whole)[0]
    embedding = "model.model.embed_tokens.weight"
    for arrays, values in (
        ({name: array for name, array in state.arrays.items() if name != "losses"}, {}),
        (state.arrays | {embedding: state.arrays[embedding][:3]}, {}),
        (state.arrays | {"optimizer.muon.0": np.zeros((2, 3), np.float32)}, {}),
        (state.arrays, {"evaluations": 7}),
        (state.arrays, {"evaluations": [(1, 3.5, 7)]}),
        (state.arrays, {"seconds": "long"}),
        (state.arrays, {"step": -5}),
        (state.arrays, {"step": 10**30}),
        (state.arrays, {"best_step": None}),
        (state.arrays, {"progress": float("nan")}),
        (state.arrays, {"best_factor": float("inf")}),
        (state.arrays, {"best_factor": 0.0}),
        (state.arrays, {"conversations_from": -1}),
    ):
        with pytest.raises(LLMError, match=r"does not fit its plan \(.*\); start over with `overwrite=True`"):
            run(ready, resume_from=State(arrays, state.values | values))


@pytest.mark.parametrize("change", [{"dtype": "x"}, {"threads": 10**9}, {"steps": 1.5}, {"token_split": -1.0}])
def test_an_invalid_plan_is_refused(ready: Prepared, whole: list[Event], change: dict[str, object]) -> None:
    state = states(whole)[0]
    invalid = replace(ready.plan)
    settings = replace(ready.plan.train)
    for name, value in change.items():
        object.__setattr__(settings, name, value)
    object.__setattr__(invalid, "train", settings)
    path = Path("model.resume.safetensors")
    resume.save(path, resume.StoppedRun({}, invalid, ready.tokenizer.to_json(), state))
    with pytest.raises(LLMError, match=r"is damaged: .*; start over with `overwrite=True`"):
        resume.load(path)


def test_a_plan_too_large_for_the_memory_that_is_free_now_is_refused(ready: Prepared) -> None:
    check_fits(ready.plan, Memory(1e12, 1e12))
    large = replace(ready.plan, train=replace(ready.plan.train, context=10**12))
    with pytest.raises(LLMError, match=r"resuming needs about .* GB of memory, but only 1,000\.0 GB is free"):
        check_fits(large, Memory(1e12, 1e12))


def test_a_model_is_not_a_resume_file(tiny_model: Path) -> None:
    with pytest.raises(LLMError, match="is not a resume file"):
        resume.load(tiny_model)


def test_differences_of_identities_are_listed(ready: Prepared) -> None:
    before = {"--steps": 10, "--lr": 1.0, "the text": "a"}
    stopped = resume.StoppedRun(before, ready.plan, "{}", State({}, {"step": 1}))
    resume.check_same_run(stopped, before, Path("r"))
    differences = "`steps` was 10, is 12; `lr` was 1.0, is not given; `width` was not given, is 64; give the same"
    with pytest.raises(LLMError, match=differences):
        resume.check_same_run(stopped, {"--steps": 12, "the text": "a", "--width": 64}, Path("r"))
    text, renamed = (resume.text_fingerprint([(name, 9, "c" * 64)]) for name in ("a.txt", "b.txt"))
    with pytest.raises(
        LLMError, match=r"is 1 file of 9 bytes \(sha256 .*\) \(the hash includes the names of the files\)"
    ):
        resume.check_same_run(replace(stopped, identity={"the text": text}), {"the text": renamed}, Path("r"))


def test_a_disk_that_cannot_be_written_causes_one_warning(ready: Prepared, whole: list[Event]) -> None:
    stopped = resume.StoppedRun({}, ready.plan, "{}", states(whole)[0])
    warnings: list[str] = []
    saver = resume.StateSaver(Path("nowhere/m.resume.safetensors"), warnings.append)
    assert saver.resumable
    saver.save(stopped)
    saver.save(stopped)
    assert len(warnings) == 1 and "if this run is stopped, it cannot be resumed" in warnings[0]
    assert not saver.is_due() and not saver.resumable
    Path("nowhere").mkdir()
    saver.save(stopped)
    assert saver.resumable


def test_the_second_run_with_one_output_is_an_error() -> None:
    with file_lock.locked(Path("model.safetensors")):
        answer = train_here(HERE, steps=2)
    assert answer.exit_code == 1 and answer.stderr.startswith("error: another run is writing to model.safetensors")


# (killed runs and signals are rows of the scorecard: tests/reliability)
@platforms.posix
@pytest.mark.baselines  # as in the other process
def test_a_run_killed_after_saving_its_model_resumes_to_the_same_model() -> None:
    code = (
        "from pathlib import Path; import os; import llmcli.training.files.resume as t;"
        "t.FIRST_PAUSE = t.LONGEST_PAUSE = t.PAUSE_PER_SAVE = 0.0;"
        "Path.unlink = lambda self, missing_ok=False: os.kill(os.getpid(), 9); from llmcli.cli.main import main; main()"
    )
    process = train(HERE, steps=5, code=code)
    end(process)
    assert process.returncode == -9
    before = Path("model.safetensors").read_bytes()
    assert Path(RESUME_FILE).exists()
    again = train_here(HERE, steps=5)
    assert (again.exit_code, again.stderr) == (0, "")
    assert Path("model.safetensors").read_bytes() == before and not Path(RESUME_FILE).exists()


def test_a_resumed_run_reads_as_much_of_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interrupted_here(HERE, steps=12, step=3).exit_code == 130
    stopped, seen, real = resume.load(Path(RESUME_FILE)), list[int](), session.prepare
    assert stopped.max_bytes == sys.maxsize  # without a time budget
    resume.save(Path(RESUME_FILE), replace(stopped, max_bytes=123_456))

    def recorded(*arguments: Any, max_bytes: int, **options: Any) -> Prepared:
        seen.append(max_bytes)
        return real(*arguments, max_bytes=None, **options)

    monkeypatch.setattr(session, "prepare", recorded)
    assert train_here(HERE, steps=12).exit_code == 0 and seen == [123_456]


def test_a_resumed_run_shows_the_losses_from_before_it_was_stopped(llm: Llm) -> None:
    assert interrupted_here(HERE, steps=12, step=3).exit_code == 130
    command = ["train", "c.txt", *OPTIONS, "--steps", 12]
    resumed, whole = (llm(*command, "-o", name).stderr for name in ("model.safetensors", "whole.safetensors"))
    assert "resuming from step 3" in resumed
    assert re.findall(r"training \d\.\d+", resumed)[-1] == re.findall(r"training \d\.\d+", whole)[-1]


def test_adapters_alone_resume_where_they_were_stopped(tiny_model: Path) -> None:
    tiny_model.rename("base.safetensors")
    for stopped_at in (2, 4):
        answer = interrupted_here(HERE, "--from", "base.safetensors", "--lora", 2, "--adapter-only", steps=9, step=2)
        assert answer.exit_code == 130, answer.stderr
        assert Path("model.safetensors").exists()
        assert resume.load(Path(RESUME_FILE)).state.step == stopped_at


def test_another_command_does_not_resume_the_run_silently(llm: Llm) -> None:
    assert interrupted_here(HERE, steps=4000, step=2).exit_code == 130
    beside = Path(RESUME_FILE)
    before = beside.read_bytes()

    def error(**changed: object) -> str:
        typed = dict(zip(OPTIONS[::2], OPTIONS[1::2], strict=True)) | {"--steps": 4000}
        typed |= {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
        answer = llm("train", "c.txt", "-q", *itertools.chain(*typed.items()))
        *_, last = answer.stderr.splitlines()  # after what the text was taken for
        assert answer.exit_code == 1 and last.startswith("error: "), answer.stderr
        assert beside.read_bytes() == before
        return answer.stderr

    assert "--steps was 4000, is 4001; give the same to resume it, --force to start over" in error(steps=4001)
    assert "--threads was 1, is 2" in error(threads=2)
    assert "--lr-scale was 1.0, is 0.5" in error(lr_scale=0.5)
    Path("c.txt").write_text(TEXT[:-1] + "!", "utf-8")
    assert "the text was 1 file of" in error()
    Path("c.txt").write_text(TEXT, "utf-8")
    assert llm("train", "c.txt", *OPTIONS, "--steps", "24", "--force", "-q").exit_code == 0  # starts over
    assert not beside.exists()
