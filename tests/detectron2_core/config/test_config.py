"""Configuration files, overrides, and calls with a configuration instead of arguments."""

import pytest
import yaml
from detectron2.config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg


def write(path, text):
    path.write_text(text)
    return str(path)


class TestFiles:
    def test_a_file_overrides_what_it_names_only(self, tmp_path):
        cfg = get_cfg()
        cfg.merge_from_file(write(tmp_path / "a.yaml", "VERSION: 2\nSOLVER: {BASE_LR: 0.5}\n"))
        assert cfg.SOLVER.BASE_LR == 0.5
        assert cfg.SOLVER.MAX_ITER == get_cfg().SOLVER.MAX_ITER

    def test_bases_are_found_beside_the_file_and_overridden_by_it(self, tmp_path):
        (tmp_path / "deep").mkdir()
        write(tmp_path / "root.yaml", "VERSION: 2\nSEED: 1\nSOLVER: {BASE_LR: 1.0, MAX_ITER: 1, GAMMA: 0.7}\n")
        write(tmp_path / "middle.yaml", "_BASE_: root.yaml\nSEED: 2\nSOLVER: {BASE_LR: 2.0, MAX_ITER: 2}\n")
        cfg = get_cfg()
        cfg.merge_from_file(write(tmp_path / "deep/leaf.yaml", "_BASE_: ../middle.yaml\nSOLVER: {BASE_LR: 3.0}\n"))
        assert (cfg.SEED, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.GAMMA) == (2, 3.0, 2, 0.7)

    def test_of_several_bases_the_later_wins(self, tmp_path):
        write(tmp_path / "a.yaml", "VERSION: 2\nSEED: 1\nVIS_PERIOD: 5\n")
        write(tmp_path / "b.yaml", "SEED: 2\n")
        cfg = get_cfg()
        cfg.merge_from_file(write(tmp_path / "c.yaml", "_BASE_: [a.yaml, b.yaml]\nOUTPUT_DIR: here\n"))
        assert (cfg.SEED, cfg.VIS_PERIOD, cfg.OUTPUT_DIR) == (2, 5, "here")

    def test_without_a_version_the_current_one_is_assumed(self, tmp_path):
        cfg = get_cfg()
        cfg.merge_from_file(write(tmp_path / "a.yaml", "SEED: 3\n"))
        assert (cfg.SEED, cfg.VERSION) == (3, 2)

    def test_a_file_of_a_later_version_is_refused(self, tmp_path):
        with pytest.raises(AssertionError, match="v3"):
            get_cfg().merge_from_file(write(tmp_path / "a.yaml", "VERSION: 3\n"))

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(AssertionError, match=r"nowhere\.yaml"):
            get_cfg().merge_from_file(str(tmp_path / "nowhere.yaml"))

    def test_an_unknown_key_is_named(self, tmp_path):
        with pytest.raises(KeyError, match=r"SOLVER\.BASE_LEARNING_RATE"):
            path = write(tmp_path / "a.yaml", "VERSION: 2\nSOLVER: {BASE_LEARNING_RATE: 1.0}\n")
            get_cfg().merge_from_file(path)

    def test_python_tags_are_loaded_unless_forbidden(self, tmp_path):
        path = write(tmp_path / "a.yaml", "VERSION: 2\nSEED: !!python/object/apply:builtins.len [[1, 2, 3, 4]]\n")
        cfg = get_cfg()
        with pytest.raises(yaml.constructor.ConstructorError):
            cfg.merge_from_file(path, allow_unsafe=False)
        cfg.merge_from_file(path)
        assert cfg.SEED == 4

    def test_dump_can_be_merged_again(self, tmp_path):
        cfg = get_cfg()
        cfg.merge_from_list(["SOLVER.STEPS", "(3, 5)", "DATASETS.TRAIN", "('x', 'y')", "MODEL.WEIGHTS", "w.pth"])
        again = get_cfg()
        again.merge_from_file(write(tmp_path / "dump.yaml", cfg.dump()))
        assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump()) != yaml.safe_load(get_cfg().dump())
        assert (again.SOLVER.STEPS, again.DATASETS.TRAIN, again.MODEL.WEIGHTS) == (
            (3, 5),
            ("x", "y"),
            "w.pth",
        )


