"""Messages: subjects, texts, quoted replies, attachments, charsets."""

import io

import pytest

from llmcli.data.documents import mail
from llmcli.data.documents.extracted import ExtractionError
from tests.data.documents import samples


def test_quotations_are_left_out() -> None:
    first = samples.message("猫について", "Dear all,\nwhere is the cat?\n-- \nAda", charset="iso-2022-jp")
    reply = samples.message("Re: cat", "On Monday, Ada wrote:\n> where is  the cat?\n>\n> > never written\nHere.\n")
    text, skipped = samples.extracted(mail, samples.mbox(first, reply))
    assert text == ("Subject: 猫について\n\nDear all,\nwhere is the cat?\nSubject: Re: cat\n\nHere.\n")
    assert skipped == {"quoted line": 3, "signature": 1}


def test_the_line_that_announces_a_quotation_goes_with_it() -> None:
    for announcement, is_dropped in [
        ("On Mon, 3 Feb 2025 at 10:00, Ada Lovelace <ada@example.org>\nwrote:\n", True),
        ("Am 03.02.25 um 10:00 schrieb Ada:\n", True),
        ("2025年2月3日(月) 10:00 Ada <ada@example.org>:\n\n", True),
        ("That is the question:\n", False),
        ("I wrote this at 10:00\n", False),
    ]:
        first = samples.message("cat", "Where is the cat?")
        reply = samples.message("Re: cat", f"Hello.\n\n{announcement}> Where is the cat?\nHere.\n")
        text, _ = samples.extracted(mail, samples.mbox(first, reply))
        kept = "" if is_dropped else announcement
        assert text.endswith(f"Subject: Re: cat\n\nHello.\n\n{kept}Here.\n"), announcement


def test_a_line_that_begins_with_from_is_no_separator() -> None:
    one = samples.message("A", "text\n\n>From here on\n\nFrom now on\nend")
    assert "\n\nFrom here on\n\nFrom now on\nend\n" in samples.extracted(mail, samples.mbox(one))[0]


def test_attachments_are_counted_and_of_alternatives_the_plain_text_is_read() -> None:
    message = samples.message("Both", "The plain text.")
    message.add_alternative("<p>The <b>HTML</b>.</p>", subtype="html")
    message.add_attachment(b"\x89PNG", maintype="image", subtype="png", filename="cat.png")
    file = io.BytesIO(message.as_bytes())
    assert samples.extracted(mail, file) == ("Subject: Both\n\nThe plain text.\n", {"attachment": 1})


def test_html_is_read_where_there_is_no_plain_text() -> None:
    pytest.importorskip("resiliparse")
    message = samples.message("HTML", "")
    message.set_content("<p>Grüße,<br>Ada</p>", subtype="html", charset="iso-8859-1")
    text, _ = samples.extracted(mail, io.BytesIO(message.as_bytes()))
    assert text == "Subject: HTML\n\nGrüße,\nAda\n"


def test_utf8_is_read_whatever_is_declared() -> None:
    for declared in ["utf-8", "us-ascii", "x-unknown", "shift_jis"]:
        data = f"Subject: A\nContent-Type: text/plain; charset={declared}\n\n猫\n".encode()
        assert samples.extracted(mail, io.BytesIO(data))[0] == "Subject: A\n\n猫\n", declared


def test_damaged_messages_are_counted() -> None:
    nested = b"".join(b"Content-Type: multipart/mixed; boundary=%d\n\n--%d\n" % (n, n) for n in range(3000))
    separator = b"From a@example.org Sat Nov 28 20:00:00 2026\n"
    file = io.BytesIO(separator + nested + b"\n" + separator + b"Subject: B\n\ntext\n")
    text, skipped = samples.extracted(mail, file)
    assert text.endswith("Subject: B\n\ntext\n")
    assert sum(skipped.values()) <= 1
    with pytest.raises(ExtractionError, match="no messages"):
        samples.extracted(mail, io.BytesIO(b""))


def test_long_headers_are_cut() -> None:
    """A parameter takes the standard library time that grows with the square of their number."""
    for header in (
        b"Content-Type: text/plain" + b"; a*0*=x" * 200_000, b"Subject: " + b"=?utf-8?q?a?= " * 200_000,
        b"Subject: " + b"\n a=?utf-8?q?x?=" * 200_000,
    ):  # fmt: skip
        data = b"From: a@b.c\n" + header + b"\n\nhello world\n"
        text, skipped = samples.extracted(mail, io.BytesIO(data))
        assert text.endswith("hello world\n") and skipped == {"header that is too long": 1}
