"""Just enough pickle for the index of a torch file: a machine over inert values that runs nothing.

Python's own unpickler is not used, so no class is ever looked up: a name on the short list below
becomes a member of `Name`. Whole models of RWKV-1 were saved with the names of their classes: any
other name stands for an unknown class, of which nothing can be done but to note an object of it.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rwkv_chat.checkpoints.modules import SavedObject, named_tensors

__all__ = ["PickleError", "StorageRef", "TensorRef", "read_index"]

_MAX_SIZE = 4 << 20
_MAX_MEMO = 1 << 20
_MAX_DIMENSIONS = 4
_MAX_KEY = 64


class PickleError(Exception):
    """The index is damaged, or it asks for something that an index of tensors does not need."""


class Name(Enum):
    """The names that an index of tensors may hold, as `module name`."""

    MAP = "collections OrderedDict"
    SET = "builtins set"
    OLD_SET = "__builtin__ set"
    TENSOR = "torch._utils _rebuild_tensor_v2"
    PARAMETER = "torch._utils _rebuild_parameter"
    F32 = "torch FloatStorage"
    F16 = "torch HalfStorage"
    BF16 = "torch BFloat16Storage"
    U8 = "torch ByteStorage"


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage by the key of its entry; `dtype` is a key of safetensors.DTYPES."""

    dtype: str
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A view of a storage; offset and strides count elements. Nothing is checked but the types."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    pass


@dataclass(frozen=True, slots=True)
class _Class:
    """A class that is not looked up, as `module name`."""

    name: str


_MARK = _Mark()
_PUSHED = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT"}
)
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def read_index(data: bytes) -> dict[str, object]:
    """The map of names that a pickle holds, or the tensors of a module; its tensors as TensorRef.

    Where a checkpoint of a training holds the one map of tensors beside other things, or in a map
    there, it is that.

    Raises:
        PickleError: with what is wrong, as the end of a sentence.
    """
    if len(data) > _MAX_SIZE:
        raise PickleError(f"its index has {len(data)} bytes, more than any model needs")
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
            machine.execute(opcode.name, argument)
        found = machine.take() if len(machine.stack) == 1 else None
        if isinstance(found, SavedObject):
            found = named_tensors(found)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise PickleError(f"its index cannot be read ({str(error)[:100]!a})") from error
    if not isinstance(found, dict):
        raise PickleError("its index is not a map of names")
    if _has_tensors(found):
        return found
    maps = _maps(found)
    for level in (maps, [inner for part in maps for inner in _maps(part)]):
        holding = [part for part in level if _has_tensors(part)]
        if holding:
            return holding[0] if len(holding) == 1 else found
    return found


def _maps(names: dict[str, Any]) -> list[dict[str, Any]]:
    return [value for value in names.values() if isinstance(value, dict)]


def _has_tensors(names: dict[str, Any]) -> bool:
    return any(isinstance(value, TensorRef) for value in names.values())


