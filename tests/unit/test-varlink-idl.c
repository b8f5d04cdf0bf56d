/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include "idl.h"
#include "interfaces.h"
#include "json-util.h"

static void refuses_wrong_texts(void **state) {
        static const struct {
                const char *text, *message;
        } cases[] = {
                { "", "1: the text ends where 'interface' was expected" },
                { "interface", "1: the text ends where an interface's name was expected" },
                { "interfacea.b", "1: found 'i' where 'interface' was expected" },
                { "interface single", "1: found 's' where an interface's name was expected" },
                { "interface a..b", "1: found 'a' where an interface's name was expected" },
                { "interface a.b-", NULL },
                { "interface 1a.b", "1: found '1' where an interface's name was expected" },
                { "interface a.b\nfoo", "2: found 'f' where 'type', 'method' or 'error' was expected" },
                { "interface a.b\nmethod lower() -> ()", "2: found 'l' where a name that begins with a capital letter was expected" },
                { "interface a.b\nmethod A()", "2: the text ends where '->' was expected" },
                { "interface a.b\nmethod A(x: int y: int) -> ()", "2: found 'y' where ')' was expected" },
                { "interface a.b\nmethod A(x: ??int) -> ()", "2: found '?' where a type was expected" },
                { "interface a.b\nmethod A(x: integer) -> ()", "2: found 'i' where a type was expected" },
                { "interface a.b\nmethod A(x_: int) -> ()", NULL },
                { "interface a.b\nmethod A(x__y: int) -> ()", NULL },
                { "interface a.b\nmethod A(_x: int) -> ()", "2: found '_' where a field's name was expected" },
                { "interface a.b\nmethod A(x, y) -> ()", "2: found an enumeration where fields with types were expected" },
                { "interface a.b\ntype A (x, y: int)", NULL },
                { "interface a.b\ntype A (x: int, y)", NULL },
                { "interface a.b\ntype A (x: int,)", NULL },
                { "interface a.b\ntype A (x: int, x: int)", "2: the field x is there twice" },
                { "interface a.b\ntype A (a, a)", "2: the field a is there twice" },
                { "interface a.b\ntype A (a)\nerror A ()", "3: the name A is there twice" },
                { "interface a.b\nmethod A(x: B) -> ()", "there is no type B" },
                { "interface a.b\nerror B ()\nmethod A() -> (x: []B)", "there is no type B" },
                { "interface a.b\ntype A (x: [int]string)", NULL },
                { "interface a.b\ntype A (x: [] int\x01)", "2: found the byte 0x01 where ')' was expected" },
                { "interface a.b\ntype A [](x: int)", NULL },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                _cleanup_(varlink_interface_freep) VarlinkInterface *idl = NULL;
                _cleanup_free_ char *message = NULL;
                int r = varlink_interface_parse(cases[i].text, &idl, &message);

                if (r != -EBADMSG)
                        fail_msg("case %zu was not refused: %s", i, cases[i].text);
                assert_non_null(message);
                if (cases[i].message)
                        assert_string_equal(message, cases[i].message);
        }
}

static void refuses_types_nested_too_deeply(void **state) {
        _cleanup_(varlink_interface_freep) VarlinkInterface *idl = NULL;
        _cleanup_free_ char *message = NULL;
        char text[1024] = "interface a.b\ntype A (x: ";

        for (unsigned i = 0; i < 200; i++)
                strcat(text, "[]");
        strcat(text, "int)");
        assert_int_equal(varlink_interface_parse(text, &idl, &message), -EBADMSG);
        assert_string_equal(message, "2: types are nested too deeply");
}

static const char example[] =
        "# An example.\n"
        "# Two lines.\n"
        "interface org.example.a-b.c1\n"
        "\n"
        "# Not of what follows\n"
        "\n"
        "type Color (red, green_2, blue)\n"
        "type Node (\n"
        "  # its value\n"
        "  value: int,\n"
        "  next: ?Node,\n"
        "  inner: ?(a: bool, b: ?(c: float)),\n"
        "  color: ?Color\n"
        ")\n"
        "# Does it.\n"
        "method Do(name: string, list: []string, map: [string]?int, deep: ?[][]bool, any: ?object, node: ?Node, e: ?(x, y))\n"
        "  -> (nodes: []Node)\n"
        "method Nothing() -> ()\n"
        "error Broken (why: string)\n";

