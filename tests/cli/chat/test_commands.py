"""The commands of a chat as text: parsed, completed, and their mistakes named."""

import pytest

from llmcli.cli.chat import commands as chat_commands
from llmcli.cli.chat.commands import USAGE, completions, hint, parse, set_option
from llmcli.config import SamplingConfig
from llmcli.errors import LLMError


def test_every_command_and_alias_is_parsed() -> None:
    for name in USAGE:
        assert parse(f"/{name}") == (name, "")
        assert parse(f"/{name.upper()}   a  b ") == (name, "a  b")
    for alias, name in chat_commands._ALIASES.items():
        assert parse(f"/{alias}") == (name, "") and alias not in USAGE


def test_other_lines_are_messages() -> None:
    for line in ["", "Hello", " /reset", "1/2", "食べる /exit"]:
        assert parse(line) is None


def test_a_line_that_is_no_message_gets_a_hint_unless_a_space_is_before_it() -> None:
    for line in ["exit", "Exit ", "quit()", ":q", ":wq", "clear", "help", "llm", "llm --help", "llm chat x"]:
        assert "type /exit or press Ctrl-D" in hint(line) and "/help lists" in hint(line)
        assert f"To send {line.rstrip()} as a message, type a space before it." in hint(line)
        assert hint(f" {line}") == ""
    others = ["", "exit the room", "quit?", "llm is what?", "Where is the exit", "exit\nthe room", "食べる"]
    for line in others:
        assert hint(line) == ""


def test_an_unknown_command_is_not_sent_to_the_model() -> None:
    for line, message in [
        ("/regenrate", "did you mean /regenerate?"),
        ("/und", "did you mean /undo?"),
        ("/usr/bin/x is what?", "/help lists"),
        ("/", "there is no command /;"),
    ]:
        with pytest.raises(LLMError, match="needs a space before it") as error:
            parse(line)
        assert message in str(error.value)


def test_set_changes_one_value() -> None:
    for text, field, value in [
        ("temperature 0.7", "temperature", 0.7),
        ("TEMPERATURE=0", "temperature", 0.0),
        ("max_tokens 5", "max_tokens", 5),
        ("min-p  0.1", "min_p", 0.1),
    ]:
        before = SamplingConfig(seed=9)
        after = set_option(before, text)
        assert getattr(after, field) == value and type(getattr(after, field)) is type(value)
        assert {name: v for name, v in vars(after).items() if name != field} == {
            name: v for name, v in vars(before).items() if name != field
        }


def test_a_wrong_setting_is_named() -> None:
    for text, message in [
        ("warmth 1", "/set has no warmth; it has temperature, top-p,"),
        ("temperature", "/set temperature needs a number, found nothing; for example: /set temperature 0.8"),
        ("temperature hot", "/set temperature needs a number, found hot"),
        ("max-tokens 1.5", "/set max-tokens needs a whole number, found 1.5; for example: /set max-tokens 200"),
        ("temperature -1", "^temperature must be at least 0"),
        ("top-p 2", "^top-p must be between 0 and 1"),
    ]:
        with pytest.raises(LLMError, match=message):
            set_option(SamplingConfig(), text)


def applied(text: str) -> list[str]:
    """The text with each of its completions."""
    return [text[: len(text) - length] + completion for completion, length, _ in completions(text)]


def test_completions() -> None:
    assert applied("Hello /re") == [] and applied("") == []
    assert applied("/re") == ["/reset", "/retry"]
    assert applied("/set t") == ["/set temperature ", "/set top-p ", "/set top-k "]
    assert applied("/set temperature 0") == []
    assert len(applied("/")) == len(USAGE)