class _Machine:
    """The stack and the memo of a pickle being read."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def execute(self, name: str, argument: Any) -> None:
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise PickleError(f"its index uses {name}, which an index of tensors does not need")

    def take(self) -> Any:
        """The last value, which is no class: those are of use to `new_object` alone."""
        return _no_class(self.stack.pop())

    def skip(self, _: Any) -> None:
        pass

    def mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def new_map(self, _: Any) -> None:
        self.stack.append({})

    def new_list(self, _: Any) -> None:
        self.stack.append([])

    def put(self, index: int | None) -> None:
        if len(self.memo) >= _MAX_MEMO:
            raise PickleError("its index remembers too much")
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def global_name(self, argument: str) -> None:
        names = Name._value2member_map_
        self.stack.append(names[argument] if argument in names else _Class(argument))

    def stack_global(self, _: Any) -> None:
        name, module = self.take(), self.take()
        if not isinstance(name, str) or not isinstance(module, str):
            # As text, tuples of the same tuples would grow without end.
            raise PickleError("its index asks for something that has no name")
        self.global_name(f"{module} {name}")

    def tuple_of(self, count: int) -> None:
        items = tuple(self.pop_items(count))
        self.stack.append(items)

    def tuple_to_mark(self, _: Any) -> None:
        items = tuple(self.pop_to_mark())
        self.stack.append(items)

    def pop_items(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise PickleError("its index takes more than it holds")
        items = [_no_class(item) for item in self.stack[-count:]]
        del self.stack[-count:]
        return items

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.take()) is not _MARK:
            items.append(item)
        items.reverse()
        return items

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleError("its index fills something that is no map")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise PickleError("its index has a name that is no text")
            if key in target:
                raise PickleError(f"it names {key[:80]!a} twice")
            target[key] = value

    def set_item(self, _: Any) -> None:
        self.set_items(self.pop_items(2))

    def set_items_to_mark(self, _: Any) -> None:
        self.set_items(self.pop_to_mark())

    def append(self, _: Any) -> None:
        self.extend(self.pop_items(1))

    def append_to_mark(self, _: Any) -> None:
        self.extend(self.pop_to_mark())

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise PickleError("its index fills something that is no list")
        self.stack[-1].extend(items)

    def new_object(self, _: Any) -> None:
        arguments, called = self.take(), self.stack.pop()
        if arguments != () or not isinstance(called, _Class):
            raise PickleError("its index makes an object in an unknown way")
        self.stack.append(SavedObject(called.name))

    def build(self, _: Any) -> None:
        """Attributes of a map (torch keeps module versions there) are of no use here."""
        attributes, target = self.take(), self.stack[-1]
        if isinstance(target, SavedObject) and isinstance(attributes, dict):
            target.attributes = attributes
        elif not isinstance(target, dict):
            raise PickleError("its index builds something that is no map")

    def persistent(self, _: Any) -> None:
        match self.take():
            case ("storage", Name() as kind, str(key), str(), int(size)) if (
                kind.name in _STORAGES and len(key) <= _MAX_KEY
            ):
                self.stack.append(StorageRef(kind.name, key, size))
            case _:
                raise PickleError("its index names a storage in an unknown way")

    def reduce(self, _: Any) -> None:
        arguments, called = self.take(), self.take()
        match called, arguments:
            case Name.MAP, ():
                self.stack.append({})
            case ((Name.SET | Name.OLD_SET), (list(items),)):
                self.stack.append(items)
            case Name.TENSOR, (
                StorageRef() as storage,
                int(offset),
                tuple(shape),
                tuple(strides),
                *_,
            ):
                # Before their elements: the same long tuple may be named by every tensor.
                if len(shape) > _MAX_DIMENSIONS or len(strides) > _MAX_DIMENSIONS:
                    raise PickleError("its index gives a tensor too many dimensions")
                if not all(type(item) is int for item in shape + strides):
                    raise PickleError("its index gives a tensor a size that is no number")
                self.stack.append(TensorRef(storage, offset, shape, strides))
            case Name.PARAMETER, (TensorRef() as tensor, *_):
                self.stack.append(tensor)
            case _:
                raise PickleError("its index makes a tensor in an unknown way")


def _no_class(value: Any) -> Any:
    if isinstance(value, _Class):
        called = value.name.replace(" ", ".")[:80]
        raise PickleError(f"it asks to run {called!a}, which a model never needs")
    return value


_STORAGES = frozenset({"F32", "F16", "BF16", "U8"})
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.skip,
    "FRAME": _Machine.skip,
    "STOP": _Machine.skip,
    "MARK": _Machine.mark,
    "EMPTY_DICT": _Machine.new_map,
    "EMPTY_LIST": _Machine.new_list,
    "EMPTY_SET": _Machine.new_list,  # what is in a set of names does not matter
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.stack_global,
    "TUPLE": _Machine.tuple_to_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items_to_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_to_mark,
    "ADDITEMS": _Machine.append_to_mark,
    "NEWOBJ": _Machine.new_object,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
    "REDUCE": _Machine.reduce,
}
