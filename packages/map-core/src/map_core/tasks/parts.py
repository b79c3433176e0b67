"""Results of many samples, written in parts by any number of processes; a killed command resumes from them."""

import contextlib
import hashlib
import json
import re
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
from map_core.paths import is_device
from map_core.reading import content_of, read_small, sha256
from map_core.runs.checkpoint import REMOVING, remove
from map_core.runs.files import UNFINISHED, is_full, replacing, save_json
from map_core.runs.lock import RunLock
from map_core.runs.notes import note
from map_core.runs.summary import to_serializable
from map_core.tasks.evaluation import EvaluationConfig, results_in_order
from map_core.tasks.weights import read_description, weights_file
from map_core.training.processes import Peers, join_peers
from map_core.training.task import MapStyleDataset

MANIFEST = "manifest.json"
LASTING = ".parts"  # ending of a folder whose parts outlive the command
# files of a pass; .nfs stands for files that are removed while they are open on a network file system
FILES_OF_A_PASS = re.compile(
    rf"{re.escape(MANIFEST)}|[0-9]{{8,}}\.npz|values\.npy|labels\.npy|\.nfs.*|{re.escape(UNFINISHED)}.*"
)
PARTS = 256  # of a pass, approximately, so that every process has some
MOST_ROWS = 8192  # of a part, which is held in memory
FILE_SETTINGS = ("labels", "statistics")  # settings that name a file: its content counts
IRRELEVANT_SETTINGS = ("out", "top", "neighbors", "report", "workers", "progress")  # these change no part


@dataclass
class ResultsInParts:
    """Passes of a function over samples, each with a folder of parts.

    Attributes:
        folder: Holds the folders of all passes.
        peers: The processes that share the work.
        job: Checksum of everything that the results depend on.
        computed: Samples, summed over passes, whose results were not left by an earlier, unfinished command.
        passes: The folders of the passes so far.
    """

    folder: Path
    peers: Peers
    job: str
    computed: int = 0
    passes: list[Path] = field(default_factory=list)

    def collector(self, name: str) -> Callable[..., tuple[Tensor, Tensor]]:
        """:func:`~map_core.tasks.evaluation.collect` in parts, which go under ``name``."""
        return partial(self._collect, name)

    def writing_result(self) -> contextlib.AbstractContextManager[None]:
        """Wrap the block that writes the final result: a disk error then says that the parts are kept."""
        return reporting_disk_errors(self.folder)

    def clear(self, *, all_of_them: bool) -> None:
        """Remove all passes, also of earlier commands; or, in a sole process, only those without a finished part."""
        if self.peers.rank:
            return
        for folder in list(self.folder.glob("[!.]*_[0-9]*")):
            # a fault here must neither fail a command whose result is complete nor hide an earlier one
            with contextlib.suppress(OSError):
                is_empty = {file.name for file in folder.iterdir()} <= {MANIFEST}
                if is_pass(folder) and (all_of_them or (self.peers.count == 1 and is_empty)):
                    remove(folder)
        for trash in self.folder.glob(f"{REMOVING}*"):
            shutil.rmtree(trash, ignore_errors=True)

    def _collect(
        self,
        name: str,
        function: Callable[[Tensor], Tensor],
        samples: MapStyleDataset,
        config: EvaluationConfig,
        device: torch.device,
        *,
        seed: int = 0,
        pass_number: int = 0,
        **options: Any,
    ) -> tuple[Float[Tensor, "n f"], Int[Tensor, " n"]]:
        """Values and labels of all samples on the main process, of none on the others.

        A part holds whole batches, which are therefore the same for any number of processes.

        Raises:
            UserError: a disk error; finished parts stay.
        """
        folder = self.folder / f"{name}_{pass_number:05}"
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
        missing = self.peers.on_main(partial(begin, folder, manifest, parts))
        self.computed += sum(len(parts[part]) for part in missing)
        assigned = missing[self.peers.rank :: self.peers.count]
        results = results_in_order(
            function,
            samples,
            config,
            device,
            indices=[index for part in assigned for index in parts[part]],
            seed=seed,
            pass_number=pass_number,
            **options,
        )
        for part in assigned:
            write_part(folder, part, *next_rows(results, len(parts[part])))
        self.peers.barrier()
        shape = self.peers.on_main(partial(merge, folder, len(parts)))
        if self.peers.rank:
            return torch.empty(0, *shape[1:]), torch.empty(0, dtype=torch.long)
        # copy on write: pages are read from the file on demand, and never written back
        merged = (np.load(folder / name, mmap_mode="c") for name in ("values.npy", "labels.npy"))
        values, labels = (torch.from_numpy(array) for array in merged)
        return values, labels


@contextlib.contextmanager
def results_in_parts(out: Path, config: Any) -> Iterator[ResultsInParts]:
    """Work in parts beside ``out``, which are removed at the end of the block that writes ``out``.

    Args:
        out: The result: a file, or a folder, inside which the parts lie.
        config: The command's configuration: ``init``, ``data``, ``evaluation`` and the like; parts with other settings
            are replaced.

    Raises:
        UserError: another command works there, or a disk error.
    """
    peers = join_peers()
    to_device = is_device(out)  # such as /dev/stdout, beside which no folder can be
    folder = Path(peers.on_main(lambda: tempfile.mkdtemp() if to_device else str(parts_folder(out))))
    job = peers.on_main(
        lambda: checksum([job_of(config), sha256(weights_file(config.init)), read_description(config.init)])
    )
    parts, finished = ResultsInParts(folder, peers, job), False
    try:
        with RunLock(folder) as lock:
            peers.on_main(lock.acquire)
            try:
                yield parts
                finished = True
            finally:
                parts.clear(all_of_them=finished)
    finally:
        if peers.rank == 0:
            if to_device:
                shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.rmdir()  # if nothing was begun


