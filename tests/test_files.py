"""Tests of vqcodec.files: an output is whole or absent, whatever happens to disk, folder or process.

Layout: `write_atomically` in this process; then processes that are killed, that find no room or no
right to write, and that race each other; then standard output.
"""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from writer_process import Job, Writer

from vqcodec import errors, files

TEMPORARY = re.compile(r"\.vqc-[0-9a-f]{16}\.tmp")

# --- in this process -----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder; afterwards it must not hold a temporary file."""
    yield tmp_path
    assert not [p.name for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]


def no_space(*_args: object) -> None:
    raise OSError(28, "No space left on device")


def no_links(*_args: object) -> None:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("data", [b"", b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_write_new(folder: Path, data: bytes, overwrite: bool) -> None:
    path = folder / "a.vqc"
    files.write_atomically(path, data, overwrite=overwrite)
    assert path.read_bytes() == bytes(data)
    assert os.listdir(folder) == ["a.vqc"]


def test_write_by_relative_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    files.write_atomically("a.vqc", b"1", overwrite=False)
    files.write_atomically("a.vqc", b"2", overwrite=True)
    assert (folder / "a.vqc").read_bytes() == b"2"


def test_an_existing_file_is_replaced_only_when_told(folder: Path) -> None:
    path = folder / "a.vqc"
    path.write_bytes(b"old")
    with pytest.raises(errors.OutputExistsError, match=r"a\.vqc exists already"):
        files.write_atomically(path, b"new", overwrite=False)
    assert path.read_bytes() == b"old"
    files.write_atomically(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new"


def test_an_existing_file_is_noticed_before_writing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.vqc").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(errors.OutputExistsError):
        files.write_atomically(folder / "a.vqc", b"new", overwrite=False)


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    path = folder / "a.vqc"
    real_fsync = os.fsync

    def fsync_and_rival(fd: int) -> None:
        real_fsync(fd)
        path.write_bytes(b"rival")

    monkeypatch.setattr(os, "fsync", fsync_and_rival)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(errors.OutputExistsError):
        files.write_atomically(path, b"new", overwrite=False)
    assert path.read_bytes() == b"rival"


def test_without_hard_links(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_links)
    path = folder / "a.vqc"
    files.write_atomically(path, b"new", overwrite=False)
    assert path.read_bytes() == b"new"
    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(errors.OutputError, match="No space left"):
        files.write_atomically(folder / "b.vqc", b"new", overwrite=False)
    assert os.listdir(folder) == ["a.vqc"]


@pytest.mark.parametrize("function", ["fsync", "replace", "chmod"])
def test_failure_leaves_the_old_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = folder / "a.vqc"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, function, no_space)
    with pytest.raises(errors.OutputError, match=r"cannot write .*a\.vqc: No space left on device"):
        files.write_atomically(path, b"new", overwrite=True)
    assert path.read_bytes() == b"old"
    assert os.listdir(folder) == ["a.vqc"]


def test_failure_leaves_no_new_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(errors.OutputError):
        files.write_atomically(folder / "a.vqc", b"new", overwrite=False)
    assert os.listdir(folder) == []


def test_an_interrupt_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_fd: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(folder / "a.vqc", b"new", overwrite=False)
    assert os.listdir(folder) == []


def test_impossible_targets(folder: Path) -> None:
    (folder / "file").write_bytes(b"x")
    (folder / "dir").mkdir()
    for overwrite in (False, True):
        for name in ("missing/a.vqc", "file/a.vqc", "n" * 300):
            with pytest.raises(errors.OutputError) as caught:
                files.write_atomically(folder / name, b"new", overwrite=overwrite)
            assert not isinstance(caught.value, errors.OutputExistsError)
        with pytest.raises(errors.OutputError):
            files.write_atomically("", b"new", overwrite=overwrite)
    with pytest.raises(errors.OutputError, match="is a directory"):
        files.write_atomically(folder / "dir", b"new", overwrite=True)
    with pytest.raises(errors.OutputExistsError):
        files.write_atomically(folder / "dir", b"new", overwrite=False)


def test_the_longest_name(folder: Path) -> None:
    path = folder / ("n" * 255)
    files.write_atomically(path, b"new", overwrite=False)
    assert path.read_bytes() == b"new"


def test_permissions(folder: Path) -> None:
    path = folder / "a.vqc"
    before = os.umask(0o027)
    try:
        files.write_atomically(path, b"new", overwrite=False)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        for mode in (0o600, 0o666, 0o444):
            path.chmod(mode)
            files.write_atomically(path, b"newer", overwrite=True)
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)


def test_symbolic_links(folder: Path) -> None:
    (folder / "real").mkdir()
    link, target = folder / "link.vqc", folder / "real" / "a.vqc"
    link.symlink_to(target)
    with pytest.raises(errors.OutputExistsError):
        files.write_atomically(link, b"new", overwrite=False)
    assert not target.exists()
    for data in (b"1", b"2"):
        files.write_atomically(link, data, overwrite=True)
        assert link.is_symlink() and target.read_bytes() == data


def test_only_regular_files_are_replaced(folder: Path) -> None:
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(errors.OutputError, match="not a regular file"):
        files.write_atomically(pipe, b"new", overwrite=True)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_folder_that_disappears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_fsync = os.fsync

    def fsync_and_remove(fd: int) -> None:
        real_fsync(fd)
        shutil.rmtree(tmp_path / "sub")

    monkeypatch.setattr(os, "fsync", fsync_and_remove)
    for overwrite in (False, True):
        (tmp_path / "sub").mkdir()
        with pytest.raises(errors.OutputError, match=r"a\.vqc: No such file or directory"):
            files.write_atomically(tmp_path / "sub" / "a.vqc", b"new", overwrite=overwrite)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into every folder")
def test_a_folder_without_the_right_to_write(folder: Path) -> None:
    path = folder / "a.vqc"
    path.write_bytes(b"old")
    folder.chmod(0o555)
    try:
        for name, overwrite in (("a.vqc", True), ("b.vqc", False)):
            with pytest.raises(errors.OutputError, match=rf"{name}: Permission denied"):
                files.write_atomically(folder / name, b"new", overwrite=overwrite)
    finally:
        folder.chmod(0o755)
    assert path.read_bytes() == b"old"
    assert os.listdir(folder) == ["a.vqc"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_return(
    folder: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    steps = []
    real = {name: getattr(os, name) for name in ("fsync", "link", "replace")}

    def fsync(fd: int) -> None:
        steps.append("sync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync file")
        real["fsync"](fd)

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("link", "replace"):
        monkeypatch.setattr(os, name, lambda *a, name=name: [steps.append("name"), real[name](*a)])
    monkeypatch.chdir(folder)
    for path in (folder / "a.vqc", Path("b.vqc")):
        steps.clear()
        files.write_atomically(path, b"new", overwrite=overwrite)
        assert steps == ["sync file", "name", "sync folder"]


def test_a_folder_that_cannot_be_synced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_fsync = os.fsync

    def fsync_files(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync_files)
    files.write_atomically(folder / "a.vqc", b"new", overwrite=False)
    assert (folder / "a.vqc").read_bytes() == b"new"


# --- processes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer() -> Iterator[Writer]:
    """A process that writes."""
    process = Writer()
    yield process
    process.close()


@pytest.fixture(scope="module")
def rival() -> Iterator[Writer]:
    """Another process that writes."""
    process = Writer()
    yield process
    process.close()


@pytest.fixture(scope="module")
def commands(
    tmp_path_factory: pytest.TempPathFactory, writer: Writer, pictures: Path, tiny_model: Path
) -> dict[str, list[Job]]:
    """For compress and decompress two command lines each, but for the output; their inputs differ."""
    folder = tmp_path_factory.mktemp("compressed")
    found: dict[str, list[Job]] = {"compress": [], "decompress": []}
    for name in ("picture0", "picture1"):
        source, packed = str(pictures / f"{name}.png"), str(folder / f"{name}.vqc")
        options = ["--model", str(tiny_model), "--quiet"]
        assert writer.run("main", "compress", source, *options, "-o", packed) == (0, "")
        found["compress"].append(["main", "compress", source, *options])
        found["decompress"].append(["main", "decompress", packed, *options])
    return found


SUFFIXES = {"compress": ".vqc", "decompress": ".png"}
each_command = pytest.mark.parametrize("command", SUFFIXES)


def to(job: Job, path: Path, *, force: bool = False) -> Job:
    """A command line with its output."""
    return [*job, "-o", str(path), *(["-f"] if force else [])]


def results(writer: Writer, jobs: Sequence[Job], folder: Path, suffix: str) -> list[bytes]:
    """The whole files that command lines give."""
    paths = [folder / f"whole{number}{suffix}" for number in range(len(jobs))]
    for job, path in zip(jobs, paths, strict=True):
        assert writer.run(*to(job, path)) == (0, "")
    whole = [path.read_bytes() for path in paths]
    assert len(set(whole)) == len(whole)
    return whole


def remove_temporaries(target: Path) -> int:
    """Remove what killed processes left beside `target`, and count it; there must be nothing else."""
    others = [path for path in target.parent.iterdir() if path != target]
    assert all(TEMPORARY.fullmatch(path.name) for path in others)
    for path in others:
        path.unlink()
    return len(others)


def message(job: Job, path: Path, reason: str) -> tuple[int, str]:
    """What a command line says that cannot write `path`, and its exit code."""
    return 1, f"vqcodec: {job[2]}: cannot write {path}: {reason}\n"


# A process that is killed cannot tidy up: it may leave its temporary file, but nothing else, and the
# name has a whole file at any time.


@pytest.mark.parametrize(("overwrite", "kills"), [(True, 100), (False, 40)])
def test_killed_while_writing(tmp_path: Path, writer: Writer, overwrite: bool, kills: int) -> None:
    target, size = tmp_path / "a.vqc", 300_000
    jobs: list[Job] = [["write", str(target), byte, size, overwrite] for byte in b"ab"]
    if not overwrite:
        jobs = [step for job in jobs for step in (job, ["unlink", str(target)])]
    whole = (b"a" * size, b"b" * size)
    delays, left = random.Random(7), 0
    for _ in range(kills):
        writer.kill_while_running(jobs, delays.uniform(0, 2))
        if overwrite or target.exists():
            assert target.read_bytes() in whole
        left += remove_temporaries(target)
        target.unlink(missing_ok=True)
    # Else every process was killed between two files, and the test would say nothing.
    assert left > 0
    assert writer.run(*jobs[0]) == (0, "")
    assert os.listdir(tmp_path) == ["a.vqc"]


@each_command
def test_killed_while_running_a_command(
    tmp_path: Path, writer: Writer, commands: dict[str, list[Job]], command: str
) -> None:
    suffix = SUFFIXES[command]
    whole = results(writer, commands[command], tmp_path, suffix)
    target = tmp_path / "out" / f"a{suffix}"
    target.parent.mkdir()
    jobs = [to(job, target, force=True) for job in commands[command]]
    delays = random.Random(8)
    for _ in range(20):
        writer.kill_while_running(jobs, delays.uniform(0, 2))
        assert target.read_bytes() in whole
        remove_temporaries(target)
    assert writer.run(*jobs[0]) == (0, "")
    assert target.read_bytes() == whole[0]
    assert os.listdir(target.parent) == [target.name]


# --- no room, no right -----------------------------------------------------------------------------


@pytest.fixture
def scarce(writer: Writer) -> Iterator[None]:
    """Meanwhile `writer` may not write files of more than 100 bytes."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("this system cannot limit another process")
    before = resource.prlimit(writer.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(writer.pid, resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.prlimit(writer.pid, resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [101, 100_000])
def test_a_file_over_the_limit(folder: Path, writer: Writer, scarce: None, size: int) -> None:
    old, new = folder / "old.vqc", folder / "new.vqc"
    old.write_bytes(b"old")
    for path, overwrite in ((old, True), (new, True), (new, False)):
        expected = (1, f"cannot write {path}: File too large")
        assert writer.run("write", str(path), 65, size, overwrite) == expected
    assert writer.run("write", str(old), 65, 100, True) == (0, "")
    assert old.read_bytes() == b"A" * 100
    assert os.listdir(folder) == ["old.vqc"]


@each_command
def test_a_command_over_the_limit(
    folder: Path, writer: Writer, commands: dict[str, list[Job]], scarce: None, command: str
) -> None:
    suffix = SUFFIXES[command]
    old, new = folder / f"old{suffix}", folder / f"new{suffix}"
    old.write_bytes(b"old")
    job = commands[command][0]
    assert writer.run(*to(job, old, force=True)) == message(job, old, "File too large")
    assert writer.run(*to(job, new)) == message(job, new, "File too large")
    assert old.read_bytes() == b"old"
    assert os.listdir(folder) == [old.name]


MOUNTS = """
cd "$0" && mkdir full locked || exit 1
mount -t tmpfs -o size=128k none full && mount -t tmpfs none locked || exit 77
for suffix in vqc png; do printf old > full/old.$suffix; printf old > locked/old.$suffix; done
mount -o remount,bind,ro locked || exit 77
exec "$@"
"""


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[Writer, Path, Path]]:
    """A process that sees, in `tmp_path`, the folders "full", of 128 KB, and "locked", which cannot be
    written to, each with old.vqc and old.png; then `tmp_path` as it is seen here and as the process
    sees it."""
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNTS]
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    (tmp_path / "try").mkdir()
    tried = subprocess.run([*prefix, str(tmp_path / "try"), "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"this system forbids a file system of one's own: {tried.stderr.strip()}")
    process = Writer([*prefix, str(tmp_path)])
    seen = Path("/proc", str(process.pid), "root", *tmp_path.parts[1:])
    yield process, tmp_path, seen
    process.close()


def fill(folder: Path) -> Path:
    """Put a file into `folder` that takes all the room there is."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    return filler


def test_a_full_disk_and_a_locked_folder(
    mounted: tuple[Writer, Path, Path], commands: dict[str, list[Job]]
) -> None:
    process, told, seen = mounted
    reasons = {"full": "No space left on device", "locked": "Read-only file system"}
    filler = fill(seen / "full")
    for where, reason in reasons.items():
        before = sorted(os.listdir(seen / where))
        for overwrite, name in ((True, "old.vqc"), (True, "new.vqc"), (False, "new.vqc")):
            path = told / where / name
            expected = (1, f"cannot write {path}: {reason}")
            assert process.run("write", str(path), 65, 20_000, overwrite) == expected
        for command, jobs in commands.items():
            old = told / where / f"old{SUFFIXES[command]}"
            new = told / where / f"new{SUFFIXES[command]}"
            assert process.run(*to(jobs[0], old, force=True)) == message(jobs[0], old, reason)
            assert process.run(*to(jobs[0], new)) == message(jobs[0], new, reason)
            assert (seen / where / old.name).read_bytes() == b"old"
        assert sorted(os.listdir(seen / where)) == before
    filler.unlink()
    for command, jobs in commands.items():
        old = told / "full" / f"old{SUFFIXES[command]}"
        assert process.run(*to(jobs[0], old, force=True)) == (0, "")
        assert (seen / "full" / old.name).stat().st_size > 100


# --- two processes, one output ---------------------------------------------------------------------


def race(first: Writer, second: Writer, jobs: Sequence[Job]) -> list[tuple[int, str]]:
    """Results of two jobs that are done at the same time."""
    first.send({"job": jobs[0]})
    second.send({"job": jobs[1]})
    return [tuple(process.receive()) for process in (first, second)]


def test_two_writers(folder: Path, writer: Writer, rival: Writer) -> None:
    contents = ((ord("a"), 200_000), (ord("b"), 300_000))
    whole = [bytes([byte]) * size for byte, size in contents]
    for number in range(40):
        path = folder / f"{number}.vqc"
        jobs: list[Job] = [["write", str(path), byte, size, False] for byte, size in contents]
        found = race(writer, rival, jobs)
        assert sorted(found) == [(0, ""), (1, f"{path} exists already")]
        assert path.read_bytes() == whole[found.index((0, ""))]
    for _ in range(40):
        assert race(writer, rival, [[*job[:-1], True] for job in jobs]) == [(0, "")] * 2
        assert path.read_bytes() in whole
    assert len(os.listdir(folder)) == 40


@each_command
def test_two_commands(
    tmp_path: Path, writer: Writer, rival: Writer, commands: dict[str, list[Job]], command: str
) -> None:
    suffix = SUFFIXES[command]
    whole = results(writer, commands[command], tmp_path, suffix)
    folder = tmp_path / "out"
    folder.mkdir()
    for number in range(8):
        path = folder / f"{number}{suffix}"
        found = race(writer, rival, [to(job, path) for job in commands[command]])
        assert sorted(code for code, _ in found) == [0, 1]
        won = found.index((0, ""))
        assert re.fullmatch(r"vqcodec: \S+: \S+ exists already.*\n", found[1 - won][1])
        assert path.read_bytes() == whole[won]
        both = race(writer, rival, [to(job, path, force=True) for job in commands[command]])
        assert both == [(0, "")] * 2
        assert path.read_bytes() in whole
    assert len(os.listdir(folder)) == 8


# --- standard output -------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("command", "unbuffered"),
    [("compress", ""), ("decompress", ""), ("info", ""), ("info", "1"), ("--version", "")],
)
def test_no_room_on_standard_output(
    commands: dict[str, list[Job]], command: str, unbuffered: str
) -> None:
    arguments = {name: [*jobs[0][1:], "-o", "-"] for name, jobs in commands.items()}
    arguments |= {"info": ["info", commands["decompress"][0][2]], "--version": ["--version"]}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vqcodec", *arguments[command]],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    # One line, also when the interpreter ends and looks once more at what it could not write.
    assert re.fullmatch(r"vqcodec: .*No space left on device\n", done.stderr)
    assert done.returncode == 1


def test_no_standard_output(tmp_path: Path, commands: dict[str, list[Job]]) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "vqcodec", *commands["compress"][0][1:], *options]
        return subprocess.run(
            ["sh", "-c", 'exec "$@" >&-', "sh", *line], stderr=subprocess.PIPE, text=True, check=False
        )

    done = run("-o", str(tmp_path / "a.vqc"))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "a.vqc").stat().st_size > 24
    done = run("-o", "-")
    assert done.returncode == 2 and done.stderr.endswith("there is no standard output to write to\n")
