"""Python types as JSON: what their schemas admit can be read, and nothing else is."""

from __future__ import annotations

import copy
import datetime
import enum
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jsonschema
import msgspec
import pydantic
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lang.sample_types import EXACT, OWN_SAY, Circle, Even, Movie, Order, Payment, Person, Span

from radixrt.errors import InvalidArgument, ValueRefused
from radixrt.lang.reading import result_type
from radixrt.lang.scalars import PATTERNS, read_scalar, scalar_schema


def admits(schema: str, value: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(json.loads(schema)).is_valid(value))


@pytest.mark.parametrize(("tp", "written", "meant"), [*EXACT, *OWN_SAY], ids=lambda v: str(v)[:40])
def test_a_value_is_read_as_an_instance_of_its_type(tp: Any, written: Any, meant: Any) -> None:
    result = result_type(tp)
    assert admits(result.schema, written)
    value = result.read(json.dumps(written))
    assert value == meant
    assert type(value) is type(meant)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: str(case[0])[:40])
def test_a_type_without_code_of_its_own_needs_no_check(case: tuple[Any, Any, Any]) -> None:
    assert result_type(case[0]).is_exact


@pytest.mark.parametrize("case", OWN_SAY, ids=lambda case: str(case[0])[:40])
def test_a_type_with_code_of_its_own_does(case: tuple[Any, Any, Any]) -> None:
    assert not result_type(case[0]).is_exact


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 200) | st.floats(-2, 2) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["x", "side", "radius", "name", "kind"]), inner, max_size=3
        )
    ),
    max_leaves=4,
)


def mutated(value: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    """The value with one place in it replaced, removed or added to."""
    value = copy.deepcopy(value)
    if isinstance(value, dict) and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value)))
        action = draw(st.sampled_from(["go down", "drop", "add"]))
        if action == "drop":
            del value[key]
        elif action == "add":
            value[draw(st.sampled_from(["x", "zzz", "name"]))] = draw(JSON_VALUES)
        else:
            value[key] = mutated(value[key], draw)
        return value
    if isinstance(value, list) and value and draw(st.booleans()):
        index = draw(st.integers(0, len(value) - 1))
        value[index] = mutated(value[index], draw)
        return value
    return draw(JSON_VALUES)


@settings(max_examples=400)
@given(st.sampled_from(EXACT), st.data())
def test_whatever_an_exact_schema_admits_is_read_and_what_it_does_not_is_refused(
    case: tuple[Any, Any, Any], data: st.DataObject
) -> None:
    tp, written, _ = case
    result = result_type(tp)
    value = mutated(written, data.draw)
    # JSON Schema counts 1.0 as an integer; no grammar writes it so.
    assume(not re.search(r"\d\.0\b", json.dumps(value)))
    if admits(result.schema, value):
        result.read_parsed(value)
    elif "pattern" not in result.schema and "kind" not in result.schema:
        # (Text such as dates is read in more spellings than are written, and so are models.)
        with pytest.raises(ValueRefused):
            result.read_parsed(value)


@given(st.data())
@pytest.mark.parametrize(
    "tp",
    [datetime.date, datetime.datetime, datetime.time, datetime.timedelta, bytes],
    ids=lambda tp: tp.__name__,
)
def test_every_match_of_a_scalars_pattern_is_a_value(tp: type, data: st.DataObject) -> None:
    schema = scalar_schema(tp)
    assert schema is not None
    text = data.draw(st.from_regex(re.compile(schema["pattern"], re.ASCII), fullmatch=True))
    assume(not text.endswith("\n"))
    assert isinstance(read_scalar(tp, (), text), tp)


@given(st.dates())
def test_every_date_has_its_match(date: datetime.date) -> None:
    assert re.search(PATTERNS["date"], date.isoformat())
    invalid = date.isoformat()[:8] + "32"
    assert not re.search(PATTERNS["date"], invalid)


