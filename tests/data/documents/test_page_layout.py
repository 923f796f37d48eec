"""Lines of pages become paragraphs."""

from collections.abc import Sequence

from llmcli.data.documents.page_layout import Line, paragraphs, without_margins
from llmcli.data.documents.paragraphs import spaced


def page(*texts: str, left: float = 72, top: float = 770, size: float = 10, leading: float = 12) -> list[Line]:
    """Lines of a page; spaces at the beginning of a text indent it. A Latin character is half as wide as high."""
    lines = []
    for number, text in enumerate(texts):
        start = left + (len(text) - len(text.lstrip(" "))) * size / 2
        width = sum(size if ord(character) > 0x2E7F else size / 2 for character in text.strip(" "))
        hyphenated = text.endswith("~")
        lines.append(
            Line(text.strip(" ").replace("~", "-"), start, start + width, top - number * leading, size, hyphenated)
        )
    return [line for line in lines if line.text]


def text_of(*pages: Sequence[Line]) -> str:
    return "".join(str(block) for block in spaced(paragraphs(pages)))


def test_lines_are_joined_where_the_next_word_had_no_room() -> None:
    for lines, expected in [
        (  # a word has no room: the line goes on
            "The quick brown fox jumps over the lazy|dog, and the dog sleeps on until evening|comes.",
            "The quick brown fox jumps over the lazy dog, and the dog sleeps on until evening comes.\n",
        ),
        (  # it had room: lines of a poem, or of a program
            "if number > 5:|    print(number)|    break|for number in range(10):",
            "if number > 5:\nprint(number)\nbreak\nfor number in range(10):\n",
        ),
        (  # indented first lines
            "  The quick brown fox jumps over the lazy|dog, and the dog sleeps on until evening|"
            "  Another paragraph begins here, and goes|on.",
            "The quick brown fox jumps over the lazy dog, and the dog sleeps on until evening\n\n"
            "Another paragraph begins here, and goes on.\n",
        ),
        (  # a list whose items have several lines
            "1. The quick brown fox jumps over the lazy|   dog, and the dog sleeps on until evening|"
            "2. Another paragraph begins here, and goes|   on.",
            "1. The quick brown fox jumps over the lazy dog, and the dog sleeps on until evening\n"
            "2. Another paragraph begins here, and goes on.\n",
        ),
        (  # references: the first line is further left
            "Ada Lovelace. Notes on the engine, and how|  it computes. London, printed by nobody at|  all.|"
            "Kurt Goedel. On sentences that cannot ever|  be decided.",
            "Ada Lovelace. Notes on the engine, and how it computes. London, printed by nobody at all.\n\n"
            "Kurt Goedel. On sentences that cannot ever be decided.\n",
        ),
        (  # a divided word
            "The quick brown fox jumps over the la~|zy dog, and the dog sleeps on until even~|ing.",
            "The quick brown fox jumps over the lazy dog, and the dog sleeps on until evening.\n",
        ),
        (  # Japanese: no spaces between lines
            "　吾輩は猫である。名前はまだ無い。どこで|生れたかとんと見当がつかぬ。何でも薄暗い|"
            "所で泣いていた。|　次の段落。",
            "　吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗い所で泣いていた。\n\n"
            "　次の段落。\n",
        ),
    ]:
        wide = page("A line as wide as the column, and apart." + "..", top=100)
        assert text_of([*page(*lines.split("|")), *wide]) == f"{expected}\n{wide[0].text}\n", lines


def test_the_lines_of_a_table_of_contents_are_not_joined_and_lose_their_dots() -> None:
    entries = [f"1.{n} {'Title ' * n}{'. ' * (30 - 3 * n)}{n}" for n in range(1, 6)]
    without_dots = [f"1.{n} {'Title ' * n}{n}" for n in range(1, 6)]
    assert [line for line in text_of(page(*entries)).split("\n") if line] == without_dots


def test_a_larger_distance_or_size_separates() -> None:
    heading = page("A heading in large letters, so long", "that it needs two lines", size=20, leading=24)
    body = page("The quick brown fox jumps over the lazy", "dog.", top=700)
    far = page("The quick brown fox jumps over the lazy", "dog.", top=660)
    paragraph = "The quick brown fox jumps over the lazy dog.\n"
    assert text_of([*heading, *body, *far]) == (
        f"A heading in large letters, so long that it needs two lines\n\n{paragraph}\n{paragraph}"
    )


def test_a_paragraph_goes_on_in_the_next_column_and_on_the_next_page() -> None:
    sentence = ["The quick brown fox jumps over the lazy", "dog, and the dog sleeps on until evening"]
    first, second = page(*sentence), page(*sentence, left=300)
    third = page("comes at last, and it is dark outside now.", "Another page.")
    lines = [line for text in (first, second, third) for line in text]
    assert text_of([*first, *second], third) == " ".join(line.text for line in lines) + "\n"
    ended = page(sentence[0], "dog, and the dog sleeps until an evening.")
    assert text_of(ended, third).count("\n\n") == 1


def test_headers_and_footers_are_left_out() -> None:
    def with_margins(number: int) -> list[Line]:
        header = page("1. Introduction" if number % 2 else "A BOOK", top=800)
        text = [f"{word} {number}" for word in ("Some", "lines", "with", "the", "text", "of", "page")]
        return [*header, *page(*text, top=700 - 5 * number), *page(f"{number}", top=40, left=290)]

    pages = list(without_margins(with_margins(number) for number in range(1, 13)))
    assert [[line.text.split()[0] for line in lines] for lines in pages] == [
        ["Some", "lines", "with", "the", "text", "of", "page"]
    ] * 12
    lines = page("Title", "Text", "1")  # of a single page
    assert list(without_margins([lines])) == [lines]


def test_rows_of_numbers_are_no_page_numbers() -> None:
    pages = [page(*(f"{row} {row * number}" for row in range(40))) for number in range(1, 4)]
    assert [len(lines) for lines in without_margins(pages)] == [39, 39, 39]  # the lowest one may be a page number


def test_a_long_paragraph_is_divided() -> None:
    line = "The quick brown fox jumps over the lazy dog, and the dog sleeps on until evening"
    pages = [page(*[line] * 50) for _ in range(60)]
    texts = [text for text, _ in paragraphs(pages) if text]
    assert len(texts) == 3 and {" ".join(texts)} == {" ".join([line] * 3000)}
    assert all(100_000 <= len(text) < 100_000 + 2 * len(line) for text in texts[:2])
