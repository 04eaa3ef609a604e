"""The errors of this project that a user can mend. No torch in this module."""

import errno


class UserError(Exception):
    """Something the user can mend; stages show its message alone, without a traceback."""


class ConfigError(UserError, ValueError):
    """A mistake in a configuration, a command line or a file; the message names it and the remedy."""


class RunError(UserError, RuntimeError):
    """A run that went wrong; the message says why."""


def check(holds: object, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not holds:
        raise ConfigError(message)


REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Of a disk that is full or does not let itself be written."""


def refusal(e: OSError) -> str:
    """What a disk refused, and the remedy, in one line."""
    return f"{e.filename or 'disk'}: {e.strerror}; make room or give write access, and type the same command again"
