#define _POSIX_C_SOURCE 200809L
/* Reading checks everything that the reference implementation checks, because the offsets decide
 * what memory is touched later; writing orders the data so that every tensor is aligned. */
#include "io/safetensors.h"
#include "core/mem.h"
#include "core/utf8.h"
#include "io/jsonwrite.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The limit of the reference implementation. It also bounds the number of tensors. */
#define HEADER_MAXIMUM ((size_t)100000000)
#define PREFIX 8 /* bytes before the header: its length */
#define METADATA "__metadata__"

#define DAMAGED "the file is damaged or incomplete: download it again"
/* Names come from files: only their beginning is shown, so that the advice behind them fits. */
#define NAME "tensor \"%.120s\""

/* ---- Reading ---------------------------------------------------------------------------- */

typedef struct entry {
    weight_view view;
    size_t begin, end; /* in the data */
} entry;

typedef struct parser {
    const char *path;
    const unsigned char *data; /* behind the header */
    size_t data_size;
    entry *entries;
    size_t count, capacity;
} parser;

static ct_status check_header(const unsigned char *data, size_t size, const char *path,
                              size_t *header_length, ct_error *error)
{
    if (size < PREFIX)
        return error_set(error, CT_EFORMAT,
                         "%s has only %zu bytes, too few for a safetensors file; " DAMAGED, path,
                         size);
    if (!memcmp(data, "version ", 8))
        return error_set(error, CT_EFORMAT,
                         "%s is a Git LFS pointer, not the weights themselves: fetch them with "
                         "\"git lfs pull\"",
                         path);
    uint64_t length = 0;
    for (int i = PREFIX - 1; i >= 0; i--)
        length = length << 8 | data[i];
    if (length > size - PREFIX)
        return error_set(error, CT_EFORMAT,
                         "%s: the header should have %" PRIu64 " bytes, but the whole file has "
                         "%zu; this is not a safetensors file, or " DAMAGED,
                         path, length, size);
    if (length > HEADER_MAXIMUM)
        return error_set(error, CT_EFORMAT,
                         "%s: the header has %" PRIu64 " bytes, more than the %zu allowed", path,
                         length, HEADER_MAXIMUM);
    if (length < 2 || data[PREFIX] != '{')
        return error_set(
            error, CT_EFORMAT,
            "%s: the header is not a JSON object; this is not a safetensors file, or " DAMAGED,
            path);
    *header_length = (size_t)length;
    return CT_OK;
}

static ct_status parse_type(const parser *p, weight_view *view, const json_value *value,
                            ct_error *error)
{
    size_t length;
    const char *text = json_get_string(value, &length);
    if (!text)
        return error_set(error, CT_EFORMAT, "%s: " NAME " has no dtype; " DAMAGED, p->path,
                         view->name);
    if (strlen(text) != length || !dtype_parse(text, &view->type))
        return error_set(error, CT_EUNSUPPORTED,
                         "%s: " NAME " has dtype \"%.40s\", which this version cannot read; use a "
                         "copy of the model in BF16, F16 or F32",
                         p->path, view->name, text);
    return CT_OK;
}

/* *bytes is the size that shape and dtype ask for. */
static ct_status parse_shape(const parser *p, weight_view *view, const json_value *value,
                             size_t *bytes, ct_error *error)
{
    if (!value || json_get_kind(value) != JSON_KIND_ARRAY)
        return error_set(error, CT_EFORMAT, "%s: " NAME " has no shape; " DAMAGED, p->path,
                         view->name);
    size_t rank = json_size(value);
    if (rank > WEIGHT_MAX_RANK)
        return error_set(error, CT_EUNSUPPORTED,
                         "%s: " NAME " has %zu dimensions, more than the %d that can be read",
                         p->path, view->name, rank, WEIGHT_MAX_RANK);
    *bytes = dtype_size(view->type);
    view->rank = (int)rank;
    for (size_t i = 0; i < rank; i++) {
        int64_t n;
        if (!json_get_integer(json_at(value, i), &n) || n < 0)
            return error_set(error, CT_EFORMAT,
                             "%s: dimension %zu of " NAME
                             " is not a whole number from 0 up; " DAMAGED,
                             p->path, i, view->name);
        if ((uint64_t)n > SIZE_MAX || !size_mul(*bytes, (size_t)n, bytes))
            return error_set(error, CT_EFORMAT,
                             "%s: the dimensions of " NAME " are too large; " DAMAGED, p->path,
                             view->name);
        view->shape[i] = n;
    }
    return CT_OK;
}