def parts_folder(out: Path) -> Path:
    """The folder of a result's parts until it is finished: beside it, or in a result that is a folder already."""
    beside = out.with_name(f"{out.name}{LASTING}")
    return out / f"unfinished{LASTING}" if out.is_dir() and not beside.is_dir() else beside


def job_of(config: Any) -> Any:
    """The settings of a command that its results depend on."""

    def relevant(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: resolve(key, entry) for key, entry in value.items() if key not in IRRELEVANT_SETTINGS}

    def resolve(key: str, entry: Any) -> Any:
        return content_of(entry) if key in FILE_SETTINGS and isinstance(entry, str) else relevant(entry)

    return relevant(to_serializable(config))


def checksum(value: Any) -> str:
    """SHA-256 of a value that JSON can represent."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def rows_of_a_part(samples: int, batch_size: int) -> int:
    """Samples per part: whole batches, at most ``MOST_ROWS`` unless one batch is larger, in about ``PARTS`` parts."""
    batches = -(-samples // batch_size)
    return batch_size * max(1, min(batches // PARTS, MOST_ROWS // batch_size))


def has_content(file: Path, text: str) -> bool:
    """Whether a file has exactly this content."""
    try:
        return read_small(file) == text.encode()
    except OSError:
        return False


def begin(folder: Path, manifest: Mapping[str, Any], parts: Sequence[range]) -> list[int]:
    """Make the folder of a pass, or reuse that of an unfinished command; return the parts that are missing.

    Raises:
        UserError: a disk error, or the folder holds other files.
    """
    manifest_file = folder / MANIFEST
    if folder.exists() and not is_pass(folder):
        raise UserError(f"{folder} holds files that are not parts of results; choose another --out")
    with reporting_disk_errors(folder.parent):
        if not has_content(manifest_file, json.dumps(manifest, indent=2) + "\n"):
            if manifest_file.is_file():
                note(f"{folder} holds parts of other settings, weights or samples: they are replaced")
            remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_json(manifest_file, dict(manifest))
    missing = [part for part, rows in enumerate(parts) if not is_intact(part_file(folder, part))]
    if len(missing) < len(parts):
        note(f"{folder.name}: {len(parts) - len(missing)} of {len(parts)} parts are there already")
    return missing


def is_pass(folder: Path) -> bool:
    """Whether a folder is that of a pass, or what a kill left of one that was being begun or removed."""
    return (folder / MANIFEST).is_file() or (
        folder.is_dir() and all(FILES_OF_A_PASS.fullmatch(path.name) for path in folder.iterdir())
    )


def part_file(folder: Path, part: int) -> Path:
    """The file of a part, by its number."""
    return folder / f"{part:08}.npz"


def is_intact(path: Path) -> bool:
    """Whether a part exists, has both arrays and matches their checksums, which NPZ files carry."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.namelist() == ["values.npy", "labels.npy"] and file.testzip() is None
    except Exception:  # missing, or damaged, which raises whatever its reader stumbles on
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
    """Write a part, which is then whole or not there.

    Raises:
        UserError: a disk error.
    """
    with (
        reporting_disk_errors(folder.parent),
        replacing(part_file(folder, part)) as partial_file,
        partial_file.open("wb") as file,
    ):
        np.savez(file, values=values, labels=labels)


def merge(folder: Path, parts: int) -> tuple[int, ...]:
    """Concatenate the parts into ``values.npy`` and ``labels.npy``, with one part in memory at a time.

    Returns:
        The shape of all values.

    Raises:
        UserError: a disk error.
    """
    labels, shape, dtype = [], (0,), np.dtype(np.float32)
    for part in range(parts):
        with np.load(part_file(folder, part)) as file:
            labels.append(file["labels"])
    count = sum(len(chunk) for chunk in labels)
    with (
        reporting_disk_errors(folder.parent),
        replacing(folder / "values.npy") as unfinished,
        unfinished.open("wb") as out,
    ):
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
    with (
        reporting_disk_errors(folder.parent),
        replacing(folder / "labels.npy") as unfinished,
        unfinished.open("wb") as out,
    ):
        np.save(out, np.concatenate(labels))
    return shape


@contextlib.contextmanager
def reporting_disk_errors(folder: Path) -> Iterator[None]:
    """Say of a disk that is full or fails whether the finished parts in ``folder`` are kept.

    Raises:
        UserError: the disk is full or fails.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of the output is gone: not the disk's fault
        raise
    except OSError as error:
        fault = "the disk is full" if is_full(error) else "cannot write results"
        if folder.suffix == LASTING:
            cure = (
                f"the parts that were finished are kept in {folder}: check that disk, then give the same command "
                "again, which goes on from them"
            )
        else:
            cure = "parts are kept only beside a file: check that disk, then start anew"
        raise UserError(f"{fault} ({error}); {cure}") from error
