#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""sidecar.py MACHINE|SOCKET: a sidecar of a machine by python3-varlink.

It follows what happens to the machine and its balloon until the machine ends, and says when it missed something. A reader that is
slow delays neither the machine nor other sidecars: it is told less.
"""

import sys

import varlink


def follow(machine):
    """The events, one by one; the first is the present state."""
    for event in machine.SubscribeEvents(filter=["machineState", "balloonTarget", "balloonActual"], _more=True):
        if event["missed"]:
            print(f"missed {event['missed']} events")
        yield event


def main():
    address = sys.argv[1] if sys.argv[1].startswith("/") else f"/run/vmm/{sys.argv[1]}/control"
    with varlink.Client.new_with_address(f"unix:{address}") as client, client.open("io.vmmd.Machine") as machine:
        description = machine.Describe()
        print(f"{description['name']} is {description['state']} and has {description['memory'] >> 20} MiB")

    # A subscription keeps its connection; other calls are made on one of their own.
    with varlink.Client.new_with_address(f"unix:{address}") as client, client.open("io.vmmd.Machine") as machine:
        for event in follow(machine):
            if event["type"] == "present":
                print(f"present: {event['present']['state']}")
            elif event["type"] == "machineState":
                print(f"now {event['state']}: {event['reason']}")
            else:
                balloon = event["balloon"]
                print(f"{event['type']}: {balloon['device']} {balloon['actual']} of {balloon['target']}")


if __name__ == "__main__":
    try:
        main()
    except varlink.VarlinkError as error:
        # For example org.varlink.service.PermissionDenied, whose "reason" says what is missing.
        sys.exit(f"{error.error()}: {error.parameters()}")
