"""A run from its files to its file: what it keeps in memory, and where it resumes."""

import math
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llmcli.data.conversations.batches import ConversationTokens
from llmcli.errors import LLMError
from llmcli.evaluation import compressors
from llmcli.evaluation.compressors import Baseline
from llmcli.training.data.known_answers import seconds_to_fit
from llmcli.training.distributed.processes import Processes
from llmcli.training.files.resume import StateSaver, StoppedRun
from llmcli.training.loop.events import State
from llmcli.training.loop.trainer import Run
from llmcli.training.planning.cost_model import BASE_BYTES, Memory
from llmcli.training.session import _Baselines, _check_hardware, _free_memory, _reserve_seconds
from llmcli.training.step import hardware
from tests.conftest import Llm
from tests.training.plans import plan
from tests.training.small_runs import LINES, prepared, stop_after_saving

RESUME_FILE = Path("model.resume.safetensors")


def stopped_on(device: str, dtype: str) -> StoppedRun:
    made = plan()
    return StoppedRun({}, replace(made, train=replace(made.train, device=device, dtype=dtype)), "", State({}, {}))


def test_states_that_were_saved_or_loaded_are_dropped_before_the_next_step(llm: Llm, monkeypatch) -> None:
    """Each is a copy of the weights and of the state of the optimizer."""
    Path("c.txt").write_text(LINES, "utf-8")
    command = ("train", "c.txt", "--steps", 4, "--context", 32, "--batch-tokens", 64, "-q", "-o", "m.safetensors")
    with monkeypatch.context() as patch:
        stop_after_saving(patch)
        assert llm(*command).exit_code == 1
    saved: list[weakref.ref[State]] = []
    loaded: dict[str, weakref.ref[NDArray[np.float32]]] = {}
    kept: list[object] = []
    restore, step = Run._restore, Run.step

    def noted_restore(run: Run, state: State) -> None:
        loaded.update((name, weakref.ref(array)) for name, array in state.arrays.items())
        restore(run, state)

    def noted_step(run: Run) -> object:
        alive = (name for name, ref in loaded.items() if ref() is not None)
        kept.extend(name for name in alive if not name.startswith("best.") and name != "losses")
        kept.extend(ref for ref in saved if ref() is not None)
        return step(run)

    monkeypatch.setattr(Run, "_restore", noted_restore)
    monkeypatch.setattr(Run, "step", noted_step)
    monkeypatch.setattr(StateSaver, "is_due", lambda saver: True)
    monkeypatch.setattr(StateSaver, "save", lambda saver, run: saved.append(weakref.ref(run.state)))
    answer = llm(*command)
    assert answer.exit_code == 0, answer.stderr
    assert "optimizer.muon.0" in loaded and any(name.startswith("model.") for name in loaded)
    assert len(saved) == 3 and kept == []


def test_compressors_run_beside_the_training_and_a_late_run_does_not_wait_for_them(tmp_path: Path, monkeypatch) -> None:
    result, trained = [Baseline("xz", 2.5, 100, 100)], Event()
    monkeypatch.setattr(compressors, "affordable", lambda *_: True)
    monkeypatch.setattr(compressors, "baselines", lambda *_, seconds: result if trained.wait(60) else [])
    baselines = _Baselines(prepared(tmp_path / "c.txt"))
    assert baselines.wait(lambda: True) == []
    trained.set()
    assert baselines.wait(lambda: False) == result
    assert "_texts" not in vars(baselines)  # freed


@pytest.mark.baselines
def test_a_compressor_that_is_missing_and_a_text_that_is_gone_cost_one_line_each(llm: Llm, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyppmd", None)
    step = Run.step

    def delete_and_step(run: Run) -> object:
        Path("c.txt").unlink(missing_ok=True)
        return step(run)

    monkeypatch.setattr(Run, "step", delete_and_step)
    Path("c.txt").write_text(LINES, "utf-8")
    result = llm("train", "c.txt", "--steps", 2, "--context", 32, "--batch-tokens", 64)
    assert result.exit_code == 0 and "Traceback" not in result.stderr
    for what in ("compressors", "memorization"):
        assert result.stderr.count(f"{what} could not be measured") == 1, result.stderr
    assert llm("inspect", "--verify").exit_code == 0


def test_without_the_device_the_error_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    _check_hardware(stopped_on("cpu", "float32"), RESUME_FILE)
    for device in ["cuda", "mps"]:
        with pytest.raises(LLMError) as caught:
            _check_hardware(stopped_on(device, "bfloat16"), RESUME_FILE)
        assert str(caught.value) == (
            f"model.resume.safetensors is from a run on {device} in bfloat16, but torch {torch.__version__} finds no "
            f"{device} device here; resume it on a machine where that works, or start over here with `device` auto "
            "`dtype` auto `overwrite=True`"
        )


def test_processes_on_a_cpu_share_its_memory_and_on_gpus_rank_0_alone_has_copies_on_the_host(monkeypatch) -> None:
    monkeypatch.setattr(hardware, "free_memory", {"cpu": 64e9, "cuda": 80e9}.__getitem__)
    four = Processes(count=8, local_count=4)
    assert _free_memory("cpu", four).device == 16e9
    assert _free_memory("cuda", four) == Memory(80e9, 64e9 - 3 * BASE_BYTES)


def test_the_reserve_for_the_end_leaves_time_for_steps() -> None:
    for budget, conversations, seconds in [
        (None, False, 0.0),
        (142.0, False, 0.3 + 135 * 0.06),  # memorization and saving
        (20.0, False, 0.3 + 135 * 0.02 + 3.0),  # saving takes 15 % of the budget at most
        (20.0, True, 0.3 + 135 * 0.015 + 0.6 + 3.0),  # loading the model, for answers
    ]:
        plan = SimpleNamespace(model=SimpleNamespace(parameters=135_000_000), train=SimpleNamespace(seconds=budget))
        prepared: Any = SimpleNamespace(plan=plan, conversations=conversations or None)
        planned: Any = SimpleNamespace(prepared=prepared, known_answers=False)
        assert _reserve_seconds(planned) == pytest.approx(seconds)


def test_the_time_for_fitting_the_minimum_confidence_follows_the_measured_speed() -> None:
    for budget, speed, parameters, seconds in [
        (None, 192.0, 135e6, math.inf),
        (120.0, 192.0, 135e6, 16 * 0.41),  # 8 unrelated and 8 held-out questions, each with 20 answers: 192 tokens
        (120.0, 19.2, 135e6, 12.0),  # a tenth of the budget at most
        (120.0, 7680.0, 1e6, 96 * 0.02),  # a small model is asked 32 and 64
        (3.0, 7680.0, 1e6, 0.5),
    ]:
        tokens = ConversationTokens(np.zeros(400, np.uint32), np.arange(400) % 5 == 0, np.arange(0, 401, 40))
        expected = SimpleNamespace(tokens_per_second=speed)
        model, train = SimpleNamespace(parameters=parameters), SimpleNamespace(seconds=budget)
        plan = SimpleNamespace(model=model, train=train, expected=expected)
        prepared: Any = SimpleNamespace(plan=plan, conversations=SimpleNamespace(training=tokens))
        assert seconds_to_fit(plan, prepared.conversations) == pytest.approx(seconds)  # type: ignore[arg-type]
        if budget:
            planned: list[Any] = [SimpleNamespace(prepared=prepared, known_answers=known) for known in (False, True)]
            without, reserved = map(_reserve_seconds, planned)
            assert reserved == pytest.approx(without + seconds)
