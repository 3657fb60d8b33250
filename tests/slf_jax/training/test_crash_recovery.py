import subprocess
import sys
from pathlib import Path

from tiny import set_stages, write_config

DRILL = Path(__file__).parents[3] / "benchmarks" / "crash_recovery.py"


def test_killed_at_random_moments_eight_devices_end_with_the_same_numbers(fresh_config, tmp_path):
    """The short form of the fault drill."""
    config = fresh_config("drill")
    set_stages(config, steps=(16, 8), batch_size=(8, 8))
    config.train.update(preview_every=1000, checkpoint_every=4)
    command = [sys.executable, DRILL, "--config", write_config(config), "--kills", "2", "--devices", "8"]
    done = subprocess.run([*command, "--out", tmp_path / "drill"], capture_output=True, text=True)
    assert done.returncode == 0 and "2 kills" in done.stdout, done.stdout + done.stderr
