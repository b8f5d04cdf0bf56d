# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the guest flushed to its disk is there."""

import os

from machine import Machine
from scenario import expect, scenario

IMAGE = "/var/lib/vmm-lab/disk.img"


def disk(**options):
    return {"disk": {"type": "block", "path": IMAGE, **options}}


def make_image(lab, size="64M"):
    lab.check(f"mkdir -p /var/lib/vmm-lab; rm -f {IMAGE}; truncate -s {size} {IMAGE}; chmod 600 {IMAGE}")


@scenario()
def flushed_writes_survive_stop_by_force(lab):
    make_image(lab)
    mark = os.urandom(8).hex()
    with Machine(lab, test="write,idle", command_line=f"quiet vmm.mark={mark}", devices=disk()) as machine:
        machine.start()
        written = machine.expect(r"^WRITE sum=(\w+)")[1]
        lab.check(f"vmmctl stop --force {machine.name}", timeout=60)
        machine.wait_until_ended()
    with Machine(lab, test="check,poweroff", devices=disk()) as machine:
        machine.start()
        read = machine.expect(r"^CHECK sum=(\w+)")[1]
        expect(f"SYNCED-BY-GUEST {mark}" in machine.printed(), f"the mark is gone:\n{machine.printed()}")
        expect(read == written, f"written {written}, read {read}")
        machine.wait_until_ended()
    on_host = lab.check(f"head -c 64 {IMAGE} | tr -d '\\0'")
    expect(mark in on_host, f"the image on the host holds {on_host!r}")


@scenario()
def flushed_writes_survive_a_kill_of_the_whole_machine(lab):
    make_image(lab)
    mark = os.urandom(8).hex()
    with Machine(lab, test="write,idle", command_line=f"quiet vmm.mark={mark}", devices=disk()) as machine:
        machine.start()
        written = machine.expect(r"^WRITE sum=(\w+)")[1]
        lab.check("systemctl kill -s KILL vmm-test.slice")
        machine.wait_until_ended()
        on_host = lab.check(f"dd if={IMAGE} bs=1M skip=1 count=8 2>/dev/null | md5sum | cut -d' ' -f1").strip()
        expect(on_host == written, f"written {written}, found {on_host}")


@scenario()
def a_disk_has_its_size_and_serial_and_may_be_read_only(lab):
    make_image(lab)
    with Machine(lab, test="info,write,poweroff", devices=disk(readOnly=True, serial="lab-disk-1")) as machine:
        machine.start()
        found = machine.expect(r"^INFO vda=(\d*) serial=(.*)")
        machine.wait_until_ended()
        expect((found[1], found[2].strip()) == (str(64 << 11), "lab-disk-1"), f"the guest sees {found[0]!r}")
        expect("WRITE sum=" not in machine.printed_in_the_end(), "the guest wrote to a read-only disk")
        blank = lab.check(f"head -c 1048576 {IMAGE} | tr -d '\\0' | wc -c").strip()
        expect(blank == "0", "the image has changed")


@scenario(host="any")
def two_machines_cannot_write_to_one_image(lab):
    make_image(lab)
    with Machine(lab, name="test", kernel="tiny", devices=disk(), stopTimeout="1s") as first:
        first.start()
        with Machine(lab, name="second", kernel="tiny", devices=disk(), stopTimeout="1s") as second:
            status, _ = lab.run(f"systemctl start {second.unit}", timeout=150)
            expect(status != 0, "a second machine started on the image of the first")
            expect(first.state()["ActiveState"] == "active", "the first machine suffered")


def exits_of_read(lab, machine, mebibytes):
    """How many exits vmmd had to handle from the word to go to the end of the guest's report."""
    machine.expect(f"^READ-WAIT {mebibytes}$")
    before = machine.describe()["exits"]
    lab.check(f"printf 'GO {mebibytes}\\n' | dd of={IMAGE} conv=notrunc 2>/dev/null")
    machine.expect(f"^READ-END {mebibytes}$")
    # Its report is not written at once.
    seen, now = None, machine.describe()["exits"]
    while now != seen and lab.is_alive():
        lab.check("sleep 1")
        seen, now = now, machine.describe()["exits"]
    return now - before


@scenario()
def reading_the_disk_causes_no_exits_to_vmmd(lab):
    make_image(lab, "256M")
    lab.check(f"dd if=/dev/urandom of={IMAGE} bs=1M count=256 conv=notrunc 2>/dev/null", timeout=120)
    # The reports cost exits, as many for a read of 200 MiB as for one of 100.
    with Machine(lab, test="read=100,read=200,idle", devices=disk()) as machine:
        machine.start()
        first = exits_of_read(lab, machine, 100)
        second = exits_of_read(lab, machine, 200)
        expect(second - first <= 5, f"{second - first} more exits for 100 MiB more, {(second - first) / 100} a MiB")
