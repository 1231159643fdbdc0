"""Read the pickles of PyTorch files without running anything that they name.

A pickle is a program for a stack machine: it builds values, and calls functions by name. This machine builds numbers,
text, lists, tuples and dicts, and the tensors of torch.save. Any other name, and whatever a call of it would return,
becomes an `Unknown`, which does nothing. So a file with an argparse.Namespace, a NumPy scalar, a function of dill or a
whole module can be read, and a hostile one is harmless: no name is ever looked up. `pickletools.genops` splits a pickle
into its operations and runs none.
"""

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

import torch

Value = Any
MAX_PICKLE = 2**24  # bytes
MAX_OPERATIONS = 1_000_000  # of one pickle; a checkpoint of ResNet-50 with its optimizer has 50,000
MAX_DIMENSIONS, MAX_COUNT = 8, 2**40  # of a tensor; numbers in it
MAX_NAME, MAX_KEY = 200, 2**31  # characters of a name; largest whole number that is a key of a dict
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class StoredArray:
    """`count` numbers, which stand elsewhere in the file under `key`."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a stored array, in numbers; never larger than the array, and inside it."""

    array: StoredArray
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(eq=False)
class Unknown:
    """A name, or the result of a call of it; `state` is what the pickle would have set on it."""

    name: str
    arguments: tuple[Value, ...] = ()
    state: Value = None


