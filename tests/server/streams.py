"""Reads the server-sent events of a test's answer."""

import json
from typing import Any


def events(text: str) -> list[dict[str, Any]]:
    """The objects of a stream, which ends with [DONE]."""
    blocks = text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""], blocks[-3:]
    assert all(block.startswith(("data: ", ":")) for block in blocks[:-1])
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2] if not block.startswith(":")]


def choices(text: str, index: int = 0) -> list[dict[str, Any]]:
    """The chunks of one choice of a stream."""
    return [choice for event in events(text) for choice in event["choices"] if choice["index"] == index]