static VarlinkInterface *parse_example(void) {
        VarlinkInterface *idl = NULL;
        _cleanup_free_ char *message = NULL;

        if (varlink_interface_parse(example, &idl, &message) < 0)
                fail_msg("%s", message);
        return idl;
}

static void parses_symbols_and_their_documentation(void **state) {
        _cleanup_(varlink_interface_freep) VarlinkInterface *idl = parse_example();
        const VarlinkSymbol *s;

        assert_string_equal(idl->name, "org.example.a-b.c1");
        assert_string_equal(idl->documentation, "An example.\nTwo lines.");
        assert_int_equal(idl->n_symbols, 5);
        s = varlink_interface_find(idl, VARLINK_SYMBOL_TYPE, "Color");
        assert_non_null(s);
        assert_null(s->documentation);
        assert_int_equal(s->type.kind, VARLINK_TYPE_ENUM);
        assert_int_equal(s->type.n_fields, 3);
        s = varlink_interface_find(idl, VARLINK_SYMBOL_METHOD, "Do");
        assert_string_equal(s->documentation, "Does it.");
        assert_int_equal(s->type.n_fields, 7);
        s = varlink_interface_find(idl, VARLINK_SYMBOL_TYPE, "Node");
        assert_string_equal(s->type.fields[0].documentation, "its value");
        assert_null(s->type.fields[1].documentation);
        assert_null(varlink_interface_find(idl, VARLINK_SYMBOL_ERROR, "Do"));
        assert_null(varlink_interface_find(idl, VARLINK_SYMBOL_METHOD, "Undo"));
}

static void checks_values(void **state) {
        static const struct {
                const char *value, *where; /* where: NULL is valid */
        } cases[] = {
                { "{}", "name" },
                { "{\"name\":1,\"list\":[],\"map\":{}}", "name" },
                { "{\"name\":null,\"list\":[],\"map\":{}}", "name" },
                { "{\"name\":\"n\",\"map\":{}}", "list" },
                { "{\"name\":\"n\",\"list\":[],\"map\":{},\"bogus\":1}", "bogus" },
                { "{\"name\":\"n\",\"list\":[\"a\",2],\"map\":{}}", "list[1]" },
                { "{\"name\":\"n\",\"list\":{},\"map\":{}}", "list" },
                { "{\"name\":\"n\",\"list\":[],\"map\":[]}", "map" },
                { "{\"name\":\"n\",\"list\":[],\"map\":{\"k\":\"v\"}}", "map.k" },
                { "{\"name\":\"n\",\"list\":[],\"map\":{\"k\":1.5}}", "map.k" },
                { "{\"name\":\"n\",\"list\":[],\"map\":{\"k\":9223372036854775808}}", "map.k" },
                { "{\"name\":\"n\",\"list\":[],\"map\":{},\"deep\":[[true],[1]]}", "deep[1][0]" },
                { "{\"name\":\"n\",\"list\":[],\"map\":{},\"node\":{\"value\":1,\"next\":{}}}", "node.next.value" },
                { "{\"name\":\"n\",\"list\":[],\"map\":{},\"node\":{\"value\":1,\"color\":\"pink\"}}", "node.color" },
                { "{\"name\":\"n\",\"list\":[],\"map\":{},\"node\":{\"value\":1,\"inner\":{\"a\":true,\"b\":{\"c\":\"1\"}}}}",
                        "node.inner.b.c" },
                { "{\"name\":\"n\",\"list\":[],\"map\":{},\"e\":\"z\"}", "e" },
                { "{\"name\":\"n\",\"list\":[],\"map\":{}}", NULL },
                { "{\"name\":\"n\",\"list\":[],\"map\":{},\"any\":[]}", NULL },
                { "{\"name\":\"n\",\"list\":[],\"map\":{},\"any\":1.5}", NULL },
                { "{\"name\":\"n\",\"list\":[\"a\"],\"map\":{\"k\":9223372036854775807,\"l\":null},\"deep\":null}", NULL },
                { "{\"name\":\"\",\"list\":[],\"map\":{},\"deep\":[[],[false]],\"any\":{\"what\":[1]},\"e\":\"y\","
                  "\"node\":{\"value\":-5,\"next\":{\"value\":0},\"color\":\"red\",\"inner\":{\"a\":false,\"b\":{\"c\":1}}}}", NULL },
        };
        _cleanup_(varlink_interface_freep) VarlinkInterface *idl = parse_example();
        const VarlinkSymbol *s = varlink_interface_find(idl, VARLINK_SYMBOL_METHOD, "Do");

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                _cleanup_json_ json_object *value = json_tokener_parse(cases[i].value);
                _cleanup_free_ char *where = NULL;
                int r = varlink_type_check(idl, &s->type, value, &where);

                assert_non_null(value);
                assert_int_equal(r, cases[i].where ? -EINVAL : 0);
                if (cases[i].where)
                        assert_string_equal(where, cases[i].where);
        }
        assert_int_equal(varlink_type_check(idl, &s->type, NULL, NULL), -EINVAL);
}

