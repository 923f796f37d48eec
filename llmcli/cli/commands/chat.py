"""`llm chat`: talk with a model, in a terminal or from a program."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.cli.chat import answers
from llmcli.cli.options import (
    CHOICES_HELP,
    SAMPLING_OPTIONS,
    GenerationOptions,
    argument,
    decoded,
    flag,
    max_tokens_option,
    model_path,
    option,
    read_choices,
    text_argument,
    utf8_argument,
)
from llmcli.cli.terminal import console
from llmcli.config import ANSWER_TOKENS, SamplingConfig
from llmcli.errors import usage

if TYPE_CHECKING:
    from llmcli.data.conversations.messages import Message
    from llmcli.data.prompts import PromptRow
    from llmcli.generation.batch import BatchResult
    from llmcli.generation.chat import Chat
    from llmcli.generation.engine.requests import GenerationRequest
    from llmcli.generation.known_answers import KnownAnswer

CONFLICTS = {
    "choices": f"{SAMPLING_OPTIONS} known_answers",
    "known_answers": SAMPLING_OPTIONS,
    "batch": "message",
}


class _Options(GenerationOptions):
    message: str | None = argument(
        "MESSAGE", "Message to answer, instead of a conversation; - reads standard input."
    )
    model: str | None
    system: str | None = option("TEXT", "System message, which says how the model should answer.")
    choices: str | None = option("LIST", f"Show the probability of each of these answers: {CHOICES_HELP}.")
    known_answers: bool = flag("Answer only with answers that the file stores (llm train --known-answers).")
    min_confidence: float | None = option(
        "X",
        "With --known-answers: lowest confidence for an answer (default: fitted in training).",
        min=0.0,
        max=1.0,
    )
    max_tokens: int = max_tokens_option(ANSWER_TOKENS)


def chat(options: _Options) -> None:
    """Without MESSAGE, a conversation begins in a terminal, with editing and commands (/help lists them);
    otherwise, standard input is one message, or with --json, each of its lines is a message of one
    conversation, and each answer a line of JSON. The model sees earlier messages until its context is full;
    with --batch, each line of a file is a separate conversation.

    Example: llm chat -m model.safetensors
    """
    options.check(CONFLICTS, {"known_answers": "min_confidence"})
    message = options.message
    sampling = options.sampling()
    path = model_path(options.model, _other_models)
    choices = None if options.choices is None else read_choices(options.choices, strips=True)
    is_conversation = message is None and not choices and (options.json or sys.stdin.isatty())
    text = "" if is_conversation or options.batch else text_argument(message, "message").rstrip("\r\n")
    from llmcli.data.conversations.messages import Message
    from llmcli.formats.loading import load_any, open_tokenizer
    from llmcli.generation.chat import Chat, open_assistant
    from llmcli.models.open_runtime import WORTH_FAST, open_runtime

    source = load_any(path)
    tokenizer = open_tokenizer(source)
    # numpy scores several texts together, onnxruntime does not
    fast = not (choices or options.known_answers) and source.parameters >= WORTH_FAST
    runtime = open_runtime(
        source, options.device, options.quantize, console.note, fast=fast, cache=not options.no_cache
    )
    assistant = open_assistant(source, runtime, tokenizer)
    system = [Message("system", utf8_argument(options.system, "system message"))] if options.system else []
    conversation = Chat(assistant, sampling, system)
    if options.known_answers:
        from llmcli.generation.known_answers import AnswerFinder, KnownAnswersChat, open_known_answers

        finder = AnswerFinder(open_known_answers(source), options.min_confidence)
        conversation = KnownAnswersChat(assistant, finder, sampling, system)
    if options.batch:
        _run_batch(options, path, conversation, system, choices or [])
    elif choices:
        from llmcli.cli.reports.choices import print_choices

        if not text.strip():
            raise usage("the message is empty; give a text to answer")
        scored = assistant.score([*system, Message("user", text)], choices)
        print_choices("answer", text, scored, json_=options.json)
    elif not is_conversation:
        _answer_once(conversation, text, json_=options.json)
    elif options.json:
        _answer_lines(conversation)
    else:
        from llmcli.cli.chat import commands as chat_commands
        from llmcli.cli.chat.session import Session
        from llmcli.cli.terminal import line_editor

        console.note(
            f"{path.name}: {units.number(source.parameters)} parameters, context "
            f"{assistant.runtime.context:,} tokens; /help lists the commands, Ctrl-D leaves"
        )
        read = line_editor.open_reader(chat_commands.completions, chat_commands.FILE_COMMANDS)
        Session(conversation, read, source).run()


def _answer_once(conversation: "Chat", text: str, *, json_: bool) -> None:
    answer = answers.receive(conversation.answer(text), conversation.sampling, shows_text=not json_)
    if json_:
        answers.note_incomplete(answer)
        console.json_result(answer.as_json() | _known_json(conversation))
        return
    answers.note_end(answer, "for a longer answer: -n 2000")
    if sys.stdout.isatty():
        if known := _known_json(conversation):
            console.note(f"[confidence {known['confidence']:.2f}]")
        else:
            answer.note_speed()


def _run_batch(
    options: _Options, path: Path, conversation: "Chat", system: "list[Message]", choices: list[str]
) -> None:
    from llmcli.cli import batch
    from llmcli.generation.batch import BatchResult, answer_request
    from llmcli.generation.known_answers import KnownAnswersChat

    assistant = conversation.assistant

    def request(row: "PromptRow", sampling: SamplingConfig) -> "GenerationRequest | BatchResult":
        messages = row.conversation()
        messages = messages if messages[0].role == "system" else [*system, *messages]
        if isinstance(conversation, KnownAnswersChat):
            answer = conversation.find(messages)
            return BatchResult(answer.text, known=_confidence_json(answer))
        return answer_request(messages, assistant, sampling, choices)

    batch.run(options, path, assistant.runtime, assistant.tokenizer, request, "content")


# ---- --json


def _answer_lines(conversation: "Chat") -> None:
    """Answer each line of standard input, as one conversation, with a line of JSON."""
    dropped_note: str | None = " (see dropped_turns); --batch answers each line in a separate conversation"
    for number, line in enumerate(sys.stdin.buffer, 1):
        role, text = _parse_turn(decoded(line, "message").strip(), number)
        if role == "system":
            conversation.set_system(text)
        elif text:
            events = conversation.answer(text)
            answer = answers.receive(
                events, conversation.sampling, shows_text=False, dropped_note=dropped_note
            )
            dropped_note = None if answer.dropped_turns else dropped_note
            answers.note_incomplete(answer)
            console.json_result(answer.as_json() | _known_json(conversation))


def _parse_turn(line: str, number: int) -> tuple[str, str]:
    """Return (role, text) of a line: a user's text, or a message as JSON. Raises LLMError for any other
    role."""
    try:
        record = json.loads(line) if line.startswith("{") else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or "role" not in record:
        return "user", line
    role = record["role"]
    text = record.get("content")
    if role not in ("user", "system") or not isinstance(text, str):
        raise usage(
            f'line {number:,} must be a text, or {{"role": "user", "content": "..."}} (or "system"), '
            f"found {line[:80]}"
        )
    return role, text


def _known_json(conversation: "Chat") -> dict[str, Any]:
    """Return the confidence of the last answer with --known-answers; {} without that option."""
    from llmcli.generation.known_answers import KnownAnswersChat

    last = conversation.last if isinstance(conversation, KnownAnswersChat) else None
    return _confidence_json(last) if last else {}


def _confidence_json(answer: "KnownAnswer") -> dict[str, Any]:
    return {"known": answer.is_known, "confidence": round(answer.confidence, 6)}


def _other_models() -> str:
    from llmcli.generation.chat import TRAINING_FILE, models_that_can_chat

    train = f"train a model that can chat: llm train FILE {TRAINING_FILE}, or name one with -m FILE"
    return models_that_can_chat(Path()) or train
