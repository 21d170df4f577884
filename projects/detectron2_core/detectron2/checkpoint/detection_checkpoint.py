from __future__ import annotations

import pickle

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer


class DetectionCheckpointer(Checkpointer):
    """fvcore's ``Checkpointer``, which writes on the main process only and also reads Detectron2's formats.

    The suffix of a file decides how it is read:

    - ``.pkl``: a pickled dict with ``model`` (names to arrays or tensors) and ``__author__``, the format of
      Detectron2's model zoo and conversion scripts. Unpickling can run any code, so read files from trusted sources
      only.
    - any other: ``torch.load`` of a dict with ``model``, or of a bare state dict.
    """

    def __init__(self, model, save_dir="", *, save_to_disk=None, **checkpointables):
        """As in fvcore's ``Checkpointer``; ``save_to_disk`` defaults to true on the main process only."""
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager

    def _load_file(self, filename):
        if filename.endswith(".pkl"):
            return self._load_pickle(filename)
        loaded = super()._load_file(filename)
        return loaded if "model" in loaded else {"model": loaded}

    def _load_pickle(self, filename):
        with self.path_manager.open(filename, "rb") as file:
            data = pickle.load(file, encoding="latin1")
        if "model" not in data or "__author__" not in data or data.get("matching_heuristics", False):
            raise ValueError(
                f"{filename} holds weights under another framework's names; convert it to a state dict of "
                "this model (Caffe2 weights and matching by heuristics need upstream Detectron2)"
            )
        self.logger.info("Reading a file from '%s'", data["__author__"])
        return data

    def _load_model(self, checkpoint):
        incompatible = super()._load_model(checkpoint)
        # Pixel statistics come from the config. They may be missing in a checkpoint.
        own_buffers = dict(self.model.named_buffers(recurse=False))
        for key in {"pixel_mean", "pixel_std"} & own_buffers.keys() & set(incompatible.missing_keys):
            incompatible.missing_keys.remove(key)
        return incompatible
