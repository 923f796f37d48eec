"""Suggestions for subcommands and options that do not exist.

Many users know the names of other programs (Ollama, llama.cpp, mlx-lm, transformers, nanoGPT, simonw's llm). The tables
map these to what does the same here. Typos are found by difflib.
"""

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

LONGEST_NAME = 60  # characters of an unknown name that a message repeats

_GENERATE = 'to continue a text: llm generate "Once upon a time" -m FILE'
_INSPECT = "to see what is in a model file: llm inspect FILE"
_FILES = "models are plain files here: ls *.safetensors *.gguf; to see what is in one: llm inspect FILE"
_EVAL = "to measure how well a model predicts a text: llm eval TEXT -m FILE"
_DOWNLOAD = (
    "this program does not download models; get one with: hf download OWNER/NAME --local-dir NAME; then: "
    "llm import NAME -o FILE"
)
_QUANTIZE = (
    "for quantized weights: llm export MODEL FILE --quantize int8, or llm export MODEL FILE.gguf --to gguf --dtype q8_0"
)
_CONVERT = "to convert: llm import SOURCE -o FILE.safetensors, or llm export MODEL OUTPUT --to gguf (or --to hf)"
_FINE_TUNE = "to fine-tune: llm train TEXT --from MODEL -o FILE (--lora 8 for low-rank adapters)"
_CHAT = "to talk with a model: llm chat -m FILE"
_SERVE = "to answer over HTTP, with a page for the browser: llm serve -m MODEL"
_TOKENIZE = 'to see the tokens of a text: llm tokenize "I like to eat"'
_OTHER_LLM = (
    "that is a command of another program named llm (llm.datasette.io); this one is llmcli and is also installed under "
    "that name"
)

# Subcommands of other programs -> what to type here.
COMMANDS: dict[str, str] = {
    **dict.fromkeys(("repl", "interactive", "talk", "conversation", "ask", "assistant", "instruct"), _CHAT),
    "run": f"{_CHAT}; {_GENERATE}",
    **dict.fromkeys(("server", "start", "api", "web", "ui"), _SERVE),
    **dict.fromkeys(
        ("prompt", "complete", "completion", "predict", "infer", "inference", "sample", "gen", "write"),
        _GENERATE,
    ),
    **dict.fromkeys(("show", "info", "view", "describe", "cat", "head", "summary", "stats", "look"), _INSPECT),
    **dict.fromkeys(("ls", "list"), _FILES),
    **dict.fromkeys(("ps", "stop", "kill"), "no process runs in the background here; Ctrl-C ends a command"),
    **dict.fromkeys(("rm", "remove", "delete"), "models are plain files here: rm FILE"),
    **dict.fromkeys(("cp", "copy", "mv", "rename"), "models are plain files here: cp FILE OTHER"),
    **dict.fromkeys(("pull", "download", "get", "fetch", "search"), _DOWNLOAD),
    **dict.fromkeys(
        ("push", "upload", "publish"),
        "this program does not upload models; for the Hugging Face hub: llm export MODEL DIRECTORY --to hf; then: "
        "hf upload OWNER/NAME DIRECTORY",
    ),
    **dict.fromkeys(("quantize", "quantise", "compress"), _QUANTIZE),
    **dict.fromkeys(("convert", "save"), _CONVERT),
    **dict.fromkeys(("load", "open"), "to convert a model to one file: llm import SOURCE -o FILE.safetensors"),
    "create": "to train a model: llm train TEXT; for Ollama's Modelfile: llm export MODEL FILE.gguf --to gguf",
    **dict.fromkeys(("perplexity", "ppl", "evaluate", "test", "score", "measure", "validate", "loss"), _EVAL),
    **dict.fromkeys(("bench", "benchmark", "speed"), f"generate shows tokens per second in a terminal; {_EVAL}"),
    **dict.fromkeys(("finetune", "fine-tune", "fine_tune", "tune", "sft", "lora", "adapt"), _FINE_TUNE),
    **dict.fromkeys(("pretrain", "fit", "learn", "build", "make"), "to train a model: llm train TEXT"),
    **dict.fromkeys(("resume", "continue"), "to resume a run that was stopped, type the same llm train command again"),
    **dict.fromkeys(("encode", "decode", "detokenize", "tokens", "tokenizer", "count"), _TOKENIZE),
    **dict.fromkeys(("merge", "fuse"), "to merge adapters: llm import MODEL --adapter FILE; models: llm mix A B"),
    **dict.fromkeys(("average", "ensemble", "combine", "blend"), "to combine models: llm mix A B (--average)"),
    **dict.fromkeys(("compare", "diff"), "to compare two files: llm inspect FILE --diff OTHER"),
    **dict.fromkeys(("verify", "check"), "to check a file against its hash: llm inspect FILE --verify"),
    **dict.fromkeys(("plot", "curve"), "to draw a training curve: llm inspect FILE --plot loss.svg"),
    **dict.fromkeys(("attention", "visualize", "visualise", "why"), "to see how a model predicts: llm explain TEXT"),
    **dict.fromkeys(("embed", "embeddings"), "there are no text embeddings; to see token ids: llm tokenize TEXT"),
    **dict.fromkeys(("rl", "dpo", "rlhf", "ppo", "grpo"), f"there is no preference training; {_FINE_TUNE}"),
    **dict.fromkeys(
        ("keys", "models", "templates", "plugins", "logs", "install", "uninstall", "aliases", "fragments", "schemas",
         "collections", "similar", "tools", "openai"), _OTHER_LLM,
    ),
    **dict.fromkeys(("update", "upgrade"), "to update: pip install --upgrade llmcli"),
    "config": "there is no configuration file; give options on the command line",
}  # fmt: skip

