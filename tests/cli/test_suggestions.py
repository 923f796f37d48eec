"""Suggestions for subcommands and options that do not exist name some that do."""

import re
import shlex
from pathlib import Path

from llmcli.cli import suggestions
from llmcli.cli.app import SUBCOMMANDS, subcommand
from tests.conftest import Llm

OPTIONS = {
    name: {option for param in subcommand(name).params for option in (*param.opts, *param.secondary_opts)}
    for name in SUBCOMMANDS
}
HINTS = [
    *(("", words, hint) for hint, words in suggestions.COMMANDS.items()),
    *(
        (command, words, hint)
        for commands, hints in suggestions.OPTIONS.items()
        for hint, words in hints.items()
        for command in commands.split()
    ),
]


def test_every_suggestion_names_something_that_exists() -> None:
    for command, words, hint in HINTS:
        if command == "*":
            assert not hint.startswith("-") or any(hint.split()[0] in own for own in OPTIONS.values()), hint
        elif command in OPTIONS:
            assert not OPTIONS[command] & set(words.split()), (command, words)
            named = re.findall(r"(?<![\w-])--[a-z][\w-]*", hint.split("llm ")[0])
            assert set(named) <= OPTIONS[command], (command, named)
        else:
            assert not OPTIONS.keys() & set(words.split()), words
        for typed in re.findall(r"\bllm ([a-z]+)((?: [^;(]*)?)", hint):
            assert typed[0] in OPTIONS, hint
            for option in re.findall(r"(?<![\w-])--?[a-z][\w-]*", typed[1].split(" or llm ")[0]):
                assert option in OPTIONS[typed[0]], (hint, option)


CASES = [
    ("talk", "there is no command talk; to talk with a model: llm chat -m FILE"),
    ("chta", "did you mean: llm chat?"),
    ("run llama3.2", "to talk with a model: llm chat -m FILE; to continue a text: llm generate"),
    ("quantize m.gguf q4_0", "llm export MODEL FILE --quantize int8"),
    ("TRAIN c.txt", "did you mean: llm train?"),
    ("help trian", "did you mean: llm train?"),
    ("nonsense", "there is no command nonsense; the commands are: train, generate"),
    ("c.txt", "llm train c.txt"),
    ("m.gguf", "llm inspect m.gguf"),
    ("--time 5m train c.txt", "llm has no option --time, but llm train has one"),
    ("-v", "did you mean --version?"),
    *[
        (f"train c.txt {option} 3", f"llm train has no option {option}; did you mean {wanted}")
        for option, wanted in {
            "--n_layer": "--layers N",
            "--batch-size": "--batch-tokens N, the batch size in tokens",
            "-m": "--from FILE",
            "--lora-r": "--lora?",
            "--gpu": "--device cuda",
            "--witdh": "--width?",
        }.items()
    ],
    ("train c.txt --data x", "the text is an argument, not an option: llm train TEXT"),
    ("train c.txt --temperature 1", "llm train has no option --temperature, but llm generate and llm chat have one"),
    ("train c.txt --time", "'--time' requires an argument; see: llm train --help"),
    ("train c.txt --bogus", "llm train has no option --bogus; see: llm train --help"),
    ("generate hi --max-length 5", "did you mean --max-tokens N?"),
    ("generate hi -temp 0.5", "--temperature must be a number, found emp"),
    ("generate hi --prompt x", "the prompt is an argument, not an option: llm generate"),
    ("chat --max-length 5", "did you mean --max-tokens N?"),
]


def test_names_of_other_programs_lead_to_the_names_here(llm: Llm) -> None:
    for words, message in CASES:
        Path("c.txt").write_text("text")
        Path("m.gguf").write_bytes(b"GGUF")
        answer = llm(*words.split())
        assert answer.exit_code == 2 and answer.stdout == ""
        assert answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1
        assert message in answer.stderr


def test_a_prompt_without_a_subcommand_gets_the_command(llm: Llm) -> None:
    answer = llm("Once upon a time")
    assert answer.exit_code == 2
    typed = answer.stderr.split("to continue a text: llm ")[1]
    assert shlex.split(typed) == ["generate", "Once upon a time"]


def test_help_and_version_are_subcommands_too(llm: Llm) -> None:
    assert llm("help").stdout == llm("--help").stdout and llm("help").exit_code == 0
    assert llm("help", "train").stdout == llm("train", "--help").stdout and "--layers" in llm("help", "train").stdout
    assert llm("version").stdout == llm("--version").stdout and llm("version").exit_code == 0
    assert "version" not in llm("--help").stdout.split("Commands:")[1]
