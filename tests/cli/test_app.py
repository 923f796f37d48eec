"""The door: JSON shapes, exit codes, one clear line for whatever a user can get wrong, what is imported when."""

import gzip
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from llmcli.errors import LLMError
from llmcli.formats import atomic_io, checkpoint, loading
from tests import platforms
from tests.cli.terminals import STYLES, in_a_terminal
from tests.conftest import TEXT, random_checkpoint

Llm = Callable[..., Result]
HANG = 600  # seconds after which a process that should have ended hangs, on the slowest machine


@pytest.mark.slow
def test_a_trained_model_writes_only_bytes_of_its_text(llm: Llm, tmp_path: Path) -> None:
    """After two steps a model knows nothing; at a high temperature it writes whatever it may."""
    (tmp_path / "c.txt").write_text(TEXT, "utf-8")
    words = ["--steps", 2, "--context", 16, "--threads", 1, "-q"]
    assert llm("train", "c.txt", *words).exit_code == 0
    record = json.loads(llm("inspect", "--json").stdout)["training"]
    known = set(TEXT.encode())
    assert set(bytes.fromhex(record["seen_bytes"])) == known
    assert all(set(text.encode()) <= known for _, text in record["samples"]["texts"])
    for seed in range(5):
        for way in ("--literal", "--no-literal"):
            said = llm("generate", "The c", "-t", 5, "--min-p", 0, "-n", 60, "--seed", seed, way, "--json")
            assert set(json.loads(said.stdout)["text"].encode()) <= known
    shown = json.loads(llm("generate", "The c", "--next", 100_000, "--json").stdout)
    assert all(word["text"] == "<end>" or set(word["text"].encode()) <= known for word in shown["next"])
    assert sum(word["probability"] for word in shown["next"]) + shown["unexplored"] == pytest.approx(1, abs=1e-3)
    # a model that goes on from this one has the bytes of both
    (tmp_path / "d.txt").write_text("XYZ xyz " * 400, "utf-8")
    assert llm("train", "d.txt", "--from", "model.safetensors", "-o", "d.safetensors", *words).exit_code == 0
    record = json.loads(llm("inspect", "d.safetensors", "--json").stdout)["training"]
    assert set(bytes.fromhex(record["seen_bytes"])) == known | set(b"XYZ xyz ")


def test_models_of_other_records_have_no_limit_on_bytes() -> None:
    for record in ({}, {"seen_bytes": 5}, {"seen_bytes": "zz"}, {"seen_bytes": ""}, {"seen_bytes": [1]}):
        assert checkpoint.seen_bytes([record]) is None
    assert checkpoint.seen_bytes([{"seen_bytes": "6162"}, {"seen_bytes": "6263"}]) == b"abc"
    assert checkpoint.seen_bytes([{"seen_bytes": "6162"}, {}]) is None


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, timeout=HANG
    )


