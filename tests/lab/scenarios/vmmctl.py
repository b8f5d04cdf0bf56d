# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every command of vmmctl at a running machine: what it prints, how it ends, and what the guest sees of it."""

import json
import re
import shlex

from debian import LOGIN, command, login
from lablib import LabError
from machine import Machine
from scenario import PATIENCE, Failure, expect, scenario, wait_for, wait_until
from survival import drop_in

READY = r'"type":"guestReady"\|"guestReady":true'
DISK = "/srv/lab/vmmctl-data.img"
MIB = 1 << 20


def vmmctl(lab, arguments, status=0, timeout=60):
    """Runs it without a terminal; returns what it printed, both streams together."""
    got, output = lab.run(f"vmmctl {arguments} </dev/null", timeout)
    expect(got == status, f"`vmmctl {arguments}` ended with {got}, not {status}: {output.strip()}")
    return output


def as_json(lab, arguments, timeout=60):
    output = vmmctl(lab, f"--json=short {arguments}", timeout=timeout)
    try:
        return json.loads(output)
    except ValueError:
        raise Failure(f"`vmmctl --json=short {arguments}` printed no JSON: {output}") from None


def refuses(lab, arguments, pattern, status=1):
    output = vmmctl(lab, arguments, status)
    expect(re.search(pattern, output), f"`vmmctl {arguments}` said: {output.strip()}")


def state(lab, name):
    return as_json(lab, f"describe {name}")["state"]


class Follower:
    """`vmmctl events --follow` in the background, as a unit of its own."""

    def __init__(self, lab, name, *arguments, unit="vmmctl-follower"):
        self.lab, self.unit, self.path = lab, unit, f"/run/{unit}.json"
        lab.check(f"""
systemctl stop {unit}.service 2>/dev/null  # of a scenario that failed
systemctl reset-failed {unit}.service 2>/dev/null
rm -f {self.path}
systemd-run -q --unit={unit} -p RemainAfterExit=yes -p StandardOutput=file:{self.path} \\
        vmmctl --json=short events {name} --follow {' '.join(arguments)}""")

    def events(self):
        return [json.loads(line) for line in self.lab.check(f"cat {self.path}").splitlines()]

    def wait_for(self, pattern, timeout=PATIENCE):
        """Until an event matches."""
        timeout *= self.lab.patience
        script = f"timeout {timeout} sh -c {shlex.quote(f'tail -n +1 -F {self.path} 2>/dev/null | grep -qm1 -e {shlex.quote(pattern)}')}"
        status, _ = self.lab.run(script, timeout * 2)
        if status != 0:
            raise LabError(f"no event matched {pattern!r} within {timeout} s: {self.lab.run(f'cat {self.path}')[1]}")

    def finish(self):
        """Waits until it has ended; returns its events, and how it ended."""
        wait_for(self.lab, "the follower ends", f"[ \"$(systemctl show {self.unit} -P SubState)\" != running ]")
        events = self.events()
        ended = self.lab.check(f"systemctl show {self.unit} -P SubState -P ExecMainStatus; systemctl stop {self.unit}").split()
        ended.sort(reverse=True)  # systemctl has an order of its own
        return events, ended


