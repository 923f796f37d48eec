r"""Templates that join columns of a record into one text: "{title}\n{body}".

Names of columns are in braces, without the conversions and formats of `str.format`; literal braces are
doubled.
"""

import re
from collections.abc import Sequence

from llmcli.errors import brief, usage

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_EXAMPLE = r"'{title}\n{body}'"


def unescaped(template: str) -> str:
    r"""Replace \n and \t in a template, which a shell passes on unchanged, by line ends and tabs.

    >>> unescaped(r"{a}\n{b}\\")
    '{a}\n{b}\\'
    """
    return re.sub(r"\\([nt\\])", lambda escape: {"n": "\n", "t": "\t"}.get(escape[1], "\\"), template)


def columns_of(template: str) -> tuple[str, ...]:
    """Return the columns that a template names, in order. Raises LLMError if there are none, or for a single
    brace.

    >>> columns_of("{title}: {{{body}}} {title}")
    ('title', 'body')
    """
    columns: dict[str, None] = {}
    for match in _FIELD.finditer(template):
        if match[1] is not None:
            columns[match[1].strip()] = None
        elif len(match[0]) == 1:
            raise usage(
                f"`template`: the brace at character {match.start() + 1} of {brief(template)} is unmatched; "
                f"wanted columns in braces, as in {_EXAMPLE}, and each brace of the text doubled"
            )
    if not columns or "" in columns:
        raise usage(f"`template` must name columns in braces, as in {_EXAMPLE}; found {brief(template)}")
    return tuple(columns)


def fill(template: str, values: Sequence[str]) -> str:
    """Fill a template with the values of its columns, in their order.

    >>> fill("{title}: {{{body}}} {title}", ["A", "B"])
    'A: {B} A'
    """
    by_name = dict(zip(columns_of(template), values, strict=True))
    return _FIELD.sub(lambda match: match[0][0] if match[1] is None else by_name[match[1].strip()], template)
