# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every test of the project; the last line says how many passed and how many failed, and before it stands what took how long.

What runs is planned for two processors, and so that neither is ever idle: the table at the end says how busy they were. Building and
testing go one after the other. Tests often wait, so what is said of the tree is found out beside them, with what they leave of the
processors. Beside all of it the images are made, then the scenarios run, those without a guest in containers, one for each release, the
others on emulated hosts. One such host keeps little more than a processor busy, so a second one comes as soon as the tests are done.
Whichever is free takes the next scenario, those that take long first, so that both are done at about the same time."""

import argparse
import collections
import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import build  # pylint: disable=wrong-import-position
import lablib  # pylint: disable=wrong-import-position
import scenario  # pylint: disable=wrong-import-position

# What a sanitizer finds has to end the test; a leak is a find, too.
SANITIZER_ENVIRONMENT = {
    "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "halt_on_error=1:abort_on_error=1:print_stacktrace=1",
}
RELEASES = ("bookworm", "trixie")
IMAGES = ["root-bookworm", "root-trixie", "data", "host-bookworm", "host-trixie", "lab-bookworm", "lab-trixie"]
# In MiB, of the hosts that are there at the same time: one for guests with 6 GiB, and one that leaves memory for the tests.
LAB_MEMORY = (9000, 5000)
CONTAINER_MEMORY = 3072  # not a limit
ARM64_MEMORY, ARM64_MEMORY_SHORT = 9000, 3000
# Of programs that are only tested: the optimizer would take half the time, and lines are all that a sanitizer tells.
SANITIZED = ["-Db_sanitize=address,undefined", "-Db_lundef=false", "-Doptimization=1", "-Dc_args=-g1"]
# Of those that are not even run.
ONLY_COMPILED = ["-Doptimization=0", "-Ddebug=false"]
# The processors have other work, too, and no test is about how fast they are.
PATIENCE = 6
# So many scenarios pay for the boot of one more host.
WORTH_A_HOST = 3
# So many others take as long as a slow one.
SLOW_IS = 8


def processor_time():
    """What all processors of this machine have worked, and how much they could have, in seconds."""
    with open("/proc/stat", encoding="ascii") as f:
        ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in f.readline().split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


class Results:
    """What was seen, by whichever thread; and how long it took."""

    def __init__(self):
        self.lock = threading.Lock()
        self.passed = self.failed = 0
        self.broken = []
        self.stages = []
        self.costs = {}  # seconds of a processor that a host has used for a scenario, by its label
        self.start = time.monotonic()

    def heading(self, text):
        scenario.report("", f"== {text}  ({time.monotonic() - self.start:.0f} s)")

    def note(self, text):
        scenario.report(f"# {text}")

    def add(self, name, good, reason=""):
        with self.lock:
            if good:
                self.passed += 1
            else:
                self.failed += 1
                self.broken.append(name)
        if good:
            scenario.report(f"ok {name}")
        else:
            scenario.report(f"not ok {name}", *(f"#   {line}" for line in reason.strip().splitlines()))

    def add_scenario(self, label, good):
        """One that has been reported already."""
        with self.lock:
            if good:
                self.passed += 1
            else:
                self.failed += 1
                self.broken.append(label)

    @contextlib.contextmanager
    def stage(self, name):
        """Yields a list, for what else there is to say in the table."""
        self.heading(name)
        start, notes, (worked, could) = time.monotonic(), [], processor_time()
        try:
            yield notes
        finally:
            worked, could = (after - before for after, before in zip(processor_time(), (worked, could)))
            with self.lock:
                self.stages.append((start - self.start, time.monotonic() - start, 100 * worked / max(could, 0.01), name, notes))

    def print_table(self):
        print("\n  from     to   took   busy  what")
        for start, took, busy, name, notes in sorted(self.stages):
            print(f"{start:6.0f} {start + took:6.0f} {took:6.0f} {busy:5.0f}%  {name}{': ' if notes else ''}{', '.join(notes)}")
        slowest = sorted(scenario.times, reverse=True)[:20]
        if slowest:
            print("the longest scenarios, and their hosts' seconds of a processor:")
        for took, label in slowest:
            cost = f"{self.costs[label]:6.0f}" if label in self.costs else " " * 6
            print(f"              {took:6.0f} {cost}  {label}")


def build_and_report(results, name, label, options, compiler):
    with results.stage(f"building: {name}"):
        try:
            directory = build.build(name, ["-Dwerror=true", *options], compiler)
        except lablib.LabError as error:
            results.add(label, False, str(error))
            return None
        results.add(label, True)
        return directory


def meson_tests(results, directory, label, environment=None):
    """All tests that meson knows; its log has one JSON object a line."""
    log = os.path.join(directory, "meson-logs", "testlog.json")
    if os.path.exists(log):
        os.unlink(log)
    command = ["meson", "test", "-C", directory, "--no-rebuild", "--timeout-multiplier", str(PATIENCE)]
    finished = subprocess.run(command, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    try:
        with open(log, encoding="utf-8") as f:
            tests = [json.loads(line) for line in f if line.strip()]
    except FileNotFoundError:
        results.add(f"{label}: meson test", False, finished.stdout[-2000:])
        return
    for test in tests:
        name = test["name"].removeprefix("vmmd:").strip()
        good = test["result"] in ("OK", "EXPECTEDFAIL")
        if test["result"] == "SKIP":
            results.note(f"skipped: {label}: {name}")
            continue
        text = (test.get("stdout") or "") + (test.get("stderr") or "")
        wrong = [line for line in text.splitlines() if line.startswith("not ok") or "ERROR" in line or "runtime error" in line]
        results.add(f"{label}: {name}", good, f"{test['result']}\n" + "\n".join(wrong[:20]) + "\n" + text[-1500:])
    if not tests:
        results.add(f"{label}: meson test", False, "it ran no test\n" + finished.stdout[-2000:])


tap_programs = set()  # each with a session of its own, for whoever has to end them at once


def tap_program(results, label, command):
    """A program that speaks TAP; one that dies without a word has failed, too."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          start_new_session=True) as process:
        tap_programs.add(process)
        output, _ = process.communicate()
        tap_programs.discard(process)
    good = bad = 0
    wrong = []
    for line in output.splitlines():
        if line.startswith("ok "):
            good += 1
        elif line.startswith("not ok "):
            bad += 1
            wrong.append(line)
        elif wrong and line.startswith("#"):
            wrong.append(line)
    results.add(f"{label}: {good} checks", process.returncode == 0 and good > 0 and bad == 0, "\n".join(wrong) or output[-2000:])


