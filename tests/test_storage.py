"""Files: whole or as they were, the same bits read back, and errors that name the file and what is wrong with it."""

import errno
import json
import os
import shlex
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from disk import full_disk, names
from processes import process, run, run_python
from safetensors.numpy import load_file, save_file

import fastae
from fastae import reference, storage
from fastae.kernels import layout

posix = pytest.mark.skipif(os.name != "posix", reason="needs pipes, owners and modes of POSIX")
NETWORK = fastae.Network((12, 20, 5, 12), ("relu", "tanh", "identity"), code_layer=2)


# -- written whole ----------------------------------------------------------------------------------------------------


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a.csv"
    with storage.written_whole(path) as made:
        assert made.suffix == ".csv"
        assert made.parent == tmp_path
        made.write_text("half")
        assert not path.exists()
        with open(made, "a") as file:
            file.write(" and half")
    assert path.read_text() == "half and half"
    assert names(tmp_path) == ["a.csv"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with storage.written_whole(path) as made:
            made.write_text("ne")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_open_file_that_windows_does_not_replace_is_tried_again_then_an_error(tmp_path, monkeypatch):
    """An indexer or a virus scanner opens a new file for a moment."""
    path, replace, tried = tmp_path / "a.csv", os.replace, []

    def windows(new, old):
        tried.append(new)
        if len(tried) <= refused:
            raise PermissionError(errno.EACCES, "Access is denied", os.fspath(new))
        replace(new, old)

    monkeypatch.setattr(os, "replace", windows)
    path.write_text("old")
    refused = 1
    with pytest.raises(PermissionError, match="Access is denied"), storage.written_whole(path) as made:
        made.write_text("new")
    assert len(tried) == 1  # other systems do replace open files: there, the error has another cause
    monkeypatch.setattr(storage, "_KEEPS_OPEN_FILES", True)
    refused = 1 << 30
    with pytest.raises(PermissionError, match="a program has the file open") as error:
        with storage.written_whole(path) as made:
            made.write_text("new")
    assert str(path) in str(error.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.csv"]
    tried.clear()
    refused = 2
    with storage.written_whole(path) as made:
        made.write_text("new")
    assert path.read_text() == "new"


def test_a_file_is_flushed_through_the_cache_of_the_disk_where_the_system_can(tmp_path, monkeypatch):
    """On macOS, os.fsync alone does not."""
    calls, fails = [], []

    class Locks:
        F_FULLFSYNC, LOCK_EX, LOCK_NB = 51, 2, 4
        flock = staticmethod(lambda *_: None)

        @staticmethod
        def fcntl(handle, command):
            calls.append(command)
            if fails:
                raise OSError(errno.ENOTSUP, "not on this file system")

    fsync = os.fsync
    monkeypatch.setattr(storage, "fcntl", Locks)
    monkeypatch.setattr(storage, "_flush_directory", lambda _: None)
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append("fsync") or fsync(handle))
    for wanted in ([51], [51, "fsync"]):
        calls.clear()
        with storage.written_whole(tmp_path / "a.csv") as made:
            made.write_text("new")
        assert calls == wanted
        fails.append(True)


def test_an_error_of_the_hidden_file_names_the_path(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(FileNotFoundError) as caught, storage.written_whole(path) as made:
        made.read_text()
    assert caught.value.filename == str(path)
    with pytest.raises(OSError, match="elsewhere") as caught, storage.written_whole(path):
        open(tmp_path / "elsewhere")
    with (
        full_disk(10),
        pytest.raises(OSError, match="too large") as caught,
        storage.written_whole(path) as made,
    ):
        made.write_bytes(bytes(100))
    assert caught.value.filename == str(path)


def test_a_block_that_writes_nothing_is_an_error_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), storage.written_whole(path):
        pass
    assert path.read_text() == "old"


@posix
def test_links_are_followed_modes_kept_and_devices_left_alone(tmp_path):
    path, link = tmp_path / "a.txt", tmp_path / "link.txt"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    with storage.written_whole(link) as made:
        made.write_text("new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    with storage.written_whole("/dev/null") as made:
        made.write_text("gone")
    assert not os.path.isfile("/dev/null")


@posix
def test_a_pipe_is_written_into_and_stays_one(tmp_path):
    pipe, params = tmp_path / "pipe", fastae.Parameters.random(NETWORK, seed=1)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    params.save(pipe)
    read = os.read(reader, 1 << 16)
    os.close(reader)
    params.save(tmp_path / "a")
    assert read == (tmp_path / "a").read_bytes()
    assert names(tmp_path) == ["a", "pipe"]
    assert pipe.is_fifo()


def test_a_new_file_has_the_mode_that_any_new_file_has(tmp_path):
    with storage.written_whole(tmp_path / "a") as made:
        made.write_text("")
    fastae.Parameters(NETWORK).save(tmp_path / "model")
    (tmp_path / "b").write_text("")
    modes = {(tmp_path / name).stat().st_mode for name in ("a", "model", "b")}
    assert len(modes) == 1


@pytest.mark.parametrize("place", ["missing/a.safetensors", "file/a.safetensors"])
def test_no_directory_to_write_to_is_an_error_that_names_the_path(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match=place):
        fastae.Parameters(NETWORK).save(tmp_path / place)
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(
    not os.path.isdir("/proc/self"), reason="needs a directory that not even root may write to"
)
def test_a_directory_that_takes_no_files_is_an_error_that_names_the_path():
    with pytest.raises(OSError, match=r"/proc/self/a\.safetensors"):
        fastae.Parameters(NETWORK).save("/proc/self/a.safetensors")


def test_a_directory_in_the_files_place_is_an_error_that_names_it(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError, match="a is a directory"):
        fastae.Parameters(NETWORK).save(tmp_path / "a")
    for name in ("", f"{tmp_path}/new/"):
        with pytest.raises(IsADirectoryError, match=f"'{name}' is not the name of a file"):
            fastae.Parameters(NETWORK).save(name)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.safetensors"
    fastae.Parameters.random(NETWORK, seed=1).save(path)
    old = path.read_bytes()
    with full_disk(), pytest.raises(OSError, match=r"a\.safetensors"):
        fastae.Parameters.random(NETWORK, seed=2).save(path)
    assert path.read_bytes() == old
    assert names(tmp_path) == ["a.safetensors"]


def test_a_long_suffix_does_not_make_the_hidden_name_too_long(tmp_path):
    for name in ("model." + "x" * 240, "." + "y" * 250):
        with storage.written_whole(tmp_path / name) as hidden:
            hidden.write_text("new")
        assert (tmp_path / name).read_text() == "new"
    with pytest.raises(OSError, match=r"z{300}"):
        fastae.Parameters(NETWORK).save(tmp_path / ("z" * 300))


def test_a_read_only_file_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text("old")
    access = os.access
    # Root may write all
    monkeypatch.setattr(os, "access", lambda where, mode: mode != os.W_OK and access(where, mode))
    for refused in (lambda: storage.check_place(path), lambda: fastae.Parameters(NETWORK).save(path)):
        with pytest.raises(PermissionError, match="a is read-only"):
            refused()
    assert path.read_text() == "old"


@posix
def test_owner_and_group_are_kept_and_hard_links_keep_the_old_content(tmp_path, monkeypatch):
    path, link, asked = tmp_path / "a", tmp_path / "link", []

    def chown(where, owner, group):
        asked.append((owner, group))
        raise PermissionError  # as for an ordinary user

    path.write_text("old")
    link.hardlink_to(path)
    monkeypatch.setattr(os, "chown", chown)
    with storage.written_whole(path) as hidden:
        hidden.write_text("new")
    about = path.stat()
    assert asked == [(about.st_uid, -1), (-1, about.st_gid)]
    assert (path.read_text(), link.read_text()) == ("new", "old")


@posix
def test_a_directory_that_may_be_written_but_not_read_takes_files(tmp_path, monkeypatch):
    opened, listed = os.open, os.scandir

    def refuse_directories(path, flags, *mode, **options):
        if flags & os.O_DIRECTORY:
            raise PermissionError(13, "Permission denied", path)
        return opened(path, flags, *mode, **options)

    def refuse(path):
        if os.fspath(path) == os.fspath(tmp_path):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "open", refuse_directories)
    monkeypatch.setattr(os, "scandir", refuse)
    fastae.Parameters(NETWORK).save(tmp_path / "a")
    monkeypatch.undo()
    assert names(tmp_path) == ["a"]


WRITER = """
    import sys
    from fastae import storage

    with storage.written_whole(sys.argv[1]) as hidden:
        hidden.write_text("half")
        print(hidden.name, flush=True)
        sys.stdin.read()
"""


def test_files_of_killed_writers_are_removed_and_those_of_living_ones_are_not(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(WRITER)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        process([*command, tmp_path / "a.csv"], **pipes) as killed,
        process([*command, tmp_path / "b.csv"], **pipes) as alive,
    ):
        left, held = (child.stdout.readline().strip() for child in (killed, alive))
        killed.kill()
        killed.wait(timeout=60)
        assert left in names(tmp_path)
        fastae.Parameters(NETWORK).save(tmp_path / "c")
        lock = held.removesuffix(".csv") + ".lock"
        assert names(tmp_path) == sorted(["c", held, lock])
        alive.stdin.close()
        assert alive.wait(timeout=60) == 0
    assert names(tmp_path) == ["b.csv", "c"]


def test_hidden_files_of_earlier_versions_which_had_no_locks_are_removed_after_a_day(tmp_path):
    for name in (".fastae-0123456789ab.npy", ".fastae-ba9876543210.npy", ".fastaelike"):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (0, 0))
    os.utime(tmp_path / ".fastae-ba9876543210.npy")
    fastae.Parameters(NETWORK).save(tmp_path / "a")
    assert names(tmp_path) == [".fastae-ba9876543210.npy", ".fastaelike", "a"]


