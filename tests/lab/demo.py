# SPDX-License-Identifier: LGPL-2.1-or-later
"""The demo: builds and installs the suite on a host with a real /dev/kvm, boots a Debian guest there, looks at its units and
sandboxes, logs in over the console, and stops it in order."""

import argparse
import os
import re
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "scenarios"))

import build  # pylint: disable=wrong-import-position
import guest  # pylint: disable=wrong-import-position
import lablib  # pylint: disable=wrong-import-position
import scenario  # pylint: disable=wrong-import-position

LAB = "demo"
STEPS = 8


class Progress:
    def __init__(self):
        self.start = time.monotonic()
        self.step = 0

    def __call__(self, text):
        self.step += 1
        print(f"\n\033[1m[{self.step}/{STEPS}] {text}\033[0m  ({time.monotonic() - self.start:.0f} s)"
              if sys.stdout.isatty() else f"\n[{self.step}/{STEPS}] {text}  ({time.monotonic() - self.start:.0f} s)",
              flush=True)


def show(lab, command, timeout=120):
    """Runs a command on the host as a reader would type it."""
    print(f"lab# {command}", flush=True)
    status, output = lab.run(command, timeout)
    print("     " + output.rstrip().replace("\n", "\n     "), flush=True)
    if status not in (0, 3):
        raise lablib.LabError(f"`{command}` ended with {status}")
    return output


def show_units(lab, definition):
    show(lab, "systemctl list-dependencies --no-pager vmm@demo.service | grep vmm")
    show(lab, "systemctl status --no-pager -n 0 'vmm*.service' | grep -E '^●|Active:|Main PID:|CGroup:|Status:'")
    for unit in ["vmm@demo.service"] + [f"vmm-device@demo-{device}.service" for device in definition["devices"]]:
        output = lab.check(f"systemctl show {unit} -p ActiveState -p Slice")
        if "ActiveState=active" not in output or "Slice=vmm-demo.slice" not in output:
            raise lablib.LabError(f"{unit}: {output.split()}")


def show_scores(lab):
    output = show(lab, "for u in $(systemctl list-units --plain --no-legend 'vmm@*.service' 'vmm-device@*.service' | "
                       "cut -d' ' -f1); do systemd-analyze security --no-pager $u | tail -n 1; done")
    scores = [float(score) for score in re.findall(r": ([0-9.]+) ", output)]
    if not scores or max(scores) > 0.2:
        raise lablib.LabError("a sandbox scores worse than 0.2")


def log_in(lab, start):
    print("lab# vmmctl console demo", flush=True)
    with lab.terminal("vmmctl console demo") as terminal:
        guest.login(terminal, timeout=300)
        print(f"     demo login: root\n     Password: ***     ({time.monotonic() - start:.0f} s after systemctl start)")
        for command in ("uname -sr", "findmnt -no SOURCE,FSTYPE,SIZE /", "nproc", "lsblk -no NAME,SIZE,MOUNTPOINT /dev/vda",
                        "echo hello >/root/hello && sync && cat /root/hello"):
            print(f"     root@demo:~# {command}", flush=True)
            print("     " + guest.command(terminal, command).replace("\n", "\n     "), flush=True)


def hand_over(lab):
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return
    print("The guest's console is yours: root, password vmm. Leave it by pressing Ctrl-] three times.\n", flush=True)
    lab.execute("vmmctl console demo", terminal=True)
    print()


def stop(lab):
    show(lab, "systemctl stop vmm@demo.service", 180)
    output = show(lab, "systemctl show vmm@demo.service -p ActiveState -p Result -p ExecMainStatus")
    show(lab, "journalctl -q --no-pager -o short-monotonic -u vmm@demo.service -u 'vmm-device@demo-*.service' | "
              "grep -E 'vmmd.*:|Stopp' | tail -n 12")
    if "ActiveState=inactive" not in output or "Result=success" not in output:
        raise lablib.LabError("the machine did not end in order")
    left = lab.run("systemctl list-units --plain --no-legend --state=active 'vmm-device@demo*' 'vmm@demo*'")[1].strip()
    if left:
        raise lablib.LabError(f"units that are still there: {left}")


def demo(arguments):
    progress = Progress()
    progress("Building the suite")
    directory = build.build("demo", ["-Dtests=false"])
    progress("Making the images (a Debian for the host, one for the guest; minutes the first time)")
    lablib.images("host-bookworm", "lab-bookworm", "data")
    kind, reason = lablib.probe()
    progress("Booting the host: " + reason)
    lab = lablib.Lab.start(LAB, arguments.kind or kind)
    try:
        lab.install(directory)
        progress("Starting the machine")
        definition = guest.define(lab)
        show(lab, "cat /etc/vmm/demo.json")
        start = time.monotonic()
        show(lab, "systemctl start vmm@demo.service", 120)
        progress("Its units")
        show_units(lab, definition)
        progress("Their sandboxes (0.0 is tight, 10.0 is none)")
        show_scores(lab)
        progress("Logging in over the console, as soon as the guest is up")
        log_in(lab, start)
        hand_over(lab)
        progress("Stopping it in order")
        stop(lab)
    except (lablib.LabError, scenario.Failure):
        print(lab.run("journalctl -q --no-pager -o short-monotonic -n 60 -u 'vmm*'")[1], file=sys.stderr)
        raise
    finally:
        lab.shutdown()
    print(f"\nDone after {time.monotonic() - progress.start:.0f} s.")


def main():
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--kind", choices=sorted(lablib.KINDS), help="the host, instead of what the probe finds")
    arguments = parser.parse_args()
    if os.getuid() != 0:
        sys.exit("demo: must run as root")
    try:
        demo(arguments)
    except (lablib.LabError, scenario.Failure) as error:
        sys.exit(f"demo: {error}")


main()
