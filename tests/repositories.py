"""Real repositories for off-site copies: a folder, and an S3 endpoint on loopback."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

PASSWORD = "correct horse battery staple"
_KEY, _SECRET = "test-access-key", "test-secret-key"
_RCLONE = Path(sys.executable).with_name("rclone")


def configure(
    config_dir: Path, address: str | Path, env: Mapping[str, str] | None = None, options: str = ""
) -> None:
    """Write a general configuration file that names the repository, and the password's file."""
    config_dir.mkdir(mode=0o700, exist_ok=True)
    password = config_dir / "password"
    password.write_text(f"{PASSWORD}\n")
    password.chmod(0o600)
    text = (
        f"OFFSITE = {str(address)!r}\nOFFSITE_PASSWORD_FILE = 'password'\nOFFSITE_ENV = {dict(env or {})!r}\n"
    )
    (config_dir / "config.py").write_text(text + options)


def restic(address: str | Path, *args: str, env: Mapping[str, str] | None = None) -> str:
    """What restic itself prints of the repository."""
    settings = {"RESTIC_REPOSITORY": str(address), "RESTIC_PASSWORD": PASSWORD, **(env or {})}
    return subprocess.check_output(["restic", *args], env={**os.environ, **settings}, text=True)


class S3:
    """An S3 endpoint that keeps its buckets in a folder. It can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"s3:http://127.0.0.1:{self._port}/bucket/server"
        self.env = {"AWS_ACCESS_KEY_ID": _KEY, "AWS_SECRET_ACCESS_KEY": _SECRET}

    def start(self) -> None:
        argv = [str(_RCLONE), "serve", "s3", "--addr", f"127.0.0.1:{self._port}"]
        argv += ["--auth-key", f"{_KEY},{_SECRET}", str(self._folder)]
        self._process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError("rclone serve s3 does not answer")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
