#include "pipeline/noise.h"

#include "core/mem.h"
#include "io/weights.h"

#include <inttypes.h>
#include <string.h>

bool numbers_finite(const float *x, int64_t count)
{
    /* x - x is 0, or not a number; compilers make vectors of this. */
    uint32_t bad = 0;
    for (int64_t i = 0; i < count; i++) {
        const float none = x[i] - x[i];
        uint32_t bits;
        memcpy(&bits, &none, sizeof bits);
        bad |= bits;
    }
    return bad == 0;
}

ct_status noise_read(const ct_job *job, float *numbers, ct_error *error)
{
    weights *file = NULL;
    const int64_t shape[] = {job->model->parts.channels, job->latent_height, job->latent_width};
    ct_status status = weights_open_file(&file, job->allocator, job->noise_path, error);
    if (status != CT_OK)
        return status;
    const weight_view *v = weights_find(file, "noise");
    /* A leading batch of one is allowed. */
    const int64_t *n = v && v->rank == 4 && v->shape[0] == 1 ? v->shape + 1 : v ? v->shape : NULL;
    const int rank = v ? (int)(v->rank - (n - v->shape)) : 0;
    if (!v)
        status =
            error_set(error, CT_ENOTFOUND, "%s has no tensor named \"noise\"", job->noise_path);
    else if (!dtype_is_float(v->type) || rank != 3 || memcmp(n, shape, sizeof shape) != 0)
        status = error_set(error, CT_EFORMAT,
                           "%s: the tensor \"noise\" must be F32, F16 or BF16 with shape [%" PRId64
                           ", %" PRId64 ", %" PRId64 "] for this size",
                           job->noise_path, shape[0], shape[1], shape[2]);
    else
        dtype_to_float(numbers, v->data, v->type, (size_t)job->latent_count);
    if (status == CT_OK && !numbers_finite(numbers, job->latent_count))
        status =
            error_set(error, CT_EFORMAT, "%s: the tensor \"noise\" has numbers that are not finite",
                      job->noise_path);
    weights_close(file);
    return status;
}

ct_status noise_check(const ct_job *job, ct_error *error)
{
    const size_t count = (size_t)job->latent_count;
    float *numbers = mem_array(job->allocator, count, sizeof *numbers);
    if (!numbers)
        return error_memory(error, count * sizeof *numbers, "the noise");
    const ct_status status = noise_read(job, numbers, error);
    mem_free(job->allocator, numbers);
    return status;
}
