"""Typed fields of values: overrides from text, JSON both ways."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from plainres.errors import UserError, unknown

T = TypeVar("T")
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def one_of(default: str, *others: str) -> Any:
    """A text field that takes `default` or one of `others`."""
    return dataclasses.field(default=default, metadata={"options": (default, *others)})


def added(default: Any) -> Any:
    """A field that came later: left out of JSON at its default, so that what was written before stays the same."""
    return dataclasses.field(default=default, metadata={"added": True})


def override(value: T, assignments: Iterable[str], what: str) -> T:
    """`value` with each "field=text" of `assignments` applied; `what` ("recipe", "network") is for errors."""
    changes: dict[str, object] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"'{assignment}' is not an assignment; write {what} field=value")
        changes[name.strip().replace("-", "_")] = text.strip()
    return replace(value, changes, what)


def replace(value: T, changes: Mapping[str, object], what: str) -> T:
    """`value` (a dataclass) with fields replaced, each checked against its declared type."""
    checked = _checked(type(value), changes, what)
    try:
        return dataclasses.replace(value, **checked)  # type: ignore[type-var]
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None


def from_json(kind: type[T], data: object, what: str) -> T:
    """A value of dataclass `kind` from the dict that `to_json` gave."""
    if not isinstance(data, dict):
        raise UserError(f"{what}: expected an object, found {type(data).__name__}")
    try:
        return kind(**_checked(kind, data, what))
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: {error}") from None


def to_json(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as plain lists, numbers and strings."""
    found = dataclasses.asdict(value)
    unsaid = [f.name for f in dataclasses.fields(value) if "added" in f.metadata and found[f.name] == f.default]
    return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items() if k not in unsaid}


def _checked(kind: type, changes: Mapping[str, object], what: str) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for name in changes:
        if name not in fields:
            raise unknown(f"{what} field", str(name), fields)
    return {
        name: _converted(value, hints[name], fields[name].metadata.get("options", ()), f"{what} field '{name}'")
        for name, value in changes.items()
    }


def _converted(value: object, hint: Any, options: tuple[str, ...], where: str) -> object:
    if typing.get_origin(hint) is tuple:
        items = _items(value)
        return tuple(_converted(item, typing.get_args(hint)[0], (), where) for item in items)
    if typing.get_origin(hint) is types.UnionType:
        if value is None or value == "none":
            return None
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    try:
        converted = _scalar(value, hint)
    except (ValueError, OverflowError):
        raise UserError(f"{where}: expected {_named(hint)}, got '{value}'") from None
    if options and converted not in options:
        raise unknown(f"value of {where}:", str(converted), options)
    return converted


def _items(value: object) -> list[object]:
    if isinstance(value, str):
        return [item.strip() for item in value.strip("()[] ").split(",") if item.strip()]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _scalar(value: object, hint: type) -> object:
    if hint is bool:
        if isinstance(value, str) and value.lower() in _TRUTH:
            return _TRUTH[value.lower()]
        if isinstance(value, bool):
            return value
    elif isinstance(value, bool):
        raise ValueError(value)
    elif hint is int and isinstance(value, (int, str)):
        return int(value)
    elif hint is float and isinstance(value, (int, float, str)):
        if math.isfinite(number := float(value)):
            return number
    elif hint is str and isinstance(value, str):
        return value
    raise ValueError(value)


def _named(hint: type) -> str:
    return {int: "an integer", float: "a number", bool: "true or false", str: "text"}[hint]
