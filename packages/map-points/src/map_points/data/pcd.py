"""PCD files of the Point Cloud Library: ascii, binary and compressed."""

from pathlib import Path
from typing import BinaryIO

import numpy as np

from map_core.errors import UserError, in_one_line
from map_points.data.files import looks_like, open_regular

KEYS = ("VERSION", "FIELDS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS", "DATA")
TYPES = {"F": "f", "U": "u", "I": "i"}
LONGEST_LINE = 4096  # bytes in a line of a header
EXPANSION = 256  # no compressed block grows by more than this


def read_pcd(path: Path) -> dict[str, np.ndarray]:
    """Read the single-valued fields of every point; a packed ``rgb`` becomes red, green and blue.

    Source: "The PCD (Point Cloud Data) file format", version 0.7, of the Point Cloud Library.

    Raises:
        UserError: it is not a PCD file, or is cut off.
    """
    with open_regular(path) as file:
        header = _read_header(file, path)
        row, count = _row(header, path), _number(header, "POINTS", path)
        form, remaining_bytes = header["DATA"][0], path.stat().st_size - file.tell()
        least_bytes = {"ascii": count, "binary": count * row.itemsize, "binary_compressed": 0}.get(form)
        if least_bytes is None:
            raise UserError(f"{path} has DATA {in_one_line(form)!r}; known: ascii, binary, binary_compressed")
        if least_bytes > remaining_bytes:
            raise UserError(
                f"{path} ends within its points: {remaining_bytes} of {least_bytes} bytes; copy it again"
            )
        if form == "ascii":
            columns = _ascii(file, row, count, path)
        elif form == "binary":
            table = np.frombuffer(file.read(row.itemsize * count), row)
            columns = {name: table[name] for name in row.names or ()}
        else:
            columns = _compressed(file, row, count, path)
    return _unpacked({name: values for name, values in columns.items() if values.ndim == 1})


def _read_header(file: BinaryIO, path: Path) -> dict[str, list[str]]:
    header: dict[str, list[str]] = {}
    while "DATA" not in header:
        words = file.readline(LONGEST_LINE).decode("ascii", "replace").split()
        if words and words[0].startswith("#"):
            continue
        if len(words) < 2 or words[0] not in KEYS:
            line = in_one_line(" ".join(words), 60)
            raise UserError(f"{path} is not a PCD file: its header has the line {line!r}{looks_like(path)}")
        header[words[0]] = words[1:]
    if missing := [key for key in ("FIELDS", "SIZE", "TYPE", "POINTS") if key not in header]:
        raise UserError(f"{path}: its header lacks {', '.join(missing)}; copy it again")
    return header


def _number(header: dict[str, list[str]], key: str, path: Path) -> int:
    word = header[key][0]
    if not (word.isascii() and word.isdigit() and len(word) < 12):
        raise UserError(f"{path}: {key} is {in_one_line(word, 40)!r}, not a whole number")
    return int(word)


def _row(header: dict[str, list[str]], path: Path) -> np.dtype:
    names, sizes, types = header["FIELDS"], header["SIZE"], header["TYPE"]
    counts = header.get("COUNT", ["1"] * len(names))
    names = [f"padding {i}" if name == "_" else name for i, name in enumerate(names)]
    try:
        if len(set(names)) < len(names):
            raise ValueError("a field comes twice")
        fields = [
            (name, f"<{TYPES[kind]}{int(size)}", (int(count),) if count != "1" else ())
            for name, kind, size, count in zip(names, types, sizes, counts, strict=True)
        ]
        return np.dtype(fields)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: FIELDS, SIZE, TYPE and COUNT do not fit together ({in_one_line(str(error), 60)}); correct it"
        ) from error


def _ascii(file: BinaryIO, row: np.dtype, count: int, path: Path) -> dict[str, np.ndarray]:
    shapes = {name: row[name].shape for name in row.names or ()}
    width = sum(shape[0] if shape else 1 for shape in shapes.values())
    table = np.empty((count, width))
    for i in range(count):
        words = file.readline().replace(b"_", b"?").split()
        if len(words) != width:
            raise UserError(f"{path}: point {i} has {len(words)} values, expected {width}; is it cut off?")
        table[i] = [float(word) for word in words]
    columns, start = {}, 0
    for name, shape in shapes.items():
        if not shape:
            columns[name] = table[:, start].astype(row[name])
        start += shape[0] if shape else 1
    return columns


def _compressed(file: BinaryIO, row: np.dtype, count: int, path: Path) -> dict[str, np.ndarray]:
    """Read fields stored one after the other, in one LZF-compressed block."""
    sizes = np.frombuffer(file.read(8), "<u4")
    packed = file.read()
    if len(sizes) < 2 or sizes[0] > len(packed) or sizes[1] != count * row.itemsize:
        raise UserError(f"{path}: its compressed block is cut off or of another size; copy it again")
    if sizes[1] > EXPANSION * max(int(sizes[0]), 1):
        raise UserError(f"{path} claims {sizes[1]} bytes, more than its block can hold; copy it again")
    data = expand(packed[: int(sizes[0])], int(sizes[1]), path)
    columns, start = {}, 0
    for name in row.names or ():
        kind = row[name]
        end = start + kind.itemsize * count
        columns[name] = np.frombuffer(data[start:end], kind)
        start = end
    return columns


def expand(packed: bytes, size: int, path: Path) -> bytes:
    """Undo LZF: runs of literals, and references (length, distance) to earlier output.

    Raises:
        UserError: the block does not give ``size`` bytes.
    """
    output, position = bytearray(), 0
    try:
        while position < len(packed):
            control = packed[position]
            position += 1
            if control < 32:
                output += packed[position : position + control + 1]
                position += control + 1
                continue
            length = (control >> 5) + 2
            if length == 9:
                length += packed[position]
                position += 1
            distance = ((control & 31) << 8 | packed[position]) + 1
            position += 1
            start = len(output) - distance
            if start < 0 or len(output) + length > size:
                break
            run = output[start : start + length]
            while len(run) < length:  # the reference reaches into its own copy
                run += run[: length - len(run)]
            output += run
    except IndexError:
        pass
    if len(output) != size:
        raise UserError(f"{path}: its compressed block is broken; copy it again")
    return bytes(output)


def _unpacked(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Unpack colours that are packed into the bits of one number into three columns."""
    packed = next((columns[name] for name in ("rgb", "rgba") if name in columns), None)
    if packed is None or packed.dtype.itemsize != 4:
        return columns
    bits = np.ascontiguousarray(packed).view(np.uint32)
    shifts = {"red": 16, "green": 8, "blue": 0}
    return {**columns, **{name: (bits >> shift & 255).astype(np.uint8) for name, shift in shifts.items()}}
