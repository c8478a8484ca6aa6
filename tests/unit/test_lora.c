/* LoRA files and what they do to matrices, on models of a few matrices that are made here. Whole
 * models with LoRAs: tests/models/test_lora_models.c. */
#include "test_support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/affine.h"
#include "core/mem.h"
#include "io/lora_names.h"
#include "io/safetensors.h"
#include "models/bind.h"

#define MOST 32
#define RANK 3

static test_folder folder;

static int set_up(void **state)
{
    (void)state;
    test_folder_create(&folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    test_folder_remove(&folder);
    return 0;
}

/* ---- Files ----------------------------------------------------------------------------------- */

/* A tensor to be written; its numbers follow from the seed. */
typedef struct tensor {
    char name[200];
    dtype type;
    int rank;
    int64_t shape[4];
    uint32_t seed;
    float scale; /* of the numbers, which are in -scale .. scale; or, with rank 0, the number */
} tensor;

typedef struct tensors {
    tensor list[4 * MOST];
    int count;
} tensors;

static int64_t count_of(const tensor *t)
{
    int64_t count = 1;
    for (int i = 0; i < t->rank; i++)
        count *= t->shape[i];
    return count;
}

static float *numbers_of(const tensor *t)
{
    const int64_t count = count_of(t);
    float *numbers = malloc((size_t)(count ? count : 1) * sizeof *numbers);
    uint32_t x = t->seed * 2654435761u + 12345u;
    for (int64_t i = 0; i < count; i++) {
        x = x * 1664525u + 1013904223u;
        numbers[i] = t->rank ? t->scale * ((float)(x >> 8) / 8388608.0f - 1) : t->scale;
    }
    return numbers;
}

static tensor *add(tensors *f, const char *name, int64_t rows, int64_t columns, uint32_t seed)
{
    tensor *t = &f->list[f->count++];
    assert_true(f->count <= 4 * MOST);
    *t = (tensor){.type = DTYPE_F32, .rank = 2, .shape = {rows, columns}, .seed = seed, .scale = 1};
    snprintf(t->name, sizeof t->name, "%s", name);
    return t;
}

/* The two matrices of a module; returns the first. */
static tensor *add_pair(tensors *f, const char *module, int64_t rows, int64_t columns,
                        uint32_t seed)
{
    char name[200];
    snprintf(name, sizeof name, "%.150s.lora_A.weight", module);
    tensor *first = add(f, name, RANK, columns, seed);
    snprintf(name, sizeof name, "%.150s.lora_B.weight", module);
    add(f, name, rows, RANK, seed + 1);
    return first;
}

static tensor *add_number(tensors *f, const char *name, float number)
{
    tensor *t = add(f, name, 0, 0, 0);
    t->rank = 0;
    t->scale = number;
    return t;
}

static const char *write_with(const tensors *f, const char *name, const char *metadata)
{
    const char *path = test_path(&folder, name);
    safetensors_writer *out = NULL;
    ct_error error;
    test_ok(safetensors_writer_open(&out, &mem_default, path, &error), &error);
    if (metadata)
        test_ok(safetensors_writer_metadata(out, "lora_adapter_metadata", metadata, &error),
                &error);
    for (int i = 0; i < f->count; i++) {
        const tensor *t = &f->list[i];
        float *numbers = numbers_of(t);
        void *data = calloc((size_t)count_of(t) + 1, 8);
        if (t->type == DTYPE_F32 || t->type == DTYPE_F16 || t->type == DTYPE_BF16)
            dtype_from_float(data, numbers, t->type, (size_t)count_of(t));
        test_ok(safetensors_writer_add(out, t->name, t->type, t->rank, t->shape, data, &error),
                &error);
        free(numbers);
        free(data);
    }
    test_ok(safetensors_writer_commit(out, &error), &error);
    return path;
}

static const char *write(const tensors *f, const char *name)
{
    return write_with(f, name, NULL);
}

/* ---- Models ---------------------------------------------------------------------------------- */

/* Matrices that are bound, with LoRAs in them. */
typedef struct model {
    weights *source;
    lora_set *loras;
    bind_memory memory;
    nn_weight w[MOST];
    int count;
} model;

static ct_status open_model(model *m, const ct_allocator *a, const char *path, const tensors *names,
                            const ct_lora *list, int count, pool *threads, ct_error *error)
{
    *m = (model){.count = names->count};
    load_options options = {.allocator = a, .threads = threads, .memory = &m->memory};
    ct_status status = weights_open_file(&m->source, a, path, error);
    binder b = {.source = m->source, .options = &options, .error = error};
    if (status == CT_OK)
        status = lora_open(&m->loras, a, threads, list, count, error);
    m->memory.lora = m->loras;
    for (int i = 0; status == CT_OK && i < names->count; i++) {
        const tensor *t = &names->list[i];
        m->w[i] = bind2(&b, t->shape[0], t->shape[1], "%s", t->name);
        status = b.status;
    }
    if (status == CT_OK)
        status = lora_check(m->loras, "the model", error);
    if (status == CT_OK)
        status = bind_memory_fill(&m->memory, &options, error);
    return status;
}

static void close_model(model *m, const ct_allocator *a)
{
    bind_memory_free(&m->memory, a);
    weights_close(m->source);
    lora_close(m->loras);
}

static void with_loras(model *m, const tensors *names, const ct_lora *list, int count)
{
    ct_error error;
    const char *path = write(names, "model.safetensors");
    test_ok(open_model(m, &mem_default, path, names, list, count, NULL, &error), &error);
}

static void with_lora(model *m, const tensors *names, const char *path, double scale)
{
    with_loras(m, names, &(ct_lora){path, scale}, 1);
}

static void refused(const tensors *names, const ct_lora *lora, ct_status expected, const char *part)
{
    model m;
    ct_error error = {0};
    const char *path = write(names, "model.safetensors");
    ct_status status = open_model(&m, &mem_default, path, names, lora, 1, NULL, &error);
    test_error(status, expected, &error, part);
    close_model(&m, &mem_default);
}

static float *decoded(const nn_weight *w)
{
    const size_t rows = (size_t)w->n[0], columns = (size_t)w->n[1];
    float *out = malloc(rows * columns * sizeof *out);
    for (size_t i = 0; i < rows && w->bits; i++) {
        const size_t scales = i * (columns / (size_t)w->group) * dtype_size(w->type);
        affine_decode(out + i * columns, (const char *)w->data + i * columns * (size_t)w->bits / 8,
                      w->bits, w->group, (const char *)w->scales + scales,
                      (const char *)w->biases + scales, w->type, 0, (int64_t)columns);
    }
    if (!w->bits)
        dtype_to_float(out, w->data, w->type, rows * columns);
    return out;
}

static void assert_same(const model *a, const model *b)
{
    assert_int_equal(a->count, b->count);
    for (int i = 0; i < a->count; i++) {
        const nn_weight *x = &a->w[i], *y = &b->w[i];
        assert_int_equal(x->type, y->type);
        test_bytes_equal(x->data, y->data, (size_t)(x->n[0] * x->n[1]) * dtype_size(x->type));
    }
}

/* The relative L2 distance of a matrix from w + factor * b a, in double. */
static double distance(const nn_weight *w, const tensor *base, const tensor *a, const tensor *b,
                       double factor)
{
    float *now = decoded(w), *from = numbers_of(base), *down = numbers_of(a), *up = numbers_of(b);
    const int64_t rows = base->shape[0], columns = base->shape[1], rank = a->shape[0];
    double error = 0, norm = 0;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            double sum = 0;
            for (int64_t r = 0; r < rank; r++)
                sum += (double)up[i * rank + r] * (double)down[r * columns + j];
            const double truth = (double)from[i * columns + j] + factor * sum;
            const double d = (double)now[i * columns + j] - truth;
            error += d * d;
            norm += truth * truth;
        }
    free(now);
    free(from);
    free(down);
    free(up);
    return sqrt(error / norm);
}

