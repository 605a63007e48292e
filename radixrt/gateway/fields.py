"""The fields of requests that generate, of OpenAI's API and of vLLM's and SGLang's extensions."""

from __future__ import annotations

from typing import Any

import msgspec

from radixrt.gateway.errors import invalid
from radixrt.protocol import Sampling

MAX_SEED = 2**63 - 1


class StreamOptions(msgspec.Struct):
    """What a stream holds beside its text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(msgspec.Struct, kw_only=True):
    """How tokens are chosen, and by what a text is bound (see ``constraints``)."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] = []
    stop_regex: str | list[str] | None = None
    ignore_eos: bool = False
    logit_bias: dict[str, float] = {}
    cache_salt: str = ""
    return_token_ids: bool = False

    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_json_object: bool | None = None
    guided_decoding_backend: str | None = None
    guided_whitespace_pattern: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    json_schema: str | dict[str, Any] | bool | None = None
    grammar: str | None = None
    structural_tag: Any = None
    constraint: dict[str, Any] | None = None

    # Known, and without an effect here.
    user: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    priority: Any = None
    request_id: Any = None
    skip_special_tokens: Any = None
    spaces_between_special_tokens: Any = None
    include_stop_str_in_output: bool | None = None
    no_stop_trim: bool | None = None

    def sampling(
        self, max_tokens: int | None, *, top_logprobs: int | None = None, prompt_logprobs: bool
    ) -> Sampling:
        """Return the protocol's form. ``top_logprobs`` None asks for no logprobs at all.

        Raises ``ApiError`` for what only the HTTP form has; values are checked by the runtime.
        """
        if self.include_stop_str_in_output or self.no_stop_trim:
            name = "no_stop_trim" if self.no_stop_trim else "include_stop_str_in_output"
            raise invalid(name, "the text always ends before the stop; leave it out", "unsupported")
        return Sampling(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            n=self.n,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0) if self.top_k >= -1 else self.top_k,
            min_p=self.min_p,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=_biases(self.logit_bias),
            seed=None if self.seed is None else self.seed & MAX_SEED,
            stop=_listed(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            stop_regex=_listed(self.stop_regex),
            ignore_eos=self.ignore_eos,
            return_logprob=top_logprobs is not None,
            top_logprobs_num=top_logprobs or 0,
            logprob_start_len=0 if prompt_logprobs else -1,
        )

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with its token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def _listed(stops: str | list[str] | None) -> tuple[str, ...]:
    if stops is None:
        return ()
    return (stops,) if isinstance(stops, str) else tuple(stops)


def _biases(given: dict[str, float]) -> tuple[tuple[int, float], ...]:
    biases = []
    for key, bias in given.items():
        try:
            biases.append((int(key), bias))
        except ValueError:
            raise invalid("logit_bias", f"{key[:40]!r} is no token id") from None
    return tuple(biases)
