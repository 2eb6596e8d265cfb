import json

import numpy as np
import pytest
from omegaconf import OmegaConf

from tests.conftest import write_run
from twmaml.analysis.finished_runs import UnreadableError, differing_keys, group_runs, read_run, read_runs
from twmaml.storage import evaluation_file


def reasons(left_out):
    return {folder.name: reason for folder, reason in left_out}


def test_a_run_is_read_as_it_was_written(tmp_path):
    losses = np.random.default_rng(0).uniform(size=(3, 12, 6))
    write_run(tmp_path / "0", losses=losses, seed=7, sampler="delta")
    run = read_run(tmp_path / "0")
    assert (run.seed, run.choices["sampler"], run.config["sampler.signal"]) == (7, "delta", "losses")
    np.testing.assert_array_equal(run.evaluations.losses, losses)
    assert list(run.evaluations.steps) == [0, 10, 20]
    assert run.evaluations.grid.names == ("amplitude", "phase")
    assert run.evaluations.draws == 1


def test_folders_are_found_whatever_is_given(tmp_path):
    for number in range(11):
        write_run(tmp_path / "sweep" / str(number), seed=number)
    for seed in (0, 1):
        write_run(tmp_path / "list" / f"seed_{seed}", seed=seed, job=tmp_path / "list")
    sweep, left_out = read_runs([tmp_path / "sweep"])
    assert [run.seed for run in sweep] == list(range(11))  # not 0, 1, 10, 2
    assert not left_out
    assert [run.seed for run in read_runs([tmp_path / "list"])[0]] == [0, 1]
    assert [run.seed for run in read_runs([tmp_path / "list" / "seed_1"])[0]] == [1]
    several = [tmp_path / "sweep" / "3", tmp_path / "sweep" / "3", tmp_path / "list"]
    assert [run.seed for run in read_runs(several)[0]] == [3, 0, 1]


def damage_json(folder):
    (folder / "summary.json").write_text('{"status": "fini')


def cut_arrays(folder):
    path = folder / "evaluation" / "20.npz"
    path.write_bytes(path.read_bytes()[:200])


def pickle_arrays(folder):
    with np.load(folder / "evaluation" / "20.npz") as file:
        arrays = dict(file)
    arrays["losses"] = np.array([{"an": "object"}], object)
    np.savez(folder / "evaluation" / "20.npz", allow_pickle=True, **arrays)


def cut_metrics(folder):
    lines = (folder / "metrics.csv").read_text().splitlines()
    (folder / "metrics.csv").write_text("\n".join(lines[:-1]) + "\n")


def break_yaml(folder):
    (folder / ".hydra" / "config.yaml").write_text("a: [1")


def name_code(folder):
    (folder / ".hydra" / "config.yaml").write_text("a: !!python/object/apply:os.system ['touch executed']")


def fail(folder):
    change_summary(folder, status="failed: the loss of seed 1 is not finite at meta-step 12")


def interrupt(folder):
    change_summary(folder, status="interrupted")


def change_summary(folder, **changes):
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | changes))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda folder: (folder / "summary.json").unlink(), "unfinished"),
        (lambda folder: (folder / "metrics.csv").unlink(), "metrics.csv is missing"),
        (lambda folder: (folder / "evaluation" / "10.npz").unlink(), "10.npz is missing"),
        (fail, "failed: the loss of seed 1 is not finite"),
        (interrupt, "interrupted"),
        (damage_json, "summary.json is damaged: "),
        (cut_arrays, "20.npz is damaged: "),
        (pickle_arrays, "20.npz is damaged: Object arrays cannot be loaded"),
        (cut_metrics, "its files end before meta-step 20"),
        (break_yaml, "damaged"),
        (name_code, "damaged: could not determine a constructor"),
    ],
)
def test_a_folder_that_cannot_be_compared_is_named_and_left_out(harm, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed)
    harm(tmp_path / "1")
    runs, left_out = read_runs([tmp_path])
    assert [run.seed for run in runs] == [0]
    ((folder, found),) = left_out
    assert folder == tmp_path / "1"
    assert found.startswith(reason)
    assert "\n" not in found
    assert not (tmp_path / "executed").exists()
    with pytest.raises(UnreadableError):
        read_run(folder)


def test_runs_of_another_task_or_evaluation_are_left_out(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"same{seed}", seed=seed)
    write_run(tmp_path / "task", task="quadratic")
    write_run(tmp_path / "inner", losses=np.ones((3, 12, 4)))
    write_run(tmp_path / "data", evaluation={"seed": 1})
    write_run(tmp_path / "inside", evaluation={"seed": 0, "draws": 1, "queries": 100, "inside_cells": True})
    write_run(tmp_path / "shots", shots=5)
    write_run(tmp_path / "fixed", task_config={"frequency": 2.0}, sampler="delta")
    write_run(tmp_path / "cells", task_config={"amplitude": {"cells": 7}}, sampler="delta")
    runs, left_out = read_runs([tmp_path])
    assert [run.folder.name for run in runs] == ["cells", "same0", "same1", "same2"]
    assert set(reasons(left_out)) == {"task", "inner", "data", "inside", "shots", "fixed"}
    assert reasons(left_out)["shots"] == "of another task or evaluation: shots=5"
    assert reasons(left_out)["fixed"] == "of another task or evaluation: task.frequency=2.0"
    assert all(reason.startswith("of another task or evaluation") for reason in reasons(left_out).values())