/* ---- Numbers --------------------------------------------------------------------------------- */

#define QWEN "transformer_blocks.0.attn.to_out.0"

static tensors one_matrix(int64_t rows, int64_t columns)
{
    tensors m = {.count = 0};
    add(&m, QWEN ".weight", rows, columns, 1);
    return m;
}

/* Sums of at most 5 products in float32: a relative error of some 1e-7. */
static void test_numbers(void **state)
{
    (void)state;
    static const int64_t sizes[][2] = {{1, 1}, {3, 7}, {4, 8}, {37, 19}, {64, 24}, {70, 33}};
    static const dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int type = 0; type < 3; type++) {
            const tensors base = one_matrix(sizes[i][0], sizes[i][1]);
            tensors file = {.count = 0};
            tensor *a = add_pair(&file, QWEN, sizes[i][0], sizes[i][1], 5);
            a[0].type = a[1].type = types[type];
            model m;
            with_lora(&m, &base, write(&file, "l.safetensors"), -1.5);
            const double bound = type == 0 ? 1e-6 : type == 1 ? 2e-3 : 1.2e-2; /* of A and B */
            assert_true(distance(&m.w[0], &base.list[0], &a[0], &a[1], -1.5) < bound);
            assert_int_equal(m.w[0].type, DTYPE_F32);
            close_model(&m, &mem_default);
        }
}

/* alpha / rank, in every type that an alpha has; what PEFT writes into the metadata. */
static void test_alpha(void **state)
{
    (void)state;
    const tensors base = one_matrix(8, 16);
    model m;
    for (int form = 0; form < 3; form++) {
        tensors file = {.count = 0};
        tensor *a = add_pair(&file, QWEN, 8, 16, 5), *alpha = add_number(&file, QWEN ".alpha", 2);
        alpha->type = form == 1 ? DTYPE_BF16 : DTYPE_F32;
        alpha->rank = form == 2 ? 1 : 0;
        alpha->shape[0] = 1;
        with_lora(&m, &base, write(&file, "l.safetensors"), 1);
        double factor = 2.0 / RANK;
        if (form == 2) {
            float *number = numbers_of(alpha);
            factor = (double)*number / RANK;
            free(number);
        }
        assert_true(distance(&m.w[0], &base.list[0], &a[0], &a[1], factor) < 1e-6);
        close_model(&m, &mem_default);
    }
    static const struct {
        const char *text;
        double factor;
    } metadata[] = {
        {"{\"transformer.lora_alpha\": 6, \"transformer.r\": 3}", 2},
        {"{\"lora_alpha\": 6}", 2},
        {"{\"lora_alpha\": 6, \"use_rslora\": true}", 6 / 1.7320508075688772},
        {"{\"lora_alpha\": 6, \"alpha_pattern\": {\"attn.to_out.0\": 1.5}}", 0.5},
        {"{\"lora_alpha\": 6, \"alpha_pattern\": {\"n.to_out.0\": 1.5}}", 2},
        {"{\"text_encoder.lora_alpha\": 6}", 1},
        {"not json", 1},
    };
    for (size_t i = 0; i < sizeof metadata / sizeof *metadata; i++) {
        tensors file = {.count = 0};
        tensor *a = add_pair(&file, QWEN, 8, 16, 5);
        with_lora(&m, &base, write_with(&file, "l.safetensors", metadata[i].text), 1);
        assert_true(distance(&m.w[0], &base.list[0], &a[0], &a[1], metadata[i].factor) < 1e-6);
        close_model(&m, &mem_default);
    }
}

