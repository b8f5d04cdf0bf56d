# SPDX-License-Identifier: LGPL-2.1-or-later
"""A stock Debian at work is kept in a snapshot, ended, and goes on from there: its shell, what it was doing, and what is on its disk.
VMM_SNAPSHOT_ROUNDS= has the twenty times be another number."""

import contextlib
import json
import os
import re
import time

from debian import PROMPT, command, login
from lablib import LabError
from machine import Machine
from scenario import Failure, expect, journal, report, scenario, wait_until

DISK = "/srv/lab/guest/disk.img"
SNAPSHOTS = "/run/vmm-snapshots" # memory: an emulated disk is the slowest thing here
# Writes, reads back and compares on the disk, and counts; what is in memory does not change.
WORK = ("echo 0 >/run/count; head -c 24M /dev/urandom >/dev/shm/still; sha256sum /dev/shm/still >/dev/shm/sum; "
        "(i=0; while :; do i=$((i+1)); head -c 64K /dev/urandom >/dev/shm/new; cp /dev/shm/new /root/new.$((i%4)); sync /root/new.$((i%4)); "
        "cmp -s /dev/shm/new /root/new.$((i%4)) || echo $i >>/root/bad; echo $i >/run/count; done) & disown")
LOOK = "cat /run/count; sha256sum -c --quiet /dev/shm/sum && ls /root/bad 2>/dev/null; dmesg -l emerg,alert,crit,err | grep -c . ; date +%s"


def define(lab, name, disk, memory="384M"):
    definition = {
        "memory": memory, "vcpus": 2, "kernel": "/srv/lab/guest/vmlinuz", "initrd": "/srv/lab/guest/initrd.img", "commandLine": "quiet rw",
        "hotplugSlots": 0,
        "devices": {
            "root": {"type": "block", "path": disk, "root": True},
            "rng": {"type": "rng"},
            "balloon": {"type": "balloon"},
            "sock": {"type": "vsock"},
            "serial": {"type": "serial"},
            "console": {"type": "console"},
        },
    }
    lab.write_file(f"/etc/vmm/{name}.json", json.dumps(definition, indent=8))


def vmmctl(lab, text, timeout=240):
    return lab.check(f"vmmctl --directory={SNAPSHOTS} snapshot {text}", timeout=timeout)


@contextlib.contextmanager
def machines(lab, *names):
    """They are there, and in the end they are not, whatever happens."""
    lab.check(f"rm -rf {SNAPSHOTS} && mkdir -m 0700 {SNAPSHOTS}")
    try:
        yield
    except (LabError, Failure) as error:
        raise Failure(f"{error}\n" + lab.run("journalctl -q --no-pager -o short-monotonic -n 60 -u 'vmm*'")[1]) from None
    finally:
        for name in names:
            lab.run(f"vmmctl stop --force {name}; rm -f /etc/vmm/{name}.json", 120)
        lab.run(f"systemctl daemon-reload; systemctl --all reset-failed 'vmm*'; rm -rf {SNAPSHOTS}")


def begin(lab, name):
    lab.check(f"systemctl daemon-reload; systemctl start vmm@{name}.service", timeout=120)
    with lab.terminal(f"vmmctl console {name}") as terminal:
        login(terminal)
        command(terminal, "dmesg -n 1")
        terminal.send(WORK + "\r")
        terminal.expect(PROMPT, 120)
        return look(lab, terminal)


def look(lab, terminal):
    """How far it has got, the errors of its kernel, and how far its clock is behind the host's. Fails where anything is not as it was."""
    words = command(terminal, LOOK, 120).split()
    expect(len(words) == 3 and all(word.isdigit() for word in words), f"the guest says {words!r}")
    counted, errors, clock = (int(word) for word in words)
    return [counted, errors, int(lab.check("date +%s")) - clock]


def look_again(lab, name, before, stood=0):
    """The same shell answers, and what it had begun goes on. Its clock stood still with it, and for nothing else."""
    with lab.terminal(f"vmmctl console {name}") as terminal:
        terminal.send("\r")
        terminal.expect(PROMPT, 180)
        now = look(lab, terminal)
        expect(now[0] >= before[0], f"it had counted to {before[0]}, and is at {now[0]}")
        if now[1] != before[1]:
            raise Failure(f"its kernel has {now[1] - before[1]} errors more: " + command(terminal, "dmesg -l emerg,alert,crit,err | tail -n 5"))
        expect(before[2] - 60 < now[2] < before[2] + stood + 60, f"its clock was {before[2]} s behind the host's, stood for {stood} s, and is {now[2]} s behind")
        for _ in range(30):
            later = look(lab, terminal)
            if later[0] > now[0]:
                return later
        raise Failure(f"it does not go on from {now[0]}")


