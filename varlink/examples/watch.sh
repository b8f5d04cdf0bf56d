#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# watch.sh MACHINE|SOCKET: a machine by varlinkctl(1), of systemd 257 or later. Says what the machine is, sets its balloon to 64 MiB where
# it has one, and then prints one line of JSON for each thing that happens, until the machine ends.
set -eu

case "$1" in
        /*) address=unix:$1 ;;
        *) address=unix:/run/vmm/$1/control ;;
esac
varlinkctl=${VARLINKCTL:-varlinkctl}

# What there is: the interfaces, and the text that describes each method.
$varlinkctl info "$address"
$varlinkctl introspect "$address" io.vmmd.Machine | grep '^method '

$varlinkctl call --json=short "$address" io.vmmd.Machine.Describe '{}'

# An error that may be: its name is enough to tell it from others.
$varlinkctl call --json=short --graceful=io.vmmd.Machine.NoBalloon "$address" \
        io.vmmd.Machine.SetBalloonTarget '{"target":67108864}'

# Many replies. -E is --more without a time-out.
exec $varlinkctl -E --json=short call "$address" io.vmmd.Machine.SubscribeEvents \
        '{"filter":["machineState","balloonTarget","balloonActual"]}'
