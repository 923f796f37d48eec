"""Errors over HTTP, in OpenAI's format."""

from collections.abc import Mapping
from typing import Any

from llmcli.errors import WRONG_USAGE, LLMError
from llmcli.generation.engine.requests import UnavailableError

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}}


class ApiError(Exception):
    """An error with an HTTP status. Its message says what was found, what was wanted and what to do."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers or HEADERS.get(status, {})

    @property
    def body(self) -> dict[str, Any]:
        """Return the JSON of the answer."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def not_loaded(message: str) -> ApiError:
    """Return the error for a served model that cannot be loaded."""
    return ApiError(message, 503, param="model", code="model_not_loaded")


def invalid(param: str, message: str, code: str | None = None) -> ApiError:
    """Return the error for a field of the request; its message begins with the name: "n must be at least 1,
    found 0"."""
    return ApiError(f"{param} {message}", param=param, code=code)


def as_api_error(error: BaseException, status: int = 500) -> ApiError:
    """Convert an exception to the error of a request. `status` is for an LLMError that has no specific status
    and is not about the request's arguments."""
    match error:
        case ApiError():
            return error
        case UnavailableError():
            return ApiError(str(error), 429 if error.code == "queue_full" else 503, code=error.code)
        case LLMError():
            return ApiError(str(error), 400 if error.exit_code == WRONG_USAGE else status)
    if isinstance(error, MemoryError) or "can't start new thread" in str(error):
        message = "the server is out of memory or threads for this request; try again later"
        return ApiError(message, 503, code="unavailable")
    return ApiError("internal server error; the server's log has the details", 500)
