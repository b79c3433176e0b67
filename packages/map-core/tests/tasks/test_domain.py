"""The settings that identify the data of a run."""

from dataclasses import dataclass

from map_core.tasks.domain import data_settings


@dataclass
class Labelled:
    root: str
    labels: str | None
    flip: bool = False


def test_a_table_of_labels_counts_by_its_bytes_wherever_it_lies(tmp_path):
    before, after, other = (tmp_path / name for name in ("before.csv", "after.csv", "other.csv"))
    for file in (before, after):
        file.write_text("path,label\na.png,cat\n")
    other.write_text("path,label\na.png,dog\n")
    settings = data_settings(Labelled("here", str(before)), {})
    assert settings == data_settings(Labelled("there", str(after)), {})
    assert settings != data_settings(Labelled("here", str(other)), {})
    assert data_settings(Labelled("here", None), {}, classes=["cat"]) == {
        "labels": None,
        "flip": False,
        "classes": ["cat"],
    }
