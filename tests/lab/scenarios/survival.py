# SPDX-License-Identifier: LGPL-2.1-or-later
"""What survives what: programs that hang or are killed, devices that fail for good and come back, the service manager and its servants."""

import contextlib
import re
import shlex

from machine import Machine
from scenario import expect, journal, scenario, wait_until

BOTH = ("bookworm", "trixie")
IMAGE = "/var/lib/vmm-lab/survival.img"
AWAY = IMAGE + ".away"
DEVICES = {"disk": {"type": "block", "path": IMAGE}, "rng": {"type": "rng"}, "console": {"type": "console"}, "serial": {"type": "serial"},
           "balloon": {"type": "balloon"}}
# lib/catalog-ids.h
DEVICE_LOST = "2e3987c9b7f645018a3c48106d4a9a3f"
DEVICE_FAILED = "d361af3279b34405a0a52b3cd59cf918"
DEVICE_RESTARTED = "02fe7e8f658d4827bb96eb774e4dcd64"
HUNG = "c74f325326234dc0bffcf7853b81fe75"
SUPERVISOR_CRASHED = "308e12ad74d244a088b2dc3a29a0bc84"


class Survivor(Machine):
    """A machine without a guest to speak of, with devices of every kind of connection."""

    def __init__(self, lab, name="survivor", **settings):
        lab.check(f"mkdir -p /var/lib/vmm-lab; rm -f {AWAY}; truncate -s 16M {IMAGE}")
        super().__init__(lab, name=name, kernel="tiny", devices=DEVICES, stopTimeout="1s", **settings)

    def pids(self):
        """{unit: PID} of vmmd and each helper."""
        return {unit: state["MainPID"] for unit, state in zip(self.units(), self.states(self.units()))}

    def explain(self):
        return self.lab.run(f"vmmctl status {self.name}; systemctl list-units --all --no-pager --plain 'vmm*{self.name}*'")[1] + self.journal(60)

    def wait_for_devices(self, state="ready", names=None, reconnects=0):
        """Until vmmd says so of each device, and that it has seen as many other helpers of it at least; returns what it says of all. There is no driver, so
        `ready` is all that one on virtio can be."""
        names, states = names or self.devices, ("ready", "active") if state == "ready" else (state,)

        def are_there(seen):
            wanted = [device for device in seen["devices"] if device["name"] in names]
            return len(wanted) == len(names) and all(device["state"] in states and device["reconnects"] >= reconnects for device in wanted)
        return self.wait_until(f"devices {' '.join(names)} are {state} ({reconnects})", are_there)["devices"]

    def told(self, message_id, since):
        """The journal's messages of that kind about this machine since then."""
        return journal(self.lab, f"-o cat --since={since} MESSAGE_ID={message_id} VMM_MACHINE={self.name} || true").strip()

    def wait_to_be_told(self, message_id, since, words, count=1):
        """The same, once it has those words in it so many times."""
        return wait_until(self.lab, f"the journal says {words!r} {count} times", lambda: self.told(message_id, since),
                          lambda said: said.count(words) >= count, explain=self.explain)

    def now(self):
        return self.lab.check("date +@%s.%6N").strip()


@contextlib.contextmanager
def drop_in(lab, text, *templates):
    """For instances of the templates, as long as this lasts."""
    paths = [f"/run/systemd/system/{template}.d/90-survival.conf" for template in templates]
    for path in paths:
        lab.write_file(path, text)
    lab.check("systemctl daemon-reload")
    try:
        yield
    finally:
        lab.run(f"rm -f {' '.join(paths)}; systemctl daemon-reload")


def is_new(lab):
    """Whether the service manager starts a service again without stopping what belongs to it."""
    return lab.settings["release"] != "bookworm"


@scenario(releases=BOTH, host="any")
def what_hangs_is_started_again(lab):
    # Who runs does answer in that time, also where it stands still for a quarter of it. The devices are stopped soon, all at once, and their successors have
    # the time that all have.
    seconds, longer = (4, 8) if lab.arch == "x86_64" else (10, 10)
    hanging = ("disk", "serial", "console")
    with drop_in(lab, f"[Service]\nWatchdogSec={longer}s\n", "vmm@.service"), Survivor(lab, onFailure="restart") as m:
        units = [m.device_unit(device) for device in hanging]
        with drop_in(lab, f"[Service]\nWatchdogSec={seconds}s\n", *units):
            m.start()
            before, since = m.pids(), m.now()
            # They see nothing of SIGABRT before the service manager wakes them up.
            lab.check("kill -STOP " + " ".join(before[unit] for unit in units))
        for unit in units:
            m.wait_for_another(unit, before[unit])
        devices = m.wait_for_devices(names=hanging, reconnects=1)
        expect(all(device["reconnects"] == (device["name"] in hanging) for device in devices), f"{devices}")
        m.wait_for_devices()
        expect(m.pids()[m.unit] == before[m.unit], "vmmd was started again, too")
        for kind, words in (HUNG, "event loop hung"), (DEVICE_LOST, "went away"), (DEVICE_RESTARTED, "is back"):
            said = m.wait_to_be_told(kind, since, words, 3)
            expect(said.count(words) == 3, f"the journal says of it: {said!r}\n{m.explain()}")

        since = m.now()
        lab.check(f"kill -STOP {before[m.unit]}")
        m.wait_for_another(m.unit, before[m.unit])
        m.wait_for_devices()
        m.wait_to_be_told(HUNG, since, "event loop hung")
        said = m.wait_to_be_told(SUPERVISOR_CRASHED, since, "boots again")
        expect("hung" in said, f"the journal says of it: {said!r}")
        expect(lab.run("journalctl -k -q | grep 1326")[1] == "", "a policy was broken")


