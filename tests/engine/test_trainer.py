"""UniPerceiverTrainer from the first iteration to the last file, on a toy model of two tasks."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from uniperceiver_v2.checkpoint import AtomicCheckpointer
from uniperceiver_v2.config import task_defaults
from uniperceiver_v2.data.order import CountFrom
from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.engine.schedules import TaskSchedule
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.modeling.decoder import ConditionalFeedForward, expert_routes, routes_table


def train(trainer_class, cfg, resume=False, **changes):
    cfg = cfg.clone()
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    torch.manual_seed(0)
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=resume)
    results = trainer.train()
    return trainer, results


def rows(cfg):
    return [json.loads(line) for line in Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()]


def test_training_learns_evaluates_and_leaves_detectron2s_files(toy_trainer, cfg):
    torch.manual_seed(0)
    untrained = toy_trainer.test(cfg, toy_trainer.build_model(cfg))["toy_lines_test"]["lines"]["error"]
    _, results = train(toy_trainer, cfg, SOLVER__MAX_ITER=300, SOLVER__WARMUP_ITERS=20)
    assert results["toy_lines_test"]["lines"]["error"] < 0.3 * untrained

    files = set(os.listdir(cfg.OUTPUT_DIR))
    assert {"model_final.pth", "last_checkpoint", "metrics.json"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert Path(cfg.OUTPUT_DIR, "last_checkpoint").read_text() == "model_final.pth"
    evaluated = [row for row in rows(cfg) if "lines/error" in row or "toy_lines_test/lines/error" in row]
    assert len(evaluated) == 1


def test_every_task_has_its_losses_gradient_norm_and_scalars_in_metrics(toy_trainer, cfg):
    train(toy_trainer, cfg)
    seen = {key for row in rows(cfg) for key in row}
    assert {"lines/loss_square", "lines/loss_size", "lines/total_loss", "lines/grad_norm"} <= seen
    assert {"signs/loss_sign", "signs/total_loss", "signs/grad_norm", "signs/temperature"} <= seen
    assert {"total_loss", "data_time", "time", "lr", "eta_seconds", "iteration"} <= seen
    assert "signs/loss_square" not in seen


@pytest.mark.parametrize("sampling", ["unmixed", "even"])
def test_tasks_follow_the_schedule_and_take_their_batches_in_order(toy_trainer, cfg, sampling):
    cfg.SOLVER.SAMPLING = sampling
    drawn = []

    class Spy(toy_trainer):
        @classmethod
        def build_task_loader(cls, cfg, task, numbers):
            for batch in super().build_task_loader(cfg, task, numbers):
                drawn.append((task, batch[0]["x"]))
                yield batch

    train(Spy, cfg)
    schedule = TaskSchedule({"lines": 2 / 3, "signs": 1 / 3}, seed=3, even=sampling == "even")
    assert [task for task, _ in drawn] == [schedule.task_at(t) for t in range(60)]
    for task in ("lines", "signs"):
        inputs = [x for name, x in drawn if name == task]
        expected = toy_trainer.build_task_loader(cfg, task, CountFrom(0))
        assert inputs
        for x in inputs:
            assert torch.equal(x, next(expected)[0]["x"])


@pytest.mark.parametrize(("averaging", "sampling"), [(0.0, "unmixed"), (0.9, "even")])
def test_a_resumed_run_ends_in_the_same_bytes(toy_trainer, cfg, tmp_path, averaging, sampling):
    cfg.SOLVER.WEIGHT_AVERAGING, cfg.SOLVER.SAMPLING = averaging, sampling
    cfg.SOLVER.CHECKPOINT_PERIOD = 23
    train(toy_trainer, cfg, OUTPUT_DIR=str(tmp_path / "whole"))

    halved = cfg.clone()
    halved.OUTPUT_DIR = str(tmp_path / "resumed")

    class Killed(toy_trainer):
        def after_step(self):
            super().after_step()
            if self.iter == 30:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Killed, halved)
    assert Path(halved.OUTPUT_DIR, "last_checkpoint").read_text() == "model_0000022.pth"
    trainer, _ = train(toy_trainer, halved, resume=True)
    assert trainer.start_iter == 23

    final = [torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("whole", "resumed")]
    assert_same(final[0]["model"], final[1]["model"])
    assert_same(final[0]["trainer"]["hooks"], final[1]["trainer"]["hooks"])
    assert_same(final[0]["trainer"]["_trainer"]["optimizer"], final[1]["trainer"]["_trainer"]["optimizer"])


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_evaluation_and_model_final_have_the_averaged_weights(toy_trainer, cfg):
    seen = []

    class Spy(toy_trainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            seen.append(model.shared.weight.detach().clone())
            return super().test(cfg, model, evaluators)

    trainer, _ = train(Spy, cfg)
    final = torch.load(Path(cfg.OUTPUT_DIR, "model_final.pth"), weights_only=True)
    average, raw = final["model"]["shared.weight"], trainer.model.shared.weight
    assert torch.equal(seen[-1], average)
    assert not torch.equal(average, raw)
    assert torch.equal(final["trainer"]["hooks"]["WeightAveraging"]["weights"]["shared.weight"], raw)
    with trainer.averaged_weights():
        assert torch.equal(trainer.model.shared.weight, average)


def test_a_tasks_loss_weight_scales_its_gradient(toy_trainer, cfg):
    """With plain AdamW, as task-balanced normalisation cancels the weight."""
    cfg.SOLVER.OPTIMIZER = "AdamW"
    cfg.TASKS.NAMES = ["signs"]
    cfg.SOLVER.MAX_ITER = 1
    gradients = []
    for weight in (1.0, 3.0):
        cfg.TASKS.signs.LOSS_WEIGHT = weight
        trainer, _ = train(toy_trainer, cfg)
        gradients.append(trainer.model.shared.weight.grad)
    torch.testing.assert_close(gradients[1], 3 * gradients[0])


def test_bf16_autocast_is_a_setting(toy_trainer, cfg):
    dtypes = []

    class Spy(toy_trainer):
        @classmethod
        def build_model(cls, cfg):
            model = super().build_model(cfg)
            model.shared.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
            return model

    train(Spy, cfg, SOLVER__MAX_ITER=2, DATASETS__TEST=())
    train(Spy, cfg, SOLVER__MAX_ITER=2, DATASETS__TEST=(), SOLVER__AMP__ENABLED=True)
    assert dtypes == [torch.float32] * 2 + [torch.bfloat16] * 2


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_answers_under_autocast_are_a_setting_of_their_own(toy_trainer, cfg, precision):
    """The evaluators' own work stays in float32."""
    inside, outside = [], []

    class Spy(toy_trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            evaluator = super().build_evaluator(cfg, dataset_name)
            plain = evaluator.process

            def process(inputs, outputs):
                outside.append(torch.is_autocast_enabled("cpu"))
                plain(inputs, outputs)

            evaluator.process = process
            return evaluator

    model = Spy.build_model(cfg)
    model.shared.register_forward_hook(lambda module, inputs, output: inside.append(output.dtype))
    exact = Spy.test(cfg, model)["toy_lines_test"]["lines"]["error"]
    cfg.merge_from_list(["TEST.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", precision])
    half = Spy.test(cfg, model)["toy_lines_test"]["lines"]["error"]
    assert inside == [torch.float32] * 3 + [getattr(torch, precision)] * 3
    assert outside == [False] * 6
    assert half != exact
    assert half == pytest.approx(exact, rel=0.05)
    assert "forward" not in vars(model)


def test_every_kind_of_task_answers_under_autocast(real_cfg, few_paraphrases):
    """Evaluators take answers of half precision, such as NumPy has not."""
    more = ("segmentation", "question_answering", "region_captioning", "video_classification")
    for kind in more:
        real_cfg.TASKS.NAMES.append(kind)
        real_cfg.TASKS[kind] = type(real_cfg)(task_defaults(kind, kind))
    real_cfg.TASKS.question_answering.DATASETS = ["small_digit_scenes_questions_train"]
    of_scenes = ("captions", "retrieval", "phrases", "panoptic", "questions", "regions")
    names = ("digit_scenes", *(f"digit_scenes_{x}" for x in of_scenes), "digit_corpus", "digit_clips", "digits")
    real_cfg.DATASETS.TEST = tuple(f"small_{name}_test" for name in names)
    real_cfg.TEST.AMP.ENABLED = True
    results = UniPerceiverTrainer.test(real_cfg, build_model(real_cfg))
    assert set(results) == set(real_cfg.DATASETS.TEST)
    assert all(results.values())


def test_a_model_that_fails_under_autocast_is_left_as_it_was(toy_trainer, cfg):
    cfg.TEST.AMP.ENABLED = True
    model = toy_trainer.build_model(cfg)
    model.line.register_forward_hook(lambda module, inputs, output: output.missing)
    with pytest.raises(AttributeError):
        toy_trainer.test(cfg, model)
    assert "forward" not in vars(model)


def test_bad_test_data_is_found_before_training(toy_trainer, cfg):
    class Missing(toy_trainer):
        @classmethod
        def build_test_loader(cls, cfg, dataset_name):
            raise UserError(f"{dataset_name}: no such file")

    trainer = Missing(cfg)
    with pytest.raises(UserError, match="no such file"):
        trainer.train()
    assert trainer.iter == 0
    assert not Path(cfg.OUTPUT_DIR, "model_final.pth").exists()


def test_the_progress_line_tells_time_left_and_each_tasks_losses(toy_trainer, cfg, caplog):
    with caplog.at_level(logging.INFO, "uniperceiver_v2"):
        train(toy_trainer, cfg)
    lines = [r.getMessage() for r in caplog.records if r.name == "uniperceiver_v2.engine.progress"]
    assert [line.split()[0] for line in lines] == ["20/60", "40/60", "60/60"]
    for part in (
        "eta 0:00:0",
        "s/it (data 0.0",
        "lr ",
        "| lines ",
        "(square ",
        " size ",
        "| signs ",
        "(sign ",
    ):
        assert part in lines[-1]


def test_an_evaluation_logs_the_routes_of_a_model_with_experts(toy_trainer, cfg, caplog):
    trainer = toy_trainer(cfg)

    def logged() -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.INFO, "uniperceiver_v2"):
            trainer.evaluate()
        return [r.getMessage() for r in caplog.records if "different sets" in r.getMessage()]

    assert logged() == []
    trainer.model.experts = ConditionalFeedForward(4, 4, experts=4, active=2)
    (message,) = logged()
    assert message.endswith(routes_table(expert_routes(trainer.model)))


