"""One generation under a constraint, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.closing import shortest_close, still_closes
from radixrt.runtime.grammar.compiled import Compiled
from radixrt.runtime.grammar.exclusion import Exclusion
from radixrt.runtime.grammar.json_path import JsonPath
from radixrt.runtime.grammar.json_text import matches
from radixrt.runtime.grammar.llguidance import LlguidanceMatcher
from radixrt.runtime.grammar.opening import Decision, FreeText, free_text
from radixrt.runtime.grammar.validate import Failure
from radixrt.runtime.grammar.vocabulary import Vocabulary, bit_of, clear_bits, count_bits, set_bit
from radixrt.runtime.wire import FieldParams, GrammarSpec, MarkKind, TokenMark

NEAR_THE_END = 64
"""With more tokens left than this, and several times what closing takes, nothing is looked up."""

FAR_FROM_THE_END = 4
"""How many times the tokens of the last known way to the end count as far."""

BYTES_A_TOKEN = 2
"""Of the end of a JSON text, at least on average."""

SEARCH_S = 0.03
"""Seconds of processor time that the loop may spend on one search for the end; then the last known
way is taken."""


class Accepted(NamedTuple):
    """What became of a sampled token: the tokens to append instead of it (it is the first of them
    unless it was ``replaced``), and whether the text ends here."""

    token_ids: list[int]
    replaced: bool
    is_over: bool


NOTHING = Accepted([], False, False)

GOES_ON = Accepted([], False, False)
"""What becomes of most tokens: they are appended, and another one is sampled."""


@dataclass(frozen=True, slots=True)
class Budget:
    """``max_tokens`` a text may have, ``min_tokens`` before it may end."""

    max_tokens: int
    min_tokens: int


@dataclass(slots=True, eq=False)
class Session:
    """The state of a constrained generation. Owned by the engine's loop.

    Text is *free* before the constraint begins (reasoning, text before a tool call) and *bound*
    after: only then are there masks. ``token_ids`` are all that was appended (forced ones at the
    indices ``forced_at``), ``text`` their bytes, ``bound_at`` where in it the bound part begins;
    None while text is free.
    """

    spec: GrammarSpec
    compiled: Compiled
    vocabulary: Vocabulary
    budget: Budget
    stops: frozenset[int]
    matcher: LlguidanceMatcher
    exclusion: Exclusion
    prompt_tail: bytes = b""
    token_ids: list[int] = field(default_factory=list)
    text: bytearray = field(default_factory=bytearray)
    bound_at: int | None = None
    attempts: int = 1
    forced_at: list[int] = field(default_factory=list)
    marks: list[TokenMark] = field(default_factory=list)
    allowed: int = 0
    _free: FreeText | None = None
    _at: JsonPath | None = None
    _way: list[int] | None = None
    _field: FieldParams | None = None
    _field_tokens: int = 0
    _heals: int = 0
    _is_released: bool = False
    _is_plain: bool = False
    _plain_until: int = 0

    # ------------------------------------------------------------ beginning

    def start(self) -> Accepted:
        """Begin: return the tokens that can be appended before anything is sampled.

        Raises ``GrammarError`` when the text cannot be closed within its budget.
        """
        self._free = free_text(
            self.spec, self.compiled.tools, self.vocabulary, self.stops, self.prompt_tail
        )
        if self.spec.finish == "valid":
            self._check_budget()
        if self._free is None:
            self._bind(0)
            return self._follow([], replaced=False)
        return NOTHING

    def _check_budget(self) -> None:
        shortest = self.compiled.shortest
        if shortest is None:
            return
        needed = len(shortest) + (self._free.num_closing if self._free is not None else 0)
        if self._free is not None and self._free.is_optional:
            return
        if needed > self.budget.max_tokens:
            raise GrammarError(
                f"max_tokens={self.budget.max_tokens}: the shortest text that was found takes "
                f"{needed} tokens; allow at least that many, or set finish='cut'"
            )

    def _bind(self, at: int) -> None:
        """The constraint begins at byte ``at`` of the text."""
        self.bound_at = at
        self._free = None
        self._heals = at + len(self.spec.heal.encode())
        self._way = list(self.compiled.shortest) if self.compiled.shortest is not None else None
        if self.compiled.is_json and self.spec.fields:
            self._at = JsonPath()
            self._note_field()
        self._note_plain()

    def _near(self, known: Sequence[int]) -> int:
        """Return with how many tokens left, at most, another one may be one too many, where
        ``known`` was a way to the end."""
        outlook = self.compiled.outlook
        if outlook is not None and outlook.most_left:
            most = len(known) + outlook.most_left // BYTES_A_TOKEN
        else:
            most = FAR_FROM_THE_END * max(len(known), len(self.compiled.shortest or ()))
        return max(NEAR_THE_END, most)

    def _note_plain(self) -> None:
        """Note whether a token concerns the matcher and the budget alone, and up to how many
        tokens the budget does not matter."""
        self._is_plain = (
            self.bound_at is not None
            and self._at is None
            and not self.exclusion
            and not self.spec.marks
            and self.spec.kind != "free"
            and self._heals <= len(self.text)
        )
        self._note_far()

    def _note_far(self) -> None:
        until = self.budget.max_tokens - 1
        if self._steers:
            known = self._way
            until -= until if known is None else self._near(known)
        self._plain_until = until if self._is_plain else 0

    # ------------------------------------------------------------ masks

    @property
    def needs_mask(self) -> bool:
        """Whether the next token has to be masked."""
        if self._free is not None:
            return self._free.needs_mask
        return not self._is_released

    @property
    def is_mask_complete(self) -> bool:
        """Whether ``restrict`` has nothing to add to the mask that the matcher has just written."""
        return (
            self._is_plain
            and self.matcher.is_mask_complete
            and len(self.token_ids) >= self.budget.min_tokens
        )

    def restrict(self, bitmask: NDArray[np.int32]) -> None:
        """Complete a mask that the matcher has just written; raises as ``Matcher.fill`` does."""
        self.matcher.check(bitmask)
        if self._free is not None:
            for token_id in self._free.also_allowed:
                set_bit(bitmask, token_id)
        if self.exclusion:
            self.exclusion.restrict(bitmask, bytes(self.text[self.bound_at or 0 :]))
        if len(self.token_ids) < self.budget.min_tokens:
            self._put_off_the_end(bitmask)
        if self.spec.marks or self.exclusion:
            self.allowed = count_bits(bitmask)
            if self.allowed == 0:
                raise GrammarError("no token is left: every continuation was excluded")

    def _put_off_the_end(self, bitmask: NDArray[np.int32]) -> None:
        """Forbid the end before ``min_tokens``, where the constraint allows anything else."""
        ends = [token_id for token_id in self.vocabulary.end_ids if bit_of(bitmask, token_id)]
        if ends and count_bits(bitmask) > len(ends):
            clear_bits(bitmask, ends)

    # ------------------------------------------------------------ tokens

    @property
    def is_complete(self) -> bool:
        """Whether the bound text is complete and nothing can follow it."""
        return self.bound_at is not None and self.matcher.is_finished

    def accept_plain(self, token_id: int) -> Accepted | None:
        """``accept`` for a token that only goes on with a text: ``GOES_ON`` where that is all, None
        when there is more to it, and nothing was done."""
        if len(self.token_ids) >= self._plain_until or token_id in self.stops:
            return None  # ``accept`` looks for a way to the end
        matcher = self.matcher
        if not matcher.take(token_id):
            return None
        self.token_ids.append(token_id)
        self.text += self.vocabulary.texts[token_id]
        way = self._way
        if way and way[0] == token_id:
            self._way = way[1:]
        is_finished = matcher.is_finished
        forced = matcher.forced() if self.spec.jump_forward and not is_finished else []
        if is_finished or forced:
            return self._follow([token_id], replaced=False, forced=forced)
        return GOES_ON

    @property
    def _steers(self) -> bool:
        return self.spec.finish == "valid" and self.compiled.shortest is not None

    def accept(self, token_id: int, removed: float, logprob: float) -> Accepted:
        """Take a sampled token in. ``removed`` and ``logprob`` are for its mark.

        Raises ``GrammarError`` when the matcher gives up.
        """
        if self._free is not None:
            return self._accept_free(token_id, removed, logprob)
        if token_id in self.stops:
            self._append(token_id, "sampled", removed, logprob)
            return Accepted([token_id], False, True)
        if self._is_released:
            self._append(token_id, "sampled", removed, logprob)
            return Accepted([token_id], False, len(self.token_ids) >= self.budget.max_tokens)
        self.matcher.advance(token_id)
        steered = self._steer(token_id)
        if steered is not None:
            for other in steered:
                self._append(other, "steered")
            return Accepted(steered, True, True)
        is_healing = self._heals > len(self.text)
        self._append(token_id, "healed" if is_healing else "sampled", removed, logprob)
        if self.spec.kind == "free" and len(self.text) >= self._heals:
            self._is_released = True
            return Accepted([token_id], False, len(self.token_ids) >= self.budget.max_tokens)
        if self._is_plain:
            self._note_far()
        else:
            self._note_plain()
        return self._follow([token_id], replaced=False)

    def _follow(
        self, token_ids: list[int], *, replaced: bool, forced: list[int] | None = None
    ) -> Accepted:
        """Append the tokens that are forced after ``token_ids``, which were appended; ``forced``
        where they are known."""
        if self.matcher.is_finished:
            return Accepted(token_ids, replaced, True)
        closed = self._close_field()
        if closed:
            token_ids = token_ids + closed
            if self.matcher.is_finished:
                return Accepted(token_ids, replaced, True)
        if self.spec.jump_forward and not self.exclusion:
            forced = self._take_forced(self.matcher.forced() if forced is None else forced)
            for token_id in forced:
                self._append(token_id, "forced")
            token_ids = token_ids + forced
            if forced and self.matcher.is_finished:
                return Accepted(token_ids, replaced, True)
        is_over = len(self.token_ids) >= self.budget.max_tokens
        if is_over and self.spec.finish == "valid" and not self.matcher.is_accepting:
            raise GrammarError(
                f"the text is not complete after max_tokens={self.budget.max_tokens}; allow more "
                "tokens"
            )
        return Accepted(token_ids, replaced, is_over)

    def _take_forced(self, forced: list[int]) -> list[int]:
        """Accept and return the forced tokens, as many as the budget allows.

        None near its end if they would take too many: a way to the end may spell what is forced
        together with what comes after it.
        """
        if not self.token_ids:
            forced = list(self.compiled.opening)
        left = self.budget.max_tokens - len(self.token_ids)
        forced = forced[:left]
        left -= len(forced)
        if not forced or not self.matcher.try_advance(forced):
            return []
        way = self._way
        if way is None or not self._steers:
            return forced
        rest = self._after(way, forced)
        if left > self._near(way):
            self._way = way if rest is None else rest
            return forced
        if rest is None or len(rest) > left or not still_closes(self.matcher, rest):
            rest = self._search(left, self.vocabulary.decode(forced))
        if rest is None:
            self.matcher.rollback(len(forced))
            return []
        self._way = rest
        return forced

    def _after(self, way: list[int], token_ids: list[int]) -> list[int] | None:
        """Return what is left of a way after tokens that begin it, if they do."""
        if way[: len(token_ids)] == token_ids:
            return way[len(token_ids) :]
        text, begun = self.vocabulary.decode(way), self.vocabulary.decode(token_ids)
        return self.vocabulary.encode(text[len(begun) :]) if text.startswith(begun) else None

    def _append(
        self, token_id: int, kind: MarkKind, removed: float = 0.0, logprob: float = 0.0
    ) -> None:
        """Note a token that the matcher has accepted."""
        piece = self.vocabulary.texts[token_id]
        self.token_ids.append(token_id)
        if kind == "forced":
            self.forced_at.append(len(self.token_ids) - 1)
        self.text += piece
        if self.spec.marks:
            allowed = self.allowed if kind in ("sampled", "healed") else 1
            self.marks.append(TokenMark(kind, allowed, removed, logprob))
        if self._at is not None and self._free is None:
            healing = max(0, self._heals - len(self.text) + len(piece))
            self._at.feed(piece[healing:])
            self._note_field()

    # ------------------------------------------------------------ the final check

    @property
    def is_checked(self) -> bool:
        """Whether the text, now that it is over, is one that has to pass a final check."""
        if self.compiled.validator is None or self.bound_at is None:
            return False
        return self.spec.finish == "valid" or self.matcher.is_accepting

    @property
    def is_provisional(self) -> bool:
        """Whether the final check may find something that the grammar does not enforce."""
        return self.bound_at is not None and not self.compiled.is_enforced

    @property
    def bound_text(self) -> str:
        """The text that the constraint is about."""
        return self.text[self._heals :].decode("utf-8", "replace")

    @property
    def num_forced(self) -> int:
        """Tokens that were appended without sampling because no other was possible."""
        return len(self.forced_at)

    def exclude(self, text: bytes, start: LlguidanceMatcher) -> bool:
        """Exclude texts that begin with a JSON value; False when the constraint has no other.
        ``start`` is a matcher at the beginning of the constraint; it is not changed."""
        is_open = text[-1:] not in (b'"', b"}", b"]")
        return self.exclusion.add(text, is_open=is_open, start=start)

    def rewind(self, start: LlguidanceMatcher, failure: Failure) -> int:
        """Take the text back to the beginning of a value that failed the final check and exclude
        it; ``start`` is a matcher at the constraint's beginning. Returns how many tokens are kept.

        Raises ``GrammarError`` when the constraint leaves no other text.
        """
        assert self.bound_at is not None
        bound = self.bound_text
        value_at = self._heals + len(bound[: failure.start].encode())
        value_end = self._heals + len(bound[: failure.end].encode())
        if not self.exclude(bytes(self.text[self.bound_at : value_end]), start):
            raise GrammarError(f"the constraint leaves no valid text: {failure.message}")
        kept, length = [], 0
        for token_id in self.token_ids:
            length += len(self.vocabulary.texts[token_id])
            if length > value_at:
                break
            kept.append(token_id)
        self._replay(start, kept)
        self.attempts += 1
        return len(kept)

    def _replay(self, start: LlguidanceMatcher, kept: list[int]) -> None:
        """Become what the session was after the tokens ``kept``; ``start`` becomes its matcher."""
        bound_at = self.bound_at
        self.text = bytearray(self.vocabulary.decode(kept))
        if bound_at is None or len(self.text) < bound_at:
            raise GrammarError("a token holds both free and constrained text")
        length, bound_ids = 0, []
        for token_id in kept:
            piece = self.vocabulary.texts[token_id]
            if length >= bound_at:
                bound_ids.append(token_id)
            elif length + len(piece) > bound_at:
                bound_ids += self.vocabulary.encode(piece[bound_at - length :])
            length += len(piece)
        if bound_ids and not start.try_advance(bound_ids):
            raise GrammarError("the text that is kept is not the constraint's")
        self.matcher = start
        self.token_ids = kept
        del self.marks[len(kept) :]
        self.forced_at = [at for at in self.forced_at if at < len(kept)]
        self._way, self._field = None, None
        if self._at is not None:
            self._at = JsonPath()
            self._at.feed(bytes(self.text[self._heals :]))
            self._note_field()
        self._note_plain()

    # ------------------------------------------------------------ the budget

    def _steer(self, token_id: int) -> list[int] | None:
        """Return the tokens to the end in place of one that was just accepted by the matcher, when
        the text could not be closed any more after it; None when it could."""
        if not self._steers:
            return None  # with no known end, the text has to come to one by itself
        left = self.budget.max_tokens - len(self.token_ids) - 1
        known = self._way
        if known and known[0] == token_id:
            self._way = known[1:]
            return None
        if known is not None and left > self._near(known):
            return None
        if self.matcher.is_finished:
            return None
        found = self._way_after(token_id, left)
        if found is not None:
            self._way = found
            return None
        self.matcher.rollback(1)
        way = self._way_from_here(left + 1)
        for other in way:
            self.matcher.advance(other)
        return way

    def _way_after(self, token_id: int, limit: int) -> list[int] | None:
        """Return a way to the end of at most ``limit`` tokens after a token that was just accepted:
        the one from before it, one that was found for another text, or a new one.

        None as well where the ways that are known are all longer: a search takes long, and the text
        can still be closed without the token.
        """
        known, piece = self._way, self.vocabulary.texts[token_id]
        if known is None:
            return self._search(limit, piece)
        is_too_long = False
        ways = self.compiled.ways
        for guess in (known, *ways.guesses(known, token_id, self.vocabulary)):
            way = [*guess]
            if still_closes(self.matcher, way):
                if len(way) <= limit:
                    return way
                is_too_long = True
        if is_too_long and len(known) <= limit + 1:
            return None
        found = self._search(limit, piece)
        if found is not None:
            ways.add(known, token_id, found)
        return found

    def _search(self, limit: int, piece: bytes = b"") -> list[int] | None:
        """Return a way to the end; ``piece`` is what the matcher has taken beyond ``text``."""
        is_json = self.compiled.is_json or self.compiled.tools is not None
        is_healing = self._heals > len(self.text)
        return shortest_close(
            self.matcher,
            self.vocabulary,
            limit,
            is_json=is_json,
            seconds=SEARCH_S,
            completer=None if is_healing else self.compiled.completer,
            text=bytes(self.text[self._heals :]) + piece,
        )

    def _way_from_here(self, limit: int) -> list[int]:
        """Return a way to the end of at most ``limit`` tokens."""
        if self.matcher.is_accepting:
            return []
        way = self._way
        if way is not None and len(way) <= limit and still_closes(self.matcher, way):
            return way
        found = self._search(limit)
        if found is None:
            raise GrammarError(
                f"the text cannot be closed within max_tokens={self.budget.max_tokens}; "
                "allow more tokens"
            )
        return found

    # ------------------------------------------------------------ free text

    def _accept_free(self, token_id: int, removed: float, logprob: float) -> Accepted:
        free = self._free
        assert free is not None
        left = self.budget.max_tokens - len(self.token_ids)
        needed = len(self.compiled.shortest or ()) if self.spec.finish == "valid" else 0
        decision = free.take(token_id, left, needed)
        if not decision.begins:
            appended = [token_id] if decision.instead is None else decision.instead
            self._append_free(appended, decision, removed, logprob)
            is_end = decision.instead is None and token_id in self.stops
            is_over = is_end or len(self.token_ids) >= self.budget.max_tokens
            return Accepted([*appended, *decision.then], decision.instead is not None, is_over)
        replaced, appended = decision.instead is not None, decision.instead or [token_id]
        surplus = self.vocabulary.encode(decision.surplus) if decision.surplus else []
        if surplus and decision.surplus == self.vocabulary.texts[token_id]:
            surplus = [token_id]  # all of it: the mask has allowed it as it is
        if surplus and not self._reads(surplus):
            # What the token spells beyond the free text is not allowed: only the rest of it stays.
            kept = self.vocabulary.spell(token_id).removesuffix(decision.surplus)
            control = self.vocabulary.control_id(kept.decode("utf-8", "replace"))
            kept_ids = [control] if control is not None else self.vocabulary.encode(kept)
            replaced, appended = True, kept_ids if kept else []
        has_surplus = bool(surplus) and not replaced
        self._append_free(appended, decision, removed, logprob)
        self._bind(len(self.text) - (len(decision.surplus) if has_surplus else 0))
        if has_surplus and self._at is not None:
            self._at.feed(decision.surplus)
            self._note_field()
        needed = len(self.compiled.shortest or ())
        if self.spec.finish == "valid" and needed > self.budget.max_tokens - len(self.token_ids):
            raise GrammarError(
                f"max_tokens={self.budget.max_tokens}: {len(self.token_ids)} tokens came before "
                f"the constraint, which takes at least {needed}; allow more tokens"
            )
        return self._follow(appended, replaced=replaced)

    def _append_free(
        self, token_ids: list[int], decision: Decision, removed: float, logprob: float
    ) -> None:
        for token_id in token_ids:
            kind: MarkKind = "sampled" if decision.instead is None else "steered"
            self._append(token_id, kind, removed, logprob)
        for token_id in decision.then:
            self._append(token_id, "steered")

    def _reads(self, token_ids: list[int]) -> bool:
        """Let the matcher accept tokens; False when it cannot, and has not."""
        return self.matcher.try_advance(token_ids)

    # ------------------------------------------------------------ fields

    @property
    def field_params(self) -> FieldParams | None:
        """The sampling of the field that is being written, if it has one of its own."""
        return self._field

    def _note_field(self) -> None:
        at, found = self._at, None
        if at is not None and at.at_value:
            path = at.path
            found = next((f for f in self.spec.fields if matches(f.pointer, path)), None)
        if found is not self._field:
            self._field, self._field_tokens = found, 0
        elif found is not None:
            self._field_tokens += 1

    def _close_field(self) -> list[int]:
        """Return the tokens that end a field whose own tokens are used up; they are appended."""
        params = self._field
        if params is None or params.max_tokens is None or self._field_tokens < params.max_tokens:
            return []
        left = self.budget.max_tokens - len(self.token_ids)
        way = self._search(left)
        appended = []
        for token_id in way or ():
            self.matcher.advance(token_id)
            self._append(token_id, "steered")
            appended.append(token_id)
            if self._field is not params:
                break
        self._way = None
        return appended
