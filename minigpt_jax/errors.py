"""Messages to the user: the exception that carries them, and what their texts are made of."""

import re
import traceback
from collections.abc import Set as AbstractSet

_PASSWORD = re.compile(r"(?s)(?<=://)([^\s:/@]*):.*@")  # up to the last @, as a password may contain an unescaped one
_IN_QUERY = re.compile(r"(?i)(?<=[?&])((?:ssl)?passw(?:or)?d|pwd)=[^&]*")

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class UserError(Exception):
    """A mistake of the user. The message is one line that says what was given, what is allowed and what to do.

    Commands print the message on standard error and exit with status 2.
    """


def place_of(error: BaseException, files: AbstractSet[str]) -> str | None:
    """Where an error arose in one of these files, as `FILE, line N`; None if it arose in none of them.

    Args:
        files: the names of the files, as their code objects have them.
    """
    if isinstance(error, SyntaxError) and error.filename is not None and error.filename in files:
        return f"{error.filename}, line {error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in files:
            return f"{frame.filename}, line {frame.lineno}"
    return None


def reason_of(error: BaseException) -> str:
    """The type of an error and the first line of its message.

    >>> reason_of(ValueError("no\\nyes"))
    'ValueError: no'
    """
    message = error.msg if isinstance(error, SyntaxError) else str(error)  # the string repeats the file and the line
    return f"{type(error).__name__}: {message.strip()}".split("\n")[0].removesuffix(": ")


def without_password(text: str) -> str:
    """Replaces the password in an address, or in a text that ends in one, by ***.

    >>> without_password("postgresql://ann:secret@host/sweeps")
    'postgresql://ann:***@host/sweeps'
    """
    return _IN_QUERY.sub(r"\1=***", _PASSWORD.sub(r"\1:***@", text))


def printable(text: str) -> str:
    """Makes text safe to print: a terminal shows it and does not interpret it.

    Control characters, except line feeds and tabs, and surrogates, which cannot be encoded, are replaced by escapes.

    >>> print(printable(chr(27) + "[31mred"))
    \\x1b[31mred
    """
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