_POSITIONAL_TEXT = "the text is an argument, not an option: llm train TEXT"
_SCALE = "--lr-scale X, which multiplies the recipe's learning rates"
_BATCH = "--batch-tokens N, the batch size in tokens (sequences x context)"
_RECIPE = "the training recipe sets that; to see the plan: llm train TEXT --dry-run"

# Options of other programs that generate text -> what to use here.
_GENERATION: dict[str, str] = {
    **dict.fromkeys(
        ("--max-length", "--length", "--tokens", "--num-tokens", "--n-tokens", "--num-predict", "--max-new",
         "--max-output-tokens", "--max-completion-tokens", "--max-gen-len", "--limit"), "--max-tokens N",
    ),
    **dict.fromkeys(("--greedy", "--no-sample", "--do-sample", "--deterministic", "--argmax"),
                    "--temperature 0, which always chooses the most likely token"),
    **dict.fromkeys(("--num-beams", "--beams", "--beam", "--beam-size", "--beam-width"),
                    "there is no beam search; --temperature 0 always chooses the most likely token"),
    **dict.fromkeys(("--frequency-penalty", "--presence-penalty", "--rep-penalty", "--repeat-last-n"),
                    "--repetition-penalty X"),
    **dict.fromkeys(("--load-in-8bit", "--int8", "--8bit", "--quant", "--quantise", "--q8-0"), "--quantize int8"),
    **dict.fromkeys(("--load-in-4bit", "--int4", "--4bit", "--q4-0"), "--quantize int4"),
    **dict.fromkeys(("--stream", "--streaming"), "text is always streamed, token by token"),
    **dict.fromkeys(("--no-stream", "--verbose-prompt"), "--json, which prints the whole text at the end"),
    **dict.fromkeys(("--adapter", "--adapter-path", "--lora"),
                    "merge the adapters into the model first: llm import MODEL --adapter FILE"),
    **dict.fromkeys(("--typical-p", "--typical", "--mirostat", "--tfs", "--dry-multiplier", "--xtc"),
                    "that sampler is not supported; --top-k, --top-p and --min-p are"),
    **dict.fromkeys(("--ctx-size", "--n-ctx", "--context", "--ctx"),
                    "the model fixes the context length; to see it: llm inspect FILE"),
}  # fmt: skip

