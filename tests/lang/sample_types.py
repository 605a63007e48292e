"""Types that programs may hand in, one value of each as JSON, and what it becomes."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar

import msgspec
import pydantic
from typing_extensions import TypeAliasType

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mixed(enum.Enum):
    NUMBER = 1
    WORD = "one"
    HALF = 1.5
    NOTHING = None


class Opaque(enum.Enum):
    LEFT = (0, 1)
    RIGHT = (1, 0)


class Point(NamedTuple):
    x: int
    y: int = 0


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


@dataclass
class Person:
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=30)]
    age: Annotated[int, msgspec.Meta(ge=0, le=150)] = 0
    tags: list[str] = field(default_factory=list)


@dataclass
class Tree:
    value: int
    children: list[Tree] = field(default_factory=list)


@dataclass
class Box(Generic[T]):
    content: T
    more: list[T] = field(default_factory=list)


@dataclass
class Circle:
    radius: float


@dataclass
class Square:
    side: float
    colour: Colour = Colour.RED


@dataclass
class Span:
    first: int
    last: int

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise ValueError("last comes before first")


class Cat(msgspec.Struct, tag="cat", rename="camel"):
    num_lives: int = 9


class Dog(msgspec.Struct, tag="dog"):
    name: str


class Order(pydantic.BaseModel):
    item: str = pydantic.Field(alias="Item", min_length=1)
    count: int = pydantic.Field(ge=1, default=1)
    price: decimal.Decimal
    due: datetime.date | None = None


class Card(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    kind: Literal["card"]
    digits: str = pydantic.Field(pattern="^[0-9]{4}$")


class Cash(pydantic.BaseModel):
    kind: Literal["cash"]


class Payment(pydantic.BaseModel):
    method: Annotated[Card | Cash, pydantic.Field(discriminator="kind")]
    parts: list[Payment] = []


Pair = TypeAliasType("Pair", tuple[T, T], type_params=(T,))


class Index(pydantic.BaseModel):
    pages: dict[int, str]


class Link(pydantic.BaseModel):
    url: pydantic.HttpUrl


class When(pydantic.BaseModel):
    start: pydantic.NaiveDatetime
    until: Annotated[datetime.date, pydantic.Field(ge=datetime.date(2020, 1, 1))]


class Even(pydantic.BaseModel):
    number: int

    @pydantic.field_validator("number")
    @classmethod
    def _even(cls, number: int) -> int:
        if number % 2:
            raise ValueError("it is odd")
        return number


PERSON = {"name": "Ada", "tags": ["x"]}
UUID = "12345678-1234-5678-1234-567812345678"

EXACT: list[tuple[Any, Any, Any]] = [
    (int, -3, -3),
    (int, 10**30, 10**30),
    (float, 2, 2.0),
    (bool, True, True),
    (str, 'a"b', 'a"b'),
    (None, None, None),
    (Any, {"a": [1]}, {"a": [1]}),
    (datetime.date, "2024-02-29", datetime.date(2024, 2, 29)),
    (datetime.datetime, "2024-02-29T10:00:00", datetime.datetime(2024, 2, 29, 10)),
    (
        Annotated[datetime.datetime, msgspec.Meta(tz=True)],
        "2024-02-29T10:00:00Z",
        datetime.datetime(2024, 2, 29, 10, tzinfo=datetime.UTC),
    ),
    (datetime.time, "10:30:00", datetime.time(10, 30)),
    (datetime.timedelta, "P1DT02H03M04S", datetime.timedelta(1, 4, hours=2, minutes=3)),
    (uuid.UUID, UUID, uuid.UUID(UUID)),
    (decimal.Decimal, "12.50", decimal.Decimal("12.50")),
    (bytes, "AAH/", b"\x00\x01\xff"),
    (Colour, "blue", Colour.BLUE),
    (Level, 2, Level.HIGH),
    (Mixed, 1.5, Mixed.HALF),
    (Mixed, None, Mixed.NOTHING),
    (Opaque, "LEFT", Opaque.LEFT),
    (Literal["a", 1, None], 1, 1),
    (Literal[Colour.RED], "red", Colour.RED),
    (int | str, "1", "1"),
    (float | int, 1, 1),
    (datetime.date | str, "2024-02-30", "2024-02-30"),
    (Circle | Square, {"side": 1, "colour": "blue"}, Square(1.0, Colour.BLUE)),
    (list[Circle | Square], [{"radius": 2}], [Circle(2.0)]),
    (Cat | Dog, {"type": "cat", "numLives": 7}, Cat(7)),
    (Person | None, None, None),
    (list[int], [1, 2], [1, 2]),
    (set[int], [1, 1, 2], {1, 2}),
    (frozenset[str], ["a"], frozenset("a")),
    (tuple[int, str], [1, "a"], (1, "a")),
    (tuple[int, ...], [1, 2], (1, 2)),
    (dict[str, Point], {"a": {"x": 1}}, {"a": Point(1, 0)}),
    (dict[int, bool], {"-3": True}, {-3: True}),
    (dict[Colour, int], {"red": 1}, {Colour.RED: 1}),
    (dict[uuid.UUID, int], {UUID: 1}, {uuid.UUID(UUID): 1}),
    (Annotated[list[int], msgspec.Meta(min_length=1, max_length=2)], [1], [1]),
    (Point, {"x": 1, "y": 2}, Point(1, 2)),
    (Movie, {"title": "M"}, {"title": "M"}),
    (Person, PERSON, Person("Ada", 0, ["x"])),
    (Tree, {"value": 1, "children": [{"value": 2}]}, Tree(1, [Tree(2)])),
    (Box[int], {"content": 1, "more": [2]}, Box(1, [2])),
    (Box[Box[str]], {"content": {"content": "a"}}, Box(Box("a"))),
    (list[Card], [{"kind": "card", "digits": "0123"}], [Card(kind="card", digits="0123")]),
    (
        Payment,
        {"method": {"kind": "cash"}, "parts": [{"method": {"kind": "cash"}}]},
        Payment(method=Cash(kind="cash"), parts=[Payment(method=Cash(kind="cash"))]),
    ),
    (Annotated[int, pydantic.Field(gt=3)], 4, 4),
    (Pair[int], [1, 2], (1, 2)),
    (Index, {"pages": {"-3": "a"}}, Index(pages={-3: "a"})),
]
"""(type, JSON value, what is read): types whose schema says all that they demand."""

OWN_SAY: list[tuple[Any, Any, Any]] = [
    (Span, {"first": 1, "last": 2}, Span(1, 2)),
    (list[Span], [{"first": 1, "last": 2}], [Span(1, 2)]),
    (Even, {"number": 2}, Even(number=2)),
    (
        Link,
        {"url": "https://example.org:80/a/b?c=d#e"},
        Link(url=pydantic.HttpUrl("https://example.org:80/a/b?c=d#e")),
    ),
    (
        When,
        {"start": "2024-02-29T10:00:00", "until": "2024-03-01"},
        When(start=datetime.datetime(2024, 2, 29, 10), until=datetime.date(2024, 3, 1)),
    ),
    (dict[str, Even], {"a": {"number": 2}}, {"a": Even(number=2)}),
    (
        Order,
        {"Item": "pen", "price": 1.5, "due": "2024-02-29"},
        Order(Item="pen", price=decimal.Decimal("1.5"), due=datetime.date(2024, 2, 29)),
    ),
]
"""Types with code of their own, which may refuse what fits the schema."""
