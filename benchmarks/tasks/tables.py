"""A task's tables, split by split: of the generated language, from a local folder, or from the Hugging Face hub."""

import glob
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..config.pins import data_revision_of
from ..config.schema import ScaleConfig, TaskConfig
from . import mrqa
from .cuts import Cut, cut_of, parts_of
from .examples import DataError

Columns = Mapping[str, Sequence[Any]]  # column name -> values, row by row


class Wanted(NamedTuple):
    """Which tables are read: hashable, for the cache. `columns` and `splits` each with the key that names it."""

    name: str
    dataset: str
    hub_id: str
    revision: str | None  # on the hub
    subset: str
    columns: tuple[tuple[str, str], ...]
    splits: tuple[tuple[str, str], ...]
    source: str  # micro or published
    data_dir: str | None
    cut: Cut | None = None


_COMMIT = re.compile(r"[0-9a-f]{40}")


def wanted_tables(
    task: TaskConfig, columns: Sequence[tuple[str, str]], scale: ScaleConfig, data_dir: str | None, trains: bool
) -> Wanted:
    """Which tables a task is read from. columns: with the keys that name them, the one that must have rows last."""
    return Wanted(
        task.name,
        task.dataset,
        task.hub_id,
        data_revision_of(task) if scale.data == "published" else None,
        task.subset,
        tuple(columns),
        splits_of(task, scale, trains),
        scale.data,
        data_dir,
        cut_of(task),
    )


def splits_of(task: TaskConfig, scale: ScaleConfig, trains: bool = True) -> tuple[tuple[str, str], ...]:
    """The splits that a run reads, each with the key of the configuration that names it; without training, those that
    are scored."""
    splits = [(task.train_split, "task.train_split")] if trains else []
    splits += [(split, "task.validation_splits") for split in task.validation_splits]
    splits += [(split, "task.test_splits") for split in task.test_splits if scale.evaluate_test or task.public_test]
    return tuple(splits)


class Source(NamedTuple):
    """Where tables are from, as records have it. commit: on the hub, None of a folder and of the generated language."""

    name: str
    commit: str | None = None


def read_tables(wanted: Wanted) -> tuple[dict[str, Columns], Source]:
    """Every wanted split with the wanted columns, at least one row each, and where they are from. Raises DataError."""
    if wanted.cut is not None:
        whole = wanted._replace(
            splits=((wanted.cut.of, "task.cut_from"),),
            columns=(*wanted.columns, (wanted.cut.by, "task.cut_by")),
            cut=None,
        )
        rows, source = read_tables(whole)
        parts = parts_of(rows[wanted.cut.of], wanted.cut, f"split {wanted.cut.of!r} of {wanted.name}")
        return {split: parts[split] for split, _ in wanted.splits}, source
    if wanted.source == "micro":
        from ..micro.load import load_tables

        tables: Mapping[str, Columns]
        tables, name = load_tables(wanted.name)
        source = Source(name)
        _require_splits(wanted, tables, f"the generated task {wanted.name}")
    elif wanted.source == "published":
        tables, commit = _from_hub(wanted) if wanted.data_dir is None else (_from_folder(wanted, wanted.data_dir), None)
        source = Source(wanted.dataset, commit)
    else:
        raise DataError(f"scale.data is {wanted.source!r}, expected 'micro' or 'published'; change it in conf/scale/")
    for split, _ in wanted.splits:
        _check_columns(wanted, tables[split], f"split {split!r} of {wanted.name}")
    return {split: tables[split] for split, _ in wanted.splits}, source


def _require_splits(wanted: Wanted, present: Mapping[str, Any], place: str) -> None:
    for split, key in wanted.splits:
        if split not in present:
            raise DataError(f"no split {split!r} in {place} (found: {', '.join(present) or 'none'}); {_rename(key)}")


def _rename(key: str) -> str:
    return f"name another split with {key}=" + ("[<split>,...]" if key.endswith("_splits") else "<split>")


def _from_folder(wanted: Wanted, data_dir: str) -> dict[str, Columns]:
    """Every wanted split from `<data_dir>/<dataset>/<subset>/`, by the parquet loader that reads the hub's files."""
    folder = Path(data_dir).expanduser() / wanted.dataset / wanted.subset
    if not folder.is_dir():
        raise DataError(
            f"no folder {folder} for {wanted.name}; expected <data_dir>/<dataset>/<subset>/<split>.parquet: change "
            "data_dir, task.dataset or task.subset, or leave data_dir out to use the Hugging Face hub"
        )
    if wanted.dataset == mrqa.DATASET:
        return {split: _from_mrqa(folder, split) for split, _ in wanted.splits}
    names = sorted(path.name for path in folder.glob("*.parquet"))
    files = {split: _files(split, key, folder, names) for split, key in wanted.splits}
    return {split: _read_parquet(wanted, split, paths) for split, paths in files.items()}


def _from_mrqa(folder: Path, split: str) -> Columns:
    path = folder / f"{split}.jsonl.gz"
    if not path.is_file():
        found = ", ".join(sorted(each.name for each in folder.iterdir())) or "nothing"
        raise DataError(f"no file {path} (found: {found}); expected the shared task's own file of that name")
    try:
        return mrqa.read_mrqa(path)
    except ValueError as error:
        raise DataError(str(error)) from error


