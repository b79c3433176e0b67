"""Folders of a user's own clouds: labels from class folders, splits by name, any of the file formats."""

import re

import numpy as np
import pytest

from map_core.errors import UserError
from map_points.data import PointDataConfig
from map_points.data.folders import read_cloud_folder
from map_points.domain import data_defaults, open_data, open_files
from map_points.factory import PointModelConfig
from map_points.fewshot import FoldsConfig, open_folds


def write(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    points = np.random.default_rng(seed).normal(size=(40, 3))
    if path.suffix == ".npy":
        np.save(path, points)
    else:
        np.savetxt(path, points)
    return points


def settings(root, **changes):
    return PointDataConfig("folder", str(root), num_points=32, **changes)


def open_folder(root, purpose, **changes):
    return open_data(settings(root, **changes), PointModelConfig(), purpose)


@pytest.mark.parametrize("ending", ["npy", "txt", "xyz", "pts"])
def test_classes_are_the_folders_and_points_the_files(tmp_path, ending):
    chair, table = write(tmp_path / f"chair/a.{ending}", 1), write(tmp_path / f"table/deep/b.{ending}", 2)
    write(tmp_path / "table/notes.md".replace(".md", ".log"))
    clouds = read_cloud_folder(tmp_path, "train")
    assert (clouds.classes, clouds.labels.tolist()) == (("chair", "table"), [0, 1])
    np.testing.assert_allclose(clouds.points(0), chair, rtol=1e-12)
    np.testing.assert_allclose(clouds.points(1), table, rtol=1e-12)


def test_a_cloud_beside_the_class_folders_leaves_all_without_labels(tmp_path):
    write(tmp_path / "chair/a.npy")
    write(tmp_path / "b.npy")
    clouds = read_cloud_folder(tmp_path, "train")
    assert (clouds.classes, len(clouds)) == ((), 2)
    data = open_folder(tmp_path, "pretrain")
    assert (len(data.train), data.evaluation) == (2, None)
    with pytest.raises(UserError, match=r"b.npy lies in no class folder, as other clouds of .* do: move it"):
        open_folder(tmp_path, "finetune", holdout=0.5)


@pytest.mark.parametrize("test", ["val", "validation", "test"])
def test_splits_go_by_their_names(tmp_path, test):
    for name in ("train/chair/a", "train/table/b", f"{test}/chair/c", f"{test}/table/d"):
        write(tmp_path / f"{name}.npy")
    data = open_folder(tmp_path, "finetune")
    assert [name.rsplit("/", 1)[1] for name in data.train.names] == ["a.npy", "b.npy"]
    assert [name.rsplit("/", 1)[1] for name in data.evaluation.names] == ["c.npy", "d.npy"]
    assert data.evaluated_on == f"{test} split"
    assert f"2 for evaluation ({test} split)" in data.description


LAYOUTS = ["folders", "lists", "table"]


def write_three_splits(root, layout):
    """A training, a validation and a test split of two classes; the settings with which they are read."""
    names = [f"{split}/{label}/{split}_{label}.npy" for split in ("train", "val", "test") for label in "ab"]
    for name in names:
        write(root / name)
    if layout == "lists":
        for split in ("train", "val", "test"):
            for label in "ab":
                write(root / f"{label}/{split}_{label}.npy")
        write_lists(
            root, **{split: [f"{x}/{split}_{x}.npy" for x in "ab"] for split in ("train", "val", "test")}
        )
    if layout == "table":
        rows = [f"{name},{name.split('/')[1]},{name.split('/')[0]}" for name in names]
        return write_labels(root, ["path,label,split", *rows])
    return {}


def evaluated(data):
    return {name.rsplit("/", 1)[1].split("_")[0] for name in data.evaluation.names}, data.evaluated_on


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("purpose", ["finetune", "evaluate", "features"])
def test_the_split_that_is_evaluated_on_is_named_and_can_be_chosen(tmp_path, layout, purpose):
    changes = write_three_splits(tmp_path, layout)
    assert evaluated(open_folder(tmp_path, purpose, **changes)) == ({"val"}, "val split")
    chosen = open_folder(tmp_path, purpose, eval_split="test", **changes)
    assert evaluated(chosen) == ({"test"}, "test split")
    assert "2 for evaluation (test split)" in chosen.description


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("purpose", ["evaluate", "features"])
def test_a_named_split_is_evaluated_on_in_spite_of_a_holdout(tmp_path, layout, purpose):
    """A run that was trained with a held-out part is later evaluated on its test split."""
    changes = write_three_splits(tmp_path, layout)
    if layout == "folders":
        write(tmp_path / "train/a/train_more.npy")
    later = open_folder(tmp_path, purpose, holdout=0.5, eval_split="test", **changes)
    assert evaluated(later) == ({"test"}, "test split")
    if purpose == "features":  # the training clouds stay those of the run
        assert later.train.names == open_folder(tmp_path, "pretrain", holdout=0.5, **changes).train.names
    held_out = open_folder(tmp_path, purpose, holdout=0.5, **changes)
    assert evaluated(held_out) == ({"train"}, "held-out 0.5 of the training split (seed 0)")
    with pytest.raises(
        UserError,
        match=r"data.eval_split 'test' and data.holdout \(0.5\) each name what .*: drop one of them",
    ):
        open_folder(tmp_path, "finetune", holdout=0.5, eval_split="test", **changes)


@pytest.mark.parametrize(
    ("layout", "split"), [("folders", "val"), ("lists", "val.txt"), ("table", "split val of .*labels.csv")]
)
@pytest.mark.parametrize("purpose", ["finetune", "evaluate"])
def test_a_split_that_a_held_out_part_replaces_is_named(tmp_path, capsys, layout, split, purpose):
    changes = write_three_splits(tmp_path, layout)
    if layout == "folders":
        write(tmp_path / "train/a/train_more.npy")
    elif layout == "lists":
        write(tmp_path / "a/train_more.npy")
        write_lists(tmp_path, train=["a/train_a.npy", "a/train_more.npy", "b/train_b.npy"])
    else:
        write(tmp_path / "more.npy")
        rows = (tmp_path / "labels.csv").read_text().split()
        changes = write_labels(tmp_path, [*rows, "more.npy,a,train"])
    open_folder(tmp_path, purpose, holdout=0.34, **changes)
    assert re.search(
        rf"{split} is not evaluated on, because data.holdout is 0.34; data.holdout 0 would evaluate on it\n",
        capsys.readouterr().err,
    )
    open_folder(tmp_path, purpose, **changes)
    open_folder(tmp_path, "pretrain", holdout=0.34, **changes)
    if purpose == "evaluate":
        open_folder(tmp_path, purpose, holdout=0.34, eval_split="test", **changes)
    assert "is not evaluated on" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("folders", r"data.eval_split 'tset' is not a folder in .*: did you mean test\?"),
        ("lists", r"data.eval_split 'tset' is not a list in .*: did you mean test\?"),
        ("table", r"labels.csv has no row of split 'tset' \(eval_split\): did you mean test\?"),
    ],
)
@pytest.mark.parametrize("purpose", ["pretrain", "finetune", "evaluate", "features"])
def test_a_split_that_does_not_exist_never_passes(tmp_path, layout, message, purpose):
    changes = write_three_splits(tmp_path, layout)
    with pytest.raises(UserError, match=message):
        open_folder(tmp_path, purpose, eval_split="tset", **changes)


