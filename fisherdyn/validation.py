"""Values that users give, checked against their types; every error is one line that says what was expected.

The types of this module are plain annotations for a type checker. At run time pydantic reads the bounds from them and
`Expected` the words for the error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
from annotated_types import Ge, Gt
from pydantic import AllowInfNan, BeforeValidator, ConfigDict, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

T = TypeVar("T")


@dataclass(frozen=True)
class Expected:
    """Annotates a type with the words that an error uses for it."""

    words: str


def _python_number(value: Any) -> Any:
    """Numpy's numbers as Python's, which JSON and records can hold; everything else as it is."""
    return value.item() if isinstance(value, np.integer | np.floating) else value


_FROM_NUMPY = BeforeValidator(_python_number)

Whole = Annotated[int, Strict(), _FROM_NUMPY, Expected("a whole number")]
"""An int, also numpy's. True and 2.0 are refused: both are mistakes where a count is wanted."""
Natural = Annotated[int, Strict(), Ge(0), _FROM_NUMPY, Expected("a whole number of at least 0")]
Count = Annotated[int, Strict(), Ge(1), _FROM_NUMPY, Expected("a whole number of at least 1")]
Rate = Annotated[
    float, Strict(), Ge(0), AllowInfNan(False), _FROM_NUMPY, Expected("a number of at least 0, such as 1e-3")
]
Positive = Annotated[float, Strict(), Gt(0), _FROM_NUMPY, Expected("a number above 0")]


def check(name: str, value: Any, kind: Any) -> Any:
    """The value in its type.

    Args:
        name: of the argument, for the error.
        kind: a type, such as `Count`.

    Raises:
        ValueError: the value is not of that type; one line.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError:
        raise ValueError(f"expected {name} as {expectation(kind)}, got {value!r}") from None


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass whose fields are checked when it is made.

    The docstring below a field is its help: `fields_of` gives it. A method `__post_init__` may check fields together.
    """
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True)
    made: Any = pydantic_dataclass(frozen=True, kw_only=True, config=config)(cls)
    validate = made.__init__

    @wraps(validate)
    def validated(self: Any, **values: Any) -> None:
        try:
            validate(self, **values)
        except ValidationError as error:
            raise ValueError(describe(error, made)) from None

    made.__init__ = validated
    return cast(type[T], made)


@dataclass(frozen=True)
class SettingsField:
    """One field of a settings type.

    Attributes:
        kind: its type, with bounds.
        help: one line.
        default: None also where there is none; then it is `required`.
    """

    name: str
    kind: Any
    help: str
    default: Any
    required: bool


@cache
def fields_of(cls: type) -> Mapping[str, SettingsField]:
    """The fields of a settings type by name, in order."""
    kinds = get_type_hints(cls, include_extras=True)
    known = cls.__pydantic_fields__  # type: ignore[attr-defined]
    return {
        name: SettingsField(
            name,
            kinds[name],
            _help(cls, name),
            None if info.is_required() else info.get_default(call_default_factory=True),
            info.is_required(),
        )
        for name, info in known.items()
    }


def _help(cls: type, name: str) -> str:
    """The docstring below a field, in the class that defines it."""
    fields = (vars(base).get("__pydantic_fields__", {}).get(name) for base in cls.__mro__)
    return next((field.description for field in fields if field and field.description), "")


def describe(error: ValidationError, cls: type) -> str:
    """A pydantic error about a settings type, as one line."""
    return "; ".join(dict.fromkeys(_describe(cls, fault) for fault in error.errors(include_url=False)))


def _describe(cls: type, fault: Any) -> str:
    fields = fields_of(cls)
    if not fault["loc"]:  # __post_init__'s own words
        return str(fault["msg"]).removeprefix("Value error, ")
    name = str(fault["loc"][0])
    if name not in fields:
        return f"{cls.__name__} has no {name!r}: choose from {', '.join(fields)}"
    expected = expectation(fields[name].kind)
    if fault["type"] == "missing":
        return f"{cls.__name__} needs {name}=, {expected}"
    value = fault["input"] if len(fault["loc"]) == 1 else f"{fault['input']!r} in {'.'.join(map(str, fault['loc']))}"
    return f"expected {name} as {expected}, got {value!r}"


def expectation(kind: Any) -> str:
    """A type in words: "a whole number of at least 1 or None"."""
    for part in getattr(kind, "__metadata__", ()):
        if isinstance(part, Expected):
            return part.words
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is Annotated:
        return expectation(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(expectation, get_args(kind)))
    words = {NoneType: "None", bool: "True or False", str: "a text", Path: "a path", Callable: "a function"}
    kind = get_origin(kind) or kind
    return words.get(kind) or f"a {kind.__name__.lower()}"


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)
