"""Writing output files so that nobody ever sees half of one.

Purpose: one function, `write_atomically`, through which every output file of the package goes.

Layout: `write_atomically` (paths and errors), then its steps: the temporary file, its name, the disk.

Invariants
- The name shows the old file or the whole new one, also after a crash of the machine. Data is
  written to a temporary file beside the target, flushed to the disk, and only then given the name.
  One exception: where the file system has no hard links, a new name shows an empty file first.
- Without `overwrite`, no existing file is replaced, not even one that appears meanwhile.
- Whatever goes wrong (a full disk, an interrupt), the temporary file is removed. Only a process that
  is killed meanwhile leaves one, `.vqc-*.tmp`, which nothing reads and which may be deleted.
- What was written when the function returns outlasts a crash, where the system can promise that.
"""

from __future__ import annotations

import contextlib
import os
import stat

from vqcodec.errors import OutputError, OutputExistsError

_DEFAULT_MODE = 0o666


def write_atomically(
    path: str | os.PathLike[str], data: bytes | bytearray | memoryview, *, overwrite: bool
) -> None:
    """Write `data` to the file `path`, all of it or not at all.

    A new file gets the permissions that the umask leaves. With `overwrite`, a file that exists is
    replaced and its permissions are kept; a symbolic link stays and the file that it leads to is
    replaced. Only regular files are replaced: never a directory, device or pipe.

    Raises OutputExistsError if the file exists and `overwrite` is false, and OutputError for
    everything else that the operating system refuses.
    """
    name = os.fspath(path)
    try:
        mode: int | None = None
        if overwrite:
            target = os.path.realpath(name)
            mode = _replaceable_mode(target, name)
        else:
            target = name
            if os.path.lexists(target):
                raise OutputExistsError(f"{name} exists already")
        # The name is short and does not contain the target's, which may have the full length
        # that the file system allows.
        temporary = os.path.join(os.path.dirname(target), f".vqc-{os.urandom(8).hex()}.tmp")
        try:
            _write_synced(temporary, data, mode)
            if overwrite:
                os.replace(temporary, target)
            else:
                _place_new(temporary, target)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        _sync_folder(os.path.dirname(target))
    except FileExistsError as error:
        raise OutputExistsError(f"{name} exists already") from error
    except OSError as error:
        raise OutputError(f"cannot write {name}: {error.strerror or error}") from error


def _replaceable_mode(target: str, name: str) -> int | None:
    """Permission bits of the file to be replaced, None if there is none."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise OutputError(f"cannot write {name}: it is a directory")
    if not stat.S_ISREG(mode):
        raise OutputError(f"cannot write {name}: it is not a regular file")
    return stat.S_IMODE(mode) & 0o777


def _write_synced(temporary: str, data: bytes | bytearray | memoryview, mode: int | None) -> None:
    """Create `temporary` with `data`; on return the bytes have reached the disk."""

    def opener(file: str, flags: int) -> int:
        # Created with the final permissions, so that a private file is private from the start.
        return os.open(file, flags, _DEFAULT_MODE if mode is None else mode)

    with open(temporary, "xb", opener=opener) as file:
        if mode is not None:
            os.chmod(temporary, mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _place_new(temporary: str, target: str) -> None:
    """Give `temporary` the name `target`; FileExistsError if that exists.

    A hard link does both in one step. Where the file system has none, an empty file is created
    first to claim the name, and then replaced.
    """
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _DEFAULT_MODE))
        try:
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(target)
            raise


def _sync_folder(folder: str) -> None:
    """Let a name in `folder` reach the disk, not only the bytes that it stands for.

    Without this, a machine that stops within seconds may have neither the new file nor the original
    that was deleted because the command had succeeded. Some systems cannot do it, and the file is in
    its place by now: that is no error.
    """
    with contextlib.suppress(OSError):
        opened = os.open(folder or os.curdir, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
