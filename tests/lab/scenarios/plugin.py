# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines whose hardware is a plugin's, by their units: what becomes of them, and what a plugin can see. Their guests are some
instructions long, but for one: a plugin that is a PC (tests/plugins/linux.c) boots a stock kernel."""

import re

from machine import Machine
from scenario import expect, journal, scenario, wait_for

BOTH = ("bookworm", "trixie")
A_PC = "what a plugin is given of KVM is a PC's"
PROGRAM = "/usr/lib/vmm-lab-plugins/plugin-program"
FUNCTIONS = "/usr/lib/vmm-lab-plugins/plugin-functions"
ADDER = "/usr/lib/vmm-lab-plugins/plugin-adder"
WORK = "/var/lib/vmm-lab/plugin"
KERNEL = "/srv/lab/debian12/vmlinuz"
INITRD = "/srv/lab/debian12/initramfs.cpio"


def machine_of(lab, what, program=PROGRAM, vcpus=1, **options):
    arguments = {"arguments": [what]} if what else {}
    return Machine(lab, name="plugtest", vcpus=vcpus, plugin={"path": program, **arguments, **options})


def said(machine):
    return machine.said(machine.unit, machine.device_unit("plugin"))


def ended_with(machine, status, word):
    """Waits for the end of a machine, in which its plugin's unit ends as well."""
    state = machine.wait_until_ended()
    expect(int(state["ExecMainStatus"]) == status, f"vmmd ended with {state['ExecMainStatus']}\n{machine.journal()}")
    unit = machine.device_unit("plugin")
    plugin = machine.wait_for_state(unit, lambda state: state["ActiveState"] in ("inactive", "failed"))
    expect(word in said(machine), f"nothing says {word!r}:\n{machine.journal(60)}")
    return plugin


@scenario(releases=BOTH, host="any", only_x86=A_PC)
def plugins_run_as_units(lab):
    """systemctl start, status, vmmctl, stop; then two that are done by themselves."""
    with machine_of(lab, "run-until-told") as machine:
        machine.start()
        unit = machine.device_unit("plugin")
        state, plugin = machine.states([machine.unit, unit])
        expect("plugin" in state["StatusText"], state["StatusText"])
        expect(plugin["ActiveState"] == "active" and plugin["Slice"] == "vmm-plugtest.slice", plugin)
        device = machine.describe()["devices"][0]
        expect((device["name"], device["transport"], device["state"], device["unit"]) == ("plugin", "plugin", "active", unit), device)
        status = lab.check("vmmctl status plugtest")
        expect("plugin" in status and "running" in status, status)
        lab.check("vmmctl pause plugtest && vmmctl resume plugtest")
        code, text = lab.run("vmmctl reset plugtest")
        expect(code != 0, f"a reset was not refused: {text}")
        # Nobody's user, no right, nothing of vmmd's.
        fields = dict(line.split(":\t", 1) for line in lab.check(f"cat /proc/{device['pid']}/status").splitlines() if ":\t" in line)
        expect(int(fields["Uid"].split()[0]) >= 61184 and int(fields["CapEff"], 16) == 0 and int(fields["CapBnd"], 16) == 0, fields)
        expect(fields["Seccomp"] == "2" and fields["NoNewPrivs"] == "1", fields)
        score = re.search(r"([0-9]+\.[0-9]+)", lab.check(f"systemd-analyze security --no-pager '{unit}' | tail -n 1"))
        expect(score and float(score[1]) <= 0.2, f"{unit}: {score and score[0]}")
        lab.check(f"systemctl stop {machine.unit}")
        ended_with(machine, 0, "was told to exit")
    for what, program, word in (("add", PROGRAM, "the sum is 42"), ("", ADDER, " + ")):
        with machine_of(lab, what, program) as machine:
            lab.run(f"systemctl start {machine.unit}", timeout=60)  # one that ends before the start is done with is called canceled
            plugin = ended_with(machine, 0, word)
            expect(plugin["ActiveState"] == "inactive", plugin)
            expect(machine.state()["ActiveState"] == "inactive", machine.state())


@scenario(releases=BOTH, host="any", only_x86=A_PC)
def plugins_that_fail_end_their_machines(lab):
    for what, word in (("fail", "The plugin ended with status 3"), ("close-pipes", "it closed their pipe"),
                       ("spoil-socket", "what is no request of the plugin protocol"), ("die", "The plugin was ended by signal KILL")):
        with machine_of(lab, what) as machine:
            lab.run(f"systemctl start {machine.unit}", timeout=60)  # it may have ended again by then
            ended_with(machine, 37, word)
            expect(machine.state()["Result"] == "exit-code", machine.state())
            entries = journal(lab, f"-o cat -u {machine.unit} --since={machine.since} MESSAGE_ID=e4b180a927f84e909b3d598b91ec5059")
            expect(word in entries, f"no message with its id: {entries}")
    with machine_of(lab, "x", program="/usr/lib/no-such-plugin") as machine:
        status, _ = lab.run(f"systemctl start {machine.unit}", timeout=60)
        expect(status != 0, "a machine without its plugin has started")
        ended_with(machine, 37, "The plugin could not be run")
    with machine_of(lab, "run-and-hang") as machine:
        machine.start()
        lab.check(f"systemctl stop {machine.unit}", timeout=120)
        # It did not hold its machine up until the service manager's patience was at its end.
        expect(machine.state()["Result"] == "success", machine.journal())
        ended_with(machine, 0, "The plugin did not end within 1 s")


