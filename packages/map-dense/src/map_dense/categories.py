"""The categories of a COCO file against the classes of a config."""

from collections.abc import Sequence

from map_core.errors import UserError, near_matches


def check_categories(names: Sequence[str], classes: Sequence[str], source: str) -> None:
    """Refuse a file whose categories are not in the order of the config's classes.

    mmdet labels categories by their order in the file and names them by that of ``classes``. A file may have further
    categories, which are not learned.

    Args:
        names: The categories of the file, in its order.
        classes: ``metainfo.classes`` of the data set.
        source: What the message calls the file.

    Raises:
        UserError: a class that the file does not have, or has twice or in another order.
    """
    for name in classes:
        if name not in names:
            raise UserError(
                f"{source} has no category {name!r}, a class of the config; {near_matches(name, names)} Set "
                "metainfo.classes to the file's spelling"
            )
    learned = [name for name in names if name in classes]
    if learned != list(classes):
        place = next(i for i, name in enumerate(learned) if i >= len(classes) or name != classes[i])
        theirs = classes[place] if place < len(classes) else "nothing more"
        raise UserError(
            f"{source} lists its categories in another order than the config's classes: number {place + 1} is "
            f"{learned[place]!r} in the file and {theirs!r} in the config; set metainfo.classes to "
            f"({', '.join(learned)})"
        )
