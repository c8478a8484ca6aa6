/* Reading and writing safetensors files, and opening the weights of a component. */
#include "test_support.h"

#include "core/mem.h"
#include "io/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_IMAGE 4096

/* Length, header, then size bytes 0, 1, 2 ... of data. */
static size_t make_image(unsigned char *image, const char *header, size_t data_size)
{
    size_t length = strlen(header);
    assert_true(8 + length + data_size <= MAX_IMAGE);
    for (int i = 0; i < 8; i++)
        image[i] = (unsigned char)((uint64_t)length >> (8 * i));
    memcpy(image + 8, header, length);
    for (size_t i = 0; i < data_size; i++)
        image[8 + length + i] = (unsigned char)i;
    return 8 + length + data_size;
}

static void write_image(const char *path, const char *header, size_t data_size)
{
    unsigned char image[MAX_IMAGE];
    test_write_file(path, image, make_image(image, header, data_size));
}

typedef struct seen {
    int count;
    weight_view views[16];
} seen;

static ct_status remember(void *user, const weight_view *view, ct_error *error)
{
    (void)error;
    seen *s = user;
    assert_true(s->count < 16);
    s->views[s->count++] = *view;
    return CT_OK;
}

static ct_status parse(const char *header, size_t data_size, ct_error *error)
{
    /* A copy of the exact size, so that the address sanitizer sees any byte read behind it. */
    unsigned char image[MAX_IMAGE];
    size_t size = make_image(image, header, data_size);
    unsigned char *exact = malloc(size);
    assert_non_null(exact);
    memcpy(exact, image, size);
    seen s = {0};
    json_value *root;
    ct_status status = safetensors_parse(exact, size, "x.safetensors", &mem_default, &root,
                                         remember, &s, error);
    assert_true((root != NULL) == (status == CT_OK));
    json_free(root);
    free(exact);
    return status;
}

static void reads_tensors(void **state)
{
    (void)state;
    unsigned char image[MAX_IMAGE];
    size_t size = make_image(image,
                             "{\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[4,28]},"
                             "\"a\":{\"shape\":[2],\"dtype\":\"BF16\",\"data_offsets\":[0,4],"
                             "\"other\":[1]},"
                             "\"scalar\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[28,29]},"
                             "\"none\":{\"dtype\":\"F16\",\"shape\":[0,7],"
                             "\"data_offsets\":[28,28]},"
                             "\"__metadata__\":{\"format\":\"pt\"}}  ", 29);
    seen s = {0};
    json_value *root;
    ct_error error;
    test_ok(safetensors_parse(image, size, "x", &mem_default, &root, remember, &s, &error), &error);
    assert_int_equal(s.count, 4);
    static const char *const order[] = {"a", "b", "none", "scalar"};
    /* By offset; the empty tensor lies before the one that begins at the same place. */
    assert_string_equal(s.views[0].name, order[0]);
    assert_string_equal(s.views[1].name, order[1]);
    assert_string_equal(s.views[2].name, order[2]);
    assert_string_equal(s.views[3].name, order[3]);
    assert_int_equal(s.views[1].rank, 2);
    assert_int_equal(s.views[1].shape[0], 2);
    assert_int_equal(s.views[1].shape[1], 3);
    assert_int_equal(s.views[1].bytes, 24);
    assert_int_equal(s.views[1].type, DTYPE_F32);
    assert_int_equal(s.views[1].data[0], 4);
    assert_int_equal(s.views[2].bytes, 0);
    assert_int_equal(s.views[3].rank, 0);
    assert_int_equal(s.views[3].data[0], 28);
    json_free(root);
}

static void reads_file_without_tensors(void **state)
{
    (void)state;
    ct_error error;
    test_ok(parse("{}", 0, &error), &error);
    test_ok(parse("{\"__metadata__\":null}", 0, &error), &error);
}

