"""The main text of web pages, and their encodings."""

import io

import pytest

pytest.importorskip("resiliparse")

from llmcli.data.documents import html
from tests.data.documents import samples

PAGE = """<!doctype html><html><head><title>T</title><style>p {{ color: red }}</style><meta charset="{charset}">
</head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/about">About us</a></li></ul></nav>
<main><article><h1>{title}</h1><p>{text}</p><ul><li>{item} 1</li><li>{item} 2</li></ul>
<table><tr><th>{item}</th><th>B</th></tr><tr><td>1</td><td>2</td></tr></table>
<script>track("me")</script></article></main><footer>Copyright, all rights reserved</footer></body></html>"""
ENGLISH = {"title": "A title", "text": "The quick brown fox jumps over the lazy dog. " * 8, "item": "Item"}
JAPANESE = {
    "title": "記事の題名",
    "text": "吾輩は猫である。名前はまだ無い。どこで生れたか見当がつかぬ。" * 8,
    "item": "項目",
}


def test_the_main_text_without_navigation() -> None:
    for words in [ENGLISH, JAPANESE]:
        text, skipped = samples.extracted(html, io.BytesIO(PAGE.format(charset="utf-8", **words).encode()))
        item = words["item"]
        assert [line.strip() for line in text.split("\n") if line.strip()] == [
            words["title"], words["text"].strip(), f"• {item} 1", f"• {item} 2", f"{item}\tB", "1\t2",
        ], words  # fmt: skip
        assert not skipped, words


def test_encodings() -> None:
    for declares in [True, False]:
        for encoding in ["shift_jis", "euc_jp", "iso2022_jp", "utf-8", "utf-16"]:
            page = PAGE.format(charset=encoding.replace("_", "-") if declares else "", **JAPANESE)
            assert JAPANESE["text"] in html.main_text(html.decode(page.encode(encoding))), encoding
    assert "für" in html.decode('<meta charset="iso-8859-1">für'.encode())  # UTF-8, whatever it declares
    # the charset of the server counts before that of the page
    assert html.decode('<meta charset="utf-8">猫'.encode("shift_jis"), "shift_jis").endswith("猫")


def test_a_page_without_main_text_is_read_as_a_whole() -> None:
    links = "".join(f'<li><a href="{n}">Entry number {n}</a></li>' for n in range(20))
    assert "Entry number 19" in html.main_text(f"<body><nav><ul>{links}</ul></nav></body>")


def test_a_lone_character_between_elements_is_main_text() -> None:
    for between in [" や ", "の", "—", " &mdash; ", "&#12354;", "<b>が</b>"]:
        words = f'<p>{"Long text. " * 30}</p><p>See <a href="a">A</a>{between}<a href="b">B</a> first</p>'
        page = f"<body><nav><a href='/'>Home</a></nav><main><h1>T</h1>{words}</main></body>"
        text = html.main_text(page)
        assert "Home" not in text, between
        assert text.endswith(html.plain_text(f"<p>See A{between}B first</p>")), between


def test_long_scripts_are_no_reason_to_read_the_navigation() -> None:
    script = f"<script>{'var x = 1;' * 2000}</script>"
    text = html.main_text(PAGE.format(charset="utf-8", **ENGLISH).replace("</article>", script + "</article>"))
    assert text.startswith("A title") and "About us" not in text


def test_pronunciation_is_left_out() -> None:
    assert html.plain_text("<p><ruby>漢字<rp>(</rp><rt>かんじ</rt><rp>)</rp></ruby>を読む</p>") == "漢字を読む\n"


@pytest.mark.usefixtures("no_hang")
def test_elements_that_are_nested_deeply_are_read_in_linear_time() -> None:
    for depth in (3, 100, 20_000):
        items = "".join(f"<ul><li>Item {number}\n" for number in range(depth))
        lines = html.main_text(f"<body><p>{'Text. ' * 30}</p>{items}").split("\n")
        assert [line.strip() for line in lines if "Item" in line] == [f"• Item {number}" for number in range(depth)]
    for tag in ("<div>", "<ol><li>", "<article><div>", "<b><br>"):
        words = html.main_text(f"<body><p>{'Text. ' * 30}</p>{tag * 20_000}end").split()
        assert words[:30] == ["Text."] * 30 and words[-1] == "end"


def test_every_list_is_main_text_and_lists_in_it_keep_their_form() -> None:
    lists = "<ul><li>One<ol><li>first<li>second</ol><li><p>Two, of 3.<ul><li>inner</ul><li></ul>"
    page = f"<body><nav><ul><li><a>Home</a></ul></nav><main><h1>T</h1>{lists}<p>{'Text. ' * 30}</p>{lists * 2}</main>"
    expected = ["• One", "1. first", "2. second", "• Two, of 3.", "• inner"]
    lines = [line.strip() for line in html.main_text(page).split("\n") if line.strip()]
    assert lines == ["T", *expected, ("Text. " * 30).strip(), *expected, *expected]
