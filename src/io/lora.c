/* Reading LoRA files. Everything that can be wrong with a file alone is found here. */
#include "io/lora.h"

#include "core/mem.h"
#include "io/json.h"
#include "io/lora_names.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define SCALE_MAXIMUM 100.0
#define NAME "tensor \"%.160s\""

/* ---- Names of tensors ------------------------------------------------------------------------ */

typedef enum kind { KIND_DOWN, KIND_UP, KIND_ALPHA, KIND_UNKNOWN, KIND_IGNORED } kind;

/* A tensor of the file. */
typedef struct entry {
    const char *module; /* flattened, without a prefix */
    kind kind;
    const weight_view *view;
} entry;

static bool begins_with(const char *text, const char *beginning)
{
    return strncmp(text, beginning, strlen(beginning)) == 0;
}

static bool ends_with(const char *text, const char *end)
{
    const size_t length = strlen(text), tail = strlen(end);
    return length >= tail && !strcmp(text + length - tail, end);
}

/* What cannot be merged, by a part of its name; NULL: none of these. */
static const char *refused_kind(const char *key)
{
    static const struct {
        const char *part, *what;
    } kinds[] = {
        {".dora_scale", "DoRA"},
        {".lora_magnitude_vector", "DoRA"},
        {".lokr_", "LoKr"},
        {".hada_", "LoHa"},
        {".oft_", "OFT"},
        {".lora_mid.", "a Tucker decomposition"},
        {".lora_embedding_", "a LoRA of an embedding table"},
        {".lora_B.bias", "a LoRA with biases"},
        {".lora_up.bias", "a LoRA with biases"},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strstr(key, kinds[i].part))
            return kinds[i].what;
    return ends_with(key, ".diff") || ends_with(key, ".diff_b") ? "a whole difference of weights"
                                                                : NULL;
}

/* How much of a key names its module. */
static size_t module_length(const char *key, kind *out)
{
    static const struct {
        const char *end;
        kind kind;
    } ends[] = {
        {".lora_down.weight", KIND_DOWN},
        {".lora_up.weight", KIND_UP},
        {".lora.down.weight", KIND_DOWN},
        {".lora.up.weight", KIND_UP},
        {".lora_linear_layer.down.weight", KIND_DOWN},
        {".lora_linear_layer.up.weight", KIND_UP},
        {".alpha", KIND_ALPHA},
    };
    const size_t length = strlen(key);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (ends_with(key, ends[i].end)) {
            *out = ends[i].kind;
            return length - strlen(ends[i].end);
        }
    /* .lora_A.weight, or with the name of an adapter: .lora_A.default.weight */
    const char *a = strstr(key, ".lora_A."), *b = strstr(key, ".lora_B."), *at = a ? a : b;
    *out = KIND_UNKNOWN;
    if (!at || !ends_with(at, ".weight"))
        return length;
    const char *rest = at + strlen(".lora_A."), *dot = strchr(rest, '.');
    if (strcmp(rest, "weight") != 0 && (!dot || strcmp(dot, ".weight") != 0))
        return length;
    *out = a ? KIND_DOWN : KIND_UP;
    return (size_t)(at - key);
}

static bool is_text_encoder(const char *key)
{
    static const char *const beginnings[] = {
        "text_encoder",  "lora_te",         "lora_text_encoder",    "text_model.",
        "model.layers.", "language_model.", "model.language_model."};
    for (size_t i = 0; i < sizeof beginnings / sizeof *beginnings; i++)
        if (begins_with(key, beginnings[i]))
            return true;
    return false;
}

static const char *without_prefixes(const char *key)
{
    static const char *const prefixes[] = {
        "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.",
        "lora_unet_",        "lora_transformer_",      "lycoris_"};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        if (begins_with(key, prefixes[i])) {
            key += strlen(prefixes[i]);
            key += *key == '_'; /* lora_unet__ */
            i = (size_t)-1;     /* another may follow */
        }
    return key;
}