#define T(dtype, shape, offsets)                                                                   \
    "{\"t\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static void refuses_hostile_headers(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t data_size;
        ct_status status;
        const char *message;
    } cases[] = {
        {"", 0, CT_EFORMAT, "not a JSON object"},
        {"[]", 0, CT_EFORMAT, "not a JSON object"},
        {" {}", 0, CT_EFORMAT, "not a JSON object"},
        {"{", 0, CT_EFORMAT, "not a JSON object"},
        {"{ ", 0, CT_EFORMAT, "not valid JSON"},
        {"{}{}", 0, CT_EFORMAT, "not valid JSON"},
        {"{\"a\xff\":1}", 0, CT_EFORMAT, "not valid JSON"},
        {"{\"a\":1}", 0, CT_EFORMAT, "member \"a\" is an integer instead of an object"},
        {"{\"a\":[]}", 0, CT_EFORMAT, "member \"a\" is an array instead of an object"},
        {"{\"__metadata__\":1}", 0, CT_EFORMAT, "an integer instead of an object"},
        {"{\"__metadata__\":{\"k\":1}}", 0, CT_EFORMAT, "member \"k\" is an integer"},
        {"{\"t\":{}}", 0, CT_EFORMAT, "tensor \"t\" has no dtype"},
        {"{\"t\":{\"dtype\":\"U8\"}}", 0, CT_EFORMAT, "tensor \"t\" has no shape"},
        {"{\"t\":{\"dtype\":\"U8\",\"shape\":[]}}", 0, CT_EFORMAT, "data_offsets of tensor \"t\""},
        {T("7", "[]", "[0,1]"), 1, CT_EFORMAT, "has no dtype"},
        {T("\"F4\"", "[]", "[0,1]"), 1, CT_EUNSUPPORTED, "dtype \"F4\""},
        {T("\"f32\"", "[]", "[0,1]"), 1, CT_EUNSUPPORTED, "dtype \"f32\""},
        {T("\"U8\\u0000\"", "[]", "[0,1]"), 1, CT_EUNSUPPORTED, "dtype \"U8\""},
        {T("\"U8\"", "3", "[0,1]"), 1, CT_EFORMAT, "has no shape"},
        {T("\"U8\"", "null", "[0,1]"), 1, CT_EFORMAT, "has no shape"},
        {T("\"U8\"", "[-1]", "[0,1]"), 1, CT_EFORMAT, "dimension 0 of tensor \"t\""},
        {T("\"U8\"", "[1,1.0]", "[0,1]"), 1, CT_EFORMAT, "dimension 1 of tensor \"t\""},
        {T("\"U8\"", "[\"1\"]", "[0,1]"), 1, CT_EFORMAT, "dimension 0 of tensor \"t\""},
        {T("\"U8\"", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, CT_EUNSUPPORTED, "9 dimensions"},
        {T("\"F32\"", "[4611686018427387905]", "[0,4]"), 4, CT_EFORMAT, "too large"},
        {T("\"U8\"", "[9223372036854775807,3]", "[0,1]"), 1, CT_EFORMAT, "too large"},
        {T("\"U8\"", "[9223372036854775807,4,0]", "[0,0]"), 0, CT_EFORMAT, "too large"},
        {T("\"U8\"", "[4294967296,4294967296]", "[0,0]"), 0, CT_EFORMAT, "too large"},
        {T("\"U8\"", "[9223372036854775808]", "[0,1]"), 1, CT_EFORMAT, "not valid JSON"},
        {T("\"U8\"", "[1]", "0"), 1, CT_EFORMAT, "not two rising whole numbers"},
        {T("\"U8\"", "[1]", "[0]"), 1, CT_EFORMAT, "not two rising whole numbers"},
        {T("\"U8\"", "[1]", "[0,1,1]"), 1, CT_EFORMAT, "not two rising whole numbers"},
        {T("\"U8\"", "[1]", "[0,1.5]"), 1, CT_EFORMAT, "not two rising whole numbers"},
        {T("\"U8\"", "[1]", "[-1,0]"), 1, CT_EFORMAT, "not two rising whole numbers"},
        {T("\"U8\"", "[1]", "[1,0]"), 1, CT_EFORMAT, "not two rising whole numbers"},
        {T("\"U8\"", "[2]", "[0,2]"), 1, CT_EFORMAT, "ends at byte 2 of the data"},
        {T("\"U8\"", "[1]", "[9223372036854775806,9223372036854775807]"), 1, CT_EFORMAT,
         "ends at byte 9223372036854775807"},
        {T("\"F32\"", "[1]", "[0,1]"), 1, CT_EFORMAT, "has 1 bytes of data, but its shape"},
        {T("\"U8\"", "[1]", "[0,2]"), 2, CT_EFORMAT, "has 2 bytes of data, but its shape"},
        {T("\"U8\"", "[1]", "[1,2]"), 2, CT_EFORMAT, "1 bytes before tensor \"t\""},
        {T("\"U8\"", "[1]", "[0,1]"), 2, CT_EFORMAT, "1 bytes after the last tensor"},
        {T("\"U8\"", "[0]", "[1,1]"), 1, CT_EFORMAT, "1 bytes before tensor \"t\""},
        {"{}", 1, CT_EFORMAT, "1 bytes after the last tensor"},
        {"{\"t\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
         "\"u\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}", 3, CT_EFORMAT,
         "tensor \"u\" overlaps tensor \"t\""},
        {"{\"t\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
         "\"u\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2, CT_EFORMAT,
         "tensor \"u\" overlaps tensor \"t\""},
        {"{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
         "\"u\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,3]}}", 3, CT_EFORMAT,
         "1 bytes before tensor \"u\""},
        {"{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
         "\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, CT_EFORMAT,
         "not valid JSON"},
        {"{\"\\u001b[31m\":1}", 0, CT_EFORMAT, "member \"?[31m\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ct_error error = {0};
        ct_status status = parse(cases[i].header, cases[i].data_size, &error);
        test_error(status, cases[i].status, &error, cases[i].message);
        test_error(status, cases[i].status, &error, "x.safetensors: ");
        if (status == CT_EFORMAT)
            test_error(status, status, &error, "download it again");
    }
}

static ct_status parse_bytes(const void *data, size_t size, ct_error *error)
{
    seen s = {0};
    json_value *root;
    unsigned char *exact = malloc(size ? size : 1);
    assert_non_null(exact);
    if (size)
        memcpy(exact, data, size);
    ct_status status = safetensors_parse(exact, size, "x.safetensors", &mem_default, &root,
                                         remember, &s, error);
    assert_null(root);
    free(exact);
    return status;
}

static void refuses_hostile_files(void **state)
{
    (void)state;
    ct_error error = {0};
    test_error(parse_bytes("", 0, &error), CT_EFORMAT, &error, "only 0 bytes");
    test_error(parse_bytes("\2\0\0\0\0\0\0", 7, &error), CT_EFORMAT, &error, "only 7 bytes");
    test_error(parse_bytes("\0\0\0\0\0\0\0\0", 8, &error), CT_EFORMAT, &error, "not a JSON object");
    test_error(parse_bytes("\3\0\0\0\0\0\0\0{}", 10, &error), CT_EFORMAT, &error,
               "should have 3 bytes");
    test_error(parse_bytes("\377\377\377\377\377\377\377\377{}", 10, &error), CT_EFORMAT, &error,
               "should have 18446744073709551615 bytes");
    const char *lfs = "version https://git-lfs.github.com/spec/v1\n";
    test_error(parse_bytes(lfs, strlen(lfs), &error), CT_EFORMAT, &error, "git lfs pull");
    /* A header that lies within the file, but is larger than allowed. */
    size_t size = 8 + 100000001;
    unsigned char *large = calloc(size, 1);
    assert_non_null(large);
    large[0] = 0x01;
    large[1] = 0xe1;
    large[2] = 0xf5;
    large[3] = 0x05;
    test_error(parse_bytes(large, size, &error), CT_EFORMAT, &error, "more than the 100000000");
    free(large);
}

static ct_status stop(void *user, const weight_view *view, ct_error *error)
{
    (void)user;
    return error_set(error, CT_ECANCELLED, "stopped at %s", view->name);
}

static void visitor_can_stop(void **state)
{
    (void)state;
    unsigned char image[MAX_IMAGE];
    size_t size = make_image(image, T("\"U8\"", "[1]", "[0,1]"), 1);
    json_value *root;
    ct_error error;
    ct_status status = safetensors_parse(image, size, "x", &mem_default, &root, stop, NULL, &error);
    test_error(status, CT_ECANCELLED, &error, "stopped at t");
    assert_null(root);
}

/* ---- Weights ---- */

#define ONE(name) "{\"" name "\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}"
#define TWO(a, b)                                                                                  \
    "{\"" a "\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"                          \
    "\"" b "\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]}}"

static void write_text(const test_folder *folder, const char *name, const char *text)
{
    test_write_file(test_path(folder, name), text, strlen(text));
}

static ct_status open_folder(const test_folder *folder, ct_error *error)
{
    weights *w;
    test_heap heap;
    test_heap_init(&heap, 0);
    ct_status status = weights_open_directory(&w, &heap.allocator, folder->path, "model", error);
    assert_true((w != NULL) == (status == CT_OK));
    weights_close(w);
    assert_int_equal(heap.live, 0);
    return status;
}

static void opens_one_file(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    const char *path = test_path(&folder, "a.safetensors");
    write_image(path, "{\"__metadata__\":{\"k\":\"v\"},"
                      "\"z\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
                      "\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]},"
                      "\"m\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[4,6]}}", 6);
    weights *w;
    ct_error error;
    test_ok(weights_open_file(&w, &mem_default, path, &error), &error);
    assert_int_equal(weights_count(w), 3);
    assert_string_equal(weights_at(w, 0)->name, "a");
    assert_string_equal(weights_at(w, 1)->name, "m");
    assert_string_equal(weights_at(w, 2)->name, "z");
    assert_null(weights_at(w, 3));
    assert_ptr_equal(weights_find(w, "m"), weights_at(w, 1));
    assert_int_equal(weights_find(w, "a")->data[1], 3);
    assert_null(weights_find(w, "b"));
    assert_null(weights_find(w, ""));
    assert_null(weights_find(w, "zz"));
    assert_int_equal(weights_files(w), 1);
    assert_string_equal(weights_path(w, 0), path);
    assert_null(weights_path(w, 1));
    assert_string_equal(weights_source(w), path);
    assert_string_equal(weights_metadata(w, "k"), "v");
    assert_null(weights_metadata(w, "l"));
    size_t length;
    const char *header = weights_header(w, 0, &length);
    assert_memory_equal(header, "{\"__metadata__\"", 15);
    assert_int_equal(header[length - 1], '}');
    weights_close(w);
    weights_close(NULL);
    test_error(weights_open_file(&w, &mem_default, test_path(&folder, "none"), &error),
               CT_ENOTFOUND, &error, "none");
    assert_null(w);
    test_error(weights_open_file(&w, &mem_default, folder.path, &error), CT_EIO, &error,
               "not a regular file");
    write_text(&folder, "empty", "");
    test_error(weights_open_file(&w, &mem_default, test_path(&folder, "empty"), &error), CT_EFORMAT,
               &error, "only 0 bytes");
    test_folder_remove(&folder);
}

static void opens_shards(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    write_image(test_path(&folder, "model-2.safetensors"), TWO("a", "extra"), 4);
    write_image(test_path(&folder, "model-1.safetensors"), TWO("b", "c"), 4);
    write_image(test_path(&folder, "other.safetensors"), ONE("a"), 2);
    write_image(test_path(&folder, "model.safetensors"), ONE("a"), 2);
    write_text(&folder, "model.safetensors.index.json",
               "{\"weight_map\":{\"c\":\"model-1.safetensors\",\"a\":\"model-2.safetensors\","
               "\"b\":\"model-1.safetensors\"},\"metadata\":{\"total_size\":8}}");
    weights *w;
    ct_error error;
    test_ok(weights_open_directory(&w, &mem_default, folder.path, "model", &error), &error);
    assert_int_equal(weights_files(w), 2);
    assert_string_equal(weights_path(w, 0), test_path(&folder, "model-1.safetensors"));
    assert_string_equal(weights_source(w), folder.path);
    assert_int_equal(weights_count(w), 4);
    assert_int_equal(weights_find(w, "a")->file, 1);
    assert_int_equal(weights_find(w, "c")->file, 0);
    assert_int_equal(weights_find(w, "c")->data[0], 2);
    assert_non_null(weights_find(w, "extra"));
    weights_close(w);
    test_folder_remove(&folder);
}

static void refuses_bad_indexes(void **state)
{
    (void)state;
    static const struct {
        const char *index;
        ct_status status;
        const char *message;
    } cases[] = {
        {"", CT_EFORMAT, "not valid JSON"},
        {"[]", CT_EFORMAT, "no \"weight_map\""},
        {"{}", CT_EFORMAT, "no \"weight_map\""},
        {"{\"weight_map\":[]}", CT_EFORMAT, "no \"weight_map\""},
        {"{\"weight_map\":{}}", CT_EFORMAT, "no \"weight_map\""},
        {"{\"weight_map\":{\"a\":1}}", CT_EFORMAT, "entry of \"a\""},
        {"{\"weight_map\":{\"a\":\"\"}}", CT_EFORMAT, "entry of \"a\""},
        {"{\"weight_map\":{\"a\":\".safetensors\"}}", CT_EFORMAT, "entry of \"a\""},
        {"{\"weight_map\":{\"a\":\"../a.safetensors\"}}", CT_EFORMAT, "entry of \"a\""},
        {"{\"weight_map\":{\"a\":\"/etc/a.safetensors\"}}", CT_EFORMAT, "entry of \"a\""},
        {"{\"weight_map\":{\"a\":\"..\\\\a.safetensors\"}}", CT_EFORMAT, "entry of \"a\""},
        {"{\"weight_map\":{\"a\":\"a.safetensors\\u0000.safetensors\"}}", CT_EFORMAT,
         "entry of \"a\""},
        {"{\"weight_map\":{\"a\":\"a.bin\"}}", CT_EFORMAT, "entry of \"a\""},
        {"{\"weight_map\":{\"a\":\"gone.safetensors\"}}", CT_ENOTFOUND, "gone.safetensors"},
        {"{\"weight_map\":{\"x\":\"a.safetensors\"}}", CT_EFORMAT,
         "says that tensor \"x\" is in a.safetensors"},
        {"{\"weight_map\":{\"a\":\"a.safetensors\",\"b\":\"a.safetensors\","
         "\"c\":\"bc.safetensors\"}}", CT_EFORMAT, "says that tensor \"b\" is in a.safetensors"},
        {"{\"weight_map\":{\"a\":\"a.safetensors\",\"b\":\"ab.safetensors\"}}", CT_EFORMAT,
         "tensor \"a\" is in two files"},
        {"{\"weight_map\":{\"a\":\"broken.safetensors\"}}", CT_EFORMAT, "only 3 bytes"},
    };
    test_folder folder;
    test_folder_create(&folder);
    write_image(test_path(&folder, "a.safetensors"), ONE("a"), 2);
    write_image(test_path(&folder, "ab.safetensors"), TWO("a", "b"), 4);
    write_image(test_path(&folder, "bc.safetensors"), TWO("b", "c"), 4);
    write_text(&folder, "broken.safetensors", "abc");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_text(&folder, "model.safetensors.index.json", cases[i].index);
        ct_error error = {0};
        test_error(open_folder(&folder, &error), cases[i].status, &error, cases[i].message);
    }
    test_folder_remove(&folder);
}

