"""Reading the variables of a program."""

from __future__ import annotations

from typing import Any

from radixrt.errors import InvalidArgument, ProgramError, RadixError
from radixrt.lang.body import Body
from radixrt.lang.nodes import Gen
from radixrt.lang.settling import Settling
from radixrt.lang.token_view import TokenView
from radixrt.lang.transcript import CallStep, Constant, Scope, Transcript, Variable
from radixrt.protocol import Finished


class Values:
    """The variables of a program on one branch; reading one waits for what it is made of."""

    def __init__(self, transcript: Transcript, body: Body, calls: Settling) -> None:
        self._transcript = transcript
        self._body = body
        self._calls = calls

    def of(self, name: str) -> Any:
        """Return a variable's value; waits for it and raises the failure it suffered from."""
        variable = self.variable(name)
        if isinstance(variable, Constant):
            return variable.value
        if isinstance(variable, CallStep):
            self._calls.finish(variable)
            try:
                return variable.value
            except RadixError as error:
                raise ProgramError(variable.node.op, str(variable.where), error) from error
        if variable.end is None:
            raise InvalidArgument("name", name, "its var_scope is still open")
        self._calls.finish_all(variable.end)
        return self._transcript.text(variable.begin, variable.end)

    def raw(self, name: str) -> Any:
        """Return the text that a variable's value was read from."""
        variable = self.variable(name)
        if isinstance(variable, CallStep):
            self._calls.finish(variable)
            return variable.raw
        if isinstance(variable, Constant) and variable.raw is not None:
            return variable.raw
        value = self.of(name)
        if not isinstance(value, str):
            raise InvalidArgument("name", name, "it was set by the program, not generated")
        return value

    def token_view(self, name: str) -> TokenView:
        """Return how the tokens of a generated variable came about."""
        variable = self.variable(name)
        if not isinstance(variable, CallStep) or not isinstance(variable.node, Gen):
            raise InvalidArgument("name", name, "it was not generated")
        if not variable.node.trace:
            raise InvalidArgument("name", name, "nothing was kept of it; give gen trace=True")
        self._calls.finish(variable)
        result = variable.call.result
        assert isinstance(result, Finished)
        return TokenView(result.outputs[0].trace)

    async def in_loop(self, name: str) -> Any:
        """``of`` without blocking the running event loop."""
        variable = self._transcript.variables.get(name)
        if isinstance(variable, CallStep):
            await self._calls.wait_in_loop(variable)
        elif isinstance(variable, Scope):
            for step in self._calls.steps(variable.end):
                await self._calls.wait_in_loop(step)
        return self.of(name)

    def meta_info(self, name: str) -> Any:
        """Return the meta info of a generated variable; waits for it."""
        variable = self.variable(name)
        if isinstance(variable, CallStep):
            self._calls.finish(variable)
            return variable.meta_info
        if isinstance(variable, Constant) and variable.meta_info is not None:
            return variable.meta_info
        raise InvalidArgument("name", name, "it was not generated, so it has no meta info")

    def usage(self) -> dict[str, int]:
        """Return the token counts of this branch's own calls that ended well, summed."""
        total: dict[str, int] = {}
        for step in self._transcript.steps[self._transcript.fork_point :]:
            if isinstance(step, CallStep) and step.call.is_done and step.call.error is None:
                for key, count in step.usage.items():
                    total[key] = total.get(key, 0) + count
        return total

    def variable(self, name: str) -> Variable:
        """Return what a name stands for; waits until the body has set it or ended."""
        variables = self._transcript.variables
        if name not in variables:
            self._body.wait(or_until=lambda: name in variables)
        if name not in variables:
            known = ", ".join(variables) or "none"
            raise InvalidArgument("name", name, f"no such variable; known: {known}")
        return variables[name]
