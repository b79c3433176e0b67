"""Models on the Hugging Face Hub: a card's folder goes up; weights come down, or out of the cache."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import HFValidationError
from torch import nn

from map_core.errors import UserError
from map_core.paths import expand_user
from map_core.runs.files import require_reachable
from map_core.shipped import DESCRIPTION
from map_core.tasks.model_card import CARD, TIMM_CONFIG
from map_core.tasks.trained_models import Models
from map_core.tasks.weights import MODEL_FILE, weights_file

PREFIX = "hf-hub:"  # as timm has it
SUFFIXES = (".safetensors", ".pth", ".pt", ".json")  # of files; no repository has a name like that
SHARED = (MODEL_FILE, DESCRIPTION, TIMM_CONFIG, CARD)  # the only files of a folder that are ever uploaded
CURES = {
    400: f"it does not take the front matter of {CARD}: write the folder with the command card",
    401: "it asks who you are: log in with `hf auth login` or set HF_TOKEN, and check the name",
    403: "it refuses this token, which may not do that: take one that may write there",
    404: "it has no such repository or revision that you may see: check the name, or log in if it is private",
    429: "it has had too many requests: try again later",
}


def push_to_hub(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Add model",
    token: str | None = None,
) -> str:
    """Upload a folder that ``card`` wrote and return its URL; the repository is created if need be.

    Args:
        folder: Holds the weights and the card; nothing but the files of a card is uploaded.
        repo: ``USER/NAME``.
        private: Let only the owners of a newly created repository see it.
        revision: Branch; the main one when None.
        message: Commit message.
        token: Access token of an account that may write there; that of ``HF_TOKEN`` or ``hf auth login`` when None. It
            is sent to the Hub only, and written to no file.

    Raises:
        UserError: a folder without card or weights, or that may not be read; a Hub that refuses or cannot be reached.
    """
    directory = expand_user(folder)
    require_reachable(directory / CARD)
    missing = [name for name in (MODEL_FILE, DESCRIPTION, CARD) if not (directory / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} has no {', '.join(missing)}: write the folder with the command card, and look at it"
        )
    files = [name for name in SHARED if (directory / name).is_file()]
    api = HfApi(token=token)
    with reporting_hub_errors(f"{repo} was not uploaded"):
        url = api.create_repo(repo, private=private, exist_ok=True)
        repo = url.repo_id  # with the user, even if given without
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(directory / name)) for name in files
        ]
        commit = api.create_commit(repo, operations, commit_message=message, revision=revision)
    return str(commit.commit_url)


def from_pretrained(
    models: Models,
    name: str | Path,
    *,
    cache_dir: str | Path | None = None,
    token: str | None = None,
) -> nn.Module:
    """A shared model, in evaluation mode; see :meth:`~map_core.tasks.trained_models.Models.load`.

    Args:
        models: The domain's.
        name: A folder or weights file, or ``USER/NAME`` on the Hub, optionally with ``hf-hub:`` before and
            ``@REVISION`` after it.
        cache_dir: Folder for downloads; that of huggingface_hub when None. A model in it needs no network.
        token: Access token for a private repository; that of ``HF_TOKEN`` or ``hf auth login`` when None.

    Raises:
        UserError: no such model, or no model of ours; a Hub that refuses, or is out of reach while the cache is empty.
    """
    local = expand_user(name)
    require_reachable(local)
    if local.exists():
        return models.load(local)
    on_the_hub = str(name).startswith(PREFIX)
    if not on_the_hub and (local.is_absolute() or str(name).startswith(".") or local.suffix in SUFFIXES):
        raise UserError(f"{name}: there is no such file or folder")
    if not on_the_hub and "/" not in str(name):
        raise UserError(
            f"{name}: there is no such file or folder, and a model on the Hub is called USER/NAME"
        )
    return models.load(download(str(name), cache_dir=cache_dir, token=token))


def download(name: str, *, cache_dir: str | Path | None = None, token: str | None = None) -> Path:
    """The folder of a shared model's weights and description in the cache; see :func:`from_pretrained`.

    Raises:
        UserError: there is none, or the Hub refuses.
    """
    repo, _, revision = name.removeprefix(PREFIX).partition("@")
    not_local = "" if name.startswith(PREFIX) else "is not a file or folder here, and "
    with reporting_hub_errors(f"{name} {not_local}was not loaded"):
        # the weights first: their revision tells which description belongs to them
        weights = Path(
            hf_hub_download(repo, MODEL_FILE, revision=revision or None, cache_dir=cache_dir, token=token)
        )
        hf_hub_download(repo, DESCRIPTION, revision=weights.parent.name, cache_dir=cache_dir, token=token)
    return weights_file(weights.parent).parent


@contextlib.contextmanager
def reporting_hub_errors(failure: str) -> Iterator[None]:
    """Turn an error of the Hub, or on the way to it, into one sentence.

    Args:
        failure: What did not happen.

    Raises:
        UserError: there was such an error.
    """
    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{failure}: a model on the Hub is called USER/NAME or USER/NAME@REVISION") from error
    except Exception as error:  # the client raises whatever the HTTP library of its version does
        if not is_hub_error(error):
            raise
        raise UserError(f"{failure}: {cure(error)}") from error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_hub_error(error: BaseException) -> bool:
    """Whether the client or its HTTP library raised an error, rather than a fault of ours."""
    libraries = ("huggingface_hub", "httpx", "httpx2", "requests", "hf_xet")
    return any(type(cause).__module__.partition(".")[0] in libraries for cause in causes(error))


def cure(error: BaseException) -> str:
    """What an error of the Hub means, and what helps."""
    statuses = [getattr(getattr(cause, "response", None), "status_code", None) for cause in causes(error)]
    status = next((status for status in statuses if status is not None), None)
    if status is None:
        return "the Hub cannot be reached, nor is it in the cache: check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
    if type(error).__name__ in ("EntryNotFoundError", "RemoteEntryNotFoundError"):
        return (
            f"that repository has no {MODEL_FILE} with {DESCRIPTION}: it was not written by the command card"
        )
    return f"the Hub answers {status}: {CURES.get(status, 'try again later')}"
