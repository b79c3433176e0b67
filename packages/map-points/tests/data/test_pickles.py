"""Pickles that attack: each is refused in a sentence; what published files hold is read in every protocol."""

import os
import pickle
import pickletools
import random
import struct
import time

import numpy as np
import pytest

from map_core.errors import UserError
from map_points.data import pickles
from map_points.data.pickles import read_pickle

POINTS = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
F4 = b"cnumpy\ndtype\n(\x8c\x02f4K\x00K\x01tR"  # numpy.dtype("f4", 0, 1), before its state
F4_STATE = b"(K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
EMPTY_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"


def array(*, shape=b"K\x02\x85", kind=F4 + F4_STATE, raw=b"C\x08" + bytes(8), version=b"K\x01"):
    """A pickled array of two numbers, part by part."""
    return EMPTY_ARRAY + b"(" + version + shape + kind + b"\x89" + raw + b"tb."


def read(tmp_path, data):
    (tmp_path / "x.dat").write_bytes(data)
    return read_pickle(tmp_path / "x.dat")


def type_state(state):
    """An array whose type has this state."""
    return array(kind=F4 + state)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        POINTS,
        POINTS.astype(">f8"),
        np.asfortranarray(POINTS),
        POINTS[::-1, ::2],
        np.array([3], dtype=np.int32),
        np.array(["chair", "ä"]),
        np.array([b"chair"]),
        np.array([True, False]),
        np.int64(-7),
        np.float16(0.5),
        {"train": [(POINTS, np.int64(1), 0), (POINTS, 2, -(2**40))], "b": "text ä\n", "c": [None, True, 1.5]},
    ],
    ids=[
        "points",
        "big",
        "fortran",
        "strided",
        "label",
        "text",
        "bytes",
        "truth",
        "integer",
        "half",
        "containers",
    ],
)
def test_arrays_and_plain_containers_are_read_in_every_protocol(tmp_path, value, protocol):
    read_back = read(tmp_path, pickle.dumps(value, protocol))
    check_same(read_back, value)


def check_same(read_back, value):
    if isinstance(value, list | tuple):
        assert type(read_back) is type(value)
        assert len(read_back) == len(value)
        for one, other in zip(read_back, value, strict=True):
            check_same(one, other)
    elif isinstance(value, dict):
        assert list(read_back) == list(value)
        check_same(list(read_back.values()), list(value.values()))
    else:
        assert isinstance(read_back, type(value))
        assert np.array_equal(read_back, value)
        assert np.asarray(read_back).dtype == np.asarray(value).dtype


def test_old_python_wrote_data_as_strings(tmp_path):
    raw = POINTS[:1, :2].tobytes()
    for string in (b"U" + struct.pack("<B", 8) + raw, b"T" + struct.pack("<i", 8) + raw):
        np.testing.assert_array_equal(read(tmp_path, array(raw=string)), POINTS[0, :2])