@scenario(releases=BOTH, host="any")
def a_device_that_fails_for_good_comes_back_when_its_unit_is_started(lab):
    with Survivor(lab) as m:
        m.start()
        vmmd, since = m.pids()[m.unit], m.now()
        lab.check(f"systemd-run -q --unit=survival-events -p StandardOutput=file:/run/survival-events vmmctl events --follow {m.name}")
        unit, socket = m.device_unit("disk"), m.device_unit("disk", "socket")
        try:
            # Its file is gone, so starting it fails again and again.
            m.wait_for("the follower has begun", "grep -i present /run/survival-events")
            lab.check(f"mv {IMAGE} {AWAY}; kill -KILL {m.pids()[unit]}")
            m.wait_for("the socket failed", f"systemctl is-failed {socket}")
            m.wait_for_devices("failed", ["disk"])
            state = m.wait_for_state(m.unit, lambda state: "Running without device 'disk'" in state["StatusText"])
            expect(state["MainPID"] == vmmd, f"{state}")
            m.wait_to_be_told(DEVICE_FAILED, since, "Device 'disk'")
            expect("failed" in lab.check(f"vmmctl status {m.name}"), m.explain())

            # Once as an administrator would, without patience for the start limit; the socket comes with the service.
            since = m.now()
            lab.check(f"mv {AWAY} {IMAGE}; systemctl reset-failed {unit} {socket}; systemctl start {unit}")
            m.wait_for_devices("ready", ["disk"])
            expect(m.pids()[m.unit] == vmmd, "vmmd was started again")
            m.wait_to_be_told(DEVICE_RESTARTED, since, "'disk' is back")
            m.wait_for("the status says nothing of it any more", f"systemctl show -P StatusText {m.unit} | grep -v without | grep Running")

            # The same of the other transport, whose vCPUs must not wait for it, by its socket alone; and by patience, once the limit has passed.
            unit, socket = m.device_unit("serial"), m.device_unit("serial", "socket")
            with drop_in(lab, "[Service]\nExecStartPre=/bin/false\n", shlex.quote(unit)):
                lab.check(f"kill -KILL {m.pids()[unit]}")
                m.wait_for("the socket failed", f"systemctl is-failed {socket}")
                m.wait_for_devices("failed", ["serial"])
            m.wait_for("it can be started again", f"systemctl start {socket}")
            m.wait_for_devices()
            expect(m.pids()[m.unit] == vmmd, "vmmd was started again")
            # Whoever subscribed was told, in this order.
            m.wait_for("the events came", "[ $(grep -ci restarted /run/survival-events) -ge 2 ]")
            events = lab.check("cat /run/survival-events")
            of_disk = [line for line in events.splitlines() if "disk" in line and re.search("failed|restarted", line, re.I)]
            expect(len(of_disk) >= 2 and "estarted" in of_disk[-1] and "ailed" in of_disk[-2], f"events: {events}")
        finally:
            lab.run(f"systemctl stop survival-events; rm -f /run/survival-events {AWAY}")


@scenario(releases=BOTH, host="any")
def a_disk_is_not_used_twice(lab):
    with Survivor(lab) as m, Machine(lab, name="second", kernel="tiny", devices={"disk": DEVICES["disk"]}) as second:
        m.start()
        before = m.pids()
        status, _ = lab.run(f"timeout 150 systemctl start {second.unit}", timeout=240)
        took = lab.check(f"systemctl show -P ActiveState -P Result -P StatusText {second.unit}")
        expect(status not in (0, 124) and "failed" in took, f"status {status}: {took}\n{second.journal(40)}")
        # The helper's own words may have come when the journal could not find out any more whose they were: vmmd has them as well.
        said = second.said(second.unit, second.device_unit("disk"))
        expect(f"{IMAGE} is in use by another process" in said, f"{said}\n{took}")
        expect(m.pids() == before, "the first machine's helpers changed")
        # One's own predecessor is waited for.
        unit = m.device_unit("disk")
        lab.check(f"kill -KILL {before[unit]}")
        m.wait_for_another(unit, before[unit])
        m.wait_for_devices(names=["disk"], reconnects=1)
        # And when the first machine has ended, its devices included, the second can have it.
        lab.check(f"systemctl stop {m.unit}")
        m.wait_until_devices_ended()
        second.start()


