/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* An interface text, and after its end (a NUL) a value to check against each of its symbols. */

#include "idl.h"
#include "json-util.h"
#include "message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        _cleanup_(varlink_interface_freep) VarlinkInterface *idl = NULL;
        _cleanup_free_ char *text = NULL, *message = NULL;
        _cleanup_json_ json_object *value = NULL;
        size_t length;
        int r;

        /* Not strndup(): the sanitizer's strict string checks want the source terminated, too. */
        text = calloc(1, size + 1);
        if (!text)
                return 0;
        memcpy(text, data, size);
        length = strlen(text);
        r = varlink_interface_parse(text, &idl, &message);
        if (r == -EBADMSG && !message)
                abort();
        if (r < 0)
                return 0;
        if (length + 1 >= size || varlink_json_parse((const char *) data + length + 1, size - length - 1, 32, &value) < 0)
                return 0;
        for (size_t i = 0; i < idl->n_symbols; i++) {
                _cleanup_free_ char *where = NULL;

                r = varlink_type_check(idl, &idl->symbols[i].type, value, &where);
                if (r == -EINVAL && !where)
                        abort();
        }
        return 0;
}
