#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""sidecar-plain.py MACHINE|SOCKET [TYPE...]: as sidecar.py, with nothing but Python: for systems without python3-varlink.

Varlink is JSON and a zero byte, both ways. It prints one line for each event of these types (of all, where none is named), a JSON
object, until the machine ends. The first is the present state.
"""

import json
import socket
import sys


class Machine:
    """One connection. A call with `more` keeps it until the last reply."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(address)
        self.data = b""

    def send(self, method, parameters, **flags):
        message = {"method": f"io.vmmd.Machine.{method}", "parameters": parameters, **flags}
        self.socket.sendall(json.dumps(message).encode() + b"\0")

    def receive(self):
        """One reply; its parameters, and whether more follow."""
        while b"\0" not in self.data:
            received = self.socket.recv(65536)
            if not received:
                raise ConnectionResetError("the machine has closed the connection")
            self.data += received
        message, self.data = self.data.split(b"\0", 1)
        reply = json.loads(message)
        if "error" in reply:
            raise RuntimeError(f"{reply['error']}: {reply.get('parameters', {})}")
        return reply.get("parameters", {}), reply.get("continues", False)

    def call(self, method, **parameters):
        self.send(method, parameters)
        return self.receive()[0]

    def subscribe(self, **parameters):
        self.send("SubscribeEvents", parameters, more=True)
        more = True
        while more:
            event, more = self.receive()
            yield event


def main():
    address = sys.argv[1] if sys.argv[1].startswith("/") else f"/run/vmm/{sys.argv[1]}/control"
    for event in Machine(address).subscribe(filter=sys.argv[2:]):
        if event["missed"]:
            print(f"missed {event['missed']} events", file=sys.stderr)
        # Fields that mean nothing for an event are null, or not there.
        print(json.dumps({key: value for key, value in event.items() if value is not None}), flush=True)


if __name__ == "__main__":
    main()
