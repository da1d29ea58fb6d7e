"""Pickles, read without running anything.

`pickle.load` can call any function that a file names. Here the standard library only cuts a file into its
opcodes; a small machine of our own carries them out, and it knows lists, dicts, tuples, strings, bytes,
numbers and arrays of integers. Nothing in it grows faster than the file that it reads.
"""

import pickletools
import re
from enum import Enum
from math import prod

import numpy as np
from numpy.typing import NDArray

from plainres.errors import UserError


class _Global(Enum):
    """The only names that a file may ask for; each stands for a method of the machine."""

    RECONSTRUCT = "_reconstruct"
    FROM_BUFFER = "_frombuffer"
    ARRAY = "ndarray"
    DTYPE = "dtype"
    ENCODE = "encode"


_GLOBALS = {
    "numpy.core.multiarray _reconstruct": _Global.RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": _Global.RECONSTRUCT,
    "numpy.core.numeric _frombuffer": _Global.FROM_BUFFER,
    "numpy._core.numeric _frombuffer": _Global.FROM_BUFFER,
    "numpy ndarray": _Global.ARRAY,
    "numpy dtype": _Global.DTYPE,
    "_codecs encode": _Global.ENCODE,
}
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_IGNORED = {"PROTO", "FRAME", "READONLY_BUFFER"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()
_DTYPE = re.compile(r"[|<>=]?([iu][1248])")


class _DType:
    """An integer type: `code` such as "u1", and its byte order."""

    def __init__(self, code: object) -> None:
        found = _DTYPE.fullmatch(code) if isinstance(code, str) else None
        if found is None:
            raise ValueError("an array of a type other than integers")
        self.code, self.order = found[1], "<"

    def build(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|"):
            self.order = str(state[1]).replace("|", "<")


class Array:
    """An array that is filled after it was made, as pickles do."""

    def __init__(self) -> None:
        self.value: NDArray[np.integer] | None = None

    def build(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array without its content")
        _, shape, dtype, fortran, raw = state
        self.fill(shape, dtype, "F" if fortran else "C", raw)

    def fill(self, shape: object, dtype: object, order: object, raw: object) -> None:
        body = raw.encode("latin-1") if isinstance(raw, str) else raw
        sizes = shape if isinstance(shape, tuple) and len(shape) <= 4 else (-1,)
        if not isinstance(dtype, _DType) or not isinstance(body, bytes | bytearray):
            raise ValueError("an array without its type or content")
        kind = np.dtype(dtype.order + dtype.code)
        if any(type(n) is not int or n < 0 for n in sizes) or prod(sizes) * kind.itemsize != len(body):
            raise ValueError(f"an array whose {len(body):,} bytes do not fill its shape")
        self.value = np.frombuffer(body, kind).reshape(sizes, order="F" if order == "F" else "C")


class _Machine:
    """Carries out opcodes on a stack."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}

    def run(self, body: bytes) -> object:
        for opcode, argument, _ in pickletools.genops(body):
            name = opcode.name
            if name in _VALUES:
                self.stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
                self.memo[argument] = self.stack[-1]  # type: ignore[index]
            elif name not in _IGNORED and name != "STOP":
                self.step(name, argument)
        return self.stack.pop()

    def step(self, name: str, argument: object) -> None:
        stack = self.stack
        match name:
            case "MARK":
                stack.append(_MARK)
            case "APPENDS" | "LIST" | "TUPLE" | "SETITEMS" | "DICT" | "POP_MARK":
                self.collect(name, self.above_mark())
            case "APPEND":
                self.collect("APPENDS", [stack.pop()])
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.collect("SETITEMS", [key, value])
            case "EMPTY_LIST" | "EMPTY_DICT":
                stack.append([] if name == "EMPTY_LIST" else {})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = _TUPLES[name]
                stack[-count:] = [tuple(stack[-count:])]
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                stack.append(_CONSTANTS[name])
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[argument])  # type: ignore[index]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "POP" | "DUP":
                stack.append(stack[-1]) if name == "DUP" else stack.pop()
            case "GLOBAL":
                stack.append(_allowed(str(argument)))
            case "STACK_GLOBAL":
                last, module = stack.pop(), stack.pop()
                stack.append(_allowed(f"{module:.100} {last:.100}"))  # fails on all but strings
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_make(function, arguments))
            case "BUILD":
                state = stack.pop()
                if not isinstance(stack[-1], Array | _DType):
                    raise ValueError("it sets the state of something that is no array")
                stack[-1].build(state)
            case _:
                raise ValueError(f"it uses the opcode {name}, which no image file needs")

    def above_mark(self) -> list[object]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def collect(self, name: str, items: list[object]) -> None:
        if name == "LIST":
            self.stack.append(items)
        elif name == "TUPLE":
            self.stack.append(tuple(items))
        elif name == "APPENDS":
            if not isinstance(self.stack[-1], list):
                raise ValueError("it appends to something that is no list")
            self.stack[-1].extend(items)
        elif name in ("SETITEMS", "DICT"):
            if name == "DICT":
                self.stack.append({})
            target = self.stack[-1]
            if not isinstance(target, dict) or not all(type(key) in (str, bytes, int) for key in items[::2]):
                raise ValueError("it fills something that is no dict of names")
            target.update(zip(items[::2], items[1::2], strict=True))


def _allowed(name: str) -> _Global:
    if name not in _GLOBALS:
        raise ValueError(f"it asks for {name.replace(' ', '.')!r}, which no image file needs")
    return _GLOBALS[name]


def _make(function: object, arguments: object) -> object:
    """What the few permitted calls give."""
    if not isinstance(arguments, tuple):
        raise ValueError("a call without arguments")
    if function is _Global.RECONSTRUCT:
        return Array()
    if function is _Global.DTYPE and arguments:
        return _DType(arguments[0])
    if function is _Global.FROM_BUFFER and len(arguments) == 4:
        array = Array()
        raw, dtype, shape, order = arguments
        array.fill(shape, dtype, order, raw)
        return array
    if function is _Global.ENCODE and arguments and isinstance(arguments[0], str):
        return arguments[0].encode("latin-1")
    raise ValueError("a call that makes no array")


def unpickle(body: bytes, where: str) -> dict[str, object]:
    """The dict in a pickle, keys as strings; anything but plain values and integer arrays is a UserError."""
    try:
        content = _Machine().run(body)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError, UnicodeError) as error:
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{where} cannot be read: {what}; refused, and nothing in it was run") from None
    if not isinstance(content, dict):
        raise UserError(f"{where} holds no dict; it is no batch of CIFAR's Python version")
    return {key.decode("latin-1") if isinstance(key, bytes) else str(key): v for key, v in content.items()}