def test_any_folder_or_the_whole_one_can_be_evaluated_on(tmp_path):
    for name in ("chair/c", "table/t", "held/chair/h", "held/table/i"):
        write(tmp_path / f"set/{name}.npy")
    held = open_folder(tmp_path / "set", "evaluate", eval_split="held")
    assert (len(held.evaluation), held.evaluated_on) == (2, "held split")
    whole = open_folder(tmp_path / "set/held", "evaluate", eval_split=".")
    assert (len(whole.evaluation), whole.evaluated_on, whole.classes) == (
        2,
        "the whole folder",
        ("chair", "table"),
    )
    labels = write_labels(tmp_path, ["path,label", "set/chair/c.npy,a", "set/table/t.npy,b"])
    rows = open_folder(tmp_path, "evaluate", eval_split=".", **labels)
    assert (len(rows.evaluation), rows.evaluated_on) == (2, "all rows of labels.csv")


def test_a_held_out_part_on_the_command_line_replaces_the_split_of_a_run():
    values = {"root": "clouds", "eval_split": "test"}
    assert data_defaults(values, {}, {"data.holdout": "0.1"}) == {"root": "clouds"}
    assert data_defaults(values, {}, {"data.holdout": "0.1", "data.eval_split": "val"}) == values
    assert data_defaults(values, {}, {}) == values


