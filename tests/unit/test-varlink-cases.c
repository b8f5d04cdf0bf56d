/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What peers may send, case by case, with what they get for it. Each case runs on a connection of its own, once in one piece and once
 * for each place where it can be cut in two, beside a bystander who must notice nothing; whoever is not thrown out can go on afterwards; and no
 * descriptor is left over. */

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>

#include "json-util.h"
#include "varlink-rig.h"

static const char text[] =
        "interface org.example.cases\n"
        "type Color (red, green)\n"
        "type Node (value: int, next: ?Node)\n"
        "method Echo(text: string) -> (text: string)\n"
        "method Maybe(text: ?string) -> (text: ?string)\n"
        "method Bool(v: bool) -> (v: bool)\n"
        "method Int(v: int) -> (v: int)\n"
        "method Float(v: float) -> (v: float)\n"
        "method Array(v: []int) -> (v: []int)\n"
        "method Map(v: [string]string) -> (v: [string]string)\n"
        "method Set(v: [string]()) -> (v: [string]())\n"
        "method Enum(v: Color) -> (v: Color)\n"
        "method Tree(v: Node) -> (v: Node)\n"
        "method Any(v: object) -> (v: object)\n"
        "method Nullable(v: ?[]?int) -> (v: ?[]?int)\n"
        "method Nothing() -> ()\n"
        "method Many(count: int) -> (n: int)\n"
        "method Descriptor(index: int) -> (fileDescriptorIndex: int)\n"
        "method Upgrade() -> ()\n"
        "method Missing() -> ()\n"
        "error Failed (why: string)\n";

static int echo(VarlinkCall *call, json_object *parameters, void *userdata) {
        return varlink_call_reply(call, parameters);
}

static int many(VarlinkCall *call, json_object *parameters, void *userdata) {
        int64_t count = json_get_integer(parameters, "count", 0);
        int r = 0;

        for (int64_t i = 1; i <= count && r >= 0; i++) {
                _cleanup_json_ json_object *reply = json_object_new_object();
                assert_int_equal(json_add_integer(reply, "n", i), 0);
                r = i < count ? varlink_call_reply_continues(call, reply) : varlink_call_reply(call, reply);
        }
        return r;
}

/* Sends the descriptor back. */
static int descriptor(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *reply = json_object_new_object();
        _cleanup_close_ int fd = varlink_call_take_fd(call, json_get_integer(parameters, "index", -1));
        int r;

        if (fd < 0)
                return varlink_call_error_invalid_parameter(call, "index");
        r = varlink_call_push_fd(call, fd);
        assert_int_equal(r, 0);
        TAKE_FD(fd);
        assert_int_equal(json_add_integer(reply, "fileDescriptorIndex", r), 0);
        return varlink_call_reply(call, reply);
}

static void on_upgraded(int fd, const void *data, size_t size, void *userdata) {
        (void) !write(fd, "{\"raw\":true}", 13);
        (void) safe_close(fd);
}

static int upgrade(VarlinkCall *call, json_object *parameters, void *userdata) {
        return varlink_call_reply_upgrade(call, NULL, on_upgraded, NULL);
}

static const VarlinkMethod methods[] = {
        { "Echo", echo, 0, 0 },      { "Maybe", echo, 0, 0 },
        { "Bool", echo, 0, 0 },      { "Int", echo, 0, 0 },
        { "Float", echo, 0, 0 },     { "Array", echo, 0, 0 },
        { "Map", echo, 0, 0 },       { "Set", echo, 0, 0 },
        { "Enum", echo, 0, 0 },      { "Tree", echo, 0, 0 },
        { "Any", echo, 0, 0 },       { "Nullable", echo, 0, 0 },
        { "Nothing", echo, 0, 0 },   { "Many", many, VARLINK_METHOD_REQUIRES_MORE, 0 },
        { "Upgrade", upgrade, VARLINK_METHOD_UPGRADES, 0 },
        { "Descriptor", descriptor, 0, 0 },
        {},
};

typedef struct Case {
        const char *name;
        const char *bytes; /* or: */
        char *(*make)(size_t *ret_size);
        size_t size;
        const char *expected; /* the replies, each ended by a newline; CLOSED where it ends so; NULL: the answer is checked by its beginning below */
        const char *begins;
        bool incomplete; /* there is no whole message, so nothing comes, and nothing can follow */
        unsigned n_fds;  /* sent with it */
        bool uncut;      /* the answer depends on how it is cut */
} Case;