class Scenarios:
    """What is still to be run on hosts that run guests, a queue for each release from which the hosts take; and what needs no such host."""

    def __init__(self, results, tree, kind, cancelled):
        self.results = results
        self.tree = tree
        self.kind = kind
        self.cancelled = cancelled
        self.lock = threading.Lock()
        self.queues = {release: collections.deque() for release in RELEASES}
        self.without_guests = {release: [] for release in RELEASES}
        self.hosts = collections.Counter()

    def add(self, release, scenarios):
        with self.lock:
            self.queues[release].extend(scenarios)

    def choose_release(self, memory):
        """Where a host of that memory is of most use now; None where it would not pay."""
        with self.lock:
            def worth(release):
                fitting = sum(SLOW_IS if each.slow else 1 for each in self.queues[release] if each.memory <= memory)
                return fitting / (1 + self.hosts[release]) if fitting >= WORTH_A_HOST or not self.hosts[release] else 0
            release = max(RELEASES, key=worth)
            if not worth(release):
                return None
            self.hosts[release] += 1
            return release

    def take(self, release, memory):
        """The next one; a host with much memory takes first what no other can, and then both what takes long."""
        with self.lock:
            fitting = [each for each in self.queues[release] if each.memory <= memory]
            if not fitting or self.cancelled.is_set():
                return None
            each = max(fitting, key=lambda each: (each.memory > min(LAB_MEMORY), each.slow))
            self.queues[release].remove(each)
            return each

    def work_off(self, lab, release, notes):
        start, cpu, count = time.monotonic(), lab.cpu_seconds(), 0
        while (each := self.take(release, lab.settings["memory"])):
            label, before = scenario.label_of(lab, each), lab.cpu_seconds()
            self.results.add_scenario(label, scenario.run_or_repeat(lab, each))
            self.results.costs[label] = max(lab.cpu_seconds() - before, 0)
            count += 1
        took = time.monotonic() - start
        notes += [f"{count} scenarios", f"{took / max(count, 1):.0f} s each", f"{max(lab.cpu_seconds() - cpu, 0) / max(took, 1):.1f} processors"]

    def serve(self, number):
        """A host after the other, until nothing is left for one of that memory."""
        memory, tries = LAB_MEMORY[number], 0
        while tries < 2 and not self.cancelled.is_set() and (release := self.choose_release(memory)):
            try:
                with self.results.stage(f"scenarios, host {number + 1} with {release}") as notes:
                    lab = start_lab(self.results, self.kind, release, number, memory, self.tree)
                    with stopping(self.results, lab):
                        self.work_off(lab, release, notes)
            except lablib.LabError as error:
                tries += 1
                self.results.note(f"HOST {number + 1} DID NOT BOOT {release}: {error}")
            finally:
                with self.lock:
                    self.hosts[release] -= 1

    def report_rest(self):
        for release, queue in self.queues.items():
            for each in queue:
                self.results.add(f"{each.name} [{release}]", False, "no host was there for it")


