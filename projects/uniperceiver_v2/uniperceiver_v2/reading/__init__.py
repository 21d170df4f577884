"""The doors through which bytes from outside come in: files, images, annotations, registered datasets.

What is read is data and nothing else: no door starts a program or runs code of a file. A door either gives what was
asked for or says in one sentence which file, and which entry of it, cannot be used.
"""

from .annotations import check_annotations, check_instances, check_json_of
from .disk import LARGEST_FILE, patiently, read_file
from .images import decode_image, read_image
from .sources import explained, require_source, source_of

__all__ = [
    "LARGEST_FILE",
    "check_annotations",
    "check_instances",
    "check_json_of",
    "decode_image",
    "explained",
    "patiently",
    "read_file",
    "read_image",
    "require_source",
    "source_of",
]
