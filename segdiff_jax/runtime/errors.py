"""What a user can mend."""

from collections.abc import Sequence


class UserError(ValueError):
    """A mistake of the user; its message is one sentence that names the field or file.

    Commands print the message alone. Any other exception is a fault of the program and keeps its
    traceback.
    """


def some(things: Sequence, most: int = 5) -> str:
    """The first things of a list, for a message."""
    return ", ".join(map(str, things[:most])) + ", ..." * (len(things) > most)
