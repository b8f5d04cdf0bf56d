# SPDX-License-Identifier: LGPL-2.1-or-later
"""Builds the suite with meson, in a directory under the cache that stays for the next time."""

import hashlib
import os
import re
import subprocess

from lablib import TOP, LabError


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
        run(["meson", "setup", "--wipe", "--prefix=/usr", *options, directory] if os.path.isdir(directory)
            else ["meson", "setup", "--prefix=/usr", *options, directory], {"CC": compiler})
    run(["ninja", "-C", directory])
    return directory
