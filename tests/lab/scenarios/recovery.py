# SPDX-License-Identifier: LGPL-2.1-or-later
"""Helpers that are killed, under the service manager proper. No guest is needed for that: a program is vmmd and the guest's driver at once."""

import re

from machine import Machine
from scenario import expect, journal, scenario

BOTH = ("bookworm", "trixie")
IMAGE = "/var/lib/vmm-lab/recovery.img"
PROGRAM = "/usr/lib/vmm-lab-plugins/bench-recovery"
# Each with two deaths, one of them with 32 requests under way; and each some ten seconds long on an emulated host.
ROUNDS = {"x86_64": 25, "aarch64": 4}


def show(lab, unit, name):
    return int(lab.check(f"systemctl show -P {name} {unit}"))


@scenario(releases=BOTH, host="any", short=True)
def a_killed_helper_resumes_its_session_from_the_descriptor_store(lab):
    rounds = ROUNDS[lab.arch]
    lab.check(f"mkdir -p /var/lib/vmm-lab; truncate -s 16M {IMAGE}")
    with Machine(lab, name="recovery", kernel="tiny", devices={"disk": {"type": "block", "path": IMAGE}}) as machine:
        service, socket = machine.device_unit("disk"), machine.device_unit("disk", "socket")
        # Killed more often than anybody would take for an accident.
        drop_in = f"/run/systemd/system/{service}.d"
        lab.check(f"mkdir -p '{drop_in}'; printf '[Unit]\\nStartLimitIntervalSec=0\\n' >'{drop_in}/90-lab.conf'; "
                  f"systemctl daemon-reload; systemctl start '{socket}'")
        try:
            status, output = lab.run(f"{PROGRAM} {rounds} --unit='{service}' /run/vmm/recovery/disk.vhost-user", timeout=240)
            expect(status == 0, f"{output}\n{machine.journal(60)}")
            print(output.strip(), flush=True)
            expect(re.search(r"death to first request: p50 [0-9.]+ ms", output), output)
            restarts = show(lab, service, "NRestarts")
            # A death may meet a successor that had only begun to start, which is one more.
            expect(restarts >= 2 * rounds, f"{2 * rounds} deaths were {restarts} restarts\n{machine.journal()}")
            ends = set(re.findall(r"code=(\w+), status=(\S+)", journal(lab, f"-o cat -u '{service}' --since={machine.since} _PID=1 SYSLOG_IDENTIFIER=systemd")))
            expect(ends == {("killed", "9/KILL")}, f"it ended by itself, too: {ends}\n{machine.journal()}")
            # Its front-end has left: what is kept is what was opened for it and the state of the disk's cache, and no guest's memory.
            machine.wait_for("little is kept of it", f"kept=$(systemctl show -P NFileDescriptorStore '{service}'); echo $kept; [ $kept -le 2 ]")
            said = machine.said(service)
            # All of it was one session, which the program looks at. Of one that lived for a moment the journal may not know any more whose words they were.
            expect(said.count("Going on with the session of the last helper.") >= rounds, f"few went on\n{said[-4000:]}")
            expect("connects again" not in said, f"a session was not gone on with\n{said[-4000:]}")
        finally:
            lab.run(f"systemctl stop '{service}' '{socket}'; rm -rf '{drop_in}'; systemctl daemon-reload", timeout=180)