static void test_threads(void **state)
{
    (void)state;
    const tensors base = one_matrix(301, 77);
    tensors file = {.count = 0};
    add_pair(&file, QWEN, 301, 77, 5);
    const ct_lora lora = {write(&file, "l.safetensors"), 0.7};
    const char *path = write(&base, "model.safetensors");
    model alone, m;
    ct_error error;
    test_ok(open_model(&alone, &mem_default, path, &base, &lora, 1, NULL, &error), &error);
    for (int count = 1; count <= 5; count++) {
        pool *threads = NULL;
        test_ok(pool_create(&threads, &mem_default, count, &error), &error);
        test_ok(open_model(&m, &mem_default, path, &base, &lora, 1, threads, &error), &error);
        assert_same(&m, &alone);
        close_model(&m, &mem_default);
        pool_free(threads);
    }
    close_model(&alone, &mem_default);
}

/* Two files add up, in their order; a file twice is its double but for one rounding. */
static void test_several(void **state)
{
    (void)state;
    const tensors base = one_matrix(24, 40);
    tensors first = {.count = 0}, second = {.count = 0};
    add_pair(&first, QWEN, 24, 40, 5);
    add_pair(&second, QWEN, 24, 40, 9)[0].scale = 0.25f;
    const ct_lora list[] = {{write(&first, "1.safetensors"), 1},
                            {write(&second, "2.safetensors"), 1},
                            {write(&first, "1.safetensors"), 0}};
    model both, one, two;
    with_loras(&both, &base, list, 3);
    with_loras(&one, &base, list, 1);
    with_loras(&two, &base, list + 1, 1);
    float *x = decoded(&both.w[0]), *a = decoded(&one.w[0]), *b = decoded(&two.w[0]);
    float *w = numbers_of(&base.list[0]);
    for (int i = 0; i < 24 * 40; i++)
        assert_true(fabsf(x[i] - (a[i] + b[i] - w[i])) < 2e-6f);
    free(x);
    free(a);
    free(b);
    free(w);
    close_model(&both, &mem_default);
    close_model(&one, &mem_default);
    close_model(&two, &mem_default);
}

/* Nothing is touched: the matrix stays in the file. */
static void test_scale_0(void **state)
{
    (void)state;
    const tensors base = one_matrix(8, 16);
    tensors file = {.count = 0};
    add_pair(&file, QWEN, 8, 16, 5);
    model m;
    with_lora(&m, &base, write(&file, "l.safetensors"), 0);
    assert_int_equal(m.memory.count, 0);
    assert_int_equal(weights_allocated(m.source), 0);
    assert_ptr_equal(m.w[0].data, weights_at(m.source, 0)->data);
    assert_int_equal(m.loras->files[0].matched, 1);
    close_model(&m, &mem_default);
}

/* ---- Names ----------------------------------------------------------------------------------- */

/* The same LoRA under all kinds of keys gives the same bytes. */
static void test_keys(void **state)
{
    (void)state;
    static const char *const modules[] = {
        "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_k_proj",
        "transformer_blocks.0.img_mlp.net.0.proj", "transformer_blocks.11.attn.to_out.0", "img_in"};
    static const struct {
        const char *prefix, *down, *up;
        bool flat;
    } forms[] = {
        {"", ".lora_A.weight", ".lora_B.weight", false},
        {"transformer.", ".lora_A.weight", ".lora_B.weight", false},
        {"transformer.", ".lora_A.default.weight", ".lora_B.default.weight", false},
        {"base_model.model.", ".lora_A.weight", ".lora_B.weight", false},
        {"base_model.model.transformer.", ".lora_A.weight", ".lora_B.weight", false},
        {"diffusion_model.", ".lora_A.weight", ".lora_B.weight", false},
        {"model.diffusion_model.", ".lora_down.weight", ".lora_up.weight", false},
        {"", ".lora_down.weight", ".lora_up.weight", false},
        {"", ".lora.down.weight", ".lora.up.weight", false},
        {"lora_unet_", ".lora_down.weight", ".lora_up.weight", true},
        {"lora_unet__", ".lora_down.weight", ".lora_up.weight", true},
        {"lora_transformer_", ".lora_down.weight", ".lora_up.weight", true},
        {"lycoris_", ".lora_down.weight", ".lora_up.weight", true},
    };
    tensors base = {.count = 0};
    for (int i = 0; i < 5; i++) {
        char name[200];
        snprintf(name, sizeof name, "%s.weight", modules[i]);
        add(&base, name, 12, 20, 100 + (uint32_t)i);
    }
    model truth = {0};
    for (size_t k = 0; k < sizeof forms / sizeof *forms; k++) {
        tensors file = {.count = 0};
        for (uint32_t i = 0; i < 5; i++) {
            char module[100], name[200];
            snprintf(module, sizeof module, "%s", modules[i]);
            if (forms[k].flat)
                lora_names_flatten(module);
            snprintf(name, sizeof name, "%s%s%s", forms[k].prefix, module, forms[k].down);
            add(&file, name, RANK, 20, 10 * i);
            snprintf(name, sizeof name, "%s%s%s", forms[k].prefix, module, forms[k].up);
            add(&file, name, 12, RANK, 10 * i + 1);
            snprintf(name, sizeof name, "%s%s.alpha", forms[k].prefix, module);
            add_number(&file, name, 1.5f);
        }
        model m;
        with_lora(&m, &base, write(&file, "l.safetensors"), 1);
        assert_int_equal(m.memory.count, 5);
        assert_int_equal(m.loras->files[0].matched, 5);
        if (k == 0)
            truth = m;
        else {
            assert_same(&m, &truth);
            close_model(&m, &mem_default);
        }
    }
    close_model(&truth, &mem_default);
}

