"""`llm tokenize`: show the tokens of a text, or train a tokenizer."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcli.cli.options import (
    JsonOption,
    ModelOption,
    QuietOption,
    column_option,
    model_path,
    pairs_option,
    reading,
    reject_options,
    speakers_option,
    text_argument,
    vocab_size_option,
)
from llmcli.cli.reports import tokens as token_output
from llmcli.cli.terminal import console
from llmcli.cli.terminal.safe_text import visible_whitespace
from llmcli.errors import LLMError, usage
from llmcli.units import count

if TYPE_CHECKING:
    from llmcli.data.conversations.chat_template import ChatTemplate, EncodedConversation
    from llmcli.data.conversations.record_kinds import Reading
    from llmcli.data.tokenizers.tokenizer import Tokenizer

DEFAULT_OUTPUT = "tokenizer.json"


def tokenize(
    context_: typer.Context,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Text to tokenize; - reads standard input.")
    ] = None,
    model: ModelOption = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Tokenize the text in a file instead.")
    ] = None,
    chat: Annotated[
        Path | None,
        typer.Option(
            "--chat",
            metavar="FILE",
            help="Show the conversations in a file as text to train on; the tokens that count in the loss are marked.",
        ),
    ] = None,
    speakers: Annotated[str | None, speakers_option()] = None,
    pairs: Annotated[bool, pairs_option()] = False,
    column: Annotated[str | None, column_option()] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="FILE", help="Use a tokenizer.json instead of a model.")
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Print only the token ids.")] = False,
    decode: Annotated[bool, typer.Option("--decode", help="Turn token ids back into text; TEXT is the ids.")] = False,
    train: Annotated[
        list[str] | None,
        typer.Option("--train", metavar="CORPUS", help="Train a tokenizer on this text; can be repeated."),
    ] = None,
    vocab_size: Annotated[int | None, vocab_size_option("With --train: vocabulary size, in tokens.")] = None,
    char: Annotated[bool, typer.Option("--char", help="With --train: one token per character instead of BPE.")] = False,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="With --train: tokenizer file to write.")
    ] = Path(DEFAULT_OUTPUT),
    force: Annotated[bool, typer.Option("--force", help="With --train: overwrite an existing file.")] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the tokens of a text, or train a tokenizer.

    Example: llm tokenize "I like to eat"
    """
    if train:
        reject_options(
            context_,
            "with --train",
            "text",
            "model",
            "file",
            "chat",
            "speakers",
            "pairs",
            "column",
            "tokenizer",
            "ids",
            "decode",
            "json_",
        )
        _train(train, vocab_size, char, output, force=force)
        return
    reject_options(context_, "without --train", "vocab_size", "char", "output", "force")
    if chat is not None:
        reject_options(context_, "with --chat", "text", "file", "ids", "decode")
    else:
        reject_options(context_, "without --chat", "speakers", "pairs", "column")
    if file is not None:
        reject_options(context_, "with --file", "text")
    if tokenizer is not None:
        reject_options(context_, "with --tokenizer", "model")
    if decode:
        reject_options(context_, "with --decode", "ids", "json_")
    if chat is not None:
        how = reading(speakers, pairs, column, plain=False)
        _print_conversations(chat, how, _open_chat_template(model, tokenizer), json_=json_)
        return
    opened = _open_tokenizer(model, tokenizer)
    if decode:
        _decode(opened, text_argument(text, "list of ids") if file is None else _read(file))
    elif file is not None and ids and not json_:
        _print_ids_of_file(opened, file)
    else:
        content = _read(file) if file is not None else text_argument(text, "text")
        _print_tokens(opened, content, ids_only=ids, json_=json_)


def _open_tokenizer(model: str | None, file: Path | None) -> "Tokenizer":
    """The tokenizer in a file, or else that of a model."""
    if file is not None:
        from llmcli.data.tokenizers.tokenizer import read_tokenizer

        return read_tokenizer(str(file))[1]
    from llmcli.formats.loading import load_any, open_tokenizer

    return open_tokenizer(load_any(model_path(model)).shared)


def _read(file: Path) -> str:
    from llmcli.data.text.corpus import read_corpus

    return "".join(piece for text in read_corpus([str(file)]).texts() for piece in text)


# ---- showing tokens


def _print_tokens(tokenizer: "Tokenizer", text: str, *, ids_only: bool, json_: bool) -> None:
    ids = tokenizer.encode(text)
    size = len(text.encode("utf-8"))
    if json_:
        console.json_result({"ids": ids, "tokens": [tokenizer.decode([token]) for token in ids], "bytes": size})
        return
    if ids_only:
        console.result(" ".join(map(str, ids)))
        return
    token_output.tokens([_label(tokenizer.token_bytes[token]) for token in ids], ids)
    ratio = f", {size / len(ids):.2f} bytes per token" if ids else ""
    console.note(f"{len(ids):,} tokens, {len(text):,} characters, {size:,} bytes{ratio}")


