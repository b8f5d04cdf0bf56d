# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a machine's control interface does to a real guest, and what those who subscribed to it are told."""

import json
import shlex

from machine import Machine
from scenario import expect, scenario, wait_for

BOTH = ("bookworm", "trixie")
DEVICES = {"rng": {"type": "rng"}, "console": {"type": "console"}}
IMAGE = "/var/lib/vmm-lab/disk.img"
EVENTS = "/run/vmm-lab-events"

# A sidecar in its simplest form: subscribes as soon as the socket is there, writes a line for each reply, ends with the subscription. The lab's hosts have
# a Python that is too small for a parser.
SUBSCRIBER = """
import socket, sys, time
path, out = sys.argv[1], open(sys.argv[2], "w", buffering=1)
for _ in range(6000):
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
        break
    except OSError:
        time.sleep(0.1)
connection.sendall(b'{"method":"io.vmmd.Machine.SubscribeEvents","more":true}\\0')
buffer = b""
more = True
while more:
    while b"\\0" not in buffer:
        data = connection.recv(65536)
        if not data:
            sys.exit("the connection ended before the subscription")
        buffer += data
    message, buffer = buffer.split(b"\\0", 1)
    out.write(message.decode() + "\\n")
    more = b'"continues":true' in message
"""


def call(machine, method, **parameters):
    """One call; its reply's parameters."""
    reply = json.loads(machine.lab.check(f"python3 /run/lab/varlink-call.py /run/vmm/{machine.name}/control io.vmmd.Machine.{method} "
                                         f"{shlex.quote(json.dumps(parameters))}", timeout=60))
    expect("error" not in reply, f"{method}: {reply}")
    return reply["parameters"]


def begin_to_listen(machine):
    """Before the machine runs: whoever connects to its socket starts it, and misses nothing of its life."""
    machine.lab.check(f"rm -f {EVENTS}; systemctl reset-failed lab-subscriber 2>/dev/null; systemctl start vmm@{machine.name}.socket; "
                      f"systemd-run -q --unit lab-subscriber --collect python3 -c {shlex.quote(SUBSCRIBER)} "
                      f"/run/vmm/{machine.name}/control {EVENTS}")
    machine.wait_for("the subscriber has connected", f"[ -s {EVENTS} ]", 120)


def heard_to_the_end(machine):
    """All that the subscriber was told, once it has written it down: it ends with its subscription, and that with the machine."""
    wait_for(machine.lab, "the subscriber ends", "! systemctl is-active lab-subscriber",
             explain=lambda: machine.lab.run("journalctl -q -n 20 -u lab-subscriber")[1])
    return heard(machine)


def heard(machine):
    replies = [json.loads(line) for line in machine.lab.run(f"cat {EVENTS} 2>/dev/null")[1].splitlines() if line.endswith("}")]
    return [dict(reply.get("parameters", {}), error=reply.get("error"), last=not reply.get("continues")) for reply in replies]


def wait_to_hear(machine, kind, text="", count=1, timeout=90):
    """Waits for so many events of that kind that have the text; returns the last of them."""
    pattern = shlex.quote(f'"type":"{kind}".*{text}')
    timeout *= machine.lab.patience
    machine.lab.run(f"until [ \"$(grep -cE {pattern} {EVENTS})\" -ge {count} ] || [ $SECONDS -gt {timeout} ]; do sleep 1; done", timeout + 60)
    events = [event for event in heard(machine) if event["type"] == kind and text in json.dumps(event, separators=(",", ":"))]
    expect(len(events) >= count, f"{len(events)} events {kind} with {text!r}, not {count}:\n"
           + "\n".join(map(json.dumps, heard(machine))) + f"\n{machine.journal()}")
    return events[-1]


@scenario(releases=BOTH, short=True)
def a_subscriber_hears_of_a_whole_life(lab):
    with Machine(lab, test="button", devices=DEVICES) as machine:
        begin_to_listen(machine)
        machine.start()
        machine.expect("^BUTTON-READY")
        wait_to_hear(machine, "guestReady")

        # A helper dies and comes back; the guest does not mind.
        described = machine.wait_until("each device has a process", lambda seen: all("pid" in device for device in seen["devices"]))
        before = {device["name"]: device["pid"] for device in described["devices"]}
        lab.check(f"systemctl kill -s KILL {machine.device_unit('rng')}")
        wait_to_hear(machine, "deviceFailed", '"rng"')
        wait_to_hear(machine, "deviceRestarted", '"rng"')
        main_pid = machine.wait_for_another(machine.device_unit("rng"), str(before["rng"]))["MainPID"]
        seen = machine.wait_until("the helper is back", lambda seen: main_pid in [str(device.get("pid")) for device in seen["devices"]])
        after = {device["name"]: device for device in seen["devices"]}
        expect(after["rng"]["reconnects"] == 1 and after["rng"]["errorTime"] > 0, f"{after['rng']}")
        expect(after["console"]["pid"] == before["console"] and "error" not in after["console"], f"{after['console']}")

        call(machine, "Pause", devices=True)
        wait_to_hear(machine, "machineState", '"paused"')
        call(machine, "Resume")
        wait_to_hear(machine, "machineState", '"Resumed')
        call(machine, "Reset")
        wait_to_hear(machine, "machineState", '"resetting"')
        machine.expect("^BUTTON-READY", count=2)
        wait_to_hear(machine, "guestReady", count=2)
        lab.check(f"systemctl stop {machine.unit}", timeout=120)

        events = heard_to_the_end(machine)
        expect(events[0]["type"] == "present", f"the first is {events[0]}")
        expect([event["last"] for event in events] == [False] * (len(events) - 1) + [True], f"the last is not the last:\n{events}")
        expect((events[-1]["type"], events[-1]["state"]) == ("machineState", "stopping"), f"the last is {events[-1]}")
        numbers = [event["sequence"] for event in events]
        expect(numbers == list(range(numbers[0], numbers[0] + len(numbers))), f"their numbers are {numbers}")
        expect(not any(event["missed"] or event["error"] for event in events), "some were missed")
        # One that was quick is so in the first event already.
        active = {device["name"] for device in events[0]["present"]["devices"] if device["state"] == "active"}
        active |= {event["device"] for event in events if event["type"] == "deviceState" and event["deviceState"] == "active"}
        expect(active >= set(machine.devices), f"only {active} were ever active:\n{events}")


