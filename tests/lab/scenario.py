# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds scenarios, runs them in a lab, and says how each ended: `ok NAME` or `not ok NAME: reason`."""

import glob
import importlib.util
import os
import sys
import time
import traceback

import lablib


TRIPLE_FAULT = "The guest crashed: triple fault."


class Failure(Exception):
    """What a scenario saw is not what it had to see."""


class Scenario:
    def __init__(self, function, name, releases, memory, quick, arguments):
        self.function = function
        self.name = name
        self.releases = releases
        self.memory = memory
        self.quick = quick
        self.arguments = arguments


registered = []


def scenario(releases=("bookworm",), memory=0, quick=True, variants=None):
    """Registers a function as scenario. `variants` maps a suffix of the name to further arguments; `memory` is what the lab's host
    must have, in MiB; one that is not `quick` is left out by --quick."""
    def register(function):
        name = function.__name__.replace("_", " ")
        for suffix, arguments in (variants or {"": {}}).items():
            registered.append(Scenario(function, f"{name} {suffix}".strip(), releases, memory, quick, arguments))
        return function
    return register


def expect(condition, text):
    if not condition:
        raise Failure(text)


def find(names):
    """The scenarios of the files named (FILE or FILE:WORDS), in the order of the files; of all where none is named."""
    here = os.path.join(lablib.HERE, "scenarios")
    names = names or sorted(glob.glob(os.path.join(here, "*.py")))
    found = []
    for name in names:
        path, _, words = name.partition(":")
        if not os.path.exists(path):
            path = os.path.join(here, path.removesuffix(".py") + ".py")
        if not os.path.exists(path):
            raise lablib.LabError(f"no scenarios at {path}")
        registered.clear()
        specification = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
        specification.loader.exec_module(importlib.util.module_from_spec(specification))
        found += [each for each in registered if words in each.name]
    return found


def call(lab, each, label):
    """Where the processors themselves are emulated (QEMU's SVM), a guest on a busy machine is now and then lost to a triple fault while its
    kernel starts, at no place of its own: three in some sixty boots. Whose fault that is has not been found. It is said aloud, and the
    scenario repeated once; a second one is a failure, and so is a first one on real processors."""
    try:
        each.function(lab, **each.arguments)
    except (Failure, lablib.LabError) as error:
        if lab.kind != "qemu" or TRIPLE_FAULT not in str(error):
            raise
        print(f"# TRIPLE FAULT, so repeated once: {label}", flush=True)
        each.function(lab, **each.arguments)


def run_one(lab, each):
    start = time.monotonic()
    label = each.name if lab.settings["release"] == "bookworm" else f"{each.name} on {lab.settings['release']}"
    try:
        call(lab, each, label)
    except (Failure, lablib.LabError) as error:
        reason = str(error).strip().splitlines() or ["?"]
        print(f"not ok {label}: {reason[0]}", flush=True)
        for line in reason[1:]:
            print(f"#   {line}", flush=True)
        return False
    except Exception:  # pylint: disable=broad-exception-caught
        print(f"not ok {label}: the scenario itself is broken", flush=True)
        for line in traceback.format_exc().splitlines():
            print(f"#   {line}", flush=True)
        return False
    print(f"ok {label} ({time.monotonic() - start:.1f} s)", flush=True)
    return True


def run(lab, scenarios, quick=False):
    """Runs those that fit this lab; returns how many passed and how many failed."""
    passed = failed = 0
    for each in scenarios:
        if lab.settings["release"] not in each.releases or (quick and not each.quick):
            continue
        if lab.settings["memory"] < each.memory:
            print(f"# left out for want of memory: {each.name}", flush=True)
            continue
        if not lab.is_alive():
            print(f"not ok {each.name}: the lab is gone", flush=True)
            failed += 1
            continue
        if run_one(lab, each):
            passed += 1
        else:
            failed += 1
    return passed, failed


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
        lab = lablib.Lab.start(arguments.name, None, arguments.release, arguments.memory)
        own = True
    try:
        if arguments.build:
            lab.install(arguments.build)
        failed = run(lab, scenarios, arguments.quick)[1]
    finally:
        if own:
            lab.shutdown()
    return 1 if failed else 0
