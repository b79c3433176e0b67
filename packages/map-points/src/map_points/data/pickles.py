"""Pickled arrays without the danger: our own reader, which can build nothing but arrays and plain containers.

Python's unpickler calls what a file names, and numpy's types let a file set their state, down to the flag that turns
bytes into pointers. Here names are never imported and nothing is called: the few instructions that arrays need are
carried out on plain values. Source of the instructions: Python's ``pickletools``.
"""

import codecs
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from map_core.errors import UserError, in_one_line
from map_points.data.files import looks_like, open_regular
from map_points.data.pickled_arrays import NAMES, Refused, Text, Unbuilt, build, reduce_call

MOST_INSTRUCTIONS = 5_000_000  # the largest published file has 0.4 million
LONGEST_NUMBER = 24  # characters or bytes

CONSTANTS: dict[str, Any] = {"N": None, "\x88": True, "\x89": False}
EMPTY: dict[str, type] = {"]": list, "}": dict, ")": tuple}
NUMBERS = {"K": "<B", "M": "<H", "J": "<i", "G": ">d"}
LENGTHS = {
    "C": "<B", "B": "<I", "\x8e": "<Q", "\x96": "<Q",  # bytes
    "\x8c": "<B", "X": "<I", "\x8d": "<Q",  # text
    "U": "<B", "T": "<i",  # strings of Python 2, which may be text or bytes
    "\x8a": "<B", "\x8b": "<i",  # integers
}  # fmt: skip
MEMO_INDEX = {"q": "<B", "r": "<I", "h": "<B", "j": "<I"}
TUPLES = {"\x85": 1, "\x86": 2, "\x87": 3}


