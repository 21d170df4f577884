"""Installs the import package ``detectron2`` from this folder, for machines without upstream Detectron2."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "detectron2" / "__init__.py").read_text()).group(1)

setup(
    name="detectron2-core",
    version=VERSION,
    description="The part of Detectron2's API that Uni-Perceiver v2 stands on, in pure Python",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["detectron2", "detectron2.*"]),
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        "numpy",
        "Pillow>=10.1",
        "opencv-python>=4.6",
        "fvcore>=0.1.5",
        "iopath>=0.1.9",
        "yacs>=0.1.8",
        "pycocotools>=2.0.6",
        "faster-coco-eval>=1.6",
        "lvis>=0.5.3",
        "tabulate",
        "termcolor",
        "cloudpickle",
        "tqdm",
        "tensorboard",
    ],
)
