"""What every benchmark writes beside its numbers."""

import json
import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from noisylightning.atomic import written_whole


def processor() -> str:
    """Name the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Describe versions and hardware."""
    packages = ("noisylightning", "torch", "torchvision", "pytorch-lightning", "torchmetrics", "numpy")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "settings": {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "MKL_", "MALLOC_"))},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def mean_and_deviation(values: list[float], digits: int) -> str:
    """Write the mean and, of more than one value, the standard deviation; "-" where there is none."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a result file whole."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    print(f"wrote {path}")


def write_table(path: Path, header: list[str], rows: list[list[str]]) -> None:
    """Write a Markdown table whole, and show it."""
    lines = [header, ["---"] * len(header), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    with written_whole(path) as temporary:
        temporary.write_text(text)
    print(text)
