"""Messages to the user: the exception that carries them, and what their texts are made of."""

import re
import traceback
from collections.abc import Set as AbstractSet

_PASSWORD = re.compile(r"(?s)(?<=://)([^\s:/@]*):.*@")  # up to the last @, as a password may contain an unescaped one
_IN_QUERY = re.compile(r"(?i)(?<=[?&])((?:ssl)?passw(?:or)?d|pwd)=[^&]*")

_SECRET_IN_QUERY = re.compile(
    r"(?i)[?&](?:[^=&]*(?:token|secret|passw|signature|credential)[^=&]*|pwd|sig|auth|jwt|(?:\w*[-_])?(?:api|access)?key(?:id)?"
    r"|\w*access(?:key)?id)="
)
_SECRET_BEFORE_HOST = re.compile(r"://(?:[^/?#@]*@|[^/@]*:(?!\d*(?:[/?#]|$))[^@]*@)")  # a password may contain a slash
_REVISION = re.compile(r"hf://[^/:@]*@")  # of a model of the Hugging Face Hub

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


def has_credentials(address: str) -> bool:
    """Whether an address holds a user's name, a password, a token or a signature.

    >>> has_credentials("https://ann:secret@host/a.txt"), has_credentials("https://host/a.txt?X-Amz-Signature=1f")
    (True, True)
    >>> has_credentials("https://host:8080/a@b.txt?download=true"), has_credentials("hf://datasets/a/b@main/c.parquet")
    (False, False)
    """
    if _SECRET_IN_QUERY.search(address):
        return "://" in address
    return bool(_SECRET_BEFORE_HOST.search(address)) and not _REVISION.match(address)


def refuse_credentials(address: str, flag: str) -> None:
    """Raises UserError, without a word of the credentials, if the address that the user gave by a flag holds any."""
    if has_credentials(address):
        raise UserError(
            f"{flag} {address.partition('://')[0]}://…: this address holds a user, a password, a token or a key, and "
            "addresses are kept in config.json; leave it out and set HF_TOKEN, AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS, or write ~/.netrc for https://"
        )


def printable(text: str) -> str:
    """Makes text safe to print: a terminal shows it and does not interpret it.

    Control characters, except line feeds and tabs, and surrogates, which cannot be encoded, are replaced by escapes.

    >>> print(printable(chr(27) + "[31mred"))
    \\x1b[31mred
    """
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
