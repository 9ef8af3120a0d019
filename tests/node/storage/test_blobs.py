"""A blob is there whole, or not at all."""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dmi_node.storage.blobs import ABANDONED_S, Blobs, WrongHashError
from dmi_protocol.identity import BlobHash


def test_only_the_right_bytes_are_adopted(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    blobs, file = Blobs(tmp_path / "blobs"), tmp_path / "file"
    name = BlobHash(hashlib.sha256(b"hello").hexdigest())
    file.write_bytes(b"HELLO")
    with pytest.raises(WrongHashError):
        blobs.adopt(file, name)
    assert not blobs.has(name)
    file.write_bytes(b"hello")
    blobs.adopt(file, name)
    assert blobs.read(name, 1, 3) == (5, b"ell")
    blobs.drop(name)
    assert blobs.read(name, 0, 3) == (-1, b"")


def test_what_was_left_unfinished_is_swept(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    name = BlobHash(hashlib.sha256(b"hello").hexdigest())
    (tmp_path / name).write_bytes(b"hello")
    abandoned = blobs.incoming(name)
    abandoned.write_bytes(b"hel")
    os.utime(abandoned, (time.time() - ABANDONED_S - 60,) * 2)
    on_its_way = blobs.incoming(BlobHash("0" * 64))
    on_its_way.write_bytes(b"hel")
    (tmp_path / ".upload-x").write_bytes(b"hel")
    blobs.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, on_its_way.name])


@pytest.mark.parametrize(
    "name", ["", "../node.key_secret", "/etc/passwd", "0" * 63, "0" * 65, "G" * 64, "0" * 64 + "\n"]
)
def test_a_name_that_is_no_hash_leads_nowhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "node.key_secret").write_text("secret")
    blobs, file = Blobs(tmp_path / "blobs"), tmp_path / "file"
    file.write_bytes(b"hello")
    assert not blobs.has(BlobHash(name))
    blobs.drop(BlobHash(name))
    for use in (blobs.path, blobs.incoming, lambda blob: blobs.read(blob, 0, 9), lambda blob: blobs.adopt(file, blob)):
        with pytest.raises(WrongHashError):
            use(BlobHash(name))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["blobs", "file", "node.key_secret"]


def test_catalogues_are_kept_up_to_a_bound_and_from_any_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmi_node.storage.blobs._CATALOGUES_BYTES", 10 * (256 + 32))
    blobs, names = Blobs(tmp_path), []
    for number in range(40):
        data = str(number).encode()
        names.append(BlobHash(hashlib.sha256(data).hexdigest()))
        (tmp_path / names[-1]).write_bytes(data)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(blobs.catalogue, names * 5))
    assert all(
        catalogue is not None and catalogue.digests.hex() == name
        for catalogue, name in zip(found, names * 5, strict=True)
    )
    assert len(blobs._catalogues) <= 10