@scenario()
def a_panic_is_heard_of_and_is_the_units_result(lab):
    with Machine(lab, test="panic") as machine:
        begin_to_listen(machine)  # which started it; its end may be near
        wait_to_hear(machine, "panic", "panicked", timeout=120)
        state = machine.wait_until_ended()
        events = heard_to_the_end(machine)
        expect(events[-1]["last"], f"the subscription did not end with the machine: {events}")
        expect((state["Result"], state["ExecMainStatus"]) == ("exit-code", "34"), f"ended with {state}\n{machine.journal()}")
        expect("The guest's kernel panicked." in machine.said(), f"the journal does not speak of a panic\n{machine.journal()}")


NO_NMI = "a 64-bit Arm processor of KVM has no such interrupt"


@scenario(only_x86=NO_NMI)
def an_nmi_is_seen_by_the_guests_kernel_and_buttons_by_its_input_layer(lab):
    with Machine(lab, test="input", vcpus=2) as machine:
        machine.start()
        machine.expect("^INPUT-READY")
        call(machine, "SleepButton")
        machine.expect("^INPUT 1 142 1")  # EV_KEY, KEY_SLEEP, pressed
        call(machine, "PowerButton")
        machine.expect("^INPUT 1 116 1")  # KEY_POWER
        call(machine, "InjectNmi", vcpu=1)
        machine.expect(r"NMI received for unknown reason .* on CPU 1")
        call(machine, "InjectNmi", vcpu=0)
        machine.expect(r"NMI received for unknown reason .* on CPU 0")


@scenario(only_x86=NO_NMI)
def an_nmi_makes_a_guest_panic_that_wants_to(lab):
    with Machine(lab, test="idle", command_line="quiet unknown_nmi_panic") as machine:
        machine.start()
        machine.expect("^STEP-idle")
        call(machine, "InjectNmi")
        state = machine.wait_until_ended()
        expect(state["ExecMainStatus"] == "34", f"ended with {state}\n{machine.printed()[-800:]}")


@scenario()
def a_reboot_is_orderly_and_in_the_same_process(lab):
    with Machine(lab, test="button", devices=DEVICES, onReboot="stop") as machine:
        machine.start()
        machine.expect("^BUTTON-READY")
        before = machine.states(machine.units())
        call(machine, "Reboot")
        machine.expect("^BUTTON$")
        machine.expect("^BUTTON-READY", count=2)
        for unit, then, now in zip(machine.units(), before, machine.states(machine.units())):
            expect(now["ActiveState"] == "active" and then["MainPID"] == now["MainPID"] != "0", f"{unit} was {then}, is {now}")
        # As machined asks for it.
        lab.check(f"systemctl kill -s INT --kill-who=main {machine.unit}")
        machine.expect("^BUTTON-READY", count=3)
        expect(machine.describe()["resets"] == 2, f"{machine.describe()}")
        lab.check(f"systemctl kill -s RTMIN+4 --kill-who=main {machine.unit}")
        expect(machine.wait_until_ended()["Result"] == "success", "not ended by SIGRTMIN+4")


@scenario()
def a_pause_with_devices_under_writes_loses_nothing(lab):
    mib = 40
    lab.check(f"mkdir -p /var/lib/vmm-lab; rm -f {IMAGE}; truncate -s 64M {IMAGE}; chmod 600 {IMAGE}")
    with Machine(lab, test=f"churn={mib},idle", devices={"disk": {"type": "block", "path": IMAGE}}) as machine:
        machine.start()
        for n in (2, 5, 9):
            machine.expect(rf"^CHURN {n} ")
            call(machine, "Pause", devices=True)
            helper = json.loads(lab.check(f"python3 /run/lab/varlink-call.py /run/vmm/{machine.name}/disk.varlink io.vmmd.Device.Describe"))
            expect(helper["parameters"]["state"] == "suspended", f"the helper is {helper}")
            # Nobody touches the disk, nor does the guest print, until it is resumed.
            first = lab.check(f"stat -c '%y %b' {IMAGE}; wc -c {machine.log}; sleep 2; stat -c '%y %b' {IMAGE}; wc -c {machine.log}").split("\n")
            expect(first[:2] == first[2:4], f"it goes on while paused: {first}")
            call(machine, "Resume")
        machine.expect("^CHURN-END", timeout=240)
        printed = [line.split() for line in machine.printed().splitlines()]
        written = {int(words[1]): words[2] for words in printed if words[:1] == ["CHURN"]}
        again = {int(words[1]): words[2] for words in printed if words[:1] == ["AGAIN"]}
        expect(sorted(written) == list(range(1, mib + 1)) and again == written, f"written {written}, read {again}")
        sums = lab.check(f"for i in $(seq {mib}); do dd if={IMAGE} bs=1M skip=$i count=1 2>/dev/null | md5sum | cut -d' ' -f1; done")
        expect(sums.split() == [written[i] for i in range(1, mib + 1)], "the image on the host holds something else")
