"""What ``info`` reports about the processor."""

from pathlib import Path

import pytest

from map_core import cpu
from map_core.commands.environment import describe_environment

X86 = "processor : 0\ncpu family : 26\nmodel : 17\nmodel name : A processor\nflags : fpu avx512f {}\n"
ARM = "processor : 0\nFeatures : fp asimd {}\n"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpu, "Path", lambda name: file if name == "/proc/cpuinfo" else Path(name))
    cpu._fields.cache_clear()
    yield file
    cpu._fields.cache_clear()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            X86.format("avx512_bf16 amx_bf16"),
            "avx512_bf16, amx_bf16: --training.precision bf16 trains faster",
        ),
        (X86.format("avx2"), "the processor has no units for it: float32 trains faster"),
        (X86.format("avx512_bf16x"), "the processor has no units for it: float32 trains faster"),
        (ARM.format("bf16"), "bf16: --training.precision bf16 may train faster"),
        (None, "this system does not tell"),
    ],
)
def test_info_says_whether_bf16_pays(text: str | None, expected: str, cpuinfo: Path) -> None:
    if text is not None:
        cpuinfo.write_text(text)
    assert f"bf16 on it     {expected}" in describe_environment()


def test_a_processor_is_identified_by_name_family_and_model(cpuinfo: Path) -> None:
    cpuinfo.write_text(X86.format(""))
    assert cpu.cpu_name() == "A processor, family 26, model 17"
