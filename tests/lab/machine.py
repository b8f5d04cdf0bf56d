# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine of ours in the lab, as a scenario sees it: a definition, units, and what the guest printed on its serial port."""

import json
import re
import shlex
import struct
import time

from lablib import LabError
from scenario import PATIENCE, journal, wait_for, wait_until

# From `systemctl start` to the first line of /init, in a lab that has other work, too.
BOOT = 120


WANTS = "/run/systemd/system/multi-user.target.wants"


def escape(name):
    """As systemd-escape(1) does."""
    return "".join(c if c.isalnum() or c in ":_." and (i or c != ".") else f"\\x{ord(c):02x}" for i, c in enumerate(name))


def make_tiny_kernel(lab):
    """A kernel that does nothing but halt, for what needs a running machine and no guest: it starts in no time, also on a KVM that runs no
    stock kernel. Returns its path on the host."""
    path = "/run/vmm-lab-tiny-kernel"
    if lab.arch == "aarch64":
        machine, start, code = 183, 0x80200000, struct.pack("<II", 0xD503207F, 0x17FFFFFF)  # 1: wfi; b 1b
    else:
        machine, start, code = 62, 0x1000000, b"\xfa\xf4\xeb\xfd"  # cli; 1: hlt; jmp 1b
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, machine, 1, start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 4096, start, start, len(code), len(code), 4096)
    lab.check(f"cat >{path}", input=(header + segment).ljust(4096, b"\0") + code)
    return path


