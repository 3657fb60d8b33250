"""Opens the page in which a browser draws faces: `python -m app.serve --workdir runs/demo`.

The page works without internet and sends nothing to another server. Only this machine can reach it unless --host says
otherwise. Recordings, pictures and faces are deleted after use; nothing remains when the command ends.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from app import arguments, texts
from app.limits import Limits
from app.system import FaceSystem
from app.visits import Visits
from slf_common import cli
from slf_common.environment import environment
from slf_common.errors import UserError

LOCAL = "127.0.0.1"


@contextlib.contextmanager
def serve(system: FaceSystem, limits: Limits, host: str = LOCAL, port: int = 7860, about: str = "") -> Iterator[str]:
    """Serves the page until the context ends; yields its address. Port 0: any free one.

    Raises `UserError` if gradio is missing or the port is in use.
    """
    gr = _import_gradio()
    from app import page
    from app.examples import write_examples
    from app.handlers import Handlers

    with (
        tempfile.TemporaryDirectory(prefix="slf-page-") as name,
        environment(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=f"{name}/uploads"),
    ):
        root = Path(name).resolve()
        with Visits(root, limits) as visits:
            examples = write_examples(root / "examples")
            # Served from where they are: Gradio would keep copies.
            gr.set_static_paths([visits.results, root / "examples"])
            blocks = page.build(Handlers(system, visits, limits, examples), about)
            try:
                yield _launch(gr, blocks, limits, host, port)
            finally:
                blocks.close(verbose=False)


def _launch(gr: Any, blocks: Any, limits: Limits, host: str, port: int) -> str:
    from app import page

    _, address, _ = blocks.launch(
        server_name=host, server_port=find_port(host, port), prevent_thread_lock=True, quiet=True, share=False,
        max_file_size=limits.upload_mb * 10**6, run_history=False, enable_monitoring=False, ssr_mode=False,
        pwa=False, mcp_server=False, footer_links=["api"], css_paths=page.STYLE, theme=page.theme(),
        state_session_capacity=1000, inbrowser=False,
    )  # fmt: skip
    return address


def find_port(host: str, port: int) -> int:
    """The port, or a free one if it is 0. Raises `UserError` if this machine cannot listen there."""
    try:
        with socket.create_server((host, port)) as probe:
            return probe.getsockname()[1]
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}; give another") from None


def _import_gradio() -> Any:
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise UserError(f'the page needs the package {error.name}: pip install -e ".[app]"') from None
    return gradio


def warm_up(system: FaceSystem) -> None:
    """Loads the extractors and compiles the sampler, so that the first visitor does not wait for it."""
    import numpy as np

    from app.examples import write_examples

    with tempfile.TemporaryDirectory() as folder:
        examples = write_examples(Path(folder), 1) if system.voice_inputs else []
        voice = system.listen(examples[0].voice) if examples else None
    system.draw(voice=voice, thumbnail=np.zeros((128, 128, 3), np.uint8))


def _parser() -> argparse.ArgumentParser:
    default = Limits()
    parser = cli.parser(
        "app.serve",
        "Opens a page that draws faces from a voice, a thumbnail, age, gender and ethnicity.",
        [
            "python -m app.serve",
            "python -m app.serve --workdir runs/mine",
            "python -m app.serve --workdir hf://owner/name --host 0.0.0.0 --port 8000",
        ],
    )
    arguments.add_arguments(parser)
    parser.add_argument("--host", default=LOCAL, help=f"address to bind to (default: {LOCAL}, this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port (default: 7860; 0: any free one)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--no-mark", action="store_true", help="draw no corner mark; the metadata stays")
    parser.add_argument(
        "--queue", type=int, default=default.queue, help=f"requests that may wait (default: {default.queue})"
    )
    parser.add_argument(
        "--upload-mb", type=int, default=default.upload_mb, help=f"largest upload in MB (default: {default.upload_mb})"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args, overrides = cli.parse_overrides(_parser(), argv)
    if not 0 <= args.port < 2**16:
        raise UserError(f"--port {args.port}: give a number from 0 to 65535")
    for name in ("queue", "upload_mb"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: give at least 1")
    _import_gradio()
    find_port(args.host, args.port)  # before the slow part
    limits = dataclasses.replace(Limits(), mark=not args.no_mark, queue=args.queue, upload_mb=args.upload_mb)
    system = arguments.load_system(args, overrides)
    print("warming up: loading extractors, compiling the sampler", flush=True)
    warm_up(system)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    with serve(system, limits, args.host, args.port, texts.about(args.workdir)) as address:
        print(f"{address} (Ctrl-C stops it)", flush=True)
        if args.host != LOCAL:
            print("note: everyone who reaches this host can use the page; browsers allow microphones over https only")
        if args.open:
            _open_browser(address)
        stopped.wait()


def _open_browser(address: str) -> None:
    import webbrowser

    webbrowser.open(address)


if __name__ == "__main__":
    cli.run(main)
