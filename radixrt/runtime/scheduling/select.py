"""Scores of many options in one pass over the trie of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from radixrt.cache.explain import Explained, cut_to
from radixrt.runtime.scheduling.request import GREEDY, Request, Scoring
from radixrt.runtime.wire import EngineUsage, Score

Int32 = NDArray[np.int32]


@dataclass(slots=True, eq=False)
class TrieNode:
    """A token of one or more options. ``logprob`` is known once its parent was computed."""

    children: dict[int, TrieNode] = field(default_factory=dict)
    logprob: float = 0.0


class OptionTrie:
    """The options after one prefix, each shared token computed once.

    A *segment* is a run of tokens without a fork: one ordinary request that scores the tokens that
    may follow each of its positions and, when done, is followed by the segments that continue it.
    They find its K and V in the tree. The last token of an option is scored but never computed.
    """

    def __init__(self, prefix: Int32, options: Sequence[Sequence[int]]) -> None:
        self.prefix = prefix
        self.options = options
        self.num_computed = 0
        self._root = TrieNode()
        for option in options:
            node = self._root
            for token in option:
                node = node.children.setdefault(token, TrieNode())
        self._segments: dict[int, tuple[list[TrieNode], Int32]] = {}

    def start(self, make: Callable[[Int32, Scoring], Request]) -> Request:
        """Return the request of the first segment: the prefix and what all options share."""
        return self._segment(self.prefix, [], self._root, make)

    def follow(self, request: Request, make: Callable[[Int32, Scoring], Request]) -> list[Request]:
        """Take the scores of a finished segment and return the segments after it."""
        nodes, token_ids = self._segments.pop(request.seq)
        assert request.scoring is not None
        for node, found in zip(nodes, request.scoring.found, strict=True):
            for child, logprob in zip(node.children.values(), found, strict=True):
                child.logprob = logprob
        return [
            self._segment(token_ids, [token], child, make)
            for token, child in nodes[-1].children.items()
            if child.children
        ]

    def logprobs(self) -> tuple[tuple[float, ...], ...]:
        """Return the logprob of every token of every option."""
        return tuple(tuple(self._along(option)) for option in self.options)

    def _along(self, option: Sequence[int]) -> Iterator[float]:
        node = self._root
        for token in option:
            node = node.children[token]
            yield node.logprob

    def _segment(
        self,
        before: Int32,
        tokens: list[int],
        node: TrieNode,
        make: Callable[[Int32, Scoring], Request],
    ) -> Request:
        nodes = [node]
        while len(node.children) == 1:
            ((token, child),) = node.children.items()
            if not child.children:
                break
            tokens.append(token)
            nodes.append(child)
            node = child
        self.num_computed += len(tokens)
        token_ids = np.concatenate([before, np.array(tokens, np.int32)])
        scoring = Scoring(len(token_ids) - len(nodes), [tuple(n.children) for n in nodes])
        request = make(token_ids, scoring)
        self._segments[request.seq] = nodes, token_ids
        return request


class Selection:
    """A ``Score`` call: one trie after the prompt and, when asked for, one without it."""

    def __init__(
        self,
        call: Score,
        prompt: Int32,
        *,
        namespace: str,
        deadline: float | None,
        next_seq: Callable[[], int],
    ) -> None:
        self.call = call
        self.namespace = namespace
        self.deadline = deadline
        self.live: set[Request] = set()
        self.is_branch_ended = False
        self.failed: Request | None = None
        self._next_seq = next_seq
        self._prompt_len = len(prompt)
        self._trie = OptionTrie(prompt, call.options)
        self._plain = (
            OptionTrie(np.array(call.unconditional_prefix, np.int32), call.options)
            if call.unconditional
            else None
        )
        self._trie_of: dict[int, OptionTrie] = {}
        self._root: Request | None = None

    def start(self) -> list[Request]:
        """Return the first requests."""
        self._root = self._trie.start(lambda ids, scoring: self._make(self._trie, ids, scoring))
        if self._plain is None:
            return [self._root]
        plain = self._plain
        return [self._root, plain.start(lambda ids, scoring: self._make(plain, ids, scoring))]

    def follow(self, request: Request) -> list[Request]:
        """A request ended: return those that come after it. Done when none is ``live``."""
        self.live.discard(request)
        trie = self._trie_of.pop(request.seq)
        if request.reason != "length":
            self.failed = self.failed or request
        if self.failed is not None:
            return []
        return trie.follow(request, lambda ids, scoring: self._make(trie, ids, scoring))

    def is_root(self, request: Request) -> bool:
        """Whether the request is the one that computes the prompt."""
        return request is self._root

    def logprobs(self) -> tuple[tuple[float, ...], ...]:
        """Return the logprob of every token of every option after the prompt."""
        return self._trie.logprobs()

    def unconditional(self) -> tuple[tuple[float, ...], ...]:
        """Return the same after the unconditional prefix; empty when it was not asked for."""
        return self._plain.logprobs() if self._plain is not None else ()

    @property
    def usage(self) -> EngineUsage:
        """Tokens of the prompt, and of the options as completion."""
        root = self._root
        cached = min(max(root.cached, 0), self._prompt_len) if root is not None else 0
        reached = root.cached + root.computed if root is not None and root.cached >= 0 else 0
        return EngineUsage(
            prompt=self._prompt_len,
            cached=cached,
            computed=min(reached, self._prompt_len) - cached,
            evicted=root.evicted if root is not None else 0,
            completion=self._trie.num_computed
            + (self._plain.num_computed if self._plain is not None else 0),
        )

    @property
    def explained(self) -> Explained | None:
        """What became of the prompt's tokens; None before its request was admitted."""
        account = self._root.explained if self._root is not None else None
        return None if account is None else cut_to(account, self._prompt_len)

    @property
    def waited_s(self) -> float:
        """Seconds until the prompt's request was admitted; -1 before."""
        return self._root.waited_s if self._root is not None else -1.0

    def _make(self, trie: OptionTrie, token_ids: Int32, scoring: Scoring) -> Request:
        request = Request(
            id=self.call.id,
            branch=self.call.branch,
            namespace=self.namespace,
            token_ids=token_ids,
            prompt_len=len(token_ids),
            sampling=GREEDY,
            seq=self._next_seq(),
            logits_from=scoring.start,
            scoring=scoring,
            selection=self,
            deadline=self.deadline,
            is_branch_ended=self.is_branch_ended,
            salt=self.call.namespace,
            is_cached=self.call.is_cached,
            pause_s=self.call.pause_s,
            family=self.call.family,
        )
        self.live.add(request)
        self._trie_of[request.seq] = trie
        return request
