# SPDX-License-Identifier: LGPL-2.1-or-later
"""Spare devices as the service manager has them, under a machine without a guest: what that would say of them is hotplug.py's."""

import json
import re
import shlex

from machine import Machine
from scenario import expect, scenario, wait_until

BOTH = ("bookworm", "trixie")
NO_HOTPLUG = "no device is attached to a running 64-bit Arm machine, for want of a way to tell its guest"
IMAGE = "/var/lib/vmm-lab/attach.img"
TAP = "vm-attach"
QCOW2 = "/var/lib/vmm-lab/attach.qcow2"
KINDS = {"block": f"block path={IMAGE}", "net": f"net interface={TAP}", "rng": "rng", "console": "console log=/run/attach.log ports=agent"}


# Those that another project's program serves, where the release has it.
FOREIGN_KINDS = {
    "block": ("qemu-img create -q -f qcow2 " + QCOW2 + " 16M", f"block path={QCOW2} format=qcow2"),
    "fs": ("test -x /usr/libexec/virtiofsd", "fs path=/usr/share/doc tag=docs readOnly=yes"),
}


def kinds(lab):
    """(type, what is said to vmmctl) of all that there can be here."""
    found = list(KINDS.items())
    for kind, (condition, words) in FOREIGN_KINDS.items():
        if lab.run(condition)[0] == 0:
            found.append((kind, words))
    expect(len(found) > len(KINDS), "there is no qemu-storage-daemon here")
    return found


def prepare(lab):
    lab.check(f"""
mkdir -p /var/lib/vmm-lab; rm -f {IMAGE} {IMAGE}.link; truncate -s 16M {IMAGE}; chmod 600 {IMAGE}
ip link delete {TAP} 2>/dev/null
ip tuntap add dev {TAP} mode tap""")


def clean_up(lab):
    lab.run(f"ip link delete {TAP}; rm -f {IMAGE} {IMAGE}.link {QCOW2} /run/attach.log")


def vmmctl(lab, words, status=0, timeout=60):
    got, output = lab.run(f"vmmctl {words} </dev/null", timeout)
    expect(got == status, f"`vmmctl {words}` ended with {got}, not {status}: {output.strip()}\n"
           + lab.run("journalctl --sync; journalctl -q --no-pager -n 20 -u 'vmm*'")[1])
    return output


def slot(machine, number):
    return machine.device_unit(f"slot{number}")


def stored(lab, unit):
    return int(lab.check(f"systemctl show '{unit}' -p NFileDescriptorStore --value").strip() or 0)


def device(lab, machine, name):
    devices = json.loads(lab.check(f"vmmctl --json=short describe {machine.name}"))["devices"]
    return next((each for each in devices if each["name"] == name), None)


@scenario(releases=BOTH, host="any", only_x86=NO_HOTPLUG)
def each_kind_becomes_a_unit_and_is_gone_again(lab):
    prepare(lab)
    try:
        with Machine(lab, name="plug", kernel="tiny", stopTimeout="1s") as machine:
            machine.start()
            states = machine.states([slot(machine, i) for i in range(4)])
            expect(all(state["ActiveState"] == "inactive" for state in states), f"spare units are at work for nobody: {states}")
            # 0.2 of it for chown(), which a shared directory needs; no policy of ours has it.
            security = lab.check(f"systemd-analyze security --no-pager '{slot(machine, 0)}' | tail -1")
            expect(": 0.3 " in security, security)
            for number, (kind, words) in enumerate(kinds(lab)):
                output = vmmctl(lab, f"attach plug it {words} --timeout=0")
                expect(f"the {kind} device 'it' is attached at 0000:00:" in output, output)
                unit = slot(machine, number % 4)  # they take turns
                state = machine.state(unit)
                expect(state["ActiveState"] == "active" and state["StatusText"] == f"Serving a {kind} device: it", f"{kind}: {state}")
                expect(state["Slice"] == "vmm-plug.slice", f"{kind} is in the slice {state['Slice']}")
                expect(stored(lab, unit) > 0, f"{kind}: nothing is kept for a successor")
                expect(device(lab, machine, "it")["unit"] == unit, f"{kind}: {device(lab, machine, 'it')}")

                # Killed, it comes back as the same device.
                lab.check(f"systemctl kill -s KILL --kill-who=main '{unit}'")
                again = machine.wait_for_another(unit, state["MainPID"])
                expect(again["StatusText"] == state["StatusText"], f"{kind} is something else afterwards: {again}")

                vmmctl(lab, "detach plug it --force")
                state = machine.wait_for_state(unit, lambda state: state["ActiveState"] in ("inactive", "failed"))
                expect((state["ActiveState"], state["Result"]) == ("inactive", "success"), f"{kind}: {state}")
                wait_until(lab, f"nothing of {kind} is kept", lambda unit=unit: stored(lab, unit), lambda kept: kept == 0, explain=machine.journal)
                expect(device(lab, machine, "it") is None, f"{kind}: {device(lab, machine, 'it')}")
    finally:
        clean_up(lab)