# Options of other programs, by subcommand -> what to use here; an entry that starts with "-" follows "did you mean".
OPTIONS: dict[str, dict[str, str]] = {
    "train": {
        **dict.fromkeys(
            ("--hidden-size", "--hidden-dim", "--hidden", "--n-embd", "--n-embed", "--d-model", "--dim", "--embed-dim",
             "--embedding-dim", "--embedding-size", "--model-dim", "--embedding-length", "--n-embedding"),
            "--width N, the hidden size",
        ),
        **dict.fromkeys(
            ("--n-layer", "--n-layers", "--num-layers", "--num-layer", "--num-hidden-layers", "--depth",
             "--block-count", "--num-blocks", "--blocks"), "--layers N",
        ),
        **dict.fromkeys(
            ("--n-head", "--n-heads", "--num-heads", "--num-attention-heads", "--attention-heads", "--head-count"),
            "--heads N",
        ),
        **dict.fromkeys(
            ("--n-kv-head", "--n-kv-heads", "--num-kv-heads", "--num-key-value-heads", "--kv-head-count"),
            "--kv-heads N",
        ),
        **dict.fromkeys(
            ("--block-size", "--seq-len", "--seq-length", "--sequence-length", "--sequence-len", "--max-seq-len",
             "--max-seq-length", "--max-sequence-length", "--context-length", "--context-size", "--context-window",
             "--ctx-size", "--ctx", "--n-ctx", "--max-length", "--max-position-embeddings", "--window"),
            "--context N, in tokens",
        ),
        **dict.fromkeys(
            ("--batch-size", "--batch", "--micro-batch-size", "--device-batch-size", "--total-batch-size",
             "--per-device-train-batch-size", "--train-batch-size", "--global-batch-size", "-b"), _BATCH,
        ),
        **dict.fromkeys(("--learning-rate", "--lr-rate", "--max-lr", "--peak-lr", "--base-lr", "-lr"), _SCALE),
        **dict.fromkeys(
            ("--max-iters", "--iters", "--iterations", "--num-iterations", "--max-steps", "--num-steps",
             "--total-steps", "--train-steps", "--num-train-steps", "--n-steps"), "--steps N",
        ),
        **dict.fromkeys(("--epoch", "--num-epochs", "--num-train-epochs", "--n-epochs", "--max-epochs"), "--epochs X"),
        **dict.fromkeys(
            ("--max-time", "--duration", "--budget", "--time-limit", "--max-minutes", "--minutes", "--seconds",
             "--hours", "--timeout"), "--time 5m",
        ),
        **dict.fromkeys(
            ("--out", "--out-dir", "--output-dir", "--output-file", "--save", "--save-dir", "--save-path",
             "--save-model", "--out-file", "--checkpoint-dir", "--model-out"), "--output FILE",
        ),
        **dict.fromkeys(
            ("--model", "-m", "--base-model", "--base", "--model-name-or-path", "--model-path", "--init-from",
             "--pretrained", "--finetune", "--fine-tune", "--checkpoint", "--ckpt", "--load", "--weights"),
            "--from FILE, to fine-tune that model",
        ),
        **dict.fromkeys(
            ("--resume", "--resume-from", "--resume-from-checkpoint", "--continue", "--restart"),
            "a stopped run resumes automatically: type the same command again",
        ),
        **dict.fromkeys(
            ("--data", "--dataset", "--data-path", "--data-dir", "--train-file", "--train-data", "--corpus", "--file",
             "--text", "--input", "--input-file", "--train"), _POSITIONAL_TEXT,
        ),
        **dict.fromkeys(
            ("--val-file", "--validation", "--validation-file", "--val-data", "--eval-file", "--val-split",
             "--validation-split", "--val-fraction", "--test-size", "--valid", "--eval", "--held-out", "--test"),
            "--val FILE, or --val 0.1 for the last tenth of the text",
        ),
        **dict.fromkeys(("--lora-r", "--lora-rank", "--rank", "-r", "--adapter", "--peft", "--qlora"), "--lora RANK"),
        **dict.fromkeys(("--num-experts", "--n-experts", "--num-local-experts", "--moe"), "--experts N"),
        **dict.fromkeys(("--num-experts-per-tok", "--active-experts", "--experts-per-token", "--expert-top-k"),
                        "--active N"),
        **dict.fromkeys(("--random-seed", "--rng-seed", "--random-state", "-s"), "--seed N"),
        **dict.fromkeys(("--num-threads", "--n-threads", "--cores", "--cpus", "--num-workers", "--jobs", "-j", "-t"),
                        "--threads N"),
        **dict.fromkeys(("--tie-embeddings", "--tie-word-embeddings", "--weight-tying", "--tied"), "--tie or --no-tie"),
        **dict.fromkeys(("--dropout-rate", "--attention-dropout", "--attn-dropout", "--resid-dropout",
                         "--lora-dropout"), "--dropout X"),
        **dict.fromkeys(("--precision", "--torch-dtype", "--mixed-precision", "--amp", "--type"),
                        "--dtype bfloat16 or --dtype float32"),
        **dict.fromkeys(("--bf16", "--fp16", "--bfloat16", "--half"), "--dtype bfloat16"),
        **dict.fromkeys(("--fp32", "--float32"), "--dtype float32"),
        **dict.fromkeys(("--vocab", "--vocabulary", "--vocabulary-size", "--n-vocab"), "--vocab-size N"),
        **dict.fromkeys(("--tokenizer-file", "--tokenizer-path", "--tokenizer-name"), "--tokenizer FILE"),
        **dict.fromkeys(("--char", "--character", "--char-level"), "--tokenizer char"),
        **dict.fromkeys(("--optim", "--opt"), "--optimizer muon or --optimizer adamw"),
        **dict.fromkeys(("--adam", "--adamw"), "--optimizer adamw"),
        **dict.fromkeys(
            ("--weight-decay", "--wd", "--warmup", "--warmup-steps", "--warmup-iters", "--warmup-ratio", "--grad-clip",
             "--max-grad-norm", "--min-lr", "--lr-scheduler-type", "--lr-schedule", "--scheduler", "--beta1", "--beta2",
             "--betas", "--momentum", "--label-smoothing", "--gradient-checkpointing", "--activation", "--rope-theta",
             "--eval-interval", "--eval-steps", "--eval-iters", "--decay-lr", "--lora-alpha", "--alpha"), _RECIPE,
        ),
        **dict.fromkeys(("--gradient-accumulation-steps", "--grad-accum", "--accumulation-steps"), _BATCH),
        **dict.fromkeys(("--save-every", "--save-steps", "--save-interval", "--checkpoint-every", "--save-freq"),
                        "a file to resume from is saved automatically, next to the model"),
        **dict.fromkeys(("--wandb", "--report-to", "--tensorboard", "--log-dir", "--logging-steps", "--log-interval",
                         "--log"), "--json, which prints one event per training step"),
        **dict.fromkeys(("--compile", "--no-compile", "--flash-attn", "--flash-attention"),
                        "the fastest way on this machine is chosen automatically"),
    },
    "generate": _GENERATION | {
        **dict.fromkeys(("--num-return-sequences", "--n-samples", "--best-of", "--count", "-N"), "--samples N"),
        **dict.fromkeys(("--prompt", "--text", "--input", "--query", "--start", "--p"),
                        'the prompt is an argument, not an option: llm generate "Once upon a time"'),
        **dict.fromkeys(("--file", "--prompt-file", "-f", "--input-file"),
                        "to read the prompt from standard input: llm generate - < FILE"),
        **dict.fromkeys(("--logprobs", "--top-logprobs", "--probs", "--probabilities", "--n-probs"),
                        "--json, which includes the log probability of each token, or --next N"),
        **dict.fromkeys(("--top-n", "--candidates", "--next-words", "--predict"), "--next N"),
        **dict.fromkeys(("--stop-sequence", "--stop-sequences", "--stop-token", "--stop-string", "--stop-strings",
                         "--eos", "--until"), "--stop TEXT"),
        **dict.fromkeys(("--interactive", "-i", "--chat", "--conversation", "-cnv", "--system", "--system-prompt",
                         "--chat-template"), "to talk with a model: llm chat -m FILE"),
        **dict.fromkeys(("--pair", "--question", "--answer", "--source", "--translate", "--instruct"), "--prompt-pair"),
        **dict.fromkeys(("--probability", "--colour", "--highlight", "--show-probs"), "--color"),
    },
    "chat": _GENERATION | {
        **dict.fromkeys(("--interactive", "-i", "--chat", "--conversation", "-cnv", "--multiline"),
                        "without MESSAGE, llm chat is a conversation"),
        **dict.fromkeys(("--system-prompt", "--sys", "--system-message", "--instruction", "-sys"), "--system TEXT"),
        **dict.fromkeys(("--prompt", "--message", "--text", "--input", "--query", "--question"),
                        'the message is an argument, not an option: llm chat "Hello"'),
        **dict.fromkeys(("--file", "--prompt-file", "-f", "--input-file"),
                        "to read a message from standard input: llm chat - < FILE"),
        **dict.fromkeys(("--logprobs", "--top-logprobs", "--probs", "--probabilities"),
                        "--json, which includes the log probability of each token"),
        **dict.fromkeys(("--chat-template", "--template", "--jinja"), "the chat template is that of the model file"),
        **dict.fromkeys(("--save", "--log", "--output", "-o"), "in a conversation, /save FILE writes it to a file"),
        **dict.fromkeys(("--load", "--continue", "--history", "--session"),
                        "in a conversation, /load FILE continues a saved one"),
    },
    "eval": {
        **dict.fromkeys(("--text", "--file", "--data", "--dataset", "--input", "--corpus", "-f", "--test"),
                        "the text is an argument, not an option: llm eval TEXT"),
        **dict.fromkeys(("--tasks", "--task", "--mmlu", "--benchmark"),
                        "there are no benchmark tasks; to measure how well a model predicts a text: llm eval TEXT"),
        **dict.fromkeys(("--surprise", "--tokens", "--each"), "--per-token"),
        **dict.fromkeys(("--all", "--full"), "--whole"),
        **dict.fromkeys(("--baseline", "--train-file", "--prior"), "--past FILE"),
    },
    "explain": {
        **dict.fromkeys(("--prompt", "--text", "--input"),
                        'the prompt is an argument, not an option: llm explain "I like to eat"'),
        **dict.fromkeys(("--output", "-o", "--out", "--page", "--save"), "--html FILE"),
    },
    "inspect": {
        **dict.fromkeys(("--model", "-m", "--file", "--path"),
                        "the model is an argument, not an option: llm inspect FILE"),
        **dict.fromkeys(("--keys", "--layers", "--names", "--list", "-v", "--verbose", "--all"), "--tensors"),
        **dict.fromkeys(("--config", "--metadata", "--header"), "--json, which prints all of it"),
        **dict.fromkeys(("--hash", "--check", "--sha256"), "--verify"),
        **dict.fromkeys(("--histogram", "--stats", "--figures"), "--weights, or --tensor NAME"),
        **dict.fromkeys(("--curve", "--loss"), "--plot loss.svg"),
        **dict.fromkeys(("--compare",), "--diff OTHER"),
    },
    "tokenize": {
        **dict.fromkeys(("--text", "--input", "--prompt"),
                        'the text is an argument, not an option: llm tokenize "TEXT"'),
        **dict.fromkeys(("--detokenize", "--reverse", "-d"), "--decode"),
        **dict.fromkeys(("--vocab", "--vocabulary-size", "--size"), "--vocab-size N, with --train"),
        **dict.fromkeys(("--corpus", "--learn", "--fit"), "--train CORPUS"),
        **dict.fromkeys(("--count",), "the number of tokens is printed after them, on standard error"),
    },
    "export": {
        **dict.fromkeys(("--format", "-f", "--target", "--form"), "--to gguf, --to hf or --to tokenizer"),
        **dict.fromkeys(("--outtype", "--type", "--precision", "--torch-dtype", "--quant", "-q4"),
                        "--dtype f32, f16, bf16, q8_0 or q4_0"),
        **dict.fromkeys(("--output", "-o", "--out", "--outfile", "--output-dir"),
                        "the output is the last argument: llm export MODEL OUTPUT --to gguf"),
        **dict.fromkeys(("--model", "-m", "--input"),
                        "the model is the first argument: llm export MODEL OUTPUT --to gguf"),
        **dict.fromkeys(("--gguf",), "--to gguf"),
        **dict.fromkeys(("--hf", "--huggingface", "--transformers"), "--to hf"),
        **dict.fromkeys(("--licence",), "--license TEXT"),
    },
    "import": {
        **dict.fromkeys(("--model", "-m", "--input", "--source", "--from"),
                        "the model is an argument, not an option: llm import SOURCE -o FILE"),
        **dict.fromkeys(("--lora", "--adapter-path", "--peft"), "--adapter FILE"),
        **dict.fromkeys(("--out", "--outfile", "--output-dir"), "--output FILE"),
    },
    "mix": {
        **dict.fromkeys(("--mean", "--merge", "--linear", "--soup"), "--average"),
        **dict.fromkeys(("--out", "--outfile"), "--output FILE"),
        **dict.fromkeys(("--model", "-m", "--models"), "the models are arguments, not options: llm mix A B -o FILE"),
    },
}  # fmt: skip