@scenario(releases=("bookworm", "trixie"), host="any")
def commands_at_a_machine_without_a_guest(lab):
    lab.check(f"truncate -s 16M {DISK}")
    devices = {"balloon": {"type": "balloon"}, "data": {"type": "block", "path": DISK}, "console": {"type": "console"}}
    with Machine(lab, name="demo", kernel="tiny", devices=devices, stopTimeout="2s") as machine:
        refuses(lab, "reset demo", "the machine does not run", 3)
        refuses(lab, "events demo", "the machine does not run", 3)
        if lab.arch == "aarch64":
            lab.check("vmmctl fdt --dtb demo >/run/vmmctl-tree", 120)
        else:
            refuses(lab, "fdt demo", "On this architecture guests have no device tree.\nvmmctl: demo: there is no device tree of it")
        vmmctl(lab, "start demo", timeout=120)
        if lab.arch == "aarch64":
            lab.check("vmmctl fdt --dtb demo | cmp - /run/vmmctl-tree && rm /run/vmmctl-tree")
        follower = Follower(lab, "demo", "--statistics=1s")
        follower.wait_for('"type":"present"')

        listed = [each for each in as_json(lab, "list") if each["name"] == "demo"]
        expect(listed and listed[0]["state"] == "running" and listed[0]["devices"] == 3, f"list: {listed}")
        # A device answers, and tells of itself on another connection.
        status = wait_until(lab, "the devices have told of themselves", lambda: as_json(lab, "status demo")[0],
                            lambda status: all(device.get("pid", 0) > 1 for device in status["devices"]))
        expect(len(status["devices"]) == 3, f"status: {status}")
        expect(status["balloons"][0]["device"] == "balloon" and not status["guestReady"], f"status: {status}")
        text = vmmctl(lab, "status demo")
        expect("Balloon: balloon: 0 B of 0 B, the guest has no driver" in text and "guest not ready yet" in text, f"status: {text}")
        text = vmmctl(lab, "events demo")
        expect(text.count("\n") == 1 and re.search(r"present +running since ", text), f"events: {text}")

        vmmctl(lab, "pause demo")
        expect(state(lab, "demo") == "paused", "not paused")
        refuses(lab, "suspend demo", "it cannot do that while it is paused")
        vmmctl(lab, "resume demo")
        vmmctl(lab, "suspend --full demo")
        expect(state(lab, "demo") == "paused", "not suspended")
        vmmctl(lab, "resume --full demo")
        expect(state(lab, "demo") == "running", "not resumed")
        refuses(lab, "nmi demo 7", "it does not take that value of 'vcpu'")
        vmmctl(lab, "power-button demo")
        vmmctl(lab, "sleepbtn demo")

        # The target stands, also where no driver does anything about it.
        expect(as_json(lab, "balloon demo 16M")["target"] == 16 * MIB, "the target was not set")
        expect(as_json(lab, "balloon demo 50%")["target"] == 32 * MIB, "the target is not half of 64 MiB")
        expect(as_json(lab, "balloon demo +1M --device=balloon")["target"] == 33 * MIB, "the target did not grow by 1 MiB")
        expect(as_json(lab, "balloon demo -- -34M")["target"] == 0, "the target did not shrink to nothing")
        refuses(lab, "balloon demo 1G", "target")
        refuses(lab, "balloon demo 1M --wait --timeout=1s", "the guest has n")
        refuses(lab, "balloon demo --stats", "the guest has no balloon driver that reports statistics")
        refuses(lab, "balloon-ws demo", "the guest has no balloon driver that reports how old")
        refuses(lab, "balloon demo --hint", "the guest has no balloon driver that says which pages are free")
        refuses(lab, "balloon demo 1M --device=console", "it cannot do that")
        # Whoever waits is told of a newer target.
        lab.run("systemctl stop vmmctl-waiter; systemctl reset-failed vmmctl-waiter; rm -f /run/vmmctl-waiter")
        lab.check("systemd-run -q --unit=vmmctl-waiter -p RemainAfterExit=yes -p StandardError=file:/run/vmmctl-waiter "
                  "vmmctl balloon demo 2M --wait")
        follower.wait_for('"target":2097152')
        vmmctl(lab, "balloon demo 3M")
        wait_for(lab, "the one who waited has ended", '[ "$(systemctl show vmmctl-waiter -P SubState)" != running ]')
        said = lab.check("cat /run/vmmctl-waiter")
        lab.run("systemctl stop vmmctl-waiter; systemctl reset-failed vmmctl-waiter")
        expect("another target, 3 MiB, was set" in said or "the guest has no balloon driver" in said, f"the one who waited was told: {said}")

        expect("has 32 MiB now" in vmmctl(lab, "resize demo data 32M"), "resize")
        expect(lab.check(f"stat -c %s {DISK}").strip() == str(32 * MIB), "the file has not the new size")
        lab.check(f"truncate -s 48M {DISK}")
        expect(as_json(lab, "disk resize demo data")["size"] == 48 * MIB, "the size of the file was not taken over")
        refuses(lab, "resize demo nosuch 1M", "there is no device 'nosuch'")
        refuses(lab, "resize demo console 1M", "cannot do that")

        vmmctl(lab, "log-level demo debug")
        vmmctl(lab, "log-level demo data debug")
        refuses(lab, "log-level demo nosuch debug", "there is no device 'nosuch'")

        samples = as_json(lab, "metrics demo")
        values = {each["name"]: each["value"] for each in samples}
        expect(values.get("io.vmmd.Machine.MemoryBytes") == 64 * MIB, f"metrics: {values}")
        lines = vmmctl(lab, "metrics --prometheus").splitlines()
        wrong = [line for line in lines if not re.fullmatch(
            r'# (HELP|TYPE) [a-z_]+ .*|[a-z][a-z0-9_]*\{machine="demo"(,[a-z_]+="[^"]*")*\} -?[0-9.e+]+', line)]
        expect(lines and not wrong, f"not as Prometheus has it: {wrong}")
        expect(any(line.startswith('vmmd_machine_memory_bytes{machine="demo"} ') for line in lines), f"metrics: {lines}")

        # A stranger is told why not.
        status, output = lab.run("setpriv --reuid=nobody --regid=nogroup --clear-groups vmmctl balloon demo 1M </dev/null", 60)
        expect(status == 1 and "permission denied" in output, f"a stranger: {status}, {output}")

        # No reader, no error.
        expect(lab.check("bash -c 'vmmctl events demo --follow | head -n 1 >/dev/null; echo ${PIPESTATUS[0]}'").strip() == "0",
               "a reader who goes is an error")

        vmmctl(lab, "reboot demo")
        follower.wait_for('"state":"resetting"')
        vmmctl(lab, "reset demo")
        vmmctl(lab, "stop --force demo", timeout=90)
        events, ended = follower.finish()
        expect(ended == ["exited", "0"] and events[-1]["type"] == "machineState", f"the follower ended as {ended}, with {events[-1]}")
        kinds = {event["type"] for event in events}
        expect({"present", "machineState", "balloonTarget"} <= kinds, f"events: {kinds}")
        states = [event["state"] for event in events if event["type"] == "machineState"]
        expect("paused" in states and "resetting" in states, f"states: {states}")
        numbers = [event["sequence"] for event in events]
        expect(numbers == sorted(set(numbers)), f"sequence: {numbers}")


