import subprocess
import sys
from pathlib import Path

import pytest
from tiny import set_stages, write_config

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "crash_recovery.py"


def test_run_killed_at_random_on_eight_devices_ends_with_identical_results(fresh_config, tmp_path):
    """A short run of benchmarks/crash_recovery.py."""
    config = fresh_config("drill")
    set_stages(config, steps=(16, 8), batch_size=(8, 8))
    config.train.update(validate_every=0, preview_every=0, checkpoint_every=4)
    command = [sys.executable, SCRIPT, "--config", write_config(config), "--kills", "2", "--devices", "8"]
    result = subprocess.run([*command, "--out", tmp_path / "drill"], capture_output=True, text=True)
    assert result.returncode == 0 and "2 kills" in result.stdout, result.stdout + result.stderr
