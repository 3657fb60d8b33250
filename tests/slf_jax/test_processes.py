"""Two processes train together over loopback, as several hosts do."""

import signal
import socket

import numpy as np
import pytest
from tiny import lines, start_training, wait_for_checkpoint, weights

from slf_jax.training.loop import train

pytestmark = pytest.mark.slow

# A process with a slow disk: it looks for checkpoints long after the other process may have created their folder.
SLOW = """
import time
from slf_common import cli
from slf_jax import train
from slf_jax.training import run
original = run._first_meta
run._first_meta = lambda workdir: (time.sleep(3), original(workdir))[1]
cli.run(train.main)
"""

QUIET = [f"--config.train.{what}_every=0" for what in ("validate", "preview", "checkpoint")]  # for a run's last part


def make_config(fresh_config, name, every=0):
    """The config of a run of the base stage that validates and draws a preview every so many steps."""
    config = fresh_config(name)
    config.stage = "base"
    config.train.update(validate_every=every, preview_every=every)
    return config


@pytest.fixture(scope="module")
def reference(fresh_config):
    """The config of an uninterrupted run on one device."""
    config = make_config(fresh_config, "reference")
    assert train(config)
    return config


def start_two(config, *overrides, second=("-m", "slf_jax.train")):
    """Starts two processes with two devices each; `second` is the program of the second one, as Python's arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = ("--config.distributed=true", f"--config.coordinator={address}", "--config.num_processes=2", *overrides)
    ids = [f"--config.process_id={i}" for i in range(2)]
    return [
        start_training(config, *together, ids[0], devices=2),
        start_training(config, *together, ids[1], devices=2, program=second),
    ]


def assert_same_results(config, reference):
    """Both runs ended at step 40 with the same weights and losses, within float tolerance."""
    (last, found), (_, expected) = weights(config), weights(reference)
    assert last == 40
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
    losses, expected_losses = (
        [line["loss"] for line in lines(which) if "loss" in line][:40] for which in (config, reference)
    )
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-3)


@pytest.fixture(scope="module")
def interrupted(fresh_config):
    """The config of an interrupted run, and the output and exit status of each of its parts.

    It starts on two processes. One is killed; both are restarted; one gets SIGTERM; one process with another number of
    devices finishes the run.
    """
    config = make_config(fresh_config, "together", every=16)  # in the second part
    results = {}
    two = start_two(config)
    wait_for_checkpoint(config, 8, two[0])
    two[1].kill()
    results["survivor"] = two[0].communicate(timeout=400)[0], two[0].returncode
    two[1].communicate()
    two = start_two(config)
    wait_for_checkpoint(config, 16, two[0])
    two[1].send_signal(signal.SIGTERM)  # either process may get the signal
    results["stopped"] = [(process.communicate(timeout=400)[0], process.returncode) for process in two]
    results["step"] = weights(config)[0]
    alone = start_training(config, *QUIET, devices=4)
    results["alone"] = alone.communicate(timeout=400)[0], alone.returncode
    return config, results


def test_killing_one_process_ends_the_other_with_a_clear_message(interrupted):
    output, status = interrupted[1]["survivor"]
    assert status not in (0, None)
    # Our message if a collective fails, JAX's if this process was waiting elsewhere.
    assert "error: another process of this run ended" in output or "another task died" in output, output


def test_stopping_one_process_stops_both_at_the_same_saved_step(interrupted):
    (first, status), (second, other_status) = interrupted[1]["stopped"]
    assert status == other_status == 0, first + second
    assert "To resume:" in first and "To resume:" not in second
    assert 16 <= interrupted[1]["step"] < 40


def test_only_the_main_process_logs(interrupted):
    (first, _), (second, _) = interrupted[1]["stopped"]
    assert "4 x cpu by shard_map, 2 process(es)" in first and "x cpu" not in second
    steps = [line["step"] for line in lines(interrupted[0]) if "loss" in line]
    assert steps == list(range(1, 41))


def test_one_process_resumes_to_the_same_results(interrupted, reference):
    config, results = interrupted
    assert results["alone"][1] == 0, results["alone"][0]
    assert_same_results(config, reference)


@pytest.fixture(scope="module")
def by_pmap(fresh_config):
    """A pmap run on two processes, stopped and resumed: its config, the results of both parts, the step in between."""
    config = make_config(fresh_config, "pmap")  # `interrupted` has validation and previews
    config.parallel = "pmap"
    two = start_two(config, second=("-c", SLOW))
    wait_for_checkpoint(config, 8, two[0])
    two[0].send_signal(signal.SIGTERM)
    parts = [[(process.communicate(timeout=500)[0], process.returncode) for process in two]]
    step = weights(config)[0]
    two = start_two(config, *QUIET)
    parts.append([(process.communicate(timeout=500)[0], process.returncode) for process in two])
    return config, parts, step


def test_pmap_on_two_processes_resumes_and_equals_shard_map(by_pmap, reference):
    """Two processes with two devices each equal one process with shard_map, also across a restart (fault 2)."""
    config, parts, step = by_pmap
    for output, status in (ended for part in parts for ended in part):
        assert status == 0, output
    assert "4 x cpu by pmap, 2 process(es)" in parts[0][0][0] and 8 <= step < 40
    assert_same_results(config, reference)


def test_processes_that_cannot_connect_report_it(fresh_config):
    config = fresh_config("unconnected")
    process = start_training(config, "--config.distributed=true")
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 2
    assert output.startswith("error: config.distributed=true: the processes cannot connect to each other")
    process = start_training(config, "--config.distributed=true", "--config.coordinator=127.0.0.1:1")
    assert "config.process_id=-1" in process.communicate(timeout=400)[0] and process.returncode == 2