static void chooses_among_files(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    ct_error error = {0};
    test_error(open_folder(&folder, &error), CT_ENOTFOUND, &error, "holds no .safetensors file");
    write_text(&folder, "readme.txt", "hello");
    write_image(test_path(&folder, "any.fp16.safetensors"), ONE("a"), 2);
    test_ok(open_folder(&folder, &error), &error);
    write_image(test_path(&folder, "second.safetensors"), ONE("a"), 2);
    test_error(open_folder(&folder, &error), CT_ENOTFOUND, &error, "2 other .safetensors files");
    write_image(test_path(&folder, "model.safetensors"), ONE("a"), 2);
    test_ok(open_folder(&folder, &error), &error);
    test_folder_remove(&folder);

    test_folder_create(&folder);
    write_image(test_path(&folder, "model-00001-of-00002.safetensors"), ONE("a"), 2);
    test_error(open_folder(&folder, &error), CT_ENOTFOUND, &error, "1 other .safetensors file:");
    test_folder_remove(&folder);
    test_error(open_folder(&folder, &error), CT_ENOTFOUND, &error, "cannot open the folder");
}

static ct_status open_directory_once(const ct_allocator *a, void *user, ct_error *error)
{
    const test_folder *folder = user;
    weights *w;
    ct_status status = weights_open_directory(&w, a, folder->path, "model", error);
    weights_close(w);
    return status;
}

