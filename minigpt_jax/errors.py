"""Messages to the user: the exception that carries them, and functions that make text safe to print."""

import re

_PASSWORD = re.compile(r"(?s)(?<=://)([^\s:/@]*):.*@")  # up to the last @, as a password may contain an unescaped one
_IN_QUERY = re.compile(r"(?i)(?<=[?&])((?:ssl)?passw(?:or)?d|pwd)=[^&]*")

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class UserError(Exception):
    """A mistake of the user. The message is one line that says what was given, what is allowed and what to do.

    Commands print the message on standard error and exit with status 2.
    """


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