@scenario(releases=BOTH, host="any", only_x86=A_PC)
def plugins_have_all_that_the_header_says(lab):
    """Each function of the library, and each of its errors, through the sandboxes of both sides."""
    for vcpus in (1, 4):
        with machine_of(lab, "table", FUNCTIONS, vcpus=vcpus) as machine:
            lab.run(f"systemctl start {machine.unit}", timeout=60)  # it may have ended again by then
            ended_with(machine, 0, f"{vcpus} vCPUs, 60 functions, all as they should")


@scenario(releases=BOTH, host="any", only_x86=A_PC)
def plugins_leave_nobody_behind(lab):
    """A child that has left its session and ignores what it is told goes with the unit."""
    with machine_of(lab, "leave-a-child") as machine:
        lab.run(f"systemctl start {machine.unit}", timeout=60)
        ended_with(machine, 0, "The plugin has ended, and the machine with it")
        expect(lab.run("pgrep -f [p]lugin-program")[0] != 0, "a child of the plugin's is still there")


@scenario(releases=BOTH, host="any", only_x86=A_PC)
def plugins_see_what_their_definition_names(lab):
    lab.check(f"mkdir -p {WORK}/read {WORK}/write; touch {WORK}/read/file {WORK}/write/file; chmod -R a+rwX {WORK}; "
              f"groupadd -f plugtest; install -m 0750 -g plugtest -d {WORK}/group; touch {WORK}/group/file; chmod 640 {WORK}/group/file; "
              f"chgrp plugtest {WORK}/group/file")
    try:
        with machine_of(lab, "see", readOnlyPaths=[f"{WORK}/read:/readable", f"{WORK}/group:/grouped"], readWritePaths=[f"{WORK}/write:/writable"],
                        supplementaryGroups=["plugtest"]) as machine:
            lab.run(f"systemctl start {machine.unit}", timeout=60)
            ended_with(machine, 37, "The plugin ended before it let the machine start")
            text = said(machine)
        for line in ("/readable/file: read -", "/writable/file: read write", "/grouped/file: read -", "/dev/kvm: - -", "/etc/passwd: - -", "/run/vmm: - -"):
            expect(line in text, f"no {line!r} in {text}")
    finally:
        lab.run(f"groupdel plugtest; rm -rf {WORK}")


@scenario(releases=BOTH, host="any", only_x86=A_PC)
def a_plugin_has_a_network(lab):
    """A tap that is there before the machine, opened for the plugin; a datagram to the plugin and back."""
    lab.check("ip tuntap add dev plugtap mode tap && ip link set plugtap address 02:00:5e:10:00:01 up && ip address add 192.0.2.1/30 dev plugtap && "
              "ip neighbour add 192.0.2.2 lladdr 02:00:5e:10:00:02 dev plugtap")
    try:
        with machine_of(lab, "network", interface="plugtap") as machine:
            machine.start()
            lab.check("""python3 -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(60)
s.connect(("192.0.2.2", 7))
s.send(b"back again")
assert s.recv(100) == b"back again"'""", timeout=120)
            expect("LOWER_UP" in lab.check("ip link show plugtap"), "the tap has no carrier")
            lab.check(f"systemctl stop {machine.unit}")
            ended_with(machine, 0, "the host is 192.0.2.1 in 255.255.255.252, 02:00:5e:10:00:01")
            wait_for(lab, "nobody has the tap any more", "ip link show plugtap; ! ip link show plugtap | grep -q LOWER_UP", explain=machine.journal)
        with machine_of(lab, "network", interface="plugnone") as machine:
            status, _ = lab.run(f"systemctl start {machine.unit}", timeout=60)
            expect(status != 0, "a machine without its tap has started")
            expect("There is no network interface 'plugnone'" in said(machine), machine.journal(60))
    finally:
        lab.run("ip link delete plugtap")


@scenario(only_x86=A_PC, slow=True)
def a_plugin_is_a_pc(lab):
    # Its user is nobody else, so the disk is everybody's.
    lab.check(f"mkdir -p {WORK}; truncate -s 16M {WORK}/disk; chmod 666 {WORK}/disk")
    with Machine(lab, name="plugin", vcpus=1, plugin={
            "path": "/usr/lib/vmm-lab-plugins/plugin-linux",
            "arguments": [f"--kernel={KERNEL}", f"--initrd={INITRD}", f"--disk={WORK}/disk",
                          "--command-line=console=ttyS0 quiet vmm.test=info,write,check,poweroff vmm.mark=by-the-plugin"],
            "readOnlyPaths": [KERNEL, INITRD],
            "readWritePaths": [f"{WORK}/disk"]}) as machine:
        machine.start()
        expect(machine.wait_until_ended(timeout=240)["Result"] == "success", machine.journal())
        machine.wait_until_devices_ended()
        text = machine.said(machine.device_unit("plugin")).replace("\r", "")
        expect("INIT-FIRST-LINE" in text, f"no /init:\n{text[-1500:]}")
        expect("virtio=virtio0" in text and f"vda={16 << 11}" in text, f"no disk:\n{text[-1500:]}")
        expect("CHECK SYNCED-BY-GUEST by-the-plugin" in text, f"the disk has forgotten:\n{text[-1500:]}")
        expect("SYNCED-BY-GUEST by-the-plugin" in lab.check(f"head -c 64 {WORK}/disk | tr -d '\\0'"), "the file is not the disk")