static void survives_short_memory_when_reading(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    write_image(test_path(&folder, "a.safetensors"), TWO("a", "b"), 4);
    test_each_allocation(open_directory_once, &folder);
    write_image(test_path(&folder, "c.safetensors"), ONE("c"), 2);
    write_text(&folder, "model.safetensors.index.json",
               "{\"weight_map\":{\"a\":\"a.safetensors\",\"c\":\"c.safetensors\"}}");
    test_each_allocation(open_directory_once, &folder);
    test_folder_remove(&folder);
}

/* ---- Writing ---- */

static ct_status write_once(const ct_allocator *a, void *user, ct_error *error)
{
    const char *path = user;
    static const float f[] = {1, 2, 3, 4, 5, 6};
    static const unsigned char bytes[] = {7, 8, 9};
    safetensors_writer *w;
    ct_status status = safetensors_writer_open(&w, a, path, error);
    if (status != CT_OK)
        return status;
    status = safetensors_writer_metadata(w, "format", "pt", error);
    if (status == CT_OK)
        status = safetensors_writer_add(w, "bytes", DTYPE_U8, 1, (const int64_t[]){3}, bytes,
                                        error);
    if (status == CT_OK)
        status = safetensors_writer_add(w, "a \"float\"\n", DTYPE_F32, 2, (const int64_t[]){2, 3},
                                        f, error);
    if (status == CT_OK)
        status = safetensors_writer_add(w, "none", DTYPE_F64, 2, (const int64_t[]){0, 5}, NULL,
                                        error);
    if (status == CT_OK)
        status = safetensors_writer_add(w, "scalar", DTYPE_F32, 0, NULL, f, error);
    if (status == CT_OK)
        return safetensors_writer_commit(w, error);
    safetensors_writer_abort(w);
    return status;
}

