r"""Templates that join columns of a record into one text: "{title}\n{body}".

Names of columns stand in braces, without the conversions and formats of `str.format`; a brace of the text is doubled.
"""

import re
from collections.abc import Sequence

from llmcli.errors import brief, usage

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_EXAMPLE = r"'{title}\n{body}'"


def unescaped(template: str) -> str:
    r"""Return a template as it was typed with line ends and tabs in place of \n and \t, which a shell passes on.

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
    for found in _FIELD.finditer(template):
        if found[1] is not None:
            columns[found[1].strip()] = None
        elif len(found[0]) == 1:
            raise usage(
                f"`template`: the brace at character {found.start() + 1} of {brief(template)} has no partner; wanted "
                f"columns in braces, as in {_EXAMPLE}, and each brace of the text doubled"
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
    return _FIELD.sub(lambda found: found[0][0] if found[1] is None else by_name[found[1].strip()], template)