@scenario(releases=("bookworm", "trixie"), host="any")
def stop_waits_until_nobody_holds_the_disks_any_more(lab):
    lab.check(f"truncate -s 16M {DISK}")
    with Machine(lab, name="demo", kernel="tiny", devices={"data": {"type": "block", "path": DISK}, "rng": {"type": "rng"}}, stopTimeout="1s") as machine, \
            drop_in(lab, "[Service]\nExecStop=+/bin/sleep 3\n", "vmm-device@demo-data.service"):
        # In three ways: in its own time, at once, and as the second of two who do so.
        for command in ("vmmctl stop demo", "vmmctl stop --force demo", "systemctl stop vmm@demo 2>/dev/null && vmmctl stop demo"):
            machine.start()
            output = lab.check(f"{command}; systemctl show -P ActiveState {' '.join(map(shlex.quote, machine.units()))}", timeout=120)
            expect(output.split() == ["inactive"] * len(machine.units()), f"after {command}: {output}")


def answer(terminal, text, then):
    """pkttyagent throws away what was typed before it has turned the echo off, which is a moment after its question: who is too quick says it
    again."""
    for last in (False, False, False, True):
        terminal.send(text)
        try:
            terminal.expect(then, 20)
            return
        except LabError:
            if last:
                raise


@scenario(releases=("bookworm", "trixie"), host="any")
def the_user_is_asked_at_a_terminal(lab):
    lab.check("getent passwd asker >/dev/null || useradd asker; echo root:lab | chpasswd")
    as_user = "setpriv --reuid=asker --regid=asker --init-groups vmmctl"
    try:
        with Machine(lab, name="demo", kernel="tiny", stopTimeout="1s") as machine:
            machine.start()
            with lab.terminal(f"{as_user} pause demo") as terminal:
                terminal.expect("AUTHENTICATING FOR io.vmmd.machine.change", 120)
                terminal.expect("Password: ", 60)
                answer(terminal, "lab\r", "AUTHENTICATION COMPLETE")
                expect(terminal.wait(60) == 0, "not paused, though the password was right")
            expect(state(lab, "demo") == "paused", "not paused")
            with lab.terminal(f"{as_user} --no-ask-password resume demo") as terminal:
                terminal.expect("permission denied: you would have to be asked", 60)
                expect(terminal.wait(60) == 1, "the exit status of a refusal")
            expect(state(lab, "demo") == "paused", "resumed by somebody who may not")
            left = lab.run("pgrep -x pkttyagent")[1].strip()
            expect(not left, f"an agent stays behind: {left}")
    finally:
        lab.run("passwd -l root; userdel asker")


