"""The command ``push-to-hub``: a card's folder on the Hub."""

from dataclasses import dataclass

from map_core.runs.notes import tell
from map_core.tasks.hub import push_to_hub


@dataclass
class PushConfig:
    """Upload of the files that the command card wrote into a folder, and of no others in it.

    Args:
        folder: The folder.
        repo: Repository on the Hub, USER/NAME, created if it does not exist.
        private: Only its owners see a repository that is created.
        revision: Branch; the main one when not given.
        message: Commit message.
    """

    folder: str
    repo: str
    private: bool = False
    revision: str | None = None
    message: str = "Add model"


def push(config: PushConfig) -> None:
    """Upload the folder and print its address; the token is that of HF_TOKEN or of ``hf auth login``."""
    url = push_to_hub(
        config.folder, config.repo, private=config.private, revision=config.revision, message=config.message
    )
    tell(f"-> {url}")