/* A module of the file that is several matrices here, or several that are one, or another name: A
 * is the same, the rows of B are where they belong. */
static void test_layouts(void **state)
{
    (void)state;
    static const struct layout {
        const char *ours[4];
        int64_t rows[4]; /* of the matrices */
        const char *theirs[4];
        int64_t their_rows[4];
        int64_t swap; /* half of the rows */
    } layouts[] = {
        {{"layers.1.attention.to_q", "layers.1.attention.to_k", "layers.1.attention.to_v"},
         {12, 12, 12},
         {"layers.1.attention.qkv"},
         {36},
         0},
        {{"layers.1.attention.to_out.0"}, {12}, {"layers.1.attention.out"}, {12}, 0},
        {{"layers.1.attention.to_out.0"}, {12}, {"layers.1.attention.to_out"}, {12}, 0},
        {{"all_x_embedder.2-1"}, {12}, {"x_embedder"}, {12}, 0},
        {{"all_final_layer.2-1.linear"}, {12}, {"final_layer.linear"}, {12}, 0},
        {{"all_final_layer.2-1.adaLN_modulation.1"},
         {12},
         {"final_layer.adaLN_modulation.1"},
         {12},
         0},
        {{"t_embedder.mlp.2"}, {12}, {"t_embedder.linear2"}, {12}, 0},
        {{"transformer_blocks.3.attn.to_q", "transformer_blocks.3.attn.to_k",
          "transformer_blocks.3.attn.to_v"},
         {12, 12, 12},
         {"double_blocks.3.img_attn.qkv"},
         {36},
         0},
        {{"transformer_blocks.3.attn.add_q_proj", "transformer_blocks.3.attn.add_k_proj",
          "transformer_blocks.3.attn.add_v_proj"},
         {12, 12, 12},
         {"double_blocks.3.txt_attn.qkv"},
         {36},
         0},
        {{"transformer_blocks.3.attn.to_add_out"},
         {12},
         {"double_blocks.3.txt_attn.proj"},
         {12},
         0},
        {{"transformer_blocks.3.attn.to_out.0"}, {12}, {"double_blocks.3.img_attn.proj"}, {12}, 0},
        {{"transformer_blocks.3.ff.linear_in"}, {12}, {"double_blocks.3.img_mlp.0"}, {12}, 0},
        {{"transformer_blocks.3.ff_context.linear_out"},
         {12},
         {"double_blocks.3.txt_mlp.2"},
         {12},
         0},
        {{"single_transformer_blocks.10.attn.to_qkv_mlp_proj"},
         {100},
         {"single_blocks.10.linear1"},
         {100},
         0},
        {{"single_transformer_blocks.10.attn.to_out"}, {12}, {"single_blocks.10.linear2"}, {12}, 0},
        {{"single_transformer_blocks.10.attn.to_qkv_mlp_proj"},
         {100},
         {"single_transformer_blocks.10.attn.to_q", "single_transformer_blocks.10.attn.to_k",
          "single_transformer_blocks.10.attn.to_v", "single_transformer_blocks.10.proj_mlp"},
         {20, 20, 20, 40},
         0},
        {{"double_stream_modulation_img.linear"},
         {12},
         {"double_stream_modulation_img.lin"},
         {12},
         0},
        {{"single_stream_modulation.linear"}, {12}, {"single_stream_modulation.lin"}, {12}, 0},
        {{"time_guidance_embed.timestep_embedder.linear_1"}, {12}, {"time_in.in_layer"}, {12}, 0},
        {{"context_embedder"}, {12}, {"txt_in"}, {12}, 0},
        {{"proj_out"}, {12}, {"final_layer.linear"}, {12}, 0},
        {{"norm_out.linear"}, {12}, {"final_layer.adaLN_modulation.1"}, {12}, 6},
    };
    enum { COLUMNS = 20 };
    for (size_t k = 0; k < sizeof layouts / sizeof *layouts; k++) {
        const struct layout *l = &layouts[k];
        tensors base = {.count = 0}, file = {.count = 0};
        char name[200];
        for (int i = 0; i < 4 && l->ours[i]; i++) {
            snprintf(name, sizeof name, "%s.weight", l->ours[i]);
            add(&base, name, l->rows[i], COLUMNS, 0)->scale = 0; /* zeros */
        }
        /* Row i of all B is (i, 0, 0), A begins with ones: row i of the matrices becomes i. */
        int64_t all = 0;
        for (int i = 0; i < 4 && l->theirs[i]; i++) {
            snprintf(name, sizeof name, "diffusion_model.%s", l->theirs[i]);
            add_pair(&file, name, l->their_rows[i], COLUMNS, 5);
            all += l->their_rows[i];
        }
        const char *path = test_path(&folder, "rows.safetensors");
        safetensors_writer *out = NULL;
        ct_error error;
        test_ok(safetensors_writer_open(&out, &mem_default, path, &error), &error);
        float next = 0;
        for (int i = 0; i < file.count; i++) {
            const tensor *t = &file.list[i];
            float *numbers = numbers_of(t);
            for (int64_t n = 0; n < count_of(t); n++)
                numbers[n] =
                    i % 2 == 0 ? (n < COLUMNS ? 1 : numbers[n]) : (n % RANK == 0 ? next++ : 0);
            test_ok(safetensors_writer_add(out, t->name, t->type, 2, t->shape, numbers, &error),
                    &error);
            free(numbers);
        }
        test_ok(safetensors_writer_commit(out, &error), &error);
        model m;
        with_lora(&m, &base, path, 1);
        float expected = 0;
        for (int i = 0; i < m.count; i++) {
            float *numbers = decoded(&m.w[i]);
            for (int64_t row = 0; row < l->rows[i]; row++, expected++)
                for (int64_t j = 0; j < COLUMNS; j++) {
                    const float e = l->swap ? (float)((row + l->swap) % l->rows[0]) : expected;
                    if (numbers[row * COLUMNS + j] != e)
                        fail_msg("%s, row %d: %g instead of %g", l->theirs[0], (int)row,
                                 (double)numbers[row * COLUMNS + j], (double)e);
                }
            free(numbers);
        }
        assert_true((int64_t)expected == all);
        assert_int_equal(m.loras->files[0].matched, m.loras->files[0].count);
        close_model(&m, &mem_default);
    }
}

