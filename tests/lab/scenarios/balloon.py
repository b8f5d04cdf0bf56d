# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory that the guest gives back is the host's again, and a disk that grows is larger in the guest."""

import contextlib
import json
import re
import time

from debian import command, login
from lablib import LabError
from machine import Machine
from scenario import Failure, expect, scenario, wait_for, wait_until

MIB = 1 << 20
EVENTS = "/run/balloon-events"
IMAGE = "/var/lib/vmm-lab/data.img"
# Prints the events of a balloon, one reply a line.
SUBSCRIBER = b"""
import socket
import sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b'{"method":"io.vmmd.Balloon.Subscribe","more":true}\\0')
data = b""
while True:
    got = s.recv(65536)
    if not got:
        break
    *messages, data = (data + got).split(b"\\0")
    for message in messages:
        print(message.decode(), flush=True)
"""


class Guest:
    """A machine with a balloon, as its helper tells of it and as the host pays for it; and a shell of the guest's."""

    def __init__(self, lab, name, run):
        self.lab = lab
        self.name = name
        self.run = run

    def call(self, method, device="balloon", interface="io.vmmd.Balloon", **parameters):
        text = json.dumps(parameters)
        reply = json.loads(self.lab.check(
            f"python3 /run/lab/varlink-call.py /run/vmm/{self.name}/{device}.varlink {interface}.{method} '{text}'", timeout=60))
        if "error" in reply:
            raise Failure(f"{method}: {reply}")
        return reply["parameters"]

    def balloon(self):
        return self.call("Describe")["balloon"]

    def wait(self, what, condition, timeout=120):
        """Looks every second or so until the balloon is as it should be; returns it."""
        return wait_until(self.lab, what, self.balloon, condition, timeout, interval=1)

    def reach(self, target, timeout=600):
        self.call("SetTarget", target=target)
        self.wait(f"the guest reaches {target}", lambda balloon: balloon["actual"] == target, timeout)

    def charged(self):
        """What the machine costs the host, in MiB."""
        return int(self.lab.check(f"cat /sys/fs/cgroup/vmm.slice/vmm-{self.name}.slice/memory.current")) // MIB

    def subscribe(self):
        """Returns when the first event has come: what happens from then on is heard of."""
        self.lab.check(f"rm -f {EVENTS}; cat >/run/balloon-subscriber.py", input=SUBSCRIBER)
        self.lab.check(f"nohup python3 /run/balloon-subscriber.py /run/vmm/{self.name}/balloon.varlink >{EVENTS} 2>&1 </dev/null &")
        self.hears_of("present")

    def events(self, kind):
        lines = self.lab.check(f"cat {EVENTS}").splitlines(keepends=True)
        replies = [json.loads(line)["parameters"] for line in lines if line.endswith("\n")]  # the last may be half of one
        return [reply for reply in replies if reply["type"] == kind]

    def hears_of(self, kind):
        """The events of that kind, of which there will be one."""
        return wait_until(self.lab, f"an event '{kind}'", lambda: self.events(kind), bool, explain=lambda: self.lab.run(f"cat {EVENTS}")[1])


def no_policy_lacks_anything(lab):
    killed = lab.run("journalctl -k -q --no-pager | grep 'type=1326' | tail -n 3")[1]
    expect(not killed.strip(), f"a seccomp policy lacks something: {killed}")


# A guest without a disk, whose memory nothing but its own processes uses.


def fill(mib):
    return f"dd if=/dev/zero of=/m/x bs=1M count={mib} 2>/dev/null"


@contextlib.contextmanager
def pages_count(lab):
    """What is given back are single pages."""
    lab.huge_pages(False)
    try:
        yield
    finally:
        lab.huge_pages(True)


@contextlib.contextmanager
def small_guest(lab, kernel="debian12", **options):
    lab.check(f"mkdir -p /var/lib/vmm-lab; rm -f {IMAGE}; truncate -s 64M {IMAGE}")
    devices = {"balloon": {"type": "balloon", **options}, "data": {"type": "block", "path": IMAGE}}
    with pages_count(lab), Machine(lab, kernel=kernel, test="shell", memory="384M", devices=devices) as machine:
        machine.start()
        machine.expect("^INIT-STEPS")
        with lab.terminal(f"vmmctl console {machine.name} serial") as terminal:
            def run(text, timeout=300):
                terminal.send(text + "; echo \"ended=$?\"\r")
                before, match = terminal.expect(r"ended=(\d+)", timeout)
                expect(match[1] == "0", f"`{text}` in the guest: {before[-400:]}")
                return before

            run("mkdir -p /m && mount -t tmpfs -o size=95% none /m")
            guest = Guest(lab, machine.name, run)
            guest.wait("a driver", lambda balloon: balloon["driver"])
            yield guest
    no_policy_lacks_anything(lab)


