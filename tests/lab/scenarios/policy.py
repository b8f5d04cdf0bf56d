# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sidecars: the balloon policy moves memory to where it is needed, and anybody's program can follow a machine."""

import contextlib
import json
import re
import shlex

from balloon import pages_count
from machine import Machine
from scenario import expect, scenario, wait_for, wait_until

BOTH = ("bookworm", "trixie")
MIB = 1 << 20
SLICE = "/sys/fs/cgroup/vmm.slice"
CONFIGURATION = "/etc/vmm/balloon-policy.conf"


def policy_unit(machine):
    return f"vmm-balloon-policy@{machine.name}.service"


def policy_journal(lab):
    return lab.run("timeout 30 journalctl --sync; journalctl -q --no-pager -o short-monotonic -n 40 -u 'vmm-balloon-policy@*'", timeout=60)[1]


def balloon_of(machine):
    return machine.describe()["balloons"][0]


def wait_for_balloon(machine, what, condition, timeout=180):
    wait_until(machine.lab, f"{machine.name}: {what}", lambda: balloon_of(machine), condition, timeout, lambda: policy_journal(machine.lab), interval=1)


@contextlib.contextmanager
def configured(lab, **settings):
    lines = "".join(f"VMM_BALLOON_{key.upper()}={value}\n" for key, value in settings.items())
    lab.write_file(CONFIGURATION, "# Of a test.\n" + lines)
    try:
        yield
    finally:
        lab.run(f"rm -f {CONFIGURATION}; systemctl stop 'vmm-balloon-policy@*'; systemctl set-property --runtime vmm.slice MemoryHigh=infinity; "
                "systemctl reset-failed 'vmm-balloon-policy@*'", timeout=60)


class Guest:
    """The shell of a test guest, on its serial port."""

    def __init__(self, machine, terminal):
        self.machine = machine
        self.terminal = terminal

    def begin(self, command):
        self.terminal.send(command + "; echo \"ended=$?\"\r")

    def end(self, timeout=300):
        before, match = self.terminal.expect(r"ended=(\d+)", timeout)
        expect(match[1] == "0", f"in {self.machine.name}: {match[0]}: {before[-400:]}")
        return before

    def run(self, command, timeout=300):
        self.begin(command)
        return self.end(timeout)

    def available(self):
        return int(re.search(r"MemAvailable: +(\d+) kB", self.run("cat /proc/meminfo"))[1]) // 1024


