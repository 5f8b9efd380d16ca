"""MATLAB files of both kinds behind one interface: up to version 7 through SciPy, version 7.3 (HDF5) through h5py."""

from __future__ import annotations

import importlib
import io
import zlib
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...tracker.errors import BackendError, SourceError, shortened
from ...tracker.types import Float64

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
USER_BLOCK = 512  # bytes of MATLAB's own header before the HDF5 file
_HEAD = USER_BLOCK + len(HDF5_MAGIC)
# what SciPy and h5py raise on damaged files, and NumPy on the sizes declared in them
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    UnboundLocalError,
    ValueError,
)


class MatlabFile:
    """Variables of a .mat file in MATLAB's own orientation.

    Args:
        path: the file.
        content: its bytes, if it is in an archive; `path` is then used only as its name.
    Raises:
        SourceError: it cannot be read.
        BackendError: the library that reads it is not installed.
    """

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        self._path, self._content = path, content
        head = _head(path) if content is None else content[:_HEAD]
        self._hdf5 = HDF5_MAGIC in (head[: len(HDF5_MAGIC)], head[USER_BLOCK:])
        self._library = _need("h5py" if self._hdf5 else "scipy.io")

    def numbers(self, name: str) -> Float64:
        """A numeric variable as a float64 array; a vector or scalar has two axes, as in MATLAB.

        Raises:
            SourceError: there is no such variable, or it does not hold numbers.
        """
        try:
            if self._hdf5:
                with self._library.File(self._source) as file:
                    return np.atleast_2d(np.asarray(file[name][()], np.float64)).T
            return np.atleast_2d(np.asarray(self._variables[name], np.float64))
        except _DAMAGE as error:
            raise self._lacks(name, error) from error

    def strings(self, name: str) -> list[str]:
        """A cell array of strings.

        Raises:
            SourceError: there is no such variable, or it holds something else.
        """
        try:
            return [_text(self.cell(name, i)) for i in range(self.count(name))]
        except _DAMAGE as error:
            raise self._lacks(name, error) from error

    def count(self, name: str) -> int:
        """Number of cells of a cell array.

        Raises:
            SourceError: there is no such variable.
        """
        try:
            if self._hdf5:
                with self._library.File(self._source) as file:
                    return int(file[name].size)
            return int(self._variables[name].size)
        except _DAMAGE as error:
            raise self._lacks(name, error) from error

    def cell(self, name: str, index: int) -> NDArray[Any]:
        """One cell's array, by 0-based index; of an HDF5 file only this cell is read.

        Raises:
            SourceError: there is no such variable or cell.
        """
        try:
            if self._hdf5:
                with self._library.File(self._source) as file:
                    return np.asarray(file[np.ravel(file[name][()], "F")[index]][()]).T
            return np.asarray(np.ravel(self._variables[name], "F")[index])
        except _DAMAGE as error:
            raise self._lacks(name, error) from error

    @property
    def _source(self) -> Path | io.BytesIO:
        return self._path if self._content is None else io.BytesIO(self._content)

    @cached_property
    def _variables(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = self._library.loadmat(self._source)
        except (self._library.matlab.MatReadError, zlib.error, *_DAMAGE) as error:
            raise SourceError(f"{self._path}: not a MATLAB file that can be read: {error}") from error
        return content

    def _lacks(self, name: str, error: Exception) -> SourceError:
        return SourceError(f"{self._path}: wanted a variable {name} in it: {shortened(error)}")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error


def _text(cell: NDArray[Any]) -> str:
    """A string from SciPy's form (array of str) or h5py's (array of character codes)."""
    if cell.dtype.kind in "US":
        return "".join(map(str, cell.ravel()))
    return "".join(map(chr, cell.ravel("F").tolist()))


def _need(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise BackendError(f'reading MATLAB files needs {error.name}; run: pip install "facetrack[eval]"') from error
