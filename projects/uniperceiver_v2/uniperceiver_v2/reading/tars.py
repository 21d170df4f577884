"""Reads the headers of tar archives, in bounded time and memory whatever stands in them."""

import logging
import os
import tarfile
from collections.abc import Iterator

from ..errors import UserError

logger = logging.getLogger(__name__)

# Headers that extend a member's header, for example by a long name. tarfile reads them as a whole.
_EXTENDED = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
LARGEST_EXTENDED = 2**20  # bytes of a header that extends another
LONGEST_NAME = 4096  # bytes of a member's name, as of a path in Linux
MOST_GLOBAL = 100  # values for all members that follow, which tarfile gives to each of them


class _DamagedHeader(Exception):
    """A member's header is wrong."""


class _BoundedMember(tarfile.TarInfo):
    """A header that cannot make tarfile go back in the file without end, or read large extended headers into memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:  # called for each header before it is used
        if self.size < 0:
            raise _DamagedHeader(f"the header of {self.name!r} gives a size of {self.size} bytes")
        if self.type in _EXTENDED and self.size > LARGEST_EXTENDED:
            raise _DamagedHeader(f"an extended header has {self.size} bytes, more than {LARGEST_EXTENDED}")
        if len(tar.pax_headers) > MOST_GLOBAL:
            raise _DamagedHeader(f"{len(tar.pax_headers)} values hold for all members, more than {MOST_GLOBAL}")
        return super()._proc_member(tar)


# Errors of damaged headers, in addition to tarfile's own errors, which count as the end of the tar.
_DAMAGED = (_DamagedHeader, ArithmeticError, LookupError, RecursionError, TypeError, ValueError)


def _reason(error: Exception) -> str:
    known = {RecursionError: "its extended headers follow each other without a member"}
    return known.get(type(error), str(error) or type(error).__name__)


def members_of(path: str) -> Iterator[tarfile.TarInfo]:
    """The members of an uncompressed tar. If it is cut short, those before the cut, and the log names it.

    Raises:
        UserError: the file is not an uncompressed tar, or a header in it is damaged.
    """
    try:
        tar = tarfile.open(path, "r:", tarinfo=_BoundedMember)  # noqa: SIM115
    except tarfile.ReadError as error:
        raise UserError(f"{path} cannot be read as an uncompressed tar ({error}), which a shard has to be") from error
    except _DAMAGED as error:
        raise UserError(f"{path} cannot be read as a shard: {_reason(error)}") from error
    count = 0
    with tar:
        try:
            before = -1
            while (member := tar.next()) is not None:
                tar.members.clear()  # tarfile would keep all members in memory
                if member.size < 0 or tar.offset <= before:  # an extended header may change the size
                    raise _DamagedHeader(f"{member.name!r} has a size of {member.size} bytes")
                if (length := len(member.name.encode("utf-8", "surrogatepass"))) > LONGEST_NAME:
                    raise _DamagedHeader(f"the name {member.name!r:.80} has {length} bytes, more than {LONGEST_NAME}")
                before, count = tar.offset, count + 1
                yield member
            end = os.pread(tar.fileobj.fileno(), tarfile.BLOCKSIZE, tar.offset)
            is_whole = end == bytes(tarfile.BLOCKSIZE)  # anything but zeros ends tarfile's reading, too
        except tarfile.ReadError:
            is_whole = False
        except _DAMAGED as error:
            raise UserError(f"{path} cannot be read as a shard: {_reason(error)}") from error
    if not is_whole:
        logger.warning("%s is cut short or damaged: only its first %d members can be found", path, count)