static ct_status parse_offsets(const parser *p, entry *e, const json_value *value, size_t bytes,
                               ct_error *error)
{
    const char *name = e->view.name;
    int64_t begin, end;
    if (!value || json_get_kind(value) != JSON_KIND_ARRAY || json_size(value) != 2 ||
        !json_get_integer(json_at(value, 0), &begin) ||
        !json_get_integer(json_at(value, 1), &end) || begin < 0 || end < begin)
        return error_set(error, CT_EFORMAT,
                         "%s: data_offsets of " NAME " are not two rising whole numbers; " DAMAGED,
                         p->path, name);
    if ((uint64_t)end > p->data_size)
        return error_set(error, CT_EFORMAT,
                         "%s: " NAME " ends at byte %" PRId64 " of the data, but there are only "
                         "%zu; " DAMAGED,
                         p->path, name, end, p->data_size);
    e->begin = (size_t)begin;
    e->end = (size_t)end;
    if (e->end - e->begin != bytes)
        return error_set(error, CT_EFORMAT,
                         "%s: " NAME
                         " has %zu bytes of data, but its shape and dtype need %zu; " DAMAGED,
                         p->path, name, e->end - e->begin, bytes);
    return CT_OK;
}

static ct_status parse_metadata(void *user, const char *key, const json_value *value,
                                ct_error *error)
{
    const parser *p = user;
    if (!json_get_string(value, NULL))
        return error_set(error, CT_EFORMAT,
                         "%s: " METADATA " member \"%.120s\" is %s instead of a string; " DAMAGED,
                         p->path, key, json_kind_name(json_get_kind(value)));
    return CT_OK;
}

static ct_status parse_member(void *user, const char *key, const json_value *value, ct_error *error)
{
    parser *p = user;
    json_kind kind = json_get_kind(value);
    if (!strcmp(key, METADATA) && kind == JSON_KIND_NULL)
        return CT_OK;
    if (kind != JSON_KIND_OBJECT)
        return error_set(error, CT_EFORMAT,
                         "%s: header member \"%.120s\" is %s instead of an object; " DAMAGED,
                         p->path, key, json_kind_name(kind));
    if (!strcmp(key, METADATA))
        return json_each(value, parse_metadata, p, error);
    if (p->count == p->capacity)
        return error_set(error, CT_EINTERNAL, "%s: more tensors than members", p->path);
    entry *e = &p->entries[p->count];
    *e = (entry){.view.name = key};
    size_t bytes;
    ct_status status = parse_type(p, &e->view, json_get(value, "dtype"), error);
    if (status == CT_OK)
        status = parse_shape(p, &e->view, json_get(value, "shape"), &bytes, error);
    if (status == CT_OK)
        status = parse_offsets(p, e, json_get(value, "data_offsets"), bytes, error);
    if (status != CT_OK)
        return status;
    e->view.data = p->data + e->begin;
    e->view.bytes = bytes;
    p->count++;
    return CT_OK;
}

static int compare_entries(const void *left, const void *right)
{
    const entry *a = left, *b = right;
    if (a->begin != b->begin)
        return a->begin < b->begin ? -1 : 1;
    if (a->end != b->end)
        return a->end < b->end ? -1 : 1;
    return strcmp(a->view.name, b->view.name);
}

