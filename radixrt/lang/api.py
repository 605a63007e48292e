"""The functions a program is written with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypedDict, Unpack, overload

import orjson

from radixrt.errors import InvalidArgument, Unsupported
from radixrt.lang.choices import ChoicesMethod, token_length_normalized
from radixrt.lang.choices import choices_method as _choices_method
from radixrt.lang.nodes import Choice, Expr, Gen
from radixrt.lang.program import Function
from radixrt.lang.sampling import check_text, sampling_options, strings
from radixrt.lang.source import caller
from radixrt.lang.typed import typed
from radixrt.protocol import Constraint


@overload
def function(body: Callable[..., Any], /) -> Function: ...


@overload
def function(
    body: None = None, /, *, num_api_spec_tokens: int | None = None
) -> Callable[[Callable[..., Any]], Function]: ...


def function(
    body: Callable[..., Any] | None = None, /, *, num_api_spec_tokens: int | None = None
) -> Function | Callable[[Callable[..., Any]], Function]:
    """Make a program of a Python function whose first parameter is the program's state.

    Use as ``@function`` or ``@function()``. ``num_api_spec_tokens`` is SGLang's option for remote
    chat APIs, which radixrt has no use for: anything but None raises ``Unsupported``.
    """
    if num_api_spec_tokens is not None:
        raise Unsupported("num_api_spec_tokens speculates on remote APIs; leave it out")
    return Function if body is None else Function(body)


class GenOptions(TypedDict, total=False):
    """The options of ``gen`` that ``gen_int`` and ``gen_string`` take as well."""

    min_tokens: int | None
    n: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    stop_regex: str | Sequence[str] | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    ignore_eos: bool | None
    return_logprob: bool | None
    logprob_start_len: int | None
    top_logprobs_num: int | None
    return_text_in_logprobs: bool | None
    deadline: float | None


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: type | str | None = None,
    choices: Sequence[str] | None = None,
    choices_method: ChoicesMethod | str | None = None,
    regex: str | None = None,
    json_schema: str | Mapping[str, Any] | type | None = None,
    *,
    repetition_penalty: float | None = None,
    logit_bias: Mapping[int, float] | None = None,
    seed: int | None = None,
    deadline: float | None = None,
) -> Gen | Choice:
    """Return an expression that generates text and keeps it as variable ``name``.

    Options left out come from ``run`` and then from ``protocol.Sampling``: 128 tokens, temperature
    1. ``top_k`` -1 or 0 keeps all tokens. ``stop`` strings and ``stop_regex`` matches end the text
    and are not part of it. With ``n > 1`` the variable is a list of n texts and the branch goes on
    with the first. ``return_logprob`` adds ``output_token_logprobs`` to ``get_meta_info``,
    ``top_logprobs_num`` adds ``output_top_logprobs``, ``logprob_start_len`` ≥ 0 adds
    ``input_token_logprobs`` from that position on. ``deadline`` bounds the generation in seconds.

    At most one of these constrains what is generated: ``dtype`` (int, float, bool or str; the
    variable has that type, a str without its quotes), ``regex``, ``json_schema`` (JSON text, a
    mapping, or a class with ``model_json_schema()``), or ``choices``, which makes it a ``select``.

    Raises ``InvalidArgument`` at once for values that cannot be used.
    """
    _check_name(name)
    if choices is not None:
        if regex is not None or json_schema is not None or dtype is not None:
            raise InvalidArgument("choices", choices, "leave out dtype, regex and json_schema")
        return _select(name, choices, temperature, choices_method, deadline)
    constraints = {"dtype": dtype, "regex": regex, "json_schema": json_schema}
    given = [argument for argument, value in constraints.items() if value is not None]
    if len(given) > 1:
        way_out = f"leave out {' and '.join(given[1:])}"
        raise InvalidArgument(given[0], constraints[given[0]], way_out)
    python_type = None if dtype is None else typed(dtype)
    constraint = None
    if python_type is not None:
        constraint = Constraint("regex", python_type.regex)
    elif regex is not None:
        constraint = Constraint("regex", _text("regex", regex))
    elif json_schema is not None:
        constraint = Constraint("json_schema", _schema(json_schema))
    sampling = sampling_options(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        n=n,
        stop=stop,
        stop_token_ids=stop_token_ids,
        stop_regex=stop_regex,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        repetition_penalty=repetition_penalty,
        logit_bias=logit_bias,
        seed=seed,
        ignore_eos=ignore_eos,
        return_logprob=return_logprob,
        logprob_start_len=logprob_start_len,
        top_logprobs_num=top_logprobs_num,
        return_text_in_logprobs=return_text_in_logprobs,
    )
    return Gen(name, sampling, caller(), constraint, python_type, _deadline(deadline))


def gen_int(
    name: str | None = None, max_tokens: int | None = None, **options: Unpack[GenOptions]
) -> Gen | Choice:
    """Return an expression that generates a whole number; the variable is an ``int``."""
    return gen(name, max_tokens, dtype=int, **options)


def gen_string(
    name: str | None = None, max_tokens: int | None = None, **options: Unpack[GenOptions]
) -> Gen | Choice:
    """Return an expression that generates a quoted string; the variable is a ``str`` without its
    quotes."""
    return gen(name, max_tokens, dtype=str, **options)


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: ChoicesMethod | str = token_length_normalized,
    *,
    deadline: float | None = None,
) -> Choice:
    """Return an expression that appends the likeliest of ``choices`` and keeps it as ``name``.

    One message whatever the number of choices. ``choices_method`` says what is compared;
    ``get_meta_info`` has the scores. Selection is deterministic: ``temperature`` stays 0.
    """
    _check_name(name)
    if choices is None:
        raise InvalidArgument("choices", choices, "give a list of strings")
    return _select(name, choices, temperature, choices_method, deadline)


def image(expr: object) -> NoReturn:
    """Images are not supported: raises ``Unsupported``."""
    raise Unsupported("images are not supported: radixrt serves text models")


def video(path: object, num_frames: int) -> NoReturn:
    """Videos are not supported: raises ``Unsupported``."""
    raise Unsupported("videos are not supported: radixrt serves text models")


def separate_reasoning(expr: Expr | None = None, model_type: str | None = None) -> NoReturn:
    """Separating reasoning is not supported: raises ``Unsupported``."""
    raise Unsupported(
        "separate_reasoning is not supported; generate up to the model's closing tag with "
        'gen("reasoning", stop=…) and then gen("answer")'
    )


def _select(
    name: str | None,
    choices: Sequence[str],
    temperature: float | None,
    method: ChoicesMethod | str | None,
    deadline: float | None,
) -> Choice:
    if temperature is not None and not 0.0 <= temperature <= 1e-5:
        raise InvalidArgument("temperature", temperature, "selection is deterministic; leave it 0")
    if isinstance(choices, str):
        raise InvalidArgument("choices", choices, "give a list of strings")
    options = strings("choices", choices)
    if not options:
        raise InvalidArgument("choices", choices, "give at least one")
    return Choice(name, options, _choices_method(method), caller(), _deadline(deadline))


def _check_name(name: object) -> None:
    if name is not None and not isinstance(name, str):
        raise InvalidArgument("name", name, "use a string")


def _text(argument: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidArgument(argument, value, "use a non-empty string")
    return check_text(argument, value)


def _schema(schema: object) -> str:
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    try:
        if isinstance(schema, Mapping):
            return orjson.dumps(dict(schema)).decode()
        orjson.loads(_text("json_schema", schema))
    except (TypeError, orjson.JSONDecodeError) as error:
        raise InvalidArgument("json_schema", schema, f"it is not JSON: {error}") from None
    assert isinstance(schema, str)
    return schema


def _deadline(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    if isinstance(deadline, bool) or not isinstance(deadline, int | float) or not deadline > 0:
        raise InvalidArgument("deadline", deadline, "use a positive number of seconds")
    return float(deadline)
