"""Command lines: the configurations they resolve to, and the one-sentence message on each mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from map_core import UserError
from map_core.commands.command import Command, as_defaults, section_of_run
from map_core.commands.parser import load_recipe
from map_core.commands.program import main
from map_core.commands.recipes import recipe_names


def test_recipe_then_overrides_wherever_they_stand(run):
    status, config, _ = run(
        "pretrain --training.epochs 5 --config pretrain_digits --out=x --data.size [1,2] --training.progress false"
    )
    assert status == 0
    assert (config.out, config.data.size) == (Path("x"), (1, 2))
    assert vars(config.training) == {"epochs": 5, "lr": 1e-4, "clip": 3.0, "progress": False}


def test_the_last_of_two_values_wins_and_sections_keep_the_defaults_of_their_configuration(run):
    _, config, _ = run("pretrain --out x --out y")
    assert (config.out, config.training.epochs) == (Path("y"), 7)


def test_recipes_layer_in_order(run, tmp_path):
    (tmp_path / "mine.yaml").write_text("training: {epochs: 50}\ndata:\n")
    two_recipes = f"pretrain --out x --config pretrain_more_digits --config {tmp_path}/mine.yaml"
    config = run(two_recipes)[1]
    assert (config.training.epochs, config.training.lr, config.data.root) == (50, 1e-4, "digits")
    reversed_recipes = f"pretrain --out x --config {tmp_path}/mine.yaml --config pretrain_more_digits"
    assert run(reversed_recipes)[1].training.epochs == 30
    assert run(f"{two_recipes} --training.epochs 2")[1].training.epochs == 2


def test_an_empty_section_means_defaults(run, tmp_path):
    (tmp_path / "mine.yaml").write_text("training:\n  # epochs: 3\n")
    assert run(f"pretrain --out x --config {tmp_path}/mine.yaml")[1].training.epochs == 7
    (tmp_path / "mine.yaml").write_text("# nothing yet\n")
    assert run(f"pretrain --out x --config {tmp_path}/mine.yaml")[1].training.epochs == 7


@pytest.mark.parametrize("text", ["#x", "null", "~", "012", "1e3", "no", "- a", "a: b", "[a", "{a}"])
def test_a_text_on_the_command_line_is_that_text(run, text):
    for line in (["--data.root", text], [f"--data.root={text}"]):
        assert run(["pretrain", "--out", "x", *line])[1].data.root == text


@pytest.mark.parametrize(
    ("text", "root"),
    [("null", None), ("~", None), ("", None), ("'null'", "null"), ("012", "012"), ("no", "no")],
)
def test_null_in_a_file_is_none_and_other_words_are_text(run, tmp_path, text, root):
    (tmp_path / "mine.yaml").write_text(f"data:\n  root: {text}\n")
    line = f"pretrain --out x --config pretrain_more_digits --config {tmp_path}/mine.yaml"
    assert run(line)[1].data.root == root


def test_null_leaves_out_a_number_and_a_section_may_leave_out_a_text(run):
    line = ["pretrain", "--config", "pretrain_more_digits", "--out", "x"]
    config = run([*line, "--training.lr", "null", "--training.clip", "~", "--data", "{root: null}"])[1]
    assert (config.training.lr, config.training.clip, config.data.root) == (None, None, None)


@pytest.mark.parametrize("option", ["--init", "--data.root"])
def test_a_shell_variable_without_a_value_is_refused(refusal, option):
    """Else a run would start from nothing, or train on the default data."""
    for line in ([option, ""], [f"{option}="]):
        message = refusal(["pretrain", "--out", "x", *line])
        assert message == f"{option} needs a value; write {option} VALUE (or {option}=VALUE)"


def test_the_home_folder_is_found_in_every_path(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("data: {root: ~/data}")
    config = run(["pretrain", "--config=~/mine.yaml", "--out=~/runs/a", "--init=~/b"])[1]
    assert (config.out, config.init) == (tmp_path / "runs" / "a", str(tmp_path / "b"))
    assert config.data.root == str(tmp_path / "data")
    assert run(["predict", "--images", "~/a.png", "b~"])[1].images == [str(tmp_path / "a.png"), "b~"]


@pytest.mark.parametrize(
    ("line", "images"),
    [
        ("--images a.png", "a.png"),
        ("--images a.png b.png c.png", ["a.png", "b.png", "c.png"]),
        ("--images [a.png,b.png]", ["a.png", "b.png"]),
        ("--images=a,b.png", "a,b.png"),
    ],
)
def test_several_files(run, line, images):
    assert run(f"predict {line}")[1].images == images


@pytest.mark.parametrize(
    ("line", "progress"), [("--training.progress", True), ("--training.progress false", False)]
)
def test_what_is_true_or_false_is_true_where_its_option_stands_alone(run, line, progress):
    config = run(f"pretrain --training.progress false {line} --out x")[1]
    assert (config.training.progress, str(config.out)) == (progress, "x")


def test_a_negative_number_is_a_value(run):
    assert run("pretrain --out x --training.clip -1.5")[1].training.clip == -1.5


def test_a_commands_own_defaults_yield_to_recipe_and_overrides(recipes, toy):
    configs, explicit_settings = [], []

    def defaults(explicit):
        explicit_settings.append(explicit)
        return {"training.epochs": 50, "training.lr": "0.5", "data.size": [8, 8], "data.kind": "points"}

    command = Command("pretrain", "Pretrain a model", toy.PretrainConfig, configs.append, defaults)
    line = "pretrain --config pretrain_digits --out=x --data.kind images --init ~/y"
    assert main("map-toy", [command], recipes, line.split()) == 0
    assert (configs[0].training.epochs, configs[0].training.lr) == (3, 1e-4)
    assert (configs[0].data.size, configs[0].data.kind) == ((8, 8), "images")
    expected = {"training.lr": "0.0001", "training.epochs": "3", "out": "x", "data.kind": "images"}
    expected["init"] = os.path.expanduser("~/y")
    assert explicit_settings == [expected]
    assert main("map-toy", [command], recipes, ["pretrain"]) == 2  # nothing given: an error, no traceback
    assert explicit_settings[1] == {}


def test_what_a_command_derives_defaults_from_includes_whole_sections(recipes, toy, tmp_path):
    """As a mapping or a file, on top of a recipe; a null counts as not given."""
    explicit_settings = []

    def defaults(explicit):
        explicit_settings.append(explicit)
        return {}

    command = Command("pretrain", "Pretrain a model", toy.PretrainConfig, lambda config: None, defaults)
    (tmp_path / "data.yaml").write_text("root: sea\nkind: points\nsize: [8, 9]\n")
    for section in ("{root: sea, kind: points, size: [8, 9]}", tmp_path / "data.yaml"):
        line = [
            "pretrain",
            "--config=pretrain_more_digits",
            "--out=x",
            f"--data={section}",
            "--training.clip=null",
        ]
        assert main("map-toy", [command], recipes, line) == 0
        data = {"data.root": "sea", "data.kind": "points", "data.size": "(8, 9)"}
        assert explicit_settings.pop() == data | {
            "training.lr": "0.0001",
            "training.epochs": "30",
            "out": "x",
        }


def test_defaults_from_the_run_that_init_names(tmp_path, toy):
    (tmp_path / "config.yaml").write_text("data: {root: '012', size: [3, 3], gone: 1}\ntraining:\n")
    explicit = {"init": str(tmp_path / "model.safetensors")}
    values = section_of_run(explicit, "data")
    assert as_defaults("data", toy.DataSection, values) == {"data.root": "012", "data.size": (3, 3)}
    assert section_of_run(explicit, "training") == section_of_run({}, "data") == {}
    with pytest.raises(
        UserError, match=r"config.yaml lacks the section model, so the settings of that run are not"
    ):
        section_of_run(explicit, "model")


def test_what_a_command_needs_is_imported_when_it_runs(recipes, tmp_path):
    module = "config = lambda: C\nimport dataclasses\nC = dataclasses.make_dataclass('C', [('n', int, 3)])\nran = []\n"
    (tmp_path / "late_module.py").write_text(f"{module}def run(config):\n    ran.append(config.n)\n")
    command = Command("go", "go", "late_module:config", "late_module:run")
    other = Command("pretrain", "pretrain", "no_such_module:Config", "no_such_module:run")
    assert main("map-toy", [command, other], recipes, ["--help"]) == 0
    assert "late_module" not in sys.modules
    assert main("map-toy", [command, other], recipes, ["go", "--n", "4"]) == 0
    assert sys.modules.pop("late_module").ran == [4]


def test_print_config_can_be_used_as_a_config(run, printout, tmp_path):
    output = printout("pretrain --config pretrain_more_digits --out x --print_config")
    assert yaml.safe_load(output) == {
        "out": "x",
        "init": None,
        "data": {"root": "digits", "kind": "images", "size": [224, 224]},
        "training": {"epochs": 30, "lr": 1e-4, "clip": 3.0, "progress": True},
    }
    (tmp_path / "printed.yaml").write_text(output)
    assert printout(f"pretrain --config {tmp_path}/printed.yaml --print_config") == output
    assert yaml.safe_load(printout("pretrain --print_config"))["out"] is None


@pytest.mark.parametrize("line", ["--version", "pretrain --version"])
def test_version(run, line):
    status, config, output = run(line)
    assert (status, config) == (0, None)
    assert "map-core 0." in output.out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pretrian", "unknown command 'pretrian'; did you mean pretrain"),
        (
            "--config pretrain_digits pretrain",
            "a command comes first, its settings after it; got '--config'; commands: pretrain, predict, fail, crash",
        ),
        ("pretrain", "missing --out; add --out VALUE"),
        ("pretrain --out x --training.epoch 4", "unknown option --training.epoch; did you mean --training.epochs"),
        ("pretrain --out x -e 4", "unknown option -e; "),
        ("pretrain --out x --training.epochs=abc", "--training.epochs must be a whole number; got 'abc'"),
        ("pretrain --out x --training.epochs 1.5", "--training.epochs must be a whole number; got '1.5'"),
        ("pretrain --out x --training.epochs null", "--training.epochs must be a whole number; got 'null'"),
        ("pretrain --out x --training.lr abc", "--training.lr must be a number or null; got 'abc'"),
        (
            "pretrain --out x --training.clip a",
            "--training.clip must be a number, 2 numbers as a list [a, b] or null; got 'a'",
        ),
        ("pretrain --out x --training.progress 1", "--training.progress must be true or false; got '1'"),
        ("pretrain --out x --data.size 1 2 3", "--data.size must be 2 whole numbers as a list [a, b]; got ['1', '2'"),
        (
            "pretrain --out x --data.kind image",
            "--data.kind must be one of images, points; got 'image'; did you mean images?",
        ),
        ("pretrain --out x --training 3", "--training must be a YAML file or a mapping such as {key: value}; got '3'"),
        ("pretrain --out x --training {epochs:@3,a:@1}", "unknown key training.a in --training; known names: "),
        ("pretrain --out x more", "unexpected argument 'more'; settings are given as --key value"),
        ("pretrain --out", "--out needs a value; write --out VALUE"),
        ("pretrain --out --training.epochs 3", "--out needs a value"),
        ("pretrain --out x --config", "--config needs a recipe's name or a file"),
        ("pretrain --out x --config=", "--config needs a recipe's name or a file"),
        ("pretrain --out x --config pretrain_digit", "unknown recipe 'pretrain_digit'; did you mean"),
        ("pretrain --out x --config no/such.yaml", "--config no/such.yaml: there is no such file"),
        (
            "pretrain --out x --config predict_one",
            "unknown key images in predict_one; known names: data, init, out, training "
            "(predict_one is a recipe for the command predict, not pretrain)",
        ),
        ("pretrain --out x --training.epochs 0", "training.epochs must be at least 1; got 0; change --training.epochs"),
        ("pretrain --out x --training.lr nan", "training.lr must be a positive number; got nan"),
        ("fail", "data.root /nowhere does not exist; set --data.root"),
    ],
)  # fmt: skip
def test_mistakes_give_one_sentence_and_status_2(refusal, line, message):
    assert refusal([word.replace("@", " ") for word in line.split()]).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epoch: 3}", "unknown key training.epoch in {file}; did you mean epochs"),
        ("trainer: {epochs: 3}", "unknown key trainer in {file}; did you mean training"),
        ("training: 3", "section training of {file} must be a mapping of keys to values; got '3'"),
        ("- a", "{file} must be a mapping of keys to values; got ['a']"),
        ("training: {epochs: many}", "training.epochs in {file} must be a whole number; got 'many'"),
        ("training: {epochs: null}", "training.epochs in {file} must be a whole number; got null"),
        ("data: {root: [a]}", "data.root in {file} must be text or null; got ['a']"),
        ("data: {size: [1, a]}", "data.size in {file} must be 2 whole numbers as a list [a, b]; got ['1', 'a']"),
        ("training: !!python/object/apply:os.mkdir ['{folder}/ran']", "{file} is not plain YAML"),
        ("data: {class_path: os.mkdir, init_args: {path: '{folder}/ran'}}", "unknown key data.class_path in {file}"),
        ("base: 3\n", "base 3 in {file} is neither a packaged recipe nor a file in {folder}; known names: "),
        ("base: [a]\n", "base in {file} must be a recipe's name or a path; got ['a']"),
        ("base: pretrain_digit", "base pretrain_digit in {file} is neither a packaged recipe nor a file in {folder}"),
        ("base: mine.yaml", "recipe {file} builds on itself: {file} -> {file}; remove one base"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_run_nothing(refusal, tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("{folder}", str(tmp_path)))
    message = message.replace("{file}", str(file)).replace("{folder}", str(tmp_path))
    assert refusal(f"pretrain --out x --config {file}").startswith(message)
    assert not (tmp_path / "ran").exists()


def test_the_recipe_that_was_named_is_blamed_rather_than_its_base(refusal, tmp_path):
    file = tmp_path / "predict_mine.yaml"
    file.write_text("base: predict_one")
    hint = f" ({file} is a recipe for the command predict, not pretrain)"
    assert refusal(f"pretrain --out x --config {file}").endswith(hint)


def test_choices_are_listed_once(refusal):
    message = "--data.kind must be one of images, points; got 'image'; did you mean images?"
    assert refusal("pretrain --out x --data.kind image") == message


def test_a_section_file_runs_nothing_either(run, refusal, tmp_path):
    file = tmp_path / "section.yaml"
    file.write_text(f"!!python/object/apply:os.mkdir ['{tmp_path}/ran']")
    assert "is not plain YAML" in refusal(f"pretrain --out x --training {file}")
    assert not (tmp_path / "ran").exists()
    file.write_text("epochs: 4")
    assert run(f"pretrain --out x --training {file}")[1].training.epochs == 4


def test_an_error_that_is_no_user_error_keeps_its_traceback(run):
    with pytest.raises(ZeroDivisionError):
        run("crash")


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_large_blocks_are_on_huge_pages_unless_the_environment_says_otherwise(
    run, monkeypatch, before, after
):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    if before is not None:
        monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", before)
    assert run("pretrain --out x")[0] == 0
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == after


def test_the_program_lists_commands_and_recipes(run):
    status, _, output = run("--help")
    assert status == 0
    assert "pretrain a model" in output.out
    assert "pretrain_digits" in output.out
    assert run([])[0] == 2


def test_recipes_resolve_without_a_command_line(recipes, toy):
    assert recipe_names(recipes) == ["predict_one", "pretrain_digits", "pretrain_more_digits"]
    config = load_recipe(recipes, "pretrain_more_digits", toy.PretrainConfig, ["--training.epochs=1"])
    assert (config.training.epochs, config.training.lr) == (1, 1e-4)
    assert config.out == Path("runs/pretrain_more_digits")
    assert load_recipe(recipes, "predict_one", toy.PredictConfig) == toy.PredictConfig(images="b.png")
    with pytest.raises(UserError, match="unknown recipe 'pretrain_digit'"):
        load_recipe(recipes, "pretrain_digit", toy.PretrainConfig)


WITHOUT_TORCH = """
import sys, types
package = types.ModuleType("map_core")  # its __init__ shows the whole method
package.__path__ = [sys.argv[1]]
sys.modules["map_core"] = package
import map_core.commands.program
sys.exit("torch" in sys.modules)
"""


def test_the_plumbing_imports_no_torch():
    import map_core

    path = str(Path(map_core.__file__).parent)
    assert subprocess.run([sys.executable, "-c", WITHOUT_TORCH, path], check=False).returncode == 0


def test_a_message_shows_escape_sequences_and_any_name(recipes, toy, tmp_path):
    """Such as the name of a file that would colour the terminal and is not UTF-8."""
    code = (
        "import sys; from map_core import UserError; from map_core.commands.command import Command;"
        "from map_core.commands.program import main; import dataclasses\n"
        "def run(config): raise UserError('\\x1b[31mcaf\\udce9.png is red')\n"
        "C = dataclasses.make_dataclass('C', [])\n"
        f"main('map-toy', [Command('go', 'Go', C, run)], {recipes!r}, ['go'])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert process.stderr == b"map-toy: error: \\x1b[31mcaf\\udce9.png is red\n"