/* ---- Tensors to pairs ------------------------------------------------------------------------ */

/* A file that is being read. */
typedef struct reading {
    const ct_allocator *allocator;
    lora_file *f;
    entry *entries;
    size_t count;
    json_value *metadata; /* of PEFT; or NULL */
    ct_error *error;
} reading;

static ct_status refuse_kind(const reading *r, const char *key, const char *what)
{
    return error_set(r->error, CT_EUNSUPPORTED,
                     "%s: " NAME " belongs to %s, which cannot be merged; a LoRA of pairs "
                     "lora_A and lora_B, or lora_down and lora_up, can",
                     r->f->path, key, what);
}

static ct_status list_entries(reading *r)
{
    const size_t count = weights_count(r->f->source);
    size_t bytes = 1;
    for (size_t i = 0; i < count; i++)
        bytes += strlen(weights_at(r->f->source, i)->name) + 1;
    r->entries = mem_array(r->allocator, count, sizeof *r->entries);
    r->f->names = mem_alloc(r->allocator, bytes);
    r->f->pairs = mem_zero_array(r->allocator, count, sizeof *r->f->pairs);
    r->f->unknown = mem_zero_array(r->allocator, count, sizeof *r->f->unknown);
    if (!r->entries || !r->f->names || !r->f->pairs || !r->f->unknown)
        return error_memory(r->error, count * sizeof *r->f->pairs, r->f->path);
    char *at = r->f->names;
    for (size_t i = 0; i < count; i++) {
        const weight_view *v = weights_at(r->f->source, i);
        const char *key = without_prefixes(v->name);
        const bool ignored = is_text_encoder(key);
        const char *what = ignored ? NULL : refused_kind(key);
        if (what)
            return refuse_kind(r, v->name, what);
        entry *e = &r->entries[r->count++];
        *e = (entry){.module = at, .view = v};
        const size_t length = module_length(key, &e->kind);
        memcpy(at, key, length);
        at[length] = 0;
        lora_names_flatten(at);
        at += length + 1;
        r->f->ignored += ignored && e->kind == KIND_DOWN;
        if (ignored)
            e->kind = KIND_IGNORED;
    }
    return CT_OK;
}

static int compare_entries(const void *left, const void *right)
{
    const entry *a = left, *b = right;
    const int order = strcmp(a->module, b->module);
    return order ? order : ((int)a->kind > (int)b->kind) - ((int)a->kind < (int)b->kind);
}

/* A matrix; a convolution of one pixel is one, too. */
static ct_status check_matrix(const reading *r, const weight_view *v)
{
    bool matrix = v->rank >= 2;
    for (int i = 2; i < v->rank; i++)
        matrix = matrix && v->shape[i] == 1;
    if (!matrix)
        return error_set(r->error, CT_EUNSUPPORTED,
                         "%s: " NAME " has %d dimensions; only matrices can be merged, no "
                         "convolutions",
                         r->f->path, v->name, v->rank);
    if (v->type != DTYPE_F32 && v->type != DTYPE_F16 && v->type != DTYPE_BF16)
        return error_set(r->error, CT_EUNSUPPORTED,
                         "%s: " NAME " is %s; F32, F16 and BF16 can be "
                         "merged",
                         r->f->path, v->name, dtype_name(v->type));
    if (v->shape[0] < 1 || v->shape[1] < 1)
        return error_set(r->error, CT_EFORMAT, "%s: " NAME " is empty: [%" PRId64 ", %" PRId64 "]",
                         r->f->path, v->name, v->shape[0], v->shape[1]);
    return CT_OK;
}

