"""What is told to the user: the one exception whose text is meant for their eyes, and never a password."""

import re

_PASSWORD = re.compile(r"(?s)(?<=://)([^\s:/@]*):.*@")  # to the last @: a password may hold one that is not escaped
_IN_QUERY = re.compile(r"(?i)(?<=[?&])((?:ssl)?passw(?:or)?d|pwd)=[^&]*")


class UserError(Exception):
    """A mistake of the user's: one line that says what was given, what is allowed and what to do.

    The command line prints it on standard error and exits with status 2.
    """


def without_password(text: str) -> str:
    """An address, or a text that ends in one, with *** for its password."""
    return _IN_QUERY.sub(r"\1=***", _PASSWORD.sub(r"\1:***@", text))