# The same for every subcommand that has the suggested option.
_EVERYWHERE: dict[str, str] = {
    **dict.fromkeys(("--gpu", "--cuda", "--use-cuda", "--gpus", "--n-gpu-layers", "--gpu-layers", "-ngl"),
                    "--device cuda"),
    **dict.fromkeys(("--cpu", "--no-cuda", "--no-gpu"), "--device cpu"),
    **dict.fromkeys(("--mps", "--metal"), "--device mps"),
    **dict.fromkeys(("--overwrite", "-f", "-y", "--yes", "--replace", "--clobber"), "--force"),
    **dict.fromkeys(("--model-path", "--ckpt", "--checkpoint", "--model-file", "--weights"), "--model FILE"),
    **dict.fromkeys(("--silent", "--no-progress", "--log-level"), "--quiet"),
    **dict.fromkeys(("--out", "--out-file", "--output-file"), "--output FILE"),
    **dict.fromkeys(("--plan", "--preview", "-n", "--simulate"), "--dry-run"),
}  # fmt: skip
_VERBOSE = ("--verbose", "-v", "--debug", "--trace")


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."


def command_hint(name: str, known: Sequence[str]) -> str:
    """One line for a subcommand `name` that does not exist; `known` are those that do.

    >>> command_hint("trian", ["train", "generate"])
    'there is no command trian; did you mean: llm train? see: llm --help'
    """
    shown = _shortened(name)
    key = name.strip().lower()
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if key in known:
        close = [key]
    hint = COMMANDS.get(key, "")
    if hint.startswith("there is no"):
        return hint
    if hint:
        return f"there is no command {shown}; {hint}"
    if not close and (similar := difflib.get_close_matches(key, COMMANDS, n=1, cutoff=0.85)):
        return f"there is no command {shown}; {COMMANDS[similar[0]]}"
    if close:
        return f"there is no command {shown}; did you mean: llm {close[0]}? see: llm --help"
    if any(character.isspace() for character in name):
        return f"there is no command {shlex.quote(shown)}; to continue a text: llm generate {shlex.quote(shown)}"
    if Path(name).exists():
        file = shlex.quote(shown)
        if name.lower().endswith((".safetensors", ".gguf")):
            return f"{file} is a file, not a command; to see what is in it: llm inspect {file}"
        return f"{file} is a file, not a command; to train a model on it: llm train {file}"
    return f"there is no command {shown}; the commands are: {', '.join(known)}; see: llm --help"


