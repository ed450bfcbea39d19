"""The one exception a user is meant to read."""


class UserError(Exception):
    """Bad input from the user: one line naming the value, the rule and the way out.

    Entry points print it as ``error: ...`` and exit with code 2, without a stack trace. A
    programming error is never wrapped in it.
    """