static void knows_interface_names(void **state) {
        static const char *const wrong[] = { "", "a", "a.", ".a", "a..b", "-a.b", "a-.b", "a.b-", "a.-b", "1a.b", "a.b c", "a_b.c" };
        static const char *const right[] = { "a.b", "org.varlink.service", "a-b.c--d", "a.1", "A.B.C" };

        for (size_t i = 0; i < ELEMENTSOF(wrong); i++)
                if (varlink_interface_name_is_valid(wrong[i]))
                        fail_msg("%s", wrong[i]);
        for (size_t i = 0; i < ELEMENTSOF(right); i++)
                if (!varlink_interface_name_is_valid(right[i]))
                        fail_msg("%s", right[i]);
}

/* camelCase, documented, and no empty struct as a field's type: some parsers stumble over those. */
static void check_style(const char *symbol, const VarlinkType *t) {
        if (t->element)
                check_style(symbol, t->element);
        for (size_t i = 0; i < t->n_fields; i++) {
                const VarlinkField *f = &t->fields[i];

                if (!f->documentation)
                        fail_msg("%s: %s is not documented", symbol, f->name);
                if (f->name[0] < 'a' || f->name[0] > 'z' || strchr(f->name, '_'))
                        fail_msg("%s: %s is not camelCase", symbol, f->name);
                if (t->kind == VARLINK_TYPE_STRUCT && f->type.kind == VARLINK_TYPE_STRUCT && f->type.n_fields == 0)
                        fail_msg("%s: %s is an empty struct", symbol, f->name);
                check_style(symbol, &f->type);
        }
}

static void our_interfaces_are_documented_and_in_style(void **state) {
        static const char *const texts[] = { varlink_text_io_vmmd_Device, varlink_text_io_vmmd_Machine, varlink_text_io_vmmd_Slot,
                varlink_text_org_varlink_service };

        for (size_t i = 0; i < ELEMENTSOF(texts); i++) {
                _cleanup_(varlink_interface_freep) VarlinkInterface *idl = NULL;
                _cleanup_free_ char *message = NULL;

                if (varlink_interface_parse(texts[i], &idl, &message) < 0)
                        fail_msg("%s", message);
                assert_non_null(idl->documentation);
                for (size_t k = 0; k < idl->n_symbols; k++) {
                        const VarlinkSymbol *s = &idl->symbols[k];
                        if (!s->documentation)
                                fail_msg("%s.%s is not documented", idl->name, s->name);
                        check_style(s->name, &s->type);
                        check_style(s->name, &s->output);
                }
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_wrong_texts),
                cmocka_unit_test(refuses_types_nested_too_deeply),
                cmocka_unit_test(parses_symbols_and_their_documentation),
                cmocka_unit_test(checks_values),
                cmocka_unit_test(knows_interface_names),
                cmocka_unit_test(our_interfaces_are_documented_and_in_style),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