static ct_status read_alpha(const reading *r, const weight_view *v, double *alpha)
{
    float small;
    int64_t count = 1, whole;
    for (int i = 0; i < v->rank; i++)
        count = v->shape[i] == 1 ? count : 0;
    bool number = count == 1;
    if (number && v->type == DTYPE_F64)
        memcpy(alpha, v->data, sizeof *alpha);
    else if (number && v->type == DTYPE_I64) {
        memcpy(&whole, v->data, sizeof whole);
        *alpha = (double)whole;
    } else if (number && dtype_is_float(v->type)) {
        dtype_to_float(&small, v->data, v->type, 1);
        *alpha = (double)small;
    } else {
        number = false;
    }
    if (number && isfinite(*alpha))
        return CT_OK;
    return error_set(r->error, CT_EFORMAT, "%s: " NAME " must be a single finite number",
                     r->f->path, v->name);
}

/* ---- Metadata of PEFT ------------------------------------------------------------------------ */

/* diffusers writes the adapter's configuration under this key. */
#define METADATA "lora_adapter_metadata"

static const json_value *member(const reading *r, const char *name)
{
    char key[64];
    snprintf(key, sizeof key, "transformer.%s", name);
    const json_value *value = json_get(r->metadata, key);
    return value ? value : json_get(r->metadata, name);
}

typedef struct pattern {
    const char *module; /* flattened */
    double value;
} pattern;

/* A pattern is the end of a module's name, behind a dot. */
static ct_status match_pattern(void *user, const char *key, const json_value *value,
                               ct_error *error)
{
    (void)error;
    pattern *p = user;
    char flat[NAMES_LENGTH];
    double number;
    snprintf(flat, sizeof flat, "%s", key);
    lora_names_flatten(flat);
    const char *end = without_prefixes(flat);
    const size_t length = strlen(p->module), tail = strlen(end);
    if (ends_with(p->module, end) && (length == tail || p->module[length - tail - 1] == '_') &&
        json_get_number(value, &number))
        p->value = number;
    return CT_OK;
}

static double configured(const reading *r, const char *module, const char *name,
                         const char *patterns, double otherwise)
{
    pattern p = {module, otherwise};
    json_get_number(member(r, name), &p.value);
    const json_value *list = member(r, patterns);
    if (list && json_get_kind(list) == JSON_KIND_OBJECT)
        json_each(list, match_pattern, &p, NULL);
    return p.value;
}

/* What alpha / rank is where the file has no alpha. */
static double usual_factor(const reading *r, const lora_pair *p)
{
    if (!r->metadata)
        return 1;
    bool rooted = false;
    const double rank = (double)p->rank;
    const double alpha = configured(r, p->name, "lora_alpha", "alpha_pattern", rank);
    json_get_boolean(member(r, "use_rslora"), &rooted);
    return alpha / (rooted ? sqrt(rank) : rank);
}

static void open_metadata(reading *r)
{
    const char *text = weights_metadata(r->f->source, METADATA);
    if (text && json_parse(&r->metadata, text, strlen(text), METADATA, NULL) != CT_OK)
        r->metadata = NULL; /* nothing that a file needs */
}

/* ---- Pairs ----------------------------------------------------------------------------------- */

static ct_status add_pair(reading *r, const entry *down, const entry *up, const entry *alpha)
{
    const entry *one = down ? down : up;
    lora_pair *p = &r->f->pairs[r->f->count];
    if (!down || !up)
        return error_set(r->error, CT_EFORMAT,
                         "%s: " NAME " has no counterpart: a module needs lora_A and lora_B (or "
                         "lora_down and lora_up)",
                         r->f->path, one->view->name);
    ct_status status = check_matrix(r, down->view);
    if (status == CT_OK)
        status = check_matrix(r, up->view);
    if (status != CT_OK)
        return status;
    *p = (lora_pair){.name = down->module,
                     .source = r->f->source,
                     .down = down->view,
                     .up = up->view,
                     .rank = down->view->shape[0],
                     .rows = up->view->shape[0],
                     .columns = down->view->shape[1]};
    if (up->view->shape[1] != p->rank)
        return error_set(r->error, CT_EFORMAT,
                         "%s: " NAME " is [%" PRId64 ", %" PRId64 "] and " NAME " [%" PRId64
                         ", %" PRId64 "]: their ranks differ",
                         r->f->path, down->view->name, p->rank, p->columns, up->view->name, p->rows,
                         up->view->shape[1]);
    double value = 0;
    if (alpha)
        status = read_alpha(r, alpha->view, &value);
    p->factor = alpha ? value / (double)p->rank : usual_factor(r, p);
    if (!r->f->count || p->rank < r->f->least_rank)
        r->f->least_rank = p->rank;
    if (p->rank > r->f->most_rank)
        r->f->most_rank = p->rank;
    r->f->count++;
    return status;
}