def test_errors_say_where() -> None:
    with pytest.raises(ValueRefused, match=r"/tags/1: Expected `str`"):
        result_type(Person).read('{"name": "A", "tags": ["x", 2]}')
    with pytest.raises(ValueRefused, match=r"/0/number: .*it is odd"):
        result_type(list[Even]).read('[{"number": 3}]')
    with pytest.raises(ValueRefused, match=r"last comes before first"):
        result_type(Span).read('{"first": 3, "last": 2}')
    with pytest.raises(ValueRefused, match="Person refuses"):
        result_type(Person).read('{"name": "A", "ta')


def test_constraints_of_fields_are_in_the_schema() -> None:
    properties = json.loads(result_type(Person).schema)["properties"]
    assert properties["age"] == {"type": "integer", "minimum": 0, "maximum": 150}
    assert properties["name"] == {"type": "string", "minLength": 1, "maxLength": 30}
    order = json.loads(result_type(Order).schema)
    assert list(order["properties"]) == ["Item", "count", "price", "due"]
    assert order["properties"]["count"]["minimum"] == 1
    assert order["additionalProperties"] is False


def test_a_discriminated_union_is_alternatives_that_exclude_each_other() -> None:
    schema = json.loads(result_type(Payment).schema)
    assert "anyOf" in schema["properties"]["method"]
    assert "oneOf" not in json.dumps(schema)
    assert "discriminator" not in json.dumps(schema)


def test_extra_keys_stay_possible_where_the_type_asks_for_them() -> None:
    class Open(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow")
        a: int

    assert admits(result_type(Open).schema, {"a": 1, "b": 2})
    assert not admits(result_type(Movie).schema, {"title": "M", "b": 2})


def test_classes_of_one_name_do_not_share_a_definition() -> None:
    def other() -> type:
        @dataclass
        class Circle:
            centre: str

        return Circle

    result = result_type(tuple[Circle, other()])  # type: ignore[misc]
    first, second = result.read('[{"radius": 1}, {"centre": "a"}]')
    assert (first.radius, second.centre) == (1.0, "a")


def test_an_alias_may_name_itself() -> None:
    class TypeAliasType:
        """As ``type Json = …`` makes them from Python 3.12 on."""

        __name__ = "Json"

        @property
        def __value__(self) -> Any:
            return dict[str, self] | list[self] | str | int | None  # type: ignore[valid-type]

    result = result_type(TypeAliasType())
    value = {"a": [1, None, {"b": "c"}]}
    assert admits(result.schema, value)
    assert not admits(result.schema, {"a": [1.5]})
    assert result.is_exact
    assert result.read(json.dumps(value)) == value


class Flags(enum.Flag):
    A = 1
    B = 2


class Empty(enum.Enum):
    pass


class Plain:
    pass


@dataclass
class Unresolved:
    other: Nowhere  # type: ignore[name-defined] # noqa: F821


@pytest.mark.parametrize(
    ("tp", "way_out"),
    [
        (complex, "use a dataclass"),
        (Plain, "use a dataclass"),
        (Callable[[], int], "use a dataclass"),
        (Flags, "use list"),
        (Empty, "without members"),
        (dict[float, int], "keys that are str or int"),
        (dict[Literal[1, 2], int], "are strings"),
        (Annotated[int, msgspec.Meta(min_length=1)], "min_length and max_length are for"),
        (Annotated[str, msgspec.Meta(ge=1)], "ge is for int and float"),
        (Unresolved, "define the types it names at module level"),
        (list[Plain], "use a dataclass"),
    ],
    ids=str,
)
def test_a_type_that_cannot_be_generated_is_refused_with_a_way_out(tp: Any, way_out: str) -> None:
    with pytest.raises(InvalidArgument, match=way_out):
        result_type(tp)


def test_a_model_that_pydantic_has_no_schema_for_is_refused() -> None:
    class Model(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        plain: Plain

    with pytest.raises(InvalidArgument, match="pydantic has no JSON schema for it"):
        result_type(Model)
