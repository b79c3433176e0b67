"""Stores that shards are fetched from: HTTP servers, and what fsspec reaches (s3, gs, hf, ...)."""

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
NUMBER = "[0-9]{1,18}"  # of bytes
BUSY = (408, 425, 429)  # answers of a server that may be asked again, beside those from 500 on
REFUSED = (401, 403)
GONE = (404, 410)
PAST_THE_END = 416


class LostError(Exception):
    """A store did not answer, or stopped in the middle; asking again may help."""


@dataclass(frozen=True)
class Transfer:
    """What a store sends.

    Attributes:
        start: Of what comes, in the file: 0 of a store that knows no ranges.
        size: Of the whole file, where the store says it.
        blocks: The bytes; raises :class:`LostError`.
    """

    start: int
    size: int | None
    blocks: Generator[bytes, None, None]


@runtime_checkable
class Store(Protocol):
    """Files by name."""

    def address(self, name: str) -> str:
        """What messages call a file."""

    def open(self, name: str, start: int) -> Transfer:
        """Ask for a file from byte ``start`` on.

        Raises:
            LostError: no answer.
            UserError: there is no such file, or it may not be read.
        """


def is_address(root: str) -> bool:
    """Whether a data root is the address of a store, not a folder."""
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
            if error.code == PAST_THE_END and start:
                return self.open(name, 0)  # what is here so far was of another file
            raise _answered(error.code, error.reason, self.address(name)) from error
        except (http.client.InvalidURL, ValueError) as error:
            raise UserError(f"{address} is no address ({error}): correct data.root") from error
        except (OSError, http.client.HTTPException) as error:
            raise LostError(_reason(error)) from error
        length = response.headers.get("Content-Length", "")
        size = int(length) if re.fullmatch(NUMBER, length) else None
        if response.status != http.client.PARTIAL_CONTENT:
            return Transfer(0, size, _blocks(response.read1, response.close))
        sent = re.fullmatch(
            rf"bytes ({NUMBER})-{NUMBER}/({NUMBER}|\*)", response.headers.get("Content-Range", "")
        )
        if sent is None or int(sent[1]) != start:
            raise UserError(
                f"{self.address(name)} is sent from another byte than was asked for: use another server"
            )
        return Transfer(
            start, None if sent[2] == "*" else int(sent[2]), _blocks(response.read1, response.close)
        )


@dataclass(frozen=True)
class FsspecStore:
    """Files below an address that fsspec knows; who uses it installs what it needs besides (s3fs, gcsfs, ...)."""

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
        except Exception as error:  # each of its backends has its own
            raise LostError(_reason(error)) from error
        return Transfer(file.tell(), size, _blocks(file.read, file.close))


def _filesystem(root: str) -> tuple[Any, str]:
    """What fsspec reads an address with; it keeps one for each process itself."""
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
    """What comes, as it comes: nothing that was received is lost with the connection."""
    try:
        while block := read(BLOCK):
            yield block
    except Exception as error:  # of whatever library reads
        raise LostError(_reason(error)) from error
    finally:
        close()


def _answered(code: int, reason: object, address: str) -> Exception:
    """What an answer other than a file means."""
    if code in BUSY or code >= http.client.INTERNAL_SERVER_ERROR:
        return LostError(f"it answers {code} {reason}")
    if code in GONE:
        return UserError(_missing(address))
    if code in REFUSED:
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