def test_settings_of_another_source_are_no_defaults_of_later_commands():
    run = {"source": "scanobjectnn", "variant": "obj_bg", "shapes_per_class": 100}
    assert data_defaults(run, {}, {}) == {"source": "scanobjectnn", "variant": "obj_bg"}
    assert data_defaults(run, {}, {"data.source": "scanobjectnn"})["variant"] == "obj_bg"
    assert "variant" not in data_defaults(run, {}, {"data.source": "hdf5"})


SPLIT_NAMES = ["training", "Train", "val", "Valid", "validation", "TEST", "testing"]


@pytest.mark.parametrize("name", SPLIT_NAMES)
@pytest.mark.parametrize("stray", [False, True])
def test_a_folder_of_splits_is_not_read_as_classes(tmp_path, name, stray):
    for folder in ("chair", name):
        write(tmp_path / f"{folder}/a/1.npy")
    if stray:  # then clouds have no classes, and would all be trained on
        write(tmp_path / "b.npy")
    message = (
        rf"has no folder train, and its subfolder {name} is called like a split, .*: call the folder .* train"
    )
    for purpose in ("pretrain", "finetune"):
        with pytest.raises(UserError, match=message):
            open_folder(tmp_path, purpose, holdout=0.5)


def test_classes_may_be_called_almost_like_a_split(tmp_path):
    for name in ("train_station", "testbed", "values"):
        write(tmp_path / f"{name}/a.npy")
    assert open_folder(tmp_path, "pretrain").classes == ("testbed", "train_station", "values")
    for name in ("train/test", "train/chair"):  # in train, a name is a class
        write(tmp_path / f"{name}/a.npy")
    assert open_folder(tmp_path, "pretrain").classes == ("chair", "test")


def test_a_held_out_part_leaves_clouds_of_every_class_to_train_on(tmp_path):
    for name in "abcd":
        write(tmp_path / f"{name}/1.npy")
    with pytest.raises(UserError, match=r"can hold out none of 4 .*: add samples; each class needs one"):
        open_folder(tmp_path, "finetune", holdout=0.5)
    assert len(open_folder(tmp_path, "pretrain", holdout=0.5).train) == 2  # it needs no labels
    write(tmp_path / "d/2.npy")
    with pytest.raises(UserError, match=r"holds out 2 of 5 .* cannot leave one of each of 4 classes"):
        open_folder(tmp_path, "finetune", holdout=0.5)


