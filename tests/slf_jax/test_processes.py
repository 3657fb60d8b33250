"""Two real processes train together over loopback, as several hosts do."""

import signal
import socket

import numpy as np
import pytest
from tiny import lines, start_training, wait_for_checkpoint, weights

# A process that reads a slow disk: it looks for checkpoints long after the other one could have made their folder.
SLOW = """
import time
from slf_common import cli
from slf_jax import train
look = train._begun_with
train._begun_with = lambda workdir: (time.sleep(3), look(workdir))[1]
cli.run(train.main)
"""


def start_two(config, *overrides, second=("-m", "slf_jax.train")):
    """Two processes of two devices each; `second`: what Python runs in the second one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = ("--config.distributed=true", f"--config.coordinator={address}", "--config.num_processes=2", *overrides)
    ids = [f"--config.process_id={i}" for i in range(2)]
    return [
        start_training(config, *together, ids[0], devices=2),
        start_training(config, *together, ids[1], devices=2, program=second),
    ]


def assert_same_numbers(config, run):
    """Both runs ended at step 40 with the same weights and losses, to float tolerance."""
    (last, found), (_, expected) = weights(config), weights(run)
    assert last == 40
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
    mine, theirs = ([line["loss"] for line in lines(which) if "loss" in line][:40] for which in (config, run))
    np.testing.assert_allclose(mine, theirs, rtol=1e-3)


@pytest.fixture(scope="module")
def story(fresh_config, run):
    """A run of two processes of which one is killed, both are started again, one is asked to stop; and one that goes
    on alone with another number of devices: the config, and how each part ended."""
    config = fresh_config("together")
    config.update(stage="base", compilation_cache=run.compilation_cache)
    told = {}
    two = start_two(config)
    wait_for_checkpoint(config, 8, two[0])
    two[1].kill()
    told["survivor"] = two[0].communicate(timeout=400)[0], two[0].returncode
    two[1].communicate()
    two = start_two(config)
    wait_for_checkpoint(config, 16, two[0])
    two[1].send_signal(signal.SIGTERM)  # either may be asked
    told["stopped"] = [(process.communicate(timeout=400)[0], process.returncode) for process in two]
    told["step"] = weights(config)[0]
    alone = start_training(config, devices=4)
    told["alone"] = alone.communicate(timeout=400)[0], alone.returncode
    return config, told


def test_the_death_of_one_ends_the_other_with_a_clear_message(story):
    output, status = story[1]["survivor"]
    assert status not in (0, None)
    # Ours where a collective fails, JAX's where this process was waiting elsewhere.
    assert "error: another process of this run ended" in output or "another task died" in output, output


def test_asking_one_to_stop_stops_both_at_the_same_step_saved(story):
    (first, status), (second, other_status) = story[1]["stopped"]
    assert status == other_status == 0, first + second
    assert "To go on:" in first and "To go on:" not in second
    assert 16 <= story[1]["step"] < 40


def test_only_the_main_process_tells(story):
    (first, _), (second, _) = story[1]["stopped"]
    assert "4 x cpu by shard_map, 2 process(es)" in first and "x cpu" not in second
    steps = [line["step"] for line in lines(story[0]) if "loss" in line]
    assert steps == list(range(1, 41))


def test_one_process_goes_on_to_the_same_numbers(story, run):
    config, told = story
    assert told["alone"][1] == 0, told["alone"][0]
    assert_same_numbers(config, run)


@pytest.fixture(scope="module")
def by_pmap(fresh_config, run):
    """A run of two processes by pmap that is asked to stop, then started again: the config, and how each part ended."""
    config = fresh_config("pmap")
    config.update(stage="base", parallel="pmap", compilation_cache=run.compilation_cache)
    two = start_two(config, second=("-c", SLOW))
    wait_for_checkpoint(config, 8, two[0], seconds=300)
    two[0].send_signal(signal.SIGTERM)
    parts = [[(process.communicate(timeout=500)[0], process.returncode) for process in two]]
    step = weights(config)[0]
    two = start_two(config)
    parts.append([(process.communicate(timeout=500)[0], process.returncode) for process in two])
    return config, parts, step


def test_pmap_over_two_processes_stops_resumes_and_ends_with_shard_maps_numbers(by_pmap, run):
    """Two processes of two devices each train by pmap as one does by shard_map, also across a restart (fault 2)."""
    config, parts, step = by_pmap
    for output, status in (ended for part in parts for ended in part):
        assert status == 0, output
    assert "4 x cpu by pmap, 2 process(es)" in parts[0][0][0] and 8 <= step < 40
    assert_same_numbers(config, run)


def test_processes_that_do_not_find_each_other_say_so(fresh_config):
    config = fresh_config("lonely")
    process = start_training(config, "--config.distributed=true")
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 2
    assert output.startswith("error: config.distributed=true: these processes do not find each other")
    process = start_training(config, "--config.distributed=true", "--config.coordinator=127.0.0.1:1")
    assert "config.process_id=-1" in process.communicate(timeout=400)[0] and process.returncode == 2
