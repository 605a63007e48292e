"""What a program has done so far on one branch, in order, and the variables that came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from radixrt.errors import InvalidArgument, ProtocolError
from radixrt.lang.call import Call
from radixrt.lang.checked import CheckedCall
from radixrt.lang.meta import generation_info, partial_info, selection_info, usage_info
from radixrt.lang.nodes import Choice, Gen
from radixrt.lang.reading import Reading
from radixrt.lang.sampling import SamplingOptions
from radixrt.lang.source import Where
from radixrt.protocol import Chosen, Finished, Part


@dataclass(frozen=True, slots=True)
class TextStep:
    """Text that the program wrote."""

    text: str
    where: Where

    @property
    def part(self) -> Part:
        return Part("text", self.text)


@dataclass(frozen=True, slots=True)
class RoleStep:
    """Where a chat message begins or ends."""

    role: str
    begins: bool
    where: Where

    @property
    def part(self) -> Part:
        return Part("role_begin" if self.begins else "role_end", self.role)


@dataclass(frozen=True, slots=True)
class ToolsStep:
    """The definitions of tools, which the chat template writes with the messages that follow."""

    part: Part
    where: Where
    text: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class CallStep:
    """A generation or a selection. Its values exist once ``call`` has ended well."""

    node: Gen | Choice
    call: Call
    sampling: SamplingOptions
    deadline: float | None
    """When it has to be over, in monotonic seconds."""
    _values: list[Any] = field(default_factory=list)
    """Typed values, read once: ``s[name]`` is one object however often it is read."""

    @property
    def where(self) -> Where:
        return self.node.where

    @property
    def part(self) -> Part:
        return Part("text", self.text)

    @property
    def text(self) -> str:
        """What it appended to the branch."""
        return self.texts[0]

    @property
    def texts(self) -> list[str]:
        """All its outputs; the branch goes on with the first."""
        result = self.call.result
        if isinstance(result, Finished) and result.outputs:
            return [output.text for output in result.outputs]
        if isinstance(result, Chosen) and isinstance(self.node, Choice):
            option = self.node.options[result.index]
            return [option if isinstance(option, str) else result.text]
        raise ProtocolError(f"{self.node.op} was answered without an output")

    @property
    def value(self) -> Any:
        """What ``s[name]`` is: text or the value of its type, a list of them when ``n > 1``."""
        if not self._values:
            self._values.extend(self._read())
        return self._one_or_all(self._values)

    @property
    def raw(self) -> Any:
        """The text that ``value`` was read from."""
        return self._one_or_all(self.texts)

    def _read(self) -> list[Any]:
        node, texts = self.node, self.texts
        if isinstance(self.call, CheckedCall):
            return self.call.values
        if isinstance(node, Gen):
            if node.dtype is not None:
                return [node.dtype.value(text) for text in texts]
            if node.reading is not None:
                return read_outputs(node.reading, self.call.result)
            return list(texts)
        assert isinstance(self.call.result, Chosen)
        result_type = node.readings.get(self.call.result.index)
        return [texts[0] if result_type is None else result_type.read(texts[0])]

    def _one_or_all(self, items: list[Any]) -> Any:
        return items if isinstance(self.node, Gen) and (self.sampling.n or 1) > 1 else items[0]

    @property
    def meta_info(self) -> Any:
        result = self.call.result
        if isinstance(result, Finished):
            return generation_info(
                result,
                logprobs=bool(self.sampling.return_logprob),
                top_logprobs=bool(self.sampling.top_logprobs_num),
                with_text=self.sampling.return_text_in_logprobs is not False,
                constraint=self.node.constraint if isinstance(self.node, Gen) else None,
            )
        assert isinstance(result, Chosen)
        assert isinstance(self.node, Choice)
        return selection_info(result, self.node)

    @property
    def partial_meta_info(self) -> dict[str, Any]:
        """What is known while the call runs."""
        return partial_info(
            self.call.chunks,
            logprobs=bool(self.sampling.return_logprob),
            with_text=self.sampling.return_text_in_logprobs is not False,
        )

    @property
    def usage(self) -> dict[str, int]:
        result = self.call.result
        return usage_info(result.usage) if isinstance(result, Finished | Chosen) else {}


Step = TextStep | RoleStep | ToolsStep | CallStep


def read_outputs(reading: Reading, result: object) -> list[Any]:
    """Return what a generation's outputs are read as; raises ``ValueRefused``."""
    assert isinstance(result, Finished)
    return [reading.value(output) for output in result.outputs]


@dataclass(frozen=True, slots=True)
class Constant:
    """A variable whose value is known."""

    value: Any
    meta_info: Any = None
    raw: Any = None


@dataclass(slots=True)
class Scope:
    """A variable that is the text between two steps; ``end`` is None while the scope is open."""

    begin: int
    end: int | None = None


Variable = Constant | Scope | CallStep


@dataclass(slots=True)
class Transcript:
    """The steps and variables of one branch."""

    steps: list[Step] = field(default_factory=list)
    variables: dict[str, Variable] = field(default_factory=dict)
    role: str | None = None
    """The chat role that is open."""
    has_roles: bool = False
    fork_point: int = 0
    """How many steps came from the branch that this one was forked from."""

    def fork(self) -> Transcript:
        """Return an independent copy as of now."""
        variables = {
            name: Scope(value.begin, value.end) if isinstance(value, Scope) else value
            for name, value in self.variables.items()
        }
        return Transcript(
            list(self.steps), variables, self.role, self.has_roles, fork_point=len(self.steps)
        )

    def begin_role(self, role: str, where: Where) -> RoleStep:
        if self.role is not None:
            raise InvalidArgument("role", role, f"close the {self.role} message first")
        self.role, self.has_roles = role, True
        return RoleStep(role, True, where)

    def end_role(self, role: str, where: Where) -> RoleStep:
        if self.role != role:
            raise InvalidArgument("role", role, f"open is: {self.role or 'no message'}")
        self.role = None
        return RoleStep(role, False, where)

    def text(self, begin: int = 0, end: int | None = None) -> str:
        """The text of finished steps, without what a chat template adds."""
        return "".join(
            step.text for step in self.steps[begin:end] if not isinstance(step, RoleStep)
        )

    def messages(self) -> list[dict[str, str]]:
        """The complete chat messages, in the OpenAI form."""
        messages: list[dict[str, str]] = []
        begin = 0
        for index, step in enumerate(self.steps):
            if isinstance(step, RoleStep):
                if step.begins:
                    begin = index
                else:
                    content = self.text(begin, index).lstrip()
                    messages.append({"role": step.role, "content": content})
        return messages