/* Names that trainers write twice, and rules that must not fit in the middle of a name. */
static void test_name_list(void **state)
{
    (void)state;
    lora_name names[LORA_NAMES_MAXIMUM];
    assert_int_equal(lora_names_list(names, "x_pad_token"), 0);
    assert_int_equal(lora_names_list(names, ".weight"), 0);
    char text[2 * NAMES_LENGTH];
    memset(text, 'a', sizeof text);
    strcpy(text + sizeof text - 8, ".weight");
    assert_int_equal(lora_names_list(names, text), 0);
    int count = lora_names_list(names, "x_embedder_other.weight");
    for (int i = 0; i < count; i++)
        assert_string_not_equal(names[i].text, "img_in_other");

    tensors base = {.count = 0}, file = {.count = 0};
    add(&base, "layers.0.attention.to_q.weight", 8, 16, 1);
    add(&base, "layers.0.attention.to_k.weight", 8, 16, 2);
    add(&base, "layers.0.attention.to_v.weight", 8, 16, 3);
    for (int i = 0; i < 3; i++) {
        char name[64];
        snprintf(name, sizeof name, "layers.0.attention.to.%c", "qkv"[i]);
        add_pair(&file, name, 8, 16, 10 + (uint32_t)i);
    }
    add_pair(&file, "layers.0.attention.qkv", 24, 16, 40);
    model m;
    with_lora(&m, &base, write(&file, "l.safetensors"), 1);
    for (int i = 0; i < 3; i++)
        assert_true(distance(&m.w[i], &base.list[i], &file.list[2 * i], &file.list[2 * i + 1], 1) <
                    1e-6);
    assert_int_equal(m.loras->files[0].matched, 4);
    close_model(&m, &mem_default);
}

static void test_text_encoder(void **state)
{
    (void)state;
    const tensors base = one_matrix(8, 16);
    tensors file = {.count = 0}, other = {.count = 0};
    add_pair(&file, QWEN, 8, 16, 5);
    add_pair(&file, "text_encoder.model.layers.0.self_attn.q_proj", 99, 7, 6);
    add_pair(&file, "lora_te_layers_0_mlp", 3, 4, 6);
    model m;
    with_lora(&m, &base, write(&file, "l.safetensors"), 1);
    assert_int_equal(m.loras->files[0].ignored, 2);
    assert_int_equal(m.loras->files[0].count, 1);
    assert_int_equal(m.loras->files[0].unknown_count, 0);
    close_model(&m, &mem_default);
    add_pair(&other, "text_encoder.model.layers.0.self_attn.q_proj", 99, 7, 6);
    refused(&base, &(ct_lora){write(&other, "l.safetensors"), 1}, CT_EUNSUPPORTED,
            "changes the text encoder alone");
}

/* ---- Formats of the model -------------------------------------------------------------------- */

