"""The one error a user is meant to read."""


class InputError(ValueError):
    """Bad input: one sentence that names the file, the field and the remedy.

    The command line prints it on stderr and exits with code 2; nothing has been written by then.
    """