def _files(split: str, key: str, folder: Path, names: list[str]) -> list[Path]:
    """The one file or all numbered parts of a split."""
    parts = [name for name in names if re.fullmatch(rf"{re.escape(split)}-\d{{5}}-of-\d{{5}}\.parquet", name)]
    single = [name for name in names if name == f"{split}.parquet"]
    if parts != [f"{split}-{part:05}-of-{len(parts):05}.parquet" for part in range(len(parts))]:
        raise DataError(
            f"split {split!r} in {folder} is not whole: found {', '.join(parts)}; complete the parts that its names "
            "announce (-of-), or remove it"
        )
    if parts and single:
        raise DataError(f"split {split!r} in {folder} is there twice, as {single[0]} and as {parts[0]}; remove one")
    if not parts and not single:
        raise DataError(
            f"no split {split!r} in {folder} (found: {', '.join(names) or 'no parquet file'}; expected {split}.parquet "
            f"or {split}-00000-of-0000N.parquet); add it or {_rename(key)}"
        )
    return [folder / name for name in single or parts]


def _read_parquet(wanted: Wanted, split: str, paths: list[Path]) -> Columns:
    import datasets  # imports that runs on generated data do without
    from pyarrow import parquet

    # A cache of its own, gone afterwards: the shared one would keep a second copy of files that are here anyway.
    with tempfile.TemporaryDirectory(prefix="peft-bench-data-") as cache, _no_progress_bars(datasets):
        try:
            if not sum(parquet.read_metadata(path).num_rows for path in paths):
                raise _no_rows(f"split {split!r} of {wanted.name}")  # the loader would say it less clearly
            rows = datasets.load_dataset(
                "parquet",
                data_files={split: [_literal(path) for path in paths]},
                split=split,
                cache_dir=cache,
                keep_in_memory=True,
            )
        except DataError:
            raise
        except Exception as error:  # whatever a damaged file makes pyarrow and datasets raise
            cause = error.__cause__ or error
            raise DataError(
                f"cannot read split {split!r} of {wanted.name} from {', '.join(map(str, paths))} "
                f"({type(cause).__name__}: {_first_line(cause)}); expected parquet files with equal columns"
            ) from error
        return _used_columns(wanted, rows)


def _literal(path: Path) -> str:
    """A path that the loader, which reads patterns, takes as it is."""
    return glob.escape(str(path))


def _from_hub(wanted: Wanted) -> tuple[dict[str, Columns], str | None]:
    import datasets

    if not wanted.hub_id:
        raise DataError(
            f"no data set of the hub holds {wanted.name} in this layout; set data_dir=<folder> to read "
            f"<folder>/{(Path(wanted.dataset) / wanted.subset).as_posix()}/<split>."
            + ("jsonl.gz" if wanted.dataset == mrqa.DATASET else "parquet")
        )
    try:
        tables = datasets.load_dataset(wanted.hub_id, wanted.subset or None, revision=wanted.revision)
    except Exception as error:  # no network, no such data set, no access: the library has a class for each
        raise DataError(
            f"cannot load {_on_hub(wanted)} from the Hugging Face hub "
            f"({type(error).__name__}: {_first_line(error)}); set data_dir=<folder> to read "
            f"<folder>/{(Path(wanted.dataset) / wanted.subset).as_posix()}/<split>.parquet instead"
        ) from error
    _require_splits(wanted, tables, f"{_on_hub(wanted)} on the hub")
    commit = _commit_of(tables[wanted.splits[0][0]])
    if wanted.revision and _COMMIT.fullmatch(wanted.revision) and commit not in (None, wanted.revision):
        raise DataError(  # offline the library takes whatever it has
            f"the cache holds {_on_hub(wanted)} at the commit {commit}, expected {wanted.revision}: load it once with "
            f"network, or take that commit by task.hub_revision={commit}"
        )
    return {split: _used_columns(wanted, tables[split]) for split, _ in wanted.splits}, commit


def _commit_of(rows: Any) -> str | None:
    """The commit of the hub that a datasets.Dataset was made from, by which its folder in the cache is called."""
    parents = [Path(file["filename"]).parent.name for file in rows.cache_files]
    return next((name for name in parents if _COMMIT.fullmatch(name)), None)


def _on_hub(wanted: Wanted) -> str:
    return wanted.hub_id + (f" (subset {wanted.subset})" if wanted.subset else "")


def _used_columns(wanted: Wanted, rows: Any) -> Columns:
    """The columns we use of a datasets.Dataset as lists; of the others only that they exist."""
    used = [name for name, _ in wanted.columns if name in rows.column_names]
    columns: Columns = rows.select_columns(used).to_dict()
    return dict.fromkeys(rows.column_names, ()) | dict(columns)


def _check_columns(wanted: Wanted, columns: Columns, where: str) -> None:
    keys = dict(wanted.columns)
    if missing := [name for name in keys if name not in columns]:
        raise DataError(
            f"{where} has no column {', '.join(map(repr, missing))} (found: {', '.join(columns) or 'none'}); expected "
            f"{', '.join(keys)}: change {' and '.join(sorted({keys[name] for name in missing}))}"
        )
    if not len(columns[wanted.columns[-1][0]]):
        raise _no_rows(where)


def _no_rows(where: str) -> DataError:
    return DataError(f"{where} has no rows; expected at least one: check the file, or name another split")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


@contextmanager
def _no_progress_bars(datasets: Any) -> Iterator[None]:
    """Local files are read in moments; the bars of `datasets` would tear up those of the sweep."""
    restore: Callable[[], None] | None = None
    if not datasets.are_progress_bars_disabled():
        datasets.disable_progress_bars()
        restore = datasets.enable_progress_bars
    try:
        yield
    finally:
        if restore:
            restore()
