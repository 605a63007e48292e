"""Every error radixrt raises.

RadixError
├── InvalidArgument (ValueError)      an argument of yours; names it and the way out
├── ConfigError (ValueError)          an option or a combination of options that cannot work
├── ModelError                        a model directory that cannot be served
│   ├── UnsupportedModel              architecture or feature not implemented; lists what is
│   └── WeightsMismatch               missing, left-over or misshaped tensors; lists them
├── ProtocolError                     a frame that is not a message of the protocol
├── TransportError                    the connection, not the call
│   ├── RuntimeUnavailable            nobody answers at the endpoint within the deadline
│   └── KeysRefused                   the endpoint wants other CURVE keys, or none
├── OutOfPages                        the page allocator is empty and nothing is evictable
├── JournalError                      a batch journal that is unreadable or of another run
├── CallFailed                        a call ended in ``Failed``; ``code`` says how
│   ├── Unsupported                   the runtime cannot do this (yet)
│   ├── Unauthorized                  the key is missing, wrong, or not for this
│   ├── PromptTooLong                 prompt and budget exceed the context or the KV memory
│   ├── Overloaded                    refused by admission control; try again later
│   ├── Cancelled                     by the caller, by Ctrl-C or by closing an iterator
│   ├── DeadlineExceeded              not finished in time
│   ├── EngineFault                   the engine process died or raised
│   ├── BranchFailed                  an earlier operation of the same branch failed
│   ├── ConstraintFailed              a constraint that its engine gave up on, or is too slow for
│   ├── ValueRefused                  no attempt gave a value that its type or schema accepts
│   └── BadRequest                    the runtime refused the call's arguments
└── ProgramError                      the first failure of a branch, with op and line
"""

from __future__ import annotations

from typing import ClassVar


class RadixError(Exception):
    """Base class of every error raised by radixrt."""


class InvalidArgument(RadixError, ValueError):
    """An argument has a value that cannot be used.

    ``InvalidArgument("top_p", 1.5, "use a number in (0, 1]")``
    """

    def __init__(self, argument: str, value: object, way_out: str) -> None:
        self.argument = argument
        self.value = value
        self.way_out = way_out
        super().__init__(f"{argument}={_shorten(value)}: {way_out}")


class ConfigError(RadixError, ValueError):
    """An option, or a combination of options, that cannot work."""


class ModelError(RadixError):
    """A model directory that cannot be served."""


class UnsupportedModel(ModelError):
    """The architecture or a feature of it is not implemented; the message lists what is."""


class WeightsMismatch(ModelError):
    """Missing, left-over or wrongly shaped tensors; the message lists them."""


class ProtocolError(RadixError):
    """A frame that is not a message of the protocol."""


class TransportError(RadixError):
    """The connection to the runtime failed."""


class RuntimeUnavailable(TransportError):
    """Nobody answers at the endpoint within the deadline."""


class KeysRefused(TransportError):
    """The endpoint wants CURVE keys that were not given, does not know those that were, or takes
    none."""


class OutOfPages(RadixError):
    """More KV pages were asked for than are free."""


class JournalError(RadixError):
    """A batch journal that cannot be read or that does not belong to this run."""


class CallFailed(RadixError):
    """A call ended in ``Failed``.

    ``code`` is the wire's word for the reason, ``retryable`` whether the same call can succeed
    later.
    """

    code: ClassVar[str] = "failed"

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        self.retryable = retryable
        super().__init__(message)


class Unsupported(CallFailed):
    """The runtime cannot do this, or cannot do it yet."""

    code = "unsupported"


class Unauthorized(CallFailed):
    """The endpoint refuses the key, or it was given none."""

    code = "unauthorized"


class PromptTooLong(CallFailed):
    """Prompt and token budget exceed the model's context or the KV memory."""

    code = "too_long"


class Overloaded(CallFailed):
    """Admission control refused the call; the same call can succeed later."""

    code = "overloaded"


class Cancelled(CallFailed):
    """The call was cancelled by its caller."""

    code = "cancelled"


class DeadlineExceeded(CallFailed):
    """The call did not finish within its deadline."""

    code = "deadline"


class EngineFault(CallFailed):
    """The engine died, or raised while it worked on the call."""

    code = "engine_fault"


class BranchFailed(CallFailed):
    """An earlier operation of the same branch failed, so this one was never started."""

    code = "branch_failed"


class ConstraintFailed(CallFailed):
    """The engine that enforces a constraint gave up on it: too many states, or too slow."""

    code = "constraint"


class ValueRefused(CallFailed):
    """A value was generated, and refused by its type's own code or its schema, as often as was
    allowed; the message has the last reason."""

    code = "value_refused"


class BadRequest(CallFailed):
    """The runtime refused the call's arguments."""

    code = "bad_request"


FAILURES: dict[str, type[CallFailed]] = {
    failure.code: failure
    for failure in (
        CallFailed,
        Unsupported,
        Unauthorized,
        PromptTooLong,
        Overloaded,
        Cancelled,
        DeadlineExceeded,
        EngineFault,
        BranchFailed,
        ConstraintFailed,
        ValueRefused,
        BadRequest,
    )
}
"""Wire code → exception class."""


def failure(code: str, message: str, *, retryable: bool = False) -> CallFailed:
    """Return the exception for a wire code; an unknown code gives a plain ``CallFailed``."""
    return FAILURES.get(code, CallFailed)(message, retryable=retryable)


class ProgramError(RadixError):
    """The first failure of a branch, raised where a value of it is read.

    ``op`` names the operation (``gen("answer")``), ``where`` its source line (``agent.py:12``). The
    failure itself is ``__cause__``.
    """

    def __init__(self, op: str, where: str, cause: BaseException) -> None:
        self.op = op
        self.where = where
        self.cause = cause
        super().__init__(f"{op} at {where} failed: {cause}")
        self.__cause__ = cause


def _shorten(value: object, limit: int = 80) -> str:
    try:
        text = repr(value)
    except RecursionError:  # nested too deeply to be shown
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"
