"""The failures a user can cause or meet: one line that names the cause and the cure, and an exit code.

A message names an argument as Python does, between backticks: "`scale` must be positive", "lower `scale`", "pass
`orthogonalize="soft"`". The command line shows the same words as its flags.
"""


class DctError(Exception):
    """Something is wrong with the inputs or the world; the message is the whole story. Exit code 1."""

    exit_code = 1


class UsageError(DctError):
    """The request itself makes no sense (s >= t, an unknown method). Exit code 2.

    Attributes:
        argument: the argument that is wrong, where it is one.
    """

    exit_code = 2

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(message)
        self.argument = argument


class InterruptedWorkError(DctError):
    """The user stopped work whose finished parts are kept. Exit code 130, as shells have it for Ctrl+C."""

    exit_code = 130


class UnwritableError(DctError):
    """A file or folder cannot be written: whatever else is to be written there cannot be either."""


class NonFiniteError(DctError):
    """NaN or infinity where a number is needed."""


class CalibrationError(DctError):
    """The non-linearity ratio never reaches the wanted value.

    Attributes:
        curve: the (scale, ratio) pairs that were measured, by ascending scale.
    """

    def __init__(self, message: str, curve: list[tuple[float, float]]) -> None:
        super().__init__(message)
        self.curve = curve
