#include "toy_lora.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/affine.h"
#include "core/mem.h"
#include "io/safetensors.h"

test_folder toy_folder;

int toy_set_up(void **state)
{
    (void)state;
    test_folder_create(&toy_folder);
    return 0;
}

int toy_tear_down(void **state)
{
    (void)state;
    test_folder_remove(&toy_folder);
    return 0;
}

/* ---- Files ----------------------------------------------------------------------------------- */

int64_t toy_count(const toy_tensor *t)
{
    int64_t count = 1;
    for (int i = 0; i < t->rank; i++)
        count *= t->shape[i];
    return count;
}

float *toy_numbers(const toy_tensor *t)
{
    const int64_t count = toy_count(t);
    float *numbers = malloc((size_t)(count ? count : 1) * sizeof *numbers);
    uint32_t x = t->seed * 2654435761u + 12345u;
    for (int64_t i = 0; i < count; i++) {
        x = x * 1664525u + 1013904223u;
        numbers[i] = t->rank ? t->scale * ((float)(x >> 8) / 8388608.0f - 1) : t->scale;
    }
    return numbers;
}

toy_tensor *toy_add(toy_tensors *f, const char *name, int64_t rows, int64_t columns, uint32_t seed)
{
    toy_tensor *t = &f->list[f->count++];
    assert_true(f->count <= 4 * TOY_MOST);
    *t = (toy_tensor){
        .type = DTYPE_F32, .rank = 2, .shape = {rows, columns}, .seed = seed, .scale = 1};
    snprintf(t->name, sizeof t->name, "%s", name);
    return t;
}

toy_tensor *toy_add_pair(toy_tensors *f, const char *module, int64_t rows, int64_t columns,
                         uint32_t seed)
{
    char name[200];
    snprintf(name, sizeof name, "%.150s.lora_A.weight", module);
    toy_tensor *first = toy_add(f, name, TOY_RANK, columns, seed);
    snprintf(name, sizeof name, "%.150s.lora_B.weight", module);
    toy_add(f, name, rows, TOY_RANK, seed + 1);
    return first;
}

toy_tensor *toy_add_number(toy_tensors *f, const char *name, float number)
{
    toy_tensor *t = toy_add(f, name, 0, 0, 0);
    t->rank = 0;
    t->scale = number;
    return t;
}

const char *toy_write_with(const toy_tensors *f, const char *name, const char *metadata)
{
    const char *path = test_path(&toy_folder, name);
    safetensors_writer *out = NULL;
    ct_error error;
    test_ok(safetensors_writer_open(&out, &mem_default, path, &error), &error);
    if (metadata)
        test_ok(safetensors_writer_metadata(out, "lora_adapter_metadata", metadata, &error),
                &error);
    for (int i = 0; i < f->count; i++) {
        const toy_tensor *t = &f->list[i];
        float *numbers = toy_numbers(t);
        void *data = calloc((size_t)toy_count(t) + 1, 8);
        if (t->type == DTYPE_F32 || t->type == DTYPE_F16 || t->type == DTYPE_BF16)
            dtype_from_float(data, numbers, t->type, (size_t)toy_count(t));
        test_ok(safetensors_writer_add(out, t->name, t->type, t->rank, t->shape, data, &error),
                &error);
        free(numbers);
        free(data);
    }
    test_ok(safetensors_writer_commit(out, &error), &error);
    return path;
}

const char *toy_write(const toy_tensors *f, const char *name)
{
    return toy_write_with(f, name, NULL);
}

/* ---- Models ---------------------------------------------------------------------------------- */

ct_status toy_open(toy_model *m, const ct_allocator *a, const char *path, const toy_tensors *names,
                   const ct_lora *list, int count, pool *threads, ct_error *error)
{
    *m = (toy_model){.count = names->count};
    load_options options = {.allocator = a, .threads = threads, .memory = &m->memory};
    ct_status status = weights_open_file(&m->source, a, path, error);
    binder b = {.source = m->source, .options = &options, .error = error};
    if (status == CT_OK)
        status = lora_open(&m->loras, a, threads, list, count, error);
    m->memory.lora = m->loras;
    for (int i = 0; status == CT_OK && i < names->count; i++) {
        const toy_tensor *t = &names->list[i];
        m->w[i] = bind2(&b, t->shape[0], t->shape[1], "%s", t->name);
        status = b.status;
    }
    if (status == CT_OK)
        status = lora_check(m->loras, "the model", error);
    if (status == CT_OK)
        status = bind_memory_fill(&m->memory, &options, error);
    return status;
}

void toy_close(toy_model *m, const ct_allocator *a)
{
    bind_memory_free(&m->memory, a);
    weights_close(m->source);
    lora_close(m->loras);
}

void toy_with_loras(toy_model *m, const toy_tensors *names, const ct_lora *list, int count)
{
    ct_error error;
    const char *path = toy_write(names, "model.safetensors");
    test_ok(toy_open(m, &mem_default, path, names, list, count, NULL, &error), &error);
}

void toy_with_lora(toy_model *m, const toy_tensors *names, const char *path, double scale)
{
    toy_with_loras(m, names, &(ct_lora){path, scale}, 1);
}

void toy_refused(const toy_tensors *names, const ct_lora *lora, ct_status expected,
                 const char *part)
{
    toy_model m;
    ct_error error = {0};
    const char *path = toy_write(names, "model.safetensors");
    ct_status status = toy_open(&m, &mem_default, path, names, lora, 1, NULL, &error);
    test_error(status, expected, &error, part);
    toy_close(&m, &mem_default);
}

float *toy_decoded(const nn_weight *w)
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

void toy_assert_same(const toy_model *a, const toy_model *b)
{
    assert_int_equal(a->count, b->count);
    for (int i = 0; i < a->count; i++) {
        const nn_weight *x = &a->w[i], *y = &b->w[i];
        assert_int_equal(x->type, y->type);
        test_bytes_equal(x->data, y->data, (size_t)(x->n[0] * x->n[1]) * dtype_size(x->type));
    }
}

double toy_distance(const nn_weight *w, const toy_tensor *base, const toy_tensor *a,
                    const toy_tensor *b, double factor)
{
    float *now = toy_decoded(w), *from = toy_numbers(base), *down = toy_numbers(a),
          *up = toy_numbers(b);
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

toy_tensors toy_matrix(int64_t rows, int64_t columns)
{
    toy_tensors m = {.count = 0};
    toy_add(&m, TOY_MODULE ".weight", rows, columns, 1);
    return m;
}
