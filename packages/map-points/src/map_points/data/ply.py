"""PLY files, as far as clouds need them: the scalar properties of the vertices."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from map_core.errors import UserError

TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
LONGEST_HEADER = 10_000  # lines


@dataclass
class _Element:
    name: str
    count: int
    properties: list[tuple[str, str]]  # name and numpy type; the type of a list is ""


def read_ply(path: Path) -> np.ndarray:
    """Read x, y and z of the vertices (n, 3), float64, from an ascii or binary PLY file.

    Elements before the vertices may have scalar properties only; what comes behind them is not read.
    Source: Turk, "The PLY Polygon File Format" (1994).

    Raises:
        UserError: no PLY file, no vertices with x, y and z, list properties in or before them, or a cut-off file.
    """
    with path.open("rb") as file:
        form, elements = _read_header(file, path)
        for element in elements:
            if any(kind == "" for _, kind in element.properties):
                raise UserError(
                    f"{path}: {element.name} has a list property, in or before the vertices; convert it"
                )
            table = _read_element(file, element, form, path)
            if element.name == "vertex":
                return np.stack([table[axis] for axis in "xyz"], axis=1).astype(np.float64)
    raise UserError(f"{path} has no vertices")


def _read_header(file: BinaryIO, path: Path) -> tuple[str, list[_Element]]:
    if file.readline().strip() != b"ply":
        raise UserError(f"{path} is no PLY file: it does not begin with ply")
    form, elements = "", list[_Element]()
    for _ in range(LONGEST_HEADER):
        line = file.readline()
        words = line.decode("ascii", "replace").split()
        match words:
            case ["end_header"]:
                break
            case ["format", form, *_]:
                pass
            case ["element", name, count] if count.isdigit():
                elements.append(_Element(name, int(count), []))
            case ["property", "list", _, _, name] if elements:
                elements[-1].properties.append((name, ""))
            case ["property", kind, name] if elements and kind in TYPES:
                elements[-1].properties.append((name, TYPES[kind]))
            case [] | ["comment" | "obj_info", *_] if line:
                pass
            case _:
                raise UserError(f"{path}: the header is cut off or has the line {' '.join(words)!r}")
    if form != "ascii" and form not in BYTE_ORDERS:
        raise UserError(f"{path} has the format {form!r}; known: ascii, {', '.join(BYTE_ORDERS)}")
    for element in elements:
        names = [name for name, _ in element.properties]
        if element.name == "vertex" and not {"x", "y", "z"} <= set(names):
            raise UserError(
                f"{path}: the vertices have {', '.join(names) or 'no properties'}; expected x, y and z"
            )
    return form, elements


def _read_element(file: BinaryIO, element: _Element, form: str, path: Path) -> np.ndarray:
    """Rows of an element as a structured array."""
    order = BYTE_ORDERS.get(form, "=")
    kind = np.dtype([(name, order + kind) for name, kind in element.properties])
    if form == "ascii":
        rows = [tuple(file.readline().split()) for _ in range(element.count)]
        short = [i for i, row in enumerate(rows) if len(row) != len(element.properties)]
        if short:
            raise UserError(
                f"{path}: row {short[0]} of {element.name} has {len(rows[short[0]])} values, expected "
                f"{len(element.properties)}; is it cut off?"
            )
        columns = list(zip(*rows, strict=True)) or [()] * len(element.properties)
        table = np.empty(element.count, dtype=kind)
        for (name, _), column in zip(element.properties, columns, strict=True):
            table[name] = np.array(column, dtype=np.float64)
        return table
    data = file.read(kind.itemsize * element.count)
    if len(data) < kind.itemsize * element.count:
        raise UserError(
            f"{path} ends within {element.name}: {len(data)} of {kind.itemsize * element.count} bytes; copy it again"
        )
    return np.frombuffer(data, dtype=kind)
