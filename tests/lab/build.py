# SPDX-License-Identifier: LGPL-2.1-or-later
"""Builds the suite with meson, in a directory under the cache that stays for the next time."""

import hashlib
import json
import os
import re
import shutil
import subprocess

from lablib import PLUGINS, TOP, LabError, images


def cache():
    return os.environ.get("VMM_CACHE", "/var/cache/vmm-lab")


def directory_of(name):
    """One for each checkout and name: several checkouts may share the cache."""
    return os.path.join(cache(), "build-%s-%s" % (name, hashlib.sha256(TOP.encode()).hexdigest()[:12]))


def run(command, environment=None):
    result = subprocess.run(command, cwd=TOP, env={**os.environ, **(environment or {})}, text=True, check=False,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode != 0:
        wrong = [line for line in result.stdout.splitlines() if re.search(r"FAILED|error|ERROR|undefined", line)]
        raise LabError("\n".join([f"`{' '.join(command)}` ended with {result.returncode}:", *wrong[:40], result.stdout[-2000:]]))
    return result.stdout


def build(name, options=(), compiler="gcc"):
    """Sets up (once) and builds; returns the build directory."""
    directory = directory_of(name)
    if not os.path.exists(os.path.join(directory, "build.ninja")):
        os.makedirs(cache(), exist_ok=True)
        shutil.rmtree(directory, ignore_errors=True)  # what a setup that failed has left, meson itself does not wipe
        run(["meson", "setup", "--prefix=/usr", *options, directory], {"CC": compiler})
    run(["nice", "ninja", "-C", directory])  # labs and tests have deadlines
    os.utime(directory)  # the cache forgets what is not used
    return directory


def build_foreign():
    """Builds for 64-bit Arm, and only what is installed there, and what scenarios need beside it; returns the build directory."""
    directory, (root,) = directory_of("aarch64"), images("sysroot-arm64")
    try:
        with open(os.path.join(directory, "cross.ini"), encoding="utf-8") as f:
            known = root in f.read()
    except FileNotFoundError:
        known = False
    if not known or not os.path.exists(os.path.join(directory, "build.ninja")):
        shutil.rmtree(directory, ignore_errors=True)
        run([os.path.join(TOP, "tests", "cross", "configure"), directory, "-Dwerror=true"])
    # meson has set up the tests, too, which are not built for it.
    targets = [os.path.relpath(name, directory) for target in json.loads(run(["meson", "introspect", "--targets", directory]))
               for name in target["filename"] if target["installed"] or os.path.relpath(name, directory) in PLUGINS]
    run(["nice", "ninja", "-C", directory, *targets])
    os.utime(directory)
    return directory