/* A matrix [rows, columns] in groups of so many bits, as a file; *back: what they mean. */
static const char *write_codes(const tensor *t, int bits, int64_t group, float *back)
{
    const int64_t rows = t->shape[0], columns = t->shape[1], words = columns * bits / 32;
    const int64_t groups = columns / group;
    const char *path = test_path(&folder, "model.safetensors");
    float *in = numbers_of(t);
    char *codes = malloc((size_t)(rows * words) * 4), *scales = malloc((size_t)(rows * groups) * 2);
    char *biases = malloc((size_t)(rows * groups) * 2);
    for (int64_t i = 0; i < rows; i++) {
        affine_encode(codes + i * words * 4, scales + i * groups * 2, biases + i * groups * 2,
                      DTYPE_BF16, in + i * columns, columns, bits, group);
        affine_decode(back + i * columns, codes + i * words * 4, bits, group,
                      scales + i * groups * 2, biases + i * groups * 2, DTYPE_BF16, 0, columns);
    }
    safetensors_writer *out = NULL;
    ct_error error;
    test_ok(safetensors_writer_open(&out, &mem_default, path, &error), &error);
    const int64_t shapes[3][2] = {{rows, words}, {rows, groups}, {rows, groups}};
    test_ok(safetensors_writer_add(out, QWEN ".weight", DTYPE_U32, 2, shapes[0], codes, &error),
            &error);
    test_ok(safetensors_writer_add(out, QWEN ".scales", DTYPE_BF16, 2, shapes[1], scales, &error),
            &error);
    test_ok(safetensors_writer_add(out, QWEN ".biases", DTYPE_BF16, 2, shapes[2], biases, &error),
            &error);
    test_ok(safetensors_writer_commit(out, &error), &error);
    free(in);
    free(codes);
    free(scales);
    free(biases);
    return path;
}

/* How much of a change of a hundredth of the weights survives in a matrix of so many bits: the
 * error of the change, relative to it. */
static double change_error(const float *base, const float *change, const float *now, size_t count)
{
    double error = 0, norm = 0;
    for (size_t i = 0; i < count; i++) {
        const double d = (double)now[i] - (double)base[i] - (double)change[i];
        error += d * d;
        norm += (double)change[i] * (double)change[i];
    }
    return sqrt(error / norm);
}

/* docs/lora.md has the numbers that this prints with CT_SHOW set. */
static void test_quantized(void **state)
{
    (void)state;
    enum { ROWS = 64, COLUMNS = 256, GROUP = 64, COUNT = ROWS * COLUMNS };
    static float base[COUNT], change[COUNT], sum[COUNT], again[COUNT];
    const tensors names = one_matrix(ROWS, COLUMNS);
    tensors file = {.count = 0};
    tensor *a = add_pair(&file, QWEN, ROWS, COLUMNS, 5);
    a[1].scale = 0.01f;
    float *down = numbers_of(&a[0]), *up = numbers_of(&a[1]);
    for (int i = 0; i < COUNT; i++) {
        change[i] = 0;
        for (int r = 0; r < RANK; r++)
            change[i] += up[i / COLUMNS * RANK + r] * down[r * COLUMNS + i % COLUMNS];
    }
    static const int kinds[] = {3, 4, 6, 8};
    for (int k = 0; k < 4; k++) {
        const int bits = kinds[k];
        const char *path = write_codes(&names.list[0], bits, GROUP, base);
        const ct_lora lora = {write(&file, "l.safetensors"), 1};
        model m;
        ct_error error;
        test_ok(open_model(&m, &mem_default, path, &names, &lora, 1, NULL, &error), &error);
        assert_int_equal(m.w[0].bits, 8);
        assert_int_equal(m.w[0].group, GROUP);
        assert_int_equal(m.w[0].type, DTYPE_BF16);
        float *now = decoded(&m.w[0]);
        const double kept = change_error(base, change, now, COUNT);
        free(now);
        close_model(&m, &mem_default);
        /* In the bits that it had. */
        for (int i = 0; i < COUNT; i++)
            sum[i] = base[i] + change[i];
        for (int i = 0; i < ROWS; i++) {
            unsigned char codes[COLUMNS], scales[2 * COLUMNS / GROUP], biases[2 * COLUMNS / GROUP];
            affine_encode(codes, scales, biases, DTYPE_BF16, sum + i * COLUMNS, COLUMNS, bits,
                          GROUP);
            affine_decode(again + i * COLUMNS, codes, bits, GROUP, scales, biases, DTYPE_BF16, 0,
                          COLUMNS);
        }
        const double rounded = change_error(base, change, again, COUNT);
        if (getenv("CT_SHOW"))
            printf("%d bits: error of the change %.3f, in its own bits %.3f\n", bits, kept,
                   rounded);
        assert_true(kept < 0.6);
        assert_true(bits == 8 || rounded > 1.5 * kept);
        assert_true(bits > 4 || rounded > 0.9); /* little of it is left */
    }
    free(down);
    free(up);
}

