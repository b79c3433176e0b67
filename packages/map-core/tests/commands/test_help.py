"""The help of a command."""


def words(text):
    return " ".join(text.split())


def test_every_setting_is_explained_with_its_default(printout):
    text = words(printout("pretrain --help-all"))
    assert text.startswith(
        "usage: map-toy pretrain [--config RECIPE ...] [--section.key value ...] Pretrain a model."
    )
    assert "--out (a path; required) The run directory." in text
    assert "--training.epochs (a whole number; default: 7) Passes over the data." in text
    assert "--training.lr (a number or null; default: null) Learning rate; null chooses one." in text
    assert "--data.kind (one of images, points; default: images) What is in it." in text
    assert "--data.size (2 whole numbers as a list [a, b]; default: [224, 224])" in text
    assert (
        "default: 3.0) What else there is. --training.progress (true or false; default: true) What else"
        in text
    )
    assert "Nothing" not in text
    assert "data: Where the data is. --data.root" in text


def test_help_shows_what_matters_most_and_says_what_it_leaves_out(printout):
    text = words(printout("pretrain --help"))
    shown_settings = {word for word in text.split() if word.startswith("--") and "." in word}
    assert shown_settings == {"--data.root", "--training.epochs", "--training.lr"}
    assert "--init (text or null; default: null)" in text
    assert "--help-all shows 4 more settings." in text


def test_defaults_are_those_of_the_recipe(printout):
    text = words(printout("pretrain --help --config pretrain_more_digits --training.lr 0.5"))
    assert "--training.epochs (a whole number; default: 30)" in text
    assert "--training.lr (a number or null; default: 0.5)" in text
    assert "--data.root (text or null; default: digits)" in text
