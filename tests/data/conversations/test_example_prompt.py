"""A prompt from a text: literal examples in many scripts, and what holds for any text."""

import shlex
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcli.data.conversations.example_prompt import (
    MAX_PROMPT,
    MAX_PROMPT_WITHOUT_SPACES,
    example_prompts,
    shell_quoted,
)


def test_a_prompt_is_the_beginning_of_a_sentence_or_line() -> None:
    for text, first in [
        ("I like to eat apple.\nThe cat likes to sleep.", "I like to eat"),
        ("First Citizen:\nBefore we proceed any further, hear me speak.", "Before we proceed any further"),
        ("Привет, мир! Как дела сегодня у вас?", "Как дела сегодня у"),
        ("안녕하세요 세계 여러분 반갑습니다", "안녕하세요 세계 여러분"),
        ("私は毎朝リンゴを食べます。", "私は毎朝"),
        ("我喜欢吃苹果和香蕉。", "我喜欢吃苹"),
        ("- a list of things\n- and more", "a list of"),
        ("# Title\n\nIt's a small thing. Some other words follow here.", "Some other words follow"),
        ("ROMEO:\n", "ROMEO:"),
        ("1,2,3\n4,5,6\n", "1,"),
        ("abc" * 100, "abcabcabcabc"),
        ("a\u202eb c d\nplain words stand here", "plain words stand"),
        ("0\ua700", "0\ua700"),  # a character with a modifier is not split
        ("broken \ufffd words here\nwhole words are here", "whole words are"),
    ]:
        assert example_prompts(text)[0] == first, text
    assert example_prompts("") == example_prompts("!!!\n-- ???\n") == []


def test_a_sentence_that_may_be_incomplete_is_used_last() -> None:
    assert example_prompts("es to the market today.\nAnna has a kite.", starts_inside=True)[0] == "Anna has a"
    assert example_prompts("es to the market today.", starts_inside=True) == ["es to the market"]


@pytest.mark.slow
@given(st.text() | st.lists(st.sampled_from([*string.printable, "リンゴ", "é", "👩‍🚀"])).map("".join))
def test_any_prompt_can_be_typed(text: str) -> None:
    prompts = example_prompts(text)
    assert sorted(prompts) == sorted(example_prompts(text, starts_inside=True))
    if not prompts:
        return
    prompt = prompts[0]
    assert (
        prompt.isprintable() and prompt[0].isalnum() and len(prompt) <= max(MAX_PROMPT, MAX_PROMPT_WITHOUT_SPACES) + 1
    )
    assert prompt in " ".join(text.split())
    typed = shell_quoted(prompt)
    assert shlex.split(typed) == [prompt]
    if typed[0] == '"':  # what a shell does inside double quotes beyond what shlex knows
        assert not set(typed[1:-1]) & set('"$`\\!')
