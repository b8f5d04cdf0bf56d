# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine of ours in the lab, as a scenario sees it: a definition, units, and what the guest printed on its serial port."""

import json
import re
import shlex
import struct
import time

from lablib import LabError

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
        lab.check(f"""
if [ -d {self.cgroup} ]; then systemctl stop {self.unit}; fi
mkdir -p /etc/vmm /var/log/vmm-lab {WANTS}
rm -f {self.log}
cat >/etc/vmm/{name}.json
ln -sf /lib/systemd/system/vmm@.service {WANTS}/{self.unit}
systemctl daemon-reload""", timeout=120, input=json.dumps(definition, indent=8).encode())

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
        return self.lab.run(f"journalctl -q --no-pager -o short-monotonic -n {lines} -u {self.unit} "
                            f"-u 'vmm-device@*'", timeout=60)[1]

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

    def wait_until(self, what, condition, timeout=60):
        """Looks every half second or so until what vmmd says of itself is so; returns that."""
        deadline = time.monotonic() + timeout * self.lab.patience
        while not condition(description := self.describe()):
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: {what}: not within {timeout} s, but {description}\n{self.journal()}")
            time.sleep(0.5)
        return description

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
