"""The entry point: exit codes, one line for each mistake, help, standard streams, and what is imported."""

import itertools
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.cli.app import SUBCOMMANDS, subcommand
from llmcli.formats import checkpoint, loading
from tests import platforms
from tests.conftest import TEXT, Llm
from tests.golden.models import BPE
from tests.reliability.runs import TIMEOUT


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, timeout=TIMEOUT
    )


# ---- imports


@pytest.mark.slow
def test_commands_run_without_importing_torch(tiny_model: Path, llm: Llm) -> None:
    """All in one process: what one of them imports, the next would find."""
    commands = [
        "--help", "train --help", "generate The -n 2", "generate The --next 2", "generate The --steps 2",
        "generate The -n 2 --memory --corpus c.txt", "inspect", "inspect --tensor model.norm.weight", "tokenize hi",
        "--version", "eval c.txt", "eval c.txt --per-token", "explain The", "explain The --html page.html",
        "inspect --weights", "import model.safetensors -o again.safetensors", "export model.safetensors there --to hf",
        "generate The -n 2 -m mix.safetensors --experts", "mix model.safetensors other.safetensors -o m.safetensors",
    ]  # fmt: skip
    if find_spec("gguf"):
        commands.append("export model.safetensors model.gguf --to gguf")
    if find_spec("onnxruntime") and find_spec("onnx"):
        commands.append("generate The -n 2 --quantize int8")
    Path("c.txt").write_text(TEXT, "utf-8")
    Path("other.safetensors").write_bytes(tiny_model.read_bytes())
    assert llm("mix", "model.safetensors", "other.safetensors", "-o", "mix.safetensors").exit_code == 0
    code = (
        "import sys\n"
        "from llmcli.generation import next_words; next_words.MAX_EVALUATIONS = 50\n"  # the model is random
        "from llmcli.cli.app import app\n"
        f"for command in {commands!r}:\n"
        "    try: app(command.split())\n"
        "    except SystemExit as end: assert not end.code, (command, end.code)\n"
        "    heavy = {'torch', 'transformers', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "    assert not heavy, (command, heavy)"
    )
    found = python(code)
    assert found.returncode == 0, found.stderr


def test_help_imports_no_heavy_library_and_no_other_subcommand() -> None:
    for words, check in [
        (["--help"], "not {m for m in loaded if m.startswith((commands, 'numpy', 'rich', 'tokenizers'))}"),
        (["inspect", "--help"], "{m for m in loaded if m.startswith(commands)} == {commands + 'inspect'}"),
    ]:
        found = python(
            f"import os, sys; sys.argv = ['llm', *{words!r}]; os.environ.pop('OPENBLAS_NUM_THREADS', None)\n"
            "from llmcli.cli.main import main\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "assert os.environ['OPENBLAS_NUM_THREADS'] == '1'  # numpy reads it when it is imported\n"
            f"loaded, commands = set(sys.modules), 'llmcli.cli.commands.'; assert {check}"
        )
        assert found.returncode == 0, found.stderr


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_infinite_weights_are_one_line(llm: Llm, tiny_model: Path, monkeypatch) -> None:
    model = loading.load(tiny_model)
    tensors = {name: np.array(tensor) for name, tensor in model.tensors.items()}
    tensors["model.norm.weight"][1] = tensors["model.layers.0.self_attn.q_norm.weight"][0] = np.inf
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "checked_finite", lambda name, values: values)  # refuses to write them
        checkpoint.save(tiny_model, replace(model, tensors=tensors))
    Path("c.txt").write_text(TEXT, "utf-8")
    forms = ["-hf --to hf", ".html --to html --dtype f32", ".safetensors --quantize int8"]
    forms += [".gguf --to gguf"] * (find_spec("gguf") is not None)
    conversions = [*(f"export {tiny_model} new{form}" for form in forms), f"import {tiny_model} -o new.safetensors"]
    for words in ("generate The", "generate The --next 2", "eval c.txt", "explain The --literal", *conversions):
        found = llm(*words.split(), "-q")
        assert found.exit_code == 1 and found.stderr.count("\n") == 1, found.stderr
        assert re.search("has NaN or infinite values|NaN or infinite logits", found.stderr), found.stderr
        assert "its weights are damaged; llm inspect --verify shows whether" in found.stderr
    assert not list(Path().glob("new*"))
    assert "intact" in llm("inspect", "--verify").stdout


