"""Text that Python can hold and UTF-8 cannot."""


def without_surrogates(text: str) -> str:
    """The text with unpaired surrogates, which UTF-8 cannot hold, as question marks."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text
