/* Counting numbers that are not finite: while results are checked, nn/inspect.c. */
#include "nn/cuda/cuda.h"

#define THREADS 256
#define MOST_BLOCKS 8192

/* Of codes of 8 bits the factors of their rows are looked at: a row with a number that is not
 * finite has none that is. Waits for the GPU. The count lies in cuBLASLt's workspace, which nothing
 * uses between two operations. */
int64_t cuda_count_broken(nn *c, const nn_tensor *t)
{
    const cuda_state *s = cuda_of(c);
    const cu_address factors = cuda_scales_of(c, t);
    cu_address x = factors ? factors : cuda_at(t), count = s->workspace;
    int kind = factors ? CUDA_FLOAT : (int)cuda_kind_of(c, t);
    long long rows = t->n[0], columns = factors ? 1 : t->n[1], stride = factors ? 1 : t->stride;
    if (t->rank != 2) {
        columns = stride = nn_count(t);
        rows = 1;
    }
    int broken = 0;
    ct_error error;
    if (cuda_idle(c))
        return 0;
    const int64_t blocks = (rows * columns + THREADS - 1) / THREADS;
    const cuda_grid grid = {.x = blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS, .threads = THREADS};
    const cuda_driver *d = s->driver;
    cu_result result = d->fill_bytes(count, 0, sizeof broken, s->stream);
    CUDA_LAUNCH(c, check_finite, cuda_work_type(c), grid, &x, &kind, &rows, &columns, &stride,
                &count);
    if (result == 0)
        result = d->copy_to_host(&broken, count, sizeof broken, s->stream);
    if (result == 0)
        result = d->stream_wait(s->stream);
    if (cuda_check(d, result, "looking for numbers that are not finite", &error) != CT_OK)
        cuda_fail(c, &error);
    return c->error.code == CT_OK ? broken : 0;
}
