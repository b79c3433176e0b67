"""Results of many samples, written in parts by any number of processes: a command that was killed goes on from them."""

import contextlib
import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from map_core.errors import UserError
from map_core.reading import read_small
from map_core.runs.checkpoint import content_of, sha256
from map_core.runs.files import is_device, is_full, replacing, save_json
from map_core.runs.lock import RunLock
from map_core.runs.notes import note
from map_core.runs.summary import to_plain
from map_core.tasks.evaluation import EvaluationConfig, results_in_order
from map_core.tasks.weights import weights_file
from map_core.training.processes import Peers, join_peers
from map_core.training.task import MapStyleDataset

MANIFEST = "manifest.json"
PARTS = 256  # of a pass, about, so that every process has some
MOST_ROWS = 8192  # of a part, which is held in memory
SAID_BY_FILES = ("labels", "statistics")  # settings that name a file: what counts is what is in it
ELSEWHERE = ("out", "top", "neighbors", "report", "workers", "progress")  # settings that change no part


@dataclass
class ResultsInParts:
    """Passes of a function over samples, each in a folder of parts.

    Attributes:
        folder: Of all passes.
        peers: The processes that share the work.
        job: What the results depend on, as a checksum.
        computed: Samples whose results no earlier, unfinished command left, of every pass.
        passes: The folders of the passes so far.
    """

    folder: Path
    peers: Peers
    job: str
    computed: int = 0
    passes: list[Path] = field(default_factory=list)

    def of(self, name: str) -> Callable[..., tuple[Tensor, Tensor]]:
        """:func:`~map_core.tasks.evaluation.collect` in parts, which go under ``name``."""
        return partial(self._collect, name)

    def finishing(self) -> contextlib.AbstractContextManager[None]:
        """The block that writes the result itself: of a disk that refuses it says that the parts are kept."""
        return writing(self.folder)

    def clear(self, *, all_of_them: bool) -> None:
        """Remove the folders of the passes: all of them, or, alone at work, those in which nothing was finished."""
        for folder in self.passes if self.peers.rank == 0 else ():
            if all_of_them:
                shutil.rmtree(folder)
            elif self.peers.count == 1 and [file.name for file in folder.glob("*")] == [MANIFEST]:
                shutil.rmtree(folder, ignore_errors=True)  # no reason to hide what went wrong before

    def _collect(
        self,
        name: str,
        function: Callable[[Tensor], Tensor],
        samples: MapStyleDataset,
        config: EvaluationConfig,
        device: torch.device,
        *,
        seed: int = 0,
        draw: int = 0,
        **options: Any,
    ) -> tuple[Float[Tensor, "n f"], Int[Tensor, " n"]]:
        """Values and labels of all samples on the first process, of none on the others.

        A part holds whole batches, which are therefore the same on any number of processes.

        Raises:
            UserError: the disk refused; finished parts stay.
        """
        folder = self.folder / f"{name}_{draw:05}"
        self.passes.append(folder)
        rows, count = rows_of_a_part(len(samples), config.batch_size), len(samples)
        parts = [range(start, min(start + rows, count)) for start in range(0, count, rows)]
        names = getattr(samples, "names", None)
        manifest = {
            "job": self.job,
            "samples": count,
            "names": checksum(list(names) if names is not None else None),
            "rows": rows,
            "seed": seed,
        }
        missing = self.peers.agree(partial(begin, folder, manifest, parts))
        self.computed += sum(len(parts[part]) for part in missing)
        mine = missing[self.peers.rank :: self.peers.count]
        results = results_in_order(
            function,
            samples,
            config,
            device,
            indices=[index for part in mine for index in parts[part]],
            seed=seed,
            draw=draw,
            **options,
        )
        for part in mine:
            write_part(folder, part, *next_rows(results, len(parts[part])))
        self.peers.meet()
        shape = self.peers.agree(partial(merge, folder, len(parts)))
        if self.peers.rank:
            return torch.empty(0, *shape[1:]), torch.empty(0, dtype=torch.long)
        # copy on write: pages are read from the file when they are needed, and never written back
        merged = (np.load(folder / name, mmap_mode="c") for name in ("values.npy", "labels.npy"))
        values, labels = (torch.from_numpy(array) for array in merged)
        return values, labels


@contextlib.contextmanager
def results_in_parts(out: Path, config: Any) -> Iterator[ResultsInParts]:
    """Work in parts beside ``out``, which go when the block, which writes ``out``, is through.

    Args:
        out: The result: a file, or a folder, inside which the parts lie.
        config: Of the command: ``init``, ``data``, ``evaluation`` and the like; parts of other settings start anew.

    Raises:
        UserError: another command works there, or the disk refuses.
    """
    peers = join_peers()
    passing = is_device(out)  # such as /dev/stdout, beside which nothing can lie
    folder = Path(peers.agree(lambda: tempfile.mkdtemp() if passing else str(parts_folder(out))))
    job = peers.agree(lambda: checksum([job_of(config), sha256(weights_file(config.init))]))
    parts, finished = ResultsInParts(folder, peers, job), False
    try:
        with RunLock(folder) as lock:
            peers.agree(lock.acquire)
            try:
                yield parts
                finished = True
            finally:
                parts.clear(all_of_them=finished)
    finally:
        if peers.rank == 0:
            if passing:
                shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.rmdir()  # where nothing was begun