def read_pickle(path: Path) -> Any:
    """Read a pickle of arrays in plain containers; arrays are read-only views of the file's bytes.

    Raises:
        UserError: it holds anything else, or is cut off or damaged.
    """
    with open_regular(path) as file:
        data = file.read()
    try:
        return PlainReader(data).read()
    except (Refused, ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
        reason = str(error) if isinstance(error, Refused) else "it is cut off or damaged"
        raise UserError(
            f"{path} was refused ({in_one_line(reason)}{looks_like(path)}): only numpy arrays and plain containers "
            "are read from pickles, because others can run code; get the published file"
        ) from error


class PlainReader:
    """Carries out a pickle's instructions on plain values.

    Work is bounded by the number of instructions, memory by that and the size of the data: a value that instructions
    refer to again is never copied.

    Args:
        data: The whole pickle.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.view = data, memoryview(data)
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Return the value that the pickle describes.

        Raises:
            Refused: it describes anything but arrays and plain containers.
        """
        for _ in range(MOST_INSTRUCTIONS):
            code = chr(self.take(1)[0])
            if code == ".":
                break
            self.step(code)
        else:
            raise Refused(f"it has more than {MOST_INSTRUCTIONS} instructions")
        if self.position != len(self.data) or len(self.stack) != 1:
            raise Refused("it does not end where its content ends")
        return self.stack[0]

    def step(self, code: str) -> None:
        """Carry out one instruction."""
        if code in CONSTANTS:
            self.stack.append(CONSTANTS[code])
        elif code in EMPTY:
            self.stack.append(EMPTY[code]())
        elif code in NUMBERS:
            self.stack.append(self.number(NUMBERS[code]))
        elif code in LENGTHS:
            self.stack.append(self.sized(code))
        elif code in MEMO_INDEX:
            self.remember_or_recall(code, self.number(MEMO_INDEX[code]))
        elif code in TUPLES:
            items = [self.pop() for _ in range(TUPLES[code])]
            self.stack.append(tuple(reversed(items)))
        elif code in INSTRUCTIONS:
            INSTRUCTIONS[code](self)
        else:
            refuse(code)

    def take(self, count: int) -> memoryview:
        """The next bytes."""
        end = self.position + count
        if not self.position <= end <= len(self.data):
            raise Refused("it is cut off")
        chunk = self.view[self.position : end]
        self.position = end
        return chunk

    def line(self) -> bytes:
        """The rest of a line, without its end."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise Refused("it is cut off")
        return bytes(self.take(end + 1 - self.position))[:-1]

    def number(self, form: str) -> Any:
        """A number of fixed size."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def sized(self, code: str) -> Any:
        """Bytes, text or an integer behind its length."""
        count = self.number(LENGTHS[code])
        if code in "\x8a\x8b" and count > LONGEST_NUMBER:
            raise Refused("it has a number beyond all bounds")
        raw = self.take(count)
        if code in "\x8a\x8b":
            return int.from_bytes(raw, "little", signed=True)
        if code in "\x8cX\x8d":
            return Text(raw, "utf-8", "surrogatepass")
        return Text(raw, "latin-1") if code in "UT" else raw

    def pop(self) -> Any:
        """Take the top of the stack, unless a mark protects it."""
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise Refused("its stack is empty")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """Take everything above the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def remember_or_recall(self, code: str, index: int) -> None:
        """Put the top of the stack into the memo, or push what the memo holds."""
        if code in "hj":
            self.stack.append(self.memo[index])
            return
        top = self.stack[-1]
        if isinstance(top, Unbuilt):
            top.memo_indices.append(index)
        self.memo[index] = top

    def extend(self, items: list[Any]) -> None:
        """Append items to the list on the stack."""
        if type(self.stack[-1]) is not list:
            raise Refused(f"it appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        """Set keys and values, in turn, of the dict on the stack."""
        if type(self.stack[-1]) is not dict:
            raise Refused(f"it sets an item of a {type(self.stack[-1]).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise Refused(f"it has a {type(key).__name__} as key")
            self.stack[-1][key] = value

    def push_name(self, module: str, name: str) -> None:
        """Push the stand-in for an admitted name."""
        if (module, name) not in NAMES:
            raise Refused(f"it asks for {module}.{name}")
        self.stack.append(NAMES[module, name])

    def build(self) -> None:
        """Give the top of the stack its state; an array takes the place of its placeholder in the memo."""
        state = self.pop()
        placeholder = self.pop()
        value = build(placeholder, state)
        if isinstance(placeholder, Unbuilt):
            self.memo.update(dict.fromkeys(placeholder.memo_indices, value))
        self.stack.append(value)


def refuse(code: str) -> NoReturn:
    """Refuse an instruction by its name."""
    names = {opcode.code: opcode.name for opcode in pickletools.opcodes}
    raise Refused(f"it has the instruction {names.get(code, hex(ord(code)))}")


def _text_number(line: bytes, kind: type) -> Any:
    if len(line) > LONGEST_NUMBER:
        raise Refused("it has a number beyond all bounds")
    return kind(line)


def _integer(reader: PlainReader) -> None:
    line = reader.line()
    booleans = {b"00": False, b"01": True}
    reader.stack.append(booleans[line] if line in booleans else _text_number(line, int))


def _python2_string(reader: PlainReader) -> None:
    line = reader.line().strip()
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
        raise Refused("it has a string without quotes")
    raw = codecs.escape_decode(line[1:-1])[0]
    reader.stack.append(Text(raw, "latin-1"))


def _stack_global(reader: PlainReader) -> None:
    name, module = reader.pop(), reader.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise Refused("it asks for something without a name")
    reader.push_name(module, name)


def _reduce(reader: PlainReader) -> None:
    arguments, function = reader.pop(), reader.pop()
    reader.stack.append(reduce_call(function, arguments))


def _append(reader: PlainReader) -> None:
    item = reader.pop()
    reader.extend([item])


def _set_item(reader: PlainReader) -> None:
    value, key = reader.pop(), reader.pop()
    reader.update([key, value])


def _new_dict(reader: PlainReader) -> None:
    items = reader.pop_to_mark()
    reader.stack.append({})
    reader.update(items)


INSTRUCTIONS: dict[str, Callable[[PlainReader], Any]] = {
    "\x80": lambda reader: reader.take(1),  # the protocol's number
    "\x95": lambda reader: reader.take(8),  # the length of a frame, for readers that read frame by frame
    "I": _integer,
    "L": lambda reader: reader.stack.append(_text_number(reader.line().rstrip(b"L"), int)),
    "F": lambda reader: reader.stack.append(_text_number(reader.line(), float)),
    "S": _python2_string,
    "V": lambda reader: reader.stack.append(Text(reader.line(), "raw-unicode-escape")),
    "p": lambda reader: reader.remember_or_recall("q", _text_number(reader.line(), int)),
    "g": lambda reader: reader.remember_or_recall("h", _text_number(reader.line(), int)),
    "\x94": lambda reader: reader.remember_or_recall("q", len(reader.memo)),
    "(": lambda reader: reader.marks.append(len(reader.stack)),
    "0": lambda reader: reader.pop(),
    "1": lambda reader: reader.pop_to_mark(),
    "2": lambda reader: reader.stack.append(reader.stack[-1]),
    "t": lambda reader: reader.stack.append(tuple(reader.pop_to_mark())),
    "l": lambda reader: reader.stack.append(reader.pop_to_mark()),
    "d": _new_dict,
    "a": _append,
    "e": lambda reader: reader.extend(reader.pop_to_mark()),
    "s": _set_item,
    "u": lambda reader: reader.update(reader.pop_to_mark()),
    "c": lambda reader: reader.push_name(str(reader.line(), "utf-8"), str(reader.line(), "utf-8")),
    "\x93": _stack_global,
    "R": _reduce,
    "b": lambda reader: reader.build(),
}