def test_an_array_referred_to_twice_is_one(tmp_path):
    first, second = read(tmp_path, pickle.dumps([POINTS, POINTS]))
    assert first is second
    assert not first.flags.writeable


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # a type that would turn raw bytes into pointers, flag cleared, or set on numbers
        (array(kind=F4.replace(b"f4", b"O8") + F4_STATE), "it has an array of type 'O8'"),
        (array(kind=F4.replace(b"f4", b"V4") + F4_STATE), "it has an array of type 'V4'"),
        (array(kind=F4.replace(b"\x02f4", b"\x06object") + F4_STATE), "it has an array of type 'object'"),
        (array(kind=F4.replace(b"\x02f4", b"\x04f4,O") + F4_STATE), "it has an array of type 'f4,O'"),
        (type_state(F4_STATE.replace(b"K\x00tb", b"K\x3ftb")), "it sets the flags of a type"),
        (type_state(F4_STATE.replace(b"K\x00tb", b"K\x01tb")), "it sets the flags of a type"),
        (type_state(F4_STATE.replace(b"J\xff\xff\xff\xff", b"K\x10", 1)), "it sets the size of a type"),
        (type_state(F4_STATE.replace(b"K\x03", b"K\x04")), "it sets the flags of a type"),
        # names, fields, subarrays, metadata
        (type_state(F4_STATE.replace(b"NNN", b"N\x8c\x01a\x85N")), "it sets a state that arrays of numbers"),
        (type_state(F4_STATE.replace(b"NNN", b"NN}")), "it sets a state that arrays of numbers"),
        (type_state(F4_STATE.replace(b"NNN", b"K\x01NN")), "it sets a state that arrays of numbers"),
        (type_state(F4_STATE.replace(b"K\x00tb", b"K\x00}tb")), "it sets a state that arrays of numbers"),
        # shapes
        (array(shape=b"K\x03\x85"), "needs 12 bytes and has 8"),
        (array(shape=b"K\x01\x85"), "needs 4 bytes and has 8"),
        (array(raw=b"C\x00"), "needs 8 bytes and has 0"),
        (array(shape=b"J\xfe\xff\xff\xff\x85"), "an impossible shape"),
        (array(shape=b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85"), "an impossible shape"),
        (array(shape=b"(" + b"J\x00\x00\x00\x40" * 3 + b"t"), "needs 4951760157141521099596496896 bytes"),
        (array(shape=b"(" + b"K\x01" * 40 + b"K\x02t"), "an impossible shape"),
        (array(shape=b"K\x00\x85", raw=b"C\x00"), "it has an empty array"),
        (array(shape=b"G" + struct.pack(">d", 2.0) + b"\x85"), "an impossible shape"),
        (array(shape=b"\x88\x85"), "an impossible shape"),
        (array(shape=b"K\x02"), "it sets a state that arrays of numbers"),
        # strides have no place in a pickle; whatever stands where data should is not data
        (array(raw=b"]"), "an array of list values"),
        (array(raw=b"N"), "an array of NoneType values"),
        (array(raw=EMPTY_ARRAY), "an array of Unbuilt values"),
        # calls of admitted names in other ways, and of other things
        (b"cnumpy\ndtype\n(]K\x00K\x01tR.", "it calls numpy.dtype in a way that arrays do not"),
        (b"cnumpy\nndarray\n(K\x02\x85tR.", "it calls numpy.ndarray in a way that arrays do not"),
        (b"c_codecs\nencode\n(\x8c\x01a\x8c\x03rottR.", "it calls _codecs.encode in a way"),
        (b"c__builtin__\nbytes\n(\x8a\x05\x00\x00\x00\x00\x01tR.", "it calls bytes in a way"),
        (
            EMPTY_ARRAY.replace(b"(cnumpy\nndarray\n", b"(c__builtin__\nbytes\n") + b".",
            "calls _reconstruct in a",
        ),
        (b"K\x01)R.", "it calls a int"),
        (b"\x8c\x01a)R.", "it calls a Text"),
        (EMPTY_ARRAY + b")R.", "it calls a Unbuilt"),
        # states of other things
        (b"cnumpy\ndtype\n}b.", "it sets a state that"),
        (b"]}b.", "it sets a state that"),
        (array()[:-1] + b"}b.", "it sets a state that"),
        # names, imported or made up
        (b"cos\nsystem\n(\x8c\x04truetR.", "it asks for os.system"),
        (b"\x8c\x02os\x8c\x06system\x93.", "it asks for os.system"),
        (b"cnumpy\ndtype.type\n.", "it asks for numpy.dtype.type"),
        (b"cbuiltins\ngetattr\n.", "it asks for builtins.getattr"),
        (b"\x8c\x05numpyK\x01\x93.", "it asks for something without a name"),
        # instructions that build objects or come from elsewhere
        (b"(ios\nsystem\n.", "it has the instruction INST"),
        (b"(cnumpy\ndtype\no.", "it has the instruction OBJ"),
        (b"cnumpy\ndtype\n)\x81.", "it has the instruction NEWOBJ"),
        (b"cnumpy\ndtype\n)}\x92.", "it has the instruction NEWOBJ_EX"),
        (b"Pname\n.", "it has the instruction PERSID"),
        (b"K\x01Q.", "it has the instruction BINPERSID"),
        (b"\x82\x01.", "it has the instruction EXT1"),
        (b"\x97.", "it has the instruction NEXT_BUFFER"),
        (b"\x8f.", "it has the instruction EMPTY_SET"),
        (b"\xff.", "it has the instruction 0xff"),
        # lengths that lie
        (b"B\xff\xff\xff\x7fabc.", "it is cut off"),
        (b"\x8e" + b"\xff" * 8 + b"abc.", "it is cut off"),
        (b"T\xff\xff\xff\xffabc.", "it is cut off"),
        (b"\x8b\xff\xff\xff\x7fabc.", "it has a number beyond all bounds"),
        (b"I" + b"9" * 5000 + b"\n.", "it has a number beyond all bounds"),
        (b"L" + b"9" * 5000 + b"L\n.", "it has a number beyond all bounds"),
        (b"I12", "it is cut off"),
        # stacks, marks and memos that are not there
        (b"a.", "it is cut off or damaged"),
        (b"t.", "it is cut off or damaged"),
        (b"h\x05.", "it is cut off or damaged"),
        (b"(K\x01(0.", "its stack is empty"),
        (b"K\x01K\x02.", "it does not end where its content ends"),
        (b"K\x01.K\x02.", "it does not end where its content ends"),
        (b"}(K\x01u.", "it is cut off or damaged"),
        (b"})K\x01s.", "it has a tuple as key"),
        (b"K\x01K\x02a.", "it appends to a int"),
    ],
)
def test_attacks_are_refused(tmp_path, data, message):
    with pytest.raises(UserError, match=r"x\.dat was refused \(") as excinfo:
        read(tmp_path, data)
    assert message in str(excinfo.value)
    assert len(str(excinfo.value)) < 500


