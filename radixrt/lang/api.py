"""The functions a program is written with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypedDict, Unpack, overload

from radixrt.errors import InvalidArgument, Unsupported
from radixrt.lang.choices import ChoicesMethod, token_length_normalized
from radixrt.lang.choices import choices_method as _choices_method
from radixrt.lang.constraints import Finish, How, Syntax, What, option
from radixrt.lang.nodes import Choice, Expr, Gen
from radixrt.lang.program import Function
from radixrt.lang.reading import result_type
from radixrt.lang.sampling import sampling_options
from radixrt.lang.source import caller
from radixrt.lang.toolset import ToolFormat
from radixrt.lang.typed import typed
from radixrt.protocol import Constraint

_NOT_GIVEN: Any = object()
"""``type=None`` is a type."""


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
    choices: Sequence[Any] | None = None,
    choices_method: ChoicesMethod | str | None = None,
    regex: str | re.Pattern[str] | None = None,
    json_schema: str | Mapping[str, Any] | type | None = None,
    *,
    type: Any = _NOT_GIVEN,
    grammar: str | None = None,
    syntax: Syntax | None = None,
    tools: Sequence[Any] | None = None,
    tool_choice: str | None = None,
    tool_format: ToolFormat | None = None,
    parallel: bool | None = None,
    finish: Finish | None = None,
    strict: bool | None = None,
    indent: int | None = None,
    spaced: bool | None = None,
    any_order: bool | None = None,
    retries: int | None = None,
    fields: Mapping[str, Mapping[str, Any]] | None = None,
    after: str | None = None,
    reasoning: bool | None = None,
    jump_forward: bool | None = None,
    heal: bool = False,
    trace: bool = False,
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

    At most one of these constrains what is generated:

    * ``type``: a pydantic model, dataclass, TypedDict, NamedTuple, Enum, Literal, Union, list,
      tuple, dict or scalar; JSON is generated and the variable is an instance.
    * ``dtype``: int, float, bool or str as plain text; a str is generated in quotes.
    * ``regex``; ``json_schema``: JSON text, a mapping or a pydantic model, the variable is text.
    * ``grammar``: Lark, or GBNF and EBNF as llama.cpp and SGLang write them (``syntax`` says which
      where the text does not).
    * ``tools``: functions, types or schemas; the variable is a ``ToolCalls``. ``tool_choice`` is
      auto (free text until the model calls), required or a tool's name; ``tool_format`` overrides
      what the model's template says; ``parallel=False`` allows one call. With ``type`` beside it
      the model either calls or answers with an instance.
    * ``choices``, which makes it a ``select``.

    How a constraint is applied: ``finish="valid"`` closes the text within ``max_tokens`` (the
    default but for regexes), ``"cut"`` ends it where the tokens end; ``strict`` refuses schemas
    that cannot be enforced token by token; JSON is compact, ``spaced`` puts a blank after commas
    and colons, ``indent`` asks for lines; ``any_order`` allows properties in any order; ``retries``
    bounds how often a value that a validator refuses is generated again; ``fields`` samples single
    fields differently, by JSON pointer (``{"/reason": {"temperature": 0.8}}``); ``after`` leaves
    the text up to a marker free, ``reasoning=True`` that up to ``</think>``;
    ``jump_forward=False`` samples also what is certain.

    ``heal`` lets the first token begin before the end of the prompt. ``trace`` keeps, for
    ``explain``, how each token came about.

    Raises ``InvalidArgument`` at once for values that cannot be used.
    """
    _check_name(name)
    how = How(
        finish=finish,
        strict=strict,
        indent=indent,
        spaced=spaced,
        any_order=any_order,
        retries=retries,
        after=after,
        reasoning=reasoning,
        fields=fields,
        jump_forward=jump_forward,
    )
    is_typed = type is not _NOT_GIVEN
    what = What(
        regex=regex,
        json_schema=json_schema,
        grammar=grammar,
        syntax=syntax,
        type=type,
        is_typed=is_typed,
        tools=tools,
        tool_choice=tool_choice,
        tool_format=tool_format,
        parallel=parallel,
    )
    if choices is not None:
        what.refuse_beside("choices", choices, *(["dtype"] if dtype is not None else []))
        how.require_none("choices are selected among, not generated; leave it out")
        return _select(name, choices, temperature, choices_method, deadline)
    python_type = None if dtype is None else typed(dtype)
    if python_type is not None:
        what.refuse_beside("dtype", dtype)
        constraint: Constraint | None = how.apply("regex", python_type.regex)
        reading = None
    else:
        constraint, reading = what.build(how)
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
    return Gen(
        name,
        sampling,
        caller(),
        constraint,
        python_type,
        _deadline(deadline),
        reading,
        heal=_flag("heal", heal),
        trace=_flag("trace", trace),
    )


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
    choices: Sequence[Any] | None = None,
    temperature: float = 0.0,
    choices_method: ChoicesMethod | str = token_length_normalized,
    *,
    max_tokens: int = 64,
    deadline: float | None = None,
) -> Choice:
    """Return an expression that appends the likeliest of ``choices`` and keeps it as ``name``.

    A choice is a string, a compiled regex (``re.compile``) or a type: the last two stand for the
    likeliest text under them, of at most ``max_tokens`` tokens, and a chosen type for its instance.

    One message whatever the number of choices. ``choices_method`` says what is compared;
    ``get_meta_info`` has the scores. Selection is deterministic: ``temperature`` stays 0.
    """
    _check_name(name)
    if choices is None:
        raise InvalidArgument("choices", choices, "give a list of strings, regexes or types")
    return _select(name, choices, temperature, choices_method, deadline, max_tokens)


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
    choices: Sequence[Any],
    temperature: float | None,
    method: ChoicesMethod | str | None,
    deadline: float | None,
    max_tokens: int = 64,
) -> Choice:
    if temperature is not None and not 0.0 <= temperature <= 1e-5:
        raise InvalidArgument("temperature", temperature, "selection is deterministic; leave it 0")
    if isinstance(choices, str | Mapping) or not isinstance(choices, Iterable):
        raise InvalidArgument("choices", choices, "give a list of strings, regexes or types")
    given = list(choices)
    options = tuple(option(choice) for choice in given)
    if not options:
        raise InvalidArgument("choices", choices, "give at least one")
    readings = {
        index: result_type(given[index])
        for index, item in enumerate(options)
        if isinstance(item, Constraint) and item.kind == "json_schema"
    }
    return Choice(
        name,
        options,
        _choices_method(method),
        caller(),
        _deadline(deadline),
        sampling_options(max_tokens=max_tokens).max_tokens or 64,
        readings,
    )


def _check_name(name: object) -> None:
    if name is not None and not isinstance(name, str):
        raise InvalidArgument("name", name, "use a string")


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(name, value, "use True or False")
    return value


def _deadline(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    if isinstance(deadline, bool) or not isinstance(deadline, int | float) or not deadline > 0:
        raise InvalidArgument("deadline", deadline, "use a positive number of seconds")
    return float(deadline)
