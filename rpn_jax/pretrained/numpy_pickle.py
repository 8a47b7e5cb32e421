"""Pickles of NumPy arrays, read without running anything that they name.

A pickle is a program: it names functions and has them called. Here every name that a
pickled array needs stands for a `Record`, which writes down its call and does nothing;
arrays are built from the records afterwards. Any other name is refused.
"""

import pickle
import pickletools
from typing import Any, BinaryIO

import numpy as np

_RECORDED = {
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.core.numeric._frombuffer",  # since protocol 5
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",  # bytes before protocol 3
    "__builtin__.bytes",  # likewise, none of them
}
_NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


class Refused(ValueError):
    """A file holds what is not taken; the message says what, the caller which file."""


class Record:
    """A name in a pickle, or a call of it, with the state that it was given.

    Attributes:
        name: of the function or class.
        args: of its call; None: it was not called.
        state: what the result was to be set to; None: nothing.
    """

    def __init__(self, name: str, args: tuple | None = None):
        self.name, self.args = name, args
        self.state: Any = None

    def __call__(self, *args: Any) -> "Record":
        """Write down a call."""
        return Record(self.name, args)

    def __setstate__(self, state: Any) -> None:
        """Write down the state."""
        self.state = state


class _Dict(dict):
    """An OrderedDict whose attributes (torch's `_metadata`) are left out."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}".replace("numpy._core.", "numpy.core.")
        if name == "collections.OrderedDict":
            return _Dict
        if name in _RECORDED:
            return Record(name)
        raise Refused(
            f"it names {name[:80]!r}, and nothing but NumPy arrays and plain "
            "containers is taken; nothing of it was run"
        )


def load_pickle(file: BinaryIO) -> Any:
    """Read a pickle of plain containers and NumPy arrays, of Python 2 or 3.

    Args:
        file: open for reading, in binary.

    Returns:
        What it holds, with a `Record` in place of each array.

    Raises:
        Refused: it names anything else.
        Exception: of any kind, if it is damaged.
    """
    size = file.seek(0, 2)
    file.seek(0)
    for opcode, value, _ in pickletools.genops(file):
        # Memory of that size is taken for the memo: five bytes can ask for 64 GiB.
        if opcode.name in ("PUT", "LONG_BINPUT") and int(value or 0) > size:
            raise Refused("its memo is larger than the file")
        # Python keeps what such numbers stood for, and asks no find_class again.
        if opcode.name in ("EXT1", "EXT2", "EXT4"):
            raise Refused("it names an extension; nothing of it was run")
    file.seek(0)
    return _Unpickler(file, encoding="latin1").load()


def to_array(record: Record) -> np.ndarray:
    """Build the array that a record stands for, of the machine's byte order.

    Raises:
        Refused: it is one of no numbers.
        Exception: of any kind, if it stands for none.
    """
    match record.name.rpartition(".")[2], record.args, record.state:
        case "_reconstruct", _, (_, shape, dtype, fortran, data):
            order = "F" if fortran else "C"
        case "_frombuffer", (data, dtype, shape, order), _:
            pass
        case "scalar", (dtype, data), _:
            shape, order = (), "C"
        case _:
            raise ValueError(f"{record.name} is no array")
    stored = _dtype(dtype)
    array = np.frombuffer(_bytes(data), stored).reshape(shape, order=order)
    return array.astype(stored.newbyteorder("="))


def _dtype(record: Any) -> np.dtype:
    match record:
        case Record(name="numpy.dtype", args=(str(code), *_)):
            order = str(record.state[1])
            if code not in _NUMBERS or order not in ("<", ">", "=", "|"):
                raise Refused(f"an array is of dtype {order + code!r}, not of numbers")
            return np.dtype(order + code)
    raise ValueError("an array has no dtype")


def _bytes(data: Any) -> bytes | bytearray:
    match data:
        case Record(args=(str(text), *_)) | str(text):  # strings: bytes of Python 2
            return text.encode("latin1")
        case Record(args=()):
            return b""
    return data
