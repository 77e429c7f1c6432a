"""The one exception that means: the user can mend this, so say it in one line and leave everything as it was."""


class UserError(Exception):
    """Bad input. `common.command_line.run` prints its message on standard error and exits with status 1."""
