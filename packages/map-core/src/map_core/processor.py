"""What the processor says of itself."""

import functools
import platform
from pathlib import Path

NUMBERS = {"family": "cpu family", "model": "model"}  # as /proc/cpuinfo calls them
BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86, the last of ARM


@functools.cache
def _fields() -> dict[str, str]:
    """What Linux tells of the first core; nothing elsewhere."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        return {}
    return fields


def processor_name() -> str:
    """What the processor calls itself, with family and model, as names of virtual ones say little."""
    fields = _fields()
    if not fields:
        return platform.processor() or platform.machine()
    name = fields.get("model name") or platform.machine()
    numbers = [f"{key} {fields[field]}" for key, field in NUMBERS.items() if field in fields]
    return ", ".join([name, *numbers])


def bf16_units() -> tuple[str, ...] | None:
    """The instructions that multiply bfloat16, by Linux's names; None where the system does not tell."""
    fields = _fields()
    flags = fields.get("flags") or fields.get("Features")
    return None if flags is None else tuple(name for name in BF16_UNITS if name in flags.split())


def describe_bf16() -> str:
    """Whether bf16 trains faster here than float32; measured with avx512_bf16 (docs/performance.md)."""
    units = bf16_units()
    if units is None:
        return "this system does not tell whether the processor has units for it"
    if not units:
        return "the processor has no units for it: float32 trains faster"
    verb = "trains" if "avx512_bf16" in units else "may train"
    return f"{', '.join(units)}: --training.precision bf16 {verb} faster than float32"
