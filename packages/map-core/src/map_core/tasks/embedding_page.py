"""A page that shows features: a map of some samples, and the nearest neighbours of a dozen queries."""

import base64
import html
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image

from map_core.errors import visible
from map_core.reading import read_small
from map_core.runs.files import save_text
from map_core.runs.notes import tell
from map_core.tasks.features import SplitFeatures, nearest

POINTS = 600  # of the map; about 2 MB with their pictures
POINT_PIXELS = 48
QUERIES = 12
NEIGHBORS = 8
QUERY_PIXELS = 72
TEMPLATE = "embedding_page.html"
MARK = b'aria-label="map of the features"'  # of every page, and of no other

Picture = Callable[[int], UInt8[np.ndarray, "h w 3"]]  # of a sample, by its index


@dataclass(frozen=True)
class Neighbors:
    """Nearest neighbours of some samples among all others, by cosine similarity.

    Attributes:
        queries: Indices of the samples.
        index: Their neighbours, the nearest first.
        similarity: Cosine similarity to each of them.
    """

    queries: Int[np.ndarray, " q"]
    index: Int[np.ndarray, "q k"]
    similarity: Float[np.ndarray, "q k"]


def page_file(out: Path) -> Path:
    """Where the page of features is written: beside them."""
    return out.with_suffix(".html")


def is_page(file: Path) -> bool:
    """Whether a file is a page of features."""
    try:
        return MARK in read_small(file)
    except OSError:
        return False


def write_page(
    out: Path, title: str, split: SplitFeatures, classes: Sequence[str], picture: Picture, *, sample: str
) -> None:
    """Write a self-contained HTML file.

    Args:
        out: File to write.
        title: Names the source of the features.
        split: Features, labels (without meaning where there are no classes) and names.
        classes: In the order of the labels; empty without labels.
        picture: Makes a picture of a sample.
        sample: The word for one sample, such as "image".
    """
    indices = map_samples(len(split.features))
    places, shares = principal_plane(split.features[indices])
    labels = split.labels[indices] if classes else np.zeros(len(indices), dtype=np.int64)
    neighbors = neighbors_among(split.features, indices, NEIGHBORS)
    queries = spread_over_classes(labels, QUERIES)
    points = {
        "places": places.round(4).tolist(),
        "labels": labels.tolist(),
        "classes": [visible(name) for name in classes],
        "names": [visible(split.names[i]) for i in indices],
        "pictures": [jpeg(picture(int(i)), POINT_PIXELS) for i in indices],
    }
    values = {
        "TITLE": html.escape(visible(title)),
        "SUMMARY": html.escape(
            f"{len(split.features)} {sample}s, {split.features.shape[1]} features each; the map shows {len(indices)} "
            f"of them on their first two principal components (PCA), which hold {shares[0]:.0%} and {shares[1]:.0%} "
            "of the variance."
        ),
        "AGREEMENT": html.escape(agreement(neighbors, split.labels) if classes else ""),
        "ROWS": "\n".join(row(int(query), neighbors, split, classes, picture) for query in queries),
        # no text inside a script element may look like its end
        "POINTS": json.dumps(points).replace("<", "\\u003c"),
    }
    page = files("map_core.tasks").joinpath(TEMPLATE).read_text(encoding="utf-8")
    page = re.sub(r"\[\[([A-Z]+)\]\]", lambda match: values[match[1]], page)
    save_text(out, page)
    tell(f"map and neighbours of {len(indices)} {sample}s -> {out}")


def map_samples(count: int) -> Int[np.ndarray, " p"]:
    """Indices of the samples on the map: all, or ``POINTS`` of them at random, the same each time."""
    if count <= POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, POINTS, replace=False))


def principal_plane(
    features: Float[np.ndarray, "p f"],
) -> tuple[Float[np.ndarray, "p 2"], Float[np.ndarray, " 2"]]:
    """The first two principal components of features, scaled into [-1, 1], and their shares of the variance."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    left, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    places, shares = np.zeros((len(features), 2)), np.zeros(2)
    for axis in range(min(2, len(sizes))):
        # a fixed sign gives the same picture on every machine
        sign = np.sign(directions[axis][np.abs(directions[axis]).argmax()])
        places[:, axis] = sign * left[:, axis] * sizes[axis]
        shares[axis] = sizes[axis] ** 2 / max((sizes**2).sum(), 1e-30)
    return places / max(np.abs(places).max(), 1e-30), shares


def neighbors_among(
    features: Float[np.ndarray, "n f"], queries: Int[np.ndarray, " q"], count: int
) -> Neighbors:
    """The ``count`` nearest neighbours of some samples, the queries, among all others."""
    count = min(count, len(features) - 1)
    directions = F.normalize(torch.from_numpy(features[queries]), dim=1)
    similarity, index = nearest(directions, features, count + 1)
    itself = index == torch.from_numpy(queries).unsqueeze(1)
    itself[:, -1] |= ~itself.any(dim=1)  # one of many duplicates, all as near as the sample itself
    others = ~itself
    shape = (len(queries), count)
    return Neighbors(queries, index[others].reshape(shape).numpy(), similarity[others].reshape(shape).numpy())


def spread_over_classes(labels: Int[np.ndarray, " p"], count: int) -> Int[np.ndarray, " q"]:
    """Positions of ``count`` labels: one of each class, then a second of each, and so on."""
    turn = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
    return np.lexsort((labels, turn))[:count]


def agreement(neighbors: Neighbors, labels: Int[np.ndarray, " n"]) -> str:
    """How often neighbours are of the same class, and how often that would happen by chance."""
    query_labels = labels[neighbors.queries]
    same = 100 * (labels[neighbors.index] == query_labels[:, None]).mean()
    shares = np.bincount(labels) / len(labels)
    chance = 100 * float(shares[query_labels].mean())
    return (
        f"kNN agreement: {same:.1f} % of the {neighbors.index.shape[1]} nearest neighbours are of the same class "
        f"({chance:.1f} % by chance)."
    )


def row(
    query: int, neighbors: Neighbors, split: SplitFeatures, classes: Sequence[str], picture: Picture
) -> str:
    """A query and its neighbours as a row of the table."""

    def cell(index: int, note: str, mark: str) -> str:
        name = html.escape(visible(split.names[index]), quote=True)
        title = html.escape(visible(classes[split.labels[index]])) if classes else ""
        source = f"data:image/jpeg;base64,{jpeg(picture(index), QUERY_PIXELS)}"
        caption = " ".join(part for part in (title, note) if part)
        return f'<td class="{mark}"><img src="{source}" alt="{name}" title="{name}"><small>{caption}</small></td>'

    index = int(neighbors.queries[query])
    cells = [cell(index, "", "query")]
    for neighbor, similarity in zip(
        neighbors.index[query].tolist(), neighbors.similarity[query], strict=True
    ):
        same = not classes or split.labels[neighbor] == split.labels[index]
        cells.append(cell(neighbor, f"{similarity:.2f}", "same" if same else "other"))
    return f"<tr>{''.join(cells)}</tr>"


def jpeg(pixels: UInt8[np.ndarray, "h w 3"], side: int) -> str:
    """A picture at most ``side`` pixels wide and high, as JPEG in base64."""
    image = Image.fromarray(pixels)
    if max(image.size) < side:  # such as digits of 8 by 8 pixels
        factor = side // max(image.size)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
