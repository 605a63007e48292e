"""Grammars over characters, against a matcher that follows the rules one character at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from grammar_walks import accepts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.gbnf import Alt, Chars, Node, Ref, Repeat, Rules, Seq, Text, parse
from radixrt.runtime.grammar.gbnf_lark import to_lark
from radixrt.runtime.grammar.llguidance import LlguidanceEngine, lark_grammar

SQL = """
root ::= select ";"      # a statement
select ::= "SELECT " cols " FROM " name (" WHERE " cond)?
cols ::= "*" | name (", " name)*
name ::= [a-z_]+
cond ::= cmp ((" AND " | " OR ") cmp)*
cmp ::= name ws op ws value | "(" cond ")"
op ::= "=" | "<" | ">" | "<="
value ::= [0-9]+ | "'" [^']* "'" | "(" select ")"
ws ::= " "?
"""

ALPHABET = "abc"


def ends(rules: Rules, node: Node, text: str, at: int, depth: int = 0) -> frozenset[int]:
    """Return where matches of a part that begin at ``at`` can end."""
    if depth > 40:
        return frozenset()
    match node:
        case Text(text=literal):
            return frozenset({at + len(literal)} if text.startswith(literal, at) else ())
        case Chars(ranges=ranges):
            fits = at < len(text) and any(low <= ord(text[at]) <= high for low, high in ranges)
            return frozenset({at + 1} if fits else ())
        case Ref(name=name):
            return ends(rules, rules[name], text, at, depth + 1)
        case Alt(items=items):
            found = [ends(rules, item, text, at, depth + 1) for item in items]
            return frozenset(itertools.chain(*found))
        case Seq(items=items):
            here = frozenset({at})
            for item in items:
                here = frozenset(
                    itertools.chain(*(ends(rules, item, text, i, depth + 1) for i in here))
                )
            return here
        case Repeat(item=item, least=least, most=most):
            here, all_ends = frozenset({at}), set()
            for count in range(len(text) + least + 1):
                if count >= least:
                    all_ends |= here
                if most is not None and count == most:
                    break
                here = frozenset(
                    itertools.chain(*(ends(rules, item, text, i, depth + 1) for i in here))
                )
            return frozenset(all_ends)


def texts(longest: int) -> Iterator[str]:
    for length in range(1, longest + 1):
        yield from map("".join, itertools.product(ALPHABET, repeat=length))


def expressions(names: list[str]) -> st.SearchStrategy[str]:
    leaves = st.sampled_from(
        ['"a"', '"b"', '"ab"', '"ca"', "[a-b]", "[bc]", "[^a]", *[f'"c" {name}' for name in names]]
    )

    def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        pair = st.tuples(inner, inner)
        return st.one_of(
            pair.map(" ".join),
            pair.map(lambda both: f"({both[0]} | {both[1]})"),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{1,2}", "{2}"])).map(
                lambda both: f"({both[0]}){both[1]}"
            ),
        )

    return st.recursive(leaves, grow, max_leaves=5)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(expressions(["rest"]), expressions(["root", "rest"]))
def test_a_converted_grammar_has_the_same_texts(
    engine: LlguidanceEngine, root: str, rest: str
) -> None:
    rules = parse(f"root ::= ({root}) rest?\nrest ::= {rest}\n", "gbnf")
    expected = {text for text in texts(4) if len(text) in ends(rules, Ref("root"), text, 0)}
    try:
        matcher = engine.build(lark_grammar(to_lark(rules)))
    except GrammarError:
        found = set()  # the engine refuses a grammar that has no text at all
    else:
        found = {text for text in texts(4) if accepts(matcher, engine, text)}
    assert found == expected, to_lark(rules)


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [
        ("SELECT * FROM a;", True),
        ("SELECT a, b FROM t WHERE (x = 1 AND y<=2) OR z='q r';", True),
        ("SELECT a FROM t WHERE x = (SELECT b FROM c);", True),
        ("SELECT FROM a;", False),
        ("SELECT a FROM t WHERE x = 'q;", False),
        ("SELECT a FROM t WHERE (x = 1;", False),
    ],
)
def test_a_grammar_of_sql(engine: LlguidanceEngine, text: str, is_valid: bool) -> None:
    matcher = engine.build(lark_grammar(to_lark(parse(SQL, "gbnf"))))
    assert accepts(matcher, engine, text) == is_valid


def test_ebnf_has_single_quotes_and_comments(engine: LlguidanceEngine) -> None:
    text = "root ::= 'x' item* /* any\nnumber */ ;\nitem := [0-9] | \"\\n\" | '\\x41'"
    matcher = engine.build(lark_grammar(to_lark(parse(text, "ebnf"))))
    assert accepts(matcher, engine, "x12\nA3")
    assert not accepts(matcher, engine, "xa")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('start ::= "a"', "no rule root"),
        ("root ::= missing", "missing, which is not defined"),
        ('root ::= "a', 'expected "'),
        ("root ::= [a", "expected ]"),
        ('root ::= ("a"', "expected )"),
        ('root ::= "a"{3,2}', "upwards"),
        ('root ::= "\\q"', "unknown escape"),
        ("root ::= " + "(" * 100, "nested"),
        ('root ::= "a"\nroot ::= "b"', "twice"),
        ("root ::= [z-a]", "upwards"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(GrammarError, match=message.replace(")", r"\)").replace("]", r"\]")):
        parse(text, "gbnf")