def start_lab(results, kind, release, number, memory, tree, arch="x86_64"):
    start = time.monotonic()
    lab = lablib.Lab.start(f"suite-{kind if arch == 'x86_64' else arch}-{release}-{number}", kind, release, memory, arch=arch)
    try:
        lab.install_tree(tree)
    except BaseException:
        lab.destroy()
        raise
    results.note(f"{lab.name} is there after {time.monotonic() - start:.0f} s")
    return lab


@contextlib.contextmanager
def stopping(results, lab):
    try:
        yield
    finally:
        hung = not scenario.answers(lab)
        orderly = lab.shutdown() if not hung else lab.destroy()
    name = f"the host {lab.name} shuts down in order"
    # There is nobody who could be asked a second time.
    if hung and scenario.repeats.forgive(lab, f"{name}: it answers nobody any more"):
        results.note(f"THE HOST HUNG at its end: {lab.name}")
    else:
        results.add(name, bool(orderly), "it answers nobody any more" if hung else "")


def in_a_container(results, todo, release, tree):
    """What needs no guest. Where no container can be had, the other hosts get it."""
    scenarios = todo.without_guests[release]
    with results.stage(f"scenarios, container with {release}") as notes:
        try:
            lab = start_lab(results, "nspawn", release, 0, CONTAINER_MEMORY, tree)
        except lablib.LabError as error:
            results.note(f"NO CONTAINER, so what needs no guest runs beside the guests: {error}")
            todo.add(release, scenarios)
            return
        with stopping(results, lab):
            for each in scenarios:
                if todo.cancelled.is_set():
                    return
                results.add_scenario(scenario.label_of(lab, each), scenario.run_or_repeat(lab, each))
        notes.append(f"{len(scenarios)} scenarios")


def make_images(results):
    with results.stage("making images"):
        lablib.images(*IMAGES)


def queue_guests(results, arguments, tree, cancelled):
    kind, reason = lablib.probe()
    results.note(reason)
    kind = arguments.kind or kind
    todo = Scenarios(results, tree, kind, cancelled)
    found = scenario.find(arguments.scenarios)
    if kind == "qemu" and not arguments.scenarios:
        for each in found:
            if each.long:
                results.note(f"left out, as it takes long on emulated processors: {each.name}")
        found = [each for each in found if not each.long]
    for release in RELEASES:
        fitting = [each for each in found if each.fits(release, arguments.quick)]
        # A container that runs guests runs everything.
        todo.add(release, [each for each in fitting if kind == "nspawn" or each.host == "guest"])
        todo.without_guests[release] = [each for each in fitting if kind != "nspawn" and each.host == "any"]
    return todo


def in_labs(results, todo, tree, images):
    """The scenarios; the second host has to wait for its time."""
    try:
        images.result()
    except lablib.LabError as error:
        results.add("the images can be made", False, str(error))
        return
    with concurrent.futures.ThreadPoolExecutor() as threads:
        containers = []
        containers = [threads.submit(in_a_container, results, todo, release, tree) for release in RELEASES if todo.without_guests[release]]
        first = threads.submit(todo.serve, 0)
        for each in containers + [first]:
            each.result()


def choose_for_arm64(results, arguments):
    """What is short, or all that was asked for; and why the rest of that is not there."""
    everything, chosen = arguments.arm64 != "short", []
    memory = ARM64_MEMORY if everything else ARM64_MEMORY_SHORT
    for each in scenario.find(arguments.scenarios):
        reason = each.elsewhere("aarch64") or ("" if "bookworm" in each.releases else "of 64-bit Arm there is one release") or \
            (f"its host needs {each.memory} MiB" if each.memory > memory else "") or \
            ("it takes long on emulated processors" if each.long and not arguments.scenarios else "")
        if reason and everything:
            results.note(f"left out on aarch64: {each.name}: {reason}")
        if not reason and (each.short or everything) and (each.quick or not arguments.quick):
            chosen.append(each)
    return chosen, memory


