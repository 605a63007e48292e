"""What operations carry: prompts, sampling, constraints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a branch's prompt.

    ``text`` is tokenized on its own; ``tokens`` are taken as they are; ``role_begin`` and
    ``role_end`` (``text`` names the role) are rendered with the model's chat template. ``tools``
    (``text`` is a JSON array of definitions in OpenAI's form) hands the template the tools of the
    messages that follow; it stands before the first of them.

    ``markup`` is text in which the names of special tokens mean these tokens, tokenized on its own.
    ``chat`` is a whole conversation, the first part of its branch: ``text`` is the JSON object
    ``{"messages": [messages in OpenAI's form], "tools": [definitions] or null,
    "add_generation_prompt": bool, "continue_final_message": bool, "template_kwargs": {}}``. The
    model's chat template renders it, and what it gives is tokenized as a whole.
    """

    kind: Literal["text", "tokens", "role_begin", "role_end", "tools", "markup", "chat"]
    text: str = ""
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of one generation are chosen. Defaults are the model's plain distribution.

    ``max_tokens`` None is as many as the context has room for, 0 computes the prompt alone.
    ``top_k`` 0 keeps all tokens. ``seed`` None draws a fresh seed. ``stop`` strings and
    ``stop_regex`` patterns end the text before the match. ``logit_bias`` holds (token id, bias).
    ``top_logprobs_num`` > 0 needs ``return_logprob``. ``logprob_start_len`` >= 0 also returns
    logprobs of the prompt from that position on.
    """

    max_tokens: int | None = 128
    min_tokens: int = 0
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_regex: tuple[str, ...] = ()
    ignore_eos: bool = False
    return_logprob: bool = False
    top_logprobs_num: int = 0
    logprob_start_len: int = -1


@dataclass(frozen=True, slots=True)
class FieldSampling:
    """Sampling of one field of a JSON value; None leaves the call's own.

    ``pointer`` is a JSON pointer into the value, with ``*`` for any item of an array or any key;
    ``max_tokens`` bounds the field's own tokens: it is closed when they are used up.
    """

    pointer: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a generation must match.

    ``text`` is, by ``kind``: a regular expression; a JSON array of strings (``choices``); a JSON
    schema; a Lark grammar (``grammar``); a grammar in llama.cpp's (``gbnf``) or in SGLang's
    (``ebnf``) dialect; or for ``tools`` the JSON object ``{"tools": [{"name", "description",
    "parameters"}], "choice": "auto" | "required" | name, "format": "auto" | "hermes" | "llama" |
    "mistral", "parallel": bool, "answer": schema of an answer instead of calls}``.

    * ``finish``: ``valid`` closes the text within ``max_tokens`` or refuses the call before it
      generates; ``cut`` ends it where the tokens end. None is ``cut`` for a regex, else ``valid``.
    * ``strict``: refuse a schema that the grammar does not enforce in full.
    * ``indent``: None is compact JSON, a number a line an item with so many blanks a level.
    * ``spaced``: JSON on one line with a blank after each comma and colon, as Python writes it.
    * ``any_order``: properties may come in any order.
    * ``retries``: how often a value that fails the final validation is generated again.
    * ``after``: the constraint begins after this text (``</think>``); what is before is free.
    * ``fields``: sampling of single fields of a JSON value.
    * ``exclude``: texts of whole values that are not to be generated (again).
    * ``jump_forward``: append tokens that are the only possible ones without sampling.
    """

    kind: Literal["regex", "choices", "json_schema", "grammar", "gbnf", "ebnf", "tools"]
    text: str
    finish: Literal["valid", "cut"] | None = None
    strict: bool = False
    indent: int | None = None
    any_order: bool = False
    retries: int = 3
    after: str = ""
    fields: tuple[FieldSampling, ...] = ()
    exclude: tuple[str, ...] = ()
    jump_forward: bool = True
    spaced: bool = False
