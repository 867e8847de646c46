"""What a user can mend."""


class UserError(ValueError):
    """A mistake of the user; its message is one sentence that names the field or file.

    Commands print the message alone. Any other exception is a fault of the program and keeps its
    traceback.
    """
