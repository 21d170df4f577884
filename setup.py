import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
PROJECT = "projects/uniperceiver_v2"
# Files that the package finds in the repository, or in a wheel below uniperceiver_v2/shipped (see its files.py).
SHIPPED = ("configs/**/*", "zoo/**/*", "datasets/**/*.py", f"{PROJECT}/train_net.py", f"{PROJECT}/demo/*.py")


class BuildWithShippedFiles(build_py):
    """Copies the files of SHIPPED beside the modules. An installation that stays in the repository needs no copies."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "uniperceiver_v2", "shipped")
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        for pattern in SHIPPED:
            for source in sorted(HERE.glob(pattern)):
                place = source.relative_to(HERE)
                if source.is_file() and source.suffix != ".pyc" and not any(part[0] == "." for part in place.parts):
                    (target / place).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, target / place)


setup(
    name="uniperceiver-v2",
    version="0.1.0",
    description="An open implementation of Uni-Perceiver v2 as a Detectron2 project",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"": PROJECT},
    packages=find_packages(PROJECT, include=["uniperceiver_v2", "uniperceiver_v2.*"]),
    py_modules=["uniperceiver_v2_commands"],
    package_data={"uniperceiver_v2": [f"**/*.{kind}" for kind in ("html", "css", "js", "svg", "json")]},
    cmdclass={"build_py": BuildWithShippedFiles},
    entry_points={"console_scripts": ["uniperceiver-v2 = uniperceiver_v2_commands:main"]},
    # Without Detectron2: upstream is on no package index. It is installed already, or comes from
    # projects/detectron2_core (see the Makefile).
    install_requires=[
        "torch>=2.4",
        "transformers>=5.0",
        "tokenizers",
        "safetensors",
        "numpy",
        "scipy",
        "opencv-python",
        "fvcore",
        "iopath",
        "pycocotools>=2.0.6",
        "faster-coco-eval>=1.6",
        "lvis>=0.5.3",
        "pycocoevalcap>=1.2",
        "scikit-learn",
        "tensorboard",
        "matplotlib",
        "jinja2",
        "pillow",
        "tabulate",
        "termcolor",
        "tqdm",
        "isal",  # checksums at several times the speed of zlib's
        "pyyaml",
        "safetensors",
        "huggingface_hub",
    ],
    extras_require={
        "supervision": ["supervision>=0.25"],
        "web": ["gradio>=6.10,<7"],
        "browser": ["playwright"],
        "export": ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"],
        # `make docs` builds the site, and a test runs its notebooks.
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=1.0", "nbconvert>=7", "nbclient>=0.10", "ipykernel"],
        "dev": [
            "build",
            "setuptools>=70.1",  # builds without isolation
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "import-linter>=2.10",
            "mypy",
            "webdataset",
            # torch for GPUs brings its own; that for CPUs does not, and the kernels are tested in Triton's interpreter.
            'triton; platform_system == "Linux" and platform_machine == "x86_64"',
        ],
    },
)