def top_option_hint(name: str, options: Mapping[str, Iterable[str]]) -> str:
    """One line for an unknown option before the subcommand; `options` are those of every subcommand.

    >>> top_option_hint("--time", {"train": ["--time"]})
    'llm has no option --time; options follow the subcommand: llm train --time; see: llm --help'
    """
    shown = _shortened(name)
    if name in ("-v", "-V", "--ver", "-version"):
        return f"llm has no option {shown}; did you mean --version? see: llm --help"
    owner = next((command for command, own in options.items() if name in own), None)
    where = f"options follow the subcommand: llm {owner} {shown}; " if owner else ""
    return f"llm has no option {shown}; {where}see: llm --help"


def misspelled_long_option(command: str, words: Sequence[str], options: Mapping[str, Iterable[str]]) -> str | None:
    """The hint for a long option written with one dash, as some programs accept it; here -temp means -t emp. None where
    `words` contain none.

    >>> misspelled_long_option("generate", ["x", "-temp", "0"], {"generate": ["-t", "--temp"]})
    'llm generate has no option -temp; did you mean --temp? see: llm generate --help'
    """
    own_options = set(options.get(command, ()))
    for word in words:
        key = word.split("=")[0]
        known = f"-{key}" in own_options or key in OPTIONS.get(command, {}) or key in _EVERYWHERE
        if re.fullmatch(r"-[A-Za-z]{2}[\w-]*", key) and known:
            return option_hint(command, key, options)
    return None


