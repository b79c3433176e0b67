"""Randomness is keyed, not streamed: every draw is a function of a seed and of what it is drawn for.

So two processes of eight see what one of sixteen sees, and a resumed run redraws exactly its own numbers.
"""

import hashlib

import torch


def derive_seed(*keys: int | str) -> int:
    """Hash ``keys`` (a seed, then what the draw is for) to a 63-bit seed, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def keyed_generator(*keys: int | str) -> torch.Generator:
    """Return a CPU generator seeded by :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*keys))
