"""CURVE key pairs, and the files that keep them."""

import os
from pathlib import Path

import zmq
from msgspec import Struct

from dmi_protocol.identity import PublicKey

_SECRET_MODE = 0o600


class KeyFileError(Exception):
    """A key file that cannot be used. The text names it, and says what to do."""


class KeyPair(Struct, frozen=True):
    """A CURVE key pair, both halves in z85."""

    public: PublicKey
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"

    @classmethod
    def make(cls) -> "KeyPair":
        """A fresh pair."""
        public, secret = zmq.curve_keypair()
        return cls(PublicKey(public.decode("ascii")), secret.decode("ascii"))

    @classmethod
    def of_secret(cls, secret: str) -> "KeyPair":
        """The pair whose secret half is ``secret``; ``KeyFileError`` when it is none."""
        try:
            public = zmq.curve_public(secret.encode("ascii"))
        except (ValueError, zmq.ZMQError) as error:
            raise KeyFileError(f"no CURVE secret key: {error}") from error
        return cls(PublicKey(public.decode("ascii")), secret)

    def save(self, path: Path) -> None:
        """Write the secret half, readable by its owner only from the first byte on, and sync it.

        Raises ``FileExistsError`` rather than overwrite a key.
        """
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _SECRET_MODE)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{self.secret}\n")
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, path: Path) -> "KeyPair":
        """The pair that ``save`` wrote. Raises ``KeyFileError`` when others may read it, or it holds no key; ``OSError`` when it
        cannot be read."""
        try:
            mode = path.stat().st_mode & 0o777
            secret = path.read_text("ascii").strip()
        except UnicodeDecodeError as error:
            raise KeyFileError(f"the key {path} is damaged: {error}; restore it, or make a new node") from error
        if mode & 0o077:
            raise KeyFileError(
                f"the key {path} has mode {mode:04o}, so others may know it: chmod 600 it, or make a new node"
            )
        try:
            return cls.of_secret(secret)
        except KeyFileError as error:
            raise KeyFileError(f"the key {path} is damaged: {error}; restore it, or make a new node") from error