class TestOverrides:
    def test_values_are_read_as_python_literals(self):
        cfg = get_cfg()
        cfg.merge_from_list(["SOLVER.BASE_LR", "0.25", "INPUT.MIN_SIZE_TRAIN", "(5, 6)", "MODEL.DEVICE", "cpu"])
        assert (cfg.SOLVER.BASE_LR, cfg.INPUT.MIN_SIZE_TRAIN, cfg.MODEL.DEVICE) == (0.25, (5, 6), "cpu")

    def test_lists_become_tuples_where_the_default_is_one(self):
        cfg = get_cfg()
        cfg.merge_from_list(["DATASETS.TRAIN", "['a']"])
        assert cfg.DATASETS.TRAIN == ("a",)

    def test_an_unknown_key_is_refused(self):
        with pytest.raises(AssertionError, match="Non-existent key"):
            get_cfg().merge_from_list(["SOLVER.NO_SUCH_KEY", "1"])

    def test_another_type_is_refused(self):
        with pytest.raises(ValueError, match="Type mismatch"):
            get_cfg().merge_from_list(["SOLVER.MAX_ITER", "many"])

    def test_a_frozen_node_cannot_be_changed_until_it_is_thawed(self):
        cfg = get_cfg()
        cfg.freeze()
        assert cfg.is_frozen()
        with pytest.raises(AttributeError):
            cfg.SOLVER.MAX_ITER = 1
        cfg.defrost()
        cfg.SOLVER.MAX_ITER = 1
        assert cfg.SOLVER.MAX_ITER == 1

    def test_a_clone_shares_nothing(self):
        cfg = get_cfg()
        clone = cfg.clone()
        clone.SOLVER.MAX_ITER = 1
        assert isinstance(clone, CfgNode)
        assert cfg.SOLVER.MAX_ITER == 40000

    def test_global_cfg_is_the_same_object_with_new_content(self):
        cfg = CfgNode({"ANSWER": 42})
        set_global_cfg(cfg)
        try:
            assert global_cfg.ANSWER == 42
            set_global_cfg(CfgNode({"OTHER": 1}))
            assert "ANSWER" not in global_cfg
            assert global_cfg.OTHER == 1
        finally:
            set_global_cfg(CfgNode())


class Layer:
    @configurable
    def __init__(self, width, depth=2, *, name="layer"):
        self.given = (width, depth, name)

    @classmethod
    def from_config(cls, cfg, extra=0):
        return {"width": cfg.WIDTH + extra, "name": cls.__name__}


class Sublayer(Layer):
    pass


class Deeper(Layer):
    @configurable
    def __init__(self, height, **kwargs):
        super().__init__(**kwargs)
        self.height = height

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "height": cfg.HEIGHT}


class Open(Layer):
    @classmethod
    def from_config(cls, cfg, *args, **kwargs):
        return {"width": len(args), "depth": kwargs["depth"] * 10}


@configurable(from_config=lambda cfg: {"width": cfg.WIDTH})
def build(width, depth=2):
    return width, depth


class TestConfigurable:
    cfg = CfgNode({"WIDTH": 8, "HEIGHT": 3})

    @pytest.mark.parametrize(
        ("make", "expected"),
        [
            (lambda cfg: Layer(1), (1, 2, "layer")),
            (lambda cfg: Layer(width=1, depth=4, name="x"), (1, 4, "x")),
            (lambda cfg: Layer(cfg), (8, 2, "Layer")),
            (lambda cfg: Layer(cfg=cfg), (8, 2, "Layer")),
            (lambda cfg: Layer(cfg, depth=5), (8, 5, "Layer")),
            (lambda cfg: Layer(cfg, name="mine"), (8, 2, "mine")),
            (lambda cfg: Layer(cfg, extra=2), (10, 2, "Layer")),
            (lambda cfg: Sublayer(cfg), (8, 2, "Sublayer")),
            (lambda cfg: Open(cfg, "a", "b", depth=3), (2, 30, "layer")),
        ],
    )
    def test_class(self, make, expected):
        assert make(self.cfg).given == expected

    def test_a_subclass_may_add_arguments(self):
        deeper = Deeper(self.cfg)
        assert (deeper.height, deeper.given) == (3, (8, 2, "Deeper"))
        assert Deeper(height=1, width=2).given == (2, 2, "layer")

    def test_function(self):
        assert build(1) == (1, 2)
        assert build(self.cfg) == (8, 2)
        assert build(cfg=self.cfg, depth=9) == (8, 9)

    def test_the_decorated_keep_their_names(self):
        assert build.__name__ == "build"
        assert Layer.__init__.__name__ == "__init__"

    def test_empty_parentheses_change_nothing(self):
        class Other(Layer):
            @configurable()
            def __init__(self, width, name):
                self.given = (width, name)

        assert Other(self.cfg).given == (8, "Other")

    def test_a_class_needs_a_from_config(self):
        class Bare:
            @configurable
            def __init__(self, a):
                pass

        with pytest.raises(AttributeError, match="from_config"):
            Bare(self.cfg)

    def test_from_config_must_be_a_classmethod(self):
        class Wrong:
            @configurable
            def __init__(self, a):
                pass

            def from_config(self, cfg):
                return {}

        with pytest.raises(TypeError, match="classmethod"):
            Wrong(self.cfg)

    def test_the_first_argument_must_be_called_cfg(self):
        @configurable(from_config=lambda config: {})
        def function(a=1):
            return a

        with pytest.raises(TypeError, match="cfg"):
            function(self.cfg)

    def test_only_init_may_be_decorated_without_from_config(self):
        with pytest.raises(AssertionError):

            @configurable
            def function(a):
                pass

        with pytest.raises(AssertionError):
            configurable(from_config=5)
