"""Shared memory where there is too little of something, and for workers that mean harm: each call
has a clear error, nothing half made is left, and the warden and the others go on."""

import resource
import sys
from pathlib import Path

import pytest

JOBS = "shmem_jobs"


def test_a_hostile_worker_costs_the_warden_nothing(memory, host):
    other = memory.begin("struct", ["s", 64, 7], crash_domain=f"{memory.domain}.b")
    (said,) = memory.run("hostile")
    assert said["answers"] is True
    assert said["said"] > 800
    assert host.process.poll() is None, host.warden_log()
    memory.end(other)


def test_no_addresses_left_to_map_it(memory):
    (said,) = memory.run("short_of_addresses")
    assert said["errors"] == [
        "NoMemory: no memory to map a segment of 8388608 bytes: Cannot allocate memory",
        "NoMemory: no memory to map segment 'large' of 8388608 bytes: Cannot allocate memory",
    ]
    assert (said["kept"], said["found"], said["size"], said["ends"]) == (5, False, 8 << 20, 0)


def test_no_addresses_left_to_map_what_is_there(memory):
    maker = memory.begin("dsm_maker", 8 << 20)
    handle = memory.said(maker)[0]["handle"]
    (said,) = memory.run("short_of_addresses_for_what_is_there", handle)
    assert "no memory to map a segment of 8388608 bytes" in said["error"]
    assert said["there"] is True, "it may be tried again"
    memory.end(maker)


def test_more_than_the_host_has_is_refused_before_a_page_is_taken(memory, empty_host):
    """What is available is the kernel's word, in a file that this host has another one of."""
    told = empty_host.folder / "meminfo"
    told.write_text("MemTotal: 2048 kB\nMemAvailable:    1024 kB\n")
    command = f"mount --bind {told} /proc/meminfo"
    (said,) = memory.on(confined(empty_host, command)).run("more_than_there_is")
    assert said["error"] == (
        "NoMemory: no memory for segment 'vast' of 1073741824 bytes: 1048576 bytes are available"
    )


def test_a_full_dev_shm_is_no_shortage(memory, empty_host):
    """Segments have no name there, nor anywhere else."""
    fill = "mount -t tmpfs -o size=4k none /dev/shm && head -c 4096 /dev/zero > /dev/shm/full"
    there = memory.on(confined(empty_host, fill))
    made = there.begin("struct", ["s", 1 << 20, 7])
    assert there.said(made)[0]["size"] == 1 << 20


def confined(host, command):
    """Start its warden in a mount namespace of its own, after this command."""
    if sys.platform != "linux" or Path("/proc/self/uid_map").read_text().split()[1] != "0":
        pytest.skip("needs root for a mount namespace")
    script = f'{command} && exec "$@"'
    host.python = ["unshare", "--mount", "sh", "-c", script, "sh", *host.python]
    return host.start()


def test_a_warden_that_cannot_make_a_file_says_so_and_can_later(memory, empty_host):
    there = memory.on(empty_host.start())
    pid = empty_host.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 20, hard))
    made = there.begin("make", [["large", 2 << 20], ["small", 4096]])
    (said,) = there.said(made)
    large = "NoMemory: no memory for segment 'large' of 2097152 bytes: File too large"
    assert said["results"] == [large, ""]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
    there.end(there.begin("struct", ["large", 2 << 20, 1]), made)


def test_a_warden_without_descriptors_says_so_and_can_later(memory, empty_host):
    """The file of the locks, too, is made when there is room for it again."""
    there = memory.on(empty_host.start())
    pid = empty_host.pid
    idle = [there.begin("say_and_stay"), there.begin("lock_when_woken")]
    taken = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    free = next(number for number in range(len(taken) + 1) if number not in taken)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, hard))
    there.agent.set_latch(idle[1].token)
    there.eventually(lambda: len(there.said(idle[1])) == 2)
    error = "NoMemory: no memory for segment 's' of 64 bytes: memfd_create: Too many open files"
    assert there.said(idle[1])[1] == {"error": error}
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    there.agent.set_latch(idle[1].token)
    there.eventually(lambda: len(there.said(idle[1])) == 3)
    assert there.said(idle[1])[2] == {"locked": True}
    there.end(*idle)


def test_k5_a_handle_of_another_host(memory, empty_host):
    maker = memory.begin("dsm_maker", 64)
    handle = memory.said(maker)[0]["handle"]
    assert memory.on(empty_host.start()).run("dsm_user", handle) == [{"value": None}]
    memory.end(maker)
