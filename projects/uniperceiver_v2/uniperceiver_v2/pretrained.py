"""Directories of Hugging Face models that a configuration names."""

from __future__ import annotations

from pathlib import Path

from .errors import UserError

REPOSITORY = Path(__file__).resolve().parents[3]


def resolve_directory(path: str, key: str) -> Path:
    """The directory that the configuration's `key` names: relative to the working folder, else to the repository, so
    that the committed configurations work from any folder.

    Raises:
        UserError: neither exists.
    """
    for candidate in (Path(path).expanduser(), REPOSITORY / path):
        if candidate.is_dir():
            return candidate
    raise UserError(f"{key}: no directory {path!r} (looked in {Path.cwd()} and {REPOSITORY})")


def has_weights(directory: Path) -> bool:
    """Whether a Hugging Face model directory holds weights beside its configuration."""
    return any(directory.glob("*.safetensors")) or any(directory.glob("pytorch_model*.bin"))
