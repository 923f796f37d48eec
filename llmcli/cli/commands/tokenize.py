"""`llm tokenize`: show the tokens of a text."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.cli.options import ResultOptions, argument, flag, model_path, option, text_argument
from llmcli.cli.reports import tokens as token_output
from llmcli.cli.terminal import console
from llmcli.cli.terminal.safe_text import visible_whitespace
from llmcli.errors import LLMError, usage
from llmcli.units import count

if TYPE_CHECKING:
    from llmcli.data.conversations.chat_template import ChatTemplate, EncodedConversation
    from llmcli.data.tokenizers.tokenizer import Tokenizer

CONFLICTS = {
    "chat": "text file ids decode",
    "file": "text",
    "tokenizer": "model",
    "decode": "ids json",
}


class _Options(ResultOptions):
    text: str | None = argument("TEXT", "Text to tokenize; - reads standard input.")
    model: str | None
    file: Path | None = option("FILE", "Tokenize the text in a file instead.")
    chat: Path | None = option("FILE", "Show the conversations in a file; tokens that count in the loss are marked.")
    encoding: str | None
    tokenizer: Path | None = option("FILE", "Use a tokenizer.json instead of a model.")
    ids: bool = flag("Print only the token ids.")
    decode: bool = flag("Turn token ids, given as TEXT, back into text.")


def tokenize(options: _Options) -> None:
    """Show the tokens of a text.

    Example: llm tokenize "I like to eat"
    """
    options.check(CONFLICTS)
    file, text = options.file, options.text
    if file is None and options.chat is None:
        options.reject("without a file", "encoding")
    if options.chat is not None:
        _print_conversations(options, options.chat, _open_chat_template(options))
        return
    opened = _open_tokenizer(options)
    if options.decode:
        _decode(opened, text_argument(text, "list of ids") if file is None else _read(file, options))
    elif file is not None and options.ids and not options.json:
        from llmcli.data.sources import read_corpus

        for document in read_corpus([str(file)], encoding=options.encoding or "").texts():
            for ids in opened.encode_stream(document):  # the file may be larger than memory
                console.result(" ".join(map(str, ids)))
    else:
        content = _read(file, options) if file is not None else text_argument(text, "text")
        _print_tokens(opened, content, options)


def _open_tokenizer(options: _Options) -> "Tokenizer":
    """Open the tokenizer in a file, or a model's tokenizer."""
    if options.tokenizer is not None:
        from llmcli.data.tokenizers.tokenizer import read_tokenizer

        return read_tokenizer(str(options.tokenizer))[1]
    from llmcli.formats.loading import load_any, open_tokenizer

    return open_tokenizer(load_any(model_path(options.model)).shared)


def _read(file: Path, options: _Options) -> str:
    from llmcli.data.sources import read_corpus

    return "".join(
        piece for text in read_corpus([str(file)], encoding=options.encoding or "").texts() for piece in text
    )


# ---- showing tokens


def _print_tokens(tokenizer: "Tokenizer", text: str, options: _Options) -> None:
    ids, size = tokenizer.encode(text), len(text.encode("utf-8"))
    if options.json:
        console.json_result({"ids": ids, "tokens": [tokenizer.decode([token]) for token in ids], "bytes": size})
        return
    if options.ids:
        console.result(" ".join(map(str, ids)))
        return
    token_output.tokens([visible_whitespace(tokenizer.label(token)) for token in ids], ids)
    ratio = f", {size / len(ids):.2f} bytes per token" if ids else ""
    console.note(f"{len(ids):,} tokens, {len(text):,} characters, {size:,} bytes{ratio}")


def _decode(tokenizer: "Tokenizer", text: str) -> None:
    """Print the bytes of token ids, which spaces, commas or brackets separate."""
    try:
        ids = [int(part) for part in text.replace(",", " ").replace("[", " ").replace("]", " ").split()]
    except ValueError as error:
        raise usage(f"--decode needs token ids such as 12 7 300, found {str(error).rsplit(': ', 1)[-1]}") from None
    console.result_bytes(tokenizer.decode_bytes(ids))


# ---- --chat


def _open_chat_template(options: _Options) -> "ChatTemplate":
    """Return the chat template of a model, or ChatML if it has none."""
    from llmcli.data.conversations.chat_template import CHATML, ChatTemplate
    from llmcli.formats.loading import load_any, open_chat_template, open_tokenizer

    if options.tokenizer is not None:
        tokenizer, source = _open_tokenizer(options), options.tokenizer
    else:
        source = model_path(options.model)
        checkpoint = load_any(source).shared
        tokenizer = open_tokenizer(checkpoint)
        if template := open_chat_template(checkpoint, tokenizer):
            return template
    console.note(f"{source} has no chat template; shown in ChatML, which llm train would use for it")
    return ChatTemplate(CHATML, tokenizer.with_chat_tokens())


def _print_conversations(options: _Options, file: Path, template: "ChatTemplate") -> None:
    """Print each conversation in a file as text with the learned tokens marked, or as a line of JSON."""
    from llmcli.data.sources import require_conversations

    read = require_conversations(str(file), file, options.reading())
    tokenizer, total, learned_total = template.tokenizer, 0, 0
    for conversation in read.conversations:
        try:
            encoded = template.encode_conversation(conversation.messages)
        except LLMError as error:
            raise LLMError(f"{conversation.source}: {error}") from error
        if options.json:
            names = [tokenizer.decode([i]) if tokenizer.token_bytes[i] else tokenizer.label(i) for i in encoded.ids]
            mask = [int(learned) for learned in encoded.loss_mask]
            console.json_result({"ids": encoded.ids, "tokens": names, "mask": mask})
        else:
            text, spans = _marked_text(tokenizer, encoded)
            console.heading(conversation.source)
            token_output.with_highlights(text, spans)
            console.verbatim("" if text.endswith("\n") else "\n")
        total, learned_total = total + len(encoded.ids), learned_total + sum(encoded.loss_mask)
    for note in read.notes:
        console.note(note)
    console.note(
        f"{count(len(read.conversations), 'conversation')} with {total:,} tokens, of which {learned_total:,} are "
        "learned (marked): the answers and the tokens that end them"
    )


def _marked_text(tokenizer: "Tokenizer", encoded: "EncodedConversation") -> tuple[str, list[tuple[int, int]]]:
    """Return (text of a conversation with the names of control tokens, spans of its learned tokens)."""
    text, spans = "", []
    for learned, run in itertools.groupby(zip(encoded.loss_mask, encoded.ids, strict=True), key=lambda pair: pair[0]):
        data = b"".join(tokenizer.token_bytes[i] or tokenizer.label(i).encode() for _, i in run)
        start, text = len(text), text + data.decode("utf-8", "replace")
        if learned:
            spans.append((start, len(text)))
    return text, spans