def on_arm64(results, arguments, cancelled, tree):
    """On one emulated host of 64-bit Arm, and of our programs what that needs."""
    scenarios, memory = choose_for_arm64(results, arguments)
    if not scenarios and not arguments.no_lab:
        return
    with results.stage("building: for 64-bit Arm"):
        try:
            directory = build.build_foreign()
        except lablib.LabError as error:
            results.add("builds for 64-bit Arm without a warning", False, str(error))
            return
        results.add("builds for 64-bit Arm without a warning", True)
    if arguments.no_lab:
        return
    lablib.install_into(tree, directory)
    with results.stage("scenarios, host of 64-bit Arm") as notes:
        try:
            lab = start_lab(results, "qemu", "bookworm", 0, memory, tree, "aarch64")
        except lablib.LabError as error:
            results.add("a host of 64-bit Arm boots", False, str(error))
            return
        with stopping(results, lab):
            for each in scenarios:
                if not cancelled.is_set():
                    results.add_scenario(scenario.label_of(lab, each), scenario.run_or_repeat(lab, each))
            notes.append(f"{lab.cpu_seconds():.0f} s of a processor")


def build_others(results, quick):
    """Returns the one whose tests are run, too."""
    sanitized = build_and_report(results, "sanitized", "builds with the address and undefined behaviour sanitizers",
                                 SANITIZED, "gcc")
    if not quick:
        build_and_report(results, "clang", "builds with clang without a warning", ONLY_COMPILED, "clang")
    return sanitized


def check_tree(results, plain):
    with results.stage("tests: the tree"):
        tap_program(results, "the tree", ["nice", "-n", "15", os.path.join(lablib.TOP, "tests", "lint", "run"), plain])


def run_tests(results, plain, sanitized, images):
    with results.stage("tests: unit, device, interop, fuzz"):
        meson_tests(results, plain, "plain")
    if sanitized:
        with results.stage("tests: the same under the sanitizers"):
            meson_tests(results, sanitized, "sanitized", SANITIZER_ENVIRONMENT)
    images.result()
    with results.stage("tests: unit files"):
        root, = lablib.images("root-trixie")  # meson's own test knows only the systemd of this machine
        tap_program(results, "unit files, systemd 252 and 257", [os.path.join(lablib.TOP, "tests", "units", "check-units"), plain, root])


def run(arguments, results, threads, cancelled, tree):
    if arguments.arm64 == "only":
        on_arm64(results, arguments, cancelled, tree)
        return
    images = threads.submit(make_images, results)
    plain = build_and_report(results, "gcc", "builds with gcc without a warning", [], "gcc")
    if not plain:
        build_others(results, arguments.quick)
        return
    labs = None
    if not arguments.no_lab:
        # Once, before tests and checks use the build directory.
        lablib.install_into(tree, plain)
        todo = queue_guests(results, arguments, tree, cancelled)
        labs = threads.submit(in_labs, results, todo, tree, images)
    if not arguments.only_lab:
        sanitized = build_others(results, arguments.quick)
        tree_checked = threads.submit(check_tree, results, plain)
        run_tests(results, plain, sanitized, images)
    if arguments.arm64 != "no":
        on_arm64(results, arguments, cancelled, tree + "-arm64")
    if labs:
        todo.serve(1)
        labs.result()
        todo.report_rest()
    if not arguments.only_lab:
        tree_checked.result()


def end_all():
    """What was interrupted leaves no host and no check behind; whoever waits for one hears that it is gone."""
    for process in list(tap_programs):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    lablib.closing.set()
    for lab in list(lablib.running):
        lab.destroy()


def main():
    parser = argparse.ArgumentParser(prog="run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one compiler, and only part of the scenarios")
    parser.add_argument("--no-lab", action="store_true", help="leave the scenarios out")
    parser.add_argument("--only-lab", action="store_true", help="build what the scenarios need, and run them")
    parser.add_argument("--arm64", choices=("no", "short", "all", "only"), default="short",
                        help="what of the scenarios runs on an emulated host of 64-bit Arm, too: nothing, for which then nothing is built either; "
                        "what is short (this is the default); all that it has; or all that, and nothing on any other host")
    parser.add_argument("--kind", choices=sorted(lablib.KINDS), help="the host for guests, instead of what the probe finds")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="FILE or FILE:WORDS of its name; all where none is given")
    arguments = parser.parse_args()
    if os.getuid() != 0:
        sys.exit("run: must run as root")

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results, cancelled = Results(), threading.Event()
    with tempfile.TemporaryDirectory(prefix="vmm-suite.") as work, concurrent.futures.ThreadPoolExecutor() as threads:
        try:
            run(arguments, results, threads, cancelled, os.path.join(work, "tree"))
        except KeyboardInterrupt:
            results.add("the run itself", False, "interrupted")
        except lablib.LabError as error:
            results.add("the run itself", False, str(error))
        finally:
            cancelled.set()
            end_all()
    results.print_table()
    print(f"\nAfter {time.monotonic() - results.start:.0f} s:")
    for line in scenario.repeats.summary():
        print(line)
    for name in results.broken:
        print(f"failed: {name}")
    print(f"{results.passed} passed, {results.failed} failed", flush=True)
    return 1 if results.failed else 0


sys.exit(main())
