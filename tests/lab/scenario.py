# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds scenarios, runs them in a lab, and says how each ended: `ok NAME` or `not ok NAME: reason`. Several labs may have scenarios at
the same time, each in a thread of its own: what is printed at once stays together."""

import glob
import importlib.util
import os
import sys
import threading
import time
import traceback

import lablib


class Failure(Exception):
    """What a scenario saw is not what it had to see."""


class Scenario:
    def __init__(self, function, name, releases, host, memory, quick, long, arguments, only_x86=None, short=False, slow=False, only_arm64=None):
        self.function = function
        self.name = name
        self.releases = releases
        self.host = host
        self.memory = memory
        self.quick = quick
        self.long = long
        self.arguments = arguments
        self.only_x86 = only_x86
        self.only_arm64 = only_arm64
        self.short = short
        self.slow = slow

    def fits(self, release, quick=False, arch="x86_64"):
        return release in self.releases and (self.quick or not quick) and not self.elsewhere(arch)

    def elsewhere(self, arch):
        """Why there is nothing to be seen of it on that architecture; None where there is."""
        return self.only_arm64 if arch == "x86_64" else self.only_x86


registered = []


def scenario(releases=("bookworm",), host="guest", memory=0, quick=True, long=False, variants=None, only_x86=None, short=False,
             slow=False, only_arm64=None):
    """Registers a function as scenario. `host` is "guest" where the lab's host has to run stock guests, and "any" where machines of the
    kernel "tiny" do: such a one is run in a container, where that is the faster host (which has no cgroup controllers). `variants` maps a
    suffix of the name to further arguments; `memory` is what the lab's host must have, in MiB; one that is not `quick` is left out by
    --quick; a `long` one takes some quarter of an hour where processors are emulated, and is run there only where it is named. `only_x86` is the
    reason why there is nothing to be seen of it on 64-bit Arm, or such a reason for each suffix, `only_arm64` why it is there alone; of all others the `short` ones, or suffixes, are
    those that `tests/run` has there unless it is told otherwise. A `slow` one takes minutes: several hosts are
    done at the same time only when these are begun first."""
    if host not in ("any", "guest"):
        raise ValueError(f"a scenario's host is any or guest, not {host}")

    def register(function):
        name = function.__name__.replace("_", " ")
        for suffix, arguments in (variants or {"": {}}).items():
            reason = only_x86.get(suffix) if isinstance(only_x86, dict) else only_x86
            registered.append(Scenario(function, f"{name} {suffix}".strip(), releases, host, memory, quick, long, arguments, reason,
                                       suffix in short if isinstance(short, tuple) else short, slow, only_arm64))
        return function
    return register


times = []  # (seconds, label) of those that passed
printing = threading.Lock()


def report(*lines):
    with printing:
        print("\n".join(lines), flush=True)


def expect(condition, text):
    if not condition:
        raise Failure(text)


# What is asked of a program may be answered before it is done, and what happened may be known here before it is there: whoever looks right after
# either sees one or the other, as the host has time. Such things are waited for. The time is what nothing takes that does not hang.
PATIENCE = 90


def wait_until(lab, what, look, condition, timeout=PATIENCE, explain=None, interval=0.5):
    """Looks again and again until what look() returns fulfils the condition; returns that. `what` says what is waited for, and explain() returns
    more for whoever has to know why it did not come."""
    deadline = time.monotonic() + timeout * lab.patience
    while not condition(seen := look()):
        if time.monotonic() > deadline:
            raise Failure(f"{what}: not within {timeout} s, but {seen}\n{explain() if explain else ''}")
        time.sleep(interval)
    return seen


def wait_for(lab, what, condition, timeout=PATIENCE, explain=None):
    """The same of a shell condition, which the host looks at by itself. Where it did not come, what it printed the last time is said."""
    status, output = lab.run(f"""
until said=$( {{ {condition}
}} 2>&1 ); do
        if [ $SECONDS -ge {timeout * lab.patience} ]; then
                printf '%s\\n' "$said"
                exit 1
        fi
        sleep 0.2
