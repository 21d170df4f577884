"""Reads everything that comes from outside: files, images, annotations, registered datasets.

Files are read as data only. No reader starts another program or runs code from a file. A reader either returns the
data, or says in one sentence which file, and which entry in it, cannot be used.
"""

from .annotations import LARGEST_ID, check_annotations, check_entries, check_instances, check_json_of
from .disk import LARGEST_FILE, open_file, open_text, patiently, read_file, require_file, require_no_way_up
from .documents import read_columns, read_json, read_lines, read_table, read_text, read_xml, read_yaml
from .ids import Id, id_order, is_id, sorted_ids
from .images import READ_ERRORS, decode_image, picture_endings, pixels_of, read_image, read_reduced, read_size
from .instances import make_sizes_whole, require_size
from .pickles import Unpickler
from .remote import find_remote, is_remote, open_copy, remote_stamp
from .sources import explained, remedy_of, require_source, source_of, while_reading
from .tars import members_of
from .videos import check_frames, read_frames
from .weights import CHECKSUM, read_tensors, require_finite, require_undamaged, tensors_checksum
from .words import LONGEST_TEXT, require_text

__all__ = [
    "CHECKSUM",
    "LARGEST_FILE",
    "LARGEST_ID",
    "LONGEST_TEXT",
    "READ_ERRORS",
    "Id",
    "Unpickler",
    "check_annotations",
    "check_entries",
    "check_frames",
    "check_instances",
    "check_json_of",
    "decode_image",
    "explained",
    "find_remote",
    "id_order",
    "is_id",
    "is_remote",
    "make_sizes_whole",
    "members_of",
    "open_copy",
    "open_file",
    "open_text",
    "patiently",
    "picture_endings",
    "pixels_of",
    "read_columns",
    "read_file",
    "read_frames",
    "read_image",
    "read_json",
    "read_lines",
    "read_reduced",
    "read_size",
    "read_table",
    "read_tensors",
    "read_text",
    "read_xml",
    "read_yaml",
    "remedy_of",
    "remote_stamp",
    "require_file",
    "require_finite",
    "require_no_way_up",
    "require_size",
    "require_source",
    "require_text",
    "require_undamaged",
    "sorted_ids",
    "source_of",
    "tensors_checksum",
    "while_reading",
]
