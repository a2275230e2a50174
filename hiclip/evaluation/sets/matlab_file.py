"""MATLAB files of published sets, by scipy: numbers, texts and tables of records, or an error in one line."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import scipy.io
from scipy.io.matlab import MatReadError

from pipeline.manifest import DatasetError
from pipeline.storage import Folder

_HEADER = b"MATLAB 5.0 MAT-file"
"""How files of the version begin that all published sets have. Without it scipy takes any bytes for version 4, which
has no mark, and believes their sizes."""
_BROKEN = (
    MatReadError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    NotImplementedError,
    OSError,
    EOFError,
    struct.error,
    zlib.error,
)
"""What scipy raises about a file that is cut off or no MATLAB file; it promises none in particular."""


class MatlabFile:
    """The variables of one file, read at once."""

    def __init__(self, place: Folder, file: str) -> None:
        """Raises DatasetError if the file is not there or cannot be read."""
        self.path = place.join(file)
        if not place.exists(file):
            raise DatasetError(f"{self.path}: is not there")
        content = place.read_bytes(file)
        if not content.startswith(_HEADER):
            raise DatasetError(f"{self.path}: expected a MATLAB file of version 5, came other bytes")
        try:
            self._variables: dict[str, Any] = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True)
        except _BROKEN as error:
            raise DatasetError(f"{self.path}: cannot be read: {(str(error) or repr(error)).splitlines()[0]}") from None

    def numbers(self, variable: str) -> list[int]:
        """A vector of whole numbers."""
        return self._whole(np.atleast_1d(self._found(variable)).ravel().tolist(), variable)

    def texts(self, variable: str) -> list[str]:
        """A cell array of texts."""
        return [str(text) for text in np.atleast_1d(self._found(variable)).ravel().tolist()]

    def records(self, variable: str, number: str, text: str) -> tuple[list[int], list[str]]:
        """Of a struct array the field `number`, whole numbers, and the field `text`."""
        table = np.atleast_1d(self._found(variable)).ravel()
        missing = [field for field in (number, text) if field not in (table.dtype.names or ())]
        if missing:
            raise DatasetError(f"{self.path}: expected '{variable}' with a field '{missing[0]}', came none")
        return self._whole(table[number].tolist(), f"{variable}.{number}"), [str(one) for one in table[text].tolist()]

    def _found(self, variable: str) -> Any:
        if variable not in self._variables:
            raise DatasetError(f"{self.path}: expected a variable '{variable}', came none")
        return self._variables[variable]

    def _whole(self, values: list[Any], variable: str) -> list[int]:
        for value in values:
            if not isinstance(value, int | float) or not float(value).is_integer():
                raise DatasetError(f"{self.path}: expected whole numbers in '{variable}', came {str(value)[:40]}")
        return [int(value) for value in values]
