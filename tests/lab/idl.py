# SPDX-License-Identifier: LGPL-2.1-or-later
"""Varlink interface texts, as far as tests need them: which methods there are, and parameters that each would take."""

import os
import re

from lablib import TOP


def _fields(text):
    """{name: type} of a struct's inside; an enum's names have no type."""
    fields, depth, part = {}, 0, ""
    for character in text + ",":
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            name, _, kind = part.partition(":")
            if name.strip():
                fields[name.strip()] = kind.strip()
            part = ""
        else:
            part += character
    return fields


def _inside(text, at):
    """What is between the parenthesis at `at` and its partner."""
    depth = 0
    for end in range(at, len(text)):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if depth == 0:
            return text[at + 1:end]
    raise ValueError("parentheses do not match")


class Interface:
    def __init__(self, name):
        with open(os.path.join(TOP, "varlink", name + ".varlink"), encoding="utf-8") as f:
            text = re.sub(r"#.*", "", f.read())
        self.name = name
        self.types = {m[1]: _fields(_inside(text, m.end() - 1)) for m in re.finditer(r"\btype (\w+)\s*\(", text)}
        self.methods = {m[1]: _fields(_inside(text, m.end() - 1)) for m in re.finditer(r"\bmethod (\w+)\s*\(", text)}

    def _value(self, kind):
        if kind.startswith("["):
            return [self._value(kind[2:])]
        if kind in self.types:
            fields = self.types[kind]
            if all(fields.values()):
                return self._least(fields)
            return next(iter(fields))
        return {"int": 1, "bool": False, "string": "x", "object": {}}[kind]

    def _least(self, fields):
        return {name: self._value(kind) for name, kind in fields.items() if not kind.startswith("?")}

    def parameters(self, method):
        """The least that the method takes."""
        return self._least(self.methods[method])