def _label(token: bytes) -> str:
    """A token as text, or its bytes in hexadecimal if they are not characters by themselves.

    >>> _label("é".encode()), _label(b"\\xc3")
    ('é', 'c3')
    """
    text = token.decode("utf-8", "replace")
    return " ".join(f"{byte:02x}" for byte in token) if "\ufffd" in text else visible_whitespace(text)


def _print_ids_of_file(tokenizer: "Tokenizer", file: Path) -> None:
    """Print token ids while the file is read, which may be larger than memory."""
    from llmcli.data.text.corpus import read_corpus

    for text in read_corpus([str(file)]).texts():
        for ids in tokenizer.encode_stream(text):
            console.result(" ".join(map(str, ids)))


def _decode(tokenizer: "Tokenizer", text: str) -> None:
    """Print the bytes of token ids, which spaces, commas or brackets separate."""
    try:
        ids = [int(part) for part in text.replace(",", " ").replace("[", " ").replace("]", " ").split()]
    except ValueError as error:
        raise usage(f"--decode needs token ids such as 12 7 300, found {str(error).rsplit(': ', 1)[-1]}") from None
    console.result_bytes(tokenizer.decode_bytes(ids))


# ---- --chat


def _open_chat_template(model: str | None, tokenizer_file: Path | None) -> "ChatTemplate":
    """The chat template of a model, or ChatML if it has none."""
    from llmcli.data.conversations.chat_template import CHATML, ChatTemplate
    from llmcli.formats.loading import load_any, open_chat_template, open_tokenizer

    if tokenizer_file is not None:
        tokenizer, source = _open_tokenizer(None, tokenizer_file), tokenizer_file
    else:
        source = model_path(model)
        checkpoint = load_any(source).shared
        tokenizer = open_tokenizer(checkpoint)
        template = open_chat_template(checkpoint, tokenizer)
        if template is not None:
            return template
    console.note(f"{source} has no chat template; shown in ChatML, which llm train uses for such a model")
    return ChatTemplate(CHATML, tokenizer.with_chat_tokens())


def _print_conversations(file: Path, how: "Reading", template: "ChatTemplate", *, json_: bool) -> None:
    """Print each conversation in a file as a text with the learned tokens marked, or as a line of JSON."""
    from llmcli.data.conversations.files import require_conversations

    read = require_conversations(str(file), file, how)
    total = learned = 0
    for conversation in read.conversations:
        try:
            encoded = template.encode_conversation(conversation.messages)
        except LLMError as error:
            raise LLMError(f"{conversation.source}: {error}") from error
        if json_:
            console.json_result(_as_record(template.tokenizer, encoded))
        else:
            token_output.conversation(conversation.source, *_marked_text(template.tokenizer, encoded))
        total, learned = total + len(encoded.ids), learned + sum(encoded.loss_mask)
    for note in read.notes:
        console.note(note)
    console.note(
        f"{count(len(read.conversations), 'conversation')} of {total:,} tokens; {learned:,} of them are learned "
        "(marked): those of answers, and the one that ends each"
    )


def _as_record(tokenizer: "Tokenizer", encoded: "EncodedConversation") -> dict[str, list[Any]]:
    """A conversation for --json."""
    names = [tokenizer.decode([i]) if tokenizer.token_bytes[i] else tokenizer.label(i) for i in encoded.ids]
    return {"ids": encoded.ids, "tokens": names, "mask": [int(learned) for learned in encoded.loss_mask]}


def _marked_text(tokenizer: "Tokenizer", encoded: "EncodedConversation") -> tuple[str, list[tuple[int, int]]]:
    """(text of a conversation with control tokens by their names, spans of the learned tokens in it)"""
    text, spans = "", []
    for learned, run in itertools.groupby(zip(encoded.loss_mask, encoded.ids, strict=True), key=lambda pair: pair[0]):
        data = b"".join(tokenizer.token_bytes[i] or tokenizer.label(i).encode() for _, i in run)
        start, text = len(text), text + data.decode("utf-8", "replace")
        if learned:
            spans.append((start, len(text)))
    return text, spans


# ---- --train


def _train(corpus: list[str], vocab_size: int | None, char: bool, output: Path, *, force: bool) -> None:
    from llmcli.data.sources import read_sources
    from llmcli.data.tokenizers.training import train_tokenizer
    from llmcli.formats import atomic_io
    from llmcli.formats.output_path import reject_overwriting

    if output.suffix.lower() in (".safetensors", ".gguf"):
        raise usage(f"-o {output} is the name of a model; a tokenizer is a .json file: -o {DEFAULT_OUTPUT}")
    atomic_io.check_writable(output, force=force, example=DEFAULT_OUTPUT)
    text = read_sources(corpus, text_only=True).text
    reject_overwriting(output, "tokenizer", [document.path for document in text.documents], "the training text")
    trained, _ = train_tokenizer(text, vocab_size, characters=char)
    atomic_io.write(output, [trained.to_json().encode("utf-8")])
    console.note(f"saved {output}: {trained.vocab_size:,} tokens, trained on {text.text_bytes:,} bytes")
