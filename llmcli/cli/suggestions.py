"""Messages for wrong usage: suggestions for unknown subcommands, options and values.

Two tables map the most common names in other programs (Ollama, llama.cpp, transformers, nanoGPT, simonw's
llm) to those here. difflib finds typos.
"""

import difflib
import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.cli.terminal.text_layout import truncate

if TYPE_CHECKING:
    from typer._click.exceptions import UsageError

LONGEST_NAME = 60  # columns of an unknown name in a message

_CHAT = "to talk with a model: llm chat -m FILE"
_GENERATE = 'to continue a text: llm generate "Once upon a time" -m FILE'
# what to type here -> subcommands of other programs
COMMANDS = {
    _CHAT: "talk repl ask conversation interactive",
    f"{_CHAT}; {_GENERATE}": "run",
    _GENERATE: "prompt complete completion predict infer inference sample",
    "to answer over HTTP, with a page for the browser: llm serve -m MODEL": "server api web ui",
    "to see what is in a model file: llm inspect FILE": "show info view describe",
    "to list the models: llm models; they are plain files; to see what is in one: llm inspect FILE": "ls list cp",
    "to remove a model: rm FILE; from the hub's cache: hf cache rm model/OWNER/NAME": "rm remove delete",
    "to upload a model to the Hugging Face hub: llm export MODEL DIRECTORY --to hf --push OWNER/NAME": "push upload "
    "publish share",
    "to download a model from the Hugging Face hub, name it: llm chat -m hf:OWNER/NAME, or llm import hf:OWNER/NAME -o "
    "FILE": "pull download get",
    "for quantized weights: llm export MODEL FILE --quantize int8, or llm export MODEL FILE.gguf --to gguf "
    "--dtype q8_0": "quantize quantise",
    "to convert: llm import SOURCE -o FILE.safetensors, or llm export MODEL OUTPUT --to gguf (or --to hf)": "convert",
    "to measure how well a model predicts a text: llm eval TEXT -m FILE": "perplexity ppl evaluate test bench",
    "to fine-tune: llm train TEXT --from MODEL -o FILE (--lora 8 for low-rank adapters)": "finetune fine-tune sft lora",
    "to resume a run that was stopped, type the same llm train command again": "resume continue",
    "that is a command of another program named llm (llm.datasette.io); this one is llmcli and is also installed under "
    "that name": "keys templates plugins logs install uninstall aliases embed openai",
}
# (subcommands, suggestion, options in other programs). "*" is any subcommand with the suggested option. A
# suggestion that begins with "-" follows "did you mean".
OPTIONS = (
    (
        "train",
        "--width N, the hidden size",
        "--hidden-size --hidden-dim --n-embd --d-model --dim --embedding-size",
    ),
    ("train", "--layers N", "--n-layer --n-layers --num-layers --num-hidden-layers --depth"),
    ("train", "--heads N", "--n-head --n-heads --num-heads --num-attention-heads"),
    (
        "train",
        "--context N, in tokens",
        "--block-size --seq-len --seq-length --max-seq-length --ctx-size --n-ctx",
    ),
    (
        "train",
        "--batch-tokens N, the batch size in tokens (sequences x context)",
        "--batch-size --per-device-train-batch-size --gradient-accumulation-steps",
    ),
    (
        "train",
        "--lr-scale X, which multiplies the recipe's learning rates",
        "--lr --learning-rate --max-lr --peak-lr",
    ),
    ("train", "--steps N", "--max-iters --iters --iterations --num-iterations --max-steps"),
    ("train", "--epochs X", "--epoch --num-epochs --num-train-epochs"),
    (
        "train",
        "--from FILE, to fine-tune that model",
        "--model -m --base-model --model-name-or-path --init-from --pretrained --checkpoint",
    ),
    (
        "train",
        "a stopped run resumes automatically: type the same command again",
        "--resume --resume-from --continue",
    ),
    (
        "train",
        "the text is an argument, not an option: llm train TEXT",
        "--data --dataset --corpus --file --text",
    ),
    ("train", "--dtype bfloat16 or --dtype float32", "--precision --torch-dtype --bf16 --fp16"),
    (
        "train",
        "the training recipe sets that; to see the plan: llm train TEXT --dry-run",
        "--weight-decay --warmup --warmup-steps --grad-clip --min-lr --lr-scheduler-type --eval-interval --lora-alpha",
    ),
    ("generate chat", "--max-tokens N", "--max-length --length --num-predict --n-tokens --tokens"),
    (
        "generate",
        'the prompt is an argument, not an option: llm generate "Once upon a time"',
        "--prompt --text",
    ),
    (
        "generate chat",
        "to read the text from standard input: llm generate - < FILE",
        "--file --prompt-file -f",
    ),
    ("generate", "to talk with a model: llm chat -m FILE", "--interactive -i --chat --conversation --system"),
    ("chat", "--system TEXT", "--system-prompt --sys"),
    ("inspect", "the model is an argument, not an option: llm inspect FILE", "--model -m --file"),
    ("export", "--dtype f32, f16, bf16, q8_0 or q4_0", "--outtype --type"),
    (
        "export",
        "the output is the last argument: llm export MODEL OUTPUT --to gguf",
        "--output -o --outfile --out",
    ),
    ("*", "--device cuda", "--gpu --cuda --n-gpu-layers"),
    ("*", "--force", "--overwrite -f -y --yes"),
    ("*", "--output FILE", "--out --out-dir --output-dir --outfile --save"),
)
Known = Mapping[str, Iterable[str]]  # the options of every subcommand


