"""Compare the categories of a COCO file with the classes of a config."""

from collections.abc import Sequence

from map_core.errors import UserError, near_matches


def check_categories(names: Sequence[str], classes: Sequence[str], source: str) -> None:
    """Refuse a file whose categories are not in the order of the config's classes.

    mmdet numbers categories by their order in the file and names them by the order of ``classes``. The file may have
    further categories, which are not learned.

    Args:
        names: The categories of the file, in order.
        classes: ``metainfo.classes`` of the data set.
        source: Name of the file in the message.

    Raises:
        UserError: a class that is missing from the file, occurs twice in the file or the config, or is in another
            order.
    """
    learned = [name for name in names if name in classes]
    if twice := [name for i, name in enumerate(learned) if name in learned[:i]]:
        raise UserError(f"{source} has category {twice[0]!r} twice; merge or rename one")
    if twice := [name for i, name in enumerate(classes) if name in classes[:i]]:
        raise UserError(
            f"metainfo.classes lists {twice[0]!r} twice, and {source} cannot tell which is meant: list each class once"
        )
    for name in classes:
        if name not in names:
            raise UserError(
                f"{source} has no category {name!r}, a class of the config ({near_matches(name, names)}): set "
                "metainfo.classes to the file's spelling"
            )
    for number, (name, expected) in enumerate(zip(learned, classes, strict=True), 1):
        if name != expected:
            raise UserError(
                f"{source} lists its categories in another order than the config's classes: number {number} is "
                f"{name!r} in the file and {expected!r} in the config; put the file's categories into the order "
                f"{tuple(classes)!r}"
            )
