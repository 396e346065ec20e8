"""Every error that Trimaran raises on purpose.

TrimaranError              one line for people; `remedy` says what to do
├── ConfigError            a bad option, file or environment variable
├── ModelFileError         a missing, truncated, foreign or inconsistent GGUF file
├── PlanError              the model cannot fit where it was asked to go
│   └── GpuMemoryError     it was planned to fit, but the GPU's memory ran out
├── RequestError           a client's request that cannot be served (a 4xx)
├── OverloadedError        a bounded queue is full (a 429 or 503)
├── PeerError              another process is missing, gone or too slow
│   └── PeerMismatchError  both are there, but they did not load the same model
└── KernelError            a native kernel refused its input
"""

from __future__ import annotations


class TrimaranError(Exception):
    """A failure that we expected and can explain.

    `str(error)` is one line that says what was wrong and where; `remedy`, when there is one, what to do.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} ({self.remedy})" if self.remedy else message


class ConfigError(TrimaranError):
    """An option, a configuration file or an environment variable is wrong."""

    exit_code = 2


class ModelFileError(TrimaranError):
    """A model file is missing, truncated, not GGUF, of another architecture or inconsistent."""

    exit_code = 3


class PlanError(TrimaranError):
    """The model does not fit the memory that it was given."""

    exit_code = 4


class GpuMemoryError(PlanError):
    """The GPU's memory ran out although the plan had said that it is enough."""


class RequestError(TrimaranError):
    """A request that can never be served as it stands.

    Args:
        message: one line for the client.
        code: a short machine-readable reason, e.g. ``context_length_exceeded``.
        param: the request's field at fault, when there is one.
    """

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class OverloadedError(TrimaranError):
    """A bounded queue is full; `retry_after` is a guess in seconds."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class PeerError(TrimaranError):
    """Another process of the system is not there, went away or does not answer in time."""

    exit_code = 5


class PeerMismatchError(PeerError):
    """Two processes loaded different models or speak different protocol versions."""

    exit_code = 6


class KernelError(TrimaranError):
    """A native kernel refused its input."""
