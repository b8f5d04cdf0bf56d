/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Message ids of the journal; units/vmm.catalog explains each. Fields that go with them: VMM_MACHINE=, VMM_DEVICE=. */

/* a machine's definition is wrong; its units do not start */
#define MESSAGE_DEFINITION_REFUSED "aeae95a1abc64563bed85a426d68e012"
/* the vCPUs run */
#define MESSAGE_MACHINE_STARTED "6ff7324e3a084643860bc99f8ea1c7ac"
/* the machine has ended as asked: by the guest's power-off or by stop */
#define MESSAGE_MACHINE_STOPPED "048de8afdc7b45b0a4c613a469d08085"
/* the guest asked for a reboot */
#define MESSAGE_GUEST_REBOOT "f73d02cd5da34da5a3bfc0a6dad7dd0b"
/* the guest's kernel panicked (pvpanic) */
#define MESSAGE_GUEST_PANIC "254029d230c04b0bafe6c86ed58f862b"
/* triple fault, or KVM cannot go on */
#define MESSAGE_GUEST_CRASHED "3a53de21955744a0a6ac6b2d3d6190ae"
/* the guest did not power off in time, and was ended */
#define MESSAGE_GUEST_FORCED_OFF "60afedd136a44e2e82eca7e5e90d4f56"
/* a device's helper went away while the guest runs */
#define MESSAGE_DEVICE_LOST "2e3987c9b7f645018a3c48106d4a9a3f"
/* a plugin has failed, and the machine ends with it */
#define MESSAGE_PLUGIN_FAILED "e4b180a927f84e909b3d598b91ec5059"
/* a device cannot be reached at the machine's start, or for good */
#define MESSAGE_DEVICE_FAILED "d361af3279b34405a0a52b3cd59cf918"
/* the guest broke a device's rules; the device waits for a reset */
#define MESSAGE_DEVICE_BROKEN "4959ece444ec469195e8b2fd5e6ae536"
/* the helper of a device that went away is back, and so is what it had */
#define MESSAGE_DEVICE_RESTARTED "02fe7e8f658d4827bb96eb774e4dcd64"
/* a program's event loop hung, and the service manager's watchdog ended it */
#define MESSAGE_HUNG "c74f325326234dc0bffcf7853b81fe75"
/* another program took over a running machine */
#define MESSAGE_RELOADED "5d0a7cf7a2b84b86b0c4a3f0d6c1e9b7"
/* it did not, and the machine runs as before */
#define MESSAGE_RELOAD_FAILED "9b1f43be0c0e4a5a8d1c7b64c2f05e38"
/* a snapshot of the machine was written */
#define MESSAGE_SNAPSHOT_TAKEN "4b72974e1e044f70b01227987e5998c7"
/* a machine goes on from a snapshot, and all of its memory is there */
#define MESSAGE_SNAPSHOT_RESTORED "ffb1a0df78d74bef94da93226d3ad9b6"
/* a snapshot does not fit the machine, the host or this version: nothing was started */
#define MESSAGE_SNAPSHOT_REFUSED "70616d41bed64a37ad18c4c857da5eb2"
/* vmmd itself was killed, or hung: the guest is gone */
#define MESSAGE_SUPERVISOR_CRASHED "308e12ad74d244a088b2dc3a29a0bc84"
