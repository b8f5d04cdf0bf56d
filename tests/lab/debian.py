# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Debian guest of the demo, worked over its console: log in, run commands."""

import re

from scenario import Failure

LOGIN = 480  # a ceiling: an emulated host that is shared takes its time
PROMPT = r"root@demo:~# "


def login(terminal, timeout=LOGIN):
    """Waits for the getty and logs in; the shell's prompt is there then."""
    terminal.send("\r")
    terminal.expect(r"demo login: ", timeout)
    terminal.send("root\r")
    terminal.expect(r"Password: ", 60)
    terminal.send("vmm\r")
    terminal.expect(PROMPT, 120)


def command(terminal, text, timeout=60):
    """Runs a command in the guest's shell; returns what it printed."""
    terminal.send(text + "; echo \"status=$?\"\r")
    terminal.expect(r"status=\$\?\"\r*\n", 30)
    before, match = terminal.expect(r"status=(\d+)", timeout)
    terminal.expect(PROMPT, 30)
    if match[1] != "0":
        raise Failure(f"`{text}` in the guest ended with {match[1]}: {before.strip()}")
    return re.sub(r"\x1b\[[?0-9;]*[A-Za-z]|\r", "", before).strip()