/* entries [first, end) are of one module. */
static ct_status add_module(reading *r, size_t first, size_t end)
{
    const entry *found[KIND_UNKNOWN] = {NULL};
    for (size_t i = first; i < end; i++) {
        const entry *e = &r->entries[i];
        if (e->kind == KIND_UNKNOWN)
            r->f->unknown[r->f->unknown_count++] = e->view->name;
        if (e->kind >= KIND_UNKNOWN)
            continue;
        if (found[e->kind])
            return error_set(r->error, CT_EFORMAT,
                             "%s: " NAME " and " NAME " are for the same module", r->f->path,
                             found[e->kind]->view->name, e->view->name);
        found[e->kind] = e;
    }
    if (found[KIND_DOWN] || found[KIND_UP])
        return add_pair(r, found[KIND_DOWN], found[KIND_UP], found[KIND_ALPHA]);
    if (found[KIND_ALPHA])
        r->f->unknown[r->f->unknown_count++] = found[KIND_ALPHA]->view->name;
    return CT_OK;
}

static ct_status make_pairs(reading *r)
{
    ct_status status = CT_OK;
    if (r->count)
        qsort(r->entries, r->count, sizeof *r->entries, compare_entries);
    for (size_t i = 0, end; status == CT_OK && i < r->count; i = end) {
        for (end = i + 1; end < r->count; end++)
            if (strcmp(r->entries[i].module, r->entries[end].module) != 0)
                break;
        status = add_module(r, i, end);
    }
    r->f->stray_count = r->f->unknown_count;
    if (status == CT_OK && !r->f->count && !r->f->ignored)
        return error_set(r->error, CT_EFORMAT,
                         "%s is no LoRA: it has no tensors module.lora_A.weight and "
                         "module.lora_B.weight, or lora_down and lora_up",
                         r->f->path);
    return status;
}

/* ---- Numbers --------------------------------------------------------------------------------- */

#define AT_ONCE 4096

typedef struct scan {
    const lora_file *f;
    _Atomic(size_t) bad; /* the first tensor that is not finite: 2 * pair, and 1 more for B */
} scan;

static bool is_finite(const weight_view *v)
{
    float part[AT_ONCE];
    uint32_t bits[AT_ONCE], bad = 0;
    const size_t size = dtype_size(v->type), count = v->bytes / size;
    for (size_t at = 0; at < count && !bad; at += AT_ONCE) {
        const size_t n = count - at < AT_ONCE ? count - at : AT_ONCE;
        dtype_to_float(part, v->data + at * size, v->type, n);
        memcpy(bits, part, n * sizeof *bits);
        for (size_t i = 0; i < n; i++)
            bad |= (bits[i] & 0x7f800000u) == 0x7f800000u;
    }
    return !bad;
}

static void scan_tensor(void *user, int64_t index, int worker)
{
    (void)worker;
    scan *s = user;
    const lora_pair *p = &s->f->pairs[index / 2];
    const weight_view *v = index % 2 ? p->up : p->down;
    size_t before = atomic_load(&s->bad);
    if ((size_t)index >= before || is_finite(v))
        return;
    while ((size_t)index < before && !atomic_compare_exchange_weak(&s->bad, &before, (size_t)index))
        ;
}

