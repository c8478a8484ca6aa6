/* The files of a component, and one sorted table of their tensors. */
#define _DEFAULT_SOURCE
#include "io/weights.h"
#include "core/mem.h"
#include "core/strbuf.h"
#include "io/safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define INDEX_MAXIMUM ((size_t)64 << 20)
#define MAX_FILES 4096 /* each holds a mapping; the largest real models have some dozens */
#define MAX_FILE_NAME 255
#define SUFFIX ".safetensors"
#define DAMAGED "the model is damaged or incomplete: download it again"

typedef struct weight_file {
    char *path;
    file_map map;
    json_value *header; /* owns the names of the views */
    size_t header_length;
} weight_file;

struct weights {
    const ct_allocator *allocator;
    char *source;
    weight_file *files;
    int file_count;
    weight_view *views; /* sorted by name */
    size_t count, capacity;
    void **blocks; /* of weights_allocate */
    size_t block_count, block_capacity;
    uint64_t allocated;
};

static int compare_views(const void *left, const void *right)
{
    const weight_view *a = left, *b = right;
    int order = strcmp(a->name, b->name);
    return order ? order : (a->file > b->file) - (a->file < b->file);
}

static ct_status collect(void *user, const weight_view *view, ct_error *error)
{
    weights *w = user;
    if (w->count == w->capacity) {
        size_t more = w->capacity ? w->capacity * 2 : 256, bytes;
        weight_view *larger = NULL;
        if (size_mul(more, sizeof *w->views, &bytes))
            larger = mem_grow(w->allocator, w->views, w->count * sizeof *w->views, bytes);
        if (!larger)
            return error_memory(error, w->count * 2 * sizeof *w->views, w->source);
        w->views = larger;
        w->capacity = more;
    }
    w->views[w->count] = *view;
    w->views[w->count].file = w->file_count;
    w->count++;
    return CT_OK;
}

/* Maps a file and appends its tensors; takes path. */
static ct_status add_file(weights *w, char *path, ct_error *error)
{
    if (!path)
        return error_memory(error, strlen(w->source) + MAX_FILE_NAME, "a path");
    weight_file *f = &w->files[w->file_count];
    *f = (weight_file){.path = path};
    ct_status status = file_map_open(&f->map, path, error);
    if (status == CT_OK)
        status = safetensors_parse(f->map.data, f->map.size, path, w->allocator, &f->header,
                                   collect, w, error);
    if (status != CT_OK) {
        file_map_close(&f->map);
        mem_free(w->allocator, path);
        *f = (weight_file){0};
        return status;
    }
    for (int i = 7; i >= 0; i--)
        f->header_length = f->header_length << 8 | f->map.data[i];
    w->file_count++;
    return CT_OK;
}

static ct_status finish(weights *w, ct_error *error)
{
    if (w->count)
        qsort(w->views, w->count, sizeof *w->views, compare_views);
    for (size_t i = 1; i < w->count; i++)
        if (!strcmp(w->views[i - 1].name, w->views[i].name))
            return error_set(error, CT_EFORMAT,
                             "%s: tensor \"%.120s\" is in two files, %s and %s; " DAMAGED,
                             w->source, w->views[i].name, w->files[w->views[i - 1].file].path,
                             w->files[w->views[i].file].path);
    return CT_OK;
}

static ct_status create(weights **out, const ct_allocator *a, const char *source, size_t files,
                        ct_error *error)
{
    weights *w = mem_zero_array(a, 1, sizeof *w);
    if (!w)
        return error_memory(error, sizeof *w, source);
    w->allocator = a;
    w->source = mem_strdup(a, source);
    w->files = mem_zero_array(a, files, sizeof *w->files);
    if (!w->source || !w->files) {
        weights_close(w);
        return error_memory(error, files * sizeof *w->files, source);
    }
    *out = w;
    return CT_OK;
}

