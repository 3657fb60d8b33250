"""Times the page: start, first and second answer, ten queued requests, memory after fifty.

    python benchmarks/page.py --workdir runs/demo

A request has a voice of 6 s and a thumbnail, 3 scales and 1 sample, and comes through the HTTP API. Prints a JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gradio_client import Client, handle_file

from app.examples import Example, write_examples

SCALES, QUEUED, REQUESTS = "0,2,4", 10, 50


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--workdir", required=True, help="run directory, exported folder, or hf://owner/name")
    args = arguments.parse_args()
    began = time.perf_counter()
    command = [sys.executable, "-m", "app.serve", "--workdir", args.workdir, "--port", "0", "--queue", str(QUEUED)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        try:
            lines = iter(server.stdout or ())
            address = next(line.split()[0] for line in lines if line.startswith("http"))
            measured = {"start": time.perf_counter() - began}
            person = write_examples(Path(folder), 1)[0]
            measured |= measure(Client(address, verbose=False, download_files=folder), person, server.pid)
        finally:
            server.terminate()
    print(json.dumps({key: round(value, 2) for key, value in measured.items()}))


def measure(client: Client, person: Example, process: int) -> dict[str, float]:
    """Seconds of requests, and the server's resident memory in MB."""

    def submit(seed: int):
        voice, thumbnail = handle_file(str(person.voice)), handle_file(str(person.picture))
        return client.submit(voice, thumbnail, scales=SCALES, seed=seed, consent=True, api_name="/draw")

    def seconds(count: int, first_seed: int) -> float:
        began = time.perf_counter()
        for job in [submit(first_seed + i) for i in range(count)]:
            job.result()
        return time.perf_counter() - began

    found = {"first": seconds(1, 0), "second": seconds(1, 1), f"{QUEUED} queued": seconds(QUEUED, 2)}
    before = resident(process)
    for seed in range(REQUESTS):
        submit(seed).result()
    return found | {f"MB before {REQUESTS} more": before, "MB after": resident(process)}


def resident(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


if __name__ == "__main__":
    main()
