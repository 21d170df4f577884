"""Peak memory of a callable, above the memory in use at its start; and what a process holds for itself."""

from __future__ import annotations

import ctypes
import functools
import gc
import multiprocessing
import platform
import re
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from uniperceiver_v2.freed_memory import give_back_freed_memory

Work = Callable[[], object]


def peak_memory(work: Work, on_gpu: bool = False) -> int:
    """Peak bytes of ``work``. On a GPU they are allocated memory in this process. On a CPU they are resident memory in
    a forked process with one thread.

    Raises:
        RuntimeError: the forked process failed.
    """
    return _gpu_peak(work) if on_gpu else _peak_in_fork(work)


def own_memory() -> int:
    """Bytes that no other process can share: files that the process maps are left out, and so is what it has freed."""
    trim()
    return _resident("RssAnon")


def trim() -> None:
    """Return freed memory to the system. Otherwise what comes next would use it, and seem to need none."""
    gc.collect()
    give_back_freed_memory()


def _gpu_peak(work: Work) -> int:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - start


def _peak_in_fork(work: Work) -> int:
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_send_peak, args=(work, sending))
    child.start()
    sending.close()
    try:
        return receiving.recv()
    except EOFError:
        raise RuntimeError("the process whose memory was measured failed") from None
    finally:
        child.join()


def _send_peak(work: Work, sending: Connection) -> None:
    # OpenMP's threads do not survive a fork. With more than one thread, the process would wait for them for ever.
    torch.set_num_threads(1)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc then returns freed memory to the system at once
        libc.mallopt(-3, 65536)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 65536)  # M_TRIM_THRESHOLD
    trim()
    _map_libraries(libc)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        start, peak = _resident("VmRSS"), functools.partial(_resident, "VmHWM")
    except OSError:
        start = _most_resident()
        peak = _most_resident
    work()
    sending.send(peak() - start)


def _map_libraries(libc: ctypes.CDLL) -> None:
    """Count all code as resident from the start. Otherwise it would count when it runs, as a fork maps it again,
    page by page."""
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.exists() else ():
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) r\S+ \S+ \S+ [1-9]\d*", line)  # a mapped file has an inode
        if found:
            start, end = (int(address, 16) for address in found.groups())
            # MADV_POPULATE_READ. Before Linux 5.14 it does nothing, and peaks include some 30 MiB of code.
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 22)


def _resident(what: str) -> int:
    """Resident bytes of this process: VmRSS is the present value, RssAnon that without files, VmHWM the peak since the
    last reset."""
    return 1024 * int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


def _most_resident() -> int:
    """Peak resident bytes since the process began, for systems that cannot reset the peak."""
    import resource  # imported here, as Windows does not have it

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
