"""Tensors that a file holds in another form: each is made when it is asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy.typing as npt

from rwkv_chat.checkpoints.reading import Checkpoint
from rwkv_chat.errors import NotAModelError

__all__ = ["Array", "Derived", "DerivedFile", "DerivedTensors"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Derived:
    """A tensor by its type (a key of safetensors.DTYPES), its shape, and how it is made."""

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Array]


class DerivedFile:
    """A checkpoint whose tensors are made from those of another one."""

    def __init__(self, path: Path, tensors: Mapping[str, Derived]) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = MappingProxyType({})
        self.tensors = tensors

    def array(self, name: str) -> Array:
        """The tensor `name` (KeyError if there is none)."""
        return self.tensors[name].make()


class DerivedTensors:
    """Collects the tensors of a DerivedFile from those of `base`."""

    def __init__(self, base: Checkpoint) -> None:
        self._base = base
        self._tensors: dict[str, Derived] = {}

    def file(self) -> DerivedFile:
        """A checkpoint of what was collected, at the place of `base`."""
        return DerivedFile(self._base.path, MappingProxyType(self._tensors))

    def keep(self, name: str, stored: str) -> None:
        """`name` is the tensor `stored` as it is."""
        self.add(name, stored, self._base.tensors[stored].shape, lambda array: array)

    def turn(self, name: str, stored: str) -> None:
        """`name` is the transpose (of the last two dimensions) of `stored`."""
        shape = self._base.tensors[stored].shape
        if len(shape) < 2:  # its shape will be refused
            self.keep(name, stored)
            return
        turned = (*shape[:-2], shape[-1], shape[-2])
        self.add(name, stored, turned, lambda array: array.swapaxes(-1, -2))

    def add(
        self,
        name: str,
        stored: str,
        shape: tuple[int, ...],
        change: Callable[[Array], Array],
        dtype: str | None = None,
    ) -> None:
        """`name`, of `shape`, is what `change` makes of `stored`; `dtype` None is that of `stored`.

        Raises:
            NotAModelError: there is such a tensor already.
        """
        if name in self._tensors:
            raise NotAModelError(
                f"{self._base.path} holds the tensor {name!a} in two forms. Remove one of them."
            )
        base = self._base
        dtype = dtype or base.tensors[stored].dtype
        self._tensors[name] = Derived(dtype, shape, lambda: change(base.array(stored)))