@pytest.mark.parametrize("purpose", ["pretrain", "finetune"])
def test_files_that_are_left_out_are_counted(tmp_path, purpose):
    for name in ("train/a/1", "train/a/5", "train/b/2", "train/b/6", "val/a/3", "val/b/4"):
        write(tmp_path / f"{name}.npy")
    for name in (
        "train/a/features.npz",
        "train/notes.md",
        "val/log.md",
        "val/.hidden.md",
        "val/.cache/log.md",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    ignored = "(ignored: 1 .md, 1 .npz)" if purpose == "pretrain" else "(ignored: 2 .md, 1 .npz)"
    assert open_folder(tmp_path, purpose).description.endswith(ignored)
    held_out = open_folder(tmp_path / "train", "finetune", holdout=0.5)
    assert held_out.description.endswith("(ignored: 1 .md, 1 .npz)")  # two parts of one folder


def test_files_that_are_left_out_of_an_evaluation_are_noted(tmp_path, capsys):
    write(tmp_path / "val/a/1.npy")
    write(tmp_path / "val/b/2.npy")
    open_folder(tmp_path, "evaluate")
    assert capsys.readouterr().err == ""
    (tmp_path / "val/notes.md").touch()
    open_folder(tmp_path, "evaluate")
    assert "2 clouds to evaluate on (ignored: 1 .md)" in capsys.readouterr().err
    open_files(str(tmp_path / "val"), settings(tmp_path), PointModelConfig())
    assert "2 clouds to read (ignored: 1 .md)" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_clouds_without_a_row_are_counted(tmp_path, ending):
    for i in range(5):
        np.savez(tmp_path / f"{i}.npz", np.zeros((40, 3))) if ending == "npz" else write(
            tmp_path / f"{i}.npy"
        )
    splits = ["train", "train", "val", "val"]
    rows = [f"{i}.{ending},{'ab'[i % 2]},{split}" for i, split in enumerate(splits)]
    labels = write_labels(tmp_path, ["path,label,split", *rows])
    data = open_folder(tmp_path, "finetune", **labels)
    assert data.description.endswith("(ignored: 1 clouds without a row in labels.csv)")
    labels = write_labels(tmp_path, ["path,label,split", *rows, f"4.{ending},a,train"])
    assert "ignored" not in open_folder(tmp_path, "finetune", **labels).description


def test_missing_parts_of_a_folder_are_reported(tmp_path):
    with pytest.raises(UserError, match=r"holds no cloud files .*npy"):
        read_cloud_folder(tmp_path, "train")
    write(tmp_path / "chair/a.npy")
    write(tmp_path / "table/b.npy")
    with pytest.raises(
        UserError,
        match=r"none of the folders val, validation, test .*--data.eval_split, .*--data.holdout 0.1",
    ):
        open_folder(tmp_path, "finetune")
    with pytest.raises(UserError, match="is a file: give the folder"):
        read_cloud_folder(tmp_path / "chair/a.npy", "train")
    for name in ("train/chair/a", "train/table/b", "val/chair/c"):
        write(tmp_path / f"{name}.npy")
    with pytest.raises(
        UserError, match=r"the classes of the splits .* differ, as only one of them has table"
    ):
        open_folder(tmp_path, "finetune")


def write_labels(root, lines):
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return {"labels": str(root / "labels.csv")}


def test_labels_from_a_csv_file(tmp_path):
    points = [write(tmp_path / f"scans/{i}.npy", i) for i in range(4)]
    rows = [f"scans/{i}.npy,{'ab'[i % 2]},{'train' if i < 2 else 'test'}" for i in (3, 2, 1, 0)]
    labels = write_labels(tmp_path, ["path,label,split", *rows])
    data = open_folder(tmp_path, "finetune", **labels)
    assert (data.classes, [data.train[i][1] for i in range(2)]) == (("a", "b"), [1, 0])
    np.testing.assert_array_equal(data.train.clouds.points(0), points[1])
    np.testing.assert_array_equal(data.evaluation.clouds.points(0), points[3])


def test_labels_of_a_csv_file_are_needed_for_finetuning_alone(tmp_path):
    for i in range(4):
        write(tmp_path / f"{i}.npy", i)
    labels = write_labels(tmp_path, ["path,label", "0.npy,a", "1.npy,b", "2.npy,"])
    assert len(open_folder(tmp_path, "pretrain", **labels).train) == 3
    with pytest.raises(UserError, match="line 4, has no label"):
        open_folder(tmp_path, "finetune", holdout=0.5, **labels)
    with pytest.raises(UserError, match=r"data.labels x.csv lists the files of data.source 'folder'"):
        PointDataConfig("hdf5", str(tmp_path), labels="x.csv").validate()
    with pytest.raises(UserError, match=r"data.labels is empty"):
        settings(tmp_path, labels=" ").validate()


def write_lists(root, **lists):
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("test", ["val", "validation", "test"])
def test_splits_by_lists(tmp_path, test):
    for name in ("chair/a", "chair/b", "table/c", "table/d", "table/unlisted"):
        write(tmp_path / f"{name}.npy")
    write_lists(tmp_path, train=["table/c.npy", "chair/a.npy"], **{test: ["chair/b.npy", "", "table/d.npy"]})
    data = open_folder(tmp_path, "finetune")
    names = [name.rsplit("/", 1)[1] for samples in (data.train, data.evaluation) for name in samples.names]
    assert names == ["c.npy", "a.npy", "b.npy", "d.npy"]
    assert data.evaluated_on == f"{test} split"
    assert (data.classes, data.train[0][1], data.train[1][1]) == (("chair", "table"), 1, 0)


def test_a_cloud_file_named_train_is_no_list(tmp_path):
    write(tmp_path / "train.txt")
    write(tmp_path / "other.txt")
    assert len(open_folder(tmp_path, "pretrain").train) == 2


@pytest.mark.parametrize("head", ["40", "x y z", "# forty points", "a;x;y;z"])
def test_a_cloud_file_named_train_may_have_a_head(tmp_path, head):
    write(tmp_path / "train.txt")
    points = (tmp_path / "train.txt").read_text()
    rows = "".join(f"0;{line.replace(' ', ';')}\n" for line in points.splitlines()) if ";" in head else points
    (tmp_path / "train.txt").write_text(f"{head}\n{rows}")
    assert open_folder(tmp_path, "pretrain").train[0][0].shape == (32, 3)


@pytest.mark.parametrize("name", ["train", "val", "validation", "test"])
@pytest.mark.parametrize("line", ["a.npy 0", "a", "# my list", "1 2", ""])
def test_a_list_that_is_none_is_not_taken_for_a_cloud(tmp_path, name, line):
    write(tmp_path / "a.npy")
    write(tmp_path / "b.npy")
    write_lists(tmp_path, **{"train": ["a.npy"], name: [line, "b.npy"] if line else []})
    message = rf"{name}.txt is neither a list nor a cloud, as its first line is '{line}': every line .* with its ending"
    with pytest.raises(UserError, match=message):
        open_folder(tmp_path, "pretrain")


def test_a_list_to_train_on_is_asked_for(tmp_path):
    write(tmp_path / "a/1.npy")
    write_lists(tmp_path, val=["a/1.npy"])
    with pytest.raises(UserError, match=r"has val.txt but no train.txt: add the list of the training clouds"):
        open_folder(tmp_path, "pretrain")
    write(tmp_path / "train/a/1.npy")
    assert len(open_folder(tmp_path, "pretrain").train) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["a.npy", "none.npy"],
            r"train.txt, line 2, names 'none.npy', which is not a cloud file in .*; correct it",
        ),
        (["a.npy", "notes.md"], r"line 2, names 'notes.md', which is not a cloud file"),
        (
            ["a.npy", "", "a.npy"],
            r"line 3, names 'a.npy' again, after line 1 of train.txt; name every cloud once, in one list",
        ),
        (["a.npy", "../a.npy"], r"names '../a.npy', which leads out of"),
        (["/a.npy"], r"names '/a.npy', which leads out of"),
    ],
)
def test_lines_of_a_list_that_name_no_cloud(tmp_path, lines, message):
    write(tmp_path / "a.npy")
    (tmp_path / "notes.md").write_text("no cloud")
    write_lists(tmp_path, train=lines)
    with pytest.raises(UserError, match=message):
        open_folder(tmp_path, "pretrain")


