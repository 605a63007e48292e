"""What becomes of a generation or a selection, and what its tokens were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class KeywordStatus:
    """What became of a keyword of a JSON schema at ``pointer`` (of the schema object it is in).

    ``enforced``: by the grammar, token by token; ``checked``: on the finished value; ``ignored``:
    neither the engine nor the validator knows it.
    """

    pointer: str
    keyword: str
    status: Literal["enforced", "checked", "ignored"]


@dataclass(frozen=True, slots=True)
class FieldScore:
    """Log probability of one scalar of a JSON value, characters ``[start, end)`` of the text.

    ``logprob`` adds up its ``num_tokens`` tokens under the constraint: a forced token counts 0.
    """

    pointer: str
    start: int
    end: int
    logprob: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """One token of a constrained generation.

    ``kind``: ``sampled``; ``forced``: the only possible one, appended without sampling;
    ``steered``: chosen to close the text within its budget; ``healed``: it spells the end of the
    prompt again. ``allowed`` counts the tokens the mask left, ``removed_mass`` is the probability
    it took away; ``logprob`` is natural log under the mask.
    """

    token_id: int
    text: str
    kind: Literal["sampled", "forced", "steered", "healed"]
    allowed: int
    removed_mass: float
    logprob: float


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call, characters ``[start, end)`` of the text. ``arguments`` is JSON text."""

    name: str
    arguments: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its log probability (natural log, of the unmodified distribution)."""

    logprob: float | None
    token_id: int
    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one call. ``prompt = cached + computed`` for a call that ran to its end.

    ``evicted`` counts prompt tokens of this branch that had been computed before and were computed
    again because their pages were evicted meanwhile. ``forced_tokens`` of the completion were the
    only possible ones and appended without sampling.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    evicted_tokens: int = 0
    completion_tokens: int = 0
    forced_tokens: int = 0


@dataclass(frozen=True, slots=True)
class FinishReason:
    """Why a generation ended: ``stop`` (``matched``: the string, pattern or token id; None for the
    end of a constraint), ``length``, or ``abort``."""

    type: Literal["stop", "length", "abort"]
    matched: str | int | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One generated text. ``logprobs``/``top_logprobs`` are empty unless they were asked for.

    Under a constraint: ``enforcement`` and ``warnings`` say what the grammar could do of a schema,
    ``field_scores`` are there with ``return_logprob``, ``fields`` or ``trace``, ``trace`` when it
    was asked for, ``tool_calls`` and ``tool_format`` under ``tools``. ``attempts`` > 1: so many
    times the value, or a part of it, was generated until it was valid.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    top_logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()
    enforcement: tuple[KeywordStatus, ...] = ()
    warnings: tuple[str, ...] = ()
    field_scores: tuple[FieldScore, ...] = ()
    trace: tuple[TokenTrace, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_format: str = ""
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """New text (and tokens) of output ``index`` of a streamed call."""

    call: int
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    top_logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """A generation ended; ``outputs`` has ``n`` entries.

    ``prompt_logprobs`` starts at ``logprob_start_len``; its first entry's logprob is None when that
    position has nothing before it. ``prompt_top_logprobs`` are the likeliest tokens at the same
    positions, with ``top_logprobs_num``.
    """

    call: int
    outputs: tuple[Output, ...]
    usage: Usage
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    prompt_top_logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Chosen:
    """A selection ended. ``scores`` are what the method compares, per option, higher is better;
    ``logprobs`` the options' tokens; ``unconditional`` the same without the branch before them."""

    call: int
    index: int
    scores: tuple[float, ...]
    logprobs: tuple[tuple[TokenLogprob, ...], ...]
    usage: Usage
    unconditional: tuple[tuple[TokenLogprob, ...], ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """A call failed (or, with ``call`` None, a frame or the session).

    ``branch`` names a branch whose operation without a call (open, append) was refused; later
    operations of it fail too.
    """

    call: int | None
    code: str
    message: str
    retryable: bool = False
    branch: int | None = None
