# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine of ours in the lab, as a scenario sees it: a definition, units, and what the guest printed on its serial port."""

import json
import re
import shlex
import time

from lablib import LabError

# From `systemctl start` to the first line of /init, in a lab that has other work, too.
BOOT = 120


WANTS = "/run/systemd/system/multi-user.target.wants"


class Machine:
    def __init__(self, lab, name="test", kernel="debian12", image="vmlinuz", test="info,poweroff", command_line="quiet",
                 devices=None, **settings):
        self.lab = lab
        self.name = name
        self.unit = f"vmm@{name}.service"
        self.cgroup = f"/sys/fs/cgroup/vmm.slice/vmm-{name}.slice/{self.unit}"
        self.log = f"/var/log/vmm-lab/{name}.serial"
        definition = {
            "kernel": f"/srv/lab/{kernel}/{image}",
            "initrd": f"/srv/lab/{kernel}/initramfs.cpio",
            "commandLine": f"{command_line} vmm.test={test}".strip(),
            "devices": {"serial": {"type": "serial", "output": "file", "path": self.log}},
        }
        definition["devices"].update(devices or {})
        definition.update(settings)
        self.devices = list(definition["devices"])
        lab.check(f"systemctl stop {self.unit} 2>/dev/null; systemctl reset-failed 'vmm*' 2>/dev/null; "
                  f"mkdir -p /var/log/vmm-lab; rm -f {self.log}", timeout=120)
        lab.write_file(f"/etc/vmm/{name}.json", json.dumps(definition, indent=8))
        # What is wanted by a target stays loaded, and so its result can be asked for when it has ended.
        lab.check(f"mkdir -p {WANTS} && ln -sf /lib/systemd/system/vmm@.service {WANTS}/{self.unit} && "
                  "systemctl daemon-reload")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lab.run(f"vmmctl stop --force {self.name}; systemctl stop {self.unit}; "
                     f"rm -f /etc/vmm/{self.name}.json {WANTS}/{self.unit}; systemctl reset-failed 'vmm*'", timeout=120)

    def device_unit(self, device, kind="service"):
        escaped = self.lab.check(f"systemd-escape {self.name}/{device}").strip()
        return f"vmm-device@{escaped}.{kind}"

    def start(self, timeout=BOOT):
        status, output = self.lab.run(f"systemctl start {self.unit}", timeout)
        if status != 0:
            raise LabError(f"systemctl start {self.unit} failed: {output.strip()}\n{self.journal()}")

    def journal(self, lines=25):
        return self.lab.run(f"journalctl -q --no-pager -o short-monotonic -n {lines} -u {self.unit} "
                            f"-u 'vmm-device@*'", timeout=60)[1]

    def printed(self):
        return self.lab.run(f"cat {self.log}")[1].replace("\r", "")

    def _wait(self, condition, timeout):
        """Waits on the host, where that is cheapest, for a shell condition; or for the end of the unit's processes."""
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

    def state(self, unit=None):
        text = self.lab.check(f"systemctl show {unit or self.unit} -p ActiveState -p SubState -p Result -p MainPID "
                              "-p ExecMainStatus -p ExecMainCode -p InvocationID -p ActiveEnterTimestampMonotonic "
                              "-p InactiveEnterTimestampMonotonic -p StatusText -p ControlGroup -p Slice")
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def describe(self):
        """What vmmd itself says: the reply of io.vmmd.Machine.Describe()."""
        socket = f"/run/vmm/{self.name}/control"
        reply = json.loads(self.lab.check(f"python3 /run/lab/varlink-call.py {socket} io.vmmd.Machine.Describe"))
        if "error" in reply:
            raise LabError(f"Describe: {reply}")
        return reply["parameters"]

    def wait_until_ended(self, timeout=BOOT):
        """Waits until the unit is inactive or failed; returns its state."""
        self._wait(f"[ ! -d {self.cgroup} ]", timeout)
        deadline = time.monotonic() + 30
        while True:
            state = self.state()
            if state["ActiveState"] in ("inactive", "failed"):
                return state
            if time.monotonic() > deadline:
                raise LabError(f"{self.unit} is {state['ActiveState']} still after {timeout} s; the guest printed:\n"
                               f"{self.printed()[-1500:]}\n{self.journal()}")
            time.sleep(1)