# ---- help and standard streams

HELPS = ("--help", "--help-all")


def options_of(name: str) -> list[Any]:
    return [param for param in subcommand(name).params if param.opts[0].startswith("-")]


def test_help_shows_whole_summaries(llm: Llm) -> None:
    assert llm().stdout == llm("-h").stdout == llm("--help").stdout
    lines = llm("--help").stdout.split("Commands:\n")[1].splitlines()
    assert dict(line.split(maxsplit=1) for line in lines) == SUBCOMMANDS and [line.split()[0] for line in lines] == [
        *SUBCOMMANDS
    ]
    assert all(summary.endswith(".") and not summary.endswith("...") for summary in SUBCOMMANDS.values())


def test_help_names_arguments_without_python_types_and_fits_80_columns(llm: Llm) -> None:
    for name, summary in SUBCOMMANDS.items():
        text = llm(name, "-h").stdout
        assert text.startswith("Usage: ") and text.split("\n\n")[1].strip() == summary
        assert not re.search(r"<\w+|\{|\blist\[|\bstr\b", text), text
        assert max(map(len, text.splitlines())) <= 80
        options = re.findall(r"^  (--?[a-z].*?)(?:  |\n {20,})(\S.*)", text, flags=re.MULTILINE)
        assert options and all(help[0].isupper() or help[0].isdigit() for _, help in options), options