SAVE = """
    import sys
    import fastae
    from fastae import storage

    storage.check_place(sys.argv[1])
    fastae.Parameters.random(fastae.Network.autoencoder(12, 4)).save(sys.argv[1])
"""


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs /dev/fd")
@pytest.mark.parametrize(
    "place",
    [">(cat > out; echo > done)", "/dev/stdout | cat > out", "/dev/fd/1 | cat > out", "/dev/stdout > out"],
)
def test_a_pipe_of_the_shell_receives_the_whole_file(tmp_path, place):
    if ">(" in place:
        os.mkfifo(tmp_path / "done")
        place += " && read < done"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(textwrap.dedent(SAVE))} {place}"
    assert run(["bash", "-c", command], cwd=tmp_path).returncode == 0
    params = fastae.Parameters.load(tmp_path / "out")
    assert (params.flat == fastae.Parameters.random(params.network).flat).all()


@posix
def test_a_descriptor_nobody_reads_is_refused_at_once(tmp_path):
    read, write = os.pipe()
    try:
        storage.check_place(f"/dev/fd/{write}")
        os.close(read)
        with pytest.raises(BrokenPipeError, match=f"nobody reads.*/dev/fd/{write}"):
            storage.check_place(f"/dev/fd/{write}")
    finally:
        os.close(write)
    with pytest.raises(OSError, match=f"/dev/fd/{write}"):
        storage.check_place(f"/dev/fd/{write}")


