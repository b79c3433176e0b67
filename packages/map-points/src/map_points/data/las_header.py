"""What the header of a LAS or LAZ file claims, checked against the size of the file before a reader acts on it.

Source of the layout: the LAS specification 1.4, and for the chunk table of LAZ the LASzip paper (Isenburg, 2013).
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

HEADER_1_0, HEADER_1_4 = 227, 375  # bytes of a header of versions 1.0 and 1.4
RECORD, EXTENDED_RECORD = 54, 60  # bytes of the header of a variable-length record
COMPRESSED = 0x80  # bit in the number of the format
EXPANSION = 10_000  # bytes that one byte of a compressed file may stand for


@dataclass(frozen=True)
class Header:
    """What a header claims.

    Attributes:
        size: Bytes of the header.
        points_at: Offset of the points in the file.
        records: Number of variable-length records between header and points.
        compressed: Whether the points are compressed, as in LAZ.
        point: Bytes of a point.
        points: Number of points.
        extended_at, extended: Offset and number of the records after the points.
    """

    size: int
    points_at: int
    records: int
    compressed: bool
    point: int
    points: int
    extended_at: int = 0
    extended: int = 0


def check_header(path: Path) -> None:
    """Refuse a file whose header claims more than the file can hold.

    Raises:
        ValueError: it does, or is not a header.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = read_header(file)
        check_offsets(header, size)
        available = size - header.points_at
        if not header.compressed:
            if header.points * header.point > available:
                raise ValueError(
                    f"it claims {header.points:,} points and holds {available // header.point:,}"
                )
        elif header.points * header.point > EXPANSION * available:
            raise ValueError(f"it claims {header.points:,} points in {available:,} bytes")
        elif header.points and (chunks := number_of_chunks(file, header.points_at, size)) > available:
            raise ValueError(f"it claims {chunks:,} chunks in {available:,} bytes")


def read_header(file: BinaryIO) -> Header:
    """Read a header.

    Raises:
        ValueError: there is none.
    """
    data = file.read(HEADER_1_4)
    if len(data) < HEADER_1_0 or data[:4] != b"LASF":
        raise ValueError("it is not a LAS file, or cut off")
    size, points_at, records, kind, point, points = struct.unpack_from("<HIIBHI", data, 94)
    extended = {}
    if (data[24], data[25]) >= (1, 4):
        if min(size, len(data)) < HEADER_1_4:
            raise ValueError(f"its header has {min(size, len(data))} bytes, of {HEADER_1_4} in version 1.4")
        extended_at, count, points = struct.unpack_from("<QIQ", data, 235)
        extended = {"extended_at": extended_at, "extended": count}
    return Header(size, points_at, records, bool(kind & COMPRESSED), point, points, **extended)


def check_offsets(header: Header, size: int) -> None:
    """Check that a header's parts lie within a file of ``size`` bytes.

    Raises:
        ValueError: one does not.
    """
    if not (HEADER_1_0 <= header.size <= header.points_at <= size and header.point):
        raise ValueError(
            f"its header has {header.size} bytes, its points begin at {header.points_at} of {size}"
        )
    if header.records * RECORD > header.points_at - header.size:
        raise ValueError(
            f"it claims {header.records:,} records before its points, for which there is no room"
        )
    if header.extended * EXTENDED_RECORD > max(0, size - header.extended_at):
        raise ValueError(
            f"it claims {header.extended:,} records behind its points, and is cut off or damaged"
        )


def number_of_chunks(file: BinaryIO, points_at: int, size: int) -> int:
    """The number of chunks that a LAZ file claims.

    Raises:
        ValueError: its table of chunks lies outside the file.
    """
    (table,) = struct.unpack("<q", read_at(file, points_at, 8))
    if table == -1:  # the writer could not seek back, and put the offset at the end of the file
        (table,) = struct.unpack("<q", read_at(file, size - 8, 8))
    if not points_at <= table <= size - 8:
        raise ValueError("its table of chunks lies outside the file, which is cut off or damaged")
    return int(struct.unpack("<II", read_at(file, table, 8))[1])


def read_at(file: BinaryIO, offset: int, count: int) -> bytes:
    """Read ``count`` bytes from an offset on.

    Raises:
        ValueError: there are fewer.
    """
    file.seek(offset)
    data = file.read(count)
    if len(data) < count:
        raise ValueError("it is cut off")
    return data