def debian(lab):
    lab.check(f"truncate -s 16M {DISK}")
    definition = {
        "memory": "512M", "vcpus": 2, "kernel": "/srv/lab/guest/vmlinuz", "initrd": "/srv/lab/guest/initrd.img",
        "commandLine": "quiet rw",
        "devices": {
            "root": {"type": "block", "path": "/srv/lab/guest/disk.img", "root": True},
            "data": {"type": "block", "path": DISK},
            "rng": {"type": "rng"}, "balloon": {"type": "balloon"}, "serial": {"type": "serial"}, "console": {"type": "console"},
        },
    }
    if lab.arch == "aarch64":
        definition["devices"]["keys"] = {"type": "input", "powerKey": True}  # as machine.py says
    lab.write_file("/etc/vmm/demo.json", json.dumps(definition, indent=8))
    lab.check("systemctl daemon-reload")


def balloon(lab):
    return as_json(lab, "balloon demo")[0]


def available(terminal):
    """The guest's own opinion, in MiB."""
    return int(command(terminal, "awk '/MemAv/{print $2}' /proc/meminfo")) >> 10


def until(terminal, condition, timeout=120):
    """Waits for something in the guest. Its lines are short: a terminal breaks long ones."""
    command(terminal, f"u '{condition}'", timeout)


