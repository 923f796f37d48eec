"""The output file of a training run: locked before the run, written after it. A file from another run is
never overwritten without --force. If the path can no longer be written to, the model is saved elsewhere."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.errors import LLMError, OnNote, usage
from llmcli.formats import adapters, atomic_io, file_lock, loading
from llmcli.formats.atomic_io import reject_gguf_name, reject_overwriting
from llmcli.formats.checkpoint import save
from llmcli.formats.header import PEFT_CONFIG
from llmcli.signals import cleaning_up
from llmcli.training.files import resume
from llmcli.training.files.resume import StoppedRun, is_resume_file, is_saved_in

if TYPE_CHECKING:
    from llmcli.training.loop.events import Done


@dataclass(frozen=True)
class Output:
    """The files that a run writes, and what already exists there."""

    path: Path  # file of the model, or of the adapters with `adapter_only`
    resume_path: Path  # file with the state from which a stopped run resumes
    adapter_only: bool
    force: bool
    stopped: StoppedRun | None = None  # run to resume
    rename_existing: bool = False  # rename an existing model instead of requiring --force
    on_note: OnNote = lambda note: None  # receives notes about the whole run
    on_warning: OnNote = lambda warning: None

    def may_replace(self) -> bool:
        """Return whether `path` is free, or --force was given, or the existing file was saved by the stopped
        run."""
        exists = os.path.exists(self.path)  # noqa: PTH110 (Path.exists raises if the directory is unreadable)
        return self.force or not exists or (self.stopped is not None and is_saved_in(self.stopped, self.path))

    def note_existing(self) -> None:
        if self.rename_existing:
            self.on_note(
                f"{self.path} exists; it will be renamed, not overwritten (name the new model with -o)"
            )

    def save(self, done: "Done") -> Path:
        """Write the model to `path` or, if that fails, to another directory; return its path."""
        path = self._free_path()
        try:
            self._write(path, done)
            return path
        except LLMError as error:
            problem = error
        for parent in (None, os.path.expanduser("~")):  # noqa: PTH111 (it never fails)
            with suppress(LLMError, OSError):
                directory = Path(tempfile.mkdtemp(prefix="llmcli-", dir=parent))
                try:
                    self._write(directory / self.path.name, done)
                except BaseException:
                    shutil.rmtree(directory, ignore_errors=True)
                    raise
                self.on_warning(f"saved the model as {directory / self.path.name} instead: {problem}")
                return directory / self.path.name
        advice = ""
        if is_resume_file(self.resume_path):
            advice = (
                f"; free some disk space and type the same command again: it resumes from {self.resume_path}"
            )
        raise LLMError(f"{problem}; the model could not be saved elsewhere either{advice}") from problem

    def discard_resume_file(self) -> None:
        if is_resume_file(self.resume_path):
            with suppress(OSError):
                self.resume_path.unlink()

    def _free_path(self) -> Path:
        """Return `path`, after renaming an existing model there, or else a new path in the same directory."""
        if self.may_replace():
            return self.path
        problem = f"{self.path} was created by another process during the run and is kept"
        if self.rename_existing:
            try:
                self.on_note(f"renamed the existing {self.path} to {atomic_io.move_aside(self.path)}")
                return self.path
            except LLMError as error:
                problem = str(error)
        names = (self.path.with_stem(f"{self.path.stem}-{number}") for number in itertools.count(2))
        path = next(name for name in names if not name.exists())
        self.on_warning(f"{problem}; saving the model as {path}")
        return path

    def _write(self, path: Path, done: "Done") -> None:
        if self.adapter_only:
            assert done.adapters is not None
            adapters.save(path, done.adapters, done.checkpoint)
        else:
            save(path, done.checkpoint)


def dry_run_output(path: Path, *, adapter_only: bool = False, on_note: OnNote = lambda note: None) -> Output:
    """Return the output of a dry run: checks its name and directory, creates nothing. Raises LLMError."""
    if not path.name:
        raise usage("-o needs the name of a file: -o model.safetensors")
    reject_gguf_name(path)
    directory = atomic_io.resolve_links(path).parent
    path = _adapter_file(path) if adapter_only else path
    resume.check_model_name(path)
    atomic_io.check_name(path, by=" with `output`", example="model.safetensors")
    atomic_io.require_directory(directory)
    return Output(path, resume.resume_path(path), adapter_only, force=False, on_note=on_note)


@contextmanager
def claim_output(
    path: Path,
    *,
    adapter_only: bool = False,
    force: bool = False,
    restarted: bool = False,
    rename_existing: bool = False,
    model: Path | None = None,
    on_note: OnNote = lambda note: None,
    on_warning: OnNote = lambda warning: None,
) -> Iterator[Output]:
    """Check and lock the output path until the context ends, and load the state of a stopped run (with
    `force`, only in a run `restarted` after a crash). An existing model is renamed (`rename_existing`) or,
    with `force`, replaced; but `model`, which the run reads, must not be overwritten."""
    planned = dry_run_output(path, adapter_only=adapter_only, on_note=on_note)
    output = replace(planned, force=force, on_warning=on_warning)
    directory = path
    path = output.path
    with ExitStack() as stack:
        if path != directory:
            stack.enter_context(_adapter_directory(directory, path, force))
        if model:
            reject_overwriting(path, "model", [model], "a model that this run reads")
            reject_overwriting(path, "model", loading.files(model), "part of a model that this run reads")
        atomic_io.check_writable(path, force=True)
        if problem := stack.enter_context(file_lock.locked(path)):
            on_note(f"{path} cannot be locked here ({problem}); make sure that no other run writes to it")
        else:  # left by killed runs
            atomic_io.remove_stale(path)
            atomic_io.remove_stale(output.resume_path)
        output = replace(
            output, stopped=_load_stopped(output.resume_path, start_over=force and not restarted)
        )
        replaceable = output.may_replace()
        output = replace(output, rename_existing=not replaceable and rename_existing and _is_own_model(path))
        if output.stopped and not (replaceable or output.rename_existing):
            raise LLMError(
                f"{path} was not saved by the run that stopped at step {output.stopped.state.step:,}; move "
                "it away to resume the run, add `overwrite=True` to start over, "
                "or choose another output with `output`"
            )
        atomic_io.check_writable(path, force=replaceable or output.rename_existing)
        yield output


def _load_stopped(path: Path, *, start_over: bool) -> StoppedRun | None:
    if path.exists() and not is_resume_file(path):
        raise LLMError(
            f"{path} is not a resume file, but the run would save its state there; move it away, or choose "
            "another output with `output`"
        )
    return resume.load(path) if path.exists() and not start_over else None


def _is_own_model(path: Path) -> bool:
    try:
        return path.is_file() and not path.is_symlink() and bool(loading.read_header(path).is_ours)
    except LLMError:
        return False


def _adapter_file(path: Path) -> Path:
    """Return the file for adapters: `path` if it ends in .safetensors, otherwise PEFT's file in a directory
    `path`."""
    is_file = path.suffix.lower() == ".safetensors" and not path.is_dir()
    if path.exists() and not path.is_dir() and not is_file:
        raise LLMError(f"{path} is a file; give a name that ends in .safetensors, or a directory for PEFT")
    file = path if is_file else path / adapters.PEFT_FILE
    if file.name == adapters.PEFT_FILE and file.with_name("config.json").exists():
        raise LLMError(
            f"{file.parent} holds a model (config.json), which {PEFT_CONFIG} beside it would make unusable; "
            "choose another directory with `output`"
        )
    return file


@contextmanager
def _adapter_directory(path: Path, file: Path, force: bool) -> Iterator[None]:
    """Create a directory for the adapter file; on exit, a new directory is removed if it is empty."""
    is_new = not path.is_dir()
    with suppress(OSError):  # the errors are reported when the files are checked
        path.mkdir()

    def remove_if_unused() -> None:
        with suppress(OSError):  # not empty
            if is_new:
                path.rmdir()

    with cleaning_up(remove_if_unused):
        if not file.exists():
            atomic_io.check_writable(path / PEFT_CONFIG, force=force, example=PEFT_CONFIG)
        yield
