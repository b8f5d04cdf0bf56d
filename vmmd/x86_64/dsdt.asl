/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a guest cannot find out by itself: the PCI root, what ECAM occupies, the clock, the serial ports, S5. The buttons are
 * fixed hardware (acpi-pm.c), all other devices are found on PCI. Addresses are those of layout.h; a test compares them. */

DefinitionBlock ("", "DSDT", 2, "VMMD", "VMMDDSDT", 0x00000001)
{
    /* Written by acpi.c: which serial ports there are, and the window for 64-bit BARs. */
    OperationRegion (PRMS, SystemMemory, 0x000EFF00, 0x20)
    Field (PRMS, DWordAcc, NoLock, Preserve)
    {
        COMM, 32,
        , 32,
        M64B, 64,
        M64S, 64
    }

    /* SLP_TYP for S5, as acpi-pm.c expects it. No other sleeping state is there. */
    Name (\_S5, Package () { 0x05, 0x05, 0x00, 0x00 })

    Scope (\_SB)
    {
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A08"))
            Name (_CID, EisaId ("PNP0A03"))
            Name (_SEG, 0)
            Name (_BBN, 0)
            Name (_UID, 0)

            Name (RSRC, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode,
                    0x0000, 0x0000, 0x0000, 0x0000, 0x0001)
                IO (Decode16, 0x0CF8, 0x0CF8, 0x01, 0x08)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                    0x0000, 0x0000, 0x0CF7, 0x0000, 0x0CF8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                    0x0000, 0x0D00, 0xFFFF, 0x0000, 0xF300)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0x00000000, 0xC0000000, 0xDFFFFFFF, 0x00000000, 0x20000000)
            })

            Name (RS64, ResourceTemplate ()
            {
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0x0000000000000000, 0x0000000000000000, 0x0000000000000000, 0x0000000000000000,
                    0x0000000000000000, , , WIND)
            })

            Method (_CRS, 0, Serialized)
            {
                If (M64S == Zero)
                {
                    Return (RSRC)
                }
                CreateQWordField (RS64, \_SB.PCI0.WIND._MIN, WMIN)
                CreateQWordField (RS64, \_SB.PCI0.WIND._MAX, WMAX)
                CreateQWordField (RS64, \_SB.PCI0.WIND._LEN, WLEN)
                WMIN = M64B
                WMAX = M64B + M64S - One
                WLEN = M64S
                Return (ConcatenateResTemplate (RSRC, RS64))
            }

            /* PCI Firmware Specification 3.3, 4.5: native hot-plug (bit 0) and the PCI Express capability structure
             * (bit 4) are the operating system's; nothing else is there to be had. */
            Method (_OSC, 4, Serialized)
            {
                CreateDWordField (Arg3, Zero, CDW1)
                If (Arg0 != ToUUID ("33db4d5b-1ff7-401c-9657-7441c03dd766"))
                {
                    CDW1 |= 0x04
                    Return (Arg3)
                }
                If (Arg1 != One)
                {
                    CDW1 |= 0x08
                }
                If (SizeOf (Arg3) >= 0x0C)
                {
                    CreateDWordField (Arg3, 0x08, CDW3)
                    Local0 = CDW3 & 0x11
                    If (Local0 != CDW3)
                    {
                        CDW1 |= 0x10
                    }
                    CDW3 = Local0
                }
                Return (Arg3)
            }
        }

        /* Linux believes the MCFG only where the same memory is some device's, too. */
        Device (MBRD)
        {
            Name (_HID, EisaId ("PNP0C02"))
            Name (_UID, 0)
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xE0000000, 0x00100000)
                IO (Decode16, 0x0600, 0x0600, 0x01, 0x06)
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

        Device (COM1)
        {
            Name (_HID, EisaId ("PNP0501"))
            Name (_UID, 1)
            Method (_STA)
            {
                If (COMM & 0x01)
                {
                    Return (0x0F)
                }
                Return (Zero)
            }
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x03F8, 0x03F8, 0x01, 0x08)
                IRQNoFlags () { 4 }
            })
        }

        Device (COM2)
        {
            Name (_HID, EisaId ("PNP0501"))
            Name (_UID, 2)
            Method (_STA)
            {
                If (COMM & 0x02)
                {
                    Return (0x0F)
                }
                Return (Zero)
            }
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x02F8, 0x02F8, 0x01, 0x08)
                IRQNoFlags () { 3 }
            })
        }

        Device (COM3)
        {
            Name (_HID, EisaId ("PNP0501"))
            Name (_UID, 3)
            Method (_STA)
            {
                If (COMM & 0x04)
                {
                    Return (0x0F)
                }
                Return (Zero)
            }
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x03E8, 0x03E8, 0x01, 0x08)
                IRQNoFlags () { 4 }
            })
        }

        Device (COM4)
        {
            Name (_HID, EisaId ("PNP0501"))
            Name (_UID, 4)
            Method (_STA)
            {
                If (COMM & 0x08)
                {
                    Return (0x0F)
                }
                Return (Zero)
            }
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x02E8, 0x02E8, 0x01, 0x08)
                IRQNoFlags () { 3 }
            })
        }
    }
}
