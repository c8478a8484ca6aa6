/* Latents and pictures: planes, patches, and the sampler's arithmetic on them; movement of
 * memory. */
#include "nn/cpu/cpu.h"

#include <math.h>
#include <string.h>

void cpu_upload(nn *c, const nn_tensor *t, const float *data)
{
    (void)c;
    memcpy(t->data, data, (size_t)nn_count(t) * sizeof(float));
}

void cpu_download(nn *c, const nn_tensor *t, float *data)
{
    (void)c;
    memcpy(data, t->data, (size_t)nn_count(t) * sizeof(float));
}

void cpu_move(nn *c, void *to, const void *from, size_t bytes)
{
    (void)c;
    memmove(to, from, bytes);
}

void cpu_move_rows(nn *c, void *to, size_t to_pitch, const void *from, size_t from_pitch,
                   size_t bytes, size_t rows)
{
    (void)c;
    for (size_t i = 0; i < rows; i++)
        memcpy((char *)to + i * to_pitch, (const char *)from + i * from_pitch, bytes);
}

void cpu_take(nn *c, const nn_tensor *out, const nn_tensor *x, int64_t index)
{
    (void)c;
    const int64_t n = x->n[2];
    for (int64_t i = 0; i < x->n[0]; i++)
        memcpy(out->data + i * out->stride, x->data + (i * x->n[1] + index) * n,
               (size_t)n * sizeof(float));
}

void cpu_add_scaled(nn *c, const nn_tensor *x, const nn_tensor *y, float factor)
{
    if (c->params.dry)
        return;
    for (int64_t i = 0; i < nn_count(x); i++)
        x->data[i] += factor * y->data[i];
}

void cpu_guide(nn *c, const nn_tensor *positive, const nn_tensor *negative, float guidance,
               bool normalize)
{
    if (c->params.dry)
        return;
    const int64_t n = nn_count(positive);
    float *x = positive->data;
    double before = 0, after = 0;
    for (int64_t i = 0; i < n; i++) {
        float p = x[i];
        x[i] = p + guidance * (p - negative->data[i]);
        before += (double)p * (double)p;
        after += (double)x[i] * (double)x[i];
    }
    if (!normalize || after <= before)
        return;
    float factor = (float)sqrt(before / after);
    for (int64_t i = 0; i < n; i++)
        x[i] *= factor;
}

/* The token whose first pixel is number `at` of a plane: guided, then as long as it was. */
static void guide_token(const nn_tensor *positive, const nn_tensor *negative, float guidance,
                        int patch, int64_t at)
{
    const int64_t width = positive->n[2], plane = positive->n[1] * width;
    double before = 0, after = 0;
    for (int pass = 0; pass < 2; pass++) {
        const float factor = after > 0 ? (float)sqrt(before / after) : 1;
        for (int64_t ch = 0; ch < positive->n[0]; ch++)
            for (int64_t i = 0; i < patch * patch; i++) {
                const int64_t k = ch * plane + at + i / patch * width + i % patch;
                float *x = &positive->data[k];
                if (pass) {
                    *x *= factor;
                    continue;
                }
                const float p = *x;
                *x = p + guidance * (p - negative->data[k]);
                before += (double)p * (double)p;
                after += (double)*x * (double)*x;
            }
    }
}

void cpu_guide_tokens(nn *c, const nn_tensor *positive, const nn_tensor *negative, float guidance,
                      int patch)
{
    if (c->params.dry)
        return;
    const int64_t height = positive->n[1], width = positive->n[2];
    for (int64_t y = 0; y < height; y += patch)
        for (int64_t x = 0; x < width; x += patch)
            guide_token(positive, negative, guidance, patch, y * width + x);
}

void cpu_patches(nn *c, const nn_tensor *tokens, const nn_tensor *planes, int patch,
                 bool channels_first, bool to_tokens)
{
    if (c->params.dry)
        return;
    const int64_t channels = planes->n[0], height = planes->n[1], width = planes->n[2];
    const int64_t parts = patch * patch, step = channels_first ? parts : 1;
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++) {
            int64_t token = y / patch * (width / patch) + x / patch;
            int64_t part = y % patch * patch + x % patch;
            float *features =
                tokens->data + token * parts * channels + part * (channels_first ? 1 : channels);
            for (int64_t ch = 0; ch < channels; ch++) {
                float *pixel = &planes->data[(ch * height + y) * width + x];
                if (to_tokens)
                    features[ch * step] = *pixel;
                else
                    *pixel = features[ch * step];
            }
        }
}

void cpu_upload_planes(nn *c, const nn_tensor *picture, const float *planes, float factor,
                       float offset)
{
    const int64_t pixels = picture->n[0] * picture->n[1], channels = picture->n[2];
    for (int64_t ch = 0; !c->params.dry && ch < channels; ch++)
        for (int64_t i = 0; i < pixels; i++)
            picture->data[i * channels + ch] = planes[ch * pixels + i] * factor + offset;
}

void cpu_download_planes(nn *c, const nn_tensor *picture, float *planes)
{
    const int64_t pixels = picture->n[0] * picture->n[1], channels = picture->n[2];
    for (int64_t i = 0; !c->params.dry && i < pixels; i++)
        for (int64_t ch = 0; ch < channels; ch++)
            planes[ch * pixels + i] = picture->data[i * channels + ch];
}
