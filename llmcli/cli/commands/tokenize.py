"""`llm tokenize`: see what the model sees."""

from pathlib import Path
from typing import Annotated, Any

import typer

from llmcli.cli import console, token_output
from llmcli.cli.options import (
    JsonOption,
    ModelOption,
    QuietOption,
    model_path,
    reject_options,
    text_argument,
    vocab_size_option,
)
from llmcli.cli.safe_text import visible_whitespace
from llmcli.errors import usage
from llmcli.formats.output_path import reject_overwriting


def tokenize(
    context_: typer.Context,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Text to take apart; - reads standard input.")
    ] = None,
    model: ModelOption = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="FILE", help="Take the text of a file.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="FILE", help="A tokenizer.json instead of a model.")
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Print only the ids.")] = False,
    decode: Annotated[bool, typer.Option("--decode", help="The text is ids: print what they stand for.")] = False,
    train: Annotated[
        list[str] | None,
        typer.Option("--train", metavar="CORPUS", help="Learn a tokenizer from this text (repeatable)."),
    ] = None,
    vocab_size: Annotated[int | None, vocab_size_option("With --train: tokens in the vocabulary.")] = None,
    char: Annotated[bool, typer.Option("--char", help="With --train: a token for each character.")] = False,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="With --train: the file to write.")
    ] = Path("tokenizer.json"),
    force: Annotated[bool, typer.Option("--force", help="With --train: replace the file if it exists.")] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the tokens of a text with their ids, or learn a tokenizer.

    Example: llm tokenize "I like to eat"
    """
    if train:
        reject_options(context_, "with --train", "text", "model", "file", "tokenizer", "ids", "decode", "json_")
        _train(train, vocab_size, char, output, force)
        return
    reject_options(context_, "without --train", "vocab_size", "char", "output", "force")
    if file is not None:
        reject_options(context_, "with --file", "text")
    if tokenizer is not None:
        reject_options(context_, "with --tokenizer", "model")
    if decode:
        reject_options(context_, "with --decode", "ids", "json_")
    found = _tokenizer(model, tokenizer)
    if decode:
        _decode(found, text_argument(text, "list of ids") if file is None else _read(file))
        return
    if file is not None and ids and not json_:
        _stream_ids(found, file)
        return
    content = _read(file) if file is not None else text_argument(text, "text")
    _show(found, content, ids, json_)


def _tokenizer(model: str | None, file: Path | None) -> Any:
    if file is not None:
        from llmcli.data.tokenizer_path import read_tokenizer

        return read_tokenizer(str(file))[1]
    from llmcli.formats.loading import load_any, open_tokenizer

    return open_tokenizer(load_any(model_path(model)).shared)


def _read(file: Path) -> str:
    from llmcli.data.corpus import read_corpus

    return "".join(part for text in read_corpus([str(file)]).texts() for part in text)


def _train(corpus: list[str], vocab_size: int | None, char: bool, output: Path, force: bool) -> None:
    from llmcli.data.corpus import read_corpus
    from llmcli.data.train_tokenizer import train_tokenizer
    from llmcli.formats import atomic_io

    if output.suffix.lower() in (".safetensors", ".gguf"):
        raise usage(f"-o {output} is the name of a model; a tokenizer is a .json file: -o tokenizer.json")
    atomic_io.check_writable(output, force=force, example="tokenizer.json")
    text = read_corpus(corpus)
    reject_overwriting(output, "tokenizer", [document.path for document in text.documents], "the text to learn from")
    learned, _ = train_tokenizer(text, text.text_bytes, vocab_size, characters=char)
    atomic_io.write(output, [learned.to_json().encode("utf-8")])
    console.note(f"saved {output}: {learned.vocab_size:,} tokens learned from {text.text_bytes:,} bytes")


def _decode(tokenizer: Any, text: str) -> None:
    try:
        ids = [int(part) for part in text.replace(",", " ").replace("[", " ").replace("]", " ").split()]
    except ValueError as error:
        raise usage(f"--decode wants ids such as 12 7 300, found {str(error).rsplit(': ', 1)[-1]}") from None
    console.result_bytes(tokenizer.decode_bytes(ids))


def _stream_ids(tokenizer: Any, file: Path) -> None:
    from llmcli.data.corpus import read_corpus

    for text in read_corpus([str(file)]).texts():
        for ids in tokenizer.encode_stream(text):
            console.result(" ".join(map(str, ids)))


def _show(tokenizer: Any, text: str, ids: bool, json_: bool) -> None:
    from llmcli.data.tokenizer import StreamDecoder

    found = tokenizer.encode(text)
    size = len(text.encode("utf-8"))
    if json_:
        tokens = [tokenizer.decode([i]) for i in found]
        console.json_result({"ids": found, "tokens": tokens, "bytes": size})
        return
    if ids:
        console.result(" ".join(map(str, found)))
        return
    names = []
    for token in found:
        data = tokenizer.token_bytes[token]
        decoder = StreamDecoder()
        whole = decoder.feed(data)
        part = "" if "\ufffd" not in whole + decoder.finish() else " ".join(f"{byte:02x}" for byte in data)
        names.append(part or visible_whitespace(whole))
    token_output.tokens(names, found)
    ratio = f", {size / len(found):.2f} bytes a token" if found else ""
    console.note(f"{len(found):,} tokens, {len(text):,} characters, {size:,} bytes{ratio}")
