"""Registry, dotted paths, seeds, files, colours, pickling, and the description of the machine."""

import os
import pickle
import random
import subprocess
import sys

import detectron2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.colormap import colormap, random_color, random_colors
from detectron2.utils.env import TORCH_VERSION, seed_all_rng
from detectron2.utils.file_io import PathHandler, PathManager
from detectron2.utils.registry import Registry, locate
from detectron2.utils.serialize import PicklableWrapper


class TestRegistry:
    def test_names_to_objects(self):
        registry = Registry("THINGS")

        @registry.register()
        class Thing:
            pass

        def make():
            pass

        registry.register(make)
        assert registry.get("Thing") is Thing
        assert "make" in registry and "other" not in registry
        assert dict(registry) == {"Thing": Thing, "make": make}

    def test_a_missing_name_and_a_name_twice(self):
        registry = Registry("THINGS")
        registry.register(int)
        with pytest.raises(KeyError, match="THINGS"):
            registry.get("float")
        with pytest.raises(AssertionError, match="int"):
            registry.register(int)


class TestLocate:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("collections.OrderedDict", __import__("collections").OrderedDict),
            ("torch.nn.Linear", torch.nn.Linear),
            ("torch.nn.functional.relu", torch.nn.functional.relu),
            ("detectron2.structures.boxes.Boxes.area", Boxes.area),
            ("os.path", os.path),
        ],
    )
    def test_found(self, name, expected):
        assert locate(name) is expected

    @pytest.mark.parametrize("name", ["torch.nn.NoSuchLayer", "no_such_package.Thing", "no_such_name"])
    def test_missing(self, name):
        with pytest.raises(ImportError, match=name.split(".")[-1]):
            locate(name)


class TestSeeds:
    def draw(self):
        return random.random(), np.random.rand(), torch.rand(1).item()

    def test_the_same_seed_gives_the_same_numbers(self):
        seed_all_rng(7)
        first = self.draw()
        seed_all_rng(7)
        assert self.draw() == first
        seed_all_rng(8)
        assert all(a != b for a, b in zip(self.draw(), first))

    def test_python_and_numpy_and_torch_get_the_seed_itself(self):
        seed_all_rng(5)
        expected = random.Random(5).random(), np.random.RandomState(5).rand()
        generator = torch.Generator().manual_seed(5)
        assert self.draw() == (*expected, torch.rand(1, generator=generator).item())
        assert os.environ["PYTHONHASHSEED"] == "5"

    def test_without_a_seed_runs_differ(self):
        draws = []
        for _ in range(3):
            seed_all_rng()
            draws.append(self.draw())
        assert len(set(draws)) > 1


def test_torch_version():
    assert ".".join(map(str, TORCH_VERSION)) == ".".join(torch.__version__.split(".")[:2])


@pytest.mark.parametrize("as_file", [True, False])
def test_an_environment_module_is_run_on_import(tmp_path, as_file):
    (tmp_path / "my_setup.py").write_text("def setup_environment():\n    print('prepared')\n")
    module = str(tmp_path / "my_setup.py") if as_file else "my_setup"
    environment = {**os.environ, "DETECTRON2_ENV_MODULE": module, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "import detectron2, cv2; print(cv2.ocl.useOpenCL())"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["prepared", "False"]


class TestFiles:
    def test_local_files(self, tmp_path):
        path = str(tmp_path / "new" / "file.txt")
        PathManager.mkdirs(os.path.dirname(path))
        with PathManager.open(path, "w") as file:
            file.write("text")
        assert PathManager.isfile(path) and not PathManager.isfile(path + "x")
        assert PathManager.get_local_path(path) == path
        assert PathManager.ls(os.path.dirname(path)) == ["file.txt"]

    def test_users_may_add_kinds_of_paths(self, tmp_path):
        (tmp_path / "a.txt").write_text("found")

        class Handler(PathHandler):
            def _get_supported_prefixes(self):
                return ["unit-test://"]

            def _open(self, path, mode="r", **kwargs):
                return open(tmp_path / path.removeprefix("unit-test://"), mode)

        PathManager.register_handler(Handler(), allow_override=True)
        with PathManager.open("unit-test://a.txt") as file:
            assert file.read() == "found"


class TestColours:
    @pytest.mark.parametrize("maximum", [1, 255])
    def test_colours_are_many_distinct_and_in_range(self, maximum):
        colors = colormap(rgb=True, maximum=maximum)
        assert colors.dtype == np.float32 and colors.shape[1] == 3
        assert len(np.unique(colors, axis=0)) >= 70
        assert colors.min() >= 0 and maximum / 2 < colors.max() <= maximum

    def test_bgr_is_rgb_backwards(self):
        np.testing.assert_array_equal(colormap(rgb=False), colormap(rgb=True)[:, ::-1])

    def test_drawn_colours_are_of_the_map_and_follow_the_seed(self):
        known = {tuple(color) for color in colormap(rgb=True, maximum=1).tolist()}
        np.random.seed(1)
        first = [tuple(random_color(rgb=True, maximum=1).tolist()) for _ in range(5)]
        np.random.seed(1)
        assert [tuple(random_color(rgb=True, maximum=1).tolist()) for _ in range(5)] == first
        assert set(first) <= known and len(set(first)) > 1

    def test_several_colours_differ(self):
        drawn = random_colors(30, rgb=True)
        assert len(drawn) == 30
        assert len({tuple(color.tolist()) for color in drawn}) >= 25  # upstream's map has a few colours twice

    def test_another_maximum_is_refused(self):
        with pytest.raises(AssertionError):
            colormap(maximum=100)


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return x * self.factor


class TestPickling:
    def test_closures_can_be_pickled(self):
        offset = 3
        wrapped = PicklableWrapper(lambda x, y=0: x + y + offset)
        assert wrapped(1, y=2) == 6
        restored = pickle.loads(pickle.dumps(wrapped))
        assert restored(1, y=2) == 6
        assert not isinstance(restored, PicklableWrapper)

    def test_attributes_are_those_of_the_object_and_wrapping_twice_changes_nothing(self):
        wrapped = PicklableWrapper(PicklableWrapper(Scale(4)))
        assert (wrapped.factor, wrapped(2)) == (4, 8)
        assert not isinstance(wrapped._obj, PicklableWrapper)
        with pytest.raises(AttributeError):
            wrapped.other  # noqa: B018


def test_the_machine_is_described():
    text = collect_env_info()
    for part in (torch.__version__, np.__version__, detectron2.__version__, sys.platform, "GPU available"):
        assert part in text
    assert os.path.dirname(detectron2.__file__) in text
