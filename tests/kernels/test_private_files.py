"""Private files: what comes back is what was written, or nothing; and only from where no other user can write."""

import os
import random
import stat
import time

import pytest

from fastae.kernels import private_files

CONTENT = random.Random(0).randbytes(1000)
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away"
)
ANOTHER_USER = 65_534


@pytest.fixture
def path(tmp_path):
    """A file that was written, in a directory that was made for it."""
    path = tmp_path / "private" / "file"
    private_files.write(str(path), b"purpose", CONTENT)
    return path


def content(path, purpose=b"purpose"):
    read = private_files.read(str(path), purpose)
    return None if read is None else bytes(read)


def test_what_was_written_is_read_for_its_purpose_only(path):
    assert content(path) == CONTENT
    assert content(path, b"another purpose") is None
    assert content(path.parent / "missing") is None
    private_files.write(str(path), b"another purpose", b"")
    assert content(path) is None
    assert content(path, b"another purpose") == b""


def test_no_damage_goes_unnoticed(path):
    saved = path.read_bytes()
    for length in (*range(40), len(saved) - 1):
        path.write_bytes(saved[:length])
        assert content(path) is None
    for bit in range(0, 8 * len(saved), 7):
        damaged = bytearray(saved)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert content(path) is None
    path.write_bytes(saved + b"\0")
    assert content(path) is None
    path.write_bytes(saved)
    assert content(path) == CONTENT


@posix
@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077], ids=oct)
def test_only_this_user_has_access(tmp_path, umask):
    before = os.umask(umask)
    try:
        private_files.write(str(tmp_path / "private" / "file"), b"", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "private").st_mode) == 0o700
    assert stat.S_IMODE(os.stat(tmp_path / "private" / "file").st_mode) == 0o600


@posix
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777, 0o720], ids=oct)
def test_a_directory_that_others_can_write_to_is_not_trusted(path, mode):
    path.parent.chmod(mode)
    assert content(path) is None
    assert not private_files.can_read(path)
    with pytest.raises(OSError, match="others can write"):
        private_files.write(str(path), b"purpose", CONTENT)
    path.parent.chmod(0o755)
    assert content(path) == CONTENT


@posix
@pytest.mark.parametrize("mode", [0o620, 0o602], ids=oct)
def test_a_file_that_others_can_write_to_is_not_trusted(path, mode):
    path.chmod(mode)
    assert content(path) is None
    assert not private_files.can_read(path)


@as_root
@pytest.mark.parametrize("owned", ["directory", "file"])
def test_what_another_user_owns_is_not_trusted(path, owned):
    os.chown(path if owned == "file" else path.parent, ANOTHER_USER, -1)
    assert content(path) is None
    assert not private_files.can_read(path)


@as_root
def test_a_link_that_another_user_made_is_not_followed(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path.parent)
    assert content(link / "file") == CONTENT
    os.lchown(link, ANOTHER_USER, -1)
    assert content(link / "file") is None


@posix
def test_only_regular_files_are_read(path):
    for make in (os.mkdir, os.mkfifo, lambda to: os.symlink(path, to)):
        other = path.parent / "other"
        make(other)
        assert content(other) is None  # and nobody waits for a writer
        assert not private_files.can_read(other)
        other.rmdir() if other.is_dir() else other.unlink()


def test_a_write_that_fails_leaves_what_was_there(path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("refused")))
    with pytest.raises(OSError, match="refused"):
        private_files.write(str(path), b"purpose", b"new")
    assert content(path) == CONTENT
    assert os.listdir(path.parent) == ["file"]


def test_drafts_of_killed_writers_are_removed(path):
    old, new = path.parent / ".1.draft", path.parent / ".2.draft"
    for draft in (old, new):
        draft.write_bytes(b"")
    os.utime(old, (time.time() - 7200,) * 2)
    private_files.write(str(path), b"purpose", CONTENT)
    assert not old.exists()
    assert new.exists()  # perhaps its writer is at work