static ct_status check_numbers(const reading *r, pool *threads)
{
    scan s = {.f = r->f};
    const int64_t count = 2 * (int64_t)r->f->count;
    atomic_init(&s.bad, SIZE_MAX);
    if (threads)
        pool_run(threads, count, scan_tensor, &s);
    for (int64_t i = 0; !threads && i < count; i++)
        scan_tensor(&s, i, 0);
    const size_t bad = atomic_load(&s.bad);
    if (bad == SIZE_MAX)
        return CT_OK;
    const lora_pair *p = &r->f->pairs[bad / 2];
    return error_set(r->error, CT_EFORMAT,
                     "%s: " NAME " holds NaN or infinity; the file is damaged", r->f->path,
                     (bad % 2 ? p->up : p->down)->name);
}

/* ---- Files ----------------------------------------------------------------------------------- */

static ct_status hash_file(lora_file *f, ct_error *error)
{
    file_map map;
    ct_status status = file_map_open(&map, f->path, error);
    if (status != CT_OK)
        return status;
    fingerprint hash;
    fingerprint_begin(&hash);
    fingerprint_add(&hash, map.data, map.size);
    fingerprint_hex(&hash, f->hash);
    file_map_close(&map);
    return CT_OK;
}

static ct_status open_file(lora_file *f, const ct_allocator *a, pool *threads, const ct_lora *from,
                           ct_error *error)
{
    reading r = {.allocator = a, .f = f, .error = error};
    if (!from->path)
        return error_set(error, CT_EINVAL, "a LoRA has no path");
    if (!(fabs(from->scale) <= SCALE_MAXIMUM))
        return error_set(error, CT_EINVAL, "%s: the scale is %g; it must be %g to %g", from->path,
                         from->scale, -SCALE_MAXIMUM, SCALE_MAXIMUM);
    f->scale = from->scale;
    f->path = mem_strdup(a, from->path);
    if (!f->path)
        return error_memory(error, strlen(from->path), "a path");
    const char *slash = strrchr(f->path, '/');
    f->name = slash ? slash + 1 : f->path;
    ct_status status = weights_open_file(&f->source, a, f->path, error);
    if (status != CT_OK)
        return status;
    open_metadata(&r);
    status = list_entries(&r);
    if (status == CT_OK)
        status = make_pairs(&r);
    if (status == CT_OK)
        status = check_numbers(&r, threads);
    if (status == CT_OK)
        status = hash_file(f, error);
    weights_let_go(f->source);
    json_free(r.metadata);
    mem_free(a, r.entries);
    return status;
}

ct_status lora_open(lora_set **out, const ct_allocator *a, pool *threads, const ct_lora *list,
                    int count, ct_error *error)
{
    *out = NULL;
    lora_set *s = mem_zero_array(a, 1, sizeof *s);
    if (!s)
        return error_memory(error, sizeof *s, "the LoRAs");
    s->allocator = a;
    s->files = mem_zero_array(a, (size_t)count, sizeof *s->files);
    ct_status status = s->files ? CT_OK : error_memory(error, sizeof *s->files, "the LoRAs");
    for (int i = 0; status == CT_OK && i < count; i++) {
        s->count++;
        status = open_file(&s->files[i], a, threads, &list[i], error);
    }
    if (status != CT_OK)
        lora_close(s);
    else
        *out = s;
    return status;
}

void lora_close(lora_set *s)
{
    if (!s)
        return;
    const ct_allocator *a = s->allocator;
    for (int i = 0; i < s->count; i++) {
        lora_file *f = &s->files[i];
        weights_close(f->source);
        mem_free(a, f->pairs);
        mem_free(a, f->unknown);
        mem_free(a, f->names);
        mem_free(a, f->path);
    }
    for (lora_target *t = s->targets, *next; t; t = next) {
        next = t->next;
        mem_free(a, t->pieces);
        mem_free(a, t);
    }
    mem_free(a, s->files);
    mem_free(a, s);
}
