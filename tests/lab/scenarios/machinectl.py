# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines as systemd-machined and machinectl(1) see them. What needs no guest runs with the kernel that does nothing."""

import itertools


from machine import Machine
from scenario import expect, journal, scenario, wait_for

BOTH = ("bookworm", "trixie")
names = (f"machinectl{n}" for n in itertools.count(1))


def tiny(lab, name=None, **settings):
    return Machine(lab, name=name or next(names), kernel="tiny", stopTimeout="1s", **settings)


def listed(lab):
    """{name: (class, service)} of machinectl list."""
    text = lab.check("machinectl list --no-legend")
    return {line.split()[0]: tuple(line.split()[1:3]) for line in text.splitlines() if len(line.split()) >= 3}


def shown(lab, name):
    return dict(line.split("=", 1) for line in lab.check(f"machinectl show {name}").splitlines() if "=" in line)


def expect_gone(lab, name):
    """machined hears of the leader's end a moment after systemd does."""
    wait_for(lab, f"{name} is in the list no more", f"! machinectl show {name}")


def registrar_said(lab, m):
    return journal(lab, f"-o cat --since={m.since} -t vmm-register -u {m.unit}").strip()


@scenario(releases=BOTH, host="any")
def a_machine_is_listed_with_what_is_known_of_it(lab):
    with tiny(lab) as m:
        m.start()
        expect(listed(lab).get(m.name) == ("vm", "vmmd"), f"machinectl list: {listed(lab)}\n{m.journal()}")
        properties, state = shown(lab, m.name), m.state()
        expect(properties["Leader"] == state["MainPID"], f"the leader is {properties['Leader']}, not {state['MainPID']}")
        expect(properties["Unit"] == m.unit, f"the unit is {properties['Unit']}")
        expect(properties["Id"] not in ("", "0" * 32), f"its id is {properties['Id']}")
        status = lab.check(f"machinectl status --no-pager {m.name}")
        expect("class vm" in status and m.unit in status, f"machinectl status:\n{status}")
        expect(registrar_said(lab, m) == "", f"it was complained of: {registrar_said(lab, m)}")
        lab.check(f"systemctl stop {m.unit}")
        expect_gone(lab, m.name)
        # The same id for the same machine on the same host.
        m.start()
        expect(shown(lab, m.name)["Id"] == properties["Id"], "its id is another one now")


@scenario(releases=BOTH, host="any")
def the_registration_outlives_resets_and_the_machine_outlives_machined(lab):
    with tiny(lab) as m:
        m.start()
        before = shown(lab, m.name)
        lab.check(f"vmmctl reset {m.name}")
        m.wait_until("it is reset", lambda machine: machine["resets"] == 1 and machine["state"] == "running")
        expect(shown(lab, m.name) == before, f"after a reset: {shown(lab, m.name)}\nbefore it: {before}")
        lab.check("systemctl restart systemd-machined")
        expect(listed(lab).get(m.name) == ("vm", "vmmd"), "it is not in the list when machined was restarted")
        expect(m.state()["MainPID"] == before["Leader"] and m.describe()["state"] == "running", f"the machine was disturbed\n{m.journal()}")
        lab.check(f"systemctl stop {m.unit}")
        expect_gone(lab, m.name)


@scenario(releases=BOTH, host="any")
def terminate_stops_the_unit(lab):
    with tiny(lab) as m:
        m.start()
        lab.check(f"machinectl terminate {m.name}")
        state = m.wait_until_ended()
        expect((state["ActiveState"], state["Result"]) == ("inactive", "success"), f"it ended so: {state}\n{m.journal()}")
        expect_gone(lab, m.name)


@scenario(releases=BOTH, host="any")
def a_name_that_is_no_host_name_is_said_and_the_machine_runs(lab):
    with tiny(lab, name="no_host.name-") as m:
        m.start()
        expect(m.describe()["state"] == "running", "it does not run")
        expect("is no host name" in registrar_said(lab, m), f"the journal says: {registrar_said(lab, m)}")
        expect(m.name not in listed(lab), "it is in the list")


@scenario(releases=BOTH, host="any")
def a_name_that_is_taken_is_said_and_the_machine_runs(lab):
    with tiny(lab) as m:
        lab.check("systemctl start systemd-machined; systemd-run --unit vmm-lab-squatter sleep infinity")
        try:
            lab.check(f"busctl call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager RegisterMachine sayssus "
                      f"{m.name} 0 other container $(systemctl show -P MainPID vmm-lab-squatter) ''")
            m.start()
            expect(m.describe()["state"] == "running", "it does not run")
            expect(registrar_said(lab, m) != "", "nobody says that the name is taken")
        finally:
            lab.check("systemctl stop vmm-lab-squatter")


@scenario(releases=BOTH, host="any")
def without_machined_nothing_is_said(lab):
    service = "/usr/share/dbus-1/system-services/org.freedesktop.machine1.service"
    reload_bus = "busctl call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus ReloadConfig"
    with tiny(lab) as m:
        # As if it were not installed: not there, and the bus does not know how to start it.
        lab.check(f"systemctl stop systemd-machined && mv {service} {service}.away && {reload_bus}")
        try:
            m.start()
            expect(m.describe()["state"] == "running", "it does not run")
            expect(registrar_said(lab, m) == "", f"the journal says: {registrar_said(lab, m)}")
        finally:
            lab.check(f"mv {service}.away {service} && {reload_bus}")


@scenario(releases=BOTH)
def a_guest_has_the_id_that_is_shown_and_obeys_reboot_and_poweroff(lab):
    has_smbios = lab.arch == "x86_64"
    with Machine(lab, test="dmi,button" if has_smbios else "button") as m:
        m.start()
        if has_smbios:
            printed = m.expect("^DMI-UUID ([-0-9a-fA-F]+)")[1].replace("-", "").lower()
            expect(shown(lab, m.name)["Id"] == printed, f"machinectl has {shown(lab, m.name)['Id']}, the guest {printed}")

        m.expect("^BUTTON-READY")
        before = m.state()["MainPID"]
        lab.check(f"machinectl reboot {m.name}")
        m.expect("^BUTTON-READY", count=2)
        expect(m.printed().count("\nBUTTON\n") == 1, f"the guest saw no button\n{m.printed()[-800:]}\n{m.journal()}")
        expect(m.state()["MainPID"] == before, "it is another process")
        expect(listed(lab).get(m.name) == ("vm", "vmmd"), f"machinectl list: {listed(lab)}")

        lab.check(f"machinectl poweroff {m.name}")
        state = m.wait_until_ended()
        expect(m.printed_in_the_end().count("\nBUTTON\n") == 2, f"the guest saw no second button\n{m.printed()[-800:]}\n{m.journal()}")
        expect((state["ActiveState"], state["Result"]) == ("inactive", "success"), f"it ended so: {state}\n{m.journal()}")
        expect_gone(lab, m.name)