def test_a_run_that_starts_anew_in_a_used_folder_forgets_its_last_checkpoint(toy_trainer, cfg):
    train(toy_trainer, cfg, SOLVER__MAX_ITER=20)

    class Interrupted(toy_trainer):
        def run_step(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Interrupted, cfg)
    assert not Path(cfg.OUTPUT_DIR, "last_checkpoint").exists()
    trainer, _ = train(toy_trainer, cfg, resume=True, SOLVER__MAX_ITER=20)
    assert trainer.start_iter == 0


def test_processes_that_do_not_share_their_folder_are_refused(toy_trainer, cfg, processes, tmp_path):
    def work() -> None:
        own = cfg.clone()
        own.OUTPUT_DIR = str(tmp_path / str(torch.distributed.get_rank()))
        with pytest.raises(UserError, match=r"process 1 does not see model_final.pth.*folder that all of them share"):
            train(toy_trainer, own, resume=True)

    train(toy_trainer, cfg, SOLVER__MAX_ITER=20, OUTPUT_DIR=str(tmp_path / "0"))
    for pid in processes.fork_ranks(work, tmp_path):
        assert processes.exit_code(pid) == 0


@pytest.mark.parametrize("of_the_first", ["model_0000011.pth", "nothing.pth"])
def test_the_first_process_decides_what_is_resumed(toy_trainer, cfg, processes, tmp_path, of_the_first):
    """The second process sees an older state of the folder."""

    def work() -> None:
        usual = AtomicCheckpointer._last_checkpoint
        is_first = torch.distributed.get_rank() == 0
        AtomicCheckpointer._last_checkpoint = lambda self: usual(self) + ("" if is_first else ".older")
        if of_the_first == "nothing.pth":
            with pytest.raises(UserError, match=r"names 'nothing.pth', which is not there"):
                train(toy_trainer, cfg, resume=True)
        else:
            assert train(toy_trainer, cfg, resume=True)[0].start_iter == 12

    train(toy_trainer, cfg, SOLVER__MAX_ITER=20, SOLVER__CHECKPOINT_PERIOD=6)
    for name, checkpoint in (("", of_the_first), (".older", "model_0000005.pth")):
        Path(cfg.OUTPUT_DIR, f"last_checkpoint{name}").write_text(checkpoint)
    for pid in processes.fork_ranks(work, tmp_path):
        assert processes.exit_code(pid) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 1e300), ("betas", (0.9, -1.0)), ("betas", (0.9,) * 3), ("step", -1), ("step", 10**400)],
)
def test_an_optimizer_that_no_settings_make_is_refused(toy_trainer, cfg, name, value):
    train(toy_trainer, cfg, SOLVER__MAX_ITER=20)
    path = Path(cfg.OUTPUT_DIR, "model_final.pth")
    content = torch.load(path, weights_only=True)
    content["trainer"]["_trainer"]["optimizer"]["param_groups"][0][name] = value
    torch.save(content, path)
    with pytest.raises(UserError, match=f"{path}: the optimizer's '{name}' is .*, not (in 0|2 values)"):
        toy_trainer(cfg).resume_or_load(resume=True)


def test_what_was_resumed_does_not_change_with_the_file(toy_trainer, cfg):
    train(toy_trainer, cfg, SOLVER__MAX_ITER=20)
    trainer = toy_trainer(cfg)
    trainer.resume_or_load(resume=True)
    before = (
        repr(trainer.optimizer.state_dict()),
        repr(trainer.averaging.state_dict()),
        repr(trainer.model.state_dict()),
    )
    path = Path(cfg.OUTPUT_DIR, "model_final.pth")
    path.write_bytes(bytes(path.stat().st_size))  # in its place
    after = repr(trainer.optimizer.state_dict()), repr(trainer.averaging.state_dict()), repr(trainer.model.state_dict())
    assert before == after


def test_running_statistics_are_refused_on_several_ranks(toy_trainer, cfg, processes, tmp_path):
    class Normalised(toy_trainer):
        @classmethod
        def build_model(cls, cfg):
            model = super().build_model(cfg)
            model.norm = torch.nn.BatchNorm1d(4)
            return model

    def work() -> None:
        with pytest.raises(UserError, match="FrozenBN"):
            train(Normalised, cfg)

    for pid in processes.fork_ranks(work, tmp_path):
        assert processes.exit_code(pid) == 0
