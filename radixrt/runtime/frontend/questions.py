"""Questions of clients about the runtime: who answers them, and with what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from radixrt.errors import CallFailed, InvalidArgument
from radixrt.protocol import (
    DescribeTokenizer,
    Detokenize,
    Explain,
    Flush,
    Inspect,
    Read,
    Reply,
    Restore,
    Save,
    Stats,
    Tokenize,
)
from radixrt.runtime.frontend.call_table import CallTable
from radixrt.runtime.frontend.calls import QuestionCall
from radixrt.runtime.frontend.engine_link import EngineLink
from radixrt.runtime.frontend.sessions import Session
from radixrt.runtime.frontend.token_questions import TokenQuestions
from radixrt.runtime.wire import FlushCache, QueryStats, RestoreCache, SaveCache

Question = (
    Read
    | Explain
    | Save
    | Restore
    | Flush
    | Stats
    | Tokenize
    | Detokenize
    | DescribeTokenizer
    | Inspect
)


class Questions:
    """Answers what concerns no branch, at once or through the engine.

    ``counters`` are the frontend's own, ``sessions`` its clients; ``epoch`` and ``model_name`` say
    who answers.
    """

    def __init__(
        self,
        calls: CallTable,
        engine: EngineLink,
        tokens: TokenQuestions,
        *,
        ids: Iterator[int],
        counters: Callable[[], dict[str, Any]],
        sessions: Mapping[bytes, Session],
        epoch: str,
        model_name: str,
    ) -> None:
        self._calls = calls
        self._engine = engine
        self._tokens = tokens
        self._ids = ids
        self._counters = counters
        self._sessions = sessions
        self._epoch = epoch
        self._model_name = model_name

    def ask(self, call: QuestionCall) -> None:
        """Answer a registered call, or ask the engine on its behalf."""
        match call.op:
            case Explain(last=last):
                accounts = self._calls.accounts.recent(last)
                self._calls.answer(call, Reply(call.id, {"calls": accounts}))
            case Save(path=path):
                self._calls.dispatch(call, [SaveCache(next(self._ids), path)])
            case Restore(path=path):
                self._calls.dispatch(call, [RestoreCache(next(self._ids), path)])
            case Flush():
                self._calls.dispatch(call, [FlushCache(next(self._ids))])
            case Tokenize() | Detokenize() | DescribeTokenizer() as question:
                self._ask_tokenizer(call, question)
            case Inspect() as question:
                if not self._engine.is_up:
                    text = "the engine is being restarted"
                    self._calls.fail(call, "engine_fault", text, retryable=True)
                    return
                asked = self._calls.watched.question(next(self._ids), question)
                self._calls.dispatch(call, [asked])
            case _ if not self._engine.is_up:  # what is known without it, at once
                self._calls.answer(call, Reply(call.id, self._counters()))
            case _:
                self._calls.dispatch(call, [QueryStats(next(self._ids))])

    def completed(self, call: QuestionCall, data: dict[str, Any]) -> dict[str, Any]:
        """Return the engine's answer to a question with the frontend's part."""
        match call.op:
            case Stats():
                both = data | (own := self._counters())
                if "histograms" in own and "histograms" in data:
                    both["histograms"] = data["histograms"] | own["histograms"]
                return both
            case Inspect():
                return self._calls.watched.answer(
                    call.op,
                    data,
                    self._calls.whose,
                    self._sessions.values(),
                    self._epoch,
                    self._model_name,
                )
        return data

    def _ask_tokenizer(
        self, call: QuestionCall, question: Tokenize | Detokenize | DescribeTokenizer
    ) -> None:
        try:
            data = self._tokens.answer(call.session, question)
        except (InvalidArgument, CallFailed) as error:
            code = error.code if isinstance(error, CallFailed) else "bad_request"
            self._calls.fail(call, code, str(error))
        else:
            self._calls.answer(call, Reply(call.id, data))
