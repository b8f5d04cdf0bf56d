/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a stock kernel has to be told of the machine of linux.c: a serial port, a clock, a virtio device without PCI, and how to power off. */

DefinitionBlock ("", "DSDT", 2, "PLUGIN", "LINUX", 0x00000001)
{
    /* SLP_TYP for S5, as acpi-pm.c expects it. */
    Name (\_S5, Package () { 0x05, 0x05, 0x00, 0x00 })

    Scope (\_SB)
    {
        Device (COM1)
        {
            Name (_HID, EisaId ("PNP0501"))
            Name (_UID, 1)
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x03F8, 0x03F8, 0x01, 0x08)
                Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive) { 4 }
            })
        }

        Device (RTC0)
        {
            Name (_HID, EisaId ("PNP0B00"))
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x0070, 0x0070, 0x01, 0x02)
                IRQNoFlags () { 8 }
            })
        }

        /* The id of virtio over MMIO (Linux, virtio_mmio.c). */
        Device (VIR0)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 0)
            Name (_CCA, 1)
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD0000000, 0x00000200)
                Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive) { 5 }
            })
        }
    }
}
