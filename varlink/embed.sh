#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Prints C source that defines each interface text given as varlink_text_<name with underscores>.
set -eu

echo '#include "interfaces.h"'
for file; do
        name=$(basename "$file" .varlink | tr . _)
        printf '\nconst char varlink_text_%s[] =\n' "$name"
        sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/^/        "/' -e 's/$/\\n"/' "$file"
        printf '        ;\n'
done
