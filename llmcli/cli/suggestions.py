"""Messages for usage errors: suggestions for unknown subcommands, options and values.

Two tables map common names in other programs (Ollama, llama.cpp, transformers, nanoGPT, simonw's llm) to the
names here. difflib finds typos.
"""

import difflib
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.cli.terminal.text_layout import truncate

if TYPE_CHECKING:
    from typer._click.exceptions import UsageError

LONGEST_NAME = 60  # columns of an unknown name in a message

_CHAT = "to talk with a model: llm chat -m FILE"
_GENERATE = 'to continue a text: llm generate "Once upon a time" -m FILE'
# suggestion -> names of subcommands in other programs
COMMANDS = {
    _CHAT: "talk repl ask conversation interactive",
    f"{_CHAT}; {_GENERATE}": "run",
    _GENERATE: "prompt complete completion predict infer inference sample",
    "to answer over HTTP, with a page for the browser: llm serve -m MODEL": "server api web ui",
    "to see what is in a model file: llm inspect FILE": "show info view describe",
    "to list the models: llm models; they are plain files; to see what is in one: llm inspect FILE": (
        "ls list cp"
    ),
    "to remove a model: rm FILE; from the hub's cache: hf cache rm model/OWNER/NAME": "rm remove delete",
    "to upload a model to the Hugging Face hub: llm export MODEL DIRECTORY --to hf --push OWNER/NAME": (
        "push upload publish share"
    ),
    "to download a model from the Hugging Face hub, name it: llm chat -m hf:OWNER/NAME, or llm import "
    "hf:OWNER/NAME -o FILE": "pull download get",
    "for quantized weights: llm export MODEL FILE --quantize int8, or llm export MODEL FILE.gguf --to gguf "
    "--dtype q8_0": "quantize quantise",
    "to convert: llm import SOURCE -o FILE.safetensors, or llm export MODEL OUTPUT --to gguf (or --to hf)": (
        "convert"
    ),
    "to measure how well a model predicts a text: llm eval TEXT -m FILE": (
        "perplexity ppl evaluate test bench"
    ),
    "to fine-tune: llm train TEXT --from MODEL -o FILE (--lora 8 for low-rank adapters)": (
        "finetune fine-tune sft lora"
    ),
    "to resume a run that was stopped, type the same llm train command again": "resume continue",
    "that is a command of another program named llm (llm.datasette.io); this one is llmcli and is also "
    "installed under that name": "keys templates plugins logs install uninstall aliases embed openai",
}
# subcommands -> suggestion -> options in other programs. "*" stands for every subcommand that has the
# suggested option. A suggestion that begins with "-" is printed after "did you mean".
OPTIONS = {
    "llm": {
        "--version": "-v -V",
    },
    "train": {
        "--width N, the hidden size": "--hidden-size --hidden-dim --n-embd --d-model --dim --embedding-size",
        "--layers N": "--n-layer --n-layers --num-layers --num-hidden-layers --depth",
        "--heads N": "--n-head --n-heads --num-heads --num-attention-heads",
        "--context N, in tokens": "--block-size --seq-len --seq-length --max-seq-length --ctx-size --n-ctx",
        "--batch-tokens N, the batch size in tokens (sequences x context)": (
            "--batch-size --per-device-train-batch-size --gradient-accumulation-steps"
        ),
        "--lr-scale X, which multiplies the recipe's learning rates": (
            "--lr --learning-rate --max-lr --peak-lr"
        ),
        "--steps N": "--max-iters --iters --iterations --num-iterations --max-steps",
        "--epochs X": "--epoch --num-epochs --num-train-epochs",
        "--from FILE, to fine-tune that model": (
            "--model -m --base-model --model-name-or-path --init-from --pretrained --checkpoint"
        ),
        "a stopped run resumes automatically: type the same command again": (
            "--resume --resume-from --continue"
        ),
        "the text is an argument, not an option: llm train TEXT": "--data --dataset --corpus --file --text",
        "--dtype bfloat16 or --dtype float32": "--precision --torch-dtype --bf16 --fp16",
        "the training recipe sets that; to see the plan: llm train TEXT --dry-run": (
            "--weight-decay --warmup --warmup-steps --grad-clip --min-lr --lr-scheduler-type --eval-interval "
            "--lora-alpha"
        ),
    },
    "generate chat": {
        "--max-tokens N": "--max-length --length --num-predict --n-tokens --tokens",
        "to read the text from standard input: llm generate - < FILE": "--file --prompt-file -f",
    },
    "generate": {
        'the prompt is an argument, not an option: llm generate "Once upon a time"': "--prompt --text",
        "to talk with a model: llm chat -m FILE": "--interactive -i --chat --conversation --system",
    },
    "chat": {
        "--system TEXT": "--system-prompt --sys",
    },
    "inspect": {
        "the model is an argument, not an option: llm inspect FILE": "--model -m --file",
    },
    "export": {
        "--dtype f32, f16, bf16, q8_0 or q4_0": "--outtype --type",
        "the output is the last argument: llm export MODEL OUTPUT --to gguf": "--output -o --outfile --out",
    },
    "*": {
        "--device cuda": "--gpu --cuda --n-gpu-layers",
        "--force": "--overwrite -f -y --yes",
        "--output FILE": "--out --out-dir --output-dir --outfile --save",
    },
}
Known = Mapping[str, Iterable[str]]  # the options of every subcommand


