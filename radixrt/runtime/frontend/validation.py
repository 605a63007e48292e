"""Checks of what a client asks for, before anything is computed."""

from __future__ import annotations

import json
import math

from radixrt.errors import InvalidArgument, PromptTooLong
from radixrt.protocol import Constraint, FieldSampling, Hold, Part, Sampling, Select

MAX_OUTPUTS = 128
MAX_STOPS = 64
MAX_STOP_LEN = 4096
MAX_TOP_LOGPROBS = 128
MAX_BIASES = 4096
MAX_OPTIONS = 1024
MAX_TTL_S = 86_400.0
MAX_PRIORITY = 3
MAX_CONSTRAINT_LEN = 1_000_000
MAX_INDENT = 16
MAX_RETRIES = 32
MAX_EXCLUDED = 64
MAX_FIELDS = 256


def check_sampling(sampling: Sampling, vocab_size: int) -> None:
    """Raise ``InvalidArgument`` for the first field with a value that cannot be used."""
    if sampling.max_tokens is None:
        _at_least("min_tokens", sampling.min_tokens, 0)
    else:
        _at_least("max_tokens", sampling.max_tokens, 0, "0 computes the prompt and generates none")
        if not 0 <= sampling.min_tokens <= sampling.max_tokens:
            raise InvalidArgument(
                "min_tokens",
                sampling.min_tokens,
                f"use a number from 0 to max_tokens ({sampling.max_tokens})",
            )
    if not 1 <= sampling.n <= MAX_OUTPUTS:
        raise InvalidArgument("n", sampling.n, f"use a number from 1 to {MAX_OUTPUTS}")
    _within("temperature", sampling.temperature, 0.0, 100.0)
    if not 0.0 < sampling.top_p <= 1.0:
        raise InvalidArgument("top_p", sampling.top_p, "use a number in (0, 1]; 1 keeps all")
    _at_least("top_k", sampling.top_k, 0, "0 keeps all tokens")
    _within("min_p", sampling.min_p, 0.0, 1.0)
    _within("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)
    _within("presence_penalty", sampling.presence_penalty, -2.0, 2.0)
    if not 0.0 < sampling.repetition_penalty <= 100.0:
        raise InvalidArgument(
            "repetition_penalty", sampling.repetition_penalty, "use a number in (0, 100]; 1 is none"
        )
    _check_biases(sampling.logit_bias, vocab_size)
    if sampling.seed is not None and not 0 <= sampling.seed < 2**63:
        raise InvalidArgument("seed", sampling.seed, "use an integer from 0 to 2**63 - 1")
    _check_stops(sampling, vocab_size)
    if not 0 <= sampling.top_logprobs_num <= min(MAX_TOP_LOGPROBS, vocab_size):
        raise InvalidArgument(
            "top_logprobs_num", sampling.top_logprobs_num, f"use 0 to {MAX_TOP_LOGPROBS}"
        )
    if sampling.top_logprobs_num and not sampling.return_logprob:
        raise InvalidArgument(
            "top_logprobs_num", sampling.top_logprobs_num, "set return_logprob=True with it"
        )
    _at_least("logprob_start_len", sampling.logprob_start_len, -1, "-1 asks for none of the prompt")


def check_parts(parts: tuple[Part, ...], vocab_size: int) -> None:
    """Raise ``InvalidArgument`` for token ids that the model does not have and half characters."""
    for part in parts:
        if part.kind == "tokens":
            _check_ids("token_ids", part.token_ids, vocab_size)
        else:
            _check_text("text", part.text)
        if part.kind == "tools":
            _check_tools(part.text)


def check_ids(token_ids: tuple[int, ...], vocab_size: int) -> None:
    """Raise ``InvalidArgument`` for token ids that the model does not have."""
    _check_ids("token_ids", token_ids, vocab_size)


def _check_tools(text: str) -> None:
    try:
        definitions = json.loads(text)
    except (ValueError, RecursionError):
        definitions = None
    if not isinstance(definitions, list) or not all(isinstance(d, dict) for d in definitions):
        raise InvalidArgument("tools", text, "use a JSON array of definitions")
    if len(text) > MAX_CONSTRAINT_LEN:
        raise InvalidArgument(
            "tools", f"{len(text)} characters", f"use at most {MAX_CONSTRAINT_LEN}"
        )


def check_options(select: Select) -> None:
    """Raise ``InvalidArgument`` for options that nothing can be chosen from."""
    if not 1 <= len(select.options) <= MAX_OPTIONS:
        raise InvalidArgument("options", len(select.options), f"give 1 to {MAX_OPTIONS} options")
    _at_least("max_tokens", select.max_tokens, 1)
    for option in select.options:
        if isinstance(option, Constraint):
            check_constraint(option)
            continue
        if not option:
            raise InvalidArgument("options", list(select.options), "an option cannot be empty")
        _check_text("options", option)


def check_constraint(constraint: Constraint) -> None:
    """Raise ``InvalidArgument`` for a constraint whose fields cannot be used; whether its grammar
    can be compiled is the engine's to say."""
    _check_text(constraint.kind, constraint.text)
    _check_text("after", constraint.after)
    if len(constraint.text) > MAX_CONSTRAINT_LEN:
        raise InvalidArgument(
            constraint.kind,
            f"{len(constraint.text)} characters",
            f"use at most {MAX_CONSTRAINT_LEN}",
        )
    if constraint.indent is not None and not 0 <= constraint.indent <= MAX_INDENT:
        raise InvalidArgument("indent", constraint.indent, f"use 0 to {MAX_INDENT}, or None")
    if not 0 <= constraint.retries <= MAX_RETRIES:
        raise InvalidArgument("retries", constraint.retries, f"use 0 to {MAX_RETRIES}")
    if len(constraint.after) > MAX_STOP_LEN:
        raise InvalidArgument("after", constraint.after, f"use at most {MAX_STOP_LEN} characters")
    if len(constraint.exclude) > MAX_EXCLUDED:
        raise InvalidArgument("exclude", len(constraint.exclude), f"give at most {MAX_EXCLUDED}")
    for text in constraint.exclude:
        _check_text("exclude", text)
    if len(constraint.fields) > MAX_FIELDS:
        raise InvalidArgument("fields", len(constraint.fields), f"give at most {MAX_FIELDS}")
    for field in constraint.fields:
        _check_field(field)


def _check_field(field: FieldSampling) -> None:
    name = f"fields[{field.pointer}]"
    _check_text("fields", field.pointer)
    if field.pointer and not field.pointer.startswith("/"):
        raise InvalidArgument("fields", field.pointer, "use a JSON pointer, such as /name or /*/id")
    if field.temperature is not None:
        _within(f"{name}.temperature", field.temperature, 0.0, 100.0)
    if field.top_p is not None and not 0.0 < field.top_p <= 1.0:
        raise InvalidArgument(f"{name}.top_p", field.top_p, "use a number in (0, 1]")
    if field.top_k is not None:
        _at_least(f"{name}.top_k", field.top_k, 0)
    if field.min_p is not None:
        _within(f"{name}.min_p", field.min_p, 0.0, 1.0)
    if field.max_tokens is not None:
        _at_least(f"{name}.max_tokens", field.max_tokens, 1)


def check_deadline(deadline_s: float | None) -> None:
    """Raise ``InvalidArgument`` for a deadline that is no positive number of seconds."""
    if deadline_s is not None and not (math.isfinite(deadline_s) and deadline_s > 0):
        raise InvalidArgument("deadline_s", deadline_s, "use a positive number of seconds, or None")


def check_length(prompt: int, budget: int, max_context: int, budget_name: str) -> None:
    """Raise ``PromptTooLong`` when prompt and budget exceed the context."""
    if prompt + budget > max_context:
        room = max_context - prompt
        way_out = f"lower {budget_name} to at most {room}" if room >= 1 else "shorten the prompt"
        raise PromptTooLong(
            f"the prompt has {prompt} tokens and {budget_name} is {budget}: {prompt + budget} "
            f"exceed the context of {max_context} by {prompt + budget - max_context}; {way_out}"
        )


def check_pause(pause_s: float | None) -> None:
    """Refuse an expected pause that is no time."""
    if pause_s is not None and not 0 <= pause_s < math.inf:
        raise InvalidArgument("pause_s", pause_s, "use seconds of at least 0, or leave it out")


def check_hold(hold: Hold) -> None:
    """Refuse a lease of no time or no priority."""
    _within("ttl_s", hold.ttl_s, 0, MAX_TTL_S)
    if not 0 <= hold.priority <= MAX_PRIORITY:
        raise InvalidArgument("priority", hold.priority, f"use 0 to {MAX_PRIORITY}")


def _check_biases(biases: tuple[tuple[int, float], ...], vocab_size: int) -> None:
    if len(biases) > MAX_BIASES:
        raise InvalidArgument("logit_bias", len(biases), f"give at most {MAX_BIASES} biases")
    _check_ids("logit_bias", tuple(token_id for token_id, _ in biases), vocab_size)
    for token_id, bias in biases:
        if not math.isfinite(bias):
            raise InvalidArgument("logit_bias", {token_id: bias}, "use finite numbers")


def _check_stops(sampling: Sampling, vocab_size: int) -> None:
    for name, stops in (("stop", sampling.stop), ("stop_regex", sampling.stop_regex)):
        if len(stops) > MAX_STOPS:
            raise InvalidArgument(name, len(stops), f"give at most {MAX_STOPS}")
        for stop in stops:
            if not 1 <= len(stop) <= MAX_STOP_LEN:
                raise InvalidArgument(name, stop, f"use 1 to {MAX_STOP_LEN} characters")
            _check_text(name, stop)
    if len(sampling.stop_token_ids) > MAX_BIASES:
        raise InvalidArgument(
            "stop_token_ids", len(sampling.stop_token_ids), f"give at most {MAX_BIASES}"
        )
    _check_ids("stop_token_ids", sampling.stop_token_ids, vocab_size)


def _check_ids(name: str, token_ids: tuple[int, ...], vocab_size: int) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        bad = next(i for i in token_ids if not 0 <= i < vocab_size)
        raise InvalidArgument(name, bad, f"token ids of this model are 0 to {vocab_size - 1}")


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(name, text, "it holds half a surrogate pair, no text") from None


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses nan
        raise InvalidArgument(name, value, f"use a number from {low:g} to {high:g}")


def _at_least(name: str, value: int, low: int, meaning: str = "") -> None:
    if not low <= value < 2**31:
        way_out = f"use an integer of at least {low}"
        raise InvalidArgument(name, value, f"{way_out}; {meaning}" if meaning else way_out)
