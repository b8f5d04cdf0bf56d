# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the guest does to itself, and what is asked of it, ends as it should and can be told from outside."""

from machine import Machine
from scenario import expect, scenario

BOTH = ("bookworm", "trixie")
DEVICES = {"rng": {"type": "rng"}, "console": {"type": "console"}}


def expect_result(machine, state, result, status):
    expect((state["Result"], state["ExecMainStatus"]) == (result, str(status)),
           f"ended with Result={state['Result']} and status {state['ExecMainStatus']}, not {result} and {status}\n"
           f"{machine.journal()}")


def expect_devices_to_end(machine):
    """By themselves within a while, and well."""
    failed = {unit: state for unit, state in machine.wait_until_devices_ended().items() if state["ActiveState"] != "inactive"}
    expect(not failed, f"devices that did not end well: {failed}\n{machine.journal()}")


@scenario(releases=BOTH)
def power_off_in_the_guest_ends_the_unit_cleanly(lab):
    with Machine(lab, test="poweroff", devices=DEVICES) as machine:
        machine.start()
        state = machine.wait_until_ended()
        expect(state["ActiveState"] == "inactive", f"the unit is {state['ActiveState']}\n{machine.journal()}")
        expect_result(machine, state, "success", 0)
        expect_devices_to_end(machine)


@scenario(releases=BOTH)
def reboot_in_the_guest_keeps_the_unit_and_its_processes(lab):
    with Machine(lab, test="reboot", devices=DEVICES) as machine:
        machine.start()
        before = machine.states(machine.units())
        machine.expect("^INIT-STEPS", count=3)
        for unit, then, now in zip(machine.units(), before, machine.states(machine.units())):
            expect(now["ActiveState"] == "active", f"{unit} is {now['ActiveState']}\n{machine.journal()}")
            for key in ("MainPID", "InvocationID"):
                expect(then[key] == now[key] != "0", f"{key} of {unit} was {then[key]} and is {now[key]}")


@scenario()
def reboot_ends_the_machine_where_the_definition_says_so(lab):
    with Machine(lab, test="reboot", onReboot="stop") as machine:
        machine.start()
        expect_result(machine, machine.wait_until_ended(), "success", 32)


@scenario(only_x86="no guest can do that to a 64-bit Arm processor")
def triple_fault_is_reported_as_crash(lab):
    with Machine(lab, test="reboot", command_line="quiet reboot=triple,force") as machine:
        machine.start()
        expect_result(machine, machine.wait_until_ended(), "exit-code", 33)


@scenario(releases=BOTH, host="any")
def stop_ends_a_guest_that_ignores_its_power_button_after_the_timeout(lab):
    with Machine(lab, kernel="tiny", stopTimeout="3s") as machine:
        machine.start()
        output = lab.check(f"a=$(date +%s%N); systemctl stop {machine.unit}; b=$(date +%s%N); echo $(( (b - a) / 1000000 ))")
        taken = int(output.split()[-1])
        expect(taken > 2500, f"systemctl stop took {taken} ms with a timeout of 3 s")
        # Where it was the service manager who lost patience, its result would be another one.
        expect_result(machine, machine.state(), "success", 0)
        expect(machine.state()["ActiveState"] == "inactive", f"the unit is not inactive\n{machine.journal()}")


@scenario(releases=BOTH)
def stop_presses_the_power_button_and_devices_stop_after_their_guest(lab):
    with Machine(lab, test="button", devices=DEVICES) as machine:
        machine.start()
        machine.expect("^BUTTON-READY")
        status, output = lab.run(f"systemctl stop {machine.unit}", timeout=120)
        expect(status == 0, f"systemctl stop failed: {output}")
        expect_result(machine, machine.state(), "success", 0)
        expect_devices_to_end(machine)
        expect("\nBUTTON\n" in machine.printed(), f"the guest saw no button\n{machine.printed()[-800:]}\n{machine.journal()}")
        guest, *devices = (int(state["InactiveEnterTimestampMonotonic"]) for state in machine.states(machine.units()))
        for device, end in zip(machine.devices, devices):
            expect(end >= guest > 0, f"{device} ended {guest - end} us before its guest")
        units = "systemctl list-units --plain --no-legend --state=active,deactivating 'vmm-device@test*' 'vmm@test*'"
        machine.wait_for("no unit is there any more", f'units=$({units}); echo "$units"; [ -z "$units" ]')


@scenario()
def start_reset_stop_and_start_again_by_vmmctl(lab):
    with Machine(lab, test="button", devices=DEVICES) as machine:
        lab.check(f"vmmctl start {machine.name}", timeout=120)
        machine.expect("^BUTTON-READY")
        before = machine.state()["MainPID"]
        lab.check(f"vmmctl reset {machine.name}", timeout=60)
        machine.expect("^BUTTON-READY", count=2)
        expect(machine.state()["MainPID"] == before, "the process is another one")
        lab.check(f"vmmctl stop {machine.name}", timeout=120)
        expect(machine.wait_until_ended()["ActiveState"] == "inactive", f"not stopped\n{machine.journal()}")
        lab.check(f"vmmctl start {machine.name}", timeout=120)
        machine.expect("^BUTTON-READY", count=3)
