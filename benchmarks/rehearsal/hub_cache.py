"""Stand-ins where the libraries look for what they have downloaded before."""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import huggingface_hub
from datasets.packaged_modules.parquet.parquet import Parquet

from ..config.pins import data_revision_of, revision_of
from ..config.schema import BackboneConfig, TaskConfig

COMMIT = "0" * 39 + "1"  # of a stand-in in the hub's cache


def fill_cache(
    cache: Path, backbones: Sequence[tuple[str, BackboneConfig]], tasks: Sequence[tuple[str, TaskConfig]]
) -> None:
    """Put copies of these stand-ins into `cache`, as the libraries keep what they have downloaded.

    backbones, tasks: each with the folder given to make_backbone or make_task.
    """
    for root, backbone in {b.hub_id: (root, b) for root, b in backbones}.values():
        _cache_backbone(cache / "hub", Path(root) / backbone.hub_id, backbone)
    for root, task in {(t.dataset, t.subset): (root, t) for root, t in tasks}.values():
        _cache_task(cache / "datasets", Path(root) / task.dataset / task.subset, task)


@contextlib.contextmanager
def hub_cache(cache: Path) -> Iterator[None]:
    """Inside, the libraries of this process take this cache for theirs, and we for ours."""
    before = huggingface_hub.constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE
    huggingface_hub.constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE = str(cache / "hub"), cache / "datasets"
    try:
        with conversions_in(cache / "peft-bench"):
            yield
    finally:
        huggingface_hub.constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE = before


@contextlib.contextmanager
def conversions_in(folder: Path) -> Iterator[None]:
    """Inside, pickled weights are converted there, by processes that are started, too; not in the user's cache."""
    name = "PEFT_BENCH_CACHE"
    before = os.environ.get(name)
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        del os.environ[name]
        os.environ.update({} if before is None else {name: before})


def _cache_backbone(cache: Path, folder: Path, backbone: BackboneConfig) -> None:
    """Put a copy of a checkpoint folder into the cache that huggingface_hub keeps of what it has downloaded.

    blobs/ has the files, snapshots/<commit>/ a link by name to each, refs/<branch> the commit.
    """
    repository = cache / f"models--{backbone.hub_id.replace('/', '--')}"
    revision = revision_of(backbone)
    snapshot = repository / "snapshots" / _commit(revision)
    for part in (repository / "blobs", repository / "refs", snapshot):
        part.mkdir(parents=True)
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file.name).symlink_to(Path("../..", "blobs", blob.name))
    if revision != snapshot.name:
        (repository / "refs" / revision).write_text(COMMIT)


def _commit(revision: str | None) -> str:
    """The commit that a revision is; of a branch one that is made up."""
    return revision if revision and re.fullmatch("[0-9a-f]{40}", revision) else COMMIT


def _cache_task(cache: Path, folder: Path, task: TaskConfig) -> None:
    """Put a copy of a task's folder into the cache that `datasets` keeps of what it has downloaded and converted."""
    files = {path.name.partition("-")[0]: [str(path)] for path in sorted(folder.glob("*.parquet"))}
    name = task.hub_id.rpartition("/")[2]
    with tempfile.TemporaryDirectory() as scratch:
        subset = task.subset or "default"
        commit = _commit(data_revision_of(task))
        builder = Parquet(cache_dir=scratch, dataset_name=name, config_name=subset, data_files=files, hash=commit)
        builder.download_and_prepare()
        shutil.copytree(builder.cache_dir, cache / task.hub_id.replace("/", "___") / subset / "0.0.0" / commit)