#define CLOSED "closed\n"
/* The terminating NUL of the literal is the message's. */
#define SAY(literal) .bytes = literal, .size = sizeof(literal)
#define RAW(literal) .bytes = literal, .size = sizeof(literal) - 1
#define M "{\"method\":\"org.example.cases."
#define CALL(method) SAY(M method "\"}")
#define WITH(method, parameters) SAY(M method "\",\"parameters\":" parameters "}")
#define OK(parameters) "{\"parameters\":" parameters "}\n"
#define WRONG(where) "{\"error\":\"org.varlink.service.InvalidParameter\",\"parameters\":{\"parameter\":\"" where "\"}}\n"
#define SERVICE(error, field, value) "{\"error\":\"org.varlink.service." error "\",\"parameters\":{\"" field "\":\"" value "\"}}\n"
#define ECHO(t) M "Echo\",\"parameters\":{\"text\":\"" t "\"}}"

static char *wrap(const char *before, size_t n, const char *fill, const char *after, size_t *ret_size) {
        size_t f = strlen(fill), size = strlen(before) + n * f + strlen(after) + 1, at = strlen(before);
        char *bytes = malloc(size);

        assert_non_null(bytes);
        memcpy(bytes, before, at);
        for (size_t i = 0; i < n; i++, at += f)
                memcpy(bytes + at, fill, f);
        memcpy(bytes + at, after, strlen(after) + 1);
        *ret_size = size;
        return bytes;
}

static char *make_largest(size_t *ret_size) {
        size_t head = strlen(M "Nothing\"}");
        return wrap(M "Nothing\"", VARLINK_MESSAGE_SIZE_DEFAULT - head, " ", "}", ret_size);
}

static char *make_too_large(size_t *ret_size) {
        size_t head = strlen(M "Nothing\"}");
        return wrap(M "Nothing\"", VARLINK_MESSAGE_SIZE_DEFAULT - head + 1, " ", "}", ret_size);
}

static char *make_endless(size_t *ret_size) {
        char *bytes = wrap("", VARLINK_MESSAGE_SIZE_DEFAULT * 2, "{", "", ret_size);
        --*ret_size;
        return bytes;
}

static char *make_long_string(size_t *ret_size) {
        return wrap(M "Maybe\",\"parameters\":{\"text\":\"", KIB(512), "a", "\",\"bogus\":1}}", ret_size);
}

static char *make_long_method(size_t *ret_size) {
        return wrap("{\"method\":\"", KIB(64), "a.", "b\"}", ret_size);
}

static char *make_long_key(size_t *ret_size) {
        return wrap(M "Nothing\",\"parameters\":{\"", KIB(64), "\xc3\xa4", "\":1}}", ret_size);
}

static char *make_many_keys(size_t *ret_size) {
        char *bytes = malloc(KIB(256));
        size_t n = (size_t) sprintf(bytes, M "Map\",\"parameters\":{\"v\":{");

        for (unsigned i = 0; i < 4000; i++)
                n += (size_t) sprintf(bytes + n, "%s\"k%u\":\"\"", i ? "," : "", i);
        n += (size_t) sprintf(bytes + n, "},\"w\":1}}") + 1;
        *ret_size = n;
        return bytes;
}

/* The object of the call and its parameters are two of the 32. */
static char *make_deepest(size_t *ret_size) {
        size_t inner, outer;
        char *half = wrap(M "Maybe\",\"parameters\":{\"text\":", VARLINK_DEPTH_DEFAULT - 2, "[", "", &inner), *whole;

        whole = wrap(half, VARLINK_DEPTH_DEFAULT - 2, "]", "}}", &outer);
        free(half);
        *ret_size = outer;
        return whole;
}

static char *make_too_deep(size_t *ret_size) {
        size_t inner, outer;
        char *half = wrap(M "Maybe\",\"parameters\":{\"text\":", VARLINK_DEPTH_DEFAULT - 1, "[", "", &inner), *whole;

        whole = wrap(half, VARLINK_DEPTH_DEFAULT - 1, "]", "}}", &outer);
        free(half);
        *ret_size = outer;
        return whole;
}

static char *make_bottomless(size_t *ret_size) {
        return wrap(M "Maybe\",\"parameters\":{\"text\":", 200000, "[", "", ret_size);
}

static char *make_bottomless_objects(size_t *ret_size) {
        return wrap(M "Maybe\",\"parameters\":", 100000, "{\"a\":", "", ret_size);
}

static char *make_deep_tree(size_t *ret_size) {
        size_t inner, outer;
        char *half = wrap(M "Tree\",\"parameters\":{\"v\":", 25, "{\"value\":1,\"next\":", "{\"value\":true}", &inner), *whole;

        whole = wrap(half, 25, "}", "}}", &outer);
        free(half);
        *ret_size = outer;
        return whole;
}

static char *make_long_number(size_t *ret_size) {
        return wrap(M "Int\",\"parameters\":{\"v\":1", 1000, "0", "}}", ret_size);
}