static void writes_what_it_reads(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    char *path = (char *)(uintptr_t)test_path(&folder, "out.safetensors");
    ct_error error;
    test_ok(write_once(&mem_default, path, &error), &error);
    assert_int_equal(test_folder_count(&folder), 1);
    weights *w;
    test_ok(weights_open_file(&w, &mem_default, path, &error), &error);
    assert_int_equal(weights_count(w), 4);
    const weight_view *f = weights_find(w, "a \"float\"\n");
    assert_non_null(f);
    assert_int_equal(f->rank, 2);
    assert_int_equal(f->shape[1], 3);
    float six[6];
    memcpy(six, f->data, sizeof six);
    assert_true(six[5] == 6);
    /* Every tensor is aligned to its element size; the mapping itself begins on a page. */
    for (size_t i = 0; i < weights_count(w); i++) {
        const weight_view *view = weights_at(w, i);
        assert_int_equal((uintptr_t)view->data % dtype_size(view->type), 0);
    }
    assert_int_equal(weights_find(w, "bytes")->data[2], 9);
    assert_int_equal(weights_find(w, "scalar")->rank, 0);
    assert_string_equal(weights_metadata(w, "format"), "pt");
    size_t length;
    weights_header(w, 0, &length);
    assert_int_equal(length % 8, 0);
    weights_close(w);
    test_folder_remove(&folder);
}

