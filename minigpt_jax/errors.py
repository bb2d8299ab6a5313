"""The one exception whose text is meant for the user's eyes."""


class UserError(Exception):
    """A mistake of the user's: one line that says what was given, what is allowed and what to do.

    The command line prints it on standard error and exits with status 2.
    """