def usage_message(error: "UsageError", options: Known) -> str:
    """Describe, in one line, a usage error that Typer found, and what to type."""
    # only Typer's error for an unknown option has `possibilities`
    if error.ctx and hasattr(error, "possibilities") and hasattr(error, "option_name"):
        return option_hint(str(error.ctx.info_name), error.option_name, options)
    path = error.ctx.command_path if error.ctx else "llm"
    message = error.format_message().rstrip(".")
    if "unexpected extra argument" in message and path.endswith(("chat", "generate", "explain", "tokenize")):
        return f"{message}; a text of several words needs quotes"
    if "unexpected extra argument" in message and path.endswith("serve"):
        return f"{message}; name each model with -m: llm serve -m FILE; see: {path} --help"
    return f"{message}; see: {path} --help"


def command_hint(name: str, known: Iterable[str]) -> str:
    """Return one line for an unknown subcommand `name`; `known` are the existing ones.

    >>> command_hint("trian", ["train", "generate"])
    'there is no command trian; did you mean: llm train? see: llm --help'
    """
    shown = shlex.quote(truncate(name, LONGEST_NAME))
    key = name.strip().lower()
    hints = {other: hint for hint, others in COMMANDS.items() for other in others.split()}
    if key in hints:
        hint = hints[key]
    elif close := difflib.get_close_matches(key, known, n=1, cutoff=0.75):
        hint = f"did you mean: llm {close[0]}? see: llm --help"
    elif any(character.isspace() for character in name):
        hint = f"to continue a text: llm generate {shown}"
    elif Path(name).exists():
        hint = f"to train on a file: llm train {shown}; to see what is in a model: llm inspect {shown}"
    else:
        hint = f"the commands are: {', '.join(known)}; see: llm --help"
    return f"there is no command {shown}; {hint}"


def option_hint(command: str, name: str, options: Known) -> str:
    """Return one line for an option `name` that a subcommand, or llm itself, does not have.

    >>> option_hint("train", "--hidden_size", {"train": ["--width", "--layers"]})
    'llm train has no option --hidden_size; did you mean --width N, the hidden size? see: llm train --help'
    """
    own = list(options.get(command, ()))
    # whatever name the program was started under
    path = f"llm {command}" if command in options else "llm"
    start = f"{path} has no option {truncate(name, LONGEST_NAME)}"
    see = f"see: {path} --help"
    key = name.split("=")[0].replace("_", "-")
    hint = key if key in own else _known(path.split()[-1], key, own)
    others = [f"llm {other}" for other, names in options.items() if key in names]
    if hint is None and others:
        have = "has" if len(others) == 1 else "have"
        return f"{start}, but {' and '.join(others[:3])} {have} one; {see}"
    long_names = [option for option in own if option.startswith("--")]
    if hint is None and key.startswith("--"):
        hint = next(iter(difflib.get_close_matches(key, long_names, n=1, cutoff=0.7)), None)
    if hint is None:
        return f"{start}; {see}"
    return f"{start}; did you mean {hint}? {see}" if hint.startswith("-") else f"{start}; {hint}; {see}"


def _known(command: str, key: str, own: Iterable[str]) -> str | None:
    """Return the replacement for another program's option."""
    for commands, hints in OPTIONS.items():
        for hint, names in hints.items():
            is_offered = command in commands.split() or (commands == "*" and hint.split()[0] in own)
            if is_offered and key in names.split():
                return hint
    return None