@dataclass
class Machine:
    """`marks`: the stacks that were put aside at each open mark. `arrays`: those that the pickle refers to, by key."""

    stack: list[Value] = field(default_factory=list)
    marks: list[list[Value]] = field(default_factory=list)
    memo: dict[int, Value] = field(default_factory=dict)
    arrays: dict[str, StoredArray] = field(default_factory=dict)

    def pop_mark(self) -> list[Value]:
        """The values since the newest mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def pop(self, count: int) -> list[Value]:
        """The newest values, oldest first. Raises IndexError if there are fewer."""
        return [self.stack.pop() for _ in range(count)][::-1]


def read_pickle(file: IO[bytes]) -> tuple[Value, dict[str, StoredArray]]:
    """The value of the pickle at the file's position, which moves to its end; and the stored arrays that it refers to,
    by key. Raises ValueError for anything that is not a pickle, or not one of a checkpoint."""
    machine = Machine()
    try:
        start = file.tell()
        for number, (operation, argument, position) in enumerate(pickletools.genops(file)):
            if number > MAX_OPERATIONS or (position or 0) - start > MAX_PICKLE:
                raise ValueError("the pickle is larger than that of any checkpoint; export the state_dict alone")
            if operation.name == "STOP":
                return machine.stack.pop(), machine.arrays
            if operation.name not in OPERATIONS:
                raise ValueError(f"operation {operation.name}, which no checkpoint needs")
            OPERATIONS[operation.name](machine, argument)
    except (IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(f"not a valid pickle ({type(error).__name__}: {str(error)[:80]})") from None
    raise ValueError("a pickle without an end")


def push(machine: Machine, value: Value) -> None:
    machine.stack.append(value)


def set_items(machine: Machine, items: list[Value]) -> None:
    """Into the dict on the stack; an Unknown, such as a subclass of dict, ignores them. Keys that no checkpoint has are
    left out: the hash of deeply nested tuples would crash Python, and large numbers could all have one hash."""
    target = machine.stack[-1]
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str) or (isinstance(key, int) and 0 <= key <= MAX_KEY):
                target[key] = value


def append(machine: Machine, items: list[Value]) -> None:
    target = machine.stack[-1]
    if isinstance(target, list):
        target.extend(items)


def push_dict(machine: Machine, items: list[Value]) -> None:
    push(machine, {})
    set_items(machine, items)


def remember(machine: Machine, index: int | None) -> None:
    machine.memo[len(machine.memo) if index is None else index] = machine.stack[-1]


def set_state(machine: Machine) -> None:
    target, state = machine.pop(2)
    if isinstance(target, Unknown):
        target.state = state
    push(machine, target)


def pop_one(machine: Machine) -> None:
    """POP ends a mark that is on top."""
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def push_mark(machine: Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def push_name(machine: Machine, module: Value, name: Value) -> None:
    """Only short text is formatted: that of nested lists, or of many long names, can be longer than any memory."""
    is_short = all(isinstance(part, str) and len(part) <= MAX_NAME for part in (module, name))
    push(machine, Unknown(f"{module}.{name}" if is_short else "a name"))


def push_call(machine: Machine, function: Value, arguments: Value, *_: Value) -> None:
    push(machine, call(function, arguments if isinstance(arguments, tuple) else ()))


def call_since_mark(machine: Machine) -> None:
    function, *arguments = machine.pop_mark()
    push_call(machine, function, tuple(arguments))


def call(function: Value, arguments: tuple[Value, ...]) -> Value:
    """What the call of a name stands for."""
    name = function.name if isinstance(function, Unknown) else ""
    if name == "collections.OrderedDict":
        return {}  # its items follow
    if name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2") and len(arguments) >= 4:
        return stored_tensor(*arguments[:4])
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state") and arguments:
        return arguments[0]
    if name == "torch._tensor._rebuild_from_type_v2" and len(arguments) == 4 and isinstance(arguments[2], tuple):
        is_nested = isinstance(arguments[0], Unknown) and arguments[0].name == name
        return Unknown(name) if is_nested else call(arguments[0], arguments[2])
    return Unknown(name, arguments)


def stored_tensor(array: Value, offset: Value, shape: Value, stride: Value) -> StoredTensor | Unknown:
    """Numbers that a file invents are refused here, before anything computes with them."""
    if isinstance(array, StoredArray) and isinstance(shape, tuple) and isinstance(stride, tuple):
        numbers = (offset, *shape, *stride)
        are_plain = len(shape) == len(stride) <= MAX_DIMENSIONS and all(type(number) is int for number in numbers)
        if (
            are_plain
            and 0 <= min(numbers) <= max(numbers) <= MAX_COUNT
            and math.prod(max(size, 1) for size in shape) <= MAX_COUNT
        ):
            last = offset + sum((size - 1) * step for size, step in zip(shape, stride))
            if 0 in shape or (math.prod(shape) <= array.count and last < array.count):
                return StoredTensor(array, offset, shape, stride)
    return Unknown("a tensor")


def push_reference(machine: Machine, reference: Value) -> None:
    """("storage", type, key, device, count, view), as torch.save refers to the numbers of a tensor. `view` is absent or
    None since PyTorch 0.4. Files of whole modules refer to their classes in the same way."""
    match reference:
        case ("storage", Unknown(name=name), str(key), _, int(count), *view) if view in ([], [None]):
            if (dtype := DTYPES.get(name.removeprefix("torch."))) and len(key) <= MAX_NAME and 0 <= count <= MAX_COUNT:
                machine.arrays[key] = StoredArray(key, dtype, int(count))
                return push(machine, machine.arrays[key])
        case ("module", Unknown() as kind, *_):
            return push(machine, kind)
    return push(machine, Unknown("a reference"))


Operation = Callable[[Machine, Any], object]
LITERALS = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8"
).split()
OPERATIONS: dict[str, Operation] = {
    **dict.fromkeys(LITERALS, push),
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    "NONE": lambda machine, _: push(machine, None),
    "NEWTRUE": lambda machine, _: push(machine, True),
    "NEWFALSE": lambda machine, _: push(machine, False),
    "EMPTY_LIST": lambda machine, _: push(machine, []),
    "EMPTY_TUPLE": lambda machine, _: push(machine, ()),
    "EMPTY_DICT": lambda machine, _: push(machine, {}),
    "EMPTY_SET": lambda machine, _: push(machine, Unknown("a set")),
    "MARK": lambda machine, _: push_mark(machine),
    "POP_MARK": lambda machine, _: machine.pop_mark(),
    "POP": lambda machine, _: pop_one(machine),
    "DUP": lambda machine, _: push(machine, machine.stack[-1]),
    "LIST": lambda machine, _: push(machine, machine.pop_mark()),
    "TUPLE": lambda machine, _: push(machine, tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: push(machine, tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: push(machine, tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: push(machine, tuple(machine.pop(3))),
    "DICT": lambda machine, _: push_dict(machine, machine.pop_mark()),
    "FROZENSET": lambda machine, _: push(machine, Unknown("a set", tuple(machine.pop_mark()))),
    "APPEND": lambda machine, _: append(machine, machine.pop(1)),
    "APPENDS": lambda machine, _: append(machine, machine.pop_mark()),
    "ADDITEMS": lambda machine, _: machine.pop_mark(),
    "SETITEM": lambda machine, _: set_items(machine, machine.pop(2)),
    "SETITEMS": lambda machine, _: set_items(machine, machine.pop_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: push(machine, machine.memo[index])),
    "GLOBAL": lambda machine, names: push_name(machine, *names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: push_name(machine, *machine.pop(2)),
    "REDUCE": lambda machine, _: push_call(machine, *machine.pop(2)),
    "NEWOBJ": lambda machine, _: push_call(machine, *machine.pop(2)),
    "NEWOBJ_EX": lambda machine, _: push_call(machine, *machine.pop(3)),
    "OBJ": lambda machine, _: call_since_mark(machine),
    "INST": lambda machine, names: push_call(
        machine, Unknown(names[:MAX_NAME].replace(" ", ".")), tuple(machine.pop_mark())
    ),
    "BUILD": lambda machine, _: set_state(machine),
    "PERSID": lambda machine, reference: push(machine, Unknown("a reference")),
    "BINPERSID": lambda machine, _: push_reference(machine, machine.pop(1)[0]),
}