def restorations(lab, name):
    """Of each: when the guest ran, how many of its devices did not wait for the last page, of how many, when they ran, and when all memory was there."""
    text = journal(lab, f"-o cat -u vmm@{name}.service")
    found = re.findall(r"is restored: the guest ran after (\d+) ms, (\d+) of (\d+) devices after (\d+) ms, all memory was there after (\d+) ms "
                       r"\((\d+) MiB read while it ran, (\d+) pages", text)
    return [[int(word) for word in one] for one in found]


def next_restoration(lab, name, before):
    """What the journal tells of it, which it does when all memory is there; `before` are those of which it told before."""
    told = wait_until(lab, "the journal tells of the restoration", lambda: restorations(lab, name), lambda told: len(told) > len(before), 240, interval=1)
    ran, took_part, n_devices, devices, there, read, waited = told[-1]
    # All but a balloon, of those that have a driver.
    expect(took_part >= n_devices - 1, f"only {took_part} of {n_devices} devices did not wait for the last page")
    return [ran, devices, there, read, waited]


def stop_and_restore(lab, name, before, options=""):
    """Returns what look_again() does, and the restoration's figures."""
    since, told = time.monotonic(), restorations(lab, name)
    vmmctl(lab, f"--stop {options} take {name} kept")
    state = lab.check(f"systemctl show -P ActiveState vmm@{name}.service").strip()
    expect(state == "inactive", f"the unit is {state} after a snapshot that stops it")
    vmmctl(lab, f"restore kept {name}")
    return look_again(lab, name, before, int(time.monotonic() - since)), next_restoration(lab, name, told)


def size(lab):
    return int(lab.check(f"du -s --block-size=1M {SNAPSHOTS}/kept").split()[0])


@scenario(host="any")
def units_take_and_restore_snapshots(lab):
    lab.check("truncate -s 16M /run/snapshot-disk.img; rm -rf /run/snapshots; mkdir -m 0700 /run/snapshots")
    devices = {"disk": {"type": "block", "path": "/run/snapshot-disk.img"}, "rng": {"type": "rng"}, "serial": {"type": "serial"},
               "console": {"type": "console"}, "sock": {"type": "vsock"}, "balloon": {"type": "balloon"}}
    with Machine(lab, name="snap", kernel="tiny", devices=devices) as machine:
        lab.check(f"systemctl start {machine.unit}", timeout=120)
        for options, kind in (("--stop", "plain"), ("--stop --compress", "zstd")):
            told = restorations(lab, "snap")
            lab.check(f"vmmctl --directory=/run/snapshots {options} snapshot take snap kept", timeout=120)
            listed = lab.check("vmmctl --directory=/run/snapshots --quiet snapshot list").split()
            expect(listed[0] == "kept" and kind in listed, f"the list has {listed}, and should say {kind}")
            expect(lab.check(f"systemctl show -P ActiveState {machine.unit}").strip() == "inactive", "it was not stopped")
            lab.check("vmmctl --directory=/run/snapshots snapshot restore kept snap", timeout=120)
            expect(lab.check(f"systemctl show -P ActiveState {machine.unit}").strip() == "active", "it was not restored")
            ran, _, there, _, _ = next_restoration(lab, "snap", told)
            report(f"# {kind}: it ran after {ran} ms, all memory was there after {there} ms")
        # Once it is booted again nothing of the snapshot is left, and one whose disk was written to does not fit.
        lab.check("vmmctl stop --force snap; touch /run/snapshot-disk.img", timeout=120)
        status, output = lab.run("vmmctl --directory=/run/snapshots snapshot restore kept snap", timeout=120)
        expect(status == 1 and "'disk'" in output, f"{status}: {output}")
        lab.check(f"systemctl start {machine.unit}", timeout=120)
        lab.check("test -z \"$(ls /run/vmm-restore)\" && vmmctl stop --force snap", timeout=120)
    lab.run("rm -rf /run/snapshots /run/snapshot-disk.img")


