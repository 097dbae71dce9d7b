"""Reads a pickle of named numpy arrays, as PaddlePaddle writes (.pdparams), opcode by opcode: nothing in it is called.

Python's own unpickler calls whatever a file names. This reader knows the few opcodes and names that arrays in mappings
are made of and refuses every other.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgemim.errors import UserError

_MARK = object()
_PUSHED = {
    "BININT", "BININT1", "BININT2", "LONG1", "INT", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINSTRING", "SHORT_BINSTRING",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
_KINDS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}


class _Refused(Exception):
    """What stands in the file is no mapping of arrays; the message says what."""


class _Name(NamedTuple):
    module: str
    name: str


@dataclass
class _Kind:
    code: str
    order: str = "<"

    def dtype(self) -> np.dtype:
        if self.code not in _KINDS:
            raise _Refused(f"an array of type {self.code}")
        return np.dtype(("" if self.code.endswith("1") else self.order) + self.code)


@dataclass
class _Array:
    value: np.ndarray | None = None


@dataclass
class _Machine:
    """The stack and memo that a pickle's opcodes work on."""

    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def step(self, code: str, arg: Any) -> None:
        """Do one opcode. Raises _Refused on one that arrays are not made of."""
        if code in _PUSHED:
            self.stack.append(arg)
        elif code in _CONSTANTS:
            self.stack.append(_CONSTANTS[code]())
        elif code in ("PROTO", "FRAME", "STOP"):
            pass
        elif code in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            self.memo[len(self.memo) if arg is None else arg] = self.stack[-1]
        elif code in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[arg])
        elif code in ("GLOBAL", "STACK_GLOBAL"):
            self._name(arg)
        else:
            self._collect(code)

    def _name(self, arg: str | None) -> None:
        module, name = arg.split(" ") if arg is not None else (self.stack.pop(-2), self.stack.pop())
        self.stack.append(_Name(module, name))

    def _collect(self, code: str) -> None:
        stack = self.stack
        if code in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(code[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif code == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif code in ("SETITEM", "SETITEMS"):
            items = self._since_mark() if code == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif code in ("APPEND", "APPENDS"):
            items = self._since_mark() if code == "APPENDS" else [stack.pop()]
            stack[-1].extend(items)
        elif code == "REDUCE":
            args, name = stack.pop(), stack.pop()
            stack.append(_made(name, args))
        elif code == "BUILD":
            state = stack.pop()
            _fill(stack[-1], state)
        else:
            raise _Refused(f"opcode {code}")

    def _since_mark(self) -> list[Any]:
        at = len(self.stack) - 1 - self.stack[::-1].index(_MARK)
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items


def _made(name: Any, args: tuple[Any, ...]) -> Any:
    """What a call in the file would give, for the few that arrays are written with."""
    if isinstance(name, _Name):
        module, call = name.module.partition(".")[0], name.name
        if (module, call) == ("numpy", "dtype"):
            return _Kind(str(args[0]))
        if (module, call) == ("numpy", "_reconstruct"):
            return _Array()
        if (module, call) == ("numpy", "_frombuffer"):
            data, kind, shape, order = args
            return _Array(_array(bytes(data), kind, shape, order))
        if name == _Name("_codecs", "encode") and args[1:] == ("latin1",):
            return args[0].encode("latin1")
        if module in ("builtins", "__builtin__") and call == "tuple":
            return tuple(args[0])
        if name == _Name("collections", "OrderedDict") and not args:
            return {}
        if module in ("builtins", "__builtin__") and call == "bytes" and not args:
            return b""
    raise _Refused(".".join(name) if isinstance(name, _Name) else f"a call of {type(name).__name__}")


def _fill(thing: Any, state: Any) -> None:
    if isinstance(thing, _Kind):
        thing.order = str(state[1])
    elif isinstance(thing, _Array):
        _, shape, kind, fortran, data = state
        thing.value = _array(data, kind, shape, "F" if fortran else "C")
    else:
        raise _Refused(f"a state for {type(thing).__name__}")


def _array(data: Any, kind: Any, shape: Any, order: str) -> np.ndarray:
    if not (isinstance(kind, _Kind) and isinstance(data, bytes)):
        raise _Refused("an array of objects")
    return np.frombuffer(data, kind.dtype()).reshape(shape, order="F" if order == "F" else "C")


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Named tensors of a pickled mapping of numpy arrays; entries may be (name, array) as PaddlePaddle writes them.

    Raises:
        UserError: on a file that is missing or damaged, or holds anything but data.
    """
    machine = _Machine()
    try:
        with path.open("rb") as file:
            for opcode, arg, _ in pickletools.genops(file):
                machine.step(opcode.name, arg)
        (content,) = machine.stack
        if not isinstance(content, dict):
            raise _Refused(f"a {type(content).__name__} and no mapping of names")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except _Refused as error:
        raise UserError(f"{path} is refused: not a file of plain arrays (it holds {error})") from error
    except Exception as error:  # a damaged file can break any step
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is no readable file of arrays: {reason}") from error
    return {str(key): tensor for key, value in content.items() if (tensor := _tensor(value)) is not None}


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, tuple) and len(value) == 2:
        value = value[1]
    if not isinstance(value, _Array) or value.value is None:
        return None
    return torch.from_numpy(value.value.astype(value.value.dtype.newbyteorder("="), order="C", copy=True))
