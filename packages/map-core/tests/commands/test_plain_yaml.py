"""Files of settings: plain values only, and a bound on the work that a file can cause."""

import time

import pytest

from map_core import UserError
from map_core.commands.plain_yaml import read_texts, read_yaml


def read(tmp_path, text, reader=read_texts):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    return reader(file)


def test_scalars_keep_their_text(tmp_path):
    text = "a: 012\nb: [1e3, no, 2020-01-01, 'x y']\nc: {d: null, e: ~, f: 'null', g:}\n"
    assert read(tmp_path, text) == {
        "a": "012",
        "b": ["1e3", "no", "2020-01-01", "x y"],
        "c": {"d": None, "e": None, "f": "null", "g": None},
    }
    assert read(tmp_path, "# nothing\n") is None


def test_scalars_become_what_yaml_makes_of_them(tmp_path):
    text = "a: 12\nb: [1.5, no, 'x y', null]\n50: &x {n: 1}\nc: {<<: *x, m: '2'}\n"
    expected = {"a": 12, "b": [1.5, False, "x y", None], 50: {"n": 1}, "c": {"n": 1, "m": "2"}}
    assert read(tmp_path, text, read_yaml) == expected
    with pytest.raises(UserError, match=r"line 2: Exceeds the limit"):
        read(tmp_path, "a: 1\nb: " + "9" * 5000, read_yaml)


def test_aliases_and_merges(tmp_path):
    assert read(tmp_path, "a: &x {n: 1, m: 2}\nb: {<<: *x, n: 3}\nc: *x\n") == {
        "a": {"n": "1", "m": "2"},
        "b": {"n": "3", "m": "2"},
        "c": {"n": "1", "m": "2"},
    }


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize("reader", [read_texts, read_yaml])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "more than 100,000 values or 50 levels"),
        ("a: &a [*a]", "more than 100,000 values or 50 levels"),
        ("[" * 20_000, "more than 50 levels"),
        ("{a: " * 20_000, "more than 50 levels"),
        ("[" * 60 + "]" * 60, "more than 100,000 values or 50 levels"),
        ("- " * 20_000, "more than 50 levels"),
        ("a: " + "x" * (1 << 20), r"it has more than 1,048,576 bytes; choose another file"),
        ("a: !!python/name:os.system", "is not a plain value"),
        ("a: !other 3", "is not a plain value"),
        ("a: 1\na: 2", "the key in line 2 names a again"),
        ("[a]: 1", "the key in line 1 is not a name"),
        ("a: 1\n---\nb: 2", "is not plain YAML"),
        ("a: [1,", "is not plain YAML"),
        ("<<: 3", "<< in line 1 does not name a mapping"),
    ],
)
def test_attacks_end_in_one_sentence(tmp_path, text, reason, reader):
    start = time.process_time()
    with pytest.raises(UserError) as error:
        read(tmp_path, text, reader)
    assert time.process_time() - start < 20
    assert reason in str(error.value)
    assert str(tmp_path / "a.yaml") in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not plain YAML"):
        read_texts(tmp_path / "a.yaml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_texts(tmp_path)
