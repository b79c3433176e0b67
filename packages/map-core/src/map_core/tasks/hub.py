"""Models on the Hugging Face Hub: a card's folder goes up; weights come down, or out of the cache."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import HFValidationError
from torch import nn

from map_core.errors import UserError
from map_core.paths import expanded
from map_core.shipped import DESCRIPTION
from map_core.tasks.model_card import CARD, TIMM_CONFIG
from map_core.tasks.trained_models import Models
from map_core.tasks.weights import MODEL_FILE, weights_file

PREFIX = "hf-hub:"  # as timm has it
SUFFIXES = (".safetensors", ".pth", ".pt", ".json")  # of files, which no repository is called by
SHARED = (MODEL_FILE, DESCRIPTION, TIMM_CONFIG, CARD)  # of a folder, all that is ever uploaded
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
    """Upload a folder that ``card`` wrote and return where it is to be seen; the repository is made if need be.

    Args:
        folder: Holds the weights and the card; nothing but the files of a card is uploaded.
        repo: ``USER/NAME``.
        private: Of a repository that is made: only its owners see it.
        revision: Branch; the main one when None.
        message: Of the commit.
        token: Of an account that may write there; that of ``HF_TOKEN`` or ``hf auth login`` when None. It goes to the
            Hub alone, into no file.

    Raises:
        UserError: a folder without card or weights; a Hub that refuses or cannot be reached.
    """
    place = expanded(folder)
    absent = [name for name in (MODEL_FILE, DESCRIPTION, CARD) if not (place / name).is_file()]
    if absent:
        raise UserError(
            f"{folder} has no {', '.join(absent)}: write the folder with the command card, and look at it"
        )
    files = [name for name in SHARED if (place / name).is_file()]
    api = HfApi(token=token)
    with hub_faults_told(f"{repo} was not uploaded"):
        made = api.create_repo(repo, private=private, exist_ok=True)
        repo = made.repo_id  # with the user, if it was given without
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(place / name)) for name in files
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
        models: Of the domain.
        name: A folder or weights file, or ``USER/NAME`` on the Hub, with ``hf-hub:`` before it or without, and
            ``@REVISION`` behind it or without.
        cache_dir: For downloads; that of huggingface_hub when None. What is there needs no network.
        token: For a private repository; that of ``HF_TOKEN`` or ``hf auth login`` when None.

    Raises:
        UserError: no such model, or no model of ours; a Hub that refuses, or that is away while the cache is empty.
    """
    local = expanded(name)
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
    missing = "" if name.startswith(PREFIX) else "is no file or folder here, and "
    with hub_faults_told(f"{name} {missing}was not loaded"):
        # the weights first: which revision they are of says which description is theirs
        weights = Path(
            hf_hub_download(repo, MODEL_FILE, revision=revision or None, cache_dir=cache_dir, token=token)
        )
        hf_hub_download(repo, DESCRIPTION, revision=weights.parent.name, cache_dir=cache_dir, token=token)
    return weights_file(weights.parent).parent


@contextlib.contextmanager
def hub_faults_told(what: str) -> Iterator[None]:
    """Say in one sentence what the Hub, or the way to it, has against a request.

    Args:
        what: What did not happen.
    """
    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{what}: a model on the Hub is called USER/NAME or USER/NAME@REVISION") from error
    except Exception as error:  # the client raises whatever the HTTP library of its version does
        if not comes_from_the_hub(error):
            raise
        raise UserError(f"{what}: {cure(error)}") from error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def comes_from_the_hub(error: BaseException) -> bool:
    """Whether the client or its HTTP library raised an error, rather than a fault of ours."""
    libraries = ("huggingface_hub", "httpx", "httpx2", "requests", "hf_xet")
    return any(type(one).__module__.partition(".")[0] in libraries for one in causes(error))


def cure(error: BaseException) -> str:
    """What an error of the Hub means, and what helps."""
    statuses = [getattr(getattr(one, "response", None), "status_code", None) for one in causes(error)]
    status = next((status for status in statuses if status is not None), None)
    if status is None:
        return "the Hub cannot be reached, nor is it in the cache: check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
    if type(error).__name__ in ("EntryNotFoundError", "RemoteEntryNotFoundError"):
        return (
            f"that repository has no {MODEL_FILE} with {DESCRIPTION}: it was not written by the command card"
        )
    return f"the Hub answers {status}: {CURES.get(status, 'try again later')}"