@scenario(releases=BOTH, host="any", only_x86=NO_HOTPLUG)
def what_cannot_be_attached_is_refused_in_words(lab):
    prepare(lab)
    try:
        with Machine(lab, name="plug", kernel="tiny", stopTimeout="1s", hotplugSlots=2, devices={"r": {"type": "rng"}}) as machine:
            machine.start()

            def refused(words, pattern):
                output = vmmctl(lab, f"attach plug {words} --timeout=0", 1)
                expect(re.search(pattern, output), f"{words}: {output.strip()}")

            refused("r rng", "there is a device 'r' already")
            refused("slot0 rng", "slot0.*another name")
            refused(f"a block path={IMAGE} queues=17", "queues")
            refused("a block path=/proc/uptime", "Cannot open /proc/uptime|device 'a' failed")
            expect(device(lab, machine, "a") is None, "half a device is left")
            vmmctl(lab, f"attach plug a block path={IMAGE} --timeout=0")
            # Who writes to it is alone, by whatever name.
            refused(f"b block path={IMAGE}", "a file of its own")
            lab.check(f"ln {IMAGE} {IMAGE}.link")
            refused(f"b block path={IMAGE}.link", "is in use by another process")
            vmmctl(lab, "attach plug b rng --timeout=0")
            refused("c rng", "all its spare devices")
            vmmctl(lab, "detach plug b --force")
            vmmctl(lab, "attach plug c rng --timeout=0")

            # Nobody opens anything for somebody who may not.
            lab.check("id attacher >/dev/null 2>&1 || useradd -r attacher")
            status, output = lab.run(f"runuser -u attacher -- vmmctl attach plug d block path={IMAGE} --timeout=0 </dev/null")
            expect(status == 1 and "Permission denied" in output, f"a stranger could: {output}")
            status, output = lab.run("runuser -u attacher -- vmmctl attach plug d rng --timeout=0 </dev/null")
            expect(status == 1 and "permission denied" in output, f"a stranger could: {output}")
    finally:
        clean_up(lab)


@scenario(releases=BOTH, host="any", only_x86=NO_HOTPLUG)
def a_hundred_spare_devices_leave_nothing_behind(lab):
    prepare(lab)
    words = [words for _, words in kinds(lab)]
    script = f"""
set -e
kinds=({" ".join(shlex.quote(each) for each in words)})
counts() {{ ls /proc/$1/fd | wc -l; ls /proc/1/fd | wc -l; systemctl list-units --all --plain --no-legend 'vmm*' | wc -l; }}
pid=$(systemctl show vmm@plug.service -p MainPID --value)
for i in $(seq 100); do
        vmmctl -q attach plug it ${{kinds[i % {len(words)}]}} --timeout=0
        vmmctl -q detach plug it --force
        # A guest that never answers never gives a place on its bus back, but by a reset.
        if [ $i = {len(words)} ] || [ $((i % 20)) = 0 ]; then
                vmmctl reset plug
                timeout 120 sh -c 'until vmmctl --json=short describe plug | grep -q "\\"state\\":\\"running\\""; do sleep 0.1; done'
        fi
        if [ $i = {len(words)} ]; then sleep 1; before=$(counts $pid); fi
done
# Units end, and the service manager clears up, in their own time. It has business of its own; a descriptor left over by each round would be dozens.
for i in $(seq 120); do
        after=$(counts $pid)
        set -- $before $after
        [ $4 -le $1 ] && [ $5 -le $(($2 + 8)) ] && [ $6 -le $3 ] && break
        sleep 0.5
done
echo "before:" $before "after:" $after
[ $4 -le $1 ] && [ $5 -le $(($2 + 8)) ] && [ $6 -le $3 ]
"""
    try:
        with Machine(lab, name="plug", kernel="tiny", stopTimeout="1s") as machine:
            machine.start()
            status, output = lab.run(script, timeout=900)
            expect(status == 0, output + machine.journal())
            expect(machine.state()["ActiveState"] == "active", f"{machine.state()}")
    finally:
        clean_up(lab)