/* One file; takes path, which may be NULL when memory was short. */
static ct_status open_single(weights **out, const ct_allocator *a, const char *source, char *path,
                             ct_error *error)
{
    weights *w = NULL;
    ct_status status = create(&w, a, source, 1, error);
    if (status != CT_OK) {
        mem_free(a, path);
        return status;
    }
    status = add_file(w, path, error);
    if (status == CT_OK)
        status = finish(w, error);
    if (status != CT_OK)
        weights_close(w);
    else
        *out = w;
    return status;
}

ct_status weights_open_file(weights **out, const ct_allocator *a, const char *path, ct_error *error)
{
    *out = NULL;
    return open_single(out, a, path, mem_strdup(a, path), error);
}

/* ---- Shards behind an index ------------------------------------------------------------- */

typedef struct index_entry {
    const char *name, *shard; /* strings of the index */
} index_entry;

typedef struct shard_index {
    const char *path;
    json_value *root;
    index_entry *entries; /* sorted by shard, then by name */
    size_t count;
    size_t shards; /* different ones */
} shard_index;

/* A shard lies beside its index: with a path in the name, a model could open any file. */
static bool is_plain_name(const char *name, size_t length)
{
    return length > strlen(SUFFIX) && length <= MAX_FILE_NAME && strlen(name) == length &&
           !strpbrk(name, "/\\") && !strcmp(name + length - strlen(SUFFIX), SUFFIX);
}

static ct_status add_index_entry(void *user, const char *key, const json_value *value,
                                 ct_error *error)
{
    shard_index *index = user;
    size_t length;
    const char *shard = json_get_string(value, &length);
    if (!shard || !is_plain_name(shard, length))
        return error_set(error, CT_EFORMAT,
                         "%s: the entry of \"%.120s\" is not the name of a " SUFFIX
                         " file in the same folder; " DAMAGED,
                         index->path, key);
    index->entries[index->count++] = (index_entry){key, shard};
    return CT_OK;
}

static int compare_index(const void *left, const void *right)
{
    const index_entry *a = left, *b = right;
    int order = strcmp(a->shard, b->shard);
    return order ? order : strcmp(a->name, b->name);
}

static ct_status index_read(shard_index *index, const ct_allocator *a, ct_error *error)
{
    ct_status status = json_read(&index->root, a, index->path, INDEX_MAXIMUM, error);
    if (status != CT_OK)
        return status;
    const json_value *map = json_get(index->root, "weight_map");
    if (!map || json_get_kind(map) != JSON_KIND_OBJECT || json_size(map) == 0)
        return error_set(error, CT_EFORMAT,
                         "%s has no \"weight_map\" object with the names of the tensors; " DAMAGED,
                         index->path);
    index->entries = mem_array(a, json_size(map), sizeof *index->entries);
    if (!index->entries)
        return error_memory(error, json_size(map) * sizeof *index->entries, index->path);
    status = json_each(map, add_index_entry, index, error);
    if (status != CT_OK)
        return status;
    qsort(index->entries, index->count, sizeof *index->entries, compare_index);
    for (size_t i = 0; i < index->count; i++)
        if (i == 0 || strcmp(index->entries[i - 1].shard, index->entries[i].shard))
            index->shards++;
    if (index->shards > MAX_FILES)
        return error_set(error, CT_EFORMAT, "%s names %zu files, more than the %d allowed",
                         index->path, index->shards, MAX_FILES);
    return CT_OK;
}

/* Every tensor of the index must be in the file that the index says. A tensor that the index does
 * not name stays in the table: the reference loads whole shards, too. */
static ct_status check_index(const weights *w, const shard_index *index, ct_error *error)
{
    int file = -1;
    for (size_t i = 0; i < index->count; i++) {
        const index_entry *e = &index->entries[i];
        if (i == 0 || strcmp(index->entries[i - 1].shard, e->shard))
            file++;
        const weight_view *view = weights_find(w, e->name);
        if (!view || view->file != file)
            return error_set(error, CT_EFORMAT,
                             "%s says that tensor \"%.120s\" is in %s, but it is not; " DAMAGED,
                             index->path, e->name, e->shard);
    }
    return CT_OK;
}