static char *make_long_fraction(size_t *ret_size) {
        return wrap(M "Float\",\"parameters\":{\"v\":0.5", 1000, "0", "}}", ret_size);
}

static char *make_pipeline(size_t *ret_size) {
        char *bytes = malloc(KIB(256));
        size_t n = 0;

        for (unsigned i = 0; i < 500; i++)
                n += (size_t) sprintf(bytes + n, M "Int\",\"parameters\":{\"v\":%u}%s}", i, i < 499 ? ",\"oneway\":true" : "") + 1;
        *ret_size = n;
        return bytes;
}

static const Case cases[] = {
        /* JSON that is none, or not an object: whoever sends it may mean anything by what follows. */
        { "an empty message", SAY(""), .expected = CLOSED },
        { "white space", SAY(" \n\t "), .expected = CLOSED },
        { "a word", SAY("garbage"), .expected = CLOSED },
        { "null", SAY("null"), .expected = CLOSED },
        { "a boolean", SAY("true"), .expected = CLOSED },
        { "a number", SAY("42"), .expected = CLOSED },
        { "a string", SAY("\"org.example.cases.Nothing\""), .expected = CLOSED },
        { "an array", SAY("[]"), .expected = CLOSED },
        { "an array of calls", SAY("[" M "Nothing\"}]"), .expected = CLOSED },
        { "an open object", SAY("{"), .expected = CLOSED },
        { "a closed object", SAY("}"), .expected = CLOSED },
        { "a call without its end", SAY(M "Nothing\""), .expected = CLOSED },
        { "two objects in one message", SAY(M "Nothing\"}" M "Nothing\"}"), .expected = CLOSED },
        { "something behind the object", SAY(M "Nothing\"}x"), .expected = CLOSED },
        { "a bracket too much", SAY(M "Nothing\"}}"), .expected = CLOSED },
        { "the wrong bracket", SAY(M "Nothing\"]"), .expected = CLOSED },
        { "a comma at the end", SAY(M "Nothing\",}"), .expected = CLOSED },
        { "a comma missing", SAY("{\"oneway\":false \"method\":\"org.example.cases.Nothing\"}"), .expected = CLOSED },
        { "a colon missing", SAY("{\"method\" \"org.example.cases.Nothing\"}"), .expected = CLOSED },
        { "a key without a value", SAY("{\"method\"}"), .expected = CLOSED },
        { "a key without quotes", SAY("{method:\"org.example.cases.Nothing\"}"), .expected = CLOSED },
        { "single quotes", SAY("{'method':'org.example.cases.Nothing'}"), .expected = CLOSED },
        { "a comment", SAY(M "Nothing\"/* so */}"), .expected = CLOSED },
        { "a byte order mark", SAY("\xef\xbb\xbf" M "Nothing\"}"), .expected = CLOSED },
        { "NaN", WITH("Float", "{\"v\":NaN}"), .expected = CLOSED },
        { "Infinity", WITH("Float", "{\"v\":Infinity}"), .expected = CLOSED },
        { "minus Infinity", WITH("Float", "{\"v\":-Infinity}"), .expected = CLOSED },
        { "a hexadecimal number", WITH("Int", "{\"v\":0x10}"), .expected = CLOSED },
        { "a plus sign", WITH("Int", "{\"v\":+1}"), .expected = CLOSED },
        { "a lone minus sign", WITH("Int", "{\"v\":-}"), .expected = CLOSED },
        { "a leading zero", WITH("Int", "{\"v\":01}"), .expected = CLOSED },
        { "a point without digits before it", WITH("Float", "{\"v\":.5}"), .expected = CLOSED },
        { "an exponent without digits", WITH("Float", "{\"v\":1e}"), .expected = CLOSED },
        { "True with a capital", WITH("Bool", "{\"v\":True}"), .expected = CLOSED },
        { "half a word", WITH("Bool", "{\"v\":tru}"), .expected = CLOSED },
        /* strings */
        { "an open string", SAY(M "Echo\",\"parameters\":{\"text\":\"a}}"), .expected = CLOSED },
        { "a line's end inside of a string", WITH("Echo", "{\"text\":\"a\nb\"}"), .expected = CLOSED },
        { "a tab inside of a string", WITH("Echo", "{\"text\":\"a\tb\"}"), .expected = CLOSED },
        { "an unknown escape", WITH("Echo", "{\"text\":\"\\x41\"}"), .expected = CLOSED },
        { "an escape of three digits", WITH("Echo", "{\"text\":\"\\u123\"}"), .expected = CLOSED },
        { "an escape of no digits", WITH("Echo", "{\"text\":\"\\uzzzz\"}"), .expected = CLOSED },
        { "an escape at the end", SAY(M "Echo\",\"parameters\":{\"text\":\"a\\"), .expected = CLOSED },
        { "an escaped NUL", WITH("Echo", "{\"text\":\"a\\u0000b\"}"), .expected = CLOSED },
        { "an escaped NUL in a key", WITH("Echo", "{\"te\\u0000xt\":\"a\"}"), .expected = CLOSED },
        { "a byte of another encoding", WITH("Echo", "{\"text\":\"\xe4\"}"), .expected = CLOSED },
        { "a continuation without its beginning", WITH("Echo", "{\"text\":\"\x80\"}"), .expected = CLOSED },
        { "a sequence that is cut off", WITH("Echo", "{\"text\":\"\xe2\x82\"}"), .expected = CLOSED },
        { "the byte 0xff", WITH("Echo", "{\"text\":\"\xff\"}"), .expected = CLOSED },
        { "invalid UTF-8 in a key", SAY(M "Nothing\",\"\xe4.b\":1}"), .expected = CLOSED },
        { "invalid UTF-8 in the method", SAY(M "\xe4\"}"), .expected = CLOSED },
        { "every escape there is", WITH("Echo", "{\"text\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e4\\ud83d\\ude00\"}"),
                .expected = OK("{\"text\":\"\\\"\\\\/\\b\\f\\n\\r\\t\xc3\xa4\xf0\x9f\x98\x80\"}") },
        { "four bytes of UTF-8", SAY(ECHO("\xf0\x9f\x98\x80")), .expected = OK("{\"text\":\"\xf0\x9f\x98\x80\"}") },
        /* the call's own members */
        { "no members", SAY("{}"), .expected = CLOSED },
        { "no method", SAY("{\"parameters\":{}}"), .expected = CLOSED },
        { "a method that is null", SAY("{\"method\":null}"), .expected = CLOSED },
        { "a method that is a number", SAY("{\"method\":1}"), .expected = CLOSED },
        { "a method that is an object", SAY("{\"method\":{}}"), .expected = CLOSED },
        { "an empty method", SAY("{\"method\":\"\"}"), .expected = CLOSED },
        { "a method without an interface", SAY("{\"method\":\"Echo\"}"), .expected = CLOSED },
        { "an interface without a name", SAY("{\"method\":\".Echo\"}"), .expected = CLOSED },
        { "a method without a name", SAY("{\"method\":\"org.example.cases.\"}"), .expected = CLOSED },
        { "a reply", SAY("{\"parameters\":{},\"continues\":true}"), .expected = CLOSED },
        { "an unknown member", SAY(M "Nothing\",\"bogus\":1}"), .expected = CLOSED },
        { "a member of another domain", SAY(M "Nothing\",\"com.example.x\":{\"y\":[1]}}"), .expected = OK("{}") },
        { "parameters that are an array", WITH("Nothing", "[]"), .expected = CLOSED },
        { "parameters that are a string", WITH("Nothing", "\"\""), .expected = CLOSED },
        { "parameters that are null", WITH("Nothing", "null"), .expected = OK("{}") },
        { "more that is a number", SAY(M "Nothing\",\"more\":1}"), .expected = CLOSED },
        { "oneway that is a string", SAY(M "Nothing\",\"oneway\":\"true\"}"), .expected = CLOSED },
        { "upgrade that is an array", SAY(M "Nothing\",\"upgrade\":[]}"), .expected = CLOSED },
        { "flags that are null", SAY(M "Nothing\",\"oneway\":null,\"more\":null,\"upgrade\":null}"), .expected = OK("{}") },
        { "flags that are false", SAY(M "Nothing\",\"oneway\":false,\"more\":false,\"upgrade\":false}"), .expected = OK("{}") },
        { "oneway and more", SAY(M "Nothing\",\"oneway\":true,\"more\":true}"), .expected = CLOSED },
        { "oneway and upgrade", SAY(M "Upgrade\",\"oneway\":true,\"upgrade\":true}"), .expected = CLOSED },
        { "more and upgrade", SAY(M "Upgrade\",\"more\":true,\"upgrade\":true}"), .expected = CLOSED },
        { "the method twice", SAY("{\"method\":\"org.example.cases.Missing\",\"method\":\"org.example.cases.Nothing\"}"), .expected = OK("{}") },
        { "a parameter twice", WITH("Echo", "{\"text\":1,\"text\":\"a\"}"), .expected = OK("{\"text\":\"a\"}") },
        { "a parameter twice, the second wrong", WITH("Echo", "{\"text\":\"a\",\"text\":1}"), .expected = WRONG("text") },
        /* what is called */
        { "an unknown interface", SAY("{\"method\":\"org.example.nothing.Echo\"}"),
                .expected = SERVICE("InterfaceNotFound", "interface", "org.example.nothing") },
        { "an interface's beginning", SAY("{\"method\":\"org.example.Echo\"}"),
                .expected = SERVICE("InterfaceNotFound", "interface", "org.example") },
        { "an interface in capitals", SAY("{\"method\":\"ORG.example.cases.Echo\"}"),
                .expected = SERVICE("InterfaceNotFound", "interface", "ORG.example.cases") },
        { "an unknown method", CALL("Nope"), .expected = SERVICE("MethodNotFound", "method", "org.example.cases.Nope") },
        { "a method in small letters", CALL("echo"), .expected = SERVICE("MethodNotFound", "method", "org.example.cases.echo") },
        { "a type", CALL("Color"), .expected = SERVICE("MethodNotFound", "method", "org.example.cases.Color") },
        { "an error", CALL("Failed"), .expected = SERVICE("MethodNotFound", "method", "org.example.cases.Failed") },
        { "a method that is not implemented", CALL("Missing"),
                .expected = SERVICE("MethodNotImplemented", "method", "org.example.cases.Missing") },
        { "a oneway call of an unknown method", SAY(M "Nope\",\"oneway\":true}"), .expected = "" },
        { "a oneway call with wrong parameters", SAY(M "Echo\",\"oneway\":true}"), .expected = "" },
        { "a oneway call", SAY(M "Nothing\",\"oneway\":true}"), .expected = "" },
        { "one reply where more are welcome", SAY(M "Nothing\",\"more\":true}"), .expected = OK("{}") },
        { "a call of a stream without more", WITH("Many", "{\"count\":2}"),
                .expected = "{\"error\":\"org.varlink.service.ExpectedMore\",\"parameters\":{}}\n" },
        { "a oneway call of a stream", SAY(M "Many\",\"oneway\":true,\"parameters\":{\"count\":2}}"), .expected = "" },
        { "a stream", SAY(M "Many\",\"more\":true,\"parameters\":{\"count\":3}}"),
                .expected = "{\"parameters\":{\"n\":1},\"continues\":true}\n{\"parameters\":{\"n\":2},\"continues\":true}\n{\"parameters\":{\"n\":3}}\n" },
        { "a stream and wrong parameters", SAY(M "Many\",\"more\":true}"), .expected = WRONG("count") },
        { "an upgrade of a method that has none", SAY(M "Nothing\",\"upgrade\":true}"), .expected = WRONG("upgrade") },
        { "a method that upgrades, without upgrade", CALL("Upgrade"),
                .expected = "{\"error\":\"org.varlink.service.ExpectedUpgrade\",\"parameters\":{}}\n" },
        { "an upgrade", SAY(M "Upgrade\",\"upgrade\":true}"), .expected = OK("{}") "{\"raw\":true}\n" CLOSED },
        { "an upgrade with bytes behind it", SAY(M "Upgrade\",\"upgrade\":true}\0garbage"), .expected = OK("{}") "{\"raw\":true}\n" CLOSED },
        /* parameters */
        { "no parameters where one is needed", CALL("Echo"), .expected = WRONG("text") },
        { "a null where a value is needed", WITH("Echo", "{\"text\":null}"), .expected = WRONG("text") },
        { "a number for a string", WITH("Echo", "{\"text\":5}"), .expected = WRONG("text") },
        { "an object for a string", WITH("Echo", "{\"text\":{}}"), .expected = WRONG("text") },
        { "an unknown parameter", WITH("Nothing", "{\"bogus\":1}"), .expected = WRONG("bogus") },
        { "an unknown parameter that is null", WITH("Nothing", "{\"bogus\":null}"), .expected = WRONG("bogus") },
        { "a parameter in capitals", WITH("Echo", "{\"Text\":\"a\"}"), .expected = WRONG("Text") },
        { "an empty name", WITH("Nothing", "{\"\":1}"), .expected = WRONG("") },
        { "nothing for what is nullable", CALL("Maybe"), .expected = OK("{}") },
        { "null for what is nullable", WITH("Maybe", "{\"text\":null}"), .expected = OK("{\"text\":null}") },
        { "the wrong type for what is nullable", WITH("Maybe", "{\"text\":false}"), .expected = WRONG("text") },
        { "a number for a boolean", WITH("Bool", "{\"v\":1}"), .expected = WRONG("v") },
        { "a string for a boolean", WITH("Bool", "{\"v\":\"true\"}"), .expected = WRONG("v") },
        { "a string for a number", WITH("Int", "{\"v\":\"1\"}"), .expected = WRONG("v") },
        { "a boolean for a number", WITH("Int", "{\"v\":true}"), .expected = WRONG("v") },
        { "a fraction for a whole number", WITH("Int", "{\"v\":1.5}"), .expected = WRONG("v") },
        { "an exponent for a whole number", WITH("Int", "{\"v\":1e3}"), .expected = WRONG("v") },
        { "the largest number", WITH("Int", "{\"v\":9223372036854775807}"), .expected = OK("{\"v\":9223372036854775807}") },
        { "the smallest number", WITH("Int", "{\"v\":-9223372036854775808}"), .expected = OK("{\"v\":-9223372036854775808}") },
        { "a number too large", WITH("Int", "{\"v\":9223372036854775808}"), .expected = WRONG("v") },
        { "a number beyond 64 bits", WITH("Int", "{\"v\":18446744073709551616}"), .expected = WRONG("v") },
        { "a number too small", WITH("Int", "{\"v\":-9223372036854775809}"), .expected = CLOSED },
        { "a number far too small", WITH("Any", "{\"v\":{\"a\":[-10000000000000000000]}}"), .expected = CLOSED },
        { "a float far below the smallest number", WITH("Float", "{\"v\":-10000000000000000000.0}"),
                .expected = OK("{\"v\":-10000000000000000000.0}") },
        { "digits in a string", SAY(ECHO("-9223372036854775809")), .expected = OK("{\"text\":\"-9223372036854775809\"}") },
        { "a number of a thousand digits", .make = make_long_number, .expected = WRONG("v") },
        { "a whole number for a float", WITH("Float", "{\"v\":2}"), .expected = OK("{\"v\":2}") },
        { "a float beyond its range", WITH("Float", "{\"v\":1e400}"), .expected = CLOSED },
        { "a float of a thousand digits", .make = make_long_fraction, .begins = "{\"parameters\":{\"v\":0.5" },
        { "an array of the wrong type", WITH("Array", "{\"v\":[1,2,\"3\"]}"), .expected = WRONG("v[2]") },
        { "an array with a null", WITH("Array", "{\"v\":[null]}"), .expected = WRONG("v[0]") },
        { "an array in an array", WITH("Array", "{\"v\":[[]]}"), .expected = WRONG("v[0]") },
        { "an object for an array", WITH("Array", "{\"v\":{\"0\":1}}"), .expected = WRONG("v") },
        { "an empty array", WITH("Array", "{\"v\":[]}"), .expected = OK("{\"v\":[]}") },
        { "an array for a map", WITH("Map", "{\"v\":[]}"), .expected = WRONG("v") },
        { "a map of the wrong type", WITH("Map", "{\"v\":{\"a\":\"b\",\"c\":1}}"), .expected = WRONG("v.c") },
        { "a map with an empty key", WITH("Map", "{\"v\":{\"\":\"b\"}}"), .expected = OK("{\"v\":{\"\":\"b\"}}") },
        { "a map of 4000", .make = make_many_keys, .expected = WRONG("w") },
        { "a set of something", WITH("Set", "{\"v\":{\"a\":{\"b\":1}}}"), .expected = WRONG("v.a.b") },
        { "a set of nulls", WITH("Set", "{\"v\":{\"a\":null}}"), .expected = WRONG("v.a") },
        { "a set", WITH("Set", "{\"v\":{\"a\":{}}}"), .expected = OK("{\"v\":{\"a\":{}}}") },
        { "an unknown word of an enumeration", WITH("Enum", "{\"v\":\"blue\"}"), .expected = WRONG("v") },
        { "an enumeration's number", WITH("Enum", "{\"v\":0}"), .expected = WRONG("v") },
        { "an empty word of an enumeration", WITH("Enum", "{\"v\":\"\"}"), .expected = WRONG("v") },
        { "a structure without a field", WITH("Tree", "{\"v\":{\"value\":1,\"next\":{}}}"), .expected = WRONG("v.next.value") },
        { "a structure with a field too much", WITH("Tree", "{\"v\":{\"value\":1,\"last\":1}}"), .expected = WRONG("v.last") },
        { "a wrong field deep inside", .make = make_deep_tree, .begins = "{\"error\":\"org.varlink.service.InvalidParameter\",\"parameters\":{\"parameter\":\"v.next." },
        { "nulls where they may be", WITH("Nullable", "{\"v\":[1,null]}"), .expected = OK("{\"v\":[1,null]}") },
        { "a wrong value among nulls", WITH("Nullable", "{\"v\":[null,false]}"), .expected = WRONG("v[1]") },
        { "an object of anything", WITH("Any", "{\"v\":{\"a\":[{\"b\":null},1.5]}}"), .expected = OK("{\"v\":{\"a\":[{\"b\":null},1.5]}}") },
        /* size and depth */
        { "the largest message", .make = make_largest, .expected = OK("{}") },
        { "a message one byte too large", .make = make_too_large, .expected = CLOSED },
        { "a message that does not end", .make = make_endless, .expected = CLOSED },
        { "a parameter of half a mebibyte", .make = make_long_string, .expected = WRONG("bogus") },
        { "a method's name of 128 KiB", .make = make_long_method, .begins = "{\"error\":\"org.varlink.service.InterfaceNotFound\"" },
        { "a parameter's name of 128 KiB", .make = make_long_key, .begins = "{\"error\":\"org.varlink.service.InvalidParameter\"" },
        { "as deep as may be", .make = make_deepest, .expected = WRONG("text") },
        { "one too deep", .make = make_too_deep, .expected = CLOSED },
        { "arrays without a bottom", .make = make_bottomless, .expected = CLOSED },
        { "objects without a bottom", .make = make_bottomless_objects, .expected = CLOSED },
        /* where messages end */
        { "no end", RAW(ECHO("a")), .expected = "", .incomplete = true },
        { "an end and no beginning", RAW("\0"), .expected = CLOSED },
        { "two ends", SAY(ECHO("a") "\0"), .expected = OK("{\"text\":\"a\"}") CLOSED },
        { "an end before its time", SAY(M "Nothing\0\"}"), .expected = CLOSED },
        { "an end within a string", SAY(M "Echo\",\"parameters\":{\"text\":\"a\0b\"}}"), .expected = CLOSED },
        { "a line's end for an end", RAW(ECHO("a") "\n" ECHO("b") "\n"), .expected = "", .incomplete = true },
        { "white space around", SAY(" \r\n" ECHO("a") "\n"), .expected = OK("{\"text\":\"a\"}") },
        { "two calls at once", SAY(ECHO("a") "\0" ECHO("b")), .expected = OK("{\"text\":\"a\"}") OK("{\"text\":\"b\"}") },
        { "three calls, the second wrong", SAY(ECHO("a") "\0" M "Nope\"}\0" ECHO("c")),
                .expected = OK("{\"text\":\"a\"}") SERVICE("MethodNotFound", "method", "org.example.cases.Nope") OK("{\"text\":\"c\"}") },
        { "three calls, the second broken", SAY(ECHO("a") "\0{\0" ECHO("c")), .expected = OK("{\"text\":\"a\"}") CLOSED },
        { "a call and half of one", RAW(ECHO("a") "\0" M "Ec"), .expected = OK("{\"text\":\"a\"}"), .incomplete = true },
        { "a oneway call between two", SAY(ECHO("a") "\0" M "Nothing\",\"oneway\":true}\0" ECHO("c")),
                .expected = OK("{\"text\":\"a\"}") OK("{\"text\":\"c\"}") },
        { "a call behind a stream", SAY(M "Many\",\"more\":true,\"parameters\":{\"count\":2}}\0" ECHO("b")),
                .expected = "{\"parameters\":{\"n\":1},\"continues\":true}\n{\"parameters\":{\"n\":2}}\n" OK("{\"text\":\"b\"}") },
        { "499 oneway calls and one", .make = make_pipeline, .expected = OK("{\"v\":499}") },
        /* descriptors */
        { "a descriptor's index and no descriptor", WITH("Descriptor", "{\"index\":0}"), .expected = WRONG("index") },
        { "a descriptor nobody asked for", SAY(ECHO("a")), .n_fds = 1, .expected = OK("{\"text\":\"a\"}") },
        { "a descriptor", WITH("Descriptor", "{\"index\":0}"), .n_fds = 1, .expected = OK("{\"fileDescriptorIndex\":0}") },
        { "the last of sixteen", WITH("Descriptor", "{\"index\":15}"), .n_fds = 16, .expected = OK("{\"fileDescriptorIndex\":0}") },
        { "an index one too large", WITH("Descriptor", "{\"index\":16}"), .n_fds = 16, .expected = WRONG("index") },
        { "a negative index", WITH("Descriptor", "{\"index\":-1}"), .n_fds = 1, .expected = WRONG("index") },
        { "a huge index", WITH("Descriptor", "{\"index\":4294967296}"), .n_fds = 1, .expected = WRONG("index") },
        { "an index that is a string", WITH("Descriptor", "{\"index\":\"0\"}"), .n_fds = 1, .expected = WRONG("index") },
        { "a descriptor too many", SAY(ECHO("a")), .n_fds = 17, .expected = CLOSED },
        { "as many descriptors as the kernel takes", SAY(ECHO("a")), .n_fds = 253, .expected = CLOSED },
        { "descriptors with a broken message", SAY("{"), .n_fds = 2, .expected = CLOSED },
        { "descriptors with half a message", RAW(M "Descriptor\""), .n_fds = 2, .expected = "", .incomplete = true },
        { "a descriptor with a oneway call", SAY(M "Descriptor\",\"oneway\":true,\"parameters\":{\"index\":0}}"), .n_fds = 1, .expected = "" },
        /* The kernel does not tell which byte they came with: of several messages in one piece they are the last one's. */
        { "a descriptor for two calls in one piece", SAY(M "Descriptor\",\"parameters\":{\"index\":0}}\0" M "Descriptor\",\"parameters\":{\"index\":0}}"),
                .n_fds = 1, .expected = WRONG("index") OK("{\"fileDescriptorIndex\":0}"), .uncut = true },
};

