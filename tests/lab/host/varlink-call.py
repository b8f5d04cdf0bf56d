# SPDX-License-Identifier: LGPL-2.1-or-later
"""varlink-call.py SOCKET METHOD [PARAMETERS]: one Varlink call, one reply, both as JSON text. For hosts without varlinkctl."""

import socket
import sys

connection = socket.socket(socket.AF_UNIX)
connection.settimeout(50)
connection.connect(sys.argv[1])
parameters = sys.argv[3] if len(sys.argv) > 3 else "{}"
connection.sendall(b'{"method":"%s","parameters":%s}\0' % (sys.argv[2].encode(), parameters.encode()))
reply = b""
while not reply.endswith(b"\0"):
    data = connection.recv(65536)
    if not data:
        sys.exit("the connection was closed before the reply")
    reply += data
print(reply[:-1].decode())