@posix
def test_an_error_of_a_pipe_names_it(tmp_path):
    pipe = tmp_path / "fifo.parquet"
    os.mkfifo(pipe)
    with (
        pytest.raises(OSError, match=r"seek.*not a regular file.*fifo\.parquet"),
        storage.written_whole(pipe),
    ):
        raise OSError("lseek failed")  # as pyarrow says it


def test_a_place_is_tested_by_creating_a_file_there(tmp_path, monkeypatch):
    def no_room(path, flags, *mode, **options):
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(os, "open", no_room)
    with pytest.raises(OSError, match=r"No space left.*a\.txt"):
        storage.check_place(tmp_path / "a.txt")
    monkeypatch.undo()
    assert names(tmp_path) == []


# -- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_come_back_with_their_network_and_the_same_bits(tmp_path, dtype):
    params = fastae.Parameters.random(NETWORK, seed=1, dtype=dtype)
    params.save(tmp_path / "a.safetensors")
    again = fastae.Parameters.load(tmp_path / "a.safetensors")
    assert again.network == NETWORK
    assert again.dtype == params.dtype
    assert again.flat.tobytes() == params.flat.tobytes()
    X = np.random.default_rng(0).random((9, 12))
    engine = fastae.Engine(NETWORK, dtype=dtype)
    assert engine.reconstruct(again, X).tobytes() == engine.reconstruct(params, X).tobytes()


