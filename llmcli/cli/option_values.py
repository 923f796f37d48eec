"""Values of options, converted without pydantic where they are plainly valid.

Typer, from 0.27 on, converts every value with pydantic, also those of options that were not given. To import it takes
a third of the time of a short command. A value that is not plainly valid is left to Typer, which words the error.
"""

import os
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typer._click import Context, Parameter

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?")
_UNKNOWN = object()


def convert_directly(params: "Iterable[Parameter]") -> None:
    """Have the options and arguments of a command converted by `_converted` where it knows how."""
    for param in params:
        # a Typer without type descriptors has no pydantic; a method in the instance is ours
        if hasattr(param, "type_descriptor") and "process_value" not in vars(param):
            param.process_value = partial(_process_value, param, param.process_value)  # type: ignore[method-assign]


def _process_value(param: Any, by_typer: Any, context: "Context", value: Any) -> Any:
    """As Typer's `process_value`: the converted value, passed through the callback of the option."""
    converted = _converted(param, value)
    if converted is _UNKNOWN:
        return by_typer(context, value)
    return converted if param.callback is None else param.callback(context, param, converted)


def _converted(param: Any, value: Any) -> Any:
    """The value that Typer would make of it, or _UNKNOWN."""
    annotation, info = param.type_descriptor.annotation, param.type_descriptor.parameter_info
    if value is None and not param.required:
        return () if param.multiple or param.nargs == -1 else None
    if info.parser is not None or (param.required and not value):
        return _UNKNOWN
    if annotation is str and type(value) is str:
        return value
    if annotation == list[str] and isinstance(value, (list, tuple)) and {*map(type, value)} <= {str}:
        return list(value)
    if annotation is Path and isinstance(value, (str, Path)):
        is_readable = os.access(value, os.R_OK) or not os.access(value, os.F_OK)
        return Path(value) if is_readable and not (info.exists or info.resolve_path) else _UNKNOWN
    if annotation not in (int, float):
        return _UNKNOWN
    pattern = _INTEGER if annotation is int else _NUMBER
    if type(value) is str and pattern.fullmatch(value):
        value = annotation(value)
    in_range = type(value) is annotation and not info.clamp
    in_range = in_range and (info.min is None or value >= info.min) and (info.max is None or value <= info.max)
    return value if in_range else _UNKNOWN
