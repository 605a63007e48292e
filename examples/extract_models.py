"""Extraction into pydantic models: what comes back is an instance that its validators accepted."""

from typing import Any

from heldout import held_out, runtime, share
from pydantic import BaseModel, Field, field_validator

import radixrt as rt


class Person(BaseModel):
    name: str | None
    age: int | None = Field(ge=0, le=120)
    job: str | None


class Order(BaseModel):
    customer: str | None
    item: str | None
    quantity: int | None = Field(ge=1)

    @field_validator("customer")
    @classmethod
    def has_two_names(cls, name: str | None) -> str | None:
        if name is not None and " " not in name:
            raise ValueError("a customer has a first and a last name")
        return name


MODELS = {"person": Person, "order": Order}


@rt.function
def extract(s, kind, text):
    model = MODELS[kind]
    keys = ", ".join(model.model_fields)
    s += f"Extract the {kind} as JSON with the keys {keys}.\nText: {text}\nJSON:"
    s += rt.gen("record", type=model, spaced=True, max_tokens=120, temperature=0, trace=True)
    return s["record"]


def evaluate(backend: rt.Backend, count: int = 40) -> tuple[float, list[Any]]:
    items = [item for item in held_out("extraction", count) if item["kind"] in MODELS]
    states = extract.run_batch([(item["kind"], item["text"]) for item in items], backend=backend)
    right = [
        getattr(s.ret_value, key) == value
        for s, item in zip(states, items, strict=True)
        for key, value in item["record"].items()
        if key in type(s.ret_value).model_fields
    ]
    return share(right), states


if __name__ == "__main__":
    with runtime(__doc__) as backend:
        accuracy, states = evaluate(backend)
        print(f"{states[0].text()}\n{states[0]['record']!r}\n")
        states[0].explain("record").show()
        print(f"{accuracy:.3f} of the fields of {len(states)} records are right")
