"""What evaluations ask of a model: tokens, scores of given text, greedy text. Many at a time.

Everything goes over the protocol, so the model may be anywhere. All questions of a batch are under
way at once and the runtime shares what their prompts have in common: of a task's few-shot examples
every token is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from radixrt.errors import CallFailed, InvalidArgument
from radixrt.lang.call import Call
from radixrt.lang.client import Client
from radixrt.protocol import (
    Append,
    Close,
    DescribeTokenizer,
    Detokenize,
    Finished,
    Generate,
    Open,
    Part,
    Reply,
    Sampling,
    Tokenize,
    ToRuntime,
)

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """The log probability (natural log) of a continuation, summed over its tokens.

    ``is_greedy``: every one of them was the likeliest at its place.
    """

    logprob: float
    is_greedy: bool


class Scorer:
    """Asks a runtime through ``client``. Each method returns when all its answers are there.

    ``add_special_tokens``: begin texts with what the model's tokenizer begins them with.
    """

    def __init__(self, client: Client, *, add_special_tokens: bool = True) -> None:
        self._client = client
        self._add_special_tokens = add_special_tokens
        self._tokenizer: dict[str, Any] = {}

    @property
    def max_context(self) -> int:
        """The most tokens of a prompt and what is generated behind it."""
        return self._client.limits.max_context

    @property
    def tokenizer(self) -> dict[str, Any]:
        """What the runtime says of its tokenizer (``protocol.DescribeTokenizer``)."""
        if not self._tokenizer:
            [reply] = self._ask([DescribeTokenizer])
            self._tokenizer = reply.data
        return self._tokenizer

    @property
    def prefix_id(self) -> int:
        """The token that stands before a text of which the first token is to be scored: the one
        that begins texts, else the one that ends them. Raises ``InvalidArgument`` without any."""
        named = self.tokenizer["special_token_ids"]
        for name in ("bos_token", "eos_token"):
            if (token_id := named.get(name)) is not None:
                return int(token_id)
        if ends := self.tokenizer["end_ids"]:
            return int(ends[0])
        raise InvalidArgument("model", self._client.model.name, "its tokenizer has no end of text")

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return the tokens of each text; names of special tokens in it mean these."""
        return self._tokenized([Part("markup", text) for text in texts])

    def render(self, conversation: str) -> str:
        """Return what the model's template makes of a ``chat`` part's JSON text."""
        [token_ids] = self._tokenized([Part("chat", conversation)])
        [reply] = self._ask([lambda call: Detokenize(call, token_ids)])
        return str(reply.data["text"])

    def _tokenized(self, parts: Sequence[Part]) -> list[TokenIds]:
        asks: list[Callable[[int], ToRuntime]] = [
            lambda call, part=part: Tokenize(call, (part,), self._add_special_tokens)  # type: ignore[misc]
            for part in parts
        ]
        return [tuple(reply.data["token_ids"]) for reply in self._ask(asks)]

    def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[Score]:
        """Return the score of each continuation behind its context (both not empty).

        What is too long for the model loses tokens at the beginning of its context. Raises
        ``CallFailed`` of the first that failed.
        """
        operations = (self._scoring(*self._fitting(*pair)) for pair in pairs)
        scores = []
        for pair, finished in zip(pairs, self._generated(operations), strict=True):
            continuation = self._fitting(*pair)[1]
            entries = finished.prompt_logprobs
            tops = finished.prompt_top_logprobs
            if len(entries) != len(continuation) or len(tops) != len(continuation):
                raise CallFailed(f"{len(continuation)} tokens were answered by {len(entries)}")
            logprob = sum(entry.logprob or 0.0 for entry in entries)
            greedy = all(
                top[0].token_id == token_id
                for top, token_id in zip(tops, continuation, strict=True)
            )
            scores.append(Score(logprob, greedy))
        return scores

    def generate(self, prompts: Sequence[tuple[TokenIds, Sampling]]) -> list[str]:
        """Return the text that follows each prompt. A prompt that leaves no room for its tokens
        loses some at its beginning. Raises ``CallFailed`` of the first that failed."""

        def operations() -> Iterator[tuple[TokenIds, Sampling]]:
            for token_ids, sampling in prompts:
                room = self.max_context - (sampling.max_tokens or 0)
                if room < 1:
                    raise InvalidArgument(
                        "max_tokens", sampling.max_tokens, f"use less than {self.max_context}"
                    )
                yield token_ids[-room:], sampling

        return [finished.outputs[0].text for finished in self._generated(operations())]

    # ------------------------------------------------------------ asking

    def _fitting(self, context: TokenIds, continuation: TokenIds) -> tuple[TokenIds, TokenIds]:
        if not context or not continuation:
            raise InvalidArgument("pairs", (context, continuation), "neither may be empty")
        # At least one token stands before what is scored.
        continuation = continuation[-(self.max_context - 1) :]
        return context[-(self.max_context - len(continuation)) :], continuation

    @staticmethod
    def _scoring(context: TokenIds, continuation: TokenIds) -> tuple[TokenIds, Sampling]:
        sampling = Sampling(
            max_tokens=0,
            temperature=0.0,
            return_logprob=True,
            top_logprobs_num=1,
            logprob_start_len=len(context),
        )
        return context + continuation, sampling

    def _generated(self, prompts: Iterable[tuple[TokenIds, Sampling]]) -> list[Finished]:
        """Run each prompt on a branch of its own. As many are under way as the runtime takes."""
        client, calls = self._client, []
        for token_ids, sampling in prompts:
            branch, call = client.new_id(), client.new_call(Finished)
            part = Part("tokens", token_ids=token_ids)
            operations: list[ToRuntime] = [
                Open(branch),
                Append(branch, (part,)),
                Generate(call.id, branch, sampling),
                Close(branch, keep=True),
            ]
            client.admit(call)
            client.send(operations, call)
            calls.append(call)
        return [result for result in self._results(calls) if isinstance(result, Finished)]

    def _ask(self, questions: Iterable[Callable[[int], ToRuntime]]) -> list[Reply]:
        client, calls = self._client, []
        for question in questions:
            call = client.new_call(Reply)
            client.admit(call)
            client.send([question(call.id)], call)
            calls.append(call)
        return [result for result in self._results(calls) if isinstance(result, Reply)]

    def _results(self, calls: Sequence[Call]) -> list[Any]:
        """Wait for all; the runtime's own deadlines end them."""
        try:
            for call in calls:
                self._client.wait(call, None)
            return [call.result for call in calls]
        except BaseException:
            self._client.cancel(calls, CallFailed("others of the batch failed"))
            raise


def rolling_windows(
    token_ids: Sequence[int], prefix_id: int, max_len: int
) -> list[tuple[TokenIds, TokenIds]]:
    """Return (context, predicted) windows in which each token of a text is predicted once.

    The first window's context is ``prefix_id`` alone, every later one's all that fits before what
    it predicts; context and predicted are at most ``max_len`` + 1 tokens together, since the last
    one of them is only predicted. Each window but the last predicts ``max_len`` tokens.

        max_len 4, tokens 0 … 9:   P | 0 1 2 3,   3 | 4 5 6 7,   5 6 7 | 8 9
    """
    if max_len < 1:
        raise InvalidArgument("max_len", max_len, "use 1 or more")
    tokens = tuple(token_ids)
    windows = []
    for begin in range(0, len(tokens), max_len):
        end = min(begin + max_len, len(tokens))
        # As much before it as the window holds beside what it predicts.
        first = max(end - max_len - 1, -1)
        context = (prefix_id, *tokens[:begin]) if first < 0 else tokens[first:begin]
        windows.append((context, tokens[begin:end]))
    return windows
