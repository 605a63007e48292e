"""Python types as JSON: the schema that a value is generated under, and how it is read back.

Objects are closed (no keys but the declared ones), fields with defaults may be left out, and a
named tuple is an object with its fields' names, which a model writes better than an array. Types
of pydantic go through ``radixrt.lang.pydantic``, with their aliases and settings.
"""

from __future__ import annotations

import enum
import types
import typing
from collections import abc
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union

import msgspec

from radixrt.errors import InvalidArgument
from radixrt.lang.enumerations import enumeration, literal
from radixrt.lang.fields import Fields, field_table
from radixrt.lang.form import Form, Read, Unreadable, at, expect, may_fit, measured
from radixrt.lang.scalars import INTEGER, constrained, read_scalar, scalar_schema

_LISTS: dict[Any, Callable[[list[Any]], Any]] = {
    list: list,
    abc.Sequence: list,
    abc.MutableSequence: list,
    abc.Collection: list,
    abc.Iterable: list,
    set: set,
    abc.Set: set,
    abc.MutableSet: set,
    frozenset: frozenset,
}
_DICTS = (dict, abc.Mapping, abc.MutableMapping)

_KEY_PATTERNS = {int: INTEGER}


class FormBuilder:
    """Builds the form of one type and of all it consists of.

    ``definitions`` holds the schemas of its named types, ``is_exact`` whether everything that fits
    the schema can be read: code of the type's own (``__post_init__``, validators) may refuse it.
    """

    def __init__(self) -> None:
        self.definitions: dict[str, Mapping[str, Any]] = {}
        self.is_exact = True
        self._named: dict[Any, Form] = {}

    def form(self, tp: Any) -> Form:
        """Return the form of a type. Raises ``InvalidArgument`` for one that has none."""
        tp, metas, others = _unwrapped(tp)
        if _is_pydantic(tp) or any(_is_pydantic(type(other)) for other in others):
            return self._pydantic_form(Annotated[(tp, *metas, *others)] if metas or others else tp)
        if (schema := scalar_schema(tp)) is not None:
            schema = _with_metas(tp, schema, metas)
            return Form(schema, lambda value: read_scalar(tp, metas, value))
        form = self._compound(tp)
        if not metas:
            return form
        if any(meta.min_length or meta.max_length for meta in metas) and _base(tp) in (
            *(set, frozenset, abc.Set, abc.MutableSet),
        ):
            self.is_exact = False  # a set is shorter than its list when an item comes twice
        return Form(_with_metas(tp, form.schema, metas), measured(form.read, metas))

    def _compound(self, tp: Any) -> Form:
        origin, arguments = _base(tp), typing.get_args(tp)
        if tp is Any or tp is object:
            return Form({}, lambda value: value)
        if origin is Literal:
            return literal(arguments)
        if origin in (Union, types.UnionType):
            return self._union(tp, arguments)
        if isinstance(tp, TypeVar):
            return self.form(tp.__bound__ or Any)
        if type(origin).__name__ == "TypeAliasType":
            return self._alias(tp)
        if origin is tuple:
            return self._tuple(tp, arguments)
        if origin in _LISTS:
            return self._list(_LISTS[origin], self.form(arguments[0] if arguments else Any))
        if origin in _DICTS:
            return self._dict(*(arguments or (str, Any)))
        if isinstance(tp, type) and issubclass(tp, enum.Enum):
            return enumeration(tp)
        fields = field_table(tp)
        if fields is None:
            raise InvalidArgument(
                "type",
                tp,
                "it cannot be generated; use a dataclass, a TypedDict, a NamedTuple, a pydantic "
                "model, an Enum, Literal, Union, list, tuple, set, dict or a scalar of JSON",
            )
        return self._object(tp, fields)

    # ------------------------------------------------------------ objects

    def _object(self, tp: Any, fields: Fields) -> Form:
        known = self._named.get(tp)
        if known is not None:
            return known
        name = self.new_name(getattr(tp, "__name__", None) or str(tp))
        reader: list[Read] = []
        form = Form({"$ref": f"#/$defs/{name}"}, lambda value: reader[0](value))
        self._named[tp] = form  # before its fields: it may contain itself
        self.definitions[name] = {}
        self.is_exact &= fields.is_exact
        forms = {field.key: self.form(field.type) for field in fields.fields}
        properties: dict[str, Any] = {key: item.schema for key, item in forms.items()}
        required = [field.key for field in fields.fields if field.is_required]
        if fields.tag is not None:
            key, tag = fields.tag
            properties = {key: {"const": tag}, **properties}
            required = [key, *required]
        self.definitions[name] = {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }
        reader.append(_object_reader(fields, forms, frozenset(required)))
        return form

    def _alias(self, tp: Any) -> Form:
        """The form of ``type Json = dict[str, Json] | …``, which may name itself."""
        known = self._named.get(tp)
        if known is not None:
            return known
        name = self.new_name(_base(tp).__name__)
        reader: list[Read] = []
        form = Form({"$ref": f"#/$defs/{name}"}, lambda value: reader[0](value))
        self._named[tp] = form
        self.definitions[name] = {}
        value = alias_value(tp)
        inner = self.form(value)
        if inner.schema == form.schema:
            raise InvalidArgument("type", tp, "it stands for nothing but itself")
        self.definitions[name] = inner.schema
        reader.append(inner.read)
        return form

    def new_name(self, name: str) -> str:
        """Return a name for a definition that no other definition has."""
        name = "".join(char if char.isalnum() else "_" for char in name)
        free, number = name, 1
        while free in self.definitions:
            number += 1
            free = f"{name}_{number}"
        return free

    def _pydantic_form(self, tp: Any) -> Form:
        known = self._named.get(tp)
        if known is not None:
            return known
        from radixrt.lang.pydantic import pydantic_form  # late: only who uses it has pydantic

        form, is_exact = pydantic_form(tp, self)
        self.is_exact &= is_exact
        self._named[tp] = form
        return form

    # ------------------------------------------------------------ containers

    def _list(self, make: Callable[[list[Any]], Any], item: Form) -> Form:
        def read(value: Any) -> Any:
            expect(list, value)
            return make([at(index, item.read, entry) for index, entry in enumerate(value)])

        return Form({"type": "array", "items": item.schema}, read)

    def _tuple(self, tp: Any, arguments: tuple[Any, ...]) -> Form:
        if tp is tuple or (len(arguments) == 2 and arguments[1] is ...):
            return self._list(tuple, self.form(arguments[0] if arguments else Any))
        items = [self.form(argument) for argument in arguments]

        def read(value: Any) -> Any:
            expect(list, value)
            if len(value) != len(items):
                raise Unreadable(f"{len(value)} items instead of {len(items)}")
            return tuple(at(i, item.read, value[i]) for i, item in enumerate(items))

        length = len(items)
        schema = {"type": "array", "minItems": length, "maxItems": length, "items": False}
        if items:
            schema["prefixItems"] = [item.schema for item in items]
        return Form(schema, read)

    def _dict(self, key_type: Any, value_type: Any) -> Form:
        item, key = self.form(value_type), self.form(key_type)
        base = _unwrapped(key_type)[0]
        schema: dict[str, Any] = {"type": "object"}
        if names := key.schema.get("enum"):
            if not all(isinstance(name, str) for name in names):
                raise InvalidArgument("type", key_type, "keys of JSON objects are strings")
            schema["properties"] = dict.fromkeys(names, item.schema)
            schema["additionalProperties"] = False
        elif (pattern := key.schema.get("pattern") or _KEY_PATTERNS.get(base)) is not None:
            schema["patternProperties"] = {pattern: item.schema}
            schema["additionalProperties"] = False
        elif base is str:
            schema["additionalProperties"] = item.schema
        else:
            raise InvalidArgument("type", key_type, "use dict with keys that are str or int")

        def read(value: Any) -> Any:
            expect(dict, value)
            return {
                at(name, key.read, int(name) if base is int else name): at(name, item.read, entry)
                for name, entry in value.items()
            }

        return Form(schema, read)

    def _union(self, tp: Any, members: tuple[Any, ...]) -> Form:
        forms = [self.form(member) for member in members]
        bases = [_unwrapped(member)[0] for member in members]
        definitions = self.definitions

        def read(value: Any) -> Any:
            reasons = []
            # A whole number is a `float` too, but of `float | int` it is the second.
            for index in sorted(range(len(forms)), key=lambda i: bases[i] is not type(value)):
                form = forms[index]
                if may_fit(form.schema, value, definitions):
                    try:
                        return form.read(value)
                    except (ValueError, TypeError) as error:
                        reasons.append(str(error))
            raise Unreadable("; ".join(reasons) or f"it is none of {tp}")

        return Form({"anyOf": [form.schema for form in forms]}, read)


