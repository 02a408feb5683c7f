"""Every error the project raises on purpose.

Message pattern: *subject: what is wrong (got X, need Y). What to do.* The command line prints the message and
exits with ``exit_code``; nothing in this tree ever reaches a user as a traceback.
"""


class BeiError(Exception):
    """Base of all errors; ``exit_code`` is what the command line ends with."""

    exit_code = 2


class CheckpointError(BeiError):
    """A checkpoint cannot be read: missing, damaged or refused files, or the Hub said no."""


class UnknownArchitecture(BeiError):
    """No adapter serves this checkpoint."""


class UnsupportedConfig(BeiError):
    """An adapter was not written for a value found in the checkpoint's configuration."""


class WeightMismatch(BeiError):
    """Tensors are missing, unread or of the wrong shape or dtype."""


class LoweringError(BeiError):
    """The encoder cannot be expressed for a target."""


class EngineError(BeiError):
    """A backend cannot build or run an engine."""


class EngineLost(EngineError):
    """An engine that will not run again in this process: its device or its context is gone."""


class ParityError(BeiError):
    """Parity cannot be measured (a *failed* gate is data, not an exception)."""


class BundleError(BeiError):
    """A bundle is missing, damaged, tampered with, from a newer version or unverified."""


class InputError(BeiError):
    """A text, pair or token list that cannot be processed as it is."""


class EmptyInput(InputError):
    """A request without any input."""


class WrongTask(InputError):
    """The model is made for another task than the one asked for."""


class ModelNotFound(BeiError):
    """No bundle of that name is served."""


class Overloaded(BeiError):
    """Too much work is queued; worth another try in ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ShuttingDown(BeiError):
    """The server finishes what it has accepted and takes nothing new."""


class DeadlineExceeded(BeiError):
    """A request was not answered in the time its client allows; what was still queued of it is dropped."""
