"""What can prevent a trained model from being saved: signals, closed pipes, full disks, other processes."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmcli import signals
from llmcli.cli.terminal import console
from llmcli.config import ModelConfig, TrainConfig, as_record
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.evaluation import memorization
from llmcli.formats import adapters, checkpoint, ensemble_file, loading
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.training_record import TrainingRecord
from llmcli.signals import stop_requests, stop_signals
from llmcli.training import session
from llmcli.training.files import resume
from llmcli.training.files.output import Output
from llmcli.training.loop.events import Evaluation, State
from llmcli.training.planning.plan import Plan
from tests import platforms
from tests.conftest import Llm, random_checkpoint
from tests.formats.test_atomic_io import refuse
from tests.reliability import runs

pytestmark = pytest.mark.slow

HERE = Path()
HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has no SIGHUP
MODEL = Path("model.safetensors")
CORPUS = [{"name": "c.txt", "bytes": 100, "sha256": "c" * 64}]
BASE = {"file": "base.safetensors", "sha256": "b" * 64}
IDENTITY = {"the text": resume.text_fingerprint([("c.txt", 100, "c" * 64)])}
TUNED = IDENTITY | {"--from": f"base.safetensors (sha256 {'b' * 16})"}


# ---- only a verified file is replaced


def saved_by(kind: str, path: Path) -> resume.StoppedRun:
    """Write a model, or adapters, as a stopped run leaves them. Returns the run."""
    settings = TrainConfig(steps=100)
    tokenizer = Tokenizer.train_char(["abc"]).to_json()
    width = 544 if kind == "large" else 32
    config = ModelConfig(259, width, 2 * width, 2, 4, 2, width // 4, 32)
    record: dict[str, Any] = {"train": as_record(settings), "steps": 50, "corpus": CORPUS}
    model = replace(random_checkpoint(config, tokenizer_json=tokenizer), record=TrainingRecord.from_json(record))
    stopped = resume.StoppedRun(IDENTITY, Plan(config, settings, ()), tokenizer, State({}, {"step": 50}))
    if not kind.startswith("adapters"):
        checkpoint.save(path, model)
        return stopped
    model.record |= {"base": BASE}
    rng_like = random_checkpoint(config).tensors["model.layers.0.self_attn.q_proj.weight"]
    learned = {
        "model.layers.0.self_attn.q_proj.adapter.lora_A": rng_like[:2],
        "model.layers.0.self_attn.q_proj.adapter.lora_B": rng_like[:, :2].copy(),
    }
    adapters.save(path, learned, model)
    return replace(stopped, identity=TUNED)


KINDS = ["small", "large", "adapters"]


def test_a_changed_byte_anywhere_is_detected() -> None:
    for kind in KINDS:
        place = Path("m.safetensors")
        stopped = saved_by(kind, place)
        assert resume.is_saved_in(stopped, place)
        whole = place.read_bytes()
        assert len(whole) > checkpoint.MAX_HASHED_BYTES or kind != "large"
        start = int.from_bytes(whole[:8], "little") + 8
        for position in {0, 9, 100, start - 1, start, len(whole) // 2, len(whole) - 1}:
            with open(place, "r+b") as opened:
                opened.seek(position)
                opened.write(bytes([whole[position] ^ 1]))
            assert not resume.is_saved_in(stopped, place), position
            with open(place, "r+b") as opened:
                opened.seek(position)
                opened.write(whole[position : position + 1])
        assert resume.is_saved_in(stopped, place)


def test_a_model_that_another_command_derived_is_not_the_saved_one() -> None:
    stopped = saved_by("small", MODEL)
    model = loading.load(MODEL)
    changes: dict[str, Checkpoint] = {
        "quantized": replace(model, quantization="int8"),
        "merged": replace(model, record=model.record | {"adapter": "a"}),
        "averaged": replace(model, record=TrainingRecord.from_json({"average_of": ["a", "b"], "corpus": CORPUS})),
        "another text": replace(model, record=model.record | {"corpus": [CORPUS[0] | {"sha256": "d" * 64}]}),
        "another plan": replace(model, record=model.record | {"train": as_record(TrainConfig(steps=101))}),
        "another base": replace(model, record=model.record | {"base": BASE}),
        "another tokenizer": replace(model, tokenizer_source=Tokenizer.train_char(["abd"]).to_json()),
        "no record": replace(model, record=TrainingRecord()),
        "nonsense": replace(model, record=TrainingRecord(document={"train": 5, "corpus": 5})),
    }
    for what, changed in changes.items():
        checkpoint.save("other.safetensors", changed)
        assert not resume.is_saved_in(stopped, Path("other.safetensors")), what
    ensemble_file.save("other.safetensors", ensemble_file.combine({"one": model, "two": model}))
    assert not resume.is_saved_in(stopped, Path("other.safetensors"))
    checkpoint.save("other.safetensors", model)
    assert resume.is_saved_in(stopped, Path("other.safetensors"))
    # resumed with another number of processes, a run has other threads than when it saved its model
    resumed = replace(stopped, plan=replace(stopped.plan, train=replace(stopped.plan.train, threads=7)))
    assert resume.is_saved_in(resumed, Path("other.safetensors"))
    for foreign in (b"", b"text", b"\0" * 100):
        Path("other.safetensors").write_bytes(foreign)
        assert not resume.is_saved_in(stopped, Path("other.safetensors"))


def flip_a_bit(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    return bytes(data)


def interrupted() -> None:
    """Run 12 steps, interrupted in the fifth."""
    answer = runs.interrupted_here(HERE, steps=12, step=5)
    assert answer.exit_code == 130, answer.stderr


def test_a_run_does_not_overwrite_a_changed_model_and_resumes_beside_it_with_the_default_name(llm: Llm) -> None:
    interrupted()
    changed = flip_a_bit(MODEL)
    command = ("train", "c.txt", *runs.OPTIONS, "--steps", 12)
    answer = llm(*command, "-o", MODEL)
    assert answer.exit_code == 1 and answer.stderr.count("\n") == 1
    assert "was not saved by the run that stopped at step 5" in answer.stderr and "move it away" in answer.stderr
    assert MODEL.read_bytes() == changed
    answer = llm(*command)
    assert answer.exit_code == 0 and "renamed the existing model.safetensors to model-1.safetensors" in answer.stderr
    assert loading.load(MODEL).record.steps == 12 and Path("model-1.safetensors").read_bytes() == changed
    assert "resuming" in answer.stderr


def test_a_model_changed_during_the_resumed_run_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted()
    before = MODEL.read_bytes()
    measure = memorization.measure_memorization
    monkeypatch.setattr(memorization, "measure_memorization", lambda *some: flip_a_bit(MODEL) and measure(*some))
    answer = runs.train_here(HERE, steps=12)
    assert answer.exit_code == 0 and "is kept; saving the model as model-2.safetensors" in answer.stderr
    assert len(MODEL.read_bytes()) == len(before) and MODEL.read_bytes()[-9] == before[-9] ^ 1
    assert loading.load("model-2.safetensors").record.steps == 12
    assert not Path(runs.RESUME_FILE).exists()


# ---- each output has its own resume file


def test_no_two_outputs_share_a_resume_file() -> None:
    names = ["zz", "zz.safetensors", "zz.bin", "zz.bin.safetensors", "zz.SAFETENSORS", ".safetensors", "resume"]
    beside = [resume.resume_path(Path(name)) for name in names]
    assert len(set(beside)) == len(names) and not set(beside) & set(map(Path, names))
    for path in beside:
        with pytest.raises(LLMError, match="are for resume files; give another `output`"):
            resume.check_model_name(path)
    for name in names:
        resume.check_model_name(Path(name))


@platforms.symbolic_links
def test_a_link_and_its_target_share_a_resume_file() -> None:
    Path("d").mkdir()
    Path("link.safetensors").symlink_to("d/m.safetensors")
    assert resume.resume_path(Path("link.safetensors")) == Path("d/m.resume.safetensors").resolve()


def test_a_file_of_another_process_is_not_replaced_by_a_resume_file() -> None:
    warnings: list[str] = []
    stopped = saved_by("small", MODEL)
    saver = resume.StateSaver(Path("m.resume.safetensors"), warnings.append)
    saver.save(stopped)
    saver.save(stopped)
    assert warnings == [] and resume.is_resume_file(Path("m.resume.safetensors"))
    Path("m.resume.safetensors").write_bytes(MODEL.read_bytes())
    saver.save(stopped)
    assert len(warnings) == 1 and "was created by another process" in warnings[0]
    assert Path("m.resume.safetensors").read_bytes() == MODEL.read_bytes()


# ---- where the model goes if its directory fails


@pytest.fixture
def done() -> SimpleNamespace:
    """The last event of a run."""
    saved_by("small", Path("source.safetensors"))
    return SimpleNamespace(checkpoint=loading.load("source.safetensors"), adapters=None)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory for temporary files; the home directory is in it."""
    place = tmp_path / "elsewhere"
    (place / "home").mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.setenv("HOME", str(place / "home"))
    return place


