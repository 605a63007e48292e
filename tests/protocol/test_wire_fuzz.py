"""Whatever bytes arrive, decoding gives a message or ``ProtocolError``."""

from __future__ import annotations

import contextlib

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixrt import protocol
from radixrt.errors import ProtocolError
from radixrt.protocol import (
    Append,
    Cancel,
    Close,
    Constraint,
    Credit,
    DescribeTokenizer,
    Detokenize,
    Failed,
    Flush,
    Generate,
    Goodbye,
    Hello,
    Inspect,
    Message,
    Open,
    Part,
    Ping,
    Read,
    Sampling,
    Select,
    State,
    Stats,
    Tokenize,
    decode,
    encode,
)
from radixrt.runtime import wire

integers = st.integers(-(2**53), 2**53)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
parts = st.builds(
    Part,
    st.sampled_from(["text", "tokens", "role_begin", "role_end", "markup", "chat"]),
    texts,
    st.lists(st.integers(0, 1000), max_size=5).map(tuple),
)
samplings = st.builds(
    Sampling,
    max_tokens=integers,
    temperature=st.floats(allow_nan=False, allow_infinity=False),
    seed=st.none() | integers,
    stop=st.lists(texts, max_size=3).map(tuple),
    logit_bias=st.lists(st.tuples(integers, st.floats(-5, 5)), max_size=2).map(tuple),
)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, integers, texts, st.booleans()),
    st.builds(Tokenize, integers, st.lists(parts, max_size=3).map(tuple), st.booleans()),
    st.builds(Detokenize, integers, st.lists(integers, max_size=5).map(tuple)),
    st.builds(DescribeTokenizer, integers),
    st.builds(Inspect, integers, integers, integers, st.booleans()),
    st.builds(State, st.sampled_from(["starting", "ready", "draining", "restarting"]), texts),
    st.builds(Open, integers, st.none() | integers),
    st.builds(Append, integers, st.lists(parts, max_size=3).map(tuple)),
    st.builds(
        Generate,
        integers,
        integers,
        samplings,
        st.none() | st.builds(Constraint, st.just("regex"), texts),
        stream=st.booleans(),
    ),
    st.builds(Select, integers, integers, st.lists(texts, max_size=4).map(tuple)),
    st.builds(Close, integers),
    st.builds(Cancel, integers),
    st.builds(Credit, integers, integers),
    st.builds(Read, integers, integers),
    st.builds(Flush, integers),
    st.builds(Stats, integers),
    st.builds(Ping, integers),
    st.builds(Goodbye, texts),
    st.builds(Failed, st.none() | integers, texts, texts),
)


def decodes_or_refuses(frame: bytes) -> None:
    try:
        message = decode(frame)
    except ProtocolError:
        return
    assert type(message) in protocol.TAGS.values()


@settings(max_examples=300, deadline=None)
@given(messages)
def test_a_message_survives_the_wire(message: Message) -> None:
    assert decode(encode(message)) == message


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_protocol_error(frame: bytes) -> None:
    decodes_or_refuses(frame)


json_values = st.recursive(
    st.none() | st.booleans() | integers | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(tag=st.sampled_from(sorted(protocol.TAGS)), fields=json_values, data=st.data())
def test_any_json_under_a_known_tag(tag: str, fields: object, data: st.DataObject) -> None:
    names = sorted(protocol.TAGS[tag].__dataclass_fields__)
    named = data.draw(st.dictionaries(st.sampled_from(names), json_values, max_size=5))
    for value in (fields, named):
        decodes_or_refuses(orjson.dumps([tag, value]))


@settings(max_examples=300, deadline=None)
@given(message=messages, data=st.data())
def test_a_mutated_frame(message: Message, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "flip" and at < len(frame):
            frame[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del frame[at : at + data.draw(st.integers(1, 8))]
        else:
            frame[at:at] = data.draw(st.binary(max_size=8))
    decodes_or_refuses(bytes(frame))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_between_the_processes(frame: bytes) -> None:
    for decode_batch in (wire.decode_to_engine, wire.decode_from_engine):
        with contextlib.suppress(ProtocolError):
            assert isinstance(decode_batch(frame), list)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"[" * 100_000,
        b'["hello",{"version":1e999}]',
        b'["generate",{"call":1}]',
        b'["generate",{"call":1,"branch":1,"extra":2}]',
        b'["__class__",{}]',
        b'["ping",{"seq":"1"}]',
        b'["ping",{"seq":true}]',
        b'["hello",{"client":"\xff"}]',
    ],
)
def test_frames_that_are_no_messages(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(frame)


def test_a_frame_over_the_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        decode(bytes(protocol.MAX_FRAME_BYTES + 1))
