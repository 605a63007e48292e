"""What ``import radixrt`` offers."""

from __future__ import annotations

import pytest

import radixrt
import radixrt.lang
from radixrt import errors


def test_the_package_offers_the_whole_language_and_the_errors_one_catches() -> None:
    offered = set(radixrt.__all__)
    assert set(radixrt.lang.__all__) <= offered
    rest = offered - set(radixrt.lang.__all__)
    assert rest <= {name for name in vars(errors) if not name.startswith("_")}
    assert all(getattr(radixrt, name) is not None for name in offered)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'generate'"):
        _ = radixrt.generate


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    assert errors.__doc__ is not None
    drawn = set(errors.__doc__.replace("(ValueError)", "").split())
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.RadixError)
    }
    assert classes <= drawn


def test_every_wire_code_has_its_exception() -> None:
    for code, cls in errors.FAILURES.items():
        error = errors.failure(code, "why", retryable=True)
        assert type(error) is cls
        assert error.retryable
    assert type(errors.failure("no such code", "why")) is errors.CallFailed
