"""Errors over HTTP, in OpenAI's shape.

An LLMError of the layers below becomes one here; its message says what was found, what was wanted and what to do.
"""

from collections.abc import Mapping
from typing import Any

from llmcli.errors import LLMError
from llmcli.server.engine.requests import StoppingError, UnavailableError

CLIENT_LEFT = 499  # the status in the log when nobody waits for the answer any more
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer other than the one that was asked for."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        closes_connection: bool = False,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self._closes_connection = closes_connection

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> Mapping[str, str]:
        """The HTTP headers that go with it."""
        if self._closes_connection:
            return {"Connection": "close"}
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status in (429, 503) else {}


class ModelLoadError(LLMError):
    """A served model that cannot be loaded. Its message, which names files, is for the log."""


class ModelFileError(ModelLoadError):
    """The file of a served model has changed. The message names the model alone, and is for clients too."""


def invalid(param: str, message: str, code: str | None = None) -> ApiError:
    """The error for a field of the request; the message begins with its name.

    >>> invalid("n", "must be at least 1, found 0").body["error"]["message"]
    'n must be at least 1, found 0'
    """
    return ApiError(f"{param} {message}", param=param, code=code)


def failed(error: BaseException) -> ApiError:
    """The error for a request that was valid and could not be answered."""
    if isinstance(error, ModelFileError):
        return ApiError(str(error), 503, param="model", code="model_not_loaded")
    if isinstance(error, ModelLoadError):
        return ApiError(
            "the model could not be loaded; the server's log says why", 503, param="model", code="model_not_loaded"
        )
    if isinstance(error, StoppingError):
        return ApiError(str(error), 503, code="stopping")
    if isinstance(error, UnavailableError):
        return ApiError(str(error), 503, code="unavailable")
    if isinstance(error, MemoryError) or "can't start new thread" in str(error):
        return ApiError("the server has no memory or no thread left for this request; try again later", 503,
                        code="unavailable")  # fmt: skip
    if isinstance(error, LLMError) and error.__cause__ is None:  # one with a cause is not meant for users
        return ApiError(str(error), 500)
    return ApiError("the server made an error; its log has the details", 500)
