"""The study of cures: every arm trains, and differently from the whole model."""

import itertools
import time

import pytest
import torch
from detectron2.solver import build_lr_scheduler

ITERATIONS = 4


@pytest.fixture
def cures(imported, monkeypatch, tmp_path):
    """The program as a module, with its own folder for runs and document."""
    module = imported("cures")
    monkeypatch.setattr(module.STUDY, "output", tmp_path / "runs")
    monkeypatch.setattr(module.STUDY, "document", tmp_path / "architecture.md")
    first, last = imported("study_tables").marks_of("cures")
    module.STUDY.document.write_text(f"before\n{first}{last}after\n")
    return module


def test_every_setting_of_an_arm_differs_from_the_whole_model(cures, small_data, changed_settings):
    cures.register_development()
    whole = cures.STUDY.configuration("none", 0, 700)
    for name, arm in cures.ARMS.items():
        assert changed_settings(whole, cures.STUDY.configuration(name, 0, 700)) == set(arm.settings), name
    assert whole.SOLVER.STEPS == (560,), "after the same share of the run as in training"
    assert whole.TASKS.scenes.DATASETS == ["development_digit_scenes_train"], "no test handwriting"


def test_rate_of_the_arm_without_a_constant_one_falls_all_the_time(cures, small_data):
    cures.register_development()
    rates = {}
    for name in ("none", "constant rate"):
        cfg = cures.STUDY.configuration(name, 0, 700)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
        schedule = build_lr_scheduler(cfg, optimizer)
        rates[name] = [(optimizer.step(), schedule.step(), schedule.get_last_lr()[0])[-1] for _ in range(700)]
    after = cfg.SOLVER.WARMUP_ITERS
    assert len({round(rate, 9) for rate in rates["none"][after:]}) == 2, "a constant rate and one step"
    cosine = rates["constant rate"][after:]
    assert all(later < earlier for earlier, later in itertools.pairwise(cosine))


def test_every_arm_trains_other_weights_and_all_that_it_replaces_is_used(
    cures, small_data, small_config, replaced, delivered
):
    cures.register_development()
    cures.STUDY.train("none", 0, ITERATIONS)
    whole = dict(delivered)
    assert replaced == {}
    for name in list(cures.ARMS)[1:]:
        replaced.clear()
        cures.STUDY.train(name, 0, ITERATIONS)
        assert whole.keys() == delivered.keys()
        assert any(not torch.equal(whole[key], delivered[key]) for key in whole), name
        assert (cures.ARMS[name].settings == {}) == bool(replaced), name
        assert all(replaced.values()), (name, replaced)

    # The table has the finished runs, and nothing is trained again.
    before = {path: path.stat().st_mtime_ns for path in cures.STUDY.output.rglob("*")}
    cures.STUDY.train("denoising", 0, ITERATIONS)
    cures.STUDY.main(["--jobs", "0", "--iterations", str(ITERATIONS), "--output", str(cures.STUDY.output)])
    assert {path: path.stat().st_mtime_ns for path in cures.STUDY.output.rglob("*") if path.name != "claim"} == {
        path: time for path, time in before.items() if path.name != "claim"
    }
    text = cures.STUDY.document.read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(cures.ARMS) and not any(" - " in row for row in rows[2:])
    assert all(row.startswith(f"| {name} | development | 1 |") for name, row in zip(cures.ROWS, rows[2:], strict=True))
    assert f"9 runs with --iterations {ITERATIONS} and seed 0, finished {time.strftime('%Y')}" in text


def test_a_replaced_name_that_is_gone_is_an_error(cures, monkeypatch):
    for place, name in (
        (cures.criterion, "quality_focal_loss"),
        (cures.UnifiedDecoder, "_start_as_pooling"),
    ):
        with monkeypatch.context() as without:
            without.delattr(place, name)
            failed = []
            for arm in cures.ARMS.values():
                try:
                    with arm.replaced():
                        pass
                except AttributeError as error:
                    failed.append(str(error))
            assert len(failed) == 1 and name in failed[0]


def test_the_rows_of_the_table_are_the_arms(cures):
    assert sorted(cures.ROWS.values()) == sorted(cures.ARMS)
