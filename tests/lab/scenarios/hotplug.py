# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices that come and go under a stock kernel, which notices by itself and is at work on each when it goes."""

import re
import time

from attach import NO_HOTPLUG
from machine import Machine
from scenario import expect, report, scenario, wait_for

IMAGE = "/var/lib/vmm-lab/plug.img"
QCOW2 = "/var/lib/vmm-lab/plug.qcow2"
SHARE = "/var/lib/vmm-lab/plug"
TAP = "vm-plug"
PEER = "10.79.0.1"

# name: virtio id, and what is said to vmmctl
KINDS = {
    "block": ("0x0002", f"block path={IMAGE}"),
    "net": ("0x0001", f"net interface={TAP}"),
    "rng": ("0x0004", "rng"),
    "console": ("0x0003", "console"),
    "qcow2": ("0x0002", f"block path={QCOW2} format=qcow2"),
    "fs": ("0x001a", f"fs path={SHARE} tag=plug"),  # not on Debian 12
}

# Attaches and detaches, as often as is said; each time once the guest has said that the device is busy. The log is the guest's serial port. It is
# listened to, since on an emulated processor looking into it again and again costs more than all that is waited for.
CYCLES = r"""
set -e
machine=$1 log=$2 id=$3 count=$4
shift 4
waits() {
        local line
        while read -r -t 60 line <&3; do
                case "$line" in
                        $1*) return ;;
                esac
        done
        echo "the guest did not say $1"
        exit 1
}
exec 3< <(exec tail -c "+$(($(stat -c %s "$log") + 1))" -F "$log" 2>/dev/null)
listener=$!
trap 'kill $listener' EXIT
for i in $(seq "$count"); do
        vmmctl attach "$machine" it "$@" --timeout=60
        waits "BUSY virtio* $id"
        vmmctl detach "$machine" it --timeout=60
        waits "GONE virtio"
done
"""


def prepare(lab):
    lab.write_file("/run/plug-cycles", CYCLES)
    lab.check(f"""
mkdir -p {SHARE}; rm -f {IMAGE} {QCOW2}; truncate -s 64M {IMAGE}; qemu-img create -q -f qcow2 {QCOW2} 64M
head -c 300000 /dev/urandom >{SHARE}/data
ip link delete {TAP} 2>/dev/null
ip tuntap add dev {TAP} mode tap && ip address add {PEER}/24 dev {TAP} && ip link set {TAP} up""")


def said(machine, what):
    """How often the guest has."""
    return len(re.findall(rf"^{what}\b", machine.printed(), re.MULTILINE))


def clean_up(lab):
    lab.run(f"ip link delete {TAP}; rm -rf {IMAGE} {QCOW2} {SHARE} /run/plug-cycles")


def cycle(lab, machine, kind, count):
    virtio_id, words = KINDS[kind]
    start = time.monotonic()
    status, output = lab.run(f"bash /run/plug-cycles {machine.name} {machine.log} {virtio_id} {count} {words}", timeout=60 + 40 * count)
    expect(status == 0, f"{kind}: {output}\n{machine.printed()[-1500:]}\n{machine.journal(40)}")
    return time.monotonic() - start


def slots_are_in_use(lab, machine, count):
    """Waits until so many spare units are at work, and none is on its way."""
    units = f"systemctl list-units --plain --no-legend --state=active,activating,deactivating 'vmm-device@{machine.name}-slot*.service'"
    wait_for(lab, f"{count} spare units are at work", f'units=$({units}); echo "$units"; [ "$(echo "$units" | grep -c " active ")" = {count} ] && '
             f'[ "$(echo "$units" | grep -c .)" = {count} ]', explain=machine.journal)


def footprint(lab, machine):
    """What of the host's a device that is gone must not have any more."""
    pid = machine.state()["MainPID"]
    slots_are_in_use(lab, machine, 0)
    text = lab.check(f"""
sleep 2
ls /proc/{pid}/fd | wc -l
ls /proc/1/fd | wc -l
ls /proc/{pid}/task | wc -l
awk '/^RssAnon/ {{ print $2 }}' /proc/{pid}/status
systemctl list-units --plain --no-legend --all 'vmm*' | awk '{{ print $1, $3, $4 }}' | sort | md5sum | cut -d' ' -f1
systemctl show 'vmm-device@{machine.name}-slot*.service' -p NFileDescriptorStore --value | sort -u | tr '\\n' ' '""")
    lines = text.splitlines()
    return {"fds": int(lines[0]), "manager fds": int(lines[1]), "threads": int(lines[2]), "memory": int(lines[3]),
            "units": lines[4], "stored": lines[5].strip() if len(lines) > 5 else ""}


