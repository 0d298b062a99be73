"""Memory: how much there is, and how it is said."""

import os
import platform
import subprocess
import sys

import psutil
import pytest
import torch

from dct import UsageError, memory
from dct.memory import available, human_bytes, parse_bytes, peak, used

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("8", 8 * 10**9),
        ("7.5 GiB", int(7.5 * 2**30)),
        ("900mb", 900 * 10**6),
        ("2tb", 2 * 10**12),
        (None, None),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "8XB", "-1GB", "0", "nan", "inf", "1e400GB"])
def test_other_sizes_are_wrong_usage(text):
    with pytest.raises(UsageError, match="`memory` must be"):
        parse_bytes(text)


def test_bytes_are_said_as_people_say_them():
    assert [human_bytes(n) for n in (0, 1_234_567, 999_999_999, 4_050_000_000)] == ["0 MB", "1 MB", "1000 MB", "4.0 GB"]


def test_what_is_held_counts_against_a_limit():
    held = torch.ones(50_000_000)
    assert 200e6 < used(CPU) <= peak(CPU) + 1e6
    assert available(CPU, used(CPU)) < 50e6
    assert available(CPU, 1) == 0
    assert available(CPU, 10**18) <= psutil.virtual_memory().total
    del held


@pytest.mark.parametrize(
    ("names", "contents"),
    [
        (("memory.max", "memory.current"), "inactive_file 30\nactive_file 4\n"),
        (("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"), "total_inactive_file 30\n"),
    ],
    ids=["version 2", "version 1"],
)
def test_the_limit_of_a_container_is_the_end_of_memory(tmp_path, monkeypatch, names, contents):
    monkeypatch.setattr(memory, "CGROUP_ROOT", tmp_path)
    for name, value in zip(names, ("1000", "400"), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    (tmp_path / names[0]).with_name("memory.stat").write_text(contents)
    assert available(CPU) == 1000 - 400 + 30
    (tmp_path / names[0]).write_text("max\n")
    assert available(CPU) > 10**6


HEAPS = """
import ctypes, re, sys, threading
from dct.memory import one_heap
if sys.argv[1] == "one":
    one_heap()
threads = [threading.Thread(target=lambda: [bytes(10**5) for _ in range(100)]) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
print(len(re.findall("<heap nr", open(sys.argv[2]).read())))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have their own way with threads")
def test_the_command_line_has_one_heap_for_all_threads(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"}

    def heaps(how: str) -> int:
        command = [sys.executable, "-c", HEAPS, how, str(tmp_path / how)]
        return int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)

    assert heaps("one") == 1
    assert heaps("each") > 1
