# SPDX-License-Identifier: LGPL-2.1-or-later
"""The whole Debian guest of the demo: its root on our disk, a login over our console, and its power button."""

import json
import re

from lablib import LabError
from scenario import Failure, expect, scenario

LOGIN = 240
PROMPT = r"root@demo:~# "


def define(lab, name="demo", memory="512M", vcpus=2):
    definition = {
        "memory": memory,
        "vcpus": vcpus,
        "kernel": "/srv/lab/guest/vmlinuz",
        "initrd": "/srv/lab/guest/initrd.img",
        "commandLine": "quiet rw",
        "credentials": {"greeting": "hello from the host"},
        "devices": {
            "root": {"type": "block", "path": "/srv/lab/guest/disk.img", "root": True},
            "rng": {"type": "rng"},
            "serial": {"type": "serial"},
            "console": {"type": "console"},
        },
    }
    lab.write_file(f"/etc/vmm/{name}.json", json.dumps(definition, indent=8))
    lab.check("systemctl daemon-reload")
    return definition


def login(terminal, timeout=LOGIN):
    """Waits for the getty and logs in; the shell's prompt is there then."""
    terminal.send("\r")
    terminal.expect(r"demo login: ", timeout)
    terminal.send("root\r")
    terminal.expect(r"Password: ", 60)
    terminal.send("vmm\r")
    terminal.expect(PROMPT, 120)


def command(terminal, text, timeout=60):
    """Runs a command in the guest's shell; returns what it printed."""
    terminal.send(text + "; echo \"status=$?\"\r")
    terminal.expect(r"status=\$\?\"\r*\n", 30)
    before, match = terminal.expect(r"status=(\d+)", timeout)
    terminal.expect(PROMPT, 30)
    if match[1] != "0":
        raise Failure(f"`{text}` in the guest ended with {match[1]}: {before.strip()}")
    return re.sub(r"\x1b\[[?0-9;]*[A-Za-z]|\r", "", before).strip()


@scenario()
def debian_logs_in_over_the_console_and_stops_by_its_power_button(lab):
    define(lab)
    try:
        lab.check("systemctl start vmm@demo.service", timeout=120)
        with lab.terminal("vmmctl console demo") as terminal:
            login(terminal)
            root = command(terminal, "findmnt -no SOURCE,FSTYPE /")
            expect(root.split() == ["/dev/vda", "ext4"], f"the root is {root!r}")
            expect(command(terminal, "nproc") == "2", "the guest has not 2 processors")
            credential = command(terminal, "systemd-creds --system cat greeting")
            expect(credential == "hello from the host", f"the credential came as {credential!r}")
            command(terminal, "echo written >/root/mark && sync", 60)
        status, output = lab.run("systemctl stop vmm@demo.service", timeout=150)
        expect(status == 0, f"systemctl stop: {output}")
        state = lab.check("systemctl show vmm@demo.service -p ActiveState -p Result -p ExecMainStatus")
        expect("Result=success" in state and "ActiveState=inactive" in state and "ExecMainStatus=0" in state, state)
        journal = lab.run("journalctl -q -o cat -u 'vmm*' -n 100")[1]
        lab.check("debugfs -R 'stat /root/mark' /srv/lab/guest/disk.img 2>&1 | grep -q 'Type: regular'")
        expect("timeout" not in journal.lower() or "power" in journal.lower(), f"stopped by force:\n{journal}")
    except LabError as error:
        raise Failure(f"{error}\n" + lab.run("journalctl -q --no-pager -o short-monotonic -n 40 -u 'vmm*'")[1]) from None
    finally:
        lab.run("vmmctl stop --force demo; rm -f /etc/vmm/demo.json; systemctl daemon-reload; systemctl reset-failed 'vmm*'", 120)
