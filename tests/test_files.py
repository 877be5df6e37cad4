"""Writing whole or not at all: what is left behind after every way in which writing can end."""

import errno
import os
import stat

import pytest

from diffusers_vidvae.files import AtomicOutput, atomic_file, atomic_path, check_output, naming_disk_errors, write_file


class ShelfError(ValueError):
    pass


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("folder", [False, True])
def test_an_exception_leaves_what_was_there(tmp_path, interruption, folder):
    target = tmp_path / "target"
    with atomic_path(target, folder=folder) as path:
        (path / "old" if folder else path).write_text("old")
    with pytest.raises(interruption), atomic_path(target, folder=folder, overwrite=True) as path:
        (path / "new" if folder else path).write_text("new")
        raise interruption
    assert names(tmp_path) == ["target"]
    assert (names(target) == ["old"]) if folder else (target.read_text() == "old")


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_a_file_in_pieces_is_not_seen_before_its_end(tmp_path, interruption):
    with atomic_file(tmp_path / "a.bin") as file:
        file.write(b"one")
        file.write(memoryview(b"two"))
        assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / "a.bin").read_bytes() == b"onetwo"
    with pytest.raises(interruption), atomic_file(tmp_path / "b.bin") as file:
        file.write(b"half")
        raise interruption
    assert names(tmp_path) == ["a.bin"]


def test_what_exists_is_refused_or_replaced(tmp_path):
    path = tmp_path / "note.txt"
    write_file(path, "grün")
    with pytest.raises(ShelfError, match=r"note\.txt: exists already; overwrite=True replaces it\.$"):
        write_file(path, "other", error=ShelfError)
    assert path.read_text(encoding="utf-8") == "grün"
    write_file(path, b"other", overwrite=True)
    assert path.read_bytes() == b"other"


def test_a_name_taken_meanwhile_is_not_overwritten(tmp_path):
    path = tmp_path / "note.txt"
    with pytest.raises(ValueError, match="exists already"), atomic_path(path) as temporary:
        temporary.write_text("late")
        path.write_text("early")
    assert path.read_text() == "early"
    assert names(tmp_path) == ["note.txt"]


def test_targets_that_cannot_be_written(tmp_path):
    with pytest.raises(ShelfError, match=r"a\.txt: cannot be written, the folder .*missing does not exist\.$"):
        check_output(tmp_path / "missing" / "a.txt", error=ShelfError)
    with pytest.raises(ValueError, match="is a folder, not a file"):
        write_file(tmp_path, "text", overwrite=True)
    write_file(tmp_path / "file", "text")
    with pytest.raises(ValueError, match="exists already and is a file, not a folder"):
        check_output(tmp_path / "file", folder=True, overwrite=True)


def test_folders_are_replaced_whole_unless_there_is_a_reason_to_keep_them(tmp_path):
    def reason(folder):
        return "holds a diary; it is not replaced" if (folder / "diary").exists() else None

    target = tmp_path / "target"
    target.mkdir()
    with atomic_path(target, folder=True) as path:  # an empty folder is no loss
        (path / "diary").touch()
    with pytest.raises(ValueError, match=r"target: holds a diary; it is not replaced\.$"):
        check_output(target, folder=True, overwrite=True, reason_to_keep=reason)
    with pytest.raises(ValueError, match="exists already"):
        check_output(target, folder=True)
    with atomic_path(target, folder=True, overwrite=True) as path:
        (path / "deep").mkdir()
        (path / "deep" / "new").touch()
    assert names(target) == ["deep"]
    assert names(tmp_path) == ["target"]


def test_a_link_stays_a_link_and_files_get_usual_permissions(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_file(tmp_path / "link.txt", "new", overwrite=True)
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    (tmp_path / "plain.txt").touch()
    assert stat.S_IMODE((tmp_path / "real.txt").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain.txt").stat().st_mode
    )


def test_the_temporary_name_can_be_agreed_on(tmp_path):
    left_over = tmp_path / ".unfinished"
    left_over.mkdir()
    (left_over / "junk").touch()
    output = AtomicOutput(tmp_path / "done", folder=True, temporary=left_over)
    assert names(left_over) == []
    output.commit()
    output.discard()
    assert names(tmp_path) == ["done"]


def test_errors_of_the_disk_name_the_file(tmp_path):
    path = tmp_path / "clip.bin"
    with (
        pytest.raises(ShelfError, match=r"clip\.bin: not enough disk space \(.*, \d+ bytes are free\)\.$"),
        naming_disk_errors(path, ShelfError),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(ShelfError, match=r"clip\.bin: cannot be written \(Permission denied\)\.$"):
        with naming_disk_errors(path, ShelfError):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_full_disk_in_the_middle_of_a_file(tmp_path):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(ShelfError, match=r"big\.bin: not enough disk space"):
            write_file(tmp_path / "big.bin", bytes(5000), error=ShelfError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == []
