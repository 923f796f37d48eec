"""`llm tokenize`: show the tokens of a text."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.cli.options import ResultOptions, argument, flag, model_path, option, text_argument
from llmcli.cli.reports import tokens as token_output
from llmcli.cli.terminal import console
from llmcli.cli.terminal.safe_text import visible_whitespace
from llmcli.config import DEFAULT_MODEL
from llmcli.errors import prefixed, usage
from llmcli.units import count

if TYPE_CHECKING:
    from llmcli.data.conversations.chat_template import ChatTemplate
    from llmcli.data.tokenizers.tokenizer import Tokenizer

CONFLICTS = {"chat": "text decode", "decode": "json"}


class _Options(ResultOptions):
    text: str | None = argument("TEXT", "Text to tokenize; - reads standard input.")
    model: str | None = option(
        "FILE",
        f"Model, or a tokenizer.json (default: $LLMCLI_MODEL or {DEFAULT_MODEL}).",
        names="-m --model",
    )
    chat: Path | None = option(
        "FILE", "Show the conversations in a file; tokens that count in the loss are marked."
    )
    decode: bool = flag("Turn token ids, given as TEXT, back into text.")


def tokenize(options: _Options) -> None:
    """For the text of a document: llm text book.pdf | llm tokenize -

    Example: llm tokenize "I like to eat"
    """
    options.check(CONFLICTS)
    path = model_path(options.model)
    if options.chat is not None:
        _print_conversations(options, options.chat, path)
        return
    opened = _open_tokenizer(path)
    if options.decode:
        _decode(opened, text_argument(options.text, "list of ids"))
    else:
        _print_tokens(opened, text_argument(options.text, "text"), options)


def _open_tokenizer(path: Path) -> "Tokenizer":
    """Open a tokenizer.json, or the tokenizer of a model."""
    if path.suffix.lower() == ".json":
        from llmcli.data.tokenizers.tokenizer import read_tokenizer

        return read_tokenizer(str(path))[1]
    from llmcli.formats.loading import load_any, open_tokenizer

    return open_tokenizer(load_any(path).shared)


# ---- showing tokens


def _print_tokens(tokenizer: "Tokenizer", text: str, options: _Options) -> None:
    ids = tokenizer.encode(text)
    size = len(text.encode("utf-8"))
    if options.json:
        console.json_result(
            {"ids": ids, "tokens": [tokenizer.decode([token]) for token in ids], "bytes": size}
        )
        return
    token_output.tokens([visible_whitespace(tokenizer.label(token)) for token in ids], ids)
    ratio = f", {size / len(ids):.2f} bytes per token" if ids else ""
    counts = (len(ids), "token"), (len(text), "character"), (size, "byte")
    console.note(", ".join(count(number, noun) for number, noun in counts) + ratio)


def _decode(tokenizer: "Tokenizer", text: str) -> None:
    """Print the bytes of token ids, which spaces, commas or brackets separate."""
    try:
        ids = [int(part) for part in text.replace(",", " ").replace("[", " ").replace("]", " ").split()]
    except ValueError as error:
        raise usage(
            f"--decode needs token ids such as 12 7 300, found {str(error).rsplit(': ', 1)[-1]}"
        ) from None
    console.result_bytes(tokenizer.decode_bytes(ids))


# ---- --chat


def _open_chat_template(path: Path) -> "ChatTemplate":
    """Return the chat template of a model, or ChatML if it has none."""
    from llmcli.data.conversations.chat_template import CHATML, ChatTemplate
    from llmcli.formats.loading import load_any, open_chat_template, open_tokenizer

    if path.suffix.lower() == ".json":
        tokenizer = _open_tokenizer(path)
    else:
        checkpoint = load_any(path).shared
        tokenizer = open_tokenizer(checkpoint)
        if template := open_chat_template(checkpoint, tokenizer):
            return template
    console.note(f"{path} has no chat template; shown in ChatML, which llm train would use for it")
    return ChatTemplate(CHATML, tokenizer.with_chat_tokens())


def _print_conversations(options: _Options, file: Path, model: Path) -> None:
    """Print each conversation in a file, as text in which the tokens in the loss are marked, or as a line of
    JSON."""
    from llmcli.data.sources import require_conversations

    read = require_conversations(file)
    template = _open_chat_template(model)
    tokenizer = template.tokenizer
    total = 0
    learned_total = 0
    for conversation in read.conversations:
        with prefixed(conversation.source):
            ids, loss_mask = template.encode_conversation(conversation.messages)
        if options.json:
            names = [tokenizer.decode([i]) if tokenizer.token_bytes[i] else tokenizer.label(i) for i in ids]
            mask = [int(learned) for learned in loss_mask]
            console.json_result({"ids": ids, "tokens": names, "mask": mask})
        else:
            text, spans = _marked_text(tokenizer, ids, loss_mask)
            console.heading(conversation.source)
            token_output.with_highlights(text, spans)
            console.verbatim("" if text.endswith("\n") else "\n")
        total += len(ids)
        learned_total += sum(loss_mask)
    for note in read.notes:
        console.note(note)
    console.note(
        f"{count(len(read.conversations), 'conversation')} with {total:,} tokens; {learned_total:,} "
        "of them are in the loss (marked): the answers and the tokens that end them"
    )


def _marked_text(
    tokenizer: "Tokenizer", ids: list[int], loss_mask: list[bool]
) -> tuple[str, list[tuple[int, int]]]:
    """Return (text of a conversation with the names of control tokens, spans of the tokens in the loss)."""
    text = ""
    spans = []
    for learned, run in itertools.groupby(zip(loss_mask, ids, strict=True), key=lambda pair: pair[0]):
        data = b"".join(tokenizer.token_bytes[i] or tokenizer.label(i).encode() for _, i in run)
        start = len(text)
        text += data.decode("utf-8", "replace")
        if learned:
            spans.append((start, len(text)))
    return text, spans
