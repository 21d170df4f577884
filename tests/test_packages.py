"""The command finds its programs, and the wheels hold what the package needs where there is no repository."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import uniperceiver_v2_commands as commands
from uniperceiver_v2 import files
from uniperceiver_v2.config import find_config, load_config
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.modeling.pretrained import resolve_directory
from uniperceiver_v2.predictor import MODEL_ZOO
from uniperceiver_v2.predictor.pretrained import zoo_directory

ROOT = Path(__file__).parents[1]
TINY = "configs/digit_scenes/uniperceiver_v2_tiny.yaml"
NOT_BUILT = ("__pycache__", "*.egg-info", "build")  # not committed


@pytest.fixture
def process(monkeypatch):
    """Undoes what the command changes in its process."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """The folder of shipped files of a package that is in no repository. The working folder is another, empty one."""
    folder = tmp_path / "site-packages" / "uniperceiver_v2" / "shipped"
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copytree(ROOT / "zoo", folder / "zoo", ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(files, "_SHIPPED", folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def test_files_are_found_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.shipped(TINY) == ROOT / TINY == files.TINY_CONFIG
    assert find_config(TINY) == str(ROOT / TINY)
    assert find_config("") == "" and find_config("nowhere.yaml") == "nowhere.yaml"


def test_files_are_found_in_an_installed_package(installed):
    assert files.shipped(TINY) == installed / TINY
    assert resolve_directory("configs/digit_scenes/text_encoder", "KEY").is_relative_to(installed)
    assert {zoo_directory(name) for name in MODEL_ZOO} <= set((installed / "zoo").iterdir())
    assert load_config(TINY).TASKS.NAMES == load_config(str(ROOT / TINY)).TASKS.NAMES
    with pytest.raises(UserError, match="configuration file not found: configs/none"):
        load_config("configs/none.yaml")


def test_files_of_the_user_come_first(installed):
    Path(TINY).parent.mkdir(parents=True)
    Path(TINY).write_text(f"_BASE_: {installed / TINY}\nSEED: 5\n")
    assert find_config(TINY) == TINY
    assert load_config(TINY, training=False).SEED == 5


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_program_is_there_or_says_in_a_sentence_that_it_is_not(name, process, capsys, monkeypatch):
    command = commands.COMMANDS[name]
    if command.module:
        monkeypatch.setattr(commands.importlib.util, "find_spec", lambda module: None)
        assert commands.main([name, "--help"]) == 1
        assert f"cannot {name}: it has no {command.module}" in capsys.readouterr().err
        monkeypatch.undo()
        assert commands.main([name, "--help"]) == 0
    else:
        with pytest.raises(SystemExit) as end:
            commands.main([name, "--help"])
        assert end.value.code == 0
    assert "usage: " in capsys.readouterr().out


def test_arguments_and_exit_codes_are_those_of_the_program(process, capsys, tmp_path):
    sizes = ["--train-scenes", "2", "--test-scenes", "1"]
    assert commands.main(["prepare", "--output", str(tmp_path / "new"), *sizes]) == 0
    assert len(list((tmp_path / "new/images/train").iterdir())) == 2
    assert sys.argv[0] == "uniperceiver-v2 prepare"
    assert commands.main(["report", str(tmp_path / "nowhere")]) == 1
    assert "error: " in capsys.readouterr().err
    assert commands.main(["new", str(tmp_path / "nowhere")]) == 1
    assert commands.main(["train", "--config-file", "nowhere.yaml"]) == 1
    assert "configuration file not found: nowhere.yaml" in capsys.readouterr().err


def test_commands_are_listed_and_mistakes_are_told(capsys):
    assert commands.main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in commands.COMMANDS)
    assert commands.main([]) == 2
    assert commands.main(["trian"]) == 2
    assert "there is no command 'trian'; did you mean 'train'?" in capsys.readouterr().err
    assert commands.main(["xyz"]) == 2
    assert "valid: train, predict, serve" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["prepare", "--seed", "-1"]])
def test_what_does_not_need_torch_does_not_load_it(arguments):
    program = (
        "import sys, uniperceiver_v2_commands as c\n"
        f"try:\n  c.main({arguments})\n"
        "except SystemExit as end:\n  assert 'not negative' in end.code, end.code\n"
        "sys.exit('torch' in sys.modules)"
    )
    folder = Path(commands.__file__).parent
    assert subprocess.run([sys.executable, "-c", program], cwd=folder, stdout=subprocess.DEVNULL).returncode == 0


def built(source: Path, output: Path) -> set[str]:
    """The files in the wheel of a folder, which is built as ``python -m build`` does: from its source distribution."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = output.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def files_in(folder: Path, *patterns: str) -> set[str]:
    """Committed files, relative to the folder."""
    found = (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    names = (path.relative_to(folder) for path in found)
    return {name.as_posix() for name in names if "__pycache__" not in name.parts and name.name[0] != "."}


@pytest.mark.slow
def test_the_wheels_hold_all_that_the_package_finds(tmp_path):
    repository = tmp_path / "repository"
    for name in ("configs", "zoo", "projects"):
        shutil.copytree(ROOT / name, repository / name, ignore=shutil.ignore_patterns(*NOT_BUILT))
    (repository / "datasets" / "digit_scenes").mkdir(parents=True)
    (repository / "datasets" / "digit_scenes" / "data.py").write_text("no program")
    for path in (*ROOT.glob("*.*"), ROOT / "LICENSE", *ROOT.glob("datasets/*.py")):
        if path.is_file():
            shutil.copyfile(path, repository / path.relative_to(ROOT))

    project = ROOT / "projects" / "uniperceiver_v2"
    packed = built(repository, tmp_path / "ours")
    assert files_in(project, "uniperceiver_v2/**/*") <= packed, "package_data of setup.py lacks files"
    programs = ("projects/uniperceiver_v2/train_net.py", "projects/uniperceiver_v2/demo/*.py", "datasets/*.py")
    expected = files_in(ROOT, "configs/**/*", "zoo/**/*", *programs)
    prefix = "uniperceiver_v2/shipped/"
    assert {name.removeprefix(prefix) for name in packed if name.startswith(prefix)} == expected
    assert {command.file for command in commands.COMMANDS.values() if command.file} <= expected
    beside = {name.partition("/")[0] for name in packed if ".dist-info/" not in name}
    assert beside == {"uniperceiver_v2", "uniperceiver_v2_commands.py"}

    core = repository / "projects" / "detectron2_core"
    packed = built(core, tmp_path / "core")
    assert {name for name in packed if ".dist-info/" not in name} == files_in(core, "detectron2/**/*")
