"""`llm chat`: talk with a model, in a terminal or by a program."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmcli import units
from llmcli.cli.chat import answers
from llmcli.cli.options import (
    CorpusOption,
    DeviceOption,
    JsonOption,
    MaxTokensOption,
    MemoryOption,
    MinPOption,
    ModelOption,
    NoCacheOption,
    QuantizeOption,
    QuietOption,
    RepetitionPenaltyOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    decoded,
    model_path,
    reject_options,
    sampling_config,
    text_argument,
    utf8_argument,
)
from llmcli.cli.reports import memory as memory_report
from llmcli.cli.terminal import console
from llmcli.config import ANSWER_TOKENS, DEFAULT_MODEL, SamplingConfig
from llmcli.errors import usage

if TYPE_CHECKING:
    from llmcli.generation.chat import Chat


def chat(
    context_: typer.Context,
    message: Annotated[
        str | None,
        typer.Argument(
            metavar="MESSAGE", help="Message to answer, without a conversation; - reads it from standard input."
        ),
    ] = None,
    model: ModelOption = None,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="System message, which says how the model should answer."),
    ] = None,
    separate: Annotated[
        bool,
        typer.Option(
            "--separate", help="With --json: answer each line of standard input in a conversation of its own."
        ),
    ] = False,
    max_tokens: MaxTokensOption = ANSWER_TOKENS,
    temperature: TemperatureOption = SamplingConfig.temperature,
    top_k: TopKOption = SamplingConfig.top_k,
    top_p: TopPOption = SamplingConfig.top_p,
    min_p: MinPOption = SamplingConfig.min_p,
    repetition_penalty: RepetitionPenaltyOption = SamplingConfig.repetition_penalty,
    seed: SeedOption = None,
    memory: MemoryOption = False,
    corpus: CorpusOption = None,
    quantize: QuantizeOption = None,
    no_cache: NoCacheOption = False,
    device: DeviceOption = "cpu",
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Talk with a model that was trained on conversations.

    Without MESSAGE a conversation begins: in a terminal with editing and commands (/help lists them). With --json the
    lines of standard input are the user's messages of one conversation, and each answer is a line of JSON. The model
    sees the messages before, until its context is full; --separate answers each line by itself.

    Example: llm chat -m model.safetensors
    """
    if not (json_ and message is None):
        reject_options(context_, "without --json or with a MESSAGE", "separate")
    if not memory:
        reject_options(context_, "without --memory", "corpus")
    if quantize:
        reject_options(context_, "with --quantize", "device")
    sampling = sampling_config(context_)
    path = _model_path(model)
    is_conversation = message is None and (json_ or sys.stdin.isatty())
    text = "" if is_conversation else text_argument(message, "message").rstrip("\r\n")
    from llmcli.data.conversations.messages import Message
    from llmcli.formats.loading import load_any, open_tokenizer
    from llmcli.generation.chat import Chat, open_assistant
    from llmcli.models.open_runtime import WORTH_FAST, open_runtime

    source = load_any(path)
    tokenizer = open_tokenizer(source)
    training_texts = memory_report.training_texts(corpus, source, path) if memory else None
    runtime = open_runtime(
        source, device, quantize, console.note, fast=source.parameters >= WORTH_FAST, cache=not no_cache
    )
    assistant = open_assistant(source, runtime, tokenizer)
    system_message = [Message("system", utf8_argument(system, "system message"))] if system else []
    conversation = Chat(assistant, sampling, system_message)
    marks = memory_report.Memory(training_texts) if training_texts is not None else None
    if not is_conversation:
        _answer_once(conversation, text, marks, json_=json_)
    elif json_:
        _answer_lines(conversation, marks, separate=separate)
    else:
        from llmcli.cli.chat import commands as chat_commands
        from llmcli.cli.chat.session import Session
        from llmcli.cli.terminal import line_editor

        console.note(
            f"{path.name}: {units.number(source.parameters)} parameters, context {assistant.runtime.context:,} tokens; "
            "/help lists the commands, Ctrl-D leaves"
        )
        Session(conversation, line_editor.open_reader(chat_commands.completions), source, marks).run()


def _model_path(given: str | None) -> Path:
    """As `model_path`; without any model, the error names those here that can chat."""
    if not given and not os.environ.get("LLMCLI_MODEL") and not Path(DEFAULT_MODEL).exists() and given != "":
        from llmcli.generation.chat_files import no_model

        raise no_model()
    return model_path(given)


def _answer_once(conversation: "Chat", text: str, marks: memory_report.Memory | None, *, json_: bool) -> None:
    sampling = conversation.sampling
    shows_text = marks is None and not json_
    answer = answers.receive(conversation.answer(text), sampling.max_tokens, shows_text=shows_text)
    if json_:
        _print_json(answer, marks)
        return
    if marks:
        marks.show(answer.text)
    answers.note_end(answer, "for a longer answer: -n 2000")
    if sys.stdout.isatty():
        speed = f"{answer.tokens_per_second:,.0f} tokens/s"
        console.note(f"[{units.count(len(answer.pieces), 'token')}, {speed}, seed {sampling.seed}]")


# ---- --json


def _answer_lines(conversation: "Chat", marks: memory_report.Memory | None, *, separate: bool) -> None:
    """Answer each line of standard input, with a line of JSON each: one conversation, or one for each line."""
    is_full = False
    for number, line in enumerate(sys.stdin.buffer, 1):
        role, text = _parse_turn(decoded(line, "message").strip(), number)
        if role == "system":
            conversation.set_system(text)
        elif text:
            if separate:
                conversation.reset()
            events = conversation.answer(text)
            max_tokens = conversation.sampling.max_tokens
            answer = answers.receive(events, max_tokens, shows_text=False, notes_dropped=False)
            if answer.dropped_turns and not is_full:
                is_full = True
                console.note(
                    f"line {number:,}: the context of {conversation.assistant.runtime.context:,} tokens is full; from "
                    "here on the oldest turns of the conversation are left out (dropped_turns counts them); --separate "
                    "answers each line in a conversation of its own"
                )
            _print_json(answer, marks)


def _parse_turn(line: str, number: int) -> tuple[str, str]:
    """(role, text) of a line: a message as JSON, so that it may have several lines, or the text of the user's message.

    Raises LLMError for a message of another role.
    """
    try:
        record = json.loads(line) if line.startswith("{") else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or "role" not in record:
        return "user", line
    role, text = record["role"], record.get("content")
    if role not in ("user", "system") or not isinstance(text, str):
        raise usage(
            f'line {number:,} must be a text, or {{"role": "user", "content": "..."}} (or "system"), found {line[:80]}'
        )
    return role, text


def _print_json(answer: answers.Answer, marks: memory_report.Memory | None) -> None:
    console.json_result(answer.as_json() | ({"memory": marks.as_json(answer.text)} if marks else {}))
