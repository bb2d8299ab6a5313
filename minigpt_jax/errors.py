"""What is told to the user: the one exception whose text is meant for their eyes, and never a password."""

import re

_PASSWORD = re.compile(r"(?s)(?<=://)([^\s:/@]*):.*@")  # to the last @: a password may hold one that is not escaped
_IN_QUERY = re.compile(r"(?i)(?<=[?&])((?:ssl)?passw(?:or)?d|pwd)=[^&]*")

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class UserError(Exception):
    """A mistake of the user's: one line that says what was given, what is allowed and what to do.

    The command line prints it on standard error and exits with status 2.
    """


def without_password(text: str) -> str:
    """An address, or a text that ends in one, with *** for its password.

    >>> without_password("postgresql://ann:secret@host/sweeps")
    'postgresql://ann:***@host/sweeps'
    """
    return _IN_QUERY.sub(r"\1=***", _PASSWORD.sub(r"\1:***@", text))


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey.

    Escapes stand for control characters, line feeds and tabs aside, and for surrogates, which cannot be encoded.

    >>> print(printable(chr(27) + "[31mred"))
    \\x1b[31mred
    """
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
