"""Every folder and file right under results/: what it holds, and whether git does. results/README.md says it again."""

from dataclasses import dataclass

RECORDS = "records"
TRAINED = "trained"
CHECKPOINTS = "checkpoints"
RUNNING = "running"
PLANS = "plans"
CALIBRATIONS = "calibrations.json"
WANDB = "wandb"
TABLES = "tables"
REFERENCE = "reference"
ENSEMBLES = "ensembles"
ERRATA = "errata"
NEAREST = "nearest"
PRETRAINING = "pretraining"
TUNING = "tuning"


@dataclass(frozen=True)
class Place:
    """What one of them holds. committed: the results of this repository have it in git; the others stay where made."""

    holds: str
    committed: bool


PLACES = {
    RECORDS: Place("`<experiment>/<run_id>.json`, a file per run, with its predictions beside it", True),
    TABLES: Place("the pages of `peft-bench report` and `params`: the papers' tables beside our runs, our own", True),
    REFERENCE: Place("what the papers print and claim, typed by hand; `reference/README.md` has the sources", True),
    TUNING: Place("validation scores of the sweeps that chose our learning rates: `peft-bench tuning --runs`", True),
    ENSEMBLES: Place("votes of several prompts on one backbone, and what they cost: `peft-bench ensemble`", True),
    NEAREST: Place("the vocabulary entries nearest to learned prompt tokens: `peft-bench nearest`", True),
    ERRATA: Place("trained runs decoded and scored in other ways: `peft-bench errata`", True),
    PRETRAINING: Place("how the backbones of `scale=small` were made, whose weights are too large for git", True),
    TRAINED: Place("`<experiment>/<run_id>.safetensors`, the trained tensors of finished runs", False),
    CHECKPOINTS: Place("where an interrupted pack goes on from; gone when its runs are recorded", False),
    RUNNING: Place("`<experiment>/<run_id>.json`, a claim for each run that a process makes", False),
    PLANS: Place("what the last plan of each sweep wanted, and found stale, for `peft-bench status`", False),
    CALIBRATIONS: Place("seconds of a step of what has never run here, by device: `--calibrate`", False),
    WANDB: Place("runs that were tracked offline: `tracking=offline`", False),
}
