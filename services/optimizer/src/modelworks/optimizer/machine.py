"""What the CPU can do, as it says itself: the verdict on int8 depends on it, so it is read and never assumed."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from modelworks.optimizer.measurement import Machine

_CPUINFO = Path("/proc/cpuinfo")

# Only what decides how fast matrix products of some type are; the full list has over a hundred names.
_FLAGS = (
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip

_INT8_DOT = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")


def read_machine(cpuinfo: str | None = None, *, architecture: str | None = None) -> Machine:
    """The machine this process runs on.

    Args:
        cpuinfo: text of `/proc/cpuinfo`; None reads it. Without one (not Linux) the flags are empty, which
            reads as "unknown", not as "absent": see `Machine.flags_known`.
    """
    if cpuinfo is None:
        cpuinfo = _CPUINFO.read_text("utf-8", "replace") if _CPUINFO.exists() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.M)
    # x86 says `flags`, ARM says `Features`. The first core speaks for all.
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.M)
    present = set(listed.group(1).split()) if listed else set()
    return Machine(
        cpu=(named.group(1).strip() if named else platform.processor() or "unknown")[:200],
        architecture=architecture or platform.machine(),
        cores=os.cpu_count() or 1,
        flags=tuple(flag for flag in _FLAGS if flag in present),
        flags_known=listed is not None,
        int8_dot=next((flag for flag in _INT8_DOT if flag in present), None),
    )
