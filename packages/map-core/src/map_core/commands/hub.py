"""The command ``push-to-hub``: a card's folder on the Hub."""

from dataclasses import dataclass

from map_core.runs.notes import tell
from map_core.tasks.hub import push_to_hub


@dataclass
class PushConfig:
    """Upload of a folder that the command card wrote, and of nothing else in it.

    Args:
        folder: The folder.
        repo: Repository on the Hub, USER/NAME, made if it is not there.
        private: A repository that is made is seen by its owners alone.
        revision: Branch; the main one when not given.
        message: Of the commit.
    """

    folder: str
    repo: str
    private: bool = False
    revision: str | None = None
    message: str = "Add model"


def push(config: PushConfig) -> None:
    """Upload the folder and say where it is; the token is that of HF_TOKEN or of ``hf auth login``."""
    where = push_to_hub(
        config.folder, config.repo, private=config.private, revision=config.revision, message=config.message
    )
    tell(f"-> {where}")