def test_help_shows_at_most_30_options_and_help_all_the_rest(llm: Llm) -> None:
    for name in SUBCOMMANDS:
        shown = {which: set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", llm(name, which).stdout, re.M)) for which in HELPS}
        assert len(shown["--help"]) <= 30
        everything = {next(one for one in param.opts if one.startswith("--")) for param in options_of(name)}
        assert shown["--help-all"] - {"--help", "--help-all"} == everything
        assert shown["--help"] <= shown["--help-all"] and (
            ("--help-all" in shown["--help"]) == (shown["--help"] != shown["--help-all"])
        )


@pytest.mark.slow
@platforms.posix
def test_a_closed_pipe_prints_no_error(tiny_model: Path) -> None:
    run = subprocess.run(
        f"{sys.executable} -m llmcli generate 'The cat' -n 400 | head -c 1", shell=True, capture_output=True
    )
    assert run.stderr == b"" and len(run.stdout) == 1


# ---- mistakes

NOT_FINITE = ("nan", "inf", "-inf")
WRONG = [
    (2, "train", "Missing argument"),
    (1, "train nofile.txt", "no file or directory nofile.txt"),
    (1, "train *.nothing", "nothing matches *.nothing"),
    (1, "train https://example.org/book.txt", "download it first: curl -LO https://example.org/book.txt"),
    (1, "train c.txt -o model.safetensors", "already exists; add --force"),
    (2, "train c.txt --time 5", "write it as 90s"),
    (2, "train c.txt --time 5m --steps 3", "give one of them"),
    (1, "train c.txt --tokenizer wordpiece", "name bpe, char or a tokenizer.json"),
    (1, "train c.txt --tokenizer .", "is a directory; name bpe, char or a tokenizer.json"),
    (1, "train c.txt --tokenizer model.safetensors", "is not UTF-8 text; name bpe, char or a tokenizer.json"),
    (2, "train c.txt --tokenizer c.txt --vocab-size 300", "--vocab-size has no effect with --tokenizer FILE"),
    (1, "train c.txt -o -", "which is standard output; give a file name: -o model.safetensors"),
    (1, "train c.txt --dry-run -o no/m.safetensors", "/no; make it first: mkdir -p"),
    (2, "train c.txt -o .", "-o needs the name of a file"),
    (1, "train c.txt -o c.txt/m.safetensors", "c.txt is not a directory; give another name"),
    (1, f"train c.txt -o {'m' * 300}", "cannot write"),
    (2, "train c.txt --vocab-size 260", "--vocab-size must be an integer from 261"),
    (2, "train c.txt --dropout 1", "--dropout"),
    (1, "train c.txt --val nofile", "--val nofile"),
    (1, "train c.txt --from foreign.safetensors", "not a model of this program"),
    (1, "generate hi -m foreign.safetensors", "llm inspect foreign.safetensors"),
    (1, "generate hi -m c.txt/m.safetensors", "cannot read"),
    (1, f"generate hi -m {'m' * 300}", "mmmm"),
    (2, "train c.txt --from=", "--from is empty; give the name of a file"),
    (2, "train c.txt --from model.safetensors --context 33", "--context 33 is longer than the base model's 32"),
    (2, "train c.txt --known-answers", "the training data are plain text"),
    (2, "train c.txt --from model.safetensors --width 64", "--width has no effect with --from, which keeps"),
    *[(2, f"train c.txt --lr-scale {value}", "--lr-scale must be between 1e-12") for value in (0, -1, *NOT_FINITE)],
    (2, "train c.txt --from model.safetensors --lora 4 --optimizer muon", "--lora trains with AdamW"),
    (2, "train c.txt --optimizer sgd", "--optimizer must be muon or adamw"),
    (2, "train c.txt --lr 3e-4", "no option --lr; did you mean --lr-scale X, which multiplies"),
    (2, "train c.txt --host 0.0.0.0", "--host has no effect without --watch"),
    (2, "train c.txt --port 8000", "--port has no effect without --watch"),
    (1, "generate hi -m nofile", "no file or directory nofile"),
    (1, "generate hi --experts", "has no experts"),
    (2, "generate hi -m nofile -m model.safetensors", "--model takes one value, found 2; give it once"),
    (1, "generate", "the prompt is empty"),
    (1, "generate a\udcff", "the prompt is not UTF-8 text: byte 0xff at position 1; write it in UTF-8"),
    (1, "generate hi --stop a\udcff", "the stop sequence is not UTF-8"),
    *[(2, f"generate hi -t {value}", "--temperature") for value in (-1, *NOT_FINITE)],
    *[(2, f"generate hi -p {value}", "--top-p") for value in (-0.1, 1.5, "nan")],
    *[(2, f"generate hi --min-p {value}", "--min-p") for value in (-0.1, 2, "nan")],
    (2, "generate hi --next 2 -t 0 --seed 1", "--temperature and --seed have no effect with --next; leave them out"),
    (1, "generate hi --json-schema model.safetensors", "; expected a file with the JSON schema"),
    (2, "generate hi --json --color", "--color has no effect with --json; leave it out"),
    (2, "generate hi -n 4 --min-tokens 5", "--min-tokens must be at most --max-tokens, 4, found 5"),
    (2, "generate hi --steps 3 -n 4 --color", "--max-tokens and --color have no effect with --steps; leave them out"),
    (2, "generate hi --corpus c.txt", "--corpus has no effect without --memory"),
    (1, "generate hi --memory", "does not record its training text; name it: --corpus FILE"),
    (2, "generate I like to", "a text of several words needs quotes"),
    (2, "serve model.safetensors", "name each model with -m: llm serve -m FILE"),
    (2, "--show-completion zsh", "in zsh, type: llm --show-completion"),
    (2, "generate hi --device tpu", "--device must be cpu, cuda, mps or auto, found tpu"),
    (1, "eval c.txt -m model.safetensors -m c.txt", "not a safetensors file"),
    (1, "eval latin.txt -m model.safetensors", "name its encoding: llm text FILE --encoding NAME"),
    (2, "eval c.txt --per-token -m a -m b", "--per-token shows one model, found 2"),
    (2, "eval c.txt --per-line --per-token", "--per-token has no effect with --per-line"),
    (2, "explain The --layer 3", "--layer names a layer, as in 1, or a head of a layer, as in 1.4; the model has"),
    (2, "explain The --layer 1 --html a.html", "--layer has no effect with --html"),
    (2, "explain The --without 2.5", "--without names a layer, as in 1, or a head of a layer, as in 1.4; the model"),
    (2, "explain The --without 1 --layer 1", "--layer has no effect with --without or --compare"),
    *[(2, f"explain {text}", "the prompt is empty") for text in ("''", "The --compare ''", "a --compare '' --html b")],
    *[(2, f"explain The --without cache {page}", "has no n-gram cache") for page in ("", "--html a.html")],
    (2, "explain The --token ''", "--token must be one token of the model, found '', which is empty"),
    (2, "export model.safetensors '' --to gguf", "the name of a file is empty"),
    (2, "export out", "choose a format: --to hf, --to gguf, --to html, --to tokenizer, --to handover or --quantize"),
    (1, "export model.safetensors - --to hf", "expected a directory, found -"),
    (2, "export out --to onnx", "--to must be hf, gguf, html, tokenizer or handover, found onnx"),
    (2, "export a b c --to hf", "give one model and one output, found 3 names"),
    (2, "export out --to hf --quantize int8", "--quantize writes a .safetensors file"),
    (2, "export out --to hf --dtype q8_0", "--dtype must be f32, f16, bf16 with --to hf, found q8_0"),
    (2, "export model.safetensors out --to hf --private", "--private has no effect without --push"),
    (2, "export model.safetensors out --to gguf --push a/b", "--push has no effect with --to gguf"),
    # names of files: of the input, or of another format
    (1, "export model.safetensors model.safetensors --force --to tokenizer", "is the model to export"),
    (1, "export model.safetensors model.safetensors --force --quantize int8", "is the model to export"),
    (1, "import model.safetensors -o model.safetensors --force", "is the model to import"),
    *[
        (2, f"export model.safetensors {other} {words} --force", f"writes a {ending} file; name it {name}")
        for other, words, ending, name in (
            ("c.txt", "--to html", ".html", "c.html"), ("cut.safetensors", "--to html", ".html", "cut.html"),
            ("cut.safetensors", "--to gguf", ".gguf", "cut.gguf"), ("q.gguf", "--to tokenizer", ".json", "q.json"),
            ("q.gguf", "--quantize int8", ".safetensors", "q.safetensors"),
        )
    ],
    (2, "train c.txt -o n.gguf --steps 1", "to write a .gguf: llm export"),
    (2, "import model.safetensors -o n.gguf", "to write a .gguf: llm export"),
    (2, "mix model.safetensors foreign.safetensors -o n.GGUF", "to write a .gguf: llm export"),
    (2, "mix model.safetensors ./model.safetensors", "model.safetensors is named twice"),
    (2, "mix model.safetensors", "at least two models are needed, found 1"),
    (2, "inspect --tensors --verify", "--tensors has no effect with --verify"),
    (1, "inspect foreign.safetensors --verify", "no hash"),
    (2, "tokenize --decode x", "--decode needs token ids"),
    (2, "tokenize --decode 7 --json", "--json has no effect with --decode"),
]  # fmt: skip


def test_every_mistake_is_reported_in_one_line(llm: Llm, tiny_model: Path) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    Path("latin.txt").write_bytes(b"caf\xe9 au lait")
    Path("cut.safetensors").write_bytes(tiny_model.read_bytes()[:-1])
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3, np.float32)}, "foreign.safetensors")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for code, words, message in WRONG:
        elsewhere = ["-o", "new.safetensors"] if words.startswith("train ") and "-o" not in words else []
        answer = llm(*shlex.split(words), *elsewhere)
        assert (answer.exit_code, answer.stdout) == (code, ""), (words, answer.stderr)
        assert answer.stderr.startswith("error: ") and answer.stderr.endswith("\n"), (words, answer.stderr)
        assert answer.stderr.count("\n") == 1 and message in answer.stderr, (words, answer.stderr)
        assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before, words


