"""The one error a user can meet. It says what was found, what was wanted and what to type."""


class LLMError(Exception):
    """A problem that the user can act on; the door prints it as one line and exits with `exit_code`.

    `exit_code` is 1 for facts about the world (a missing file, a damaged model) and 2 for wrong usage
    (options out of range or at odds with each other).
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def usage(message: str) -> LLMError:
    """An error in how the command was typed.

    >>> usage("--steps must be at least 1").exit_code
    2
    """
    return LLMError(message, exit_code=2)
