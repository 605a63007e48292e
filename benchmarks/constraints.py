"""Structured generation: coverage, time to mask, closing within a budget.

    python benchmarks/constraints.py coverage --schemas FILE --tokenizer FILE
    python benchmarks/constraints.py masks    --schemas FILE --tokenizer FILE
    python benchmarks/constraints.py walks    --schemas FILE --tokenizer FILE

``--schemas``: one JSON object a line with ``id``, ``schema`` and ``tests`` (each ``data`` and
``valid``). ``--tokenizer``: a ``tokenizer.json``; benchmarks/tekken.py makes one of 131,072
entries. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.budget import Budget
from radixrt.runtime.grammar.compile import compile_grammar
from radixrt.runtime.grammar.exclusion import Exclusion
from radixrt.runtime.grammar.json_schema import compile_schema
from radixrt.runtime.grammar.llguidance import LlguidanceEngine, LlguidanceMatcher
from radixrt.runtime.grammar.session import Session
from radixrt.runtime.grammar.validate import FinalValidator
from radixrt.runtime.grammar.vocabulary import allowed_ids
from radixrt.runtime.wire import GrammarSpec

SQL = r"""
root ::= select ";"
select ::= "SELECT " ("DISTINCT ")? cols " FROM " table (" JOIN " table " ON " cond)* where? order?
cols ::= "*" | col (", " col)*
col ::= name ("." name)? | ("COUNT" | "SUM" | "AVG" | "MAX") "(" col ")"
table ::= name (" AS " name)? | "(" select ")"
where ::= " WHERE " cond
order ::= " ORDER BY " col (" DESC" | " ASC")?
cond ::= cmp ((" AND " | " OR ") cmp)*
cmp ::= col ws op ws value | "(" cond ")" | "NOT " cmp
op ::= "=" | "<>" | "<" | ">" | "<=" | ">=" | "LIKE" | "IN"
value ::= col | number | "'" [^'\n]* "'" | "(" (select | value (", " value)*) ")"
name ::= [a-z_] [a-z0-9_]*
number ::= "-"? [0-9]+ ("." [0-9]+)?
ws ::= " "
"""

SQL_TEXT = (
    "SELECT DISTINCT a.name, COUNT(b.id) FROM customers AS a JOIN orders AS b ON a.id = b.customer "
    "WHERE (a.city LIKE 'Lis%' AND b.total >= 12.5) OR NOT a.id IN (SELECT id FROM blocked) "
    "ORDER BY COUNT(b.id) DESC;"
)

PROSE = r"[A-Z][^\n.!?]{1,200}[.!?]"
PROSE_TEXT = (
    "The engineers of the harbour company measured the depth of the water near the old pier."
)

REGEXES = [
    *(r"\d{4}-\d{2}-\d{2}", r"[a-z]+@[a-z]+\.(com|org)", r"(yes|no|maybe)", r"#[0-9a-f]{6}"),
    *(r"\+?\d{1,3}( \d{2,4}){2,4}", r"[A-Z][a-z]+( [A-Z][a-z]+)*", r"-?\d+(\.\d+)?", r"(ab|cd)*e"),
    *(r"[01]{8}", r"([0-9a-f]{2}:){5}[0-9a-f]{2}", r"https?://[a-z.]+/[a-z]*", r"\w{3,12}"),
    *(r"\s?x\s?", r"[^\n]{1,40}\n", r"(a|b|c){3,9}", r"[A-Z]{2}\d{3}[A-Z]?", r"v\d+\.\d+\.\d+"),
    *(r"(\d{1,3}\.){3}\d{1,3}", r"[αβγ]+", r"é+à?", r"(one|two|three)(, (one|two|three))*"),
    *(r"[a-z]+(-[a-z]+)*", r"\$\d+\.\d{2}", r"(foo|foobar)(bar)?", r"[^a-z]{5}", r".{1,10}"),
    *(r"x?y?z?w", r"(0|[1-9]\d*)", r"[a-zA-Z_]\w*\(\)", r"\"[^\"]*\"", r"\[(\d(,\d)*)?\]"),
    *(r"<[a-z]+>[^<]*</[a-z]+>", r"(\d\d){2,5}", r"T\d\dZ", r"[+-]\d\d:\d\d", r"[\d,]+"),
    *(
        r"(a{1,3}b){2}",
        r"[^\s]+( [^\s]+){2}",
        r"Q: [^\n?]+\?",
        r"[A-Fa-f0-9]{32}",
        r"\p{Lu}\p{Ll}+",
    ),
    *(r"(red|green|blue) (car|bike)", r"no[nt]?", r"[ab]*c", r"a.b.c", r"\d+%", r"n/a|none"),
    *(r"(\(\d{3}\) )?\d{3}-\d{4}", r"[a-m]{2}[n-z]{2}", r"=+>"),
]


def read_schemas(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a sample."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def percentiles(values: list[float], *points: float) -> dict[str, float]:
    """Return percentiles by name."""
    return {f"p{point:g}": round(float(np.percentile(values, point)), 4) for point in points}


# ------------------------------------------------------------ coverage


def coverage(engine: LlguidanceEngine, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Which schemas are admitted, and how many of their tests the grammar and the final validation
    together get right."""
    admitted = right = invalid_accepted = enforced = 0
    invalid_by_grammar = num_invalid = 0
    refused = []
    for row in rows:
        try:
            compiled = compile_schema(engine, json.dumps(row["schema"]))
        except GrammarError as error:
            refused.append(f"{row['id']}: {str(error)[:120]}")
            continue
        admitted += 1
        enforced += compiled.is_enforced
        validator = FinalValidator(compiled.schema)
        is_right = True
        for test in row["tests"]:
            text = json.dumps(test["data"], separators=(",", ":"), ensure_ascii=False)
            by_grammar = accepts(compiled.matcher, engine, text)
            found = by_grammar and validator.check(text) is None
            is_right &= found == test["valid"]
            if not test["valid"]:
                num_invalid += 1
                invalid_by_grammar += by_grammar
                invalid_accepted += found
        right += is_right
    n = len(rows)
    return {
        "schemas": n,
        "admitted": round(admitted / n, 4),
        "enforced_by_the_grammar_alone": round(enforced / n, 4),
        "every_test_right": round(right / n, 4),
        "invalid_instances": num_invalid,
        "invalid_accepted_by_the_grammar": invalid_by_grammar,
        "invalid_accepted_after_validation": invalid_accepted,
        "refused": refused,
    }


def accepts(matcher: LlguidanceMatcher, engine: LlguidanceEngine, text: str) -> bool:
    """Whether a text is complete under a grammar."""
    fork = matcher.fork()
    return fork.try_advance(engine.vocabulary.encode(text.encode())) and fork.is_accepting


# ------------------------------------------------------------ masks


def masks(engine: LlguidanceEngine, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Times of compilations and masks, without an engine around them."""
    bitmask = np.zeros(engine.mask_len, np.int32)
    first, each, first_sizes = [], [], []
    texts: list[tuple[LlguidanceMatcher, list[int]]] = []
    for row in rows:
        begin = time.perf_counter()
        try:
            compiled, matcher = compile_grammar(
                engine, GrammarSpec("json_schema", json.dumps(row["schema"]))
            )
            matcher.fill(bitmask)
        except GrammarError:
            continue
        first.append((time.perf_counter() - begin) * 1e3)
        first_sizes.append(len(compiled.grammar))
        valid = [test["data"] for test in row["tests"] if test["valid"]]
        for data in valid[:3]:
            text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
            tokens = engine.vocabulary.encode(text.encode())
            each += walk_times(matcher.fork(), tokens, bitmask)
            if len(tokens) > 20 and accepts(matcher, engine, text):
                texts.append((matcher, tokens))
    sql, sql_matcher = compile_grammar(engine, GrammarSpec("gbnf", SQL))
    prose, prose_matcher = compile_grammar(engine, GrammarSpec("regex", PROSE))
    assert sql.grammar
    assert prose.grammar
    sql_times = walk_times(sql_matcher, engine.vocabulary.encode(SQL_TEXT.encode()), bitmask)
    prose_times = walk_times(prose_matcher, engine.vocabulary.encode(PROSE_TEXT.encode()), bitmask)
    return {
        "vocabulary": len(engine.vocabulary),
        "schema_to_first_mask_ms": percentiles(first, 50, 99, 100),
        "mask_us": percentiles(each, 50, 99, 99.9),
        "masks": len(each),
        "sql_mask_us": percentiles(sql_times, 50, 99, 100),
        "prose_mask_us": percentiles(prose_times, 50, 99, 100),
        "step_of_64_slots_one_schema_us": batch_times(engine, texts[:1]),
        "step_of_64_slots_different_us": batch_times(engine, texts),
    }


def walk_times(
    matcher: LlguidanceMatcher, tokens: list[int], bitmask: np.ndarray[Any, Any]
) -> list[float]:
    """Return the microseconds of every mask along a text, as far as it is allowed: of the call
    that a step makes for many rows at once, without what Python adds to a single one."""
    times = []
    pointer, num_bytes = bitmask.ctypes.data, bitmask.nbytes
    for token_id in tokens:
        begin = time.perf_counter()
        matcher.inner.unsafe_compute_mask_ptr(pointer, num_bytes)
        times.append((time.perf_counter() - begin) * 1e6)
        if not matcher.try_advance([token_id]):
            break
    return times


def batch_times(
    engine: LlguidanceEngine, texts: list[tuple[LlguidanceMatcher, list[int]]]
) -> dict[str, float]:
    """Return the time of a step's masks: 64 slots, each at a place of its own in its text."""
    rng = np.random.default_rng(0)
    templates: dict[int, list[LlguidanceMatcher]] = {}
    slots = []
    for slot in range(64):
        matcher, tokens = texts[slot % len(texts)]
        # As the cache does it: one template for eight texts, at most four.
        built = templates.setdefault(id(matcher), [matcher])
        if len(texts) == 1 and len(built) < 4:
            built.append(engine.build(matcher._grammar))
        fork = built[slot % len(built)].fork()
        at = int(rng.integers(0, len(tokens) - 12))
        assert fork.try_advance(tokens[:at])
        slots.append((fork, tokens, at))
    bitmasks = np.empty((64, engine.mask_len), np.int32)
    matchers = [(matcher, row) for row, (matcher, _, _) in enumerate(slots)]
    times = []
    for step in range(12):
        begin = time.perf_counter()
        engine.fill_rows(matchers, bitmasks)
        times.append((time.perf_counter() - begin) * 1e6)
        for matcher, tokens, at in slots:
            matcher.advance(tokens[at + step])
    return percentiles(times[1:], 50, 100)


# ------------------------------------------------------------ walks


def walks(engine: LlguidanceEngine, rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Random walks, cut by a random budget: every result has to parse and to validate, and what was
    forced has to be what the tokenizer makes of the text."""
    rng = np.random.default_rng(seed)
    specs = [
        (row["id"], GrammarSpec("json_schema", json.dumps(row["schema"]), "valid", retries=20))
        for row in rows
    ]
    specs += [(pattern, GrammarSpec("regex", pattern, "valid")) for pattern in REGEXES]
    counts = {"walks": 0, "tokens": 0, "forced": 0, "valid": 0, "refused_before": 0, "failed": 0}
    problems: list[str] = []
    lengths = []
    for name, spec in specs:
        try:
            compiled, matcher = compile_grammar(engine, spec)
        except GrammarError:
            counts["not_admitted"] = counts.get("not_admitted", 0) + 1
            continue
        needed = len(compiled.shortest or ())
        budget = max(1, needed + int(rng.integers(0, 120)))
        session = Session(
            spec,
            compiled,
            engine.vocabulary,
            Budget(budget, 0),
            frozenset(engine.vocabulary.end_ids),
            matcher,
            Exclusion(engine.vocabulary),
        )
        counts["walks"] += 1
        try:
            random_walk(session, rng)
        except GrammarError as error:
            counts["failed"] += 1
            problems.append(f"{name}: typed failure: {str(error)[:140]}")
            continue
        counts["tokens"] += len(session.written.token_ids)
        counts["forced"] += session.written.num_forced
        lengths.append(len(session.written.token_ids))
        text = session.written.bound_text
        problem = check_text(spec, text) or check_forced(session, engine)
        if len(session.written.token_ids) > budget:
            problem = f"{len(session.written.token_ids)} tokens of {budget}"
        if problem:
            problems.append(f"{name}: {problem}")
        else:
            counts["valid"] += 1
    return {
        **counts,
        "tokens_a_text": percentiles([float(n) for n in lengths], 50, 100),
        "problems": problems,
    }


def random_walk(session: Session, rng: np.random.Generator) -> None:
    """Generate uniformly from the masks, with the final check and its retries."""
    vocabulary = session.vocabulary
    bitmask = np.zeros(-(-len(vocabulary) // 32), np.int32)
    accepted = session.start()
    while True:
        while not accepted.is_over:
            session.matcher.fill(bitmask)
            session.restrict(bitmask)
            ids = allowed_ids(bitmask, len(vocabulary))
            accepted = session.accept(int(ids[rng.integers(len(ids))]), 0.0, 0.0)
        validator = session.compiled.validator
        failure = validator.check(session.written.bound_text) if validator is not None else None
        if failure is None:
            return
        if session.attempts > session.spec.retries:
            raise GrammarError(f"no valid text in {session.attempts} attempts: {failure.message}")
        session.rewind(session.matcher.restarted(), failure)
        accepted = accepted._replace(is_over=False)


def check_text(spec: GrammarSpec, text: str) -> str:
    """Return what is wrong with a finished text, by other means than ours."""
    if spec.kind == "regex":
        import regex

        return "" if regex.fullmatch(spec.text, text) else f"no match: {text[:80]!r}"
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"no JSON: {error}: {text[-80:]!r}"
    schema = json.loads(spec.text)
    cls = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    error = next(iter(cls(schema).iter_errors(value)), None)
    return "" if error is None else f"not valid: {error.message[:120]}"


def check_forced(session: Session, engine: LlguidanceEngine) -> str:
    """Return where a run of forced tokens is not how the tokenizer spells its text, alone or after
    the token before it: that may have been split from it otherwise."""
    vocabulary = engine.vocabulary
    run: list[int] = []
    before: list[int] = []
    forced_at = set(session.written.forced_at)
    for at, token_id in enumerate([*session.written.token_ids, -1]):
        if at in forced_at:
            run.append(token_id)
            continue
        spellings = [run, before + run]
        if run and all(vocabulary.encode(vocabulary.decode(ids)) != ids for ids in spellings):
            return f"forced {[vocabulary.texts[i] for i in run]} is not canonical"
        run, before = [], [token_id]
    return ""


# ------------------------------------------------------------ the command


def main() -> None:
    """Run one part and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["coverage", "masks", "walks"])
    parser.add_argument("--schemas", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--end-id", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    spec = json.loads(arguments.tokenizer.read_text(encoding="utf-8"))
    vocab_size = max(max(spec["model"]["vocab"].values()) + 1, 1)
    engine = LlguidanceEngine(
        arguments.tokenizer, vocab_size, [arguments.end_id], arguments.threads
    )
    engine.vocabulary.build_look_ups()  # as the processes do that judge constraints
    rows = read_schemas(arguments.schemas)[: arguments.limit]
    if arguments.part == "coverage":
        found = coverage(engine, rows)
    elif arguments.part == "masks":
        found = masks(engine, rows)
    else:
        found = walks(engine, rows, arguments.seed)
    print(json.dumps(found, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
