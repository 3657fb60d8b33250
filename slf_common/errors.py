"""The one error that users see."""


class UserError(Exception):
    """A mistake the user can mend: one line that says what, where and what to do. Exit status 2."""