def parts_folder(out: Path) -> Path:
    """Where the parts of a result lie until it is finished."""
    return out / "unfinished.parts" if out.is_dir() else out.with_name(f"{out.name}.parts")


def job_of(config: Any) -> Any:
    """The settings of a command that its results depend on."""

    def kept(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: said(key, entry) for key, entry in value.items() if key not in ELSEWHERE}

    def said(key: str, entry: Any) -> Any:
        return content_of(entry) if key in SAID_BY_FILES and isinstance(entry, str) else kept(entry)

    return kept(to_plain(config))


def checksum(value: Any) -> str:
    """SHA-256 of what JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def rows_of_a_part(samples: int, batch_size: int) -> int:
    """Samples of a part: whole batches, at most ``MOST_ROWS`` unless one batch is larger, in about ``PARTS`` parts."""
    batches = -(-samples // batch_size)
    return batch_size * max(1, min(batches // PARTS, MOST_ROWS // batch_size))


def holds(file: Path, text: str) -> bool:
    """Whether a file has this content, and no other."""
    try:
        return read_small(file) == text.encode()
    except OSError:
        return False


def begin(folder: Path, manifest: Mapping[str, Any], parts: Sequence[range]) -> list[int]:
    """Make the folder of a pass, or take up the one that an unfinished command left; say which parts are missing.

    Raises:
        UserError: the disk refused, or the folder is somebody else's.
    """
    written = folder / MANIFEST
    if folder.exists() and not written.is_file() and any(folder.iterdir()):
        raise UserError(f"{folder} holds files that are no parts of results; choose another --out")
    if written.is_file() and not holds(written, json.dumps(manifest, indent=2) + "\n"):
        note(f"{folder} holds parts of other settings, weights or samples: they are replaced")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder.parent):
        save_json(written, dict(manifest))
    missing = [part for part, rows in enumerate(parts) if not is_whole(part_file(folder, part))]
    if len(missing) < len(parts):
        note(f"{folder.name}: {len(parts) - len(missing)} of {len(parts)} parts are there already")
    return missing


def part_file(folder: Path, part: int) -> Path:
    """The file of a part, by its number."""
    return folder / f"{part:08}.npz"


def is_whole(path: Path) -> bool:
    """Whether a part is there and its checksums, which NPZ files carry, hold."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # it is not there, or damaged, which raises whatever its reader stumbles on
        return False


def next_rows(results: Iterator[tuple[Tensor, Tensor]], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The next ``rows`` values and labels of batches that end where the rows do."""
    values, labels = [], []
    while rows:
        value, label = next(results)
        values.append(value)
        labels.append(label)
        rows -= len(value)
    return torch.cat(values).numpy(), torch.cat(labels).numpy()


def write_part(folder: Path, part: int, values: np.ndarray, labels: np.ndarray) -> None:
    """Write a part, which is whole or not there.

    Raises:
        UserError: the disk refused.
    """
    with (
        writing(folder.parent),
        replacing(part_file(folder, part)) as partial_file,
        partial_file.open("wb") as file,
    ):
        np.savez(file, values=values, labels=labels)


def merge(folder: Path, parts: int) -> tuple[int, ...]:
    """Write the parts one after the other as ``values.npy`` and ``labels.npy``, one at a time in memory.

    Returns:
        The shape of all values.

    Raises:
        UserError: the disk refused.
    """
    labels, shape, dtype = [], (0,), np.dtype(np.float32)
    for part in range(parts):
        with np.load(part_file(folder, part)) as file:
            labels.append(file["labels"])
    count = sum(len(some) for some in labels)
    with writing(folder.parent), replacing(folder / "values.npy") as unfinished, unfinished.open("wb") as out:
        for part in range(parts):
            with np.load(part_file(folder, part)) as file:
                values = file["values"]
            if part == 0:
                shape, dtype = (count, *values.shape[1:]), values.dtype
                header = {
                    "descr": np.lib.format.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": shape,
                }
                np.lib.format.write_array_header_1_0(out, header)
            out.write(np.ascontiguousarray(values).data)
    with writing(folder.parent), replacing(folder / "labels.npy") as unfinished, unfinished.open("wb") as out:
        np.save(out, np.concatenate(labels))
    return shape


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say of a disk that is full or refuses that the finished parts in ``folder`` are kept.

    Raises:
        UserError: it did.
    """
    try:
        yield
    except BrokenPipeError:  # whoever read the output stopped reading: no disk's fault
        raise
    except OSError as error:
        what = "the disk is full" if is_full(error) else "cannot write results"
        raise UserError(
            f"{what} ({error}); the parts that were finished are kept in {folder}: see to that disk, then give the "
            "same command again, which goes on from them"
        ) from error
