# SPDX-License-Identifier: LGPL-2.1-or-later
"""Consoles with named ports, persistent memory, and input, all in one guest; and what a guest without ACPI's button does at the power key."""

import json
import os
import re
import socket

from machine import Machine
from scenario import expect, scenario

MEMORY = "/var/lib/vmm-lab/memory.img"


def press_power_button_of_the_host(lab):
    """Its own, by the machine that it is in the lab."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(60)
        s.connect(os.path.join(lab.directory, "qmp"))
        with s.makefile("rw") as f:
            json.loads(f.readline())
            for command in ("qmp_capabilities", "system_powerdown"):
                f.write(json.dumps({"execute": command}) + "\n")
                f.flush()
                while "return" not in json.loads(f.readline()):
                    pass


def has_power_button(lab):
    """The emulated 64-bit Arm host has one that Debian's kernel for clouds has no driver for."""
    return lab.arch == "x86_64"


def has_dax(lab):
    """Debian's 64-bit Arm kernel for clouds is without CONFIG_ZONE_DEVICE, and so without any use for persistent memory in place."""
    return lab.arch == "x86_64"


def power_button_of_the_host(lab):
    """Its event device."""
    for block in lab.check("cat /proc/bus/input/devices").split("\n\n"):
        match = re.search(r'Name="Power Button".*?\b(event\d+)', block, re.DOTALL)
        if match:
            return f"/dev/input/{match[1]}"
    raise AssertionError("the host has no power button")


def counters(lab, machine, device):
    socket_path = f"/run/vmm/{machine.name}/{device}.varlink"
    reply = json.loads(lab.check(f"python3 /run/lab/varlink-call.py {socket_path} io.vmmd.Device.GetCounters"))
    return reply["parameters"]["counters"]


def ask_port(lab, machine, text):
    with lab.terminal(f"vmmctl console {machine.name} console --port=agent") as terminal:
        terminal.send(text + "\n")
        terminal.expect(f"PONG {text}", 60)


def look_at_consoles(lab, machine):
    machine.expect("^PORTS-READY")
    ports = re.findall(r"^PORT (\S+) (\S*)", machine.printed(), re.MULTILINE)
    expect(sorted(name for _, name in ports if name) == ["agent", "log.2"], f"the guest sees the ports {ports}")
    # Which of them is hvc0 is the guest's choice: a console with ports takes a moment longer there.
    consoles = []
    for device in ("console", "second"):
        with lab.terminal(f"vmmctl console {machine.name} {device}") as terminal:
            consoles.append(terminal.expect(r"CONSOLE (hvc\d)", 60)[1][1])
    expect(sorted(consoles) == ["hvc0", "hvc1"], f"the consoles are {consoles}")
    ask_port(lab, machine, "hello")
    # The guest's driver says once that the port is open.
    lab.check(f"systemctl kill -s KILL {machine.device_unit('console')}")
    ask_port(lab, machine, "again")
    status, output = lab.run(f"vmmctl console {machine.name} --port=none </dev/null")
    expect(status == 1 and "no port 'none'" in output, f"{status}: {output}")


def look_at_memory(lab, machine, mark):
    shown = machine.expect(r"^PMEM size=(\d+) dax=(\d)")
    expect((shown[1], shown[2]) == (str(64 << 11), "1"), f"the guest sees {shown[0]}")
    mounted = machine.expect("^PMEM /dev/pmem0 .*")[0]
    expect("dax" in mounted, f"it is {mounted}")
    written = machine.expect(r"^PMEM sum=(\w+)")[1]
    expect(counters(lab, machine, "memory")["flushes"] > 0, "nothing was flushed")
    # What the guest's file system holds is in the host's file.
    found = lab.check(f"grep -c 'STORED-BY-GUEST {mark}' {MEMORY}").strip()
    expect(found == "1", f"the mark is in the host's file {found} times")
    on_host = lab.check(f"mount -o loop,ro,noload {MEMORY} /mnt && md5sum </mnt/data | cut -d' ' -f1; umount /mnt").strip()
    expect(on_host == written, f"written {written}, on the host {on_host}")


def look_at_keys(lab, machine):
    machine.expect("^KEYS-READY")
    lab.check(f"vmmctl send-key {machine.name} a ctrl+alt+f1 --device=keys", timeout=90)
    for code, value in ((30, 1), (30, 0), (29, 1), (56, 1), (59, 1), (59, 0), (56, 0), (29, 0)):
        machine.expect(f"^KEY vmmd keyboard {code} {value}$")
    keys = re.findall(r"^KEY vmmd keyboard (\d+) (\d)$", machine.printed(), re.MULTILINE)
    expect(keys == [("30", "1"), ("30", "0"), ("29", "1"), ("56", "1"), ("59", "1"), ("59", "0"), ("56", "0"), ("29", "0")],
           f"the guest saw {keys}")
    if not has_power_button(lab):
        return
    status, output = lab.run(f"vmmctl send-key {machine.name} --device=host a")
    expect(status == 1 and "has no key 'a'" in output, f"{status}: {output}")
    # The host's own power button is the guest's now, and nobody else's.
    press_power_button_of_the_host(lab)
    machine.expect("^KEY Power Button 116 1$")
    machine.expect("^KEY Power Button 116 0$")


@scenario()
def ports_memory_and_keys_of_a_guest(lab):
    lab.check(f"mkdir -p /var/lib/vmm-lab; rm -f {MEMORY}; truncate -s 64M {MEMORY}; mkfs.ext4 -q -b 4096 {MEMORY}; chmod 600 {MEMORY}")
    mark = os.urandom(8).hex()
    devices = {
        "console": {"type": "console", "ports": ["agent", "log.2"]},
        "second": {"type": "console"},
        "keys": {"type": "input", "powerKey": True},
    }
    if has_dax(lab):
        devices["memory"] = {"type": "pmem", "path": MEMORY}
    if has_power_button(lab):
        devices["host"] = {"type": "input", "path": power_button_of_the_host(lab)}
    with Machine(lab, test="ports=agent,pmem,keys" if has_dax(lab) else "ports=agent,keys", command_line=f"quiet vmm.mark={mark}", devices=devices) as machine:
        machine.start()
        look_at_consoles(lab, machine)
        if has_dax(lab):
            look_at_memory(lab, machine, mark)
        look_at_keys(lab, machine)
        for device in devices:
            text = lab.check(f"systemd-analyze security --no-pager '{machine.device_unit(device)}' | tail -n 1", timeout=90)
            level = float(re.search(r": ([0-9.]+) ", text)[1])
            expect(level <= 0.2, f"the exposure of {device} is {text}")
        # No ACPI button is listened for: it is the key that ends this guest.
        lab.check(f"systemctl stop {machine.unit}", timeout=120)
        said = machine.said()
        expect("The guest powered off." in said, f"it did not power off by itself:\n{said}")
    lab.check(f"e2fsck -fn {MEMORY}")