@pytest.mark.parametrize("purpose", ["pretrain", "finetune", "evaluate", "features"])
@pytest.mark.parametrize("split", ["val", "validation", "test"])
def test_a_cloud_in_two_lists_is_refused(tmp_path, split, purpose):
    """It would be evaluated on after it was trained on."""
    for name in "abc":
        write(tmp_path / f"{name}/1.npy")
    write_lists(tmp_path, train=["a/1.npy", "b/1.npy"], **{split: ["c/1.npy", "", "b\\1.npy"]})
    message = (
        rf"{split}.txt, line 3, names .* again, after line 2 of train.txt; name every cloud once, in one list"
    )
    with pytest.raises(UserError, match=message):
        open_folder(tmp_path, purpose)


def test_two_lists_to_evaluate_on_may_name_the_same_clouds(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}/1.npy")
    write_lists(tmp_path, train=["a/1.npy"], val=["b/1.npy"], test=["b/1.npy"])
    assert len(open_folder(tmp_path, "pretrain").train) == 1


def test_clouds_in_the_lists_of_other_splits_may_be_elsewhere(tmp_path):
    write(tmp_path / "a/1.npy")
    write_lists(tmp_path, train=["a/2.npy"], test=["a/1.npy"])
    assert len(open_folder(tmp_path, "evaluate").evaluation) == 1