# ---- what is imported


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["generate", "The cat", "-n", "2"], ["generate", "The", "--next", "2"],
              ["generate", "The cat", "--steps", "2"],
              ["generate", "The", "-n", "2", "--memory", "--corpus", "c.txt"],
              ["inspect"], ["inspect", "--tensor", "model.norm.weight"], ["tokenize", "hi"], ["--version"],
              ["eval", "c.txt", "--past", "c.txt"], ["eval", "c.txt", "--per-token"], ["explain", "The cat"],
              ["explain", "The cat", "--html", "page.html"], ["inspect", "--html", "page.html"],
              ["inspect", "--weights"], ["inspect", "--diff", "model.safetensors"],
              ["import", "model.safetensors", "-o", "again.safetensors"],
              ["export", "there", "--to", "hf"], ["export", "model.gguf", "--to", "gguf"],
              ["generate", "The", "-n", "2", "--quantize", "int8"],
              ["generate", "The", "-n", "2", "-m", "mix.safetensors", "--experts"],
              ["mix", "model.safetensors", "other.safetensors", "-o", "m.safetensors"]],
)  # fmt: skip
@pytest.mark.slow
def test_torch_sleeps(tiny_model: Path, words: list[str], llm: Llm) -> None:
    for needed in {"gguf": ["gguf"], "int8": ["onnxruntime", "onnx"]}.get(words[-1], ()):
        pytest.importorskip(needed, reason="needs the extras gguf and fast")
    Path("c.txt").write_text(TEXT, "utf-8")
    Path("other.safetensors").write_bytes(tiny_model.read_bytes())
    if "mix.safetensors" in words:
        assert llm("mix", "model.safetensors", "other.safetensors", "-o", "mix.safetensors").exit_code == 0
    code = (
        f"import sys; sys.argv = ['llm', *{words!r}]\n"
        "from llmcli.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    found = python(code)
    assert found.returncode == 0, found.stderr


def test_help_needs_neither_numpy_nor_the_libraries_below() -> None:
    found = python(
        "import sys; sys.argv = ['llm', '--help']\n"
        "from llmcli.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'tokenizers', 'safetensors'} & set(sys.modules)"
    )
    assert found.returncode == 0, found.stderr


# ---- what comes out


def test_version_and_help(llm: Llm) -> None:
    assert llm("--version").stdout.startswith("llmcli ")
    for words in (
        ["-h"],
        ["train", "-h"],
        ["generate", "-h"],
        ["explain", "-h"],
        ["inspect", "-h"],
        ["tokenize", "-h"],
        ["eval", "-h"],
        [],
    ):
        answer = llm(*words)
        assert answer.exit_code == 0 and "Usage" in answer.stdout


def test_generate_json_has_the_shape_of_the_contract(llm: Llm, tiny_model: Path) -> None:
    found = json.loads(llm("generate", "The cat", "-n", 5, "--seed", 3, "--json").stdout)
    assert list(found)[:4] == ["prompt", "text", "tokens", "finish_reason"]
    assert {"tokens_per_second", "seconds_to_first_token"} < set(found)
    assert found["prompt"] == "The cat" and found["finish_reason"] == "length" and len(found["tokens"]) == 5
    assert found["text"].startswith("".join(token["text"] for token in found["tokens"]))
    assert all(set(token) == {"id", "text", "logprob"} and token["logprob"] <= 0 for token in found["tokens"])


def test_generate_prints_the_text_alone_and_repeats_it_with_the_seed(llm: Llm, tiny_model: Path) -> None:
    first, again = (llm("generate", "The cat", "-n", 8, "--seed", 3) for _ in range(2))
    wanted = json.loads(llm("generate", "The cat", "-n", 8, "--seed", 3, "--json").stdout)["text"]
    assert first.stdout == again.stdout == wanted + "\n"
    assert first.stderr == ""


def test_samples_are_several_and_differ(llm: Llm, tiny_model: Path) -> None:
    lines = llm("generate", "The cat", "-n", 8, "--seed", 3, "--samples", 3, "--json").stdout.splitlines()
    assert len({json.loads(line)["text"] for line in lines}) == 3


@pytest.mark.slow
def test_next_json_has_the_shape_of_the_contract(llm: Llm, tiny_model: Path) -> None:
    found = json.loads(llm("generate", "The cat", "--next", 3, "--json").stdout)
    assert set(found) == {"prompt", "next", "unexplored", "entropy_bits"} and len(found["next"]) == 3
    chances = [word["probability"] for word in found["next"]]
    assert chances == sorted(chances, reverse=True) and 0 <= found["unexplored"] <= 1


def test_a_prompt_longer_than_the_context_is_told_and_answered(llm: Llm, tiny_model: Path) -> None:
    answer = llm("generate", "The cat sat on the mat. " * 40, "-n", 40, "--seed", 1)  # another seed may end at once
    assert answer.exit_code == 0 and "only its end is used" in answer.stderr and len(answer.stdout) > 5


def test_a_prompt_comes_from_standard_input_too(llm: Llm, tiny_model: Path) -> None:
    wanted = llm("generate", "The cat", "-n", 5, "--seed", 1).stdout
    assert llm("generate", "-", "-n", 5, "--seed", 1, stdin=b"The cat").stdout == wanted
    assert llm("generate", "-n", 5, "--seed", 1, stdin=b"The cat").stdout == wanted


def test_torch_answers_like_numpy(llm: Llm, tiny_model: Path) -> None:
    pytest.importorskip("torch")
    wanted = llm("generate", "The cat", "-n", 40, "-t", 0).stdout
    assert llm("generate", "The cat", "-n", 40, "-t", 0, "--device", "auto").stdout == wanted


def test_inspect_json_has_the_shape_of_the_contract(llm: Llm, tiny_model: Path) -> None:
    found = json.loads(llm("inspect", "--json").stdout)
    assert list(found) == ["file", "bytes", "parameters", "tensors", "config", "tokenizer", "training", "sha256"]
    assert found["bytes"] == tiny_model.stat().st_size
    assert found["parameters"] == sum(math.prod(tensor["shape"]) for tensor in found["tensors"])
    assert found["tokenizer"] == {"kind": "bpe", "vocab_size": 300}
    assert found["config"]["model_type"] == "qwen3"


def test_inspect_shows_parts_tensors_figures_and_the_hash(llm: Llm, tiny_model: Path) -> None:
    overview = llm("inspect").stdout
    assert "layers x 2" in overview and "q_proj.weight" in overview and "hidden_size" in overview
    assert len(llm("inspect", "--tensors").stdout.splitlines()) == 1 + 25
    one = json.loads(llm("inspect", "--tensor", "model.norm.weight", "--json").stdout)
    assert one["shape"] == [32] and 0.5 <= one["min"] <= one["mean"] <= one["max"] <= 1.5
    assert llm("inspect", "--verify").exit_code == 0
    data = bytearray(tiny_model.read_bytes())
    data[-9] ^= 4
    tiny_model.write_bytes(data)
    assert "damaged" in llm("inspect", "--verify").stderr


def test_tokenize_json_ids_and_decode_agree(llm: Llm, tiny_model: Path) -> None:
    text = "The cat りんご 🍎 <|endoftext|>\r\n"
    found = json.loads(llm("tokenize", text, "--json").stdout)
    assert set(found) == {"ids", "tokens", "bytes"} and found["bytes"] == len(text.encode())
    ids = llm("tokenize", text, "--ids").stdout
    assert [int(i) for i in ids.split()] == found["ids"]
    assert llm("tokenize", "--decode", ids).stdout_bytes == text.encode()
    Path("t.txt").write_bytes(text.encode())
    assert llm("tokenize", "--file", "t.txt", "--ids").stdout == ids
    assert llm("tokenize", "-", "--ids", stdin=text.encode()).stdout == ids


def test_tokenize_train_makes_a_tokenizer_that_train_takes(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    assert llm("tokenize", "--train", "c.txt", "--vocab-size", 280, "-o", "tok.json").exit_code == 0
    assert llm("tokenize", "--train", "c.txt", "-o", "tok.json").exit_code == 1  # exists
    ids = llm("tokenize", "The cat", "--tokenizer", "tok.json", "--ids").stdout
    assert llm("train", "c.txt", "--tokenizer", "tok.json", "--steps", 1, "-q").exit_code == 0
    assert llm("tokenize", "The cat", "--ids").stdout == ids
    assert json.loads(llm("inspect", "--json").stdout)["config"]["vocab_size"] == 280


# ---- training through the door


def test_train_json_events(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    answer = llm("train", "c.txt", "--steps", 3, "--json")
    events = [json.loads(line) for line in answer.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "plan" and kinds[-1] == "done" and kinds.count("step") == 3 and {"eval", "sample"} < set(kinds)
    done = events[-1]
    assert {"file", "steps", "seconds", "bits_per_byte", "parameters"} < set(done)
    record = json.loads(llm("inspect", "--json").stdout)["training"]
    assert record["bits_per_byte"] == pytest.approx(done["bits_per_byte"], abs=1e-6) and record["steps"] == 3


def test_the_end_of_a_run_says_what_would_help_and_the_file_remembers(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    words = ["train", "c.txt", "--steps", 4, "--no-tie", "--context", 16, "-o", "my model.safetensors", "--threads", 1]
    answer = llm(*words)
    assert answer.exit_code == 0 and answer.stdout == ""
    said = answer.stderr.splitlines()[-4:]
    assert said[0].startswith("Held-out text: ") and "bits per byte at the end" in said[0]
    assert said[1].startswith("Undertrained: 4 steps") and said[1].endswith(
        " Train longer: llm train c.txt -o 'my model.safetensors' --context 16 --no-tie --threads 1 --force --time 5m"
    )
    assert said[2:] == [
        "Try it: llm generate \"The dog ate the\" -m 'my model.safetensors'",
        "The model continues text; it does not answer questions. Details of the file: "
        "llm inspect 'my model.safetensors'",
    ]
    assert llm(*shlex.split(said[2].split(": llm ")[1]), "-n", 3).exit_code == 0
    *events, done = map(json.loads, llm(*words, "--force", "--json").stdout.splitlines())
    assert done["verdict"] == said
    assert [found["name"] for found in done["baselines"]] == ["xz", "PPM, adapting", "PPM, static"]
    assert all(f"{found['name']} {found['bits_per_byte']:.3f}" in said[0] for found in done["baselines"])
    assert set(done["memorised"]) == {"share", "strings", "held_out_share", "searched_bytes"}
    record = json.loads(llm("inspect", "my model.safetensors", "--json").stdout)["training"]
    assert record["memorised"] == done["memorised"]
    interim = [event["bits_per_byte"] for event in events if event["event"] == "eval"]
    assert interim and record["curve"]["eval_bits_per_byte"] == interim  # the same numbers, not rounded once more
    assert record["verdict"] == [said[0], said[1].split(": llm")[0] + "."]
    shown = llm("inspect", "my model.safetensors").stdout
    assert "summary" in shown and "memorization" in shown and "⠒⠒ training  o held-out (interim)" in shown
    assert re.search(
        rf"held-out +{record['bits_per_byte']:.3f} bits per byte at the end, on [\d,]+ bytes, in float32", shown
    )


def test_a_model_under_the_name_of_those_without_one_is_kept(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    runs = []
    for seed in (1, 2, 3):
        answer = llm("train", "c.txt", "--steps", 2, "--seed", seed)
        assert answer.exit_code == 0, answer.stderr
        runs.append(Path("model.safetensors").read_bytes())
    assert "renamed the existing model.safetensors to model-2.safetensors" in answer.stderr
    assert [Path(f"model-{number}.safetensors").read_bytes() for number in (1, 2)] == runs[:2]
    assert llm("train", "c.txt", "--steps", 2, "--force").exit_code == 0
    assert sorted(path.name for path in Path().glob("*.safetensors")) == [
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors",
    ]
    answer = llm("train", "c.txt", "--steps", 2, "-o", "model.safetensors")  # who gives a name wants that name
    assert answer.exit_code == 1 and "exists already; add --force" in answer.stderr


def test_a_model_that_cannot_be_kept_is_left_alone(llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Path:
        raise LLMError(f"cannot rename {path} to model-1.safetensors: Read-only file system")

    Path("c.txt").write_text(TEXT, "utf-8")
    assert llm("train", "c.txt", "--steps", 1).exit_code == 0
    before = Path("model.safetensors").read_bytes()
    monkeypatch.setattr(atomic_io, "move_aside", refuse)
    answer = llm("train", "c.txt", "--steps", 1, "--seed", 2)
    assert answer.exit_code == 0 and "Read-only file system; saving the model as model-2.safetensors" in answer.stderr
    assert Path("model.safetensors").read_bytes() == before and llm("inspect", "model-2.safetensors").exit_code == 0


def test_a_file_of_another_program_is_not_renamed(llm: Llm) -> None:
    from safetensors.numpy import save_file

    Path("c.txt").write_text(TEXT, "utf-8")
    for write in (lambda name: save_file({"a": np.zeros(3)}, name), lambda name: Path(name).write_text("notes")):
        write("model.safetensors")
        before = Path("model.safetensors").read_bytes()
        answer = llm("train", "c.txt", "--steps", 2)
        assert answer.exit_code == 1 and "exists already; add --force" in answer.stderr
        assert Path("model.safetensors").read_bytes() == before
        assert {path.name for path in Path().iterdir()} == {"c.txt", "model.safetensors"}


def test_a_text_that_has_gone_does_not_cost_the_model(llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcli.training import trainer

    real = trainer.train

    def train(*values: object, **options: object) -> object:
        Path("c.txt").unlink()
        yield from real(*values, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "train", train)
    Path("c.txt").write_text(TEXT, "utf-8")
    answer = llm("train", "c.txt", "--steps", 1)
    assert answer.exit_code == 0 and "memorization could not be measured: " in answer.stderr
    assert llm("inspect", "--verify").exit_code == 0


def test_the_same_run_gives_the_same_bytes(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    for name in ("a", "b", "c"):
        seed = 2 if name == "c" else 1
        assert (
            llm("train", "c.txt", "--steps", 5, "--seed", seed, "--threads", 1, "-o", f"{name}.safetensors").exit_code
            == 0
        )
    a, b, c = (Path(f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b and a != c


def test_the_model_of_a_packed_text_is_that_of_the_plain_one(llm: Llm) -> None:
    texts = {"plain": TEXT.encode("utf-8"), "gz": gzip.compress(TEXT.encode("utf-8")), "wide": TEXT.encode("utf-16")}
    for name, data in texts.items():
        Path(name).mkdir()
        Path(name, "c.txt").write_bytes(data)
        assert llm("train", f"{name}/c.txt", "--steps", 2, "--threads", 1, "-o", f"{name}.safetensors").exit_code == 0
    answer = llm("train", "-", "--steps", 2, "--threads", 1, "-o", "stdin.safetensors", stdin=texts["gz"])
    assert answer.exit_code == 0
    plain, packed, wide = (Path(f"{name}.safetensors").read_bytes() for name in texts)
    assert plain == packed == wide
    curves = [checkpoint.load(Path(f"{name}.safetensors")).record["curve"] for name in ("stdin", "gz")]
    assert curves[0] == curves[1]


def test_dry_run_prints_the_plan_and_writes_nothing(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    answer = llm("train", "c.txt", "--dry-run")
    assert answer.exit_code == 0
    for word in ("vocabulary", "budget", "size", "context", "batch", "steps", "dropout"):
        assert word in answer.stdout
    assert not Path("model.safetensors").exists()


def test_learning_rates_are_scaled_shown_and_kept(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")

    def plan(*words: object) -> dict[str, str]:
        answer = llm("train", "c.txt", "--steps", 2, "--tie", "--dry-run", *words)
        assert answer.exit_code == 0
        return {row[0]: row[1] for row in (line.split("\t") for line in answer.stdout.splitlines())}

    assert plan()["learning rate"] == "Muon 0.03, AdamW 0.003"
    assert plan("--lr", 0.5)["learning rate"] == plan("--lr-scale", 0.5)["learning rate"] == "Muon 0.015, AdamW 0.0015"
    small = llm("train", "c.txt", "--steps", 2, "--lr-scale", "3e-4", "--threads", 1)  # explicit, so it is done
    assert small.exit_code == 0 and "the model will hardly learn anything" in small.stderr
    assert json.loads(llm("inspect", "--json").stdout)["training"]["train"]["lr"] == 0.0003
    again = llm("train", "c.txt", "--steps", 2, "--lr", 0.5, "--threads", 1, "--force").stderr
    assert "hardly learn" not in again


@pytest.mark.slow
def test_in_a_terminal_the_plan_is_five_lines(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    shown = in_a_terminal("train", "c.txt", "--steps", "2", "--threads", "1", "--seed", "1")
    plan = STYLES.sub("", shown).split("--dry-run shows the whole plan")[0].splitlines()
    names = [line.split()[0] for line in plan if re.match(r"  \w", line)]
    assert names == ["corpus", "vocabulary", "model", "training", "regularization"]
    assert len(plan) <= 9 and max(map(len, plan)) <= 80
    everything = llm("train", "c.txt", "--steps", 2, "--threads", 1, "--seed", 1, "--dry-run").stdout.splitlines()
    kept = json.loads(llm("inspect", "--json").stdout)["training"]["plan"]
    assert everything == ["setting\tvalue\treason", *("\t".join(choice.values()) for choice in kept)]
    assert len(kept) > 12
    events = llm("train", "c.txt", "--steps", 2, "--threads", 1, "--seed", 1, "--json", "--force").stdout
    assert json.loads(events.splitlines()[0])["choices"] == kept


def test_every_size_option_takes_effect(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    words = (
        "--layers 1 --width 48 --heads 6 --kv-heads 2 --context 16 --tie --vocab-size 270 --tokenizer char --steps 1"
    )
    assert llm("train", "c.txt", *words.split()).exit_code == 0
    config = json.loads(llm("inspect", "--json").stdout)["config"]
    wanted = {
        "num_hidden_layers": 1, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 16, "tie_word_embeddings": True, "vocab_size": 257 + len("りんごを食べる。🍎"),
    }  # fmt: skip
    assert {key: config[key] for key in wanted} == wanted


def test_going_on_from_a_model(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    assert llm("train", "c.txt", "--steps", 20, "-o", "base.safetensors").exit_code == 0
    answer = llm("train", "c.txt", "--steps", 1, "--from", "base.safetensors", "-o", "more.safetensors", "--json")
    step = next(json.loads(line) for line in answer.stdout.splitlines() if '"event": "step"' in line)
    assert step["loss"] < 4.5  # ln(vocabulary) is over 5.6


def interrupt(how: list[int], pause: float = 0.0, more: tuple[str, ...] = ()) -> tuple[int, str]:
    """Start a long run, send signals once it takes steps; (exit code, stderr)."""
    Path("c.txt").write_text(TEXT * 5, "utf-8")
    run = subprocess.Popen(
        [sys.executable, "-m", "llmcli", "train", "c.txt", "--steps", "100000", "--json", *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    for line in run.stdout:
        if '"event": "step"' in line:
            break
    for number in how:
        run.send_signal(number)
        time.sleep(pause)
    _, errors = run.communicate(timeout=HANG)
    return run.returncode, errors


@platforms.posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_a_signal_ends_the_step_and_saves(llm: Llm, number: int, code: int) -> None:
    found, errors = interrupt([number])
    assert found == code and "Traceback" not in errors
    record = json.loads(llm("inspect", "--json").stdout)["training"]
    assert record["interrupted"] is True and record["steps"] >= 1
    assert llm("inspect", "--verify").exit_code == 0


@platforms.posix
def test_a_closed_pipe_is_quiet(tiny_model: Path) -> None:
    run = subprocess.run(
        f"{sys.executable} -m llmcli generate 'The cat' -n 400 | head -c 1", shell=True, capture_output=True
    )
    assert run.stderr == b"" and len(run.stdout) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_output_is_one_line(tiny_model: Path) -> None:
    run = subprocess.run(
        f"{sys.executable} -m llmcli generate 'The cat' -n 4 > /dev/full", shell=True, capture_output=True, text=True
    )
    assert run.returncode == 1 and run.stderr.startswith("error:") and run.stderr.count("\n") == 1


def test_an_ascii_locale_still_writes_utf8(tiny_model: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "llmcli", "tokenize", "りんご 🍎", "--json"],
        capture_output=True, env=os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert run.returncode == 0
    assert json.loads(run.stdout.decode("utf-8"))["bytes"] == len("りんご 🍎".encode())


# ---- what a user can get wrong

NOT_FINITE = ("nan", "inf", "-inf")
WRONG = [
    (2, "train", "Missing argument"),
    (1, "train empty.txt", "empty.txt is empty"),
    (1, "train blank.txt", "too short"),
    (1, "train nofile.txt", "no file or directory nofile.txt"),
    (1, "train no*.txt", "nothing matches"),
    (1, "train binaries", "no text found in binaries"),
    (1, "train latin.txt", "byte 0xe9 at position 3"),
    (1, "train nul.txt", "zero byte at position 1"),
    (1, "train c.txt --context 9000", "shorter than a context"),
    (2, "train c.txt --width 1000000000", "--width"),
    (1, "train c.txt --width 1000000", "GB are free"),
    (1, "train c.txt -o nowhere/m.safetensors", "no directory"),
    (1, "train c.txt -o binaries", "is a directory"),
    (1, "train c.txt -o model.safetensors", "exists already; add --force"),
    (2, "train c.txt --width 100 --heads 3", "does not divide"),
    (2, "train c.txt --width 64 --heads 4 --kv-heads 3", "do not divide"),
    (2, "train c.txt --width 6 --heads 2", "must be even"),
    (2, "train c.txt --time 5", "write it as 90s"),
    (2, "train c.txt --time 5m --steps 3", "give one of them"),
    (2, "train c.txt --steps 0", "--steps"),
    (2, "train c.txt --steps x", "--steps"),
    (2, "train c.txt --epochs -1", "--epochs"),
    (2, "train c.txt --vocab-size 10", "--vocab-size"),
    (1, "train c.txt --tokenizer wordpiece", "give bpe, char or a tokenizer.json"),
    (1, "train c.txt --tokenizer c.txt", "tokenizer"),
    (2, "train c.txt --tokenizer c.txt --vocab-size 300", "--vocab-size has no effect with --tokenizer FILE"),
    (2, "train c.txt --threads 5000", "--threads"),
    (2, "train c.txt -o .", "-o needs the name of a file"),
    (2, "train c.txt -o . --dry-run", "-o needs the name of a file"),
    (2, "train c.txt --dropout 1", "--dropout"),
    (2, "train c.txt --val 1", "--val"),
    (1, "train c.txt --val nofile", "--val nofile"),
    (2, "train c.txt --device tpu", "--device"),
    (2, "train c.txt --dtype int8", "--dtype"),
    (1, "train c.txt --from foreign.safetensors", "not a model of this program"),
    (2, "train c.txt --from model.safetensors --width 64", "--from keeps"),
    *[(2, f"train c.txt --{name} {value}", "--lr-scale must be above 0")
      for name in ("lr", "lr-scale") for value in (0, -1, *NOT_FINITE)],
    (2, "train c.txt --lr 3e-4", "--lr 0.0003 looks like a learning rate, but it multiplies the"),
    (2, "train c.txt --lr 0.5 --lr-scale 0.5", "--lr-scale has no effect with --lr"),
    (1, "generate hi -m nofile", "no file or directory nofile"),
    (1, "generate hi -m cut.safetensors", "cut off"),
    (1, "generate hi -m short.safetensors", "cut off"),
    (1, "generate hi -m empty.txt", "is empty"),
    (1, "generate hi -m c.txt", "not a safetensors file"),
    (1, "generate hi -m foreign.safetensors", "llm inspect foreign.safetensors"),
    (1, "generate hi -m later.safetensors", "pip install --upgrade llmcli"),
    (1, "generate hi -m binaries", "it has no config.json"),
    (1, "generate", "the prompt is empty"),
    (1, "generate a\udcff", "not UTF-8"),
    *[(2, f"generate hi -t {value}", "--temperature") for value in (-1, *NOT_FINITE)],
    *[(2, f"generate hi -p {value}", "--top-p") for value in (0, 1.5, "nan")],
    *[(2, f"generate hi --min-p {value}", "--min-p") for value in (-0.1, 2, "nan")],
    *[(2, f"generate hi --repetition-penalty {value}", "--repetition-penalty") for value in (0, *NOT_FINITE)],
    (2, "generate hi -k -1", "--top-k"),
    (2, "generate hi -n -1", "--max-tokens"),
    (2, "generate hi --seed -1", "--seed"),
    (2, "generate hi --next 0", "--next"),
    (2, "generate hi --next 2 -t 0 --seed 1", "--temperature and --seed have no effect with --next; leave them out"),
    (2, "generate hi --steps 0", "--steps"),
    (2, "generate hi --steps 3 -n 4 --color", "--max-tokens and --color have no effect with --steps; leave them out"),
    (2, "generate hi --steps 3 --next 4", "--steps has no effect with --next"),
    (2, "generate hi --corpus c.txt", "--corpus has no effect without --memory"),
    (2, "generate hi --memory --color", "--color has no effect with --memory"),
    (2, "generate hi --memory --steps 2", "--memory has no effect with --steps"),
    (1, "generate hi --memory", "does not record its training text; name it: --corpus FILE"),
    (1, "generate hi --memory --corpus nofile", "no file or directory nofile"),
    (2, "generate I like to", "a text of several words needs quotes"),
    (2, "generate hi --device tpu", "--device"),
    (2, "generate hi --bogus", "--bogus"),
    (2, "eval", "Missing argument"),
    (1, "eval nofile.txt", "no file or directory nofile.txt"),
    (1, "eval no*.txt", "nothing matches"),
    (1, "eval empty.txt", "empty.txt is empty"),
    (1, "eval binaries", "no text found in binaries"),
    (1, "eval latin.txt", "byte 0xe9 at position 3"),
    (1, "eval c.txt -m nofile", "no file or directory nofile"),
    (1, "eval c.txt -m model.safetensors -m c.txt", "not a safetensors file"),
    (1, "eval c.txt -m foreign.safetensors", "not a model of this program"),
    (1, "eval c.txt --past nofile", "no file or directory nofile"),
    (1, "eval c.txt --past latin.txt", "byte 0xe9"),
    (2, "eval c.txt --device tpu", "--device"),
    (2, "eval c.txt --per-token -m a -m b", "--per-token shows one model, found 2"),
    (2, "eval c.txt --per-token --past c.txt", "--past has no effect with --per-token"),
    (1, "inspect nofile", "no file or directory nofile"),
    (1, "inspect c.txt", "not a safetensors file"),
    (1, "inspect --tensor norm", "did you mean"),
    (1, "inspect --diff nofile", "no file or directory nofile"),
    (2, "inspect --diff model.safetensors --weights", "--diff has no effect with --weights"),
    (1, "inspect --diff c.txt", "not a safetensors"),
    (2, "inspect --tensors --verify", "--tensors has no effect with --verify"),
    (2, "inspect --force", "--force has no effect without --plot or --html"),
    (1, "inspect foreign.safetensors --verify", "no hash"),
    (1, "tokenize hi -m foreign.safetensors", "not a model of this program"),
    (2, "tokenize --decode x", "--decode needs token ids"),
    (2, "tokenize --decode 7 --json", "--json has no effect with --decode"),
    (2, "tokenize hi --train c.txt", "TEXT has no effect with --train"),
    (2, "tokenize hi --vocab-size 300", "--vocab-size has no effect without --train"),
    (2, "tokenize --train c.txt -o model.safetensors --force", "a tokenizer is a .json file"),
    (2, "tokenize hi --file c.txt", "TEXT has no effect with --file"),
    (2, "tokenize hi --tokenizer t.json -m m", "--model has no effect with --tokenizer"),
    (1, "tokenize hi --tokenizer nofile", "there is no such file; give a tokenizer.json"),
    (1, "tokenize --decode 99999", "there is no token 99999"),
    (1, "tokenize --file latin.txt", "byte 0xe9"),
    (1, "tokenize --train nofile", "no file or directory"),
    (2, "nonsense", "nonsense"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "words", "said"), WRONG, ids=[words.encode("ascii", "replace").decode() for _, words, _ in WRONG]
)
def test_one_clear_line(llm: Llm, tiny_model: Path, code: int, words: str, said: str) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    Path("empty.txt").touch()
    Path("blank.txt").write_text("\n \n")
    Path("latin.txt").write_bytes(b"caf\xe9 au lait")
    Path("nul.txt").write_bytes(b"a\0b")
    Path("binaries").mkdir()
    Path("binaries/x.bin").write_bytes(b"\xff\0")
    whole = tiny_model.read_bytes()
    Path("cut.safetensors").write_bytes(whole[:-1])
    Path("short.safetensors").write_bytes(whole[:100])
    length = int.from_bytes(whole[:8], "little")
    later = whole[8 : 8 + length].replace(b'"llmcli":"1"', b'"llmcli":"9"')
    Path("later.safetensors").write_bytes(whole[:8] + later + whole[8 + length :])
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3, np.float32)}, "foreign.safetensors")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    elsewhere = ["-o", "new.safetensors"] if words.startswith("train ") and "-o" not in words else []
    answer = llm(*words.split(), *elsewhere)
    assert answer.exit_code == code, answer.stderr
    assert answer.stdout == "" and answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1 and answer.stderr.endswith("\n")
    assert said in answer.stderr
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_without_a_model_it_says_how_to_get_one(llm: Llm) -> None:
    for words in (["generate", "hi"], ["inspect"], ["tokenize", "hi"], ["eval", "c.txt"]):
        answer = llm(*words)
        assert answer.exit_code == 1 and "llm train corpus.txt" in answer.stderr
    assert llm("generate", "hi", "-m", "").exit_code == 2


def write_unhashed(
    path: Path, metadata: dict[str, str] | None = None, body: Callable[[bytes], bytes] = lambda body: body
) -> None:
    """Change a model's metadata or its tensors as whoever also takes the hash out would."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]["sha256"]
    header["__metadata__"] |= metadata or {}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body(data[8 + length :]))


@pytest.mark.parametrize(
    "record", ['{"corpus": 7}', '{"curve": {"step": [1], "loss": 3}}', '{"train": 3, "corpus": []}']
)
def test_a_record_of_another_shape_is_told(llm: Llm, tiny_model: Path, record: str) -> None:
    write_unhashed(tiny_model, {"training.json": record})
    answer = llm("inspect")
    assert answer.exit_code == 1 and "its training.json is not valid: " in answer.stderr
    assert llm("generate", "The cat", "-n", 1).stderr == answer.stderr
    assert llm("inspect", "--tensors").exit_code == 0


def test_the_model_may_be_named_by_the_environment(llm: Llm, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tiny_model.rename("other.safetensors")
    monkeypatch.setenv("LLMCLI_MODEL", str(other))
    assert llm("tokenize", "hi", "--ids").exit_code == 0


# ---- what fresh eyes once broke


def test_the_text_to_learn_from_is_never_the_output(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    answer = llm("train", "c.txt", "--steps", 1, "-o", "c.txt", "--force")
    assert answer.exit_code == 1 and "is the training text" in answer.stderr
    assert Path("c.txt").read_text("utf-8") == TEXT


def test_an_empty_tokenizer_file_is_refused(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    Path("e.json").touch()
    assert "not JSON" in llm("train", "c.txt", "--tokenizer", "e.json", "--steps", 1).stderr


def test_damaged_weights_are_told_by_next_and_eval_too(llm: Llm, tiny_model: Path) -> None:
    write_unhashed(tiny_model, body=lambda body: b"\xff" * len(body))
    Path("c.txt").write_text(TEXT, "utf-8")
    for words in (["generate", "The cat", "--next", 3], ["generate", "The cat", "-n", 3], ["eval", "c.txt", "-q"]):
        answer = llm(*words)
        assert answer.exit_code == 1 and "NaN or infinite logits" in answer.stderr


@pytest.mark.parametrize("prompt", ["朝ごはんに", "   ", "supercalifragilistic"])
@pytest.mark.slow
def test_probabilities_after_an_unlikely_prompt_sum_to_one(llm: Llm, tiny_model: Path, prompt: str) -> None:
    found = json.loads(llm("generate", prompt, "--next", 100000, "--json").stdout)
    assert sum(word["probability"] for word in found["next"]) + found["unexplored"] == pytest.approx(1, abs=1e-3)


def test_a_model_that_does_not_fit_is_told_before_it_is_made(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    answer = llm("train", "c.txt", "--width", 1000000, "--steps", 1)
    assert answer.exit_code == 1 and "GB of memory" in answer.stderr.splitlines()[-1]


def test_a_model_that_cannot_be_saved_is_saved_elsewhere(llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcli.errors import LLMError
    from llmcli.formats import checkpoint

    real = checkpoint.save

    def save(path: Path, model: checkpoint.Checkpoint) -> None:
        if Path(path).name == path.name == "m.safetensors" and path.parent == Path():
            raise LLMError("the disk is full")
        real(path, model)

    monkeypatch.setattr("llmcli.training.output.save", save)
    Path("c.txt").write_text(TEXT, "utf-8")
    answer = llm("train", "c.txt", "--steps", 1, "-o", "m.safetensors", "--json", "-q")  # said though quiet
    place = json.loads(answer.stdout.splitlines()[-1])["file"]
    assert answer.exit_code == 0 and "saved the model as" in answer.stderr
    assert llm("inspect", place, "--verify").exit_code == 0


def test_a_file_that_appeared_during_the_run_is_left_alone(llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcli.training import trainer

    real = trainer.train

    def train(*values: object, **options: object) -> object:
        Path("model.safetensors").write_text("somebody's")
        yield from real(*values, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "train", train)
    Path("c.txt").write_text(TEXT, "utf-8")
    assert llm("train", "c.txt", "--steps", 1).exit_code == 0
    assert Path("model.safetensors").read_text() == "somebody's"
    assert llm("inspect", "model-2.safetensors", "--verify").exit_code == 0


@pytest.mark.parametrize(
    "words",
    [["train", ""], ["train", "c.txt", "--val", ""], ["train", "c.txt", "-o", ""],
     ["train", "c.txt", "--tokenizer", ""], ["eval", ""], ["inspect", ""], ["generate", "hi", "-m", ""],
     ["tokenize", "hi", "-m", ""], ["tokenize", "--train", ""]],
)  # fmt: skip
def test_an_empty_name_is_no_name(llm: Llm, tiny_model: Path, words: list[str]) -> None:
    """A script's variable that is not set must not stand for the directory, or for the model here."""
    Path("c.txt").write_text(TEXT, "utf-8")
    answer = llm(*words, *(["-o", "x.safetensors"] if words[0] == "train" and "-o" not in words else []))
    assert answer.exit_code in (1, 2) and answer.stdout == ""
    assert answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full here")
@pytest.mark.slow
def test_notes_that_nobody_takes_do_not_cost_a_run(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    with open("/dev/full", "wb") as full:
        words = ["train", "c.txt", "--steps", "2", "--threads", "1"]
        run = subprocess.run([sys.executable, "-m", "llmcli", *words], stderr=full, stdout=subprocess.PIPE)
    assert run.returncode == 0
    assert llm("inspect", "--verify").exit_code == 0


def test_a_tokenizer_that_is_no_file_or_far_too_large_is_refused(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    with open("large.json", "wb") as file:
        file.truncate(100_000_001)
    for path, said in (
        ("/dev/null", "not a regular file"),
        (".", "not a regular file"),
        ("large.json", "over 100,000,000"),
    ):
        answer = llm("train", "c.txt", "--tokenizer", path, "--steps", 1)
        assert answer.exit_code == 1 and said in answer.stderr and answer.stderr.count("\n") == 1


@pytest.mark.parametrize(("option", "most"), [("--vocab-size", 1_000_000), ("--layers", 1024)])
def test_an_absurd_size_is_refused_at_once(llm: Llm, option: str, most: int) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    error = llm("train", "c.txt", option, 10**9, "--steps", 1).stderr
    assert f"less than or equal to {most}" in error or f"<={most}" in error  # typer's words before 0.29


def test_what_a_command_reads_is_never_what_it_writes(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    assert llm("tokenize", "--train", "c.txt", "-o", "t.json").exit_code == 0
    for words in (
        ("tokenize", "--train", "c.txt", "-o", "c.txt", "--force"),
        ("train", "c.txt", "--tokenizer", "t.json", "-o", "t.json", "--force", "--steps", 1),
    ):
        answer = llm(*words)
        assert answer.exit_code == 1 and "another name with -o" in answer.stderr
    assert Path("c.txt").read_text("utf-8") == TEXT and json.loads(Path("t.json").read_text("utf-8"))


def test_a_file_of_somebody_else_where_a_run_would_be_kept_stays(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    beside = Path("model.resume.safetensors")
    beside.write_text("my notes", "utf-8")
    for words in ((), ("--force",)):
        answer = llm("train", "c.txt", "--steps", 1, *words)
        assert answer.exit_code == 1 and "is not a resume file" in answer.stderr
    assert beside.read_text("utf-8") == "my notes"


@platforms.posix
def test_notes_to_a_closed_stderr_go_into_no_other_file() -> None:
    code = (
        "import sys; from llmcli.cli import app as cli\n"
        "def app():\n"
        "    with open('other.txt', 'wb'):\n"
        "        print('a note', file=sys.stderr, flush=True)\n"
        "cli.app = app; cli.main()"
    )
    subprocess.run(["sh", "-c", 'exec "$0" "$@" 2>&-', sys.executable, "-c", code], check=True)
    assert Path("other.txt").read_bytes() == b""


@platforms.named_pipes
@pytest.mark.parametrize("name", ["f.gguf", "q.safetensors", "pipe"])
@pytest.mark.usefixtures("no_hang")
def test_a_pipe_is_no_model(llm: Llm, name: str) -> None:
    os.mkfifo(name)
    for words in (("inspect", name), ("generate", "x", "-m", name), ("import", name, "-o", "m.safetensors")):
        answer = llm(*words)
        assert answer.exit_code == 1 and "is not a regular file" in answer.stderr


@platforms.named_pipes
@pytest.mark.usefixtures("no_hang")
def test_a_pipe_where_a_run_would_be_kept_is_told(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    os.mkfifo("model.resume.safetensors")
    assert "is not a resume file" in llm("train", "c.txt", "--steps", 1).stderr


@platforms.symbolic_links
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no.safetensors", "make one with: llm train corpus.txt -o no.safetensors"),
        ("HuggingFaceTB/SmolLM2-135M", "hf download HuggingFaceTB/SmolLM2-135M --local-dir SmolLM2-135M"),
        ("hf.co/x/y-1.7B-GGUF:Q4_K_M", "hf download x/y-1.7B-GGUF --local-dir y-1.7B-GGUF"),
        ("nosuch/", "no file or directory nosuch; name a .safetensors"),
        ("no.gguf", "no file or directory no.gguf"),
        ("no/pytorch_model.bin", "no file or directory no/pytorch_model.bin"),
        ("link.safetensors", "link.safetensors is a link to gone, which is missing"),
        ("gpt2", "a model of that name is not supported; Llama, Mistral, SmolLM2, Qwen2, Qwen3 and Mixtral are"),
        ("llama3.2:1b", "does not download by such names; get a .gguf or a Hugging Face directory"),
        ("hf.co/x/y", "get it first: hf download x/y --local-dir y"),
        ("hf://a/b", "get it first: hf download a/b --local-dir b"),
        ("hf:a/b", "get it first: hf download a/b --local-dir b"),
        ("https://huggingface.co/HuggingFaceTB/SmolLM2-135M", "hf download HuggingFaceTB/SmolLM2-135M --local-dir"),
        ("https://huggingface.co/a/b/resolve/main/m-q4.gguf", "hf download a/b m-q4.gguf --local-dir b"),
        ("https://huggingface.co/a/b/blob/main/m.safetensors", "hf download a/b m.safetensors --local-dir b"),
        ("https://example.org/m.gguf", "downloads nothing; get it first: curl -LO https://example.org/m.gguf"),
    ],
)
def test_what_is_not_there_is_told_with_the_way_to_it(llm: Llm, name: str, said: str) -> None:
    Path("link.safetensors").symlink_to("gone")
    answer = llm("generate", "x", "-m", name)
    assert answer.exit_code == 1 and said in answer.stderr
    assert ("llm train" in answer.stderr) == (name == "no.safetensors")


def test_a_file_is_named_after_what_it_holds(llm: Llm, tiny_model: Path) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    for words in (
        ("import", tiny_model, "-o", "n.gguf"), ("train", "c.txt", "-o", "n.gguf", "--steps", 1),
        ("mix", tiny_model, tiny_model, "-o", "n.GGUF"), ("export", tiny_model, "n.gguf", "--quantize", "int8"),
    ):  # fmt: skip
        answer = llm(*words)
        assert answer.exit_code == 2 and "to write a .gguf: llm export" in answer.stderr
    answer = llm("export", tiny_model, "n.safetensors", "--to", "gguf")
    assert answer.exit_code == 2 and "name it n.gguf" in answer.stderr
    assert not [*Path().glob("n.*")]


def test_a_tokenizer_that_cannot_be_used_is_told_with_its_file(llm: Llm, tiny_model: Path) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    Path("bad.json").write_text("{", "utf-8")
    model = checkpoint.load(tiny_model)
    model.tokenizer_json = "{"
    checkpoint.save("bad.safetensors", model)
    same = ("-o", "z.safetensors")
    bad = "bad.safetensors"
    asked = (("generate", "x", "-m", bad), ("eval", "c.txt", "-m", bad), ("tokenize", "x", "-m", bad))
    for words in (*asked, ("import", *same, bad), ("export", bad, "z.gguf", "--to", "gguf")):
        answer = llm(*words)
        assert answer.stderr.count("bad.safetensors: the tokenizer is not JSON") == 1
    for words in (("tokenize", "x"), ("train", "c.txt", "--steps", 1, *same)):
        assert "error: --tokenizer bad.json: the tokenizer is not" in llm(*words, "--tokenizer", "bad.json").stderr


def test_the_plan_says_whose_tokenizer_it_is(llm: Llm, tiny_model: Path) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    assert llm("tokenize", "--train", "c.txt", "-o", "t.json").exit_code == 0
    for words, said in (
        (("--from", tiny_model), "from the base model"),
        (("--like", tiny_model), "same as the --like model"),
        (("--tokenizer", "t.json"), "from the tokenizer given"),
    ):
        assert said in llm("train", "c.txt", "--steps", 1, "--dry-run", *words).stdout


def test_weights_that_become_float32_are_told(llm: Llm, tiny_model: Path) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    model = checkpoint.load(tiny_model)
    model.dtypes = dict.fromkeys(model.config.tensor_shapes(), "BF16")
    checkpoint.save("half.safetensors", model)
    same = ("train", "c.txt", "--steps", 1, "--from")
    said = "the weights are saved as float32, those of half.safetensors are bfloat16"
    assert said in llm(*same, "half.safetensors", "-o", "a.safetensors").stderr
    other = llm(*same, tiny_model, "-o", "b.safetensors").stderr
    assert "float32, those" not in other and "Undertrained: 1 step" in other and "plateaued" not in other
    alone = llm(*same, "half.safetensors", "--lora", 2, "--adapter-only", "-o", "c.safetensors")
    assert "Try it" not in alone.stderr  # adapters alone cannot answer
    assert "Undertrained: 1 step" in alone.stderr and "plateaued" not in alone.stderr
    typed = alone.stderr.split("To use the adapters, merge them into the base model: llm ")[1].split("\n")[0]
    assert typed == "import half.safetensors --adapter c.safetensors -o merged.safetensors"
    merged = llm(*typed.split())
    assert said in merged.stderr


@platforms.posix
@pytest.mark.slow
def test_another_base_is_told_by_its_name(llm: Llm, tiny_model: Path) -> None:
    base = checkpoint.load(tiny_model)
    checkpoint.save("other.safetensors", random_checkpoint(base.config, 1, base.tokenizer_json))
    hashes = [loading.fingerprint(name)[:16] for name in (tiny_model, "other.safetensors")]
    same = ("--threads", "1", "-o", "m.safetensors")
    assert interrupt([signal.SIGINT], more=("--from", str(tiny_model), *same))[0] == 130
    again = llm("train", "c.txt", "--steps", 100000, "--json", "--from", "other.safetensors", *same)
    said = f"--from was model.safetensors (sha256 {hashes[0]}), is other.safetensors (sha256 {hashes[1]})"
    assert again.exit_code == 1 and said in again.stderr


def test_ctrl_c_while_modules_are_imported_is_one_line() -> None:
    code = """
import sys
import llmcli.__main__ as entry
class Interrupting:
    def find_spec(self, name, *_):
        if name == "llmcli.cli.app":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
entry.main()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "interrupted\n")