def settled_footprint(lab, machine, before):
    """Once it is what it was before; or whatever it is after a while, as units end and memory is given back in their own time."""
    for _ in range(20):
        after = footprint(lab, machine)
        if all(before[what] == after[what] for what in ("fds", "threads", "units", "stored")):
            break
    return after


def check_footprint(before, after):
    for what in ("fds", "threads", "units", "stored"):
        expect(before[what] == after[what], f"{what}: {before[what]} before, {after[what]} after\n{before}\n{after}")
    # The service manager has business of its own. A few cycles show little of a leak; attach.py has a hundred.
    expect(after["manager fds"] <= before["manager fds"] + 8, f"the service manager: {before}\n{after}")
    # A device has some ten KiB in vmmd; what malloc() has once it keeps.
    expect(after["memory"] <= before["memory"] + 256, f"vmmd had {before['memory']} KiB before, {after['memory']} after")


def attach(machine, lab, kind):
    """Until the guest is at work on it."""
    virtio_id, words = KINDS[kind]
    busy = rf"BUSY virtio[0-9]+ {virtio_id}"
    before = said(machine, busy)
    status, output = lab.run(f"vmmctl attach {machine.name} it {words} --timeout=60", timeout=150)
    expect(status == 0, f"attach: {output}\n{machine.printed()[-1500:]}\n{machine.journal(40)}")
    machine.expect("^" + busy, count=before + 1)


@scenario(releases=("trixie",), slow=True, only_x86=NO_HOTPLUG)
def a_stock_kernel_notices_by_itself(lab):
    prepare(lab)
    try:
        with Machine(lab, test="hotplug", command_line=f"quiet vmm.address=10.79.0.2 vmm.peer={PEER}") as machine:
            machine.start()
            machine.expect("^HOTPLUG-READY")
            for kind in KINDS:
                cycle(lab, machine, kind, 1)
            before = footprint(lab, machine)
            for kind in KINDS:
                cycle(lab, machine, kind, 1)
            check_footprint(before, settled_footprint(lab, machine, before))

            # It is there after a reboot of the guest, and can go then.
            attach(machine, lab, "block")
            gone = said(machine, "GONE")
            lab.check(f"vmmctl reset {machine.name}")
            ready = machine.expect("^HOTPLUG-READY(.*)", count=2)[1]
            expect(len(ready.split()) == 1, f"the guest has {ready!r} after its reboot")
            lab.check(f"vmmctl detach {machine.name} it --timeout=60", timeout=150)
            machine.expect("^GONE", count=gone + 1)

            # The helper dies, and comes back as the same device.
            attach(machine, lab, "block")
            lab.check(f"systemctl kill -s KILL --kill-who=main 'vmm-device@{machine.name}-slot*.service'")
            machine.wait_until("the helper is back", lambda seen: any(device.get("reconnects") == 1 for device in seen["devices"]))
            lab.check(f"vmmctl detach {machine.name} it --timeout=60", timeout=150)

            # By force, under I/O; and another one in its place.
            attach(machine, lab, "rng")
            lab.check(f"vmmctl detach {machine.name} it --force", timeout=60)
            attach(machine, lab, "net")
            slots_are_in_use(lab, machine, 1)
            complaints = re.findall(r"^.*(?:BUG|WARNING|Oops|Call Trace).*$", machine.printed(), re.MULTILINE)
            expect(not complaints, f"the guest's kernel complains: {complaints}")
    finally:
        clean_up(lab)


def a_hundred(lab, kind):
    prepare(lab)
    try:
        with Machine(lab, test="hotplug", command_line=f"quiet vmm.address=10.79.0.2 vmm.peer={PEER}") as machine:
            machine.start()
            machine.expect("^HOTPLUG-READY")
            cycle(lab, machine, kind, 2)
            before = footprint(lab, machine)
            taken = cycle(lab, machine, kind, 98)
            after = settled_footprint(lab, machine, before)
            report(f"# a hundred times {kind}, the last 98 in {taken:.0f} s; before {before}, after {after}")
            check_footprint(before, after)
    finally:
        clean_up(lab)


@scenario(releases=("bookworm", "trixie"), quick=False, long=True, variants={kind: {"kind": kind} for kind in KINDS if kind != "fs"}, only_x86=NO_HOTPLUG)
def a_hundred_leave_nothing_behind(lab, kind):
    a_hundred(lab, kind)


@scenario(releases=("trixie",), quick=False, long=True, only_x86=NO_HOTPLUG)
def a_hundred_leave_nothing_behind_fs(lab):
    a_hundred(lab, "fs")