def test_a_run_from_before_a_key_goes_with_one_that_has_its_old_meaning(tmp_path):
    write_run(tmp_path / "before", seed=0)
    write_run(tmp_path / "since", seed=1, evaluation={"seed": 0, "draws": 1, "queries": 100, "inside_cells": False})
    (arm,) = group_runs(read_runs([tmp_path])[0])
    assert (arm.name, arm.seeds) == ("uniform", [0, 1])


def write_split(folder, split, losses):
    """Adds a split to the files of a run, with losses of its own on the tasks of `eval`."""
    for i, of_step in enumerate(losses):
        record = evaluation_file.read(evaluation_file.path_of(folder, 10 * i))
        path = evaluation_file.path_of(folder, 10 * i, split)
        path.parent.mkdir(exist_ok=True)
        evaluation_file.write(path, record._replace(values={"loss": of_step}, visits=None, queue_losses=None))
    header, *rows = (folder / "metrics.csv").read_text().splitlines()
    lines = [f"{header},{split}/diverged_step_0", *(f"{row},0" for row in rows)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def test_a_run_is_read_with_the_split_that_is_asked_for(tmp_path):
    for seed in range(3):
        write_run(tmp_path / str(seed), seed=seed)
    for seed in range(2):
        write_split(tmp_path / str(seed), "seen", np.full((3, 12, 6), 0.5))
    assert len(read_runs([tmp_path])[0]) == 3
    runs, left_out = read_runs([tmp_path], "seen")
    assert {float(run.evaluations.losses.mean()) for run in runs} == {0.5}
    assert {run.evaluations.split for run in runs} == {"seen"}
    assert reasons(left_out) == {"2": "not judged on seen, only on eval"}
    (tmp_path / "1" / "evaluation" / "seen" / "10.npz").unlink()
    assert reasons(read_runs([tmp_path], "seen")[1])["1"] == "10.npz is missing"


def test_runs_are_compared_where_their_own_split_is_the_same(tmp_path):
    for seed in range(3):
        changes = {"draws": 1, "splits": {"eval": {}, "seen": {"task": {"noise": float(seed == 2)}}}}
        write_run(tmp_path / str(seed), seed=seed, evaluation=changes)
        write_split(tmp_path / str(seed), "seen", np.ones((3, 12, 6)))
    assert not read_runs([tmp_path])[1]
    (left_out,) = read_runs([tmp_path], "seen")[1]
    assert left_out.reason == "of another task or evaluation: evaluation.splits.seen.task.noise=1.0"


def test_arms_are_runs_that_differ_only_in_their_seed(tmp_path):
    for number, (sampler, seed, fraction) in enumerate(
        [("delta", 1, 0.1), ("delta", 0, 0.1), ("uniform", 0, 0.1), ("delta", 0, 0.5), ("delta", 0, 0.1)]
    ):
        changes = {"sampling": {"uniform_fraction": fraction}, "wandb": {"group": str(number)}, "log_every": number + 1}
        signal = {"signal": "deltas", "uniform_fraction": fraction} if sampler == "delta" else {"signal": "none"}
        write_run(tmp_path / str(number), sampler=sampler, seed=seed, sampler_config=signal, **changes)
    arms = group_runs(read_runs([tmp_path])[0])
    assert {arm.name: arm.seeds for arm in arms} == {
        "delta sampler.uniform_fraction=0.1": [0, 1],
        "delta sampler.uniform_fraction=0.5": [0],
        "uniform": [0],
    }
    assert arms[0].runs[0].folder.name == "1"  # the first of the two with seed 0
    assert differing_keys([arm.runs[0] for arm in arms]) == ["sampler.signal", "sampler.uniform_fraction"]


def test_arms_of_several_adaptations_are_called_by_them_and_by_what_differs_within_one(tmp_path):
    kinds = [("anil", {"head": 1, "rate": 0.1}), ("maml", {"rate": 0.1}), ("maml", {"rate": 0.2})]
    for number, (name, keys) in enumerate(kinds):
        choices = {"adaptation": name, "model": "mlp"}
        write_run(tmp_path / str(number), adaptation={"steps": 1, **keys}, choices=choices)
    arms = [arm.name for arm in group_runs(read_runs([tmp_path])[0])]
    assert arms == [
        "uniform adaptation=anil",
        "uniform adaptation=maml adaptation.rate=0.1",
        "uniform adaptation=maml adaptation.rate=0.2",
    ]


def test_interpolations_are_resolved(tmp_path):
    write_run(tmp_path / "0", sampler_config={"signal": "losses", "uniform_fraction": "${sampling.uniform_fraction}"})
    assert OmegaConf.load(tmp_path / "0/.hydra/config.yaml")
    assert read_run(tmp_path / "0").config["sampler.uniform_fraction"] == 0.1
