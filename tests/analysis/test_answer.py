"""The sentence that a comparison begins with, and its table, on constructed losses."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from tests.conftest import ACCURACY, write_run
from twmaml.analysis.answer import answer, legend, overview
from twmaml.analysis.comparison import Comparison
from twmaml.analysis.finished_runs import group_runs, read_runs


def losses_of(seed, change=0.0, tail=0.0, diverged=0):
    """Of 12 cells; all are changed by `change`, the two worst by `tail` besides; so many of the last have diverged."""
    of_seed = np.random.default_rng(seed).normal(0, 0.05)
    of_cells = np.linspace(1.0, 2.0, 12) + of_seed + change + np.where(np.arange(12) >= 10, tail, 0.0)
    of_cells[12 - diverged :] = np.nan
    return np.broadcast_to(of_cells[None, :, None], (2, 12, 6)).copy()


def compared(folder, seeds=10, metric=None, baseline=None, **samplers):
    """A comparison of uniform sampling with samplers that differ from it as their arguments say.

    Each has `seeds` seeds, or as many as its own `seeds` says; the last one of uniform sampling is changed by
    `baseline`. `metric` leads.
    """
    for name, changes in {"uniform": {}, **samplers}.items():
        count = changes.pop("seeds", seeds)
        for seed in range(count):
            luck = np.random.default_rng([seed, len(name)]).normal(0, 0.02)
            last = baseline if name == "uniform" and seed == count - 1 else None
            losses = losses_of(seed, **(last or changes)) + luck
            further = () if metric is None else ((metric, losses),)
            write_run(folder / name / str(seed), losses, seed=seed, sampler=name, further=further)
    return Comparison(group_runs(read_runs([folder])[0]), "uniform")


def marks_of(comparison, columns=100):
    """Of each sampler, whether the table marks it as better and as worse."""
    console = Console(width=columns, record=True, file=io.StringIO())
    console.print(overview(comparison))
    lines = console.export_text().splitlines()[2:]
    return {line.split()[0]: ("✔" in line, "✘" in line) for line in lines}


def told(text, words):
    """The number behind some words, which lies in its interval."""
    found = re.search(rf"{words} ([\d.]+) \[([\d.]+), ([\d.]+)\]", text)
    assert found, text
    value, low, high = map(float, found.groups())
    assert low <= value <= high
    return value


def test_a_clear_win_is_told_with_its_size(tmp_path):
    text = answer(compared(tmp_path, weighted={"change": -0.3, "tail": -0.2}))
    assert text.startswith("Against uniform, ")
    assert told(text, "weighted lowers the mean by") == pytest.approx(0.33, abs=0.03)
    assert told(text, "weighted lowers the worst tenth by") == pytest.approx(0.5, abs=0.05)
    assert "raises" not in text
    assert "(10 seeds, p < 0.05 after Holm's correction)" in text


def test_a_clear_loss_is_told_as_one(tmp_path):
    text = answer(compared(tmp_path, weighted={"change": 0.3}))
    assert told(text, "weighted raises the mean by") == pytest.approx(0.3, abs=0.03)
    assert "lowers" not in text


def test_where_more_is_better_the_answer_says_so(tmp_path):
    text = answer(compared(tmp_path, metric=ACCURACY, weighted={"change": -0.3}))
    assert told(text, "weighted lowers the mean by") == pytest.approx(0.3, abs=0.03)
    assert "more accuracy" in text


def test_wins_and_losses_stand_apart(tmp_path):
    text = answer(compared(tmp_path, weighted={"change": 0.3}, delta={"change": -0.3}, importance={"change": -0.5}))
    assert told(text, "importance lowers the mean by") == pytest.approx(0.5, abs=0.03)
    assert told(text, "weighted raises the mean by") == pytest.approx(0.3, abs=0.03)
    assert re.search(r"importance lowers the mean by [^;]*, delta by [^;]*; weighted raises the mean", text)


def test_a_change_of_the_tail_alone_leaves_the_mean_unchanged(tmp_path):
    text = answer(compared(tmp_path, weighted={"change": 0.025, "tail": -0.15}))
    assert text.startswith("Against uniform, weighted lowers the worst tenth by ")
    assert "no sampler changes the mean" in text
    assert told(text, "weighted lowers the worst tenth by") == pytest.approx(0.125, abs=0.03)


def test_nothing_is_told_where_nothing_differs(tmp_path):
    text = answer(compared(tmp_path, weighted={}, delta={}))
    assert text.startswith("No sampler is told apart from uniform")


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_too_few_seeds_tell_nothing(seeds, tmp_path):
    comparison = compared(tmp_path, seeds=seeds, weighted={"change": -0.5}, delta={"change": 0.5})
    assert answer(comparison).startswith(f"With {seeds} seeds nothing can be told")
    assert set(marks_of(comparison).values()) == {(False, False)}


def test_five_seeds_give_hints_and_no_marks(tmp_path):
    comparison = compared(tmp_path, seeds=5, weighted={"change": -0.5})
    text = answer(comparison)
    assert told(text, "weighted lowers the mean by") == pytest.approx(0.5, abs=0.03)
    assert text.startswith("Hints only, as 5 seeds are too few for a test")
    assert set(marks_of(comparison).values()) == {(False, False)}


def test_samplers_of_few_seeds_are_set_aside_and_the_others_judged(tmp_path):
    weighted, delta = {"change": -0.5}, {"change": -0.3, "seeds": 5}
    comparison = compared(tmp_path, 20, weighted=weighted, delta=delta, importance={"seeds": 1})
    text = answer(comparison)
    assert told(text, "weighted lowers the mean by") == pytest.approx(0.5, abs=0.03)
    assert "(20 seeds, p < 0.05 after Holm's correction)" in text
    assert "delta lowers" not in text
    assert text.endswith("Too few seeds to judge: delta (5), importance (1).")
    assert marks_of(comparison)["weighted"] == (True, False)
    assert marks_of(comparison)["delta"] == marks_of(comparison)["importance"] == (False, False)


def test_a_sampler_whose_hard_tasks_diverge_is_not_praised_for_the_others(tmp_path):
    comparison = compared(tmp_path, weighted={"change": -0.3, "diverged": 3}, delta={"change": 0.3, "diverged": 3})
    text = answer(comparison)
    assert "lowers" not in text
    assert told(text, "delta raises the mean by") == pytest.approx(0.3, abs=0.03)
    for name in ("weighted", "delta"):
        assert f"Of {name} 25 % of the tasks have diverged" in text
    assert marks_of(comparison)["weighted"] == (False, False)
    assert marks_of(comparison)["delta"] == (False, True)


def test_a_sampler_without_a_value_lends_the_others_no_seeds(tmp_path):
    text = answer(compared(tmp_path, weighted={"diverged": 12}, delta={"change": -0.3, "seeds": 2}))
    assert text.startswith("With 2 seeds nothing can be told")


def test_where_all_tasks_of_the_baselines_run_have_diverged_there_is_no_difference(tmp_path):
    text = answer(compared(tmp_path, baseline={"diverged": 12}, weighted={"change": -0.3}, delta={}))
    assert text.startswith("There is no difference to uniform: in some pair of runs every task has diverged")


def test_a_sampler_without_a_value_is_named_beside_the_others(tmp_path):
    comparison = compared(tmp_path, weighted={"diverged": 12}, delta={"change": -0.3})
    text = answer(comparison)
    assert told(text, "delta lowers the mean by") == pytest.approx(0.3, abs=0.03)
    assert "No difference is known of weighted: in some pair of runs every task has diverged" in text
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(overview(comparison))
    assert "nan" not in console.export_text()


def test_a_sampler_alone_is_compared_with_nothing(tmp_path):
    assert answer(compared(tmp_path)).startswith("There is only uniform")


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_the_table_fits_and_marks_what_is_better_and_worse(columns, tmp_path):
    names = {"importance_delta": {"change": -0.3}, "risk_prediction": {"change": 0.3}, "learning_progress": {}}
    console = Console(width=columns, record=True, file=io.StringIO())
    comparison = compared(tmp_path, **names)
    console.print(overview(comparison))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) == 2 + 4  # title and head, a row each: nothing is wrapped
    assert len(legend(comparison)) <= columns
    marks = {line.split()[0]: ("✔" in line, "✘" in line) for line in lines[2:6]}
    assert marks["importance_delta"] == (True, False)
    assert marks["risk_prediction"] == (False, True)
    assert marks["learning_progress"] == marks["uniform"] == (False, False)
    assert "…" not in console.export_text()
