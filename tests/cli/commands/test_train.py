"""`llm train`: its output, its JSON, its options, what it refuses, and what it never overwrites."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.cli.reports.training import show_event
from llmcli.cli.terminal.progress import TrainingView
from llmcli.errors import LLMError
from llmcli.formats import atomic_io, checkpoint, loading
from llmcli.training import session
from llmcli.training.loop.events import TeacherTrained
from llmcli.training.loop.record import versions
from llmcli.training.planning import recipe
from llmcli.training.step import throughput
from tests.cli.commands.test_chat import write_chat_model
from tests.cli.terminals import STYLES, in_a_terminal
from tests.conftest import TEXT, Llm
from tests.golden.models import BPE
from tests.training.small_runs import use_ticking_clock

LONG_TEXT = TEXT * 100
SMALL = ("--layers", 1, "--width", 32, "--context", 16, "--batch-tokens", 512, "--threads", 1)
RUN = ("train", "c.txt", "--steps", 1, "--layers", 1, "--width", 16, "--context", 16, "--threads", 1)


@pytest.fixture(autouse=True)
def corpus(own_directory: Path) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")


@pytest.fixture
def with_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """LONG_TEXT is enough for a validation slice."""
    monkeypatch.setattr(recipe, "MIN_VALIDATION_TOKENS", 64)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {}),
        (("--dropout", 0.1), {"--dropout": 0.1}),
        (("--tokenizer", "char", "--val", 0.2, "-q"), {"--tokenizer": "char", "--val": 0.2}),
        (("--optimizer", "adamw", "--dtype", "float32"), {"--optimizer": "adamw", "--dtype": "float32"}),
    ],
)
def test_the_identity_of_a_run_is_that_of_older_resume_files(
    options: tuple[object, ...], expected: dict[str, Any], llm: Llm, monkeypatch
) -> None:
    """Its keys and values are in resume files: were they different, runs that an older version stopped could not be
    resumed."""
    identities: list[dict[str, Any]] = []
    real = session._run_identity

    def record(*arguments: Any) -> dict[str, Any]:
        identities.append(real(*arguments))
        return identities[-1]

    monkeypatch.setattr(session, "_run_identity", record)
    assert llm(*RUN, *options, "--dry-run").exit_code == 0
    [identity] = identities
    text = identity.pop("the text")
    assert text.startswith(f"1 file of {len(TEXT.encode()):,} bytes (sha256 ")
    assert identity == {
        "--val": 0.1, "--from": None, "--tokenizer": "bpe", "--threads": 1, "--lr-scale": 1.0, "--steps": 1,
        "--adapter-only": False, "--layers": 1, "--width": 16, "--context": 16, "--seed": 0, "--device": "auto",
        "--dtype": "auto", **{f"the version of {name}": version for name, version in versions().items()},
    } | expected  # fmt: skip


@pytest.mark.slow
def test_a_run_of_two_models_says_so_in_events_and_record(llm: Llm, with_slice: None, monkeypatch, capsys) -> None:
    monkeypatch.setattr(recipe, "DISTILLATION_MIN_TOKENS", 0)
    monkeypatch.setattr(recipe, "DISTILLATION_EPOCHS", 0.5)
    monkeypatch.setattr(throughput, "measure_throughput", lambda *_, **__: 2e5)
    use_ticking_clock(monkeypatch, 0.02)
    Path("c.txt").write_text(LONG_TEXT, "utf-8")
    answer = llm("train", "c.txt", "--time", "4s", "--layers", 1, "--width", 32, "--context", 32, "--json")
    assert answer.exit_code == 0
    events = [json.loads(line) for line in answer.stdout.splitlines()]
    assert events[0]["train"]["teacher_share"] == recipe.TEACHER_SHARE
    (teacher,) = [event for event in events if event["event"] == "teacher"]
    done = events[-1]
    assert 0 < teacher["step"] < done["steps"]
    record = json.loads(llm("inspect", "--json").stdout)["training"]
    assert record["distillation"] == {"from_step": teacher["step"], "teacher_bits_per_byte": teacher["bits_per_byte"]}
    assert f"teacher until step {teacher['step']:,}" in llm("inspect").stdout
    capsys.readouterr()
    show_event(TeacherTrained(7, 1.25), TrainingView(4.0), json_=False)
    assert capsys.readouterr().err == (
        "step 7: the teacher is trained (validation loss 1.250 bits per byte); the student starts from fresh weights "
        "and also learns from its predictions\n"
    )


@pytest.mark.slow
@pytest.mark.baselines
def test_the_summary_gives_advice_and_is_kept_in_the_record(llm: Llm, with_slice: None) -> None:
    Path("c.txt").write_text(LONG_TEXT, "utf-8")
    words = ["train", "c.txt", "--steps", 4, *SMALL, "-o", "my model.safetensors"]
    answer = llm(*words)
    assert answer.exit_code == 0 and answer.stdout == ""
    figure, undertrained, hint = answer.stderr.splitlines()[-3:]
    source = "the last tenth of the text; 100% of it also occurs in the training text"
    assert figure.startswith(f"Held-out text ({source}): ") and "bits per byte at the end" in figure
    assert undertrained.startswith("Undertrained: 4 steps") and undertrained.endswith(
        " Train longer: llm train c.txt -o 'my model.safetensors' --layers 1 --width 32 "
        "--context 16 --batch-tokens 512 --threads 1 --force --time 5m"
    )
    assert hint == (
        'The model continues text; it does not answer questions. Try it: llm generate "The dog ate the" -m \'my '
        "model.safetensors'"
    )
    assert llm(*shlex.split(hint.split(": llm ")[1]), "-n", 3).exit_code == 0
    *events, done = map(json.loads, llm(*words, "--force", "--json").stdout.splitlines())
    assert done["verdict"] == [figure, undertrained, hint]
    assert [found["name"] for found in done["baselines"]] == ["xz", "PPM, adaptive", "PPM, static"]
    record = json.loads(llm("inspect", "my model.safetensors", "--json").stdout)["training"]
    assert record["memorised"] == done["memorised"]
    interim = [event["bits_per_byte"] for event in events if event["event"] == "eval"]
    assert interim and record["curve"]["eval_bits_per_byte"] == interim  # the same numbers, not rounded once more
    assert record["verdict"] == [figure, undertrained.split(": llm")[0] + "."]
    shown = llm("inspect", "my model.safetensors").stdout
    assert "summary" in shown and "memorization" in shown and "⠒⠒ training  o validation" in shown


@pytest.mark.slow
def test_an_existing_model_with_the_default_name_is_renamed(llm: Llm) -> None:
    runs = []
    for seed in (1, 2, 3):
        answer = llm(*RUN, "--seed", seed)
        assert answer.exit_code == 0, answer.stderr
        runs.append(Path("model.safetensors").read_bytes())
    assert "renamed the existing model.safetensors to model-2.safetensors" in answer.stderr
    assert [Path(f"model-{number}.safetensors").read_bytes() for number in (1, 2)] == runs[:2]
    models = [loading.load(path) for path in Path().glob("*.safetensors")]  # another seed is another model
    assert len({model.tensors["model.embed_tokens.weight"].tobytes() for model in models}) == 3
    assert llm(*RUN, "--force").exit_code == 0
    assert len([*Path().glob("*.safetensors")]) == 3
    answer = llm(*RUN, "-o", "model.safetensors")  # an explicitly given name is not renamed
    assert answer.exit_code == 1 and "already exists; add --force" in answer.stderr


def test_a_model_that_cannot_be_renamed_is_not_overwritten(llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Path:
        raise LLMError(f"cannot rename {path} to model-1.safetensors: Read-only file system")

    assert llm(*RUN).exit_code == 0
    before = Path("model.safetensors").read_bytes()
    monkeypatch.setattr(atomic_io, "move_aside", refuse)
    answer = llm(*RUN, "--seed", 2)
    assert answer.exit_code == 0 and "Read-only file system; saving the model as model-2.safetensors" in answer.stderr
    assert "-o model-2.safetensors --force --time 5m\n" in answer.stderr  # advice that overwrites only its own model
    assert Path("model.safetensors").read_bytes() == before and llm("inspect", "model-2.safetensors").exit_code == 0


def test_a_file_of_another_program_is_not_renamed(llm: Llm) -> None:
    from safetensors.numpy import save_file

    for write in (lambda name: save_file({"a": np.zeros(3)}, name), lambda name: Path(name).write_text("notes")):
        write("model.safetensors")
        before = Path("model.safetensors").read_bytes()
        answer = llm(*RUN)
        assert answer.exit_code == 1 and Path("model.safetensors").read_bytes() == before
        assert answer.stderr.count("\n") == 1 and " exists" in answer.stderr
        assert {path.name for path in Path().iterdir()} == {"c.txt", "model.safetensors"}


@pytest.mark.slow
def test_in_a_terminal_the_plan_is_five_lines(llm: Llm) -> None:
    shown = in_a_terminal("train", "c.txt", "--steps", "2", "--threads", "1", "--seed", "1")
    plan = STYLES.sub("", shown).split("--dry-run shows the whole plan")[0].splitlines()
    names = [line.split()[0] for line in plan if re.match(r"  \w", line)]
    assert names == ["corpus", "vocabulary", "model", "training", "regularization"]
    assert len(plan) <= 9 and max(map(len, plan)) <= 80
    everything = llm("train", "c.txt", "--steps", 2, "--threads", 1, "--seed", 1, "--dry-run").stdout.splitlines()
    kept = json.loads(llm("inspect", "--json").stdout)["training"]["plan"]
    assert everything[2:] == ["setting\tvalue\treason", *("\t".join(choice.values()) for choice in kept)]
    assert len(kept) > 12
    events = llm("train", "c.txt", "--steps", 2, "--threads", 1, "--seed", 1, "--json", "--force").stdout
    assert json.loads(events.splitlines()[0])["choices"] == kept


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no disk that is always full here")
@pytest.mark.slow
def test_notes_that_cannot_be_written_do_not_end_a_run(llm: Llm) -> None:
    with open("/dev/full", "wb") as full:
        words = ["train", "c.txt", "--steps", "2", "--threads", "1"]
        run = subprocess.run([sys.executable, "-m", "llmcli", *words], stderr=full, stdout=subprocess.PIPE)
    assert run.returncode == 0
    assert llm("inspect", "--verify").exit_code == 0


@pytest.mark.usefixtures("no_hang")
def test_a_foreign_file_at_the_resume_path_is_kept(llm: Llm) -> None:
    beside = Path("model.resume.safetensors")
    beside.write_text("my notes", "utf-8")
    for words in ((), ("--force",)):
        answer = llm(*RUN, *words)
        assert answer.exit_code == 1 and "is not a resume file" in answer.stderr
    assert beside.read_text("utf-8") == "my notes"
    if hasattr(os, "mkfifo"):
        beside.unlink()
        os.mkfifo(beside)
        assert "is not a resume file" in llm(*RUN).stderr


def test_the_plan_says_where_the_tokenizer_is_from(llm: Llm, tiny_model: Path) -> None:
    for words, message in (
        (("--from", tiny_model), "from the base model"),
        (("--like", tiny_model), "same as the --like model"),
        (("--tokenizer", BPE), "from the tokenizer given"),
    ):
        assert message in llm("train", "c.txt", "--steps", 1, "--dry-run", *words).stdout


@pytest.mark.slow
def test_adapters_alone_are_merged_by_the_command_in_the_note(llm: Llm, tiny_model: Path) -> None:
    model = loading.load(tiny_model)
    model.quantization = "int8"
    checkpoint.save("int8.safetensors", model)
    same = ("train", "c.txt", "--steps", 1, "--from", "int8.safetensors", "--lora", 2)
    alone = llm(*same, "--adapter-only", "-o", "c.safetensors")
    assert "Try it" not in alone.stderr  # adapters alone cannot answer
    assert "Undertrained: 1 step" in alone.stderr and "plateaued" not in alone.stderr
    typed = alone.stderr.split("To use the adapters, merge them into the base model: llm ")[1].split("\n")[0]
    assert typed == "import int8.safetensors --adapter c.safetensors -o merged.safetensors"
    assert llm(*typed.split()).exit_code == llm(*same, "-o", "whole.safetensors").exit_code == 0
    merged, whole = loading.load("merged.safetensors"), loading.load("whole.safetensors")
    assert merged.stored == whole.stored
    for name, tensor in whole.tensors.items():
        assert np.array_equal(merged.tensors[name], tensor)


def test_renaming_is_announced_only_where_a_run_begins(llm: Llm, tiny_model: Path) -> None:
    for words in (["missing.txt"], ["c.txt", "--context", 99_999], ["c.txt", "--from", "missing"]):
        answer = llm("train", *words, "--steps", 1)
        assert answer.exit_code in (1, 2) and "renamed" not in answer.stderr, answer.stderr
    answer = llm(*RUN)
    assert answer.exit_code == 0 and answer.stderr.index("it will be renamed") < answer.stderr.index("renamed the")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "package"),
    [
        (("train", "c.txt"), "torch"),
        (("generate", "The", "--device", "cuda"), "torch"),
        (("generate", "The"), "tokenizers"),
    ],
)
def test_a_missing_package_is_one_line(words: tuple[str, ...], package: str) -> None:
    write_chat_model(Path("model.safetensors"))
    code = f"import sys; sys.modules[{package!r}] = None; sys.argv = ['llm', *sys.argv[1:]]; "
    code += "from llmcli.__main__ import main; main()"
    command = [sys.executable, "-c", code, *map(str, words)]
    answer = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert answer.returncode == 1 and answer.stderr.startswith("error: "), answer.stderr
    assert answer.stderr.count("\n") == 1 and f"install it: pip install {package}" in answer.stderr