def test_the_parts_that_attacks_are_made_of_are_sound(tmp_path):
    np.testing.assert_array_equal(read(tmp_path, array()), np.zeros(2, dtype=np.float32))
    assert np.array_equal(pickle.loads(array()), np.zeros(2))


class Call:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    "place", [lambda evil: [[POINTS], evil], lambda evil: {"train": evil}, lambda evil: evil]
)
def test_nothing_is_ever_called(tmp_path, place):
    data = pickle.dumps(place(Call(os.mkdir, str(tmp_path / "made"))))
    with pytest.raises(UserError, match=r"it asks for posix.mkdir"):
        read(tmp_path, data)
    assert not (tmp_path / "made").exists()
    pickle.loads(data)  # the file is what it claims to be
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "value",
    [
        np.array([{}], dtype=object),
        np.zeros(2, "f4,f4"),
        np.array(["2026"], dtype="M8[Y]"),
        np.ones(2) * 1j,
        {1, 2},
    ],
    ids=["objects", "fields", "dates", "complex", "set"],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_other_honest_content_is_refused(tmp_path, value, protocol):
    with pytest.raises(UserError, match=r"x\.dat was refused .*get the published file"):
        read(tmp_path, pickle.dumps(value, protocol))


def test_other_files_are_recognised(tmp_path):
    with pytest.raises(UserError, match="it looks like an HTML page"):
        read(tmp_path, b"<!DOCTYPE html><html>not found</html>")
    with pytest.raises(UserError, match=r"cut off, it is empty"):
        read(tmp_path, b"")


def timed(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def test_deep_nesting_and_references_to_references_cost_little(tmp_path, monkeypatch, unchecked):
    deep = b"]" + b"]" * 200_000 + b"a" * 200_000 + b"."
    nested = read(tmp_path, deep)
    assert len(nested) == 1
    del nested
    # a list of ten references to a list of ten references ...: a billion elements if anybody walked them
    bomb = b"]q\x00" + b"".join(b"](" + b"h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(9))
    assert timed(lambda: read(tmp_path, b"(" + bomb + b"l.")) < 1
    itself = read(tmp_path, b"]q\x00h\x00a.")
    assert itself[0] is itself
    monkeypatch.setattr(pickles, "MOST_INSTRUCTIONS", 1000)
    with pytest.raises(UserError, match="it has more than 1000 instructions"):
        read(tmp_path, deep)


def test_text_referred_to_again_is_encoded_once(tmp_path):
    text = b"X" + struct.pack("<I", 8) + b"abcdefgh" + b"q\x00"
    one = EMPTY_ARRAY + b"(K\x01K\x02\x85" + F4 + F4_STATE + b"\x89c_codecs\nencode\n(h\x00\x8c\x06latin1tRtb"
    arrays = read(tmp_path, b"(" + text + one * 3 + b"l.")[1:]
    assert len({values.__array_interface__["data"][0] for values in arrays}) == 1


SEEDS = [
    pickle.dumps([[POINTS[:3]], [np.array([1], dtype=np.int32)]], protocol)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
]
OPCODES = [ord(op.code) for op in pickletools.opcodes]


@pytest.mark.parametrize("seed", range(6))
def test_mutants_give_plain_values_or_a_refusal(tmp_path, seed, unchecked):
    draw = random.Random(seed)
    for _ in range(150):
        data = bytearray(draw.choice(SEEDS))
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(data))
            match draw.randrange(4):
                case 0:
                    data[place] = draw.choice(OPCODES)
                case 1:
                    data[place] ^= 1 << draw.randrange(8)
                case 2:
                    del data[place : place + draw.randint(1, 8)]
                case 3:
                    other = draw.choice(SEEDS)
                    start = draw.randrange(len(other))
                    data[place:place] = other[start : start + draw.randint(1, 40)]
            data = data or bytearray(b".")
        try:
            check_plain(read(tmp_path, bytes(data)))
        except UserError as error:
            message = str(error)
        else:
            message = "x.dat was refused"
        assert "x.dat was refused" in message


def check_plain(value):
    """Nothing but plain values, and arrays that lie within the bytes that were read."""
    if isinstance(value, list | tuple):
        for item in value:
            check_plain(item)
    elif isinstance(value, dict):
        for item in value.values():
            check_plain(item)
    elif isinstance(value, np.ndarray):
        assert value.dtype.kind in "biufSU"
        assert not value.dtype.hasobject
        assert not value.flags.owndata
    else:
        # placeholders of arrays are inert; the readers of the layouts refuse them
        assert isinstance(value, int | float | str | bytes | memoryview | np.generic | None) or type(
            value
        ).__module__.startswith("map_points")
