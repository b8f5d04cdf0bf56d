# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machine as systemd sees it: its units, their order and their sandboxes."""

import re

from machine import Machine
from scenario import expect, journal, scenario

BOTH = ("bookworm", "trixie")
IMAGE = "/var/lib/vmm-lab/disk.img"
MEMORY = "/var/lib/vmm-lab/memory.img"
DEVICES = {"root": {"type": "block", "path": IMAGE}, "rng": {"type": "rng"}, "console": {"type": "console", "ports": ["agent"]},
           "serial": {"type": "serial"}, "balloon": {"type": "balloon"}, "memory": {"type": "pmem", "path": MEMORY},
           "keys": {"type": "input", "powerKey": True}}


def machine_with_every_device(lab, **settings):
    lab.check(f"mkdir -p /var/lib/vmm-lab; truncate -s 16M {IMAGE} {MEMORY}; chmod 600 {MEMORY}")
    return Machine(lab, kernel="tiny", devices=DEVICES, stopTimeout="1s", **settings)


@scenario(releases=BOTH, host="any")
def each_device_is_a_service_in_the_slice_of_the_machine(lab):
    with machine_with_every_device(lab) as machine:
        machine.start()
        for unit, state in zip(machine.units(), machine.states(machine.units())):
            expect(state["ActiveState"] == "active", f"{unit} is {state['ActiveState']}\n{machine.journal()}")
            expect(state["Slice"] == "vmm-test.slice", f"{unit} is in {state['Slice']}")
            expect(state["ControlGroup"].startswith("/vmm.slice/vmm-test.slice/"), f"{unit} is in {state['ControlGroup']}")
        status = machine.state()["StatusText"]
        expect(status, "the machine's unit says nothing of its state")


@scenario(releases=BOTH, host="any")
def list_dependencies_draws_the_machine(lab):
    with machine_with_every_device(lab) as machine:
        tree = lab.check(f"systemctl list-dependencies --plain {machine.unit}")
        for device in machine.devices:
            expect(machine.device_unit(device, "socket") in tree, f"{device} is not in the tree:\n{tree}")
        expect(f"vmm@{machine.name}.socket" in tree, f"the control socket is not in the tree:\n{tree}")


@scenario(releases=BOTH, host="any")
def processes_run_as_dynamic_users_without_capabilities(lab):
    with machine_with_every_device(lab) as machine:
        machine.start()
        users = set()
        for unit, state in zip(machine.units(), machine.states(machine.units())):
            pid = state["MainPID"]
            text = lab.check(f"cat /proc/{pid}/status")
            fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
            uid = fields["Uid"].split()[0]
            expect(int(uid) >= 61184, f"{unit} runs as user {uid}")
            expect(int(fields["CapEff"], 16) == 0 and int(fields["CapBnd"], 16) == 0, f"{unit} has capabilities {fields['CapEff']}")
            expect(fields["Seccomp"] == "2" and fields["NoNewPrivs"] == "1", f"{unit} has no system call filter")
            users.add(uid)
        expect(len(users) == 1 + len(machine.devices), f"{1 + len(machine.devices)} services share {len(users)} users")


@scenario(releases=BOTH, host="any")
def sandboxes_score_as_asked(lab):
    with machine_with_every_device(lab) as machine:
        machine.start()
        for unit in machine.units():
            text = lab.check(f"systemd-analyze security --no-pager '{unit}' | tail -n 1")
            score = re.search(r"([0-9]+\.[0-9]+)", text)
            expect(score and float(score[1]) <= 0.2, f"{unit}: {text.strip()}")


@scenario(releases=BOTH, host="any")
def verify_has_nothing_to_say(lab):
    with machine_with_every_device(lab) as machine:
        units = machine.units() + [machine.device_unit(device, "socket") for device in machine.devices] + [f"vmm@{machine.name}.socket"]
        names = " ".join(f"'{unit}'" for unit in units)
        status, output = lab.run(f"systemd-analyze verify --man=no {names}", timeout=120)
        lines = [line for line in output.splitlines() if "vmm" in line]
        expect(status == 0 and not lines, f"systemd-analyze verify: {status}\n{output}")