/* In the order of the data each tensor must begin where the one before it ends. */
static ct_status check_layout(const parser *p, ct_error *error)
{
    size_t at = 0;
    for (size_t i = 0; i < p->count; i++) {
        const entry *e = &p->entries[i];
        if (e->begin < at)
            return error_set(error, CT_EFORMAT, "%s: " NAME " overlaps " NAME "; " DAMAGED, p->path,
                             e->view.name, p->entries[i - 1].view.name);
        if (e->begin > at)
            return error_set(error, CT_EFORMAT,
                             "%s: %zu bytes before " NAME " belong to no tensor; " DAMAGED, p->path,
                             e->begin - at, e->view.name);
        at = e->end;
    }
    if (at != p->data_size)
        return error_set(error, CT_EFORMAT,
                         "%s: %zu bytes after the last tensor belong to none; " DAMAGED, p->path,
                         p->data_size - at);
    return CT_OK;
}

static ct_status parse_header(parser *p, const ct_allocator *a, const json_value *root,
                              ct_error *error)
{
    p->capacity = json_size(root);
    p->entries = mem_array(a, p->capacity, sizeof *p->entries);
    if (!p->entries)
        return error_memory(error, p->capacity * sizeof *p->entries, p->path);
    ct_status status = json_each(root, parse_member, p, error);
    if (status != CT_OK)
        return status;
    if (p->count)
        qsort(p->entries, p->count, sizeof *p->entries, compare_entries);
    return check_layout(p, error);
}

ct_status safetensors_parse(const unsigned char *data, size_t size, const char *path,
                            const ct_allocator *a, json_value **root,
                            ct_status (*visit)(void *user, const weight_view *view,
                                               ct_error *error),
                            void *user, ct_error *error)
{
    *root = NULL;
    size_t length = 0;
    ct_status status = check_header(data, size, path, &length, error);
    if (status != CT_OK)
        return status;
    json_value *parsed;
    ct_error inner = {0};
    status = json_parse(&parsed, (const char *)data + PREFIX, length, "the header", &inner);
    if (status != CT_OK)
        return error_set(error, status, "%s: %.300s%s", path, inner.message,
                         status == CT_EFORMAT ? "; " DAMAGED : "");
    parser p = {.path = path, .data = data + PREFIX + length, .data_size = size - PREFIX - length};
    status = parse_header(&p, a, parsed, error);
    for (size_t i = 0; status == CT_OK && i < p.count; i++)
        status = visit(user, &p.entries[i].view, error);
    if (p.entries)
        mem_free(a, p.entries);
    if (status == CT_OK)
        *root = parsed;
    else
        json_free(parsed);
    return status;
}

/* ---- Writing ---------------------------------------------------------------------------- */

typedef struct record {
    char *name;
    dtype type;
    int rank;
    int64_t shape[WEIGHT_MAX_RANK];
    size_t at, bytes; /* in the data file; or, once the layout is known, in the data */
    size_t index;     /* the order of adding */
} record;

typedef struct note {
    char *key, *value;
} note;

struct safetensors_writer {
    const ct_allocator *allocator;
    file_output out;  /* opened first, so that a path that cannot be written fails at once */
    file_output data; /* the tensors in the order of adding; never renamed */
    size_t data_size;
    size_t header_size; /* with its length; 0 before the layout is known, of declared tensors */
    size_t put;         /* bytes of declared tensors that are written */
    ct_status failed;   /* of the data file, whose content is unknown afterwards */
    record *records;
    size_t record_count, record_capacity;
    note *notes;
    size_t note_count, note_capacity;
};

static void writer_free(safetensors_writer *w)
{
    const ct_allocator *a = w->allocator;
    file_output_abort(&w->data);
    file_output_abort(&w->out);
    for (size_t i = 0; i < w->record_count; i++)
        mem_free(a, w->records[i].name);
    for (size_t i = 0; i < w->note_count; i++) {
        mem_free(a, w->notes[i].key);
        mem_free(a, w->notes[i].value);
    }
    mem_free(a, w->records);
    mem_free(a, w->notes);
    mem_free(a, w);
}

ct_status safetensors_writer_open(safetensors_writer **out, const ct_allocator *a, const char *path,
                                  ct_error *error)
{
    *out = NULL;
    safetensors_writer *w = mem_zero_array(a, 1, sizeof *w);
    if (!w)
        return error_memory(error, sizeof *w, path);
    w->allocator = a;
    ct_status status = file_output_open(&w->out, path, error);
    if (status == CT_OK && !w->out.temporary[0])
        status = error_set(error, CT_EINVAL, "cannot write %s: it is not a regular file", path);
    if (status == CT_OK)
        status = file_output_open(&w->data, path, error);
    if (status != CT_OK) {
        writer_free(w);
        return status;
    }
    *out = w;
    return CT_OK;
}

