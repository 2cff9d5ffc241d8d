"""Real repositories for off-site copies: folders, and endpoints of S3 and REST on loopback."""

import base64
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pytest

from .destinations import add_tarball

PASSWORD = "correct horse battery staple"
_KEY, _SECRET = "test-access-key", "test-secret-key"
S3_KEYS = {"AWS_ACCESS_KEY_ID": _KEY, "AWS_SECRET_ACCESS_KEY": _SECRET}
_RCLONE = Path(sys.executable).with_name("rclone")


def configure(
    config_dir: Path, address: str | Path | list[str], env: Mapping[str, str] | None = None, options: str = ""
) -> None:
    """Write a general configuration file that names the repositories, and the password's file."""
    config_dir.mkdir(mode=0o700, exist_ok=True)
    password = config_dir / "password"
    password.write_text(f"{PASSWORD}\n")
    password.chmod(0o600)
    repositories = address if isinstance(address, list) else str(address)
    text = f"OFFSITE = {repositories!r}\nOFFSITE_PASSWORD_FILE = 'password'\n"
    text += f"OFFSITE_ENV = {dict(env or {})!r}\n"
    (config_dir / "config.py").write_text(text + options)


def restic(address: str | Path, *args: str, env: Mapping[str, str] | None = None) -> str:
    """Run restic itself on the repository. Returns what it prints."""
    settings = {"RESTIC_REPOSITORY": str(address), "RESTIC_PASSWORD": PASSWORD, **(env or {})}
    return subprocess.check_output(["restic", *args], env={**os.environ, **settings}, text=True)


class Endpoint:
    """A server of rclone's that keeps what it is given in a folder. It can be stopped and started again."""

    def __init__(self, kind: str, folder: Path, *options: str) -> None:
        self._argv = [str(_RCLONE), "serve", kind, *options, str(folder)]
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = [*self._argv, "--addr", f"127.0.0.1:{self.port}"]
        self._process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError("rclone does not answer")

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


class S3(Endpoint):
    """An S3 endpoint that keeps its buckets in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__("s3", folder, "--auth-key", f"{_KEY},{_SECRET}")
        self.address = f"s3:http://127.0.0.1:{self.port}/bucket/server"
        self.env = S3_KEYS


class Rest(Endpoint):
    """A REST server that keeps a repository in a folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__("restic", folder, *options)
        self.address = f"rest:http://127.0.0.1:{self.port}/"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _aes(cipher: str, key: bytes, data: bytes, *options: str) -> bytes:
    argv = ["openssl", "enc", f"-aes-{cipher}", "-nopad", "-K", key.hex(), *options]
    return subprocess.run(argv, input=data, stdout=subprocess.PIPE, check=True).stdout


def _poly1305(message: bytes, r: bytes, s: bytes) -> bytes:
    factor = int.from_bytes(r, "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for start in range(0, len(message), 16):
        block = int.from_bytes(message[start : start + 16] + b"\1", "little")
        total = (total + block) * factor % (2**130 - 5)
    return ((total + int.from_bytes(s, "little")) % 2**128).to_bytes(16, "little")


def _hasten(repository: Path) -> None:
    """Replace the key by one that opens at once, and not after half a second of scrypt for each restic.

    restic has no option for that. On two cores the off-site tests take 128 seconds with it, and 288 without.
    """
    master = restic(repository, "cat", "masterkey").encode()
    salt, nonce = os.urandom(64), os.urandom(16)
    key = hashlib.scrypt(PASSWORD.encode(), salt=salt, n=2, r=8, p=1, dklen=64)
    sealed = _aes("256-ctr", key[:32], master, "-iv", nonce.hex())
    mac = _poly1305(sealed, key[48:], _aes("128-ecb", key[32:48], nonce))
    about = {"created": "2025-01-01T00:00:00Z", "username": "root", "hostname": "here", "kdf": "scrypt"}
    secrets = {
        "salt": base64.b64encode(salt).decode(),
        "data": base64.b64encode(nonce + sealed + mac).decode(),
    }
    content = json.dumps({**about, "N": 2, "r": 8, "p": 1, **secrets}).encode()
    for old in (repository / "keys").iterdir():
        old.unlink()
    (repository / "keys" / hashlib.sha256(content).hexdigest()).write_bytes(content)


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty repository."""
    path = tmp_path_factory.mktemp("blank") / "repository"
    restic(path, "init")
    if shutil.which("openssl"):
        _hasten(path)
    return path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give restic a cache of its own: another test has a copy of the same repository."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def stored(dst: Path) -> Path:
    """A destination with a tarball in it."""
    add_tarball(dst, "2025-01-01T00:00:00.tbz", {"file": "content"})
    return dst


@pytest.fixture
def repository(blank: Path, tmp_path: Path, config_dir: Path) -> Path:
    """A repository in a folder; the configuration names it."""
    path = tmp_path / "repository"
    shutil.copytree(blank, path)
    configure(config_dir, path)
    return path


def snapshots(
    address: str | Path, env: dict[str, str] | None = None, *, of_configurations: bool = False
) -> list[dict[str, Any]]:
    """Return the repository's snapshots, oldest first: those of configuration directories, or the others."""
    found = json.loads(restic(address, "snapshots", "--no-lock", "--json", env=env)) or []
    chosen = [
        one
        for one in found
        if any(tag.startswith("config:") for tag in one.get("tags", ())) == of_configurations
    ]
    return sorted(chosen, key=lambda snapshot: str(snapshot["time"]))
