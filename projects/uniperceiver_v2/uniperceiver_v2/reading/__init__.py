"""Reads everything that comes from outside: files, images, annotations, registered datasets.

Files are read as data only. No reader starts another program or runs code from a file. A reader either returns the
data, or says in one sentence which file, and which entry in it, cannot be used.
"""

from .annotations import check_annotations, check_instances, check_json_of
from .disk import LARGEST_FILE, patiently, read_file
from .images import READ_ERRORS, decode_image, pixels_of, read_image
from .sources import explained, require_source, source_of

__all__ = [
    "LARGEST_FILE",
    "READ_ERRORS",
    "check_annotations",
    "check_instances",
    "check_json_of",
    "decode_image",
    "explained",
    "patiently",
    "pixels_of",
    "read_file",
    "read_image",
    "require_source",
    "source_of",
]
