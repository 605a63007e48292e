"""Which calls the engine refuses before it computes anything for them."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
from numpy.typing import NDArray

from radixrt.runtime.wire import Run, Score, TokenSampling, unpack_ids

Int32 = NDArray[np.int32]
_UNSIGNED = {4: np.uint32, 8: np.uint64}


class RefusedError(Exception):
    """A call that is answered at once with ``EngineFailed``."""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        self.code = code
        self.retryable = retryable
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one call can have: tokens of the model's context and of the KV pool, ids below
    ``vocab_size``; and how many calls may wait. The checks raise ``RefusedError``."""

    max_context: int
    kv_tokens: int
    vocab_size: int
    max_queue: int

    def check_queue(self, num_waiting: int) -> None:
        """Refuse for now when as many calls wait as may."""
        if num_waiting >= self.max_queue:
            raise RefusedError(
                "overloaded",
                f"{num_waiting} calls are waiting, max_queue={self.max_queue}: try again later",
                retryable=True,
            )

    def check_run(self, call: Run) -> Int32:
        """Return the prompt of a call that can be served."""
        prompt = self._ids("token_ids", unpack_ids(call.token_ids))
        if len(prompt) == 0:
            raise RefusedError("bad_request", "token_ids is empty: a prompt has at least one token")
        self._check_sampling(call.sampling)
        self._check_length(len(prompt), call.sampling.max_tokens)
        return prompt

    def check_score(self, call: Score) -> Int32:
        """Return the prompt of a call that can be served."""
        prompt = self._ids("token_ids", unpack_ids(call.token_ids))
        plain = self._ids("unconditional_prefix", np.array(call.unconditional_prefix, np.int64))
        if len(prompt) == 0 or (call.unconditional and len(plain) == 0):
            raise RefusedError(
                "bad_request",
                "token_ids or unconditional_prefix is empty: options are scored after at least one "
                "token",
            )
        if not call.options or not all(call.options):
            raise RefusedError(
                "bad_request", "options: give at least one, each with at least one token"
            )
        for option in call.options:
            self._ids("options", np.array(option, np.int64))
        longest = max(len(option) for option in call.options)
        self._check_length(max(len(prompt), len(plain)), longest)
        return prompt

    def _ids(self, name: str, ids: NDArray[np.int32] | NDArray[np.int64]) -> Int32:
        # A negative number is a large one without its sign: one pass finds both.
        if len(ids) and int(ids.view(_UNSIGNED[ids.itemsize]).max()) >= self.vocab_size:
            wrong = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise RefusedError(
                "bad_request", f"{name} contains {wrong}: ids are 0 … {self.vocab_size - 1}"
            )
        return ids.astype(np.int32, copy=False)

    def _check_sampling(self, sampling: TokenSampling) -> None:
        if sampling.logit_bias:
            self._ids("logit_bias", np.array([token for token, _ in sampling.logit_bias], np.int64))
        if sampling.stop_token_ids:
            self._ids("stop_token_ids", np.array(sampling.stop_token_ids, np.int64))
        top_n = sampling.top_logprobs_num
        for name, is_right, way_out in (
            ("max_tokens", sampling.max_tokens >= 0, "use 0 or more"),
            ("temperature", 0 <= sampling.temperature < inf, "use a number of at least 0"),
            ("top_p", 0 < sampling.top_p <= 1, "use a number in (0, 1]"),
            ("top_k", 0 <= sampling.top_k < 2**31, "use 0 (all tokens) or more"),
            ("min_p", 0 <= sampling.min_p <= 1, "use a number in [0, 1]"),
            ("repetition_penalty", 0 < sampling.repetition_penalty < inf, "use more than 0"),
            ("frequency_penalty", isfinite(sampling.frequency_penalty), "use a number"),
            ("presence_penalty", isfinite(sampling.presence_penalty), "use a number"),
            ("top_logprobs_num", 0 <= top_n <= self.vocab_size, f"use 0 … {self.vocab_size}"),
        ):
            if not is_right:
                raise RefusedError("bad_request", f"{name}={getattr(sampling, name)}: {way_out}")

    def _check_length(self, prompt_len: int, max_tokens: int) -> None:
        total = prompt_len + max_tokens
        if total <= self.max_context and total <= self.kv_tokens:
            return
        asked = f"a prompt of {prompt_len} tokens and max_tokens={max_tokens} make {total}"
        if total > self.max_context:
            raise RefusedError(
                "too_long",
                f"{asked}; the context holds {self.max_context}: shorten the prompt or lower "
                "max_tokens",
            )
        raise RefusedError(
            "too_long",
            f"{asked}; the KV memory holds {self.kv_tokens}: shorten the prompt, lower "
            "max_tokens or start the runtime with more --memory",
        )
