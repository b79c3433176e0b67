"""Stores that shards are fetched from: HTTP servers, and what fsspec supports (s3, gs, hf, ...)."""

import http.client
import importlib
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from map_core.errors import UserError

TIMEOUT = 60.0  # seconds without a byte
BLOCK = 2**20
NUMBER = "[0-9]{1,18}"  # a count of bytes
RETRY_STATUS = (408, 425, 429)  # worth another request, as are those from 500 on
FORBIDDEN_STATUS = (401, 403)
MISSING_STATUS = (404, 410)
RANGE_NOT_SATISFIABLE = 416


class TransientError(Exception):
    """A store did not answer, or stopped in the middle; trying again may help."""


@dataclass(frozen=True)
class Transfer:
    """The response of a store.

    Attributes:
        start: Offset in the file of the bytes that follow: 0 if the store does not support ranges.
        size: Size of the whole file, if the store reports it.
        blocks: The bytes; iterating raises :class:`TransientError`.
    """

    start: int
    size: int | None
    blocks: Generator[bytes, None, None]


@runtime_checkable
class Store(Protocol):
    """Files by name."""

    def address(self, name: str) -> str:
        """The address of a file, for messages."""

    def open(self, name: str, start: int) -> Transfer:
        """Request a file from byte ``start`` on.

        Raises:
            TransientError: the store does not answer.
            UserError: the file does not exist, or may not be read.
        """


def is_address(root: str) -> bool:
    """Whether a data root is the address of a store rather than a folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", root) is not None


def store_at(root: str) -> Store:
    """The store at an address such as ``https://host/shards`` or ``s3://bucket/shards``."""
    return HttpStore(root) if re.match("https?://", root, re.IGNORECASE) else FsspecStore(root)


@dataclass(frozen=True)
class HttpStore:
    """Files below an address of an HTTP server."""

    root: str

    def address(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def open(self, name: str, start: int) -> Transfer:
        address = f"{self.root.rstrip('/')}/{urllib.parse.quote(name)}"
        try:
            request = urllib.request.Request(address, headers={"Range": f"bytes={start}-"} if start else {})
            response = urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code == RANGE_NOT_SATISFIABLE and start:
                return self.open(name, 0)  # the part that is here already was of another file
            raise _status_error(error.code, error.reason, self.address(name)) from error
        except (http.client.InvalidURL, ValueError) as error:
            raise UserError(f"{address} is not a valid address ({error}): correct data.root") from error
        except (OSError, http.client.HTTPException) as error:
            raise TransientError(_reason(error)) from error
        length = response.headers.get("Content-Length", "")
        size = int(length) if re.fullmatch(NUMBER, length) else None
        if response.status != http.client.PARTIAL_CONTENT:
            return Transfer(0, size, _blocks(response.read1, response.close))
        content_range = re.fullmatch(
            rf"bytes ({NUMBER})-{NUMBER}/({NUMBER}|\*)", response.headers.get("Content-Range", "")
        )
        if content_range is None or int(content_range[1]) != start:
            raise UserError(
                f"{self.address(name)} is sent from another byte than was asked for: use another server"
            )
        total = None if content_range[2] == "*" else int(content_range[2])
        return Transfer(start, total, _blocks(response.read1, response.close))


@dataclass(frozen=True)
class FsspecStore:
    """Files below an address that fsspec supports; some need a package that users install (s3fs, gcsfs, ...)."""

    root: str

    def address(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def open(self, name: str, start: int) -> Transfer:
        filesystem, path = _filesystem(self.root)
        path = f"{path.rstrip('/')}/{name}"
        try:
            size = filesystem.size(path)
            file = filesystem.open(path, "rb")
            file.seek(start if size is None or start < size else 0)
        except FileNotFoundError as error:
            raise UserError(_missing(self.address(name))) from error
        except PermissionError as error:
            raise UserError(_forbidden(self.address(name))) from error
        except Exception as error:  # each backend has its own errors
            raise TransientError(_reason(error)) from error
        return Transfer(file.tell(), size, _blocks(file.read, file.close))


def _filesystem(root: str) -> tuple[Any, str]:
    """The filesystem and path of an address; fsspec itself caches one filesystem per process."""
    fsspec = importlib.import_module("fsspec")
    try:
        filesystem, path = fsspec.core.url_to_fs(root)
    except ImportError as error:
        raise UserError(
            f"data.root {root} needs a package that is not installed ({error}): pip install it"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"data.root {root} cannot be opened ({reason}): correct it") from error
    return filesystem, path


def _blocks(read: Callable[[int], bytes], close: Callable[[], object]) -> Generator[bytes, None, None]:
    """Yield bytes as they arrive, so that nothing received is lost with the connection."""
    try:
        while block := read(BLOCK):
            yield block
    except Exception as error:  # of whichever library reads
        raise TransientError(_reason(error)) from error
    finally:
        close()


def _status_error(code: int, reason: object, address: str) -> Exception:
    """The error that an HTTP status other than success stands for."""
    if code in RETRY_STATUS or code >= http.client.INTERNAL_SERVER_ERROR:
        return TransientError(f"it answers {code} {reason}")
    if code in MISSING_STATUS:
        return UserError(_missing(address))
    if code in FORBIDDEN_STATUS:
        return UserError(_forbidden(address))
    return UserError(f"{address} cannot be fetched (the server answers {code} {reason}): correct data.root")


def _missing(address: str) -> str:
    return f"{address} does not exist: correct data.root, or copy the set there again"


def _forbidden(address: str) -> str:
    return f"{address} may not be read: give this machine the right to, or correct data.root"


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return _reason(error.reason)
    if isinstance(error, TimeoutError):
        return f"nothing came for {TIMEOUT:g} seconds"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