static size_t count_descriptors(void) {
        DIR *d = opendir("/proc/self/fd");
        size_t n = 0;

        assert_non_null(d);
        while (readdir(d))
                n++;
        (void) closedir(d);
        return n;
}

/* The peer may be thrown out before he has said all: then the rest is not said. Descriptors go with the first byte. */
static void say(VarlinkChannel *peer, Rig *rig, const char *bytes, size_t size, unsigned n_fds) {
        int fds[253];
        size_t done = 0;

        assert_true(n_fds <= ELEMENTSOF(fds));
        for (unsigned i = 0; i < n_fds; i++)
                fds[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
        while (done < size) {
                ssize_t n = send_with_fds(peer->fd, bytes + done, size - done, fds, done == 0 ? n_fds : 0);
                if (n == -EPIPE || n == -ECONNRESET)
                        break;
                if (n == -EAGAIN)
                        n = 0;
                assert_true(n >= 0);
                done += (size_t) n;
                if (done < size)
                        rig_pump(rig);
        }
        for (unsigned i = 0; i < n_fds; i++)
                (void) safe_close(fds[i]);
}

/* All that the peer gets, each reply ended by a newline. */
static char *hear(VarlinkChannel *peer, Rig *rig) {
        char *all = strdup(""), *reply;

        while ((reply = rig_receive(rig, peer))) {
                size_t n = strlen(all);
                bool closed = streq(reply, "closed");

                char *longer = realloc(all, n + strlen(reply) + 2);
                assert_non_null(longer);
                all = longer;
                (void) sprintf(all + n, "%s\n", reply);
                free(reply);
                if (closed)
                        break;
        }
        return all;
}

static void check(Rig *rig, const Case *c, const char *bytes, size_t size, size_t cut) {
        _cleanup_free_ char *heard = NULL, *after = NULL;
        VarlinkChannel peer;
        bool closed;

        assert_int_equal(rig_attach(rig, &peer), 0);
        if (cut > 0) {
                say(&peer, rig, bytes, cut, c->n_fds);
                rig_pump(rig);
        }
        say(&peer, rig, bytes + cut, size - cut, cut > 0 ? 0 : c->n_fds);
        heard = hear(&peer, rig);
        if (c->begins ? !startswith(heard, c->begins) : !streq(heard, c->expected))
                fail_msg("cut at %zu: %.200s", cut, heard);
        assert_true(strlen(heard) < KIB(4));

        closed = strlen(heard) >= strlen(CLOSED) && streq(heard + strlen(heard) - strlen(CLOSED), CLOSED);
        if (!closed && !c->incomplete) {
                say(&peer, rig, ECHO("on"), sizeof(ECHO("on")), 0);
                after = hear(&peer, rig);
                assert_string_equal(after, OK("{\"text\":\"on\"}"));
        }
        varlink_channel_done(&peer);
        rig_pump(rig);
        assert_int_equal(varlink_server_n_connections(rig->server), 1);
}

static void run_case(void **state) {
        const Case *c = *state;
        size_t size = c->size, before, cuts;
        char *made = c->make ? c->make(&size) : NULL;
        const char *bytes = made ?: c->bytes;
        Rig rig;

        rig_open(&rig, text, methods, NULL);
        before = count_descriptors();
        check(&rig, c, bytes, size, 0);
        /* What is large is cut at some places only. */
        cuts = c->uncut ? 0 : size > 1024 ? 8 : size;
        for (size_t i = 1; i < cuts; i++)
                check(&rig, c, bytes, size, i * (size / cuts));
        assert_int_equal(count_descriptors(), before);

        say(&rig.peer, &rig, ECHO("bystander"), sizeof(ECHO("bystander")), 0);
        assert_next(&rig, &rig.peer, "{\"parameters\":{\"text\":\"bystander\"}}");
        rig_close(&rig);
        free(made);
}

int main(void) {
        struct CMUnitTest tests[ELEMENTSOF(cases)];

        for (size_t i = 0; i < ELEMENTSOF(cases); i++)
                tests[i] = (struct CMUnitTest) { .name = cases[i].name, .test_func = run_case, .initial_state = (void *) &cases[i] };
        return _cmocka_run_group_tests("varlink cases", tests, ELEMENTSOF(tests), NULL, NULL);
}