class Machine:
    """With the kernel "tiny" it has no guest to speak of, and no devices but those given; with a plugin, what that makes."""

    def __init__(self, lab, name="test", kernel="debian12", image="vmlinuz", test="info,poweroff", command_line="quiet",
                 devices=None, **settings):
        self.lab = lab
        self.name = name
        self.unit = f"vmm@{name}.service"
        self.cgroup = f"/sys/fs/cgroup/vmm.slice/vmm-{name}.slice/{self.unit}"
        self.log = f"/var/log/vmm-lab/{name}.serial"
        if "plugin" in settings:
            definition = {}
        elif kernel == "tiny":
            definition = {"kernel": make_tiny_kernel(lab), "memory": "64M", "devices": {}}
        else:
            definition = {
                "kernel": f"/srv/lab/{kernel}/{image}",
                "initrd": f"/srv/lab/{kernel}/initramfs.cpio",
                "commandLine": f"{command_line} vmm.test={test}".strip(),
                "devices": {"serial": {"type": "serial", "output": "file", "path": self.log}},
            }
        if "plugin" in settings:
            self.devices = ["plugin"]
        else:
            if lab.arch == "aarch64" and kernel != "tiny":
                # Without ACPI a guest is told to end by a key. Debian's cloud kernel knows no other than that of an input device.
                definition["devices"]["keys"] = {"type": "input", "powerKey": True}
            definition["devices"].update(devices or {})
            self.devices = list(definition["devices"])
        definition.update(settings)
        # What is wanted by a target stays loaded, and so its result can be asked for when it has ended.
        self.since = lab.check(f"""
if [ -d {self.cgroup} ]; then systemctl stop {self.unit}; fi
mkdir -p /etc/vmm /var/log/vmm-lab {WANTS}
rm -f {self.log}
cat >/etc/vmm/{name}.json
ln -sf /lib/systemd/system/vmm@.service {WANTS}/{self.unit}
systemctl daemon-reload
date +@%s.%6N""", timeout=120, input=json.dumps(definition, indent=8).encode()).split()[-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lab.run(f"""
if [ -d {self.cgroup} ]; then timeout 20 vmmctl stop --force {self.name}; fi
systemctl stop {self.unit} vmm@{self.name}.socket
rm -f /etc/vmm/{self.name}.json {WANTS}/{self.unit}
systemctl --all reset-failed 'vmm*'""", timeout=180)

    def device_unit(self, device, kind="service"):
        return f"vmm-device@{escape(self.name)}-{escape(device)}.{kind}"

    def start(self, timeout=BOOT):
        status, output = self.lab.run(f"systemctl start {self.unit}", timeout)
        if status != 0:
            raise LabError(f"systemctl start {self.unit} failed: {output.strip()}\n{self.journal()}")

    def journal(self, lines=25):
        """The last lines of the machine's unit and of devices, with all that was said before. What they do not have is no failure: this tells of others."""
        return self.lab.run(f"timeout 30 journalctl --sync; journalctl -q --no-pager -o short-monotonic -n {lines} "
                            f"-u {self.unit} -u 'vmm-device@*'", timeout=60)[1]

    def explain(self):
        """For whoever waited in vain."""
        return self.journal(60)

    def said(self, *units):
        """All that its unit has said, or those units have, since the machine was defined."""
        return journal(self.lab, f"-o cat --since={self.since} " + " ".join(f"-u {shlex.quote(unit)}" for unit in units or (self.unit,)))

    def where_it_stands(self):
        """For whoever wants to know why a guest does nothing: each thread of vmmd with what it has worked in a second, its system call and where it is in
        the kernel, and what KVM counted in that second; then whether vCPUs that were made to exit go on."""
        return self.lab.run(f"""
pid=$(systemctl show -P MainPID {self.unit})
counted() {{ (cd /sys/kernel/debug/kvm && grep -sH . $pid-*/*) | sort; }}
worked() {{ for task in /proc/$pid/task/*; do echo "$task $(cut -d' ' -f3,14,15 $task/stat)"; done; }}
counted >/run/vmm-counted; worked
sleep 1
worked; counted | comm -13 /run/vmm-counted -
for task in /proc/$pid/task/*; do
        echo "$(cat $task/comm): $(cat $task/syscall)"
        head -n 6 $task/stack
done
timeout 30 vmmctl suspend {self.name}; timeout 30 vmmctl resume {self.name}
sleep 5
echo "after a pause it printed: $(tail -n 3 {self.log})"
""", timeout=120)[1]

    def printed(self):
        return self.lab.run(f"cat {self.log}")[1].replace("\r", "")

    def _wait(self, condition, timeout):
        """Waits on the host, where that is cheapest, for a shell condition; or for the end of the unit's processes."""
        timeout *= self.lab.patience
        script = f"""
for i in $(seq {int(timeout / 0.5)}); do
        {condition} && exit 0
        if [ ! -d {self.cgroup} ]; then
                sleep 1
                {condition}
                exit
        fi
        sleep 0.5
done
exit 1"""
        return self.lab.run(script, timeout * 2 + 60)[0] == 0

    def expect(self, pattern, timeout=BOOT, count=1):
        """Waits until the guest has printed a line that matches, `count` times; returns the last match."""
        quoted = shlex.quote(pattern)
        self._wait(f"[ \"$(tr -d '\\r' <{self.log} 2>/dev/null | grep -cP {quoted})\" -ge {count} ]", timeout)
        text = self.printed()
        matches = list(re.finditer(pattern, text, re.MULTILINE))
        if len(matches) >= count:
            return matches[count - 1]
        raise LabError(f"the guest did not print {pattern!r} {count} times within {timeout} s; it printed:\n{text[-1500:]}\n"
                       f"{self.journal()}")

    def states(self, units):
        """The state of each of the units, in their order."""
        quoted = " ".join(shlex.quote(unit) for unit in units)
        text = self.lab.check(f"systemctl show {quoted} -p ActiveState -p SubState -p Result -p MainPID -p ExecMainStatus "
                              "-p ExecMainCode -p InvocationID -p ActiveEnterTimestampMonotonic "
                              "-p InactiveEnterTimestampMonotonic -p StatusText -p ControlGroup -p Slice")
        return [dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
                for block in text.strip().split("\n\n")]

    def state(self, unit=None):
        return self.states([unit or self.unit])[0]

    def units(self):
        """The machine's services: vmmd's first, then each device's."""
        return [self.unit] + [self.device_unit(device) for device in self.devices]

    def describe(self):
        """What vmmd itself says: the reply of io.vmmd.Machine.Describe()."""
        socket = f"/run/vmm/{self.name}/control"
        reply = json.loads(self.lab.check(f"python3 /run/lab/varlink-call.py {socket} io.vmmd.Machine.Describe"))
        if "error" in reply:
            raise LabError(f"Describe: {reply}")
        return reply["parameters"]

    def wait_until(self, what, condition, timeout=PATIENCE):
        """Looks until what vmmd says of itself is so; returns that."""
        return wait_until(self.lab, f"{self.name}: {what}", self.describe, condition, timeout, self.explain)

    def wait_for(self, what, condition, timeout=PATIENCE):
        """For a shell condition, on the host."""
        wait_for(self.lab, f"{self.name}: {what}", condition, timeout, self.explain)

    def wait_for_state(self, unit, condition, timeout=PATIENCE):
        """Looks until the service manager says so of a unit; returns what it says."""
        return wait_until(self.lab, unit, lambda: self.state(unit), condition, timeout, self.explain)

    def wait_for_another(self, unit, pid, timeout=PATIENCE):
        """Until the unit is active with another process than that one; returns its state."""
        return self.wait_for_state(unit, lambda state: state["ActiveState"] == "active" and state["MainPID"] not in ("0", pid), timeout)

    def wait_until_devices_ended(self, timeout=PATIENCE):
        """Devices end after their machine, and by themselves: what `systemctl stop` waits for is the machine. Returns {unit: state}."""
        units = self.units()[1:]
        return wait_until(self.lab, "the devices end after their machine", lambda: dict(zip(units, self.states(units))) if units else {},
                          lambda states: all(state["ActiveState"] in ("inactive", "failed") for state in states.values()), timeout, self.explain)

    def printed_in_the_end(self):
        """What the guest has printed up to its end: the serial port's helper may write the last of it after vmmd has ended."""
        self.wait_for_state(self.device_unit("serial"), lambda state: state["ActiveState"] in ("inactive", "failed"))
        return self.printed()

    def wait_until_ended(self, timeout=BOOT):
        """Waits until the unit is inactive or failed; returns its state."""
        self._wait(f"[ ! -d {self.cgroup} ]", timeout)
        deadline = time.monotonic() + 120
        while True:
            state = self.state()
            if state["ActiveState"] in ("inactive", "failed"):
                return state
            if time.monotonic() > deadline:
                raise LabError(f"{self.unit} is {state['ActiveState']} still after {timeout} s; the guest printed:\n"
                               f"{self.printed()[-1500:]}\n{self.journal()}")
            time.sleep(1)