@contextlib.contextmanager
def guests(lab, *names):
    """Test guests with a balloon and a shell. What they have freed stays charged to the host: it is the balloon that gives it back."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(pages_count(lab))
        machines = [stack.enter_context(Machine(lab, name=name, test="shell", memory="384M",
                                                devices={"balloon": {"type": "balloon", "freePageReporting": False}})) for name in names]
        found = []
        for machine in machines:
            machine.start()
            machine.expect("^INIT-STEPS")
            guest = Guest(machine, stack.enter_context(lab.terminal(f"vmmctl console {machine.name} serial")))
            guest.run("mkdir -p /m && mount -t tmpfs -o size=95% none /m")
            found.append(guest)
        for machine in machines:
            wait_for_balloon(machine, "a balloon driver", lambda balloon: balloon["driver"])
        yield found


def charged(lab, what=SLICE):
    return int(lab.check(f"cat {what}/memory.current")) // MIB


def drop_caches(lab):
    """Has the slice give up what it holds of files, of other machines as well: as long as there is any, a host that is short takes that, and nobody
    feels it."""
    # It ends with an error where less can be had than was asked for: all that there is was asked for.
    lab.run(f"for i in 1 2 3; do echo 4G >{SLICE}/memory.reclaim; done", timeout=120)
    statistics = dict(line.split() for line in lab.check(f"cat {SLICE}/memory.stat").splitlines())
    left = (int(statistics["active_file"]) + int(statistics["inactive_file"])) // MIB
    expect(left < 24, f"{left} MiB of files are charged to {SLICE} still")


def fill(mib, name="x"):
    return f"dd if=/dev/zero of=/m/{name} bs=1M count={mib} 2>/dev/null"


@scenario(memory=3000, quick=False, slow=True)
def the_policy_moves_memory_from_the_idle_guest_to_the_busy_one(lab):
    with configured(lab, pressure=f"{SLICE}/memory.pressure", statistics_interval="2s", settle="3s", calm="10min"), \
            guests(lab, "idle", "busy") as (idle, busy):
        # The one has used its memory once and is done with it, the other has never needed it: the host has given out what it has.
        idle.run(fill(220) + " && rm /m/x")
        drop_caches(lab)
        limit = charged(lab) + 32
        lab.check(f"systemctl set-property --runtime vmm.slice MemoryHigh={limit}M")
        lab.check(f"systemctl start {policy_unit(idle.machine)} {policy_unit(busy.machine)}", timeout=60)
        before = charged(lab, f"{SLICE}/vmm-idle.slice")

        busy.run(fill(220), 600)
        wait_for_balloon(idle.machine, "the idle guest gives", lambda balloon: balloon["actual"] >= 60 * MIB)
        # What neither needs, its kernel's own reserve, differs by architecture.
        given = [balloon_of(each.machine)["actual"] for each in (idle, busy)]
        expect(given[1] <= given[0] * 3 // 4, f"the busy guest gave as the idle one: {given}")
        wait_until(lab, f"the idle guest costs the host less than {before} MiB", lambda: charged(lab, f"{SLICE}/vmm-idle.slice"),
                   lambda now: now <= before - 50)
        first = balloon_of(idle.machine)["actual"]

        # The other way round.
        busy.run("rm /m/x")
        idle.run(fill(230), 600)
        wait_for_balloon(busy.machine, "the guest that is idle now gives", lambda balloon: balloon["actual"] >= 60 * MIB)
        wait_for_balloon(idle.machine, "the guest that is busy now gets", lambda balloon: balloon["actual"] < first - 30 * MIB)
        wait_until(lab, f"the machines keep to their limit of {limit} MiB", lambda: charged(lab), lambda now: now <= limit + 40)

        # Nobody minds them any more: all is as it was.
        lab.check(f"systemctl stop {policy_unit(idle.machine)} {policy_unit(busy.machine)}", timeout=60)
        for guest in (idle, busy):
            expect(balloon_of(guest.machine)["target"] == 0, f"the target was left: {balloon_of(guest.machine)}\n{policy_journal(lab)}")
        lab.check("systemctl set-property --runtime vmm.slice MemoryHigh=infinity")
        for guest in (idle, busy):
            wait_for_balloon(guest.machine, "the memory is back", lambda balloon: balloon["actual"] == 0)
            guest.run("rm -f /m/x")
            expect(guest.available() > 240, f"{guest.machine.name} has {guest.available()} MiB available")
            guest.run(fill(240) + " && rm /m/x", 600)
        killed = lab.run("journalctl -k -q --no-pager | grep 'type=1326' | tail -n 3")[1]
        expect(not killed.strip(), f"a seccomp policy lacks something: {killed}")
        oom = lab.run(f"grep oom_kill {SLICE}/memory.events")[1].split()
        expect(oom[1:2] == ["0"], f"the host killed somebody for want of memory: {oom}")


def is_active(state):
    return state["ActiveState"] == "active"


def tiny(lab, **settings):
    return Machine(lab, kernel="tiny", devices={"balloon": {"type": "balloon"}}, stopTimeout="2s", **settings)


@scenario(releases=BOTH, host="any")
def the_policy_comes_and_goes_with_its_machine(lab):
    with configured(lab), tiny(lab) as machine:
        unit = policy_unit(machine)
        wants = f"/run/systemd/system/{machine.unit}.wants"
        # It starts nothing by itself.
        expect(lab.run(f"systemctl start {unit}", timeout=60)[0] != 0, "the policy started without its machine")
        expect(machine.state()["ActiveState"] == "inactive", "the policy started its machine")
        lab.check(f"systemctl reset-failed {unit}; mkdir -p {wants}; ln -s /lib/systemd/system/vmm-balloon-policy@.service {wants}/{unit}; "
                  "systemctl daemon-reload")
        try:
            machine.start()
            state = machine.wait_for_state(unit, is_active)
            expect("balloon has" in state["StatusText"] or "Waiting" in state["StatusText"], f"its status: {state['StatusText']}")
            text = lab.check(f"systemd-analyze security --no-pager '{unit}' | tail -n 1")
            expect(float(re.search(r"([0-9]+\.[0-9]+)", text)[1]) <= 0.1, text.strip())

            # The machine begins anew within its process, and the policy stays.
            lab.check(f"vmmctl reset {machine.name}", timeout=60)
            machine.wait_until("it is reset", lambda seen: seen["resets"] == 1 and seen["state"] == "running")
            expect(machine.state(unit)["MainPID"] == state["MainPID"] != "0", "the policy is another process after a reset")
            # It dies, and has a successor.
            lab.check(f"systemctl kill -s KILL {unit}")
            successor = machine.wait_for_another(unit, state["MainPID"])

            lab.check(f"systemctl restart {machine.unit}", timeout=120)
            machine.wait_for_another(unit, successor["MainPID"])
            # vmmd dies: the policy goes, and does not bring it back by connecting.
            lab.check(f"systemctl kill -s KILL --kill-who=main {machine.unit}")
            machine.wait_for_state(unit, lambda state: state["ActiveState"] in ("inactive", "failed"))
            expect(machine.wait_until_ended()["ActiveState"] == "failed", f"the machine is back\n{machine.journal()}")
            expect(machine.state(unit)["ActiveState"] == "inactive", f"the policy failed: {machine.state(unit)}\n{policy_journal(lab)}")
        finally:
            lab.run(f"rm -rf {wants}; systemctl daemon-reload")


@scenario(releases=BOTH, host="any")
def the_policy_says_what_is_wrong_with_its_settings(lab):
    with configured(lab, calm="soon"), tiny(lab) as machine:
        machine.start()
        expect(lab.run(f"systemctl start {policy_unit(machine)}", timeout=60)[0] != 0, "it started nevertheless")
        expect("$VMM_BALLOON_CALM=soon: expected a time" in policy_journal(lab), policy_journal(lab))
        state = machine.state(policy_unit(machine))
        expect((state["ActiveState"], state["ExecMainStatus"]) == ("failed", "78"), f"it is tried again: {state}")


def lines_of(lab, path):
    return [json.loads(line) for line in lab.run(f"cat {path}")[1].splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")]


def wait_for_line(lab, path, pattern):
    wait_for(lab, f"the sidecar prints {pattern}", f"grep -e {shlex.quote(pattern)} {path}",
             explain=lambda: lab.run(f"cat {path}; systemctl status lab-sidecar")[1])


def wait_for_its_end(lab):
    wait_for(lab, "the sidecar ends", "! systemctl is-active lab-sidecar", explain=lambda: lab.run("systemctl status lab-sidecar")[1])


@scenario(releases=BOTH, host="any")
def a_sidecar_in_python_follows_a_machine(lab):
    log = "/run/sidecar.log"
    with tiny(lab) as machine:
        machine.start()
        lab.check(f"rm -f {log}; systemd-run --quiet --collect --unit=lab-sidecar -p StandardOutput=file:{log} "
                  f"-p DynamicUser=yes -p SupplementaryGroups=vmm-read /usr/bin/python3 "
                  f"/usr/share/doc/vmmd/examples/sidecar-plain.py {machine.name}", timeout=60)
        wait_for_line(lab, log, '"present"')
        first = lines_of(lab, log)[0]
        expect(first["type"] == "present" and first["present"]["state"] == "running", f"the first reply is {first}")
        lab.check(f"vmmctl suspend {machine.name} && vmmctl resume {machine.name} && vmmctl balloon {machine.name} 16M", timeout=60)
        wait_for_line(lab, log, '"balloonTarget"')
        lab.check(f"systemctl stop {machine.unit}", timeout=120)

        # Its subscription ends in order, and so does it.
        wait_for_its_end(lab)
        events = lines_of(lab, log)[1:]
        states = [event["state"] for event in events if event["type"] == "machineState"]
        expect(states[:2] == ["paused", "running"] and "stopping" in states, f"the states were {states}")
        targets = [event["balloon"]["target"] for event in events if event["type"] == "balloonTarget"]
        expect(targets == [16 * MIB], f"the targets were {targets}")
        numbers = [event["sequence"] for event in events]
        expect(numbers == sorted(set(numbers)), f"the numbers were {numbers}")
        expect(not any(event["missed"] for event in events), "it missed something")


@scenario(releases=("trixie",), host="any")
def a_sidecar_with_python3_varlink_follows_a_machine(lab):
    log = "/run/sidecar.log"
    with tiny(lab) as machine:
        machine.start()
        lab.check(f"rm -f {log}; systemd-run --quiet --collect --unit=lab-sidecar -E PYTHONUNBUFFERED=1 -p StandardOutput=file:{log} "
                  f"/usr/bin/python3 /usr/share/doc/vmmd/examples/sidecar.py {machine.name}", timeout=60)
        wait_for_line(lab, log, "present: running")
        lab.check(f"vmmctl suspend {machine.name} && vmmctl resume {machine.name} && vmmctl balloon {machine.name} 16M", timeout=60)
        wait_for_line(lab, log, "balloonTarget: ")
        lab.check(f"systemctl stop {machine.unit}", timeout=120)
        wait_for_its_end(lab)
        text = lab.check(f"cat {log}")
        for line in (f"{machine.name} is running", "now paused", "now running", f"balloonTarget: balloon 0 of {16 * MIB}"):
            expect(line in text, f"it did not print {line!r} but:\n{text}")
