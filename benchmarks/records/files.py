"""Files that are whole or absent: whoever sees one sees all of it."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write all files of one folder or none: temporaries beside their targets, fsync, then renames in the order given.

    Raises OSError that names the file.
    """
    try:
        next(iter(contents)).parent.mkdir(parents=True, exist_ok=True)
        _write_together(contents)
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror, str(next(iter(contents)))) from error
        raise


def _write_together(contents: Mapping[Path, bytes]) -> None:
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    new = [path for path in contents if not path.exists()]
    try:
        for path, content in contents.items():
            with temporaries[path].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            temporary.replace(path)
        folder = os.open(next(iter(contents)).parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the renames themselves survive a power cut
        finally:
            os.close(folder)
    except BaseException:  # also a keyboard interrupt
        for path in [*temporaries.values(), *new]:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise


def files_below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Every file below a folder, by name, also in folders that are links (moved to a larger disk); one that leads back
    to a folder above it is left out. above: their real paths."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:  # there is none
        return
    for entry in entries:
        if entry.is_dir():
            yield from files_below(folder / entry.name, above | {real})
        else:
            yield folder / entry.name