def option_hint(command: str, name: str, options: Mapping[str, Iterable[str]]) -> str:
    """One line for an option `name` that a subcommand does not have; `options` are those of every subcommand.

    >>> option_hint("train", "--hidden_size", {"train": ["--width", "--layers"]})
    'llm train has no option --hidden_size; did you mean --width N, the hidden size? see: llm train --help'
    """
    own = list(options.get(command, ()))
    shown = _shortened(name)
    start, see = f"llm {command} has no option {shown}", f"see: llm {command} --help"
    key = name.split("=")[0].replace("_", "-")
    key = key if len(key) == 2 else key.lower()
    if not key.startswith("--") and len(key) > 2 and f"-{key}" in own:  # -temp
        key = f"-{key}"
    if key in own:
        return f"{start}; did you mean {key}? {see}"
    hint = OPTIONS.get(command, {}).get(key) or OPTIONS.get(command, {}).get(f"-{key}")
    if hint is None and key in _EVERYWHERE and _EVERYWHERE[key].split()[0] in own:
        hint = _EVERYWHERE[key]
    if hint is None and key in _VERBOSE:
        hint = "progress and notes are always written to standard error; --quiet turns them off"
    if hint is not None:
        return f"{start}; did you mean {hint}? {see}" if hint.startswith("-") else f"{start}; {hint}; {see}"
    if key.startswith("--"):
        if elsewhere := [f"llm {other}" for other, names in options.items() if other != command and key in names]:
            close = difflib.get_close_matches(key, own, n=1, cutoff=0.85)
            also = f"; did you mean {close[0]}?" if close else ""
            have = "has" if len(elsewhere) == 1 else "have"
            return f"{start}, but {' and '.join(elsewhere[:3])} {have} one{also}; {see}"
        if close := difflib.get_close_matches(key, [o for o in own if o.startswith("--")], n=1, cutoff=0.7):
            return f"{start}; did you mean {close[0]}? {see}"
    return f"{start}; {see}"