static void test_types(void **state)
{
    (void)state;
    static const struct {
        dtype from, to;
        double bound;
    } types[] = {
        {DTYPE_F32, DTYPE_F32, 1e-6}, {DTYPE_F16, DTYPE_F16, 1e-3}, {DTYPE_BF16, DTYPE_BF16, 8e-3}};
    for (int i = 0; i < 3; i++) {
        tensors base = one_matrix(16, 32);
        base.list[0].type = types[i].from;
        tensors file = {.count = 0};
        tensor *a = add_pair(&file, QWEN, 16, 32, 5);
        model m;
        with_lora(&m, &base, write(&file, "l.safetensors"), 1);
        assert_int_equal(m.w[0].type, types[i].to);
        assert_true(distance(&m.w[0], &base.list[0], &a[0], &a[1], 1) < types[i].bound);
        close_model(&m, &mem_default);
    }
    /* FP8: zeros here, so that the change alone is left, in BF16. */
    tensors base = one_matrix(16, 32);
    base.list[0].type = DTYPE_F8_E4M3;
    base.list[0].scale = 0;
    tensors file = {.count = 0};
    tensor *a = add_pair(&file, QWEN, 16, 32, 5);
    model m;
    with_lora(&m, &base, write(&file, "l.safetensors"), 1);
    assert_int_equal(m.w[0].type, DTYPE_BF16);
    assert_true(distance(&m.w[0], &base.list[0], &a[0], &a[1], 1) < 8e-3);
    close_model(&m, &mem_default);
    /* What does not fit a type is an error, not infinity. */
    base.list[0].type = DTYPE_F16;
    a[0].scale = a[1].scale = 300;
    refused(&base, &(ct_lora){write(&file, "l.safetensors"), 1}, CT_EFORMAT,
            "beyond the range of F16");
}

/* ---- Hostile files --------------------------------------------------------------------------- */

static void expect(const tensors *file, ct_status status, const char *part)
{
    const tensors base = one_matrix(8, 16);
    refused(&base, &(ct_lora){write(file, "l.safetensors"), 1}, status, part);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        ct_status status;
        const char *part;
    } further[] = {
        {QWEN ".dora_scale", CT_EUNSUPPORTED, "DoRA"},
        {QWEN ".lora_magnitude_vector", CT_EUNSUPPORTED, "DoRA"},
        {QWEN ".lokr_w1", CT_EUNSUPPORTED, "LoKr"},
        {QWEN ".hada_w1_a", CT_EUNSUPPORTED, "LoHa"},
        {QWEN ".diff", CT_EUNSUPPORTED, "whole difference"},
        {QWEN ".diff_b", CT_EUNSUPPORTED, "whole difference"},
        {QWEN ".lora_B.bias", CT_EUNSUPPORTED, "biases"},
        {QWEN ".lora_mid.weight", CT_EUNSUPPORTED, "Tucker"},
        {QWEN ".lora_down.weight", CT_EFORMAT, "for the same module"},
        {"transformer." QWEN ".lora_A.weight", CT_EFORMAT, "for the same module"},
        {"other.lora_A.weight", CT_EFORMAT, "no counterpart"},
        {"other.lora_B.weight", CT_EFORMAT, "no counterpart"},
        {"something.else", CT_EFORMAT, "for only 1 of its 2 modules; not for something.else"},
        {QWEN ".lora_A.a.b.weight", CT_EFORMAT, "for only 1 of its 2 modules"},
        {"lonely.alpha", CT_EFORMAT, "for only 1 of its 2 modules; not for lonely.alpha"},
    };
    for (size_t i = 0; i < sizeof further / sizeof *further; i++) {
        tensors file = {.count = 0};
        add_pair(&file, QWEN, 8, 16, 5);
        add(&file, further[i].name, 8, 16, 3);
        expect(&file, further[i].status, further[i].part);
    }
    tensors file = {.count = 0};
    add_pair(&file, "another.module", 8, 16, 5);
    expect(&file, CT_EFORMAT, "has matrices for only 0 of its 1 modules");
    file.count = 0;
    add(&file, "a", 1, 1, 1);
    expect(&file, CT_EFORMAT, "is no LoRA");
    file.count = 0;
    expect(&file, CT_EFORMAT, "is no LoRA");
}

static void test_bad_shapes(void **state)
{
    (void)state;
    static const struct {
        int rank[2];
        int64_t a[4], b[4];
        const char *part;
    } shapes[] = {
        {{2, 2},
         {3, 16},
         {9, 3},
         "make a change of [9, 16], which does not fit the model's " QWEN ".weight of [8, 16]"},
        {{2, 2}, {3, 15}, {8, 3}, "[8, 15]"},
        {{2, 2}, {3, 8}, {16, 3}, "[16, 8]"},
        {{2, 2}, {3, 16}, {8, 4}, "their ranks differ"},
        {{2, 2}, {0, 16}, {8, 0}, "is empty"},
        {{2, 2}, {3, 0}, {8, 3}, "is empty"},
        {{1, 2}, {16}, {8, 1}, "1 dimensions"},
        {{4, 4}, {3, 16, 3, 3}, {8, 3, 1, 1}, "no convolutions"},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        tensors file = {.count = 0};
        tensor *t = add_pair(&file, QWEN, 8, 16, 5);
        for (int k = 0; k < 2; k++) {
            t[k].rank = shapes[i].rank[k];
            memcpy(t[k].shape, k ? shapes[i].b : shapes[i].a, sizeof t[k].shape);
        }
        expect(&file,
               shapes[i].rank[0] == 1 || shapes[i].rank[0] == 4 ? CT_EUNSUPPORTED : CT_EFORMAT,
               shapes[i].part);
    }
    /* A convolution of one pixel is a matrix. */
    const tensors base = one_matrix(8, 16);
    tensors file = {.count = 0};
    tensor *t = add_pair(&file, QWEN, 8, 16, 5);
    for (int k = 0; k < 2; k++) {
        t[k].rank = 4;
        t[k].shape[2] = t[k].shape[3] = 1;
    }
    model m;
    with_lora(&m, &base, write(&file, "l.safetensors"), 1);
    assert_true(distance(&m.w[0], &base.list[0], &t[0], &t[1], 1) < 1e-6);
    close_model(&m, &mem_default);
}

