"""Layout strings: which kinds of layers an encoder stacks, one letter each."""

import re

from map_core.errors import UserError


def expand_layout(layout: str) -> str:
    """Expand a layout with counts to one letter per layer.

    >>> expand_layout("(MMT)x2"), expand_layout("Mx2,Tx1")
    ('MMTMMT', 'MMT')

    Raises:
        UserError: the layout does not parse.
    """
    letters = ""
    for part in layout.replace(" ", "").split(","):
        match = re.fullmatch(
            r"(?:\((?P<group>[A-Z]+)\)|(?P<single>[A-Z])|(?P<plain>[A-Z]+))(?:x(?P<count>[1-9]\d*))?", part
        )
        if match is None or (match["plain"] and match["count"]):
            raise UserError(
                f"layout {layout!r} does not parse at {part!r}; write letters with counts, for example "
                "'(MMMT)x8', 'Mx24,Tx8' or 'MMMT'"
            )
        letters += (match["group"] or match["single"] or match["plain"]) * int(match["count"] or 1)
    return letters