def test_the_model_may_be_named_by_the_environment(llm: Llm, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tiny_model.rename("other.safetensors")
    monkeypatch.setenv("LLMCLI_MODEL", str(other))
    assert llm("tokenize", "a").stderr == "1 token, 1 character, 1 byte, 1.00 bytes per token\n"
    monkeypatch.setenv("LLMCLI_MODEL", "nofile")
    assert llm("tokenize", "hi").stderr.startswith("error: $LLMCLI_MODEL: there is no file or directory nofile; ")


# ---- files and values that are not usable


def test_an_empty_name_is_refused(llm: Llm, tiny_model: Path) -> None:
    """An unset variable of a script must not mean the working directory or the default model."""
    Path("c.txt").write_text(TEXT, "utf-8")
    for command in (
        "train", "train c.txt --val", "train c.txt -o", "train c.txt --tokenizer", "eval", "inspect",
        "generate hi -m", "generate hi --json-schema", "generate hi --memory --corpus", "import", "tokenize hi -m",
    ):  # fmt: skip
        words = [*command.split(), ""]
        is_written = words[0] in ("train", "import") and "-o" not in words
        answer = llm(*words, *(["-o", "x.safetensors"] if is_written else []))
        assert answer.exit_code == 2 and answer.stdout == "", (command, answer.stderr)
        assert answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1


def test_no_command_overwrites_its_inputs(llm: Llm) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    shutil.copy(BPE, "t.json")
    for words in (
        ("train", "c.txt", "-o", "c.txt", "--force", "--steps", 1),
        ("train", "c.txt", "--tokenizer", "t.json", "-o", "t.json", "--force", "--steps", 1),
    ):
        answer = llm(*words)
        assert answer.exit_code == 1 and "another name with -o" in answer.stderr
    assert Path("c.txt").read_text("utf-8") == TEXT and json.loads(Path("t.json").read_text("utf-8"))


@platforms.posix
def test_notes_to_a_closed_stderr_go_into_no_other_file() -> None:
    code = (
        "import sys; from llmcli.cli import app as cli; from llmcli.cli.main import main\n"
        "def app():\n"
        "    with open('other.txt', 'wb'):\n"
        "        print('a note', file=sys.stderr, flush=True)\n"
        "cli.app = app; main()"
    )
    subprocess.run(["sh", "-c", 'exec "$0" "$@" 2>&-', sys.executable, "-c", code], check=True)
    assert Path("other.txt").read_bytes() == b""


READING = (
    "train", "train c.txt --val", "train c.txt --tokenizer", "train c.txt --from", "train c.txt --like", "eval",
    "eval c.txt -m", "text", "tokenize a -m", "generate a --grammar", "generate a --json-schema",
    "generate a --choices", "generate --batch",
    "generate a --memory --corpus", "generate a -m", "explain a -m", "inspect",
    "import -o x.safetensors", "import model.safetensors -o x.safetensors --adapter",
    "import model.safetensors -o x.safetensors --fit-cache", "mix model.safetensors", "export --to html",
)  # fmt: skip


@platforms.named_pipes
@pytest.mark.usefixtures("no_hang")
def test_what_is_no_file_is_named_once_and_not_waited_for(llm: Llm, tiny_model: Path) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    for name in ("pipe", "f.gguf", "q.safetensors"):
        os.mkfifo(name)
    Path("link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        for words, name in itertools.product(
            READING, ("pipe", "f.gguf", "q.safetensors", "link", "socket", "/dev/zero")
        ):
            answer = llm(*words.split(), name)
            assert answer.exit_code == 1 and answer.stderr.count("\n") == 1, answer.stderr
            assert f"{name} is not a regular file" in answer.stderr and answer.stderr.count(name) == 1


@platforms.symbolic_links
def test_the_error_for_a_missing_model_says_how_to_get_it(llm: Llm) -> None:
    Path("link.safetensors").symlink_to("gone")
    for name, message in [
        ("no.safetensors", "make one with: llm train corpus.txt -o no.safetensors"),
        ("HuggingFaceTB/SmolLM2-135M", "on the Hugging Face hub, name it hf:HuggingFaceTB/SmolLM2-135M"),
        ("hf.co/x/y-1.7B-GGUF:Q4_K_M", "on the Hugging Face hub; use its name there: hf:x/y-1.7B-GGUF"),
        ("nosuch/", "directory, or a model on the hub: hf:OWNER/NAME"),
        ("link.safetensors", "link.safetensors is a link to gone, which is missing"),
        ("llama3.2:1b", "llama3.2:1b; name a .safetensors, a .gguf, a Hugging Face directory, or a model on the hub"),
        ("https://huggingface.co/a/b/resolve/main/m-q4.gguf", "use its name there: hf:a/b/m-q4.gguf\n"),
        ("HF:a/b@v1", "HF:a/b@v1 is on the Hugging Face hub; use its name there: hf:a/b@v1\n"),
        ("a/b:latest", "there is no a/b:latest here; if it is a model on the Hugging Face hub, name it hf:a/b"),
        ("a/b/c", "there is no file or directory a/b/c; name a .safetensors"),
        (
            "https://example.org/m.gguf",
            "a URL, which llm does not download; download it first: curl -LO https://example.org/m.gguf",
        ),
    ]:
        answer = llm("generate", "x", "-m", name)
        assert answer.exit_code == 1 and message in answer.stderr
        assert ("llm train" in answer.stderr) == (name == "no.safetensors")
    assert "llm train corpus.txt" in llm("generate", "x").stderr


def test_the_error_for_an_unusable_tokenizer_names_its_file(llm: Llm, tiny_model: Path) -> None:
    Path("c.txt").write_text(TEXT, "utf-8")
    Path("bad.json").write_text("{", "utf-8")
    model = loading.load(tiny_model)
    model.tokenizer_source = "{"
    checkpoint.save("bad.safetensors", model)
    same = ("-o", "z.safetensors")
    bad = "bad.safetensors"
    asked = (("generate", "x", "-m", bad), ("eval", "c.txt", "-m", bad), ("tokenize", "x", "-m", bad))
    for words in (*asked, ("import", *same, bad), ("export", bad, "z.gguf", "--to", "gguf")):
        answer = llm(*words)
        assert answer.stderr.count("bad.safetensors: the tokenizer is not JSON") == 1
    for words in (("tokenize", "x", "-m"), ("train", "c.txt", "--steps", 1, *same, "--tokenizer")):
        assert "error: bad.json: the tokenizer is not" in llm(*words, "bad.json").stderr


@pytest.mark.slow
@platforms.posix
def test_a_closed_stdout_is_an_error_before_the_work_begins(tiny_model: Path) -> None:
    batch = Path("prompts.txt")
    batch.write_text("The cat\n")
    for words in (["generate", "The cat"], ["generate", "--batch", str(batch)], ["train", str(batch), "--steps", "1"]):
        run = subprocess.run(
            ["sh", "-c", 'exec "$0" -m llmcli "$@" >&-', sys.executable, *words], capture_output=True, text=True
        )
        assert run.returncode == 1 and run.stderr.startswith("error: standard output is closed; to keep the results")
    assert sorted(path.name for path in Path().iterdir()) == ["model.safetensors", "prompts.txt"]


@pytest.mark.slow
@platforms.posix
def test_a_closed_stdin_is_empty_and_closed_errors_go_nowhere(tiny_model: Path) -> None:
    for words, closed, code in ((["tokenize", "The"], "2>&-", 0), (["generate", "-"], "<&-", 1)):
        run = subprocess.run(
            ["sh", "-c", f'exec "$0" -m llmcli "$@" {closed}', sys.executable, *words], capture_output=True
        )
        assert run.returncode == code and run.stderr.count(b"\n") == code and b"Traceback" not in run.stderr
