"""One generation under a constraint, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.budget import Budget
from radixrt.runtime.grammar.compiled import Compiled
from radixrt.runtime.grammar.exclusion import Exclusion
from radixrt.runtime.grammar.fields import FieldReader
from radixrt.runtime.grammar.llguidance import LlguidanceMatcher
from radixrt.runtime.grammar.opening import Decision, FreeText, free_text
from radixrt.runtime.grammar.retrying import take_back
from radixrt.runtime.grammar.steering import Steering
from radixrt.runtime.grammar.validate import Failure
from radixrt.runtime.grammar.vocabulary import Vocabulary, bit_of, clear_bits, count_bits, set_bit
from radixrt.runtime.grammar.written import Written
from radixrt.runtime.wire import FieldParams, GrammarSpec, MarkKind, TokenMark


class Accepted(NamedTuple):
    """What became of a sampled token: the tokens to append instead of it (it is the first of them
    unless it was ``replaced``), and whether the text ends here."""

    token_ids: list[int]
    replaced: bool
    is_over: bool


NOTHING = Accepted([], False, False)

GOES_ON = Accepted([], False, False)
"""What becomes of most tokens: they are appended, and another one is sampled."""


@dataclass(slots=True, eq=False)
class Session:
    """The state of a constrained generation. Owned by the engine's loop.

    Text is *free* before the constraint begins (reasoning, text before a tool call) and *bound*
    after: only then are there masks. ``written`` is all of it. Where marks are wanted, ``allowed``
    is how many tokens the last mask left.
    """

    spec: GrammarSpec
    compiled: Compiled
    vocabulary: Vocabulary
    budget: Budget
    stops: frozenset[int]
    matcher: LlguidanceMatcher
    exclusion: Exclusion
    prompt_tail: bytes = b""
    written: Written = field(init=False)
    attempts: int = 1
    allowed: int = 0
    _free: FreeText | None = None
    _steering: Steering = field(init=False, repr=False)  # set when the bound text begins
    _fields: FieldReader | None = None
    _is_released: bool = False
    _is_plain: bool = False
    _plain_until: int = 0

    def __post_init__(self) -> None:
        self.written = Written(self.vocabulary)

    # ------------------------------------------------------------ beginning

    def start(self) -> Accepted:
        """Begin: return the tokens that can be appended before anything is sampled.

        Raises ``GrammarError`` when the text cannot be closed within its budget.
        """
        self._free = free_text(
            self.spec, self.compiled.tools, self.vocabulary, self.stops, self.prompt_tail
        )
        if self.spec.finish == "valid":
            self.budget.check_start(self.compiled.shortest, self._free)
        if self._free is None:
            self._bind(0)
            return self._follow([], replaced=False)
        return NOTHING

    def _bind(self, at: int) -> None:
        """The constraint begins at byte ``at`` of the text."""
        self._free = None
        self.written.bound_at = at
        self.written.healed_at = at + len(self.spec.heal.encode())
        self._steer(self.compiled.shortest)
        if self.compiled.is_json and self.spec.fields:
            self._fields = FieldReader(self.spec.fields)
        self._note_plain()

    def _steer(self, way: Sequence[int] | None) -> None:
        """Steer to the end from here, to which ``way`` leads if it is known."""
        is_on = self.spec.finish == "valid" and self.compiled.shortest is not None
        known = list(way) if way is not None else None
        self._steering = Steering(
            self.compiled, self.matcher, self.written, self.budget.max_tokens, is_on, known
        )

    def _note_plain(self) -> None:
        """Note whether a token concerns the matcher and the budget alone, and up to how many
        tokens the budget does not matter."""
        self._is_plain = (
            self._fields is None
            and not self.exclusion
            and not self.spec.marks
            and self.spec.kind != "free"
            and not self.written.is_healing
        )
        self._plain_until = self._steering.far_until() if self._is_plain else 0

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
            and len(self.written.token_ids) >= self.budget.min_tokens
        )

    def restrict(self, bitmask: NDArray[np.int32]) -> None:
        """Complete a mask that the matcher has just written; raises as ``Matcher.fill`` does."""
        self.matcher.check(bitmask)
        if self._free is not None:
            for token_id in self._free.also_allowed:
                set_bit(bitmask, token_id)
        if self.exclusion:
            self.exclusion.restrict(bitmask, bytes(self.written.text[self.written.bound_at or 0 :]))
        if len(self.written.token_ids) < self.budget.min_tokens:
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
        return self.written.bound_at is not None and self.matcher.is_finished

    @property
    def field_params(self) -> FieldParams | None:
        """The sampling of the field that is being written, if it has one of its own."""
        return self._fields.current if self._fields is not None else None

    @property
    def _left(self) -> int:
        """Tokens that may still be appended."""
        return self.budget.max_tokens - len(self.written.token_ids)

    def accept_plain(self, token_id: int) -> Accepted | None:
        """``accept`` for a token that only goes on with a text: ``GOES_ON`` where that is all, None
        when there is more to it, and nothing was done."""
        written, matcher = self.written, self.matcher
        if len(written.token_ids) >= self._plain_until or token_id in self.stops:
            return None  # ``accept`` looks for a way to the end
        if not matcher.take(token_id):
            return None
        written.append(token_id)
        self._steering.goes_along(token_id)
        is_finished = matcher.is_finished
        forced = matcher.forced() if self.spec.jump_forward and not is_finished else []
        if is_finished or forced:
            return self._follow([token_id], replaced=False, forced=forced)
        return GOES_ON

    def accept(self, token_id: int, removed: float, logprob: float) -> Accepted:
        """Take a sampled token in. ``removed`` and ``logprob`` are for its mark.

        Raises ``GrammarError`` when the matcher gives up.
        """
        if self._free is not None:
            return self._accept_free(self._free, token_id, removed, logprob)
        if token_id in self.stops:
            self._append(token_id, "sampled", removed, logprob)
            return Accepted([token_id], False, True)
        if self._is_released:
            self._append(token_id, "sampled", removed, logprob)
            return Accepted([token_id], False, self._left <= 0)
        self.matcher.advance(token_id)
        end = self._steering.end_instead(token_id)
        if end is not None:
            for other in end:
                self._append(other, "steered")
            return Accepted(end, True, True)
        kind: MarkKind = "healed" if self.written.is_healing else "sampled"
        self._append(token_id, kind, removed, logprob)
        if self.spec.kind == "free" and not self.written.is_healing:
            self._is_released = True
            return Accepted([token_id], False, self._left <= 0)
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
        is_over = self._left <= 0
        if is_over and self.spec.finish == "valid" and not self.matcher.is_accepting:
            raise GrammarError(
                f"the text is not complete after max_tokens={self.budget.max_tokens}; allow more "
                "tokens"
            )
        return Accepted(token_ids, replaced, is_over)

    def _close_field(self) -> list[int]:
        """Return the tokens that end a field whose own tokens are used up; they are appended."""
        fields = self._fields
        if fields is None or not fields.is_used_up:
            return []
        params, appended = fields.current, []
        for token_id in self._steering.search(self._left) or ():
            self.matcher.advance(token_id)
            self._append(token_id, "steered")
            appended.append(token_id)
            if fields.current is not params:
                break
        self._steering.way = None
        return appended

    def _take_forced(self, forced: list[int]) -> list[int]:
        """Accept and return the forced tokens, as many as the budget allows.

        None near its end if they would take too many: a way to the end may spell what is forced
        together with what comes after it.
        """
        if not self.written.token_ids:
            forced = list(self.compiled.opening)
        forced = forced[: self._left]
        if not forced or not self.matcher.try_advance(forced):
            return []
        if not self._steering.ends_after(forced):
            self.matcher.rollback(len(forced))
            return []
        return forced

    def _append(
        self, token_id: int, kind: MarkKind, removed: float = 0.0, logprob: float = 0.0
    ) -> None:
        """Note a token that the matcher has accepted."""
        written, before = self.written, len(self.written.text)
        written.append(token_id, is_forced=kind == "forced")
        if self.spec.marks:
            allowed = self.allowed if kind in ("sampled", "healed") else 1
            written.marks.append(TokenMark(kind, allowed, removed, logprob))
        if self._fields is not None:
            self._fields.feed(bytes(written.text[max(before, written.healed_at) :]))

    # ------------------------------------------------------------ free text

    def _accept_free(
        self, free: FreeText, token_id: int, removed: float, logprob: float
    ) -> Accepted:
        shortest = len(self.compiled.shortest or ()) if self.spec.finish == "valid" else 0
        decision = free.take(token_id, self._left, shortest)
        replaced = decision.instead is not None
        appended = [token_id] if decision.instead is None else decision.instead
        if not decision.begins:
            self._append_free(appended, decision, removed, logprob)
            is_end = not replaced and token_id in self.stops
            return Accepted([*appended, *decision.then], replaced, is_end or self._left <= 0)
        surplus = decision.surplus
        if surplus and not self._reads(surplus, token_id):
            replaced, appended, surplus = True, free.without(surplus, token_id), b""
        self._append_free(appended, decision, removed, logprob)
        self._bind(len(self.written.text) - len(surplus))
        if surplus and self._fields is not None:
            self._fields.feed(surplus)
        if self.spec.finish == "valid":
            self.budget.check_rest(len(self.written.token_ids), shortest)
        return self._follow(appended, replaced=replaced)

    def _append_free(
        self, token_ids: list[int], decision: Decision, removed: float, logprob: float
    ) -> None:
        for token_id in token_ids:
            kind: MarkKind = "sampled" if decision.instead is None else "steered"
            self._append(token_id, kind, removed, logprob)
        for token_id in decision.then:
            self._append(token_id, "steered")

    def _reads(self, surplus: bytes, token_id: int) -> bool:
        """Let the matcher accept what a token spells beyond the free text; False when it cannot,
        and has not."""
        is_all = surplus == self.vocabulary.texts[token_id]  # the mask has allowed it as it is
        return self.matcher.try_advance([token_id] if is_all else self.vocabulary.encode(surplus))

    # ------------------------------------------------------------ the final check

    @property
    def is_checked(self) -> bool:
        """Whether the text, now that it is over, is one that has to pass a final check."""
        if self.compiled.validator is None or self.written.bound_at is None:
            return False
        return self.spec.finish == "valid" or self.matcher.is_accepting

    @property
    def is_provisional(self) -> bool:
        """Whether the final check may find something that the grammar does not enforce."""
        return self.written.bound_at is not None and not self.compiled.is_enforced

    def rewind(self, start: LlguidanceMatcher, failure: Failure) -> int:
        """Take the text back to the beginning of a value that failed the final check and exclude
        it; ``start``, a matcher at the constraint's beginning, becomes the session's. Returns how
        many tokens are kept.

        Raises ``GrammarError`` when the constraint leaves no other text.
        """
        take_back(self.written, self.exclusion, start, failure)
        self.matcher = start
        self._steer(None)
        if self._fields is not None:
            self._fields = FieldReader(self.spec.fields, self.written.bound_bytes)
        self._note_plain()
        self.attempts += 1
        return len(self.written.token_ids)
