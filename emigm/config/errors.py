"""The errors of this project that a user can mend. No torch in this module."""


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
