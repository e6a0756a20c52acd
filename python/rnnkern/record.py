# SPDX-License-Identifier: Apache-2.0
"""What every record of measurements says of where its numbers come from, and its file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rnnkern import __version__, _core, get_num_threads, info

_PACKAGES = ("numpy", "torch", "onnxruntime", "openvino", "jax")
_CPUINFO = Path("/proc/cpuinfo")


def facts() -> dict[str, Any]:
    """The date, the build, the processor and its cores, the threads in use, all versions.

    "build" has the commit that was built (with "-dirty" where there were changes beside it), the
    compiler and its flags. Where a fact cannot be known it is an empty string.
    """
    processor = dict(_processor())
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "build": build(),
        "processor": processor.get("model name", platform.processor()),
        "processor id": " ".join(
            f"{name} {processor.get(field, '?')}"
            for name, field in (("family", "cpu family"), ("model", "model"), ("step", "stepping"))
        ),
        "cores": os.cpu_count() or 1,
        "isa": info()["instruction set"],
        "threads": get_num_threads(),
        "versions": {
            "rnnkern": __version__,
            **{name: version(name) for name in _PACKAGES if find_spec(name)},
        },
    }


def write(path: Path, parts: Mapping[str, Any], *, indent: int | None = 1) -> None:
    """A record's file: the facts, those of ``parts`` where it has its own, and then the parts."""
    whole = {"facts": facts(), **parts}
    path.write_text(json.dumps(whole, indent=indent) + "\n", encoding="utf-8")


def build() -> dict[str, str]:
    """What CMake left beside the extension: the commit, the compiler, flags, instruction sets."""
    facts: dict[str, str] = json.loads(
        Path(_core.__file__).with_name("build.json").read_text(encoding="utf-8")
    )
    return facts


def _processor() -> Iterator[tuple[str, str]]:
    """Names and values of the first processor's lines in /proc/cpuinfo."""
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text(encoding="utf-8").split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            yield name.strip(), value.strip()