@scenario(variants={"on 6.1": {"kernel": "debian12"}, "on 6.12": {"kernel": "debian13"}},
          only_x86={"on 6.12": "of 64-bit Arm there is the kernel of one release"}, slow=True)
def a_guest_out_of_memory_takes_pages_back_and_subscribers_hear_of_it(lab, kernel):
    with small_guest(lab, kernel, freePageReporting=False) as guest:
        guest.subscribe()
        guest.reach(192 * MIB)
        free = guest.call("GetStatistics")["statistics"]["freeMemory"] // MIB
        guest.run(fill(free + 24), 600)
        balloon = guest.wait("it gave way", lambda balloon: balloon["oomDeflations"] > 0)
        events = guest.hears_of("deflatedOnOom")
        print(f"# {free} MiB were free: {balloon}, {len(events)} events", flush=True)
        expect(balloon["actual"] < 192 * MIB, f"it is as large as it was: {balloon}")
        expect(events[0]["balloon"]["actual"] < 192 * MIB, f"{events}")
        # What the guest still gives up meanwhile is counted by both.
        def counted():
            return guest.balloon()["oomDeflations"], guest.call("GetCounters", interface="io.vmmd.Device")["counters"]["oomDeflations"]
        wait_until(lab, "the counter says the same", counted, lambda both: both[0] == both[1])
        if kernel == "debian13":
            statistics = guest.call("GetStatistics")["statistics"]
            expect({"oomKills", "allocationStalls", "directReclaims"} <= statistics.keys(), f"6.12 says more than {statistics}")
        # With memory free again, the same target is tried once more.
        guest.run("rm /m/x")
        guest.reach(192 * MIB)


def reports_what_is_free(guest):
    expect("freePageReporting" in guest.balloon()["features"], f"{guest.balloon()}")
    # What was free from the start is reported, too, once.
    guest.run(fill(200))
    full, before = guest.charged(), guest.balloon()["reported"]
    guest.run("rm /m/x")
    balloon = guest.wait("pages are reported", lambda balloon: balloon["reported"] >= before + 150 * MIB, 180)
    now = guest.charged()
    print(f"# memory.current {full} -> {now} MiB, reported {(balloon['reported'] - before) // MIB} MiB", flush=True)
    expect(full - now >= 120, f"memory.current was {full} MiB, and is {now}")
    expect(balloon["actual"] == 0, "the balloon itself has nothing to do with it")


def sees_its_disk_grow(lab, guest):
    def resize(mib, **parameters):
        reply = guest.call("Resize", device="data", interface="io.vmmd.Device", **parameters)
        expect(reply == {"size": mib * MIB}, f"the answer is {reply}")
        # In units of 512 bytes.
        guest.run(f"i=0; while [ $(cat /sys/block/vda/size) != {mib << 11} ] && [ $i -lt 100 ]; do sleep 0.2; i=$((i+1)); done; "
                  f"[ $(cat /sys/block/vda/size) = {mib << 11} ]")

    guest.run(f"[ $(cat /sys/block/vda/size) = {64 << 11} ]")
    resize(96, size=96 * MIB)
    expect(lab.check(f"stat -c %s {IMAGE}").strip() == str(96 * MIB), "the file has another size")
    guest.run("dd if=/dev/zero of=/dev/vda bs=1M seek=90 count=4 conv=fsync 2>/dev/null")
    # Somebody else has made it larger.
    lab.check(f"truncate -s 128M {IMAGE}")
    resize(128)


def survives_its_helper(lab, guest):
    guest.reach(64 * MIB)
    guest.call("GetStatistics")
    lab.check("systemctl kill -s KILL vmm-device@test-balloon.service")
    wait_for(lab, "the helper is started again", "[ $(systemctl show -P NRestarts vmm-device@test-balloon.service) = 1 ]")
    balloon = guest.wait("its driver is there", lambda balloon: balloon["driver"])
    expect((balloon["target"], balloon["actual"]) == (64 * MIB, 64 * MIB), f"it came back with {balloon}")
    guest.reach(32 * MIB)
    expect("freeMemory" in guest.call("GetStatistics")["statistics"], "no statistics any more")