def save(done: SimpleNamespace, output: Path, *, replace: bool = True) -> Path:
    shown = {"on_note": console.note, "on_warning": console.warn}
    return Output(output, resume.resume_path(output), adapter_only=False, force=replace, **shown).save(done)


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def test_a_deleted_directory_loses_no_model(done: SimpleNamespace, elsewhere: Path, monkeypatch, capsys) -> None:
    done.checkpoint = replace(done.checkpoint, tensors=dict(done.checkpoint.tensors))
    whole = Path("source.safetensors").read_bytes()
    place = save(done, Path("gone/m.safetensors"))
    assert [place] == files_in(elsewhere) and place.read_bytes() == whole
    assert f"saved the model as {place} instead: cannot write" in capsys.readouterr().err
    place.unlink()
    Path("gone").mkdir()  # the working directory
    monkeypatch.chdir("gone")
    Path.cwd().rmdir()
    assert [save(done, MODEL)] == files_in(elsewhere)


def test_if_two_directories_fail_a_third_is_used(done: SimpleNamespace, elsewhere: Path, monkeypatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_CREAT and "home" not in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    place = save(done, MODEL)
    assert [place] == files_in(elsewhere) and "home" in place.parts
    assert len([path for path in elsewhere.rglob("llmcli-*") if path.is_dir()]) == 1  # no empty directory is left


def test_if_no_directory_works_the_error_says_how_to_go_on(done: SimpleNamespace, elsewhere: Path, monkeypatch) -> None:
    Path(runs.RESUME_FILE).write_bytes(b'        {"__metadata__":{"llmcli.resume":"1"}}')
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse(errno.ENOSPC))
        with pytest.raises(
            LLMError, match=rf"No space left.*the same command again: it resumes from {runs.RESUME_FILE}"
        ):
            save(done, MODEL)
    assert files_in(elsewhere) == [] and not MODEL.exists()