/* Room for one more element; false when memory is short. */
static bool grow(const ct_allocator *a, void **array, size_t *capacity, size_t count, size_t size)
{
    if (count < *capacity)
        return true;
    size_t more = *capacity ? *capacity * 2 : 16, bytes;
    if (!size_mul(more, size, &bytes))
        return false;
    void *larger = mem_grow(a, *array, count * size, bytes);
    if (!larger)
        return false;
    *array = larger;
    *capacity = more;
    return true;
}

static ct_status check_record(const safetensors_writer *w, const char *name, dtype type, int rank,
                              const int64_t *shape, size_t *bytes, ct_error *error)
{
    const char *path = w->out.path;
    if (!utf8_valid(name, strlen(name)) || !strcmp(name, METADATA))
        return error_set(error, CT_EINVAL, "%s: \"%.120s\" cannot be the name of a tensor", path,
                         name);
    if ((unsigned)type >= DTYPE_COUNT || rank < 0 || rank > WEIGHT_MAX_RANK)
        return error_set(error, CT_EINVAL, "%s: " NAME " has a wrong dtype or rank", path, name);
    *bytes = dtype_size(type);
    for (int i = 0; i < rank; i++)
        if (shape[i] < 0 || (uint64_t)shape[i] > SIZE_MAX ||
            !size_mul(*bytes, (size_t)shape[i], bytes))
            return error_set(error, CT_EINVAL, "%s: " NAME " has a wrong dimension %d", path, name,
                             i);
    if (*bytes > (uint64_t)INT64_MAX - w->data_size)
        return error_set(error, CT_EINVAL, "%s: " NAME " is too large", path, name);
    for (size_t i = 0; i < w->record_count; i++)
        if (!strcmp(w->records[i].name, name))
            return error_set(error, CT_EINVAL, "%s: " NAME " was already written", path, name);
    return CT_OK;
}

/* A record whose data begin at the end of all others. */
static ct_status add_record(safetensors_writer *w, const char *name, dtype type, int rank,
                            const int64_t *shape, ct_error *error)
{
    size_t bytes;
    ct_status status = check_record(w, name, type, rank, shape, &bytes, error);
    if (status != CT_OK)
        return status;
    void *records = w->records;
    bool room =
        grow(w->allocator, &records, &w->record_capacity, w->record_count, sizeof *w->records);
    w->records = records;
    char *copy = room ? mem_strdup(w->allocator, name) : NULL;
    if (!copy)
        return error_memory(error, sizeof *w->records, w->out.path);
    record *r = &w->records[w->record_count];
    *r = (record){.name = copy,
                  .type = type,
                  .rank = rank,
                  .at = w->data_size,
                  .bytes = bytes,
                  .index = w->record_count};
    for (int i = 0; i < rank; i++)
        r->shape[i] = shape[i];
    w->data_size += bytes;
    w->record_count++;
    return CT_OK;
}

ct_status safetensors_writer_add(safetensors_writer *w, const char *name, dtype type, int rank,
                                 const int64_t *shape, const void *data, ct_error *error)
{
    if (w->failed != CT_OK)
        return error_set(error, w->failed, "cannot write %s: an earlier write failed", w->out.path);
    ct_status status = add_record(w, name, type, rank, shape, error);
    if (status != CT_OK)
        return status;
    size_t bytes = w->records[w->record_count - 1].bytes;
    if (bytes && fwrite(data, 1, bytes, w->data.stream) != bytes)
        w->failed = error_set(error, CT_EIO, "cannot write %s: %s", w->out.path, strerror(errno));
    return w->failed;
}

