"""Joining lines of a paragraph and separating paragraphs."""

from llmcli.data.documents.paragraphs import is_cjk, joined, spaced


def test_lines_of_a_paragraph_are_joined() -> None:
    for text, line, expected in [
        ("one", "two", "one two"),
        ("日本", "語の文", "日本語の文"),
        ("これは", "Python", "これは Python"),
        ("カタカナー", "。", "カタカナー。"),
        ("한국어", "문장", "한국어 문장"),
        ("soft\u00ad", "ware", "software"),
        ("well-", "known", "well-known"),
        ("", "text", "text"),
    ]:
        assert joined(text, line) == expected, text
    # a divided word loses its hyphen unless a name follows
    assert joined("exam-", "ple", hyphenated=True) == "example"
    assert joined("Anglo-", "Saxon", hyphenated=True) == "Anglo-Saxon"


def test_blank_lines_separate_all_but_lines() -> None:
    blocks = [("A", False), ("1", True), ("2", True), ("", False), ("3", True), ("B\n", False)]
    assert list(spaced(blocks)) == ["A\n", "\n1\n", "2\n", "\n3\n", "\nB\n"]


def test_cjk_is_what_is_written_without_spaces() -> None:
    assert all(map(is_cjk, "漢かカ、。「ー々𠮷Ａ"))
    assert not any(map(is_cjk, "aéж한 1-"))
