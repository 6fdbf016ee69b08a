"""The exceptions a caller may want to catch. API misuse stays ``ValueError`` or ``TypeError``."""


class FineScopeError(Exception):
    """Base of every error that FineScope raises on purpose about data, files or configuration.

    The message names the thing that is wrong, the place (file, line, row, option) and the remedy.
    """


class InputError(FineScopeError, ValueError):
    """Bad data or a bad option from the user: the run can't go on until it is corrected."""


class StoreError(FineScopeError):
    """A file of ours is missing, truncated, corrupt, from another input, or can't be written."""
