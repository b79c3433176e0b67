"""Facts that the operating system reports about the processor."""

import functools
import platform
from pathlib import Path

NUMBERS = {"family": "cpu family", "model": "model"}  # field names in /proc/cpuinfo
BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")  # x86, x86, ARM


@functools.cache
def _fields() -> dict[str, str]:
    """The fields of the first core in /proc/cpuinfo; empty on systems other than Linux."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        return {}
    return fields


def cpu_name() -> str:
    """The processor's name with family and model, as the names of virtual ones say little."""
    fields = _fields()
    if not fields:
        return platform.processor() or platform.machine()
    name = fields.get("model name") or platform.machine()
    numbers = [f"{key} {fields[field]}" for key, field in NUMBERS.items() if field in fields]
    return ", ".join([name, *numbers])


def bf16_units() -> tuple[str, ...] | None:
    """Instruction sets that multiply bfloat16, by Linux's names; None where the system does not report them."""
    fields = _fields()
    flags = fields.get("flags") or fields.get("Features")
    return None if flags is None else tuple(name for name in BF16_UNITS if name in flags.split())


def describe_bf16() -> str:
    """Say whether bf16 trains faster here than float32; measured with avx512_bf16 (docs/performance.md)."""
    units = bf16_units()
    if units is None:
        return "this system does not tell whether the processor has units for it"
    if not units:
        return "the processor has no units for it: float32 trains faster"
    verb = "trains" if "avx512_bf16" in units else "may train"
    return f"{', '.join(units)}: --training.precision bf16 {verb} faster than float32"
