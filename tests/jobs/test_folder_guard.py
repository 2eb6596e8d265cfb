"""The folder of a single run, which Hydra names."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from twmaml.configuration.config_files import configuration_folder, register_resolvers
from twmaml.jobs.folder_guard import FolderGuard
from twmaml.jobs.job import ReportedError


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    register_resolvers()
    folders = set()
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        for adaptation in ("maml", "anil", "cavia"):
            config = compose("train", [f"adaptation={adaptation}"], return_hydra_config=True)
            FolderGuard().on_run_start(config)  # the time of a process is that of its first look at it
            folders.add(Path(config.hydra.run.dir))
    assert len(folders) == 3
    assert all(folder.is_dir() for folder in folders)


@pytest.mark.parametrize("place", [[], ["hydra.run.dir=here"]])
def test_a_mistake_in_a_value_leaves_no_folder(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    register_resolvers()
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        config = compose("train", ["meta_batch=0", *place], return_hydra_config=True)
    with pytest.raises(ReportedError):
        FolderGuard().on_run_start(config)
    assert not [*tmp_path.iterdir()]