@scenario(slow=True, only_arm64="of a PC a whole Debian shows this, here and in reload.py")
def a_small_guest_at_work_goes_on_under_another_vmmd_and_from_a_snapshot(lab):
    """What is short of the next ones and of reload.py's: it writes all the while, and what it reads in the end is what it wrote."""
    mib, image = 16, "/run/snapshot-disk.img"
    lab.check(f"rm -f {image}; truncate -s 32M {image}; chmod 600 {image}")
    with machines(lab, "small"), Machine(lab, name="small", test=f"churn={mib},idle", devices={"disk": {"type": "block", "path": image}}) as machine:
        machine.start()
        machine.expect("^CHURN 2 ")
        before = machine.state()["MainPID"]
        lab.check(f"systemctl reload {machine.unit}", timeout=120)
        expect(machine.state()["MainPID"] == before, "it is another process")
        machine.expect("^CHURN 5 ")
        told = restorations(lab, "small")
        vmmctl(lab, "--stop take small kept")
        expect(machine.state()["ActiveState"] == "inactive", f"{machine.state()}\n{machine.journal()}")
        vmmctl(lab, "restore kept small")
        machine.expect("^CHURN-END", timeout=240)
        printed = [line.split() for line in machine.printed().splitlines()]
        written = {int(words[1]): words[2] for words in printed if words[:1] == ["CHURN"]}
        again = {int(words[1]): words[2] for words in printed if words[:1] == ["AGAIN"]}
        expect(sorted(written) == list(range(1, mib + 1)) and again == written, f"written {written}, read {again}")
        next_restoration(lab, "small", told)
        expect(machine.printed().count("INIT-FIRST-LINE") == 1, f"it was booted again\n{machine.journal()}")
        complaints = [line for line in machine.printed().splitlines() if re.search("BUG|Oops|I/O error|stall", line)]
        expect(not complaints, f"its kernel complains: {complaints[:5]}")


@scenario(long=True)
def a_guest_at_work_goes_on_from_a_snapshot(lab):
    with machines(lab, "demo"):
        define(lab, "demo", DISK)
        before = begin(lab, "demo")
        after, (ran, devices, there, _, waited) = stop_and_restore(lab, "demo", before)
        expect(devices < there, f"its devices ran after {devices} ms, and all memory was there after {there} ms")
        report(f"# snapshot: {size(lab)} MiB on the disk; the guest ran {ran} ms after the start, its devices {devices} ms, all memory was there after {there} ms, "
               f"{waited} pages were waited for; it had counted to {before[0]}, and went on to {after[0]}")
        # Its disk has been written to since: the snapshot does not fit it any more, and nothing is started.
        lab.check("vmmctl stop --force demo", timeout=120)
        status, output = lab.run(f"vmmctl --directory={SNAPSHOTS} snapshot restore kept demo", timeout=120)
        expect(status == 1 and "'root'" in output and "written to" in output, f"with a disk that changed: {status}, {output}")
        expect(lab.check("systemctl show -P ActiveState vmm@demo.service").strip() == "inactive", "a snapshot that was refused was started")
        listed = json.loads(vmmctl(lab, "--json=short list"))
        expect([one["name"] for one in listed] == ["kept"] and listed[0]["meta"]["disks"][0]["device"] == "root", f"the list is {listed}")
        vmmctl(lab, "remove kept")
        expect(json.loads(vmmctl(lab, "--json=short list")) == [], "a snapshot that was removed is still there")


@scenario(long=True)
def twenty_times_and_twice_at_once(lab):
    with machines(lab, "demo", "other"):
        define(lab, "demo", DISK)
        define(lab, "other", "/run/other.img")
        before = begin(lab, "demo")
        runs = []
        for number in range(int(os.environ.get("VMM_SNAPSHOT_ROUNDS", 20))):
            before, figures = stop_and_restore(lab, "demo", before, "--compress" if number % 5 == 1 else "")
            runs.append(figures)
            report(f"# {number + 1}: {size(lab)} MiB on the disk; the guest ran after {runs[-1][0]} ms, its devices after {runs[-1][1]} ms, memory was there after "
                   f"{runs[-1][2]} ms, {runs[-1][4]} pages were waited for")
        report(f"# {len(runs)} times: the guest ran after {sorted(run[0] for run in runs)} ms, its devices after {sorted(run[1] for run in runs)} ms, "
               f"memory was there after {sorted(run[2] for run in runs)} ms, "
               f"{size(lab)} MiB")
        since = time.monotonic()
        vmmctl(lab, "--stop take demo kept")
        lab.check(f"cp --sparse=always --preserve=timestamps {DISK} /run/other.img", timeout=300)
        try:
            vmmctl(lab, "restore kept demo")
            vmmctl(lab, "restore kept other")
            stood = int(time.monotonic() - since)
            look_again(lab, "demo", before, stood)
            look_again(lab, "other", before, stood)
        finally:
            lab.run("rm -f /run/other.img")
