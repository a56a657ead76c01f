"""A launcher is a file of conf/hydra/launcher and the pool that it names."""

import pytest

from peft_bench.sweeps.launchers import launcher_pool
from peft_bench.sweeps.slurm import SlurmPool


@pytest.fixture
def on_a_login_node(monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setattr(SlurmPool, "check_available", staticmethod(lambda: None))


def test_the_pool_has_the_values_of_the_file_but_for_those_of_the_words(on_a_login_node):
    words = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=240"]
    pool = launcher_pool([*words, "hydra.sweep.dir=/a"])
    assert isinstance(pool, SlurmPool)
    assert pool.folder == "/a/.submitit/%j"
    assert pool.parameters["timeout_min"] == 240  # submitit's own words, and Slurm's
    assert pool.parameters["slurm_partition"] == "gpu"
    assert pool.parameters["gpus_per_node"] == 1
    assert not {"_target_", "slurm_timeout_min"} & pool.parameters.keys()


def test_an_unknown_launcher_names_those_there_are():
    with pytest.raises(ValueError, match=r"hydra/launcher=basic: expected one of slurm; leave it out for local"):
        launcher_pool(["hydra/launcher=basic"])


def test_what_is_missing_is_said_before_anything_is_composed(monkeypatch):
    monkeypatch.setattr("peft_bench.sweeps.slurm.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs hydra-submitit-launcher, which is not installed"):
        launcher_pool(["hydra/launcher=slurm"])
