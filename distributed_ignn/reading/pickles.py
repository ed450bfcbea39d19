"""What a pickle describes, without running any of it.

A pickle is a program that calls whatever it names. Here it is followed step by step and calls
nothing: a name stays a name, and what would be made by calling it becomes a ``Described``, a record
of name, arguments and state. All protocols are read. What the records mean is for the caller to
say, who so needs no list of what must not be called.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distributed_ignn.reading.plain_files import in_one_line

_MOST_STEPS = 5_000_000
"""Each takes memory beyond its bytes; a graph with a word for every node has two a node."""

_KEYS = (str, int, float, bool, type(None))


@dataclass(frozen=True, slots=True)
class Named:
    """A name that the pickle refers to, as in ``numpy.ndarray``."""

    name: str


@dataclass(slots=True, eq=False)
class Described:
    """What a call would have made.

    Args:
        name: of what would have been called.
        args: with which arguments.
        state: what the result would have been given afterwards, if anything.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Outside:
    """Something that lies outside of the pickle; ``key`` says where, as the writer put it."""

    key: Any


def describe(content: bytes) -> Any:
    """The object that a pickle stands for: plain values, lists, dictionaries, and records.

    Raises:
        ValueError: it is no pickle, damaged, or too long.
    """
    try:
        return _Machine().run(content)
    except (LookupError, AttributeError, TypeError, OverflowError, UnicodeError) as error:
        # what damage makes of steps that find another thing than they need
        raise ValueError(f"its pickle is damaged ({in_one_line(error)})") from error


class _Machine:
    """The stack, the marks in it, and the memo."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for number, (code, argument, _) in enumerate(pickletools.genops(content)):
            if number >= _MOST_STEPS:
                raise ValueError(f"its pickle has more than {_MOST_STEPS:,} steps")
            if code.name == "STOP":
                break
            step = _STEPS.get(code.name)
            if step is None:
                raise ValueError(f"its pickle has a step of an unknown kind, {code.name}")
            step(self, argument)
        if len(self._stack) != 1 or self._below:
            raise ValueError(f"its pickle ends with {len(self._stack)} objects")
        return self._stack[0]

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def since_mark(self) -> list[Any]:
        """What was pushed since the last mark, which goes."""
        found, self._stack = self._stack, self._below.pop()
        return found

    def memoize(self, key: int | None) -> None:
        self._memo[len(self._memo) if key is None else key] = self._stack[-1]

    def recall(self, key: int) -> None:
        self.push(self._memo[key])

    def name(self, argument: str) -> None:
        self.push(Named(".".join(argument.split(" "))))

    def name_from_stack(self, _: Any) -> None:
        last, module = self.pop(), self.pop()
        if not isinstance(last, str) or not isinstance(module, str):
            raise ValueError("its pickle names something that is no name")
        self.push(Named(f"{module}.{last}"))

    def call(self, _: Any) -> None:
        args, called = self.pop(), self.pop()
        if not isinstance(called, Named) or not isinstance(args, tuple):
            raise ValueError("its pickle calls something without a name")
        if called.name == "collections.OrderedDict" and not args:
            self.push({})
        else:
            self.push(Described(called.name, args))

    def call_with_words(self, _: Any) -> None:
        words = self.pop()
        if words:
            raise ValueError("its pickle calls something with arguments by name")
        self.call(None)

    def give_state(self, _: Any) -> None:
        state = self.pop()
        if isinstance(self._stack[-1], Described):
            self._stack[-1].state = state
        elif not isinstance(self._stack[-1], dict):  # an OrderedDict may have attributes, too
            raise ValueError("its pickle gives a state to a plain value")

    def extend(self, values: list[Any]) -> None:
        holder = self._stack[-1]
        if isinstance(holder, list | bytearray):
            holder.extend(values)
        elif not isinstance(holder, Described):  # members of an unknown container
            raise ValueError("its pickle adds members to a plain value")

    def dictionary(self, _: Any) -> None:
        pairs = self.since_mark()
        self.push({})
        self.set_items(pairs)

    def set_items(self, pairs: list[Any]) -> None:
        holder = self._stack[-1]
        if isinstance(holder, Described):
            return
        if not isinstance(holder, dict) or len(pairs) % 2:
            raise ValueError("its pickle adds entries to a plain value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            holder[_checked_key(key)] = value


def _checked_key(key: Any) -> Any:
    """A key that hashes without recursion: Python counts no depth there, and would crash."""
    parts = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(part, _KEYS) for part in parts):
        raise ValueError(f"its pickle has a {type(key).__name__} for a key")
    return key


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        machine.push(tuple(reversed([machine.pop() for _ in range(count)])))

    return step


_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_STEPS: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(_VALUES, _Machine.push),
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.recall),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.call),
    "NEWOBJ_EX": _Machine.call_with_words,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push([]),
    "MARK": _Machine.mark,
    "DICT": _Machine.dictionary,
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "FROZENSET": lambda machine, _: machine.push(machine.since_mark()),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "DUP": lambda machine, _: machine.push(machine._stack[-1]),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_from_stack,
    "BUILD": _Machine.give_state,
    "BINPERSID": lambda machine, _: machine.push(Outside(machine.pop())),
}