@scenario(releases=BOTH, host="any")
def a_machine_may_end_with_its_device(lab):
    with Survivor(lab, onDeviceFailure="stop") as m:
        m.start()
        lab.check(f"mv {IMAGE} {AWAY}; kill -KILL {m.pids()[m.device_unit('disk')]}")
        state = m.wait_until_ended()
        expect((state["Result"], state["ExecMainStatus"]) == ("exit-code", "36"), f"{state}")
        m.wait_for("its devices have ended, too", f"! systemctl is-active {' '.join(shlex.quote(unit) for unit in m.units())}")


@scenario(releases=BOTH, host="any")
def a_machine_whose_vmmd_is_killed_does_what_its_definition_says(lab):
    with Survivor(lab) as m:
        m.start()
        since = m.now()
        lab.check(f"kill -KILL {m.pids()[m.unit]}")
        state = m.wait_until_ended()
        expect((state["ActiveState"], state["Result"]) == ("failed", "signal"), f"{state}")
        m.wait_for("its devices have ended, too", f"! systemctl is-active {' '.join(shlex.quote(unit) for unit in m.units())}")
        said = m.wait_to_be_told(SUPERVISOR_CRASHED, since, "stays down")
        expect("was killed (KILL)" in said, f"the journal says of it: {said!r}\n{m.explain()}")
    with Survivor(lab, onFailure="restart") as m:
        m.start()
        before, since = m.pids(), m.now()
        lab.check(f"kill -KILL {m.pids()[m.unit]}")
        m.wait_for_another(m.unit, before[m.unit])
        m.wait_for_devices()
        after = m.pids()
        kept = [unit for unit in before if unit != m.unit and after[unit] == before[unit]]
        expect(len(kept) == (len(DEVICES) if is_new(lab) else 0), f"these helpers were kept: {kept}\n{m.explain()}")
        said = m.wait_to_be_told(SUPERVISOR_CRASHED, since, "boots again")
        expect("was killed" in said, f"the journal says of it: {said!r}")
        # A machine does not wait for machined, which may have to forget the last one first.
        m.wait_for("machined knows the new one", f"machinectl show -p Leader {m.name} | grep -x Leader={after[m.unit]}")
        # What it ended with is no reason to stay: it is stopped when asked.
        lab.check(f"systemctl stop {m.unit}")
        m.wait_for("it has ended", f"! systemctl is-active {' '.join(shlex.quote(unit) for unit in m.units())}")
        expect(m.state()["Result"] == "success", f"{m.state()}")
        # Nor does it come again where it is killed over that, which takes it some time now.
        path = f"/etc/vmm/{m.name}.json"
        lab.check(f"sed -i 's/\"stopTimeout\": \"1s\"/\"stopTimeout\": \"1min\"/' {path} && grep 1min {path} && systemctl daemon-reload")
        m.start()
        since = m.now()
        lab.check(f"systemctl stop --no-block {m.unit}; kill -KILL {m.pids()[m.unit]}; systemctl stop {m.unit}")
        m.wait_to_be_told(SUPERVISOR_CRASHED, since, "it was being stopped")
        expect(m.state()["ActiveState"] == "failed", f"{m.state()}\n{m.explain()}")


@scenario(releases=BOTH, host="any")
def nothing_else_that_dies_takes_the_machine_with_it(lab):
    with Survivor(lab) as m:
        m.start()
        before = m.pids()
        helpers = [unit for unit in before if unit != m.unit]
        # Every helper at once.
        lab.check("kill -KILL " + " ".join(before[unit] for unit in helpers))
        for unit in helpers:
            m.wait_for_another(unit, before[unit])
        devices = m.wait_for_devices(reconnects=1)
        expect(all(device["reconnects"] == 1 for device in devices), f"{devices}")

        before = m.pids()
        lab.check("machinectl list >/dev/null")
        for victim in ("systemd-machined.service", "dbus.service", "systemd-journald.service"):
            pid = lab.check(f"systemctl show -P MainPID {victim}").strip()
            expect(pid != "0", f"{victim} does not run")
            lab.check(f"kill -KILL {pid}")
            m.wait_for(f"{victim} is back", f'machinectl list; [ "$(systemctl show -P MainPID {victim})" -gt 0 ] && [ "$(systemctl show -P MainPID {victim})" != {pid} ]')
            m.wait_for_devices()
        lab.check("systemctl daemon-reexec", timeout=120)
        m.wait_for("the service manager answers", "systemctl is-system-running || systemctl is-active multi-user.target")
        m.wait_for_devices()
        expect(m.pids() == before, f"processes changed: {before}, {m.pids()}")
        m.wait_for("it is listed", f"machinectl list --no-legend | grep -q '^{m.name} '")
        # And all is as before: one that dies is started again, with what the new service manager has kept for it.
        unit = m.device_unit("disk")
        lab.check(f"kill -KILL {before[unit]}")
        m.wait_for_another(unit, before[unit])
        m.wait_for_devices()
