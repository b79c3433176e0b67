"""PLY files, as far as clouds need them: the scalar properties of the vertices."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from map_core.errors import UserError, in_one_line
from map_points.data.files import looks_like, open_regular

TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
LONGEST_HEADER = 10_000  # lines
LONGEST_LINE = 4096  # bytes in a line of a header


@dataclass
class _Element:
    name: str
    count: int
    properties: list[tuple[str, str]]  # name and numpy type; the type of a list is ""


def read_ply(path: Path) -> dict[str, np.ndarray]:
    """Read the properties of the vertices by name, each [n], from an ascii or binary PLY file.

    Elements before the vertices may have scalar properties only; what follows the vertices is not read.
    Source: Turk, "The PLY Polygon File Format" (1994).

    Raises:
        UserError: it is not a PLY file, has no vertices with x, y and z, has list properties in or before them, or is
            cut off.
    """
    with open_regular(path) as file:
        form, elements = _read_header(file, path)
        for element in elements:
            if any(kind == "" for _, kind in element.properties) or not element.properties:
                raise UserError(
                    f"{path}: {in_one_line(element.name)} has a list property or none, in or before the vertices; "
                    "convert it"
                )
            _check_claim(element, form, path.stat().st_size - file.tell(), path)
            read_element = _read_ascii if form == "ascii" else _read_binary
            columns = read_element(file, element, form, path)
            if columns is not None:
                return columns
    raise UserError(f"{path} has no vertices")


def _read_header(file: BinaryIO, path: Path) -> tuple[str, list[_Element]]:
    if file.readline(LONGEST_LINE).strip() != b"ply":
        raise UserError(f"{path} is not a PLY file: it does not begin with ply{looks_like(path)}")
    form, elements = "", list[_Element]()
    for _ in range(LONGEST_HEADER):
        line = file.readline(LONGEST_LINE)
        words = line.decode("ascii", "replace").split()
        match words:
            case ["end_header"]:
                break
            case ["format", form, *_]:
                pass
            case ["element", name, count] if re.fullmatch(r"\d{1,18}", count, re.ASCII):
                elements.append(_Element(name, int(count), []))
            case ["property", "list", _, _, name] if elements:
                elements[-1].properties.append((name, ""))
            case ["property", kind, name] if elements and kind in TYPES:
                elements[-1].properties.append((name, TYPES[kind]))
            case [] | ["comment" | "obj_info", *_] if line:
                pass
            case _:
                raise UserError(
                    f"{path}: the header is cut off or has the line {in_one_line(' '.join(words))!r}"
                )
    else:
        raise UserError(f"{path}: the header has more than {LONGEST_HEADER} lines")
    if form != "ascii" and form not in BYTE_ORDERS:
        raise UserError(
            f"{path} has the format {in_one_line(form)!r}; known: ascii, {', '.join(BYTE_ORDERS)}"
        )
    _check_names(elements, path)
    return form, elements


def _check_names(elements: list[_Element], path: Path) -> None:
    for element in elements:
        names = [name for name, _ in element.properties]
        if len(set(names)) < len(names):
            raise UserError(f"{path}: {in_one_line(element.name)} has a property twice; correct the header")
        if element.name == "vertex" and not {"x", "y", "z"} <= set(names):
            properties = in_one_line(", ".join(names)) or "no properties"
            raise UserError(f"{path}: the vertices have {properties}; expected x, y and z")


def _check_claim(element: _Element, form: str, remaining_bytes: int, path: Path) -> None:
    """Refuse an element with more rows than the rest of the file can hold, before any work is done for it.

    Raises:
        UserError: saying how many bytes are missing.
    """
    if form == "ascii":
        claimed_bytes = element.count * 2 * len(element.properties) - 1  # a digit and a separator
    else:
        claimed_bytes = element.count * _row(element, form).itemsize
    if claimed_bytes > remaining_bytes:
        raise UserError(
            f"{path} ends within {in_one_line(element.name)}: {remaining_bytes} of {claimed_bytes} bytes; copy it again"
        )


def _row(element: _Element, form: str) -> np.dtype:
    order = BYTE_ORDERS[form]
    return np.dtype([(name, order + kind) for name, kind in element.properties])


Vertices = dict[str, np.ndarray]


def _read_binary(file: BinaryIO, element: _Element, form: str, path: Path) -> Vertices | None:
    """Read the properties of the vertices; skip any other element and return None."""
    row = _row(element, form)
    data = file.read(row.itemsize * element.count)
    if element.name != "vertex":
        return None
    table = np.frombuffer(data, row)
    return {name: table[name] for name, _ in element.properties}


def _read_ascii(file: BinaryIO, element: _Element, form: str, path: Path) -> Vertices | None:
    """Read the properties of the vertices; skip the lines of any other element and return None."""
    width, is_vertex = len(element.properties), element.name == "vertex"
    table = np.empty((element.count, width if is_vertex else 0))
    for i in range(element.count):
        fields = file.readline().replace(b"_", b"?").split()  # Python reads 1_0 as a number
        if len(fields) != width:
            raise UserError(
                f"{path}: row {i} of {in_one_line(element.name)} has {len(fields)} values, expected {width}; "
                "is it cut off?"
            )
        table[i] = [float(field) for field in fields] if is_vertex else []
    if not is_vertex:
        return None
    return {name: table[:, i].astype(kind) for i, (name, kind) in enumerate(element.properties)}