def test_the_tensors_are_dense_and_in_rows_for_anyone_to_read(tmp_path):
    params = fastae.Parameters.random(fastae.Network.autoencoder(12, 5), seed=1)
    params.save(tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    assert sorted(tensors) == ["W1", "W2", "W3", "b1", "b2", "b3"]
    X = np.random.default_rng(0).random((9, 12), "f4")
    by_hand = reference.forward(X, tensors)["xhat"]
    np.testing.assert_allclose(fastae.Engine(params.network).reconstruct(params, X), by_hand, atol=1e-5)


def test_torch_reads_them_too(tmp_path):
    pytest.importorskip("torch")
    from safetensors.torch import load_file as torch_load_file

    params = fastae.Parameters.random(NETWORK, seed=1)
    params.save(tmp_path / "a.safetensors")
    tensors = torch_load_file(tmp_path / "a.safetensors")
    assert all((tensors[name].numpy() == params[name]).all() for name in params)


def test_the_same_parameters_make_the_same_file(tmp_path):
    for name in ("a", "b"):
        fastae.Parameters.random(NETWORK, seed=1).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_importing_fastae_does_not_import_safetensors():
    code = "import sys, fastae; fastae.Parameters; assert not {'safetensors', 'numba', 'sklearn'} & {*sys.modules}"
    run_python(code)


# -- files that are wrong ---------------------------------------------------------------------------------------------


def written(path, change_about=None, change_tensors=None):
    """A parameters file of format 1, which has no digest, with its metadata or its tensors tampered with."""
    params = fastae.Parameters.random(NETWORK, seed=1)
    params.save(path)
    stored = storage.read(path)
    about, tensors = stored.about, stored.tensors
    if change_about is not None:
        change_about(about)
    if change_tensors is not None:
        change_tensors(tensors)
    save_file(tensors, path, metadata={"fastae": json.dumps(about | {"format": 1})})
    return path


def test_a_file_cut_off_anywhere_is_an_error_that_names_it(tmp_path):
    path = written(tmp_path / "a.safetensors")
    whole = path.read_bytes()
    fastae.Parameters.load(path)
    for size in {*range(0, len(whole), 61), *range(12), len(whole) - 1}:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"a\.safetensors is not a complete safetensors file"):
            fastae.Parameters.load(path)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        fastae.Parameters.load(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        fastae.Parameters.load(tmp_path)


def test_a_path_may_be_bytes(tmp_path):
    fastae.Parameters(NETWORK).save(tmp_path / "a")
    assert fastae.Parameters.load(bytes(tmp_path / "a")).network == NETWORK


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (None, "not one of fastae's"),
        ({"format": "pt"}, "not one of fastae's"),
        ({"fastae": "no JSON"}, "damaged"),
        ({"fastae": "[1]"}, "damaged"),
        ({"fastae": '{"kind": "Parameters"}'}, "damaged"),
        ({"fastae": '{"format": 1}'}, "damaged"),
        ({"fastae": '{"format": 3, "kind": "Parameters", "fastae": "9.9"}'}, "has format 3 .*9.9"),
        ({"fastae": '{"format": 2, "kind": "Parameters"}'}, "does not match its digest"),
        ({"fastae": '{"format": "1", "kind": "Parameters"}'}, "format is not an integer"),
        ({"fastae": "[" * 100_000}, "damaged"),
        ({"fastae": '{"format": 1, "kind": "Checkpoint"}'}, "a file of Checkpoint, not of Parameters"),
    ],
)
def test_foreign_files_and_unknown_formats_are_errors_that_name_the_file(tmp_path, metadata, said):
    save_file({"W1": np.zeros((2, 2), "f4")}, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=r"a\.safetensors.*" + said):
        fastae.Parameters.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("about", "tensors", "said"),
    [
        (None, lambda t: t.pop("W1"), "W1"),
        (None, lambda t: t.pop("b2"), "b2"),
        (None, lambda t: t.update(W2=t["W2"].T.copy()), r"W2 has shape \(5, 20\)"),
        (None, lambda t: t.update(b3=np.zeros(11, "f4")), "b3 has shape"),
        (None, lambda t: t.update(W1=t["W1"].astype("f2")), "float16"),
        (lambda a: a["network"].update(widths=[12, 0, 5, 12]), None, "widths"),
        (lambda a: a["network"].update(activations=["exp"] * 3), None, "activations"),
        (lambda a: a["network"].update(layers=3), None, "layers"),
        (lambda a: a["network"].pop("widths"), None, "widths"),
    ],
)
def test_what_is_missing_or_of_the_wrong_shape_is_named_with_the_file(tmp_path, about, tensors, said):
    path = written(tmp_path / "a.safetensors", about, tensors)
    with pytest.raises(ValueError, match=rf"a\.safetensors is damaged: .*{said}"):
        fastae.Parameters.load(path)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_flipped_bit_is_an_error_that_names_the_file(tmp_path, dtype):
    path = tmp_path / "a.safetensors"
    fastae.Parameters.random(NETWORK, seed=1, dtype=dtype).save(path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 400):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.safetensors (is|has)"):
            fastae.Parameters.load(path)