def test_a_file_created_during_the_run_is_kept(done: SimpleNamespace) -> None:
    for name in ("m.safetensors", "m-2.safetensors"):
        Path(name).write_bytes(b"mine")
    assert save(done, Path("m.safetensors"), replace=False) == Path("m-3.safetensors")
    assert Path("m.safetensors").read_bytes() == Path("m-2.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")])
def test_an_error_after_training_does_not_lose_the_model(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Exception] = []

    def fail(*_: object) -> None:
        measured.append(error)
        raise error

    monkeypatch.setattr("llmcli.evaluation.memorization.measure_memorization", fail)
    answer = runs.train_here(HERE, steps=3)
    assert measured and answer.exit_code == 0, answer.stderr
    assert loading.load(MODEL).record.steps == 3


# ---- signals


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A simulated clock, in seconds. Signal handlers are restored."""
    now = [50.0]
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: now[0]))
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM, HANGUP)}
    yield now
    for kind, handler in before.items():
        signal.signal(kind, handler)


@pytest.mark.parametrize("kinds", [(signal.SIGTERM, signal.SIGTERM), (HANGUP, signal.SIGTERM)])
def test_two_signals_at_once_count_as_one_and_a_later_one_ends_the_run(
    kinds: tuple[signal.Signals, signal.Signals], clock: list[float], capfd
) -> None:
    with pytest.raises(KeyboardInterrupt), stop_requests(lambda: True, console.note_from_signal_handler) as caught:
        signal.raise_signal(kinds[0])
        clock[0] += signals.SAME_REQUEST / 2
        signal.raise_signal(kinds[1])
        assert caught == [kinds[0]]
        clock[0] += signals.SAME_REQUEST
        signal.raise_signal(kinds[1])
        pytest.fail("the run continues")


def test_a_run_that_ends_for_another_reason_still_saves_after_the_first_signal(clock: list[float], capfd) -> None:
    """The events can no longer be written, or a signal reached another process."""
    with stop_requests(lambda: True, console.note_from_signal_handler) as caught:
        caught.append(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert caught == [signal.SIGTERM, signal.SIGINT]


def test_a_signal_before_this_context_makes_the_next_one_the_second() -> None:
    with stop_requests(received=[signal.SIGINT]) as caught, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert caught == [signal.SIGINT]


def test_while_there_is_nothing_to_save_a_signal_has_its_usual_effect(clock: list[float], capfd) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torch leaves a handler of its own where a process group ended
    can_save: list[bool] = []
    with stop_requests(lambda: bool(can_save), console.note_from_signal_handler) as caught:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(SystemExit, match="143"):
            signal.raise_signal(signal.SIGTERM)
        assert caught == [] and capfd.readouterr().err == ""
        can_save.append(True)
        signal.raise_signal(signal.SIGTERM)
        assert caught == [signal.SIGTERM] and "ending the run and saving" in capfd.readouterr().err


BEFORE_THE_FIRST_STEP = {
    "reading": "llmcli.training.data.inputs.read_sources",
    "planning": "llmcli.training.data.prepare.make_plan",
    "fresh weights": "llmcli.training.loop.run.fresh_weights",
    "the first step": "llmcli.models.torch.transformer.LanguageModel.loss",
}


@pytest.mark.parametrize(
    ("phase", "number"),
    [*((phase, signal.SIGINT) for phase in BEFORE_THE_FIRST_STEP), ("fresh weights", signal.SIGTERM)],
)
def test_an_interrupt_before_the_first_step_ends_the_command_at_once(
    llm: Llm, monkeypatch, phase: str, number: signal.Signals
) -> None:
    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, handler)  # it may be ignored here
    Path("c.txt").write_text(runs.TEXT, "utf-8")
    passed: list[str] = []

    def interrupt(*_: object, **__: object) -> None:
        signal.raise_signal(number)
        passed.append(phase)

    monkeypatch.setattr(BEFORE_THE_FIRST_STEP[phase], interrupt)
    try:
        answer = llm("train", "c.txt", *runs.OPTIONS, "--steps", 3)
    finally:
        signal.signal(number, before)
    assert answer.exit_code == 128 + number and not passed, answer.stderr
    assert "interrupted" in answer.stderr.splitlines()[-1] and "saving" not in answer.stderr
    if phase in ("fresh weights", "the first step"):
        assert answer.stderr.splitlines()[-1] == "interrupted before the first training step; no model was written"
    assert [path.name for path in HERE.iterdir()] == ["c.txt"]


def test_an_interrupt_after_saving_says_that_the_model_is_complete(llm: Llm, monkeypatch) -> None:
    Path("c.txt").write_text(runs.TEXT, "utf-8")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    in_the_report = "llmcli.training.files.summary.summarize"
    monkeypatch.setattr(in_the_report, lambda *_, **__: signal.raise_signal(signal.SIGINT))
    try:
        answer = llm("train", "c.txt", *runs.OPTIONS, "--steps", 3)
    finally:
        signal.signal(signal.SIGINT, before)
    assert answer.exit_code == 130
    assert answer.stderr.splitlines()[-1] == f"interrupted after the run; {MODEL} is complete"
    assert not loading.load(MODEL).record.interrupted


@platforms.posix
def test_an_ignored_signal_stays_ignored(clock: list[float]) -> None:
    assert {signal.SIGTERM, signal.SIGHUP} <= set(stop_signals())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.SIGHUP not in stop_signals() and signal.SIGTERM in stop_signals()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for collected in (stop_requests(lambda: True, console.note_from_signal_handler), stop_requests()):
            with collected as caught:
                signal.raise_signal(signal.SIGHUP)
                signal.raise_signal(signal.SIGINT)
                assert caught == []
    finally:
        signal.signal(signal.SIGINT, before)


# ---- closed pipes and full outputs


def test_a_closed_pipe_of_events_does_not_lose_the_model() -> None:
    Path("c.txt").write_text(runs.TEXT, "utf-8")
    process = runs.python(HERE, runs.SAVING_EVERY_STEP, "train", "c.txt", *runs.OPTIONS, "--steps", "100000", "--json")
    assert process.stdout is not None
    for _ in range(4):
        process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    stderr = process.stderr.read()
    assert process.wait(runs.TIMEOUT) == 1 and b"Traceback" not in stderr
    assert b"events could no longer be written; saved" in stderr
    record = loading.load(MODEL).record.to_json()
    assert record["interrupted"] is True and record["steps"] >= 3
    assert Path(runs.RESUME_FILE).exists()


def test_an_output_that_is_full_before_the_first_step_is_named(llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:

    def run(*_: object, signals: list[int], **__: object) -> Iterator[Evaluation]:
        yield Evaluation(0, 1.0, True)
        assert signals
        raise LLMError("stopped before the first training step was finished; no model was written")

    monkeypatch.setattr(session, "run", run)
    monkeypatch.setattr("llmcli.cli.reports.training.show_event", refuse(errno.ENOSPC))
    Path("c.txt").write_text(runs.TEXT, "utf-8")
    answer = llm("train", "c.txt", *runs.OPTIONS, "--steps", 2, "--json")
    assert answer.exit_code == 1 and "Traceback" not in answer.stderr
    assert "events could no longer be written; stopped before the first training step was finished; no model" in (
        answer.stderr
    )


def test_the_command_that_resumes_a_run_is_named() -> None:
    answer = runs.interrupted_here(HERE, "--json", "--force", steps=12, step=5)
    verdict = json.loads(answer.stdout.splitlines()[-1])["verdict"]
    assert "Interrupted at step 5; the same command without --force resumes from there." in verdict


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_a_full_output_is_one_line_of_error(tiny_model: Path) -> None:
    for words in ("--version", "train --help", "generate cat -n 4"):
        with open("/dev/full", "wb") as full:
            command = [sys.executable, "-m", "llmcli", *words.split()]
            run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
        assert (run.returncode, run.stderr) == (1, b"error: the output: No space left on device\n"), words


@platforms.posix
def test_a_removed_working_directory_is_named(tiny_model: Path) -> None:
    code = (
        "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); from llmcli.cli.main import main; main()"
    )
    for words in (["train", str(tiny_model), "--steps", "1"], ["export", str(tiny_model), "x.gguf", "--to", "gguf"]):
        process = runs.python(HERE, code, *words)
        stderr = runs.end(process).decode()
        assert process.returncode == 1 and stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
        assert "output" not in stderr and ("directory" in stderr)


def test_an_error_without_a_name_is_not_blamed_on_the_output(llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcli.data.sources.find_files", refuse(errno.ENOLCK))
    Path("c.txt").write_text(runs.TEXT, "utf-8")
    answer = llm("train", "c.txt", "--steps", 1)
    assert answer.exit_code == 1
    assert answer.stderr == f"error: the operating system reported an error: {os.strerror(errno.ENOLCK)}\n"


@platforms.file_locks
def test_temporary_files_of_killed_runs_go_but_without_locks_they_are_kept(llm: Llm, monkeypatch) -> None:
    """They may belong to a run in progress."""
    left = {f".{name}.safetensors.{number}.tmp" for name in ("model", "model.resume", "other") for number in (1, 23)}
    for name in left:
        Path(name).write_bytes(b"half a file")
    Path("c.txt").write_text(runs.TEXT, "utf-8")
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", refuse(errno.ENOLCK))
        answer = llm("train", "c.txt", *runs.OPTIONS, "--steps", 1)
    assert answer.exit_code == 0
    assert f"model.safetensors cannot be locked here ({os.strerror(errno.ENOLCK)})" in answer.stderr
    written = {"c.txt", "model.safetensors"}
    assert {path.name for path in HERE.iterdir()} == left | written
    assert llm("train", "c.txt", *runs.OPTIONS, "--steps", 1, "--force").exit_code == 0
    others = {name for name in left if name.startswith(".other")}
    assert {path.name for path in HERE.iterdir()} == others | written
