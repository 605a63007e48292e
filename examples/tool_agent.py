"""An agent with typed tools: the arguments of a call are what the function's signature says."""

from typing import Any, Literal

from heldout import runtime, share

import radixrt as rt

Day = Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]


def shop(item: str, quantity: int, color: str | None) -> str:
    """Orders goods and groceries."""
    return f"ordered {quantity} {f'{color} ' if color else ''}{item}"


def weather(city: str, day: Day | None) -> str:
    """Rain, sun and temperature."""
    return f"{day or 'today'} in {city}: sun"


def calendar(day: Day) -> str:
    """Appointments and dates."""
    return f"nothing on {day}"


TOOLS = {tool.__name__: tool for tool in (shop, weather, calendar)}
REQUESTS = {
    "order 12 green belts.": "ordered 12 green belts",
    "order 30 red lamps.": "ordered 30 red lamps",
    "will it rain in Oslo on Friday?": "Friday in Oslo: sun",
    "how warm is it in Lima?": "today in Lima: sun",
    "what is planned for Tuesday?": "nothing on Tuesday",
}


@rt.function
def answer(s, request):
    menu = "".join(f"- {name}: {tool.__doc__}\n" for name, tool in TOOLS.items())
    s += f"Choose the tool that can handle the request.\n{menu}\nRequest: {request}\nTool:"
    s += rt.select("tool", choices=[f" {name}" for name in TOOLS])
    tool = TOOLS[s["tool"].strip()]
    s["request"] = request
    keys = ", ".join(name for name in tool.__annotations__ if name != "return")
    s += f"\n\nExtract the event as JSON with the keys {keys}.\nText: {request}\nJSON:\n"
    s += rt.gen("calls", tools=[tool], tool_choice="required", parallel=False, temperature=0)
    return s["calls"][0].call()


def evaluate(backend: rt.Backend) -> tuple[float, list[Any]]:
    states = answer.run_batch([[request] for request in REQUESTS], backend=backend)
    return share([state.ret_value == REQUESTS[state["request"]] for state in states]), states


if __name__ == "__main__":
    with runtime(__doc__) as backend:
        accuracy, states = evaluate(backend)
        for state in states:
            print(f"{state['request']}\n{state.raw('calls')}\n{state.ret_value}\n")
        print(f"{accuracy:.3f} of {len(states)} requests are answered right")