def test_a_network_that_the_file_does_not_hold_is_refused_before_memory_is_asked_for(tmp_path, monkeypatch):
    path = written(
        tmp_path / "a.safetensors", lambda about: about["network"].update(widths=[12, 10**9, 5, 12])
    )

    def never(*_):
        raise AssertionError("allocated")

    monkeypatch.setattr(layout, "aligned_zeros", never)
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged: W1 has shape"):
        fastae.Parameters.load(path)


@pytest.mark.parametrize(
    ("example", "value", "said"),
    [
        (0, -1, "out of range"),
        (0, 1 << 63, "out of range"),
        (0.0, 10**400, "out of range"),
        (0, True, "not of type int"),
        (0.0, "1", "not of type float"),
        ("", None, "not of type str"),
        ([0.0], [1.0, "x"], r"thing\[1\] is not of type float"),
        ([0.0], 3, "not of type list"),
        ((0, ""), [1], "has 1 members, but needs 2"),
        ({"a": 0}, {"a": 0, "b": 1}, "'b'"),
        ({"a": 0}, {}, "'a'"),
        ({}, [], "not of type dict"),
    ],
)
def test_what_json_holds_is_compared_with_an_example(example, value, said):
    with pytest.raises(ValueError, match="thing.*" + said if not said.startswith("thing") else said):
        storage.check_like("thing", value, example)
    good = {"a": [1.5, 2], "b": [1, "x"], "c": {"any": None}, "d": True}
    storage.check_like("thing", good, {"a": [0.0], "b": (0, ""), "c": {}, "d": False})


def test_what_json_cannot_hold_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(TypeError, match="object"):
        storage.write(tmp_path / "a", "Parameters", {"thing": object()}, {})
    assert names(tmp_path) == []