static void refuses_bad_tensors(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    const char *path = test_path(&folder, "out.safetensors");
    safetensors_writer *w;
    ct_error error;
    test_ok(safetensors_writer_open(&w, &mem_default, path, &error), &error);
    int64_t shape[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
    test_ok(safetensors_writer_add(w, "a", DTYPE_U8, 8, shape, "x", &error), &error);
    test_error(safetensors_writer_add(w, "a", DTYPE_U8, 8, shape, "x", &error), CT_EINVAL, &error,
               "already written");
    test_error(safetensors_writer_add(w, "b", DTYPE_U8, 9, shape, "x", &error), CT_EINVAL, &error,
               "rank");
    test_error(safetensors_writer_add(w, "__metadata__", DTYPE_U8, 1, shape, "x", &error),
               CT_EINVAL, &error, "cannot be the name");
    test_error(safetensors_writer_add(w, "\xff", DTYPE_U8, 1, shape, "x", &error), CT_EINVAL,
               &error, "cannot be the name");
    shape[0] = -1;
    test_error(safetensors_writer_add(w, "b", DTYPE_U8, 1, shape, "x", &error), CT_EINVAL, &error,
               "wrong dimension 0");
    shape[0] = shape[1] = INT64_MAX;
    test_error(safetensors_writer_add(w, "b", DTYPE_U8, 2, shape, "x", &error), CT_EINVAL, &error,
               "wrong dimension 1");
    test_ok(safetensors_writer_metadata(w, "k", "v", &error), &error);
    test_error(safetensors_writer_metadata(w, "k", "v", &error), CT_EINVAL, &error,
               "already written");
    /* A refused tensor leaves no trace. */
    test_ok(safetensors_writer_commit(w, &error), &error);
    weights *r;
    test_ok(weights_open_file(&r, &mem_default, path, &error), &error);
    assert_int_equal(weights_count(r), 1);
    weights_close(r);
    test_error(safetensors_writer_open(&w, &mem_default, folder.path, &error), CT_EIO, &error,
               "is a directory");
    assert_null(w);
    test_error(safetensors_writer_open(&w, &mem_default, "/dev/null", &error), CT_EINVAL, &error,
               "not a regular file");
    safetensors_writer_abort(NULL);
    test_folder_remove(&folder);
}

static void aborting_keeps_the_old_file(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    const char *path = test_path(&folder, "out.safetensors");
    write_text(&folder, "out.safetensors", "old");
    safetensors_writer *w;
    ct_error error;
    test_ok(safetensors_writer_open(&w, &mem_default, path, &error), &error);
    test_ok(safetensors_writer_add(w, "a", DTYPE_U8, 1, (const int64_t[]){1}, "x", &error), &error);
    safetensors_writer_abort(w);
    size_t size;
    unsigned char *data = test_read_file(path, &size);
    assert_string_equal((const char *)data, "old");
    free(data);
    assert_int_equal(test_folder_count(&folder), 1);
    test_folder_remove(&folder);
}

static void survives_short_memory_when_writing(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    char *path = (char *)(uintptr_t)test_path(&folder, "out.safetensors");
    test_each_allocation(write_once, path);
    assert_int_equal(test_folder_count(&folder), 1);
    test_folder_remove(&folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_tensors),
        cmocka_unit_test(reads_file_without_tensors),
        cmocka_unit_test(refuses_hostile_headers),
        cmocka_unit_test(refuses_hostile_files),
        cmocka_unit_test(visitor_can_stop),
        cmocka_unit_test(opens_one_file),
        cmocka_unit_test(opens_shards),
        cmocka_unit_test(refuses_bad_indexes),
        cmocka_unit_test(chooses_among_files),
        cmocka_unit_test(survives_short_memory_when_reading),
        cmocka_unit_test(writes_what_it_reads),
        cmocka_unit_test(refuses_bad_tensors),
        cmocka_unit_test(aborting_keeps_the_old_file),
        cmocka_unit_test(survives_short_memory_when_writing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