static ct_status open_shards(weights *w, const shard_index *index, const char *directory,
                             ct_error *error)
{
    for (size_t i = 0; i < index->count; i++) {
        const char *shard = index->entries[i].shard;
        if (i > 0 && !strcmp(index->entries[i - 1].shard, shard))
            continue;
        ct_error inner = {0};
        ct_status status = add_file(w, path_join(w->allocator, directory, shard), &inner);
        if (status == CT_ENOTFOUND)
            return error_set(error, status, "%s, which %s names; " DAMAGED, inner.message,
                             index->path);
        if (status != CT_OK)
            return error_set(error, status, "%s", inner.message);
    }
    ct_status status = finish(w, error);
    return status == CT_OK ? check_index(w, index, error) : status;
}

static ct_status open_index(weights **out, const ct_allocator *a, const char *directory,
                            const char *path, ct_error *error)
{
    shard_index index = {.path = path};
    weights *w = NULL;
    ct_status status = index_read(&index, a, error);
    if (status == CT_OK)
        status = create(&w, a, directory, index.shards, error);
    if (status == CT_OK)
        status = open_shards(w, &index, directory, error);
    mem_free(a, index.entries);
    json_free(index.root);
    if (status != CT_OK)
        weights_close(w);
    else
        *out = w;
    return status;
}

/* ---- A directory ------------------------------------------------------------------------ */

/* "model-00001-of-00003.safetensors" */
static bool is_shard_name(const char *name)
{
    const char *of = strstr(name, "-of-");
    return of && of > name && of[-1] >= '0' && of[-1] <= '9' && of[4] >= '0' && of[4] <= '9';
}

/* The only weight file of a directory that has none of the usual names. */
static ct_status find_single(char **path, const ct_allocator *a, const char *directory,
                             const char *stem, ct_error *error)
{
    *path = NULL;
    DIR *dir = opendir(directory);
    if (!dir)
        return error_set(error, errno == ENOENT || errno == ENOTDIR ? CT_ENOTFOUND : CT_EIO,
                         "cannot open the folder %s: %s", directory, strerror(errno));
    char name[MAX_FILE_NAME + 1] = "";
    int found = 0;
    for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
        size_t length = strlen(e->d_name);
        if (!is_plain_name(e->d_name, length) || e->d_name[0] == '.')
            continue;
        memcpy(name, e->d_name, length + 1);
        found++;
    }
    closedir(dir);
    if (found == 0)
        return error_set(error, CT_ENOTFOUND,
                         "%s holds no " SUFFIX " file (%s" SUFFIX " was expected); download the "
                         "model in safetensors format",
                         directory, stem);
    if (found > 1 || is_shard_name(name))
        return error_set(error, CT_ENOTFOUND,
                         "%s has neither %s" SUFFIX ".index.json nor %s" SUFFIX
                         ", and %d other " SUFFIX " file%s: it is not clear what to load; " DAMAGED,
                         directory, stem, stem, found, found == 1 ? "" : "s");
    *path = path_join(a, directory, name);
    return *path ? CT_OK : error_memory(error, strlen(directory) + sizeof name, "a path");
}

/* Opens what is there under the usual names of a stem; *out stays NULL when nothing is. */
static ct_status open_stem(weights **out, const ct_allocator *a, const char *directory,
                           const char *stem, ct_error *error)
{
    strbuf name;
    strbuf_init(&name, a, 1024);
    strbuf_puts(&name, stem);
    strbuf_puts(&name, SUFFIX ".index.json");
    char *index = strbuf_ok(&name) ? path_join(a, directory, name.data) : NULL;
    strbuf_free(&name);
    if (!index)
        return error_memory(error, strlen(directory) + strlen(stem), "a path");
    if (file_exists(index)) {
        ct_status status = open_index(out, a, directory, index, error);
        mem_free(a, index);
        return status;
    }
    index[strlen(index) - strlen(".index.json")] = 0;
    if (file_exists(index))
        return open_single(out, a, directory, index, error);
    mem_free(a, index);
    return CT_OK;
}

