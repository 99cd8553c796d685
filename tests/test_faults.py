"""Fits killed with SIGKILL and resumed; benchmarks/faults.py does it for many kills and writes the table."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "faults.py"


def test_killed_fits_end_where_they_would_have_ended(tmp_path):
    command = [sys.executable, str(SCRIPT), "--first=4", "--kills=5", f"--output={tmp_path / 'faults.json'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    runs = json.loads((tmp_path / "faults.json").read_text())["runs"]
    assert len(runs) == 5
    assert {run["processes"] for run in runs} == {1, 2}
    assert all(run["survived"] for run in runs)
    assert sum(run["killed"] for run in runs) >= 4
