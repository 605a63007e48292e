"""Strings under a pattern or a format, for the ends of texts that have to have one."""

from __future__ import annotations

import json

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.closing import shortest_close
from radixrt.runtime.grammar.llguidance import LlguidanceEngine, json_grammar, regex_grammar

MOST_LOOKED_FOR = 64
"""Patterns of one schema that a text is looked for."""

_SEARCH_S = 0.05

_OF_FORMAT = {
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "date": "2000-01-01",
    "duration": "P1D",
    "email": "a@b.co",
    "hostname": "a",
    "ipv4": "1.1.1.1",
    "ipv6": "::1",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "a:b",
}


class PatternTexts:
    """Remembers a string for each schema that was asked for; ``known`` are the JSON texts by the
    schema's, "" where there is none. With an ``engine`` what is not known is looked for, which
    takes milliseconds."""

    def __init__(self, known: dict[str, str], engine: LlguidanceEngine | None = None) -> None:
        self.known = known
        self._engine = engine

    def __call__(self, schema: str) -> str | None:
        """Return the JSON text of a string under a schema; None when none is known or found."""
        found = self.known.get(schema)
        if found is None and self._engine is not None and len(self.known) < MOST_LOOKED_FOR:
            found = self.known[schema] = self._find(self._engine, json.loads(schema)) or ""
        return found or None

    def _find(self, engine: LlguidanceEngine, schema: dict[str, object]) -> str | None:
        example = _OF_FORMAT.get(str(schema.get("format")))
        if example is not None and schema.keys() == {"type", "format"}:
            return json.dumps(example)
        pattern = schema.get("pattern")
        if isinstance(pattern, str) and schema.keys() == {"type", "pattern"}:
            # In a JSON schema a pattern without anchors may be anywhere in a string, and a search
            # gets lost in what can come before.
            bare = pattern.removeprefix("^")
            bare = bare.removesuffix("$") if not bare.endswith("\\$") else bare
            found = self._shortest(engine, regex_grammar(bare))
            if found is not None:
                return json.dumps(found, ensure_ascii=False)
        return self._shortest(engine, json_grammar(json.dumps(schema), lenient=True))

    def _shortest(self, engine: LlguidanceEngine, grammar: str) -> str | None:
        vocabulary = engine.vocabulary
        try:
            matcher = engine.build(grammar)
            way = shortest_close(matcher, vocabulary, 500, is_json=False, seconds=_SEARCH_S)
            return None if way is None else vocabulary.decode(way).decode()
        except (GrammarError, UnicodeDecodeError):
            return None
