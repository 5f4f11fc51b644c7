"""Files that are either whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aigc_fast.errors import UserError


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes `path`'s place when the block ends well.

    When the block raises, the temporary file goes and whatever stood at `path` stays as it was.

    Raises:
        UserError: when the folder can't be written to.

    Example:
        >>> with atomic("out/grid.png") as temporary:
        ...     image.save(temporary, "PNG")
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise UserError(f"cannot write {target}: {_reason(error)}") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _give_usual_mode(temporary)
        _settle(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {_reason(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _give_usual_mode(path: Path) -> None:
    # mkstemp makes files that only their owner can read; the umask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@contextmanager
def unsettled() -> Iterator[None]:
    """In the block, on this thread, files are not forced to the disk one by one: for those of a temporary folder."""
    before, _waiting.off = getattr(_waiting, "off", False), True
    try:
        yield
    finally:
        _waiting.off = before


_waiting = threading.local()


def _settle(path: Path) -> None:
    if getattr(_waiting, "off", False):
        return
    # Quotas and network file systems tell of a full disk only now, and some libraries don't listen when they close.
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def append(path: Path, content: bytes) -> None:
    """Writes at the end of a file, which is made when missing.

    Raises:
        UserError: when it can't be written; its last bytes may be missing then.
    """
    try:
        with path.open("ab") as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {_reason(error)}") from None


def checksum(path: Path) -> str:
    """The CRC-32 of a file, in eight hexadecimal digits."""
    found = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found = zlib.crc32(part, found)
    return f"{found:08x}"


def remove(path: Path) -> None:
    """Removes a file, if it is there.

    Raises:
        UserError: when it can't be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot remove {path}: {_reason(error)}") from None


def remove_folder(path: Path) -> None:
    """Removes a folder and what is in it, if it is there.

    Raises:
        UserError: when it can't be removed.
    """
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot remove {path}: {_reason(error)}") from None


def move(source: Path, target: Path) -> None:
    """Puts a file into another's place, on the same disk.

    Raises:
        UserError: when it can't be moved.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        raise UserError(f"cannot move {source} to {target}: {_reason(error)}") from None


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Makes a folder with its parents and checks that files can be written in it.

    Raises:
        UserError: when it can't be made or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to folder {folder}: {_reason(error)}") from None
    return folder