def test_a_list_to_evaluate_on_is_asked_for(tmp_path):
    write(tmp_path / "a.npy")
    write_lists(tmp_path, train=["a.npy"])
    with pytest.raises(UserError, match=r"has train.txt but none of val.txt, .*--data.holdout 0.1"):
        open_folder(tmp_path, "finetune")


@pytest.mark.parametrize("layout", ["folders", "lists", "table"])
@pytest.mark.parametrize("split", [True, False])
def test_features_do_without_a_split_to_evaluate_on(tmp_path, tiny_model, layout, split):
    for name in ("train/a/1", "train/b/2", *(["test/a/3", "test/b/4"] if split else [])):
        write(tmp_path / f"{name}.npy")
    changes = {}
    if layout == "lists":
        parts = {"train": ["train/a/1.npy"]} | ({"val": ["train/b/2.npy"]} if split else {})
        write_lists(tmp_path, **parts)
    if layout == "table":
        rows = ["train/a/1.npy,a,train", "train/b/2.npy,b,train", *(["test/a/3.npy,a,test"] if split else [])]
        changes = write_labels(tmp_path, ["path,label,split", *rows])
    data = open_data(settings(tmp_path, **changes), tiny_model, "features")
    assert len(data.plain_train) == (1 if layout == "lists" else 2)
    assert (data.evaluation is not None) == split


def test_finetuning_by_the_command_needs_classes(tmp_path, tiny_model):
    write(tmp_path / "a.npy")
    write(tmp_path / "b.npy")
    with pytest.raises(UserError, match=r"holds clouds but no class subfolders"):
        open_data(settings(tmp_path, holdout=0.5), tiny_model, "finetune")


def test_splits_whose_classes_differ_have_no_common_labels(tmp_path, tiny_model):
    """A class that is in one of them alone would shift the numbers of those behind it."""
    for name in ("train/bed/1", "train/chair/2", "train/desk/3", "test/bed/4", "test/desk/5"):
        write(tmp_path / f"{name}.npy")
    message = (
        r"the classes of the splits of .* differ, as only one of them has chair; every class needs a folder"
    )
    with pytest.raises(UserError, match=message):
        open_data(settings(tmp_path), tiny_model, "features")
    with pytest.raises(UserError, match=message):
        next(open_folds(settings(tmp_path), FoldsConfig(way=2, shot=1, queries=1)))


HIDDEN = (
    "train/a/._1.npy",
    "train/b/.ipynb_checkpoints/2-checkpoint.npy",
    "train/.Trash/3.npy",
    ".cache/4.npy",
)


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_files_and_folders_are_neither_clouds_nor_classes(tmp_path, name):
    for cloud in ("train/a/1.npy", "train/b/2.npy"):
        write(tmp_path / cloud)
    visible = open_folder(tmp_path, "pretrain")
    write(tmp_path / name)
    data = open_folder(tmp_path, "pretrain")
    assert (data.train.names, data.classes, data.description) == (
        visible.train.names,
        ("a", "b"),
        visible.description,
    )
    assert len(open_files(str(tmp_path), settings(tmp_path), PointModelConfig())) == 2


def test_a_folder_below_a_hidden_one_is_read(tmp_path):
    write(tmp_path / ".data/a/1.npy")
    assert len(open_folder(tmp_path / ".data", "pretrain").train) == 1