def work_a_guest(lab, terminal, follower):
    """All that takes a guest's answer."""
    login(terminal)
    follower.wait_for('"type":"guestReady"')
    expect("guest not ready" not in vmmctl(lab, "status demo"), "status does not know that the guest is ready")
    command(terminal, 'u() { until eval "$1"; do sleep .2; done; }')
    before = available(terminal)
    vmmctl(lab, "balloon demo 25% --wait --timeout=3min", timeout=240)
    expect(balloon(lab)["actual"] == 128 * MIB, f"the balloon: {balloon(lab)}")
    after = available(terminal)
    expect(before - after > 96, f"the guest has {after} MiB available, and had {before}")
    stats = as_json(lab, "balloon demo --stats", timeout=120)["statistics"]
    expect(0 < stats["freeMemory"] < stats["totalMemory"] <= 512 * MIB, f"statistics: {stats}")
    text = vmmctl(lab, "balloon_stats demo", timeout=120)
    expect(re.search(r"^Free memory: +\d", text, re.M) and "Balloon:" in text, f"statistics: {text}")
    follower.wait_for('"type":"statistics"')
    refuses(lab, "balloon-ws demo", "the guest has no balloon driver that reports how old")
    if "freePageHinting" in balloon(lab)["features"]:
        expect(as_json(lab, "balloon demo --hint", timeout=180)["freed"] > 0, "hinting took nothing")
    vmmctl(lab, "balloon demo 0 --wait --timeout=3min", timeout=240)

    vmmctl(lab, "resize demo data 24M")
    until(terminal, "lsblk -b | grep 25165824")
    if lab.arch == "x86_64":
        vmmctl(lab, "nmi demo 0")
        # The kernel says so on its console, in the middle of whatever is being typed there.
        terminal.expect(r"trying to\s+continue", PATIENCE)
        until(terminal, "dmesg | grep NMI.received")
        # It shall be heard, not followed.
        command(terminal, "d=/run/systemd/logind.conf.d; mkdir -p $d")
        command(terminal, "echo [Login] >$d/s.conf")
        command(terminal, "echo HandleSuspendKey=ignore >>$d/s.conf")
        command(terminal, "systemctl restart systemd-logind", 120)
        vmmctl(lab, "sleep-button demo")
        until(terminal, "journalctl -b | grep Suspend.key", 180)
    else:
        # Nor has Debian's kernel for clouds a driver for GPIO keys, of which one is the sleep button there.
        refuses(lab, "nmi demo 0", "cannot do that")
    # Nothing of the guest runs while it is suspended.
    vmmctl(lab, "suspend --full demo")
    exits = as_json(lab, "describe demo")["exits"]
    expect(as_json(lab, "describe demo")["exits"] == exits, "vCPUs exit while they are stopped")
    vmmctl(lab, "resume --full demo")
    expect(command(terminal, "echo still here") == "still here", "the guest does not go on")

    # Its systemd ends everything in order before the guest boots again.
    command(terminal, "stty cols 250")
    command(terminal, "echo 'echo ended-in-$((1+1))-ways >/dev/hvc0' >/root/bye")
    command(terminal, "systemd-run -q --unit=bye -p RemainAfterExit=yes -p ExecStop='/bin/sh /root/bye' true")
    pid = as_json(lab, "describe demo")["pid"]
    vmmctl(lab, "reboot demo")
    terminal.expect("ended-in-2-ways", 180)
    follower.wait_for('"state":"resetting"', 180)
    expect(as_json(lab, "describe demo")["pid"] == pid, "the process is another one")


@scenario(slow=True)
def commands_that_a_guest_answers(lab):
    debian(lab)
    try:
        vmmctl(lab, "start demo", timeout=120)
        follower = Follower(lab, "demo", "--statistics=5s")
        follower.wait_for('"type":"present"')
        with lab.terminal("vmmctl console demo") as terminal:
            work_a_guest(lab, terminal, follower)
        # A reader that has seen enough ends it: so a script waits for a guest.
        ready = f"vmmctl --json=short events demo --follow --filter=guestReady </dev/null | grep -m1 -e '{READY}'"
        lab.check(f"timeout {LOGIN} sh -c {shlex.quote(ready)}", LOGIN * 2)
        vmmctl(lab, "stop --force demo", timeout=150)
        events, ended = follower.finish()
        expect(ended == ["exited", "0"] and events[-1]["type"] == "machineState", f"the follower ended as {ended}, with {events[-1]}")
        ready = [event for event in events if event["type"] == "guestReady"]
        expect(len(ready) == 2, f"the guest became ready {len(ready)} times")
        expect(not any(event["missed"] for event in events), "events were missed")
    except LabError as error:
        raise Failure(f"{error}\n" + lab.run("journalctl -q --no-pager -o short-monotonic -n 40 -u 'vmm*'")[1]) from None
    finally:
        lab.run("vmmctl stop --force demo; systemctl stop vmmctl-follower; rm -f /etc/vmm/demo.json; systemctl daemon-reload; "
                "systemctl --all reset-failed 'vmm*'", 120)