ct_status weights_open_directory(weights **out, const ct_allocator *a, const char *directory,
                                 const char *stem, ct_error *error)
{
    *out = NULL;
    ct_status status = open_stem(out, a, directory, stem, error);
    if (status == CT_OK && !*out && strcmp(stem, "model") != 0)
        status = open_stem(out, a, directory, "model", error);
    if (status != CT_OK || *out)
        return status;
    char *path;
    status = find_single(&path, a, directory, stem, error);
    return status == CT_OK ? open_single(out, a, directory, path, error) : status;
}

void weights_close(weights *w)
{
    if (!w)
        return;
    const ct_allocator *a = w->allocator;
    for (int i = 0; i < w->file_count; i++) {
        json_free(w->files[i].header);
        file_map_close(&w->files[i].map);
        mem_free(a, w->files[i].path);
    }
    for (size_t i = 0; i < w->block_count; i++)
        mem_free_aligned(a, w->blocks[i]);
    mem_free(a, w->blocks);
    mem_free(a, w->views);
    mem_free(a, w->files);
    mem_free(a, w->source);
    mem_free(a, w);
}

/* ---- Looking ---------------------------------------------------------------------------- */

const weight_view *weights_find(const weights *w, const char *name)
{
    size_t low = 0, high = w->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, w->views[middle].name);
        if (order == 0)
            return &w->views[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

size_t weights_count(const weights *w)
{
    return w->count;
}

const weight_view *weights_at(const weights *w, size_t index)
{
    return index < w->count ? &w->views[index] : NULL;
}

int weights_files(const weights *w)
{
    return w->file_count;
}

const char *weights_path(const weights *w, int file)
{
    return file >= 0 && file < w->file_count ? w->files[file].path : NULL;
}

const char *weights_header(const weights *w, int file, size_t *length)
{
    if (file < 0 || file >= w->file_count) {
        *length = 0;
        return NULL;
    }
    *length = w->files[file].header_length;
    return (const char *)w->files[file].map.data + 8;
}

const char *weights_metadata(const weights *w, const char *key)
{
    for (int i = 0; i < w->file_count; i++) {
        const json_value *metadata = json_get(w->files[i].header, "__metadata__");
        const char *text = json_get_string(json_get(metadata, key), NULL);
        if (text)
            return text;
    }
    return NULL;
}

void weights_set_codes(weights *w, const weight_view *view, int bits, int64_t group)
{
    weight_view *own = &w->views[view - w->views];
    own->bits = bits;
    own->group = group;
}

void *weights_allocate(weights *w, size_t bytes)
{
    if (w->block_count == w->block_capacity) {
        size_t more = w->block_capacity ? w->block_capacity * 2 : 64;
        void *larger = mem_grow(w->allocator, w->blocks, w->block_count * sizeof *w->blocks,
                                more * sizeof *w->blocks);
        if (!larger)
            return NULL;
        w->blocks = larger;
        w->block_capacity = more;
    }
    void *block = mem_alloc_aligned(w->allocator, bytes);
    if (block) {
        w->blocks[w->block_count++] = block;
        w->allocated += bytes;
    }
    return block;
}

uint64_t weights_allocated(const weights *w)
{
    return w->allocated;
}

const file_map *weights_locate(const weights *w, const void *data, size_t *at)
{
    for (int i = 0; i < w->file_count; i++) {
        const file_map *map = &w->files[i].map;
        uintptr_t first = (uintptr_t)map->data, address = (uintptr_t)data;
        if (map->data && address >= first && address - first < map->size) {
            *at = address - first;
            return map;
        }
    }
    return NULL;
}

void weights_drop(const weights *w, const void *data, size_t bytes)
{
    size_t at;
    const file_map *map = weights_locate(w, data, &at);
    if (map)
        file_map_let_go(map, at, bytes);
}

void weights_let_go(const weights *w)
{
    for (int i = 0; i < w->file_count; i++)
        file_map_let_go(&w->files[i].map, 0, w->files[i].map.size);
}

const char *weights_source(const weights *w)
{
    return w->source;
}