done""", timeout + 120)
    if status != 0:
        raise Failure(f"{what}: not within {timeout} s; `{condition}` prints: {output.strip()}\n{explain() if explain else ''}")


def journal(lab, arguments):
    """What journalctl prints, of all that was said before: journald reads what it is told in its own time."""
    return lab.check(f"journalctl --sync && journalctl -q --no-pager {arguments}", timeout=120)


def find(names):
    """The scenarios of the files named (FILE or FILE:WORDS), in the order of the files; of all where none is named."""
    here = os.path.join(lablib.HERE, "scenarios")
    if here not in sys.path:
        sys.path.append(here)
    names = names or sorted(glob.glob(os.path.join(here, "*.py")))
    found = []
    for name in names:
        path, _, words = name.partition(":")
        if not os.path.isfile(path):
            path = os.path.join(here, path.removesuffix(".py") + ".py")
        if not os.path.exists(path):
            raise lablib.LabError(f"no scenarios at {path}")
        registered.clear()
        own = os.path.basename(path)[:-3]
        specification = importlib.util.spec_from_file_location(own, path)
        specification.loader.exec_module(importlib.util.module_from_spec(specification))
        # Not those of a file that this one has imported something of.
        found += [each for each in registered if words in each.name and each.function.__module__ == own]
    return found


def answers(lab):
    try:
        return lab.is_alive() and lab.run("true", timeout=60)[0] == 0
    except (lablib.LabError, OSError):
        return False


def label_of(lab, each):
    return f"{each.name} [{lab.settings['release']}, {lab.kind if lab.arch == 'x86_64' else lab.arch}]"


class Repeats:
    """Where the processors themselves are emulated, guests stall now and then, end by a triple fault, or take their whole host along, whoever their
    supervisor is. Such a scenario is repeated once, said aloud with all that is known, and again at the end of the run: whoever reads it
    decides whether that was the emulation. What fails twice has failed, and so has everything beyond so many of them, since the
    emulation was never that bad. Nothing is ever repeated in containers, or where it takes as long as a `long` one."""

    MAX = 4

    def __init__(self):
        self.lock = threading.Lock()
        self.seen = []

    def forgive(self, lab, text):
        """Whether what went wrong there is only said, and not counted."""
        with self.lock:
            if lab.kind != "qemu" or len(self.seen) >= self.MAX:
                return False
            self.seen.append(text)
            return True

    def summary(self):
        with self.lock:
            return [f"FAILED AT FIRST: {text}" for text in self.seen]


repeats = Repeats()


def first_line(text):
    return next(iter(text.strip().splitlines()), "?")


def report_with_reason(heading, reason):
    report(f"{heading}: {first_line(reason)}", *(f"#   {line}" for line in reason.strip().splitlines()[1:]))


def attempt(lab, each):
    """Returns why the scenario failed, or None."""
    start = time.monotonic()
    try:
        if not lab.is_alive():
            raise lablib.LabError("the lab is gone")
        each.function(lab, **each.arguments)
    except (Failure, lablib.LabError) as error:
        return str(error).strip() or "?"
    except Exception:  # pylint: disable=broad-exception-caught
        return "the scenario itself is broken\n" + traceback.format_exc()
    taken = time.monotonic() - start
    label = label_of(lab, each)
    times.append((taken, label))
    report(f"ok {label} ({taken:.1f} s)")
    return None


def repeat(lab, each):
    """On the same host where that answers still, else on a new one."""
    if not answers(lab):
        report(f"# THE HOST HUNG, so on a new one: {label_of(lab, each)}")
        try:
            lab.replace()
        except lablib.LabError as error:
            return f"no new host: {error}"
    return attempt(lab, each)


def run_or_repeat(lab, each):
    """Returns whether the scenario has passed."""
    reason = attempt(lab, each)
    if reason is not None and not each.long and repeats.forgive(lab, f"{label_of(lab, each)}: {first_line(reason)}"):
        report_with_reason(f"# FAILED AT FIRST: {label_of(lab, each)}", reason)
        reason = repeat(lab, each)
    if reason is not None:
        report_with_reason(f"not ok {label_of(lab, each)}", reason)
    return reason is None


def run(lab, scenarios, quick=False):
    """Runs those that fit this lab; returns how many failed."""
    failed = 0
    for each in scenarios:
        if each.elsewhere(lab.arch):
            report(f"# left out on {lab.arch}: {each.name}: {each.elsewhere(lab.arch)}")
            continue
        if not each.fits(lab.settings["release"], quick, lab.arch) or (each.host == "guest" and not lab.runs_guests()):
            continue
        if lab.settings["memory"] < each.memory:
            report(f"# left out for want of memory: {each.name}")
            continue
        if not run_or_repeat(lab, each):
            failed += 1
    return failed


def main(arguments):
    scenarios = find(arguments.scenario)
    if arguments.list:
        for each in scenarios:
            print(each.name)
        return 0
    try:
        lab = lablib.Lab.open(arguments.name)
        own = False
    except lablib.LabError:
        lab = lablib.Lab.start(arguments.name, arguments.kind, arguments.release, arguments.memory, arch=arguments.arch)
        own = True
    try:
        if arguments.build:
            lab.install(arguments.build)
        failed = run(lab, scenarios, arguments.quick)
    finally:
        if own:
            lab.shutdown()
        for line in repeats.summary():
            report(f"# {line}")
    return 1 if failed else 0
