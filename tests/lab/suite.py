# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every test of the project, one after the other; the last line says how many passed and how many failed."""

import argparse
import json
import os
import subprocess
import sys
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
LAB_MEMORY = 9000  # for a guest with 6 GiB


class Results:
    def __init__(self):
        self.passed = self.failed = 0
        self.broken = []
        self.start = time.monotonic()

    def heading(self, text):
        print(f"\n== {text}  ({time.monotonic() - self.start:.0f} s)", flush=True)

    def add(self, name, good, reason=""):
        if good:
            self.passed += 1
            print(f"ok {name}", flush=True)
            return
        self.failed += 1
        self.broken.append(name)
        print(f"not ok {name}", flush=True)
        for line in reason.strip().splitlines():
            print(f"#   {line}", flush=True)

    def add_counts(self, what, passed, failed):
        self.passed += passed
        self.failed += failed
        if failed:
            self.broken.append(f"{failed} scenarios {what}")


def build_and_report(results, name, label, options, compiler):
    start = time.monotonic()
    try:
        directory = build.build(name, ["-Dwerror=true", *options], compiler)
    except lablib.LabError as error:
        results.add(label, False, str(error))
        return None
    results.add(f"{label} ({time.monotonic() - start:.0f} s)", True)
    return directory


def meson_tests(results, directory, label, environment=None, multiplier=1):
    """All tests that meson knows; its log has one JSON object a line."""
    log = os.path.join(directory, "meson-logs", "testlog.json")
    if os.path.exists(log):
        os.unlink(log)
    command = ["meson", "test", "-C", directory, "--no-rebuild", "--timeout-multiplier", str(multiplier)]
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
            print(f"# skipped: {label}: {name}", flush=True)
            continue
        text = (test.get("stdout") or "") + (test.get("stderr") or "")
        wrong = [line for line in text.splitlines() if line.startswith("not ok") or "ERROR" in line or "runtime error" in line]
        results.add(f"{label}: {name}", good, f"{test['result']}\n" + "\n".join(wrong[:20]) + "\n" + text[-1500:])
    if not tests:
        results.add(f"{label}: meson test", False, "it ran no test\n" + finished.stdout[-2000:])


def tap_program(results, label, command):
    """A program that speaks TAP; one that dies without a word has failed, too."""
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              check=False)
    good = bad = 0
    for line in finished.stdout.splitlines():
        if line.startswith("ok "):
            good += 1
        elif line.startswith("not ok "):
            bad += 1
            print(f"{line}", flush=True)
        elif bad and line.startswith("#"):
            print(line, flush=True)
    results.add(f"{label}: {good} checks", finished.returncode == 0 and good > 0 and bad == 0, finished.stdout[-2000:])


def unit_files_of_both_releases(results, directory):
    """meson's own test knows only the systemd of this machine."""
    root, = lablib.images("root-trixie")
    tap_program(results, "unit files, systemd 252 and 257", [os.path.join(lablib.TOP, "tests", "units", "check-units"), directory, root])


def in_the_lab(results, release, directory, arguments, memory):
    results.heading(f"Scenarios on a host with {release}")
    try:
        lab = lablib.Lab.start(f"suite-{release}", arguments.kind, release, memory)
    except lablib.LabError as error:
        results.add(f"the lab boots {release}", False, str(error))
        return
    try:
        lab.install(directory)
        passed, failed = scenario.run(lab, scenario.find([]), arguments.quick)
        results.add_counts(f"on {release}", passed, failed)
    except lablib.LabError as error:
        results.add(f"the suite installs on {release}", False, str(error))
    finally:
        orderly = lab.shutdown()
    results.add(f"the host with {release} shuts down in order", orderly)


def run(arguments, results):
    results.heading("Building")
    plain = build_and_report(results, "gcc", "builds with gcc without a warning", [], "gcc")
    if not arguments.quick:
        build_and_report(results, "clang", "builds with clang without a warning", [], "clang")
    sanitized = build_and_report(results, "sanitized", "builds with the address and undefined behaviour sanitizers",
                                 ["-Db_sanitize=address,undefined", "-Db_lundef=false"], "gcc")
    if plain:
        results.heading("Unit and device tests")
        meson_tests(results, plain, "plain")
        unit_files_of_both_releases(results, plain)
        tap_program(results, "the tree", [os.path.join(lablib.TOP, "tests", "lint", "run"), plain])
    if sanitized:
        results.heading("The same under the sanitizers")
        meson_tests(results, sanitized, "sanitized", SANITIZER_ENVIRONMENT, 4)
    if plain and not arguments.no_lab:
        kind, reason = lablib.probe()
        arguments.kind = arguments.kind or kind
        print(f"\n# {reason}", flush=True)
        in_the_lab(results, "bookworm", plain, arguments, LAB_MEMORY)
        in_the_lab(results, "trixie", plain, arguments, 3072)


def main():
    parser = argparse.ArgumentParser(prog="run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one compiler, and only part of the scenarios")
    parser.add_argument("--no-lab", action="store_true", help="leave the scenarios out")
    parser.add_argument("--kind", choices=sorted(lablib.KINDS), help="the lab's host, instead of what the probe finds")
    arguments = parser.parse_args()
    if os.getuid() != 0:
        sys.exit("run: must run as root")

    results = Results()
    try:
        run(arguments, results)
    except KeyboardInterrupt:
        results.add("the run itself", False, "interrupted")
    print(f"\nAfter {time.monotonic() - results.start:.0f} s:")
    for name in results.broken:
        print(f"failed: {name}")
    print(f"{results.passed} passed, {results.failed} failed", flush=True)
    return 1 if results.failed else 0


sys.exit(main())
