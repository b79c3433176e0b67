"""The page of features: complete in itself, with the right neighbours, places and pictures."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from toy_domain import DOMAIN

from map_core.commands.listing import standard_commands
from map_core.commands.program import main
from map_core.tasks.embedding_page import (
    NEIGHBORS,
    POINT_PIXELS,
    POINTS,
    QUERIES,
    QUERY_PIXELS,
    agreement,
    neighbors_among,
    principal_plane,
    spread_over_classes,
    write_page,
)
from map_core.tasks.features import SplitFeatures

CLASSES = ("<b>cat</b>", "dog", "</script>")


def picture(index):
    """A plain colour that encodes the sample's index."""
    return np.full((100, 60, 3), index % 200, dtype=np.uint8)


def noise(index):
    return np.random.default_rng(index).integers(0, 256, (224, 224, 3), dtype=np.uint8)


def split_of(count, width=5):
    generator = np.random.default_rng(1)
    labels = generator.integers(len(CLASSES), size=count)
    features = (generator.normal(size=(count, width)) + 2 * labels[:, None]).astype(np.float32)
    return SplitFeatures(features, labels, [f'<i>"{i}"</i>' for i in range(count)])


class Page(HTMLParser):
    """A page as a browser reads it: its elements, and the texts of scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self._inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")
            self._inside = tag

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def decode(encoded):
    return Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))).convert("RGB")


def page_of(tmp_path, split, classes=CLASSES, show=picture):
    out = tmp_path / "f.html"
    write_page(out, "Features of <run>", split, classes, show, sample="toy")
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    return text, page, json.loads(page.scripts[0])


def slow_neighbors(features, query, count):
    """By a loop over all others."""
    unit = [row / np.linalg.norm(row) for row in features.astype(np.float64)]
    others = [i for i in range(len(features)) if i != query]
    return sorted(others, key=lambda i: -float(unit[query] @ unit[i]))[:count]


@pytest.mark.parametrize("neighbors", [1, 8, 39, 100])
def test_neighbours_are_those_of_a_loop(neighbors):
    features = split_of(40).features
    result = neighbors_among(features, np.array([0, 7, 39]), neighbors)
    for query, index in zip([0, 7, 39], result.index, strict=True):
        assert index.tolist() == slow_neighbors(features, query, neighbors)


def test_a_sample_is_not_its_neighbour_also_among_duplicates():
    neighbors = neighbors_among(np.ones((20, 3), dtype=np.float32), np.arange(20), 4)
    assert neighbors.index.shape == (20, 4)
    assert all(len(set(row)) == 4 for row in neighbors.index.tolist())


def test_the_plane_keeps_the_distances_of_features_that_lie_in_one():
    plane = np.random.default_rng(0).normal(size=(30, 2))
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0][:2]
    places, shares = principal_plane((plane @ rotation + 5).astype(np.float32))

    def distances(points):
        return np.linalg.norm(points[:, None] - points[None], axis=-1)

    ratio = distances(places)[0, 1:] / distances(plane)[0, 1:]
    assert ratio == pytest.approx(ratio[0], rel=1e-4)
    assert shares.sum() == pytest.approx(1)
    assert shares[0] > shares[1]
    assert np.abs(places).max() == pytest.approx(1)


@pytest.mark.parametrize("shape", [(1, 4), (2, 1), (5, 1)])
def test_few_samples_or_features_have_places(shape):
    places, _ = principal_plane(np.ones(shape, dtype=np.float32))
    assert places.tolist() == [[0, 0]] * shape[0]


def test_queries_are_spread_over_the_classes():
    labels = np.array([0] * 50 + [1] * 2 + [2] * 50)
    assert np.bincount(labels[spread_over_classes(labels, 12)]).tolist() == [5, 2, 5]


def test_agreement_is_counted():
    labels = np.array([0, 0, 1, 1])
    features = np.array([[1, 0], [1, 0.1], [0, 1], [1, 0.3]], dtype=np.float32)
    neighbors = neighbors_among(features, np.arange(4), 1)
    assert neighbors.index[:, 0].tolist() == [1, 0, 3, 1]
    assert agreement(neighbors, labels).startswith(
        "kNN agreement: 75.0 % of the 1 nearest neighbours are of the same class (50.0 % by chance)"
    )


def test_every_point_has_its_picture_label_and_name(tmp_path):
    split = split_of(30)
    _, _, points = page_of(tmp_path, split)
    assert points["labels"] == split.labels.tolist()
    assert points["names"] == list(split.names)
    assert points["classes"] == list(CLASSES)
    assert np.allclose(points["places"], principal_plane(split.features)[0], atol=1e-4)
    for index, encoded in enumerate(points["pictures"]):
        image = decode(encoded)
        assert max(image.size) == POINT_PIXELS
        assert image.getpixel((5, 5)) == pytest.approx((index,) * 3, abs=3)


def test_rows_show_queries_and_their_neighbours(tmp_path):
    split = split_of(30)
    _, page, _ = page_of(tmp_path, split)
    images = [attributes for attributes in page.all("img") if "title" in attributes]
    assert len(images) == QUERIES * (1 + NEIGHBORS)
    indices = [int(re.sub(r"\D", "", attributes["title"])) for attributes in images]
    for start in range(0, len(indices), 1 + NEIGHBORS):
        query, *neighbors = indices[start : start + 1 + NEIGHBORS]
        assert neighbors == slow_neighbors(split.features, query, NEIGHBORS)
    for index, attributes in zip(indices, images, strict=True):
        image = decode(attributes["src"].removeprefix("data:image/jpeg;base64,"))
        assert max(image.size) == QUERY_PIXELS
        assert image.getpixel((5, 5)) == pytest.approx((index,) * 3, abs=3)
    marks = [attributes["class"] for attributes in page.all("td")]
    for start in range(0, len(indices), 1 + NEIGHBORS):
        query, *neighbors = indices[start : start + 1 + NEIGHBORS]
        expected = ["same" if split.labels[index] == split.labels[query] else "other" for index in neighbors]
        assert marks[start : start + 1 + NEIGHBORS] == ["query", *expected]


def test_names_and_classes_run_nothing(tmp_path):
    text, page, _ = page_of(tmp_path, split_of(30))
    assert page.all("b") == []
    assert [tag for tag, _ in page.elements if tag == "i"] == []
    assert len(page.scripts) == 2
    assert "Features of &lt;run&gt;" in text


def test_the_page_needs_no_network(tmp_path):
    text, page, _ = page_of(tmp_path, split_of(30))
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {
        "http://www.w3.org/2000/svg"
    }  # an XML namespace, which nobody fetches
    assert page.all("link") == []
    assert all("src" not in attributes for attributes in page.all("script"))
    assert re.findall(r"\[\[[A-Z]", text) == [], "a place of the template was left open"


def test_a_large_set_of_large_noisy_pictures_makes_a_small_page(tmp_path):
    """Noise is what JPEG shrinks least."""
    text, _, points = page_of(tmp_path, split_of(POINTS + 300), show=noise)
    assert len(points["places"]) == POINTS == len(set(points["names"]))
    assert len(text.encode()) < 3_000_000


def test_without_classes_the_page_does_not_mention_them(tmp_path):
    text, page, points = page_of(tmp_path, split_of(20), classes=())
    assert points["classes"] == []
    assert "kNN agreement" not in text
    assert {attributes["class"] for attributes in page.all("td")} == {"query", "same"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "pretrain"
    training = ("epochs=1", "batch_size=8", "warmup_epochs=0", "workers=0", "device=cpu", "tensorboard=false")
    assert run("pretrain", *(f"--training.{setting}" for setting in training), "--out", out) == 0
    return out


def run(*arguments):
    commands = standard_commands(DOMAIN, sample="toy")
    return main("map-toy", commands, DOMAIN.recipes, [str(part) for part in arguments])


@pytest.mark.parametrize(("files", "count"), [((), 24), (("--toys", "4", "5", "6"), 3)])
def test_the_command_writes_the_page_beside_the_features(tmp_path, encoder, capsys, files, count):
    """Of the training split, or of the files."""
    out = tmp_path / "f.npz"
    running = ("--evaluation.workers=0", "--evaluation.device=cpu", "--report")
    for _ in range(2):  # a second time it replaces its own files
        assert run("features", "--init", encoder, "--out", out, *running, *files) == 0
    points = json.loads(Page((tmp_path / "f.html").read_text()).scripts[0])
    arrays = np.load(out)
    features = arrays["features" if files else "train_features"]
    assert points["names"] == arrays["names" if files else "train_names"].tolist()
    assert np.allclose(points["places"], principal_plane(features)[0], atol=1e-4)
    assert points["classes"] == ([] if files else ["low", "middle", "high"])
    assert f"map and neighbours of {count} toys -> {tmp_path}/f.html" in capsys.readouterr().out


def test_features_where_the_page_goes_are_refused_before_the_work(tmp_path, encoder, capsys):
    assert run("features", "--init", encoder, "--out", tmp_path / "f.html", "--report") == 2
    assert "f.html is where the page goes; give --out another name, such as x.npz" in capsys.readouterr().err