ct_status safetensors_writer_metadata(safetensors_writer *w, const char *key, const char *value,
                                      ct_error *error)
{
    for (size_t i = 0; i < w->note_count; i++)
        if (!strcmp(w->notes[i].key, key))
            return error_set(error, CT_EINVAL, "%s: metadata \"%.120s\" was already written",
                             w->out.path, key);
    void *notes = w->notes;
    bool room = grow(w->allocator, &notes, &w->note_capacity, w->note_count, sizeof *w->notes);
    w->notes = notes;
    note n = {0};
    if (room) {
        n.key = mem_strdup(w->allocator, key);
        n.value = mem_strdup(w->allocator, value);
    }
    if (!n.key || !n.value) {
        mem_free(w->allocator, n.key);
        mem_free(w->allocator, n.value);
        return error_memory(error, strlen(key) + strlen(value), w->out.path);
    }
    w->notes[w->note_count++] = n;
    return CT_OK;
}

/* Larger elements come first, as in files of the reference implementation: when the data begins at
 * a multiple of 8, every tensor is then aligned to its own element size, which readers that map the
 * file without copying rely on. */
static int compare_records(const void *left, const void *right)
{
    const record *a = left, *b = right;
    size_t size_a = dtype_size(a->type), size_b = dtype_size(b->type);
    if (size_a != size_b)
        return size_a > size_b ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

static void write_header(const safetensors_writer *w, strbuf *out)
{
    json_writer json;
    json_write_init(&json, out);
    json_write_object(&json);
    if (w->note_count) {
        json_write_key(&json, METADATA);
        json_write_object(&json);
        for (size_t i = 0; i < w->note_count; i++) {
            json_write_key(&json, w->notes[i].key);
            json_write_string(&json, w->notes[i].value);
        }
        json_write_object_end(&json);
    }
    size_t at = 0;
    for (size_t i = 0; i < w->record_count; i++) {
        const record *r = &w->records[i];
        json_write_key(&json, r->name);
        json_write_object(&json);
        json_write_key(&json, "dtype");
        json_write_string(&json, dtype_name(r->type));
        json_write_key(&json, "shape");
        json_write_array(&json);
        for (int d = 0; d < r->rank; d++)
            json_write_integer(&json, r->shape[d]);
        json_write_array_end(&json);
        json_write_key(&json, "data_offsets");
        json_write_array(&json);
        json_write_unsigned(&json, at);
        json_write_unsigned(&json, at + r->bytes);
        json_write_array_end(&json);
        json_write_object_end(&json);
        at += r->bytes;
    }
    json_write_object_end(&json);
    while (strbuf_ok(out) && out->length % 8)
        strbuf_puts(out, " ");
}

static ct_status copy_data(safetensors_writer *w, ct_error *error)
{
    errno = 0;
    if (fflush(w->data.stream) != 0 || ferror(w->data.stream))
        return error_set(error, CT_EIO, "cannot write %s: %s", w->out.path,
                         strerror(errno ? errno : EIO));
    file_map map;
    ct_status status = file_map_open(&map, w->data.temporary, error);
    if (status != CT_OK)
        return status;
    if (map.size != w->data_size)
        status = error_set(error, CT_EIO, "cannot write %s: its temporary file was changed",
                           w->out.path);
    for (size_t i = 0; status == CT_OK && i < w->record_count; i++) {
        const record *r = &w->records[i];
        if (r->bytes && fwrite(map.data + r->at, 1, r->bytes, w->out.stream) != r->bytes)
            status = error_set(error, CT_EIO, "cannot write %s: %s", w->out.path, strerror(errno));
    }
    file_map_close(&map);
    return status;
}

/* The length and the header; *size is that of both. */
static ct_status put_header(safetensors_writer *w, size_t *size, ct_error *error)
{
    strbuf header;
    strbuf_init(&header, w->allocator, HEADER_MAXIMUM);
    write_header(w, &header);
    ct_status status = CT_OK;
    unsigned char prefix[PREFIX];
    for (int i = 0; i < PREFIX; i++)
        prefix[i] = (unsigned char)((uint64_t)header.length >> (8 * i));
    if (!strbuf_ok(&header))
        status = error_memory(error, header.length, "the header of a safetensors file");
    else if (fwrite(prefix, 1, PREFIX, w->out.stream) != PREFIX ||
             fwrite(header.data, 1, header.length, w->out.stream) != header.length)
        status = error_set(error, CT_EIO, "cannot write %s: %s", w->out.path, strerror(errno));
    *size = PREFIX + header.length;
    strbuf_free(&header);
    return status;
}

static void sort_records(safetensors_writer *w)
{
    if (w->record_count)
        qsort(w->records, w->record_count, sizeof *w->records, compare_records);
}

static ct_status write_all(safetensors_writer *w, ct_error *error)
{
    size_t size;
    sort_records(w);
    ct_status status = put_header(w, &size, error);
    return status == CT_OK ? copy_data(w, error) : status;
}

/* ---- Declared tensors ------------------------------------------------------------------- */

ct_status safetensors_writer_declare(safetensors_writer *w, const char *name, dtype type, int rank,
                                     const int64_t *shape, ct_error *error)
{
    return add_record(w, name, type, rank, shape, error);
}

ct_status safetensors_writer_begin(safetensors_writer *w, ct_error *error)
{
    sort_records(w);
    size_t at = 0;
    for (size_t i = 0; i < w->record_count; i++) {
        w->records[i].at = at;
        at += w->records[i].bytes;
    }
    return put_header(w, &w->header_size, error);
}

static ct_status seek(safetensors_writer *w, size_t at, ct_error *error)
{
    if (fseeko(w->out.stream, (off_t)at, SEEK_SET) == 0)
        return CT_OK;
    return error_set(error, CT_EIO, "cannot write %s: %s", w->out.path, strerror(errno));
}

ct_status safetensors_writer_put(safetensors_writer *w, const char *name, size_t at,
                                 const void *data, size_t bytes, ct_error *error)
{
    const record *r = NULL;
    for (size_t i = 0; !r && i < w->record_count; i++)
        r = strcmp(w->records[i].name, name) ? NULL : &w->records[i];
    if (!r || !w->header_size || at > r->bytes || bytes > r->bytes - at)
        return error_set(error, CT_EINVAL, "%s: " NAME " has no such bytes", w->out.path, name);
    ct_status status = seek(w, w->header_size + r->at + at, error);
    if (status == CT_OK && bytes && fwrite(data, 1, bytes, w->out.stream) != bytes)
        status = error_set(error, CT_EIO, "cannot write %s: %s", w->out.path, strerror(errno));
    w->put += bytes;
    return status;
}

ct_status safetensors_writer_replace(safetensors_writer *w, const char *key, const char *value,
                                     ct_error *error)
{
    for (size_t i = 0; i < w->note_count; i++)
        if (!strcmp(w->notes[i].key, key) && strlen(w->notes[i].value) == strlen(value)) {
            memcpy(w->notes[i].value, value, strlen(value));
            return CT_OK;
        }
    return error_set(error, CT_EINVAL, "%s: there is no metadata \"%.120s\" of this length",
                     w->out.path, key);
}

/* Writes the header again, with the metadata as it is now. */
static ct_status complete(safetensors_writer *w, ct_error *error)
{
    size_t size = 0;
    if (w->put != w->data_size)
        return error_set(error, CT_EINVAL, "%s: %zu bytes were put instead of %zu", w->out.path,
                         w->put, w->data_size);
    ct_status status = seek(w, 0, error);
    if (status == CT_OK)
        status = put_header(w, &size, error);
    if (status == CT_OK && size != w->header_size)
        status =
            error_set(error, CT_EINTERNAL, "%s: the header has another length now", w->out.path);
    return status;
}

ct_status safetensors_writer_commit(safetensors_writer *w, ct_error *error)
{
    ct_status status = w->failed;
    if (status != CT_OK)
        error_set(error, status, "cannot write %s: an earlier write failed", w->out.path);
    else
        status = w->header_size ? complete(w, error) : write_all(w, error);
    if (status == CT_OK)
        status = file_output_commit(&w->out, error);
    writer_free(w);
    return status;
}

void safetensors_writer_abort(safetensors_writer *w)
{
    if (w)
        writer_free(w);
}
