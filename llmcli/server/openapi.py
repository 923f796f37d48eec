"""The OpenAPI description of the routes, as data. /openapi.json publishes it, and tests check the routes against it."""

from typing import Any


def description() -> dict[str, Any]:
    """The document."""
    return {"openapi": "3.1.0", "info": {"title": "llm serve", "version": "1"}, "paths": {}}