@pytest.mark.parametrize("layout", ["folders", "lists"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_stray_cloud_of_either_split_is_named(tmp_path, tiny_model, layout, split):
    names = {part: [f"{part}/{label}/1.npy" for label in "ab"] for part in ("train", "val")}
    names[split].append(f"{split}/stray.npy" if layout == "folders" else "stray.npy")
    for name in (*names["train"], *names["val"]):
        write(tmp_path / name)
    if layout == "lists":
        for label in "ab":
            for part in ("train", "val"):
                write(tmp_path / f"{label}/{part}.npy")
        names = {part: [f"{label}/{part}.npy" for label in "ab"] for part in names}
        names[split].append("stray.npy")
        write_lists(tmp_path, **names)
    message = r"stray.npy lies in no class folder, as other clouds of .* do: move it into one, or away"
    for purpose in ("finetune", "features"):
        with pytest.raises(UserError, match=message):
            open_data(settings(tmp_path), tiny_model, purpose)


def test_a_split_to_evaluate_on_without_any_class_folder_is_named(tmp_path, tiny_model):
    for name in ("train/a/1", "train/b/2", "val/3", "val/4"):
        write(tmp_path / f"{name}.npy")
    with pytest.raises(
        UserError, match=r"val holds clouds but no class subfolders: labels need val/<class>/<cloud>"
    ):
        open_data(settings(tmp_path), tiny_model, "finetune")


def test_an_evaluation_names_the_row_without_a_label(tmp_path, tiny_model):
    for i in range(3):
        write(tmp_path / f"{i}.npy", i)
    labels = write_labels(tmp_path, ["path,label,split", "0.npy,a,train", "1.npy,b,test", "2.npy,,test"])
    config = settings(tmp_path, **labels)
    with pytest.raises(UserError, match="line 4, has no label: give every row one, or leave the row out"):
        open_data(config, tiny_model, "evaluate", {"classes": ["a", "b"]})
    drawn = open_data(
        config, tiny_model, "evaluate", {"holds": "encoder"}
    )  # for a picture of reconstructions
    assert len(drawn.evaluation) == 2


def test_lists_may_be_written_with_backslashes(tmp_path):
    write(tmp_path / "a/1.npy")
    write(tmp_path / "b/2.npy")
    write_lists(tmp_path, train=["a\\1.npy", ".\\b\\2.npy"])
    data = open_folder(tmp_path, "pretrain")
    assert (len(data.train), data.classes) == (2, ("a", "b"))


def test_settings_that_another_source_does_not_read_are_no_defaults():
    run = {
        "source": "folder",
        "root": "clouds",
        "labels": "l.csv",
        "columns": ["x", "y", "z"],
        "eval_split": "val",
    }
    assert data_defaults(run | {"holdout": 0.1}, {}, {"data.source": "shapes"}) == {
        "source": "folder",  # which that of the command line replaces
        "holdout": 0.1,
    }
    assert data_defaults(run, {}, {"data.source": "hdf5"}) == {"source": "folder", "root": "clouds"}
    assert data_defaults(run, {}, {"data.source": "folder", "data.root": "others"}) == run


def test_a_folder_given_to_weights_alone_is_of_the_source_that_they_were_trained_on(capsys):
    description = {"preparation": {"source": "modelnet40_npz", "num_points": 1024}}
    given = {"data.root": "clouds.npz"}
    assert data_defaults({}, description, given) == {"source": "modelnet40_npz", "num_points": 1024}
    said = "data.source modelnet40_npz, which the weights were trained on; --data.source reads another\n"
    assert capsys.readouterr().err == said
    assert "source" not in data_defaults({}, description, {})
    assert "source" not in data_defaults({}, {"preparation": {"num_points": 64}}, given)
    assert data_defaults({"source": "folder"}, description, given)["source"] == "folder"
    other = given | {"data.source": "hdf5"}
    assert data_defaults({}, description, other)["num_points"] == 1024
    assert capsys.readouterr().err == ""


def test_clouds_are_prepared_as_the_description_of_a_model_says():
    trained = PointDataConfig("scanobjectnn", "h5", num_points=2048).preparation
    assert trained == {"source": "scanobjectnn", "num_points": 2048, "unit_sphere": False, "up_axis": "y"}
    prepared = {name: value for name, value in trained.items() if name != "source"}
    assert data_defaults({}, {"preparation": trained}, {}) == prepared
    assert data_defaults({}, {"preparation": trained}, {"data.source": "scanobjectnn"}) == prepared
    assert data_defaults({}, {"preparation": trained}, {"data.source": "folder"}) == {"num_points": 2048}
    assert data_defaults({}, {}, {}) == {}
