/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <endian.h>

#include "foreign-image.h"

/* The beginning of a qcow2 file (docs/interop/qcow2.txt of QEMU); big-endian. */
typedef struct Qcow2Header {
        uint32_t magic;
        uint32_t version;
        uint64_t backing_file_offset;
        uint32_t backing_file_size;
        uint32_t cluster_bits;
        uint64_t size;
        uint32_t crypt_method;
        uint32_t l1_size;
        uint64_t l1_table_offset, refcount_table_offset;
        uint32_t refcount_table_clusters, nb_snapshots;
        uint64_t snapshots_offset;
        /* from version 3 on */
        uint64_t incompatible_features, compatible_features, autoclear_features;
        uint32_t refcount_order, header_length;
} Qcow2Header;
#define QCOW2_MAGIC 0x514649fbU
#define QCOW2_HEADER_LENGTH_2 72U
#define QCOW2_EXTERNAL_DATA (UINT64_C(1) << 2)
#define QCOW2_EXTENSION_END 0U
#define QCOW2_EXTENSION_BACKING_FORMAT 0xe2792acaU
#define QCOW2_EXTENSIONS_MAX 32
#define QCOW2_BACKING_MAX 1023U

void image_header_done(ImageHeader *header) {
        free(header->backing);
        free(header->backing_format);
        *header = (ImageHeader) {};
}

/* A string of the file, without what would end it early. */
static int read_string(int fd, uint64_t offset, uint32_t length, char **ret) {
        _cleanup_free_ char *s = NULL;
        int r;

        if (length == 0 || length > QCOW2_BACKING_MAX)
                return -EINVAL;
        s = calloc(1, (size_t) length + 1);
        if (!s)
                return -ENOMEM;
        r = pread_full(fd, s, length, offset);
        if (r < 0)
                return r;
        for (uint32_t i = 0; i < length; i++)
                if ((unsigned char) s[i] < 0x20 || s[i] == 0x7f)
                        return -EINVAL;
        *ret = TAKE_PTR(s);
        return 0;
}

/* Extensions lie between the header and the backing file's name: type, length, data, each padded to 8 bytes. */
static int read_qcow2_extensions(int fd, uint64_t offset, uint64_t end, ImageHeader *header) {
        for (unsigned i = 0; i < QCOW2_EXTENSIONS_MAX && offset + 8 <= end; i++) {
                uint32_t extension[2], type, length;
                int r;

                r = pread_full(fd, extension, sizeof(extension), offset);
                if (r < 0)
                        return r;
                type = be32toh(extension[0]);
                length = be32toh(extension[1]);
                if (type == QCOW2_EXTENSION_END)
                        return 0;
                offset += 8;
                if (length > end - offset)
                        return -EINVAL;
                if (type == QCOW2_EXTENSION_BACKING_FORMAT && !header->backing_format) {
                        r = read_string(fd, offset, length, &header->backing_format);
                        if (r < 0)
                                return r;
                }
                offset += ALIGN_UP((uint64_t) length, 8);
        }
        return 0;
}

static int read_qcow2(int fd, ImageHeader *header, char **ret_message) {
        Qcow2Header h = {};
        uint64_t extensions = QCOW2_HEADER_LENGTH_2, name;
        uint32_t version;
        int r;

        r = pread_full(fd, &h, QCOW2_HEADER_LENGTH_2, 0);
        if (r < 0 || be32toh(h.magic) != QCOW2_MAGIC)
                return set_message(ret_message, -EINVAL, "it is not a qcow2 image");
        version = be32toh(h.version);
        if (version != 2 && version != 3)
                return set_message(ret_message, -EINVAL, "it is a qcow2 image of version %u, and only 2 and 3 are known", version);
        if (version == 3) {
                r = pread_full(fd, &h, sizeof(h), 0);
                if (r < 0 || be32toh(h.header_length) < sizeof(h) || be32toh(h.header_length) > KIB(64))
                        return set_message(ret_message, -EINVAL, "its header is damaged");
                extensions = be32toh(h.header_length);
        }
        if (h.crypt_method != 0)
                return set_message(ret_message, -EINVAL, "it is encrypted within qcow2, which is not possible here: \"luks\" is");
        if (be64toh(h.incompatible_features) & QCOW2_EXTERNAL_DATA)
                return set_message(ret_message, -EINVAL, "its data are in a file of their own, which is not possible here");
        name = be64toh(h.backing_file_offset);
        if (name == 0)
                return 0;
        r = read_string(fd, name, be32toh(h.backing_file_size), &header->backing);
        if (r >= 0)
                r = read_qcow2_extensions(fd, extensions, name, header);
        return r < 0 ? set_message(ret_message, -EINVAL, "its header is damaged") : 0;
}

static int read_vmdk(const uint8_t *begin, char **ret_message) {
        static const char descriptor[] = "# Disk DescriptorFile";

        if (memcmp(begin, "KDMV", 4) == 0 || memcmp(begin, "COWD", 4) == 0)
                return 0;
        if (memcmp(begin, descriptor, sizeof(descriptor) - 1) == 0)
                return set_message(ret_message, -EINVAL,
                        "its data are in files of their own, which is not possible here (qemu-img convert makes one file of them)");
        return set_message(ret_message, -EINVAL, "it is not a vmdk image");
}

static int read_luks(const uint8_t *begin, char **ret_message) {
        if (memcmp(begin, "LUKS\xba\xbe", 6) != 0)
                return set_message(ret_message, -EINVAL, "it is not encrypted with LUKS");
        if (begin[6] != 0 || begin[7] != 1)
                return set_message(ret_message, -EINVAL, "it is LUKS of version %u, and qemu-storage-daemon knows only 1",
                        (unsigned) begin[6] << 8 | begin[7]);
        return 0;
}

int image_header_read(int fd, const char *format, ImageHeader *ret, char **ret_message) {
        uint8_t begin[32] = {};
        ssize_t n;
        int r = 0;

        *ret = (ImageHeader) {};
        n = pread(fd, begin, sizeof(begin), 0);
        if (n < 0)
                return set_message(ret_message, -errno, "it cannot be read: %s", strerrordesc_np(errno));
        if (streq(format, "qcow2"))
                r = read_qcow2(fd, ret, ret_message);
        else if (streq(format, "vmdk"))
                r = read_vmdk(begin, ret_message);
        else if (streq(format, "luks"))
                r = read_luks(begin, ret_message);
        else if (streq(format, "vhdx") && memcmp(begin, "vhdxfile", 8) != 0)
                r = set_message(ret_message, -EINVAL, "it is not a vhdx image");
        if (r < 0)
                image_header_done(ret);
        return r;
}