def _object_reader(fields: Fields, forms: Mapping[str, Form], required: frozenset[str]) -> Read:
    attributes = {field.key: field.attribute for field in fields.fields}
    tag_key = None if fields.tag is None else fields.tag[0]

    def read(value: Any) -> Any:
        expect(dict, value)
        if unknown := value.keys() - attributes.keys() - {tag_key}:
            raise Unreadable("no such field", f"/{min(unknown)}")
        if missing := required - value.keys():
            raise Unreadable("it is missing", f"/{min(missing)}")
        if fields.tag is not None and value[fields.tag[0]] != fields.tag[1]:
            raise Unreadable(f"it is not {fields.tag[1]!r}", f"/{tag_key}")
        return fields.make(
            {
                attributes[key]: at(key, forms[key].read, entry)
                for key, entry in value.items()
                if key != tag_key
            }
        )

    return read


# ---------------------------------------------------------------- taking types apart


def _unwrapped(tp: Any) -> tuple[Any, tuple[msgspec.Meta, ...], tuple[Any, ...]]:
    """Return a type without what is annotated to it: msgspec's metas, and all else but notes."""
    metas: list[msgspec.Meta] = []
    others: list[Any] = []
    while True:
        if typing.get_origin(tp) is Annotated:
            tp, *notes = typing.get_args(tp)
            metas = [note for note in notes if isinstance(note, msgspec.Meta)] + metas
            others = [n for n in notes if _is_pydantic(type(n))] + others
        elif hasattr(tp, "__supertype__"):
            tp = tp.__supertype__
        else:
            return (type(None) if tp is None else tp), tuple(metas), tuple(others)


def alias_value(tp: Any) -> Any:
    """Return what an alias made by a ``type`` statement stands for, its parameters filled in."""
    value, arguments = _base(tp).__value__, typing.get_args(tp)
    return value[arguments] if arguments else value


def _base(tp: Any) -> Any:
    return typing.get_origin(tp) or tp


def _is_pydantic(tp: Any) -> bool:
    """Whether a type, or the type of a note in ``Annotated``, is pydantic's to interpret."""
    base = _base(tp)
    if not isinstance(base, type):
        return False
    module = base.__module__.partition(".")[0]
    return (
        module in ("pydantic", "annotated_types", "pydantic_core")
        or hasattr(base, "__pydantic_core_schema__")
        or hasattr(base, "__get_pydantic_core_schema__")
    )


def _with_metas(tp: Any, schema: Mapping[str, Any], metas: tuple[msgspec.Meta, ...]) -> Any:
    try:
        return constrained(tp, schema, metas)
    except ValueError as error:
        raise InvalidArgument(
            "type", tp, f"it has a constraint that is not its own: {error}"
        ) from None
