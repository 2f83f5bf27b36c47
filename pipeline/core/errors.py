"""The errors that reach a person."""


class UserError(Exception):
    """A mistake that the user can mend; the message names the bad value and the mend.

    The command line prints it as one line and exits with 2.
    """