def usage_message(error: "UsageError", words: Sequence[str], options: Known) -> str:
    """Describe a usage error that Typer found in a command line `words` in one line: the problem, and what to
    type."""
    # only Typer's error for an unknown option has `possibilities`
    unknown: str | None = getattr(error, "option_name", None) if hasattr(error, "possibilities") else None
    if error.ctx and unknown:
        if error.ctx.parent is None:
            return top_option_hint(unknown, options)
        return option_hint(str(error.ctx.info_name), unknown, options)
    subcommand = next((word for word in words[:1] if word in options), "")
    path = error.ctx.command_path if error.ctx else f"llm {subcommand}".rstrip()
    message = error.format_message().rstrip(".")
    if "unexpected extra argument" in message and path.endswith(("chat", "generate", "explain", "tokenize")):
        return f"{message}; a text of several words needs quotes"
    if "unexpected extra argument" in message and path.endswith("serve"):
        return f"{message}; name each model with -m: llm serve -m FILE; see: {path} --help"
    return f"{_with_value(message, error, words)}; see: {path} --help"


def _with_value(message: str, error: "UsageError", words: Sequence[str]) -> str:
    """Return the message for an invalid value, which Typer's message lacks."""
    _, is_rule, rule = message.partition("Input should be ")
    names = getattr(getattr(error, "param", None), "opts", [])
    values = [value for word, value in itertools.pairwise(words) if word in names]
    values += [word[2:] for word in words if word[:2] in names and len(word) > 2]  # -n3; also -temp 0.5
    values += [word.split("=", 1)[1] for word in words if "=" in word and word.split("=", 1)[0] in names]
    if not is_rule or not values:
        return message
    name = next((name for name in names if name.startswith("--")), names[0])
    return f"{name} must be {rule.split(', unable')[0]}, found {values[-1]}"


def command_hint(name: str, known: Sequence[str]) -> str:
    """Return one line for an unknown subcommand `name`; `known` are the existing ones.

    >>> command_hint("trian", ["train", "generate"])
    'there is no command trian; did you mean: llm train? see: llm --help'
    """
    shown, key = truncate(name, LONGEST_NAME), name.strip().lower()
    hints = {other: hint for hint, others in COMMANDS.items() for other in others.split()}
    if key in hints:
        return f"there is no command {shown}; {hints[key]}"
    if close := difflib.get_close_matches(key, known, n=1, cutoff=0.75):
        return f"there is no command {shown}; did you mean: llm {close[0]}? see: llm --help"
    if any(character.isspace() for character in name):
        return (
            f"there is no command {shlex.quote(shown)}; to continue a text: llm generate {shlex.quote(shown)}"
        )
    if Path(name).exists():
        file = shlex.quote(shown)
        if name.lower().endswith((".safetensors", ".gguf")):
            return f"{file} is a file, not a command; to see what is in it: llm inspect {file}"
        return f"{file} is a file, not a command; to train a model on it: llm train {file}"
    return f"there is no command {shown}; the commands are: {', '.join(known)}; see: llm --help"


def top_option_hint(name: str, options: Known) -> str:
    """Return one line for an unknown option before the subcommand.

    >>> top_option_hint("--time", {"train": ["--time"]})
    'llm has no option --time; options follow the subcommand: llm train --time; see: llm --help'
    """
    shown = truncate(name, LONGEST_NAME)
    if name in ("-v", "-V"):
        return f"llm has no option {shown}; did you mean --version? see: llm --help"
    owner = next((command for command, own in options.items() if name in own), None)
    where = f"options follow the subcommand: llm {owner} {shown}; " if owner else ""
    return f"llm has no option {shown}; {where}see: llm --help"


def option_hint(command: str, name: str, options: Known) -> str:
    """Return one line for an option `name` that a subcommand does not have.

    >>> option_hint("train", "--hidden_size", {"train": ["--width", "--layers"]})
    'llm train has no option --hidden_size; did you mean --width N, the hidden size? see: llm train --help'
    """
    own = list(options.get(command, ()))
    start, see = f"llm {command} has no option {truncate(name, LONGEST_NAME)}", f"see: llm {command} --help"
    key = name.split("=")[0].replace("_", "-")
    hint = key if key in own else _known(command, key, own)
    if hint is None and key.startswith("--"):
        close = difflib.get_close_matches(key, [o for o in own if o.startswith("--")], n=1, cutoff=0.7)
        if others := [f"llm {other}" for other, names in options.items() if key in names]:
            have = "has" if len(others) == 1 else "have"
            return f"{start}, but {' and '.join(others[:3])} {have} one; {see}"
        hint = close[0] if close else None
    if hint is None:
        return f"{start}; {see}"
    return f"{start}; did you mean {hint}? {see}" if hint.startswith("-") else f"{start}; {hint}; {see}"


def _known(command: str, key: str, own: Iterable[str]) -> str | None:
    """Return the replacement for another program's option."""
    for commands, hint, names in OPTIONS:
        if key in names.split() and (
            command in commands.split() or (commands == "*" and hint.split()[0] in own)
        ):
            return hint
    return None
