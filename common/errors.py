"""An error caused by user input."""


class UserError(Exception):
    """`common.command_line.run` prints its message as one line, without a traceback, and exits with status 1."""