static void test_bad_numbers(void **state)
{
    (void)state;
    for (int type = 0; type < 3; type++)
        for (int which = 0; which < 2; which++) {
            tensors file = {.count = 0};
            tensor *t = add_pair(&file, QWEN, 8, 16, 5);
            t[which].type = type == 1 ? DTYPE_F16 : DTYPE_F32;
            t[which].scale = type == 0 ? NAN : type == 1 ? 1e30f : INFINITY;
            expect(&file, CT_EFORMAT, "holds NaN or infinity");
        }
    static const float alphas[] = {NAN, INFINITY};
    for (int i = 0; i < 2; i++) {
        tensors file = {.count = 0};
        add_pair(&file, QWEN, 8, 16, 5);
        add_number(&file, QWEN ".alpha", alphas[i]);
        expect(&file, CT_EFORMAT, "must be a single finite number");
    }
    tensors file = {.count = 0};
    add_pair(&file, QWEN, 8, 16, 5);
    add(&file, QWEN ".alpha", 1, 2, 1);
    expect(&file, CT_EFORMAT, "must be a single finite number");
    file.list[2].shape[1] = 1;
    file.list[2].type = DTYPE_U8;
    expect(&file, CT_EFORMAT, "must be a single finite number");
    file.count = 2;
    file.list[0].type = DTYPE_I32;
    expect(&file, CT_EUNSUPPORTED, "is I32");
    file.list[0].type = DTYPE_F32;
    const tensors base = one_matrix(8, 16);
    static const double scales[] = {101, -101, NAN, INFINITY};
    for (int i = 0; i < 4; i++)
        refused(&base, &(ct_lora){write(&file, "l.safetensors"), scales[i]}, CT_EINVAL, "scale is");
    refused(&base, &(ct_lora){"/nowhere.safetensors", 1}, CT_ENOTFOUND, "/nowhere.safetensors");
    refused(&base, &(ct_lora){NULL, 1}, CT_EINVAL, "no path");
}

/* Cut off at every length: an error each time, never more. */
static void test_truncated(void **state)
{
    (void)state;
    const tensors base = one_matrix(8, 16);
    tensors file = {.count = 0};
    add_pair(&file, QWEN, 8, 16, 5);
    add_number(&file, QWEN ".alpha", 1);
    size_t size;
    unsigned char *bytes = test_read_file(write(&file, "l.safetensors"), &size);
    const char *path = write(&base, "model.safetensors"), *cut = test_path(&folder, "cut");
    for (size_t n = 0; n < size; n += n < 400 ? 7 : 41) {
        model m;
        ct_error error = {0};
        test_write_file(cut, bytes, n);
        const ct_lora lora = {cut, 1};
        assert_int_equal(open_model(&m, &mem_default, path, &base, &lora, 1, NULL, &error),
                         CT_EFORMAT);
        close_model(&m, &mem_default);
    }
    free(bytes);
}

typedef struct attempt {
    const char *path;
    const tensors *names;
    ct_lora lora;
} attempt;

static ct_status attempt_open(const ct_allocator *a, void *user, ct_error *error)
{
    const attempt *t = user;
    model m;
    ct_status status = open_model(&m, a, t->path, t->names, &t->lora, 1, NULL, error);
    close_model(&m, a);
    return status;
}

static void test_memory(void **state)
{
    (void)state;
    const tensors base = one_matrix(8, 16);
    tensors file = {.count = 0};
    add_pair(&file, QWEN, 8, 16, 5);
    attempt t = {write(&base, "model.safetensors"), &base, {write(&file, "l.safetensors"), 1}};
    test_each_allocation(attempt_open, &t);
    /* More than the machine has. */
    const load_options options = {.allocator = &mem_default};
    bind_memory memory = {.lora = (lora_set *)&memory, .bytes = (uint64_t)1 << 60};
    ct_error error = {0};
    test_error(bind_memory_fill(&memory, &options, &error), CT_ENOMEM, &error,
               "calotype quantize --lora");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers),      cmocka_unit_test(test_alpha),
        cmocka_unit_test(test_threads),      cmocka_unit_test(test_several),
        cmocka_unit_test(test_scale_0),      cmocka_unit_test(test_keys),
        cmocka_unit_test(test_layouts),      cmocka_unit_test(test_name_list),
        cmocka_unit_test(test_text_encoder), cmocka_unit_test(test_quantized),
        cmocka_unit_test(test_types),        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_bad_shapes),   cmocka_unit_test(test_bad_numbers),
        cmocka_unit_test(test_truncated),    cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