@scenario(releases=BOTH, host="any")
def one_broken_definition_breaks_no_other_machine(lab):
    since = lab.check("date +@%s.%6N").strip()
    lab.write_file("/etc/vmm/broken.json", '{ "kernel": 5 }')
    try:
        with Machine(lab, kernel="tiny", stopTimeout="1s") as machine:
            machine.start()
            status, _ = lab.run("systemctl start vmm@broken.service", timeout=60)
            expect(status != 0, "a broken definition started")
            said = journal(lab, f"-b -o cat --since={since}")
            expect("/etc/vmm/broken.json" in said and "/kernel" in said, f"the journal does not say what is wrong with it:\n{said}")
    finally:
        lab.run("rm -f /etc/vmm/broken.json; systemctl daemon-reload; systemctl --all reset-failed 'vmm*'")


@scenario(releases=BOTH, host="any")
def a_restart_leaves_behind_what_the_definition_has_lost(lab):
    with Machine(lab, kernel="tiny", stopTimeout="1s", devices={"a.b": {"type": "rng"}, "rng": {"type": "rng"}}) as machine:
        machine.start()
        lost = [machine.device_unit("a.b", kind) for kind in ("service", "socket")]
        lab.check("sed -i '/\"a.b\": {/,/},/d' /etc/vmm/test.json && ! grep a.b /etc/vmm/test.json && systemctl daemon-reload")
        expect(all(state["ActiveState"] == "active" for state in machine.states(lost)), "it went before the machine did")
        lab.check(f"systemctl restart {machine.unit}", timeout=60)
        for unit in lost:
            # What the machine does not know any more it does not wait for.
            machine.wait_for_state(unit, lambda state: state["ActiveState"] == "inactive")
        for unit in (machine.unit, machine.device_unit("rng")):
            expect(machine.state(unit)["ActiveState"] == "active", f"{unit}: {machine.state(unit)}\n{machine.journal()}")
        sockets = lab.check("ls /run/vmm/test").split()
        expect("rng.vhost-user" in sockets and not any(each.startswith("a.b.") for each in sockets), f"there are {sockets}")


@scenario(releases=BOTH, host="any")
def what_keeps_a_machine_from_starting_is_said_line_by_line(lab):
    with Machine(lab, name="no-disk", kernel="tiny", devices={"a-b": {"type": "block", "path": "/nowhere.img"}}) as machine:
        status, output = lab.run("vmmctl start no-disk", timeout=120)
        lines = output.strip().split("\n")
        unit = "vmm-device@no\\x2ddisk-a\\x2db.service"
        expect(status == 1 and lines[0].startswith("vmmctl: no-disk: a device failed") and lines[-1].startswith("  See journalctl "), output)
        expect(any(line.startswith(f"  {unit}: Cannot open /nowhere.img (path) ") for line in lines), output)
        expect(unit in machine.state()["StatusText"], f"the status is: {machine.state()['StatusText']}")
        for name, words, exit_status in (("no-disk", "it has failed, see vmmctl status no-disk", 3), ("nosuch", "there is no such machine", 4)):
            status, output = lab.run(f"vmmctl pause {name}")
            expect(status == exit_status and words in output, f"pause {name}: {status}, {output}")


@scenario(quick=False)
def a_helper_that_is_killed_comes_back_and_the_guest_goes_on(lab):
    with Machine(lab, test="read=1,read=100,idle", devices={"root": {"type": "block", "path": IMAGE}}) as machine:
        lab.check(f"mkdir -p /var/lib/vmm-lab; truncate -s 128M {IMAGE}; printf 'GO 1\\n' | dd of={IMAGE} conv=notrunc 2>/dev/null")
        machine.start()
        machine.expect("^READ-WAIT 100")
        unit = machine.device_unit("root")
        before = machine.state(unit)["MainPID"]
        lab.check(f"systemctl kill -s KILL '{unit}'; sleep 2; printf 'GO 100\\n' | dd of={IMAGE} conv=notrunc 2>/dev/null")
        machine.expect("^READ-END 100")
        after = machine.state(unit)
        expect(after["ActiveState"] == "active" and after["MainPID"] != before, f"{unit}: {after}")
