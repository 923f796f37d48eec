"""The texts of the pages in each language."""

import re
from collections.abc import Iterator

from tests.pages.live import TEXTS


def placeholders(texts: dict[str, dict[str, str]]) -> Iterator[tuple[str, str, set[str], bool]]:
    """Yield (section, name of a text, the values in it, whether it is empty), without the rules for records, which
    English does not need."""
    for section, own in texts.items():
        if section != "record":
            for name, text in own.items():
                yield section, name, set(re.findall(r"\{\w+\}", text)), not text.strip()


def test_every_language_has_the_same_texts_with_the_same_values() -> None:
    english, *others = (list(placeholders(texts)) for texts in TEXTS.values())
    assert len(english) > 200 and others == [english] and not any(is_empty for *_, is_empty in english)
