from setuptools import find_packages, setup

PROJECT = "projects/uniperceiver_v2"

setup(
    name="uniperceiver-v2",
    version="0.1.0",
    description="An open implementation of Uni-Perceiver v2 as a Detectron2 project",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"": PROJECT},
    packages=find_packages(PROJECT, include=["uniperceiver_v2", "uniperceiver_v2.*"]),
    package_data={"uniperceiver_v2": ["report/templates/*"]},
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
        "pyyaml",
        "safetensors",
        "huggingface_hub",
    ],
    extras_require={
        "supervision": ["supervision>=0.25"],
        "web": ["gradio>=6.10,<7"],
        "browser": ["playwright"],
        "dev": [
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