@scenario(slow=True)
def what_is_freed_comes_back_by_itself_disks_grow_and_a_balloon_outlives_its_helper(lab):
    with small_guest(lab) as guest:
        reports_what_is_free(guest)
        sees_its_disk_grow(lab, guest)
        survives_its_helper(lab, guest)


# The whole of Debian.


def free(guest):
    """The guest's own account: free memory in MiB."""
    return int(re.search(r"^Mem:\s+\d+\s+\d+\s+(\d+)", guest.run("free -m"), re.MULTILINE)[1])


@contextlib.contextmanager
def debian_guest(lab, **options):
    definition = {
        "memory": "512M",
        "kernel": "/srv/lab/guest/vmlinuz",
        "initrd": "/srv/lab/guest/initrd.img",
        "commandLine": "quiet rw",
        "devices": {
            "root": {"type": "block", "path": "/srv/lab/guest/disk.img", "root": True},
            "rng": {"type": "rng"},
            "console": {"type": "console"},
            "balloon": {"type": "balloon", **options},
        },
    }
    lab.write_file("/etc/vmm/demo.json", json.dumps(definition, indent=8))
    lab.check("systemctl daemon-reload")
    try:
        lab.check("systemctl start vmm@demo.service", timeout=120)
        with lab.terminal("vmmctl console demo") as terminal:
            login(terminal, 600)
            guest = Guest(lab, "demo", lambda text, timeout=300: command(terminal, text, timeout))
            guest.wait("a driver", lambda balloon: balloon["driver"])
            yield guest
    except LabError as error:
        raise Failure(f"{error}\n" + lab.run("journalctl -q --no-pager -o short-monotonic -n 40 -u 'vmm*'")[1]) from None
    finally:
        lab.run("vmmctl stop --force demo; rm -f /etc/vmm/demo.json; systemctl daemon-reload; systemctl --all reset-failed 'vmm*'", 120)
    no_policy_lacks_anything(lab)


@scenario(slow=True)
def a_balloon_takes_half_of_debian_and_gives_it_back(lab):
    # Without reporting: else what the guest has freed is gone before the balloon comes.
    with pages_count(lab), debian_guest(lab, freePageReporting=False) as guest:
        guest.subscribe()
        # All memory was used once, so it is charged, and is free again.
        use = "head -c 220M /dev/zero >/dev/shm/fill && rm /dev/shm/fill"
        guest.run(use)
        free_before, charged_before = free(guest), guest.charged()
        guest.reach(256 * MIB)
        free_half, charged_half = free(guest), guest.charged()
        print(f"# half: free {free_before} -> {free_half} MiB, memory.current {charged_before} -> {charged_half} MiB", flush=True)
        expect(220 <= free_before - free_half <= 290, f"the guest had {free_before} MiB free, and has {free_half}")
        expect(charged_before - charged_half >= 150, f"memory.current was {charged_before} MiB, and is {charged_half}")

        asked = time.monotonic()
        statistics = guest.call("GetStatistics")["statistics"]
        asked = int((time.monotonic() - asked) * 1e6)
        print(f"# statistics: {statistics}", flush=True)
        expect(abs(statistics["freeMemory"] // MIB - free_half) < 32, f"free says {free_half} MiB")
        expect(400 <= statistics["totalMemory"] // MIB <= 512, "totalMemory is not the guest's")
        expect(statistics["age"] < 5_000_000 + asked, f"they are not new: they are {statistics['age']} us old, and were asked for within {asked} us")

        guest.reach(0)
        free_after, charged_low = free(guest), guest.charged()
        guest.run(use)
        charged_after = guest.charged()
        print(f"# back: free {free_after} MiB, memory.current {charged_low} -> {charged_after} MiB when it is used, "
              f"{len(guest.events('actual'))} events about its size", flush=True)
        expect(free_after - free_half >= 200, f"the guest had {free_half} MiB free, and has {free_after}")
        expect(charged_after - charged_low >= 80, "what came back is not used")
        for kind in ("present", "target", "actual"):
            guest.hears_of(kind)
