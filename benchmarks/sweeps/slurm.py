"""The packs of a sweep as tasks of one Slurm job array, through submitit with Hydra's launcher configuration.

conf/hydra/launcher/slurm.yaml names `SlurmPool` and holds its values; docs/cluster.md says how to use it.
"""

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from omegaconf import OmegaConf

from ..config.schema import RunConfig
from .plan import PlannedPack
from .workers import Line, make_lines

_POLL_SECONDS = 2.0


class PackTask:
    """What a task of the array does; after a time limit or a preemption Slurm begins it again, from its checkpoint."""

    def __call__(self, cfgs: Sequence[RunConfig], whole: bool) -> list[Line]:
        return make_lines(cfgs, whole)

    def checkpoint(self, cfgs: Sequence[RunConfig], whole: bool) -> Any:
        """submitit asks for this before it submits the task again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, cfgs, whole)


class SlurmPool:
    """One job array a call of `make`. submitit_folder, fields: of hydra-submitit-launcher's configuration."""

    def __init__(self, submitit_folder: str, **fields: Any):
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

        common = {*OmegaConf.structured(BaseQueueConf), "max_num_timeout"}
        self.folder = submitit_folder
        self.parameters = {n if n in common else f"slurm_{n}": value for n, value in fields.items()}

    @staticmethod
    def check_available() -> None:
        """Raises ValueError where a package or a program is missing."""
        plugins = ("submitit", "hydra_plugins", "hydra_plugins.hydra_submitit_launcher")
        if not all(find_spec(name) for name in plugins):
            raise ValueError(
                "hydra/launcher=slurm needs hydra-submitit-launcher, which is not installed: "
                "pip install -c constraints.txt -e .[slurm]"
            )
        missing = [program for program in ("sbatch", "srun") if shutil.which(program) is None]
        if missing:
            raise ValueError(
                f"hydra/launcher=slurm: {' and '.join(missing)} not found in PATH; run it on a login node of a Slurm "
                "cluster, or leave the launcher out"
            )

    def make(self, wanted: Iterator[PlannedPack]) -> Iterable[tuple[PlannedPack, list[Line]]]:
        """Each pack with its lines, in the order in which they end."""
        import submitit

        if not (packs := list(wanted)):
            return
        special = {"max_num_timeout"}
        executor = submitit.AutoExecutor(
            folder=self.folder,
            cluster="slurm",
            **{f"slurm_{name}": value for name, value in self.parameters.items() if name in special},
        )
        executor.update_parameters(**{n: v for n, v in self.parameters.items() if n not in special})
        jobs = executor.map_array(PackTask(), [[c.cfg for c in p.cells] for p in packs], [p.whole for p in packs])
        print(
            f"submitted {len(jobs)} tasks as job array {jobs[0].job_id.split('_')[0]}; logs in {self.folder}",
            flush=True,
        )
        pending = dict(zip(range(len(jobs)), jobs, strict=True))
        while pending:
            for i, job in list(pending.items()):
                if not job.done():
                    continue
                del pending[i]
                try:
                    yield packs[i], job.result()
                except Exception as error:  # submitit's own, or what the node said last
                    reason = f"task {job.job_id} ended without a result: {' '.join(str(error).split())[:300]}"
                    yield packs[i], [Line(c.label, "failed", reason, None, 0.0, "worker_lost") for c in packs[i].cells]
            time.sleep(_POLL_SECONDS)
