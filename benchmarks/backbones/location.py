"""Which folder a backbone lies in, and the hash of what is in it. No torch.

Published checkpoints come from the hub (its cache, if they are there) or from `backbone_dir`; at scale=micro a shipped
backbone of the same model_type stands in. Weights that are pickled are read from their conversion (conversion.py).
"""

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import snapshot_download

from ..config.pins import revision_of
from ..config.schema import BackboneConfig, ScaleConfig
from .hashes import file_sha256
from .weight_files import FORMS, POINTER, BackboneError, commit_of, sharded, weight_files

if TYPE_CHECKING:
    from .conversion import Conversion

MICRO_BACKBONES = Path(__file__).resolve().parents[1] / "micro" / "backbones"
_SMALL_FILES = ["*.json", "*.txt", "*.model"]  # of a checkpoint on the hub: shapes, tokenizer, indices of weights
_BESIDE_WEIGHTS = ("config.json", "*token*.json", "vocab*", "merges.txt", "*.model")  # what else a run reads of it
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "*.model")  # each alone; or vocab.json with merges.txt


def stand_in(backbone: BackboneConfig, scale: ScaleConfig) -> Path | None:
    """The folder of the shipped backbone that stands in at this scale; None where the published one is used."""
    if not scale.backbones:
        return None
    name = scale.backbones.get(backbone.name) or scale.backbones.get(backbone.model_type)
    if name is None:
        raise BackboneError(
            f"scale={scale.name} has no backbone for model_type={backbone.model_type!r} "
            f"(known: {', '.join(scale.backbones)}); change conf/scale/{scale.name}.yaml or use scale=paper"
        )
    return MICRO_BACKBONES / name


def folder_of(backbone: BackboneConfig, scale: ScaleConfig, backbone_dir: str | None) -> Path:
    """Where the checkpoint lies that a run is made on."""
    return stand_in(backbone, scale) or _published(backbone, backbone_dir)


def _published(backbone: BackboneConfig, backbone_dir: str | None) -> Path:
    return _published_folder(backbone.name, backbone.hub_id, revision_of(backbone), backbone_dir)


def digests_of(backbone: BackboneConfig, scale: ScaleConfig, backbone_dir: str | None) -> dict[str, str]:
    """What a run starts from, for its identity; fetches it where it is not there yet.

    weights: SHA-256 of the published ones, "random" for pretrained=false. files: SHA-256 of configuration and
    tokenizer. Empty where a shipped backbone stands in (it has an identity of its own).
    """
    if stand_in(backbone, scale):
        return {}
    folder = _published(backbone, backbone_dir)
    return {"weights": weights_digest(folder) if backbone.pretrained else "random", "files": files_digest(folder)}


@functools.lru_cache(maxsize=8)  # gigabytes, read once per process
def weights_digest(folder: Path) -> str:
    """SHA-256 of the folder's safetensors files, in order of name; of *.bin files that of the tensors in them."""
    files = weight_files(folder)
    if _pickled(files):
        return _conversion(files).tensors
    return file_sha256(files[0]) if len(files) == 1 else _digest(files)


def weights_folder(folder: Path) -> Path:
    """Where the safetensors files lie that a checkpoint's weights are loaded from: itself, or its conversion."""
    files = weight_files(folder)
    return _conversion(files).folder if _pickled(files) else folder


def _pickled(files: list[Path]) -> bool:
    return files[0].suffix == ".bin"


def _conversion(files: list[Path]) -> "Conversion":
    from .conversion import converted  # which needs torch

    return converted(tuple(files))


def files_digest(folder: Path) -> str:
    """SHA-256 of what a run reads of a checkpoint beside its weights, names included."""
    return _digest_of(tuple((path, path.stat().st_mtime_ns) for path in _beside_weights(folder)), named=True)


def shipped_digest(folder: Path) -> str:
    """SHA-256 of all that a run reads of a shipped backbone: weights, configuration and tokenizer."""
    files = sorted(path for path in folder.iterdir() if path.name != "pretraining.json")
    return _digest_of(tuple((path, path.stat().st_mtime_ns) for path in files))


@functools.lru_cache(maxsize=32)
def _digest_of(files: tuple[tuple[Path, int], ...], named: bool = False) -> str:
    """Once per process; a file that was touched is read again."""
    return _digest([path for path, _ in files], named)


def _digest(files: list[Path], named: bool = False) -> str:
    digest = hashlib.sha256()
    for file in files:
        if named:
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest() if files else ""


@functools.lru_cache(maxsize=8)
def _published_folder(name: str, hub_id: str, revision: str, backbone_dir: str | None) -> Path:
    """Where a checkpoint lies on this machine; downloaded, if it is neither in backbone_dir nor in the hub's cache."""
    if backbone_dir is None:
        try:
            return _checked(_from_hub(hub_id, revision))
        except BackboneError:
            raise
        except (OSError, ValueError) as error:  # the hub's errors are OSErrors, those about names ValueErrors
            raise BackboneError(
                f"cannot load the backbone {hub_id!r} at {revision} from the hub (offline? set backbone_dir=... to a "
                f"local copy, or backbone.revision=... to a commit in the hub's cache): {str(error).splitlines()[0]}"
            ) from error
    root = Path(backbone_dir).expanduser()
    for folder in (root, root / hub_id):
        if (folder / "config.json").is_file():
            return _checked(folder)
    raise BackboneError(
        f"backbone_dir={backbone_dir} holds no checkpoint of {name}: expected config.json there or in "
        f"{hub_id}/ below it; change backbone_dir, or leave it out to load from the hub"
    )


def _from_hub(hub_id: str, revision: str) -> Path:
    """Its folder in the hub's cache, with the weights in one form alone: the first of FORMS that was published."""
    folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=_SMALL_FILES))
    for form in FORMS:
        names = [form]
        if form.endswith(".json"):
            names = sharded(folder / form) if (folder / form).is_file() else []
        # With a file that is always there, for the hub's library warns of patterns that match none.
        snapshot_download(hub_id, revision=commit_of(folder) or revision, allow_patterns=["config.json", *names])
        if names and all((folder / name).is_file() for name in names):
            break
    return folder


def _checked(folder: Path) -> Path:
    """The folder of a checkpoint, if a tokenizer can be made of it: transformers would make one without any words."""
    for path in _beside_weights(folder):
        with open(path, "rb") as stream:
            if stream.read(len(POINTER)) == POINTER:
                raise BackboneError(f"{path} is a Git LFS pointer, expected the file itself: run `git lfs pull` there")
    byte_level = all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    if not byte_level and not any(path.is_file() for name in _VOCABULARIES for path in folder.glob(name)):
        raise BackboneError(
            f"{folder} holds no vocabulary: expected tokenizer.json, vocab.txt, vocab.json with merges.txt, or a "
            "*.model of SentencePiece; copy the tokenizer's files beside config.json"
        )
    return folder


def _beside_weights(folder: Path) -> list[Path]:
    return sorted({path for name in _BESIDE_WEIGHTS for path in folder.glob(name) if path.is_file()})
