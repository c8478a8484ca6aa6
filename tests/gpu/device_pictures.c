/* Of test_device.c: convolutions and norms of pictures. */
#include "device_support.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct conv_case {
    int64_t height, width, in, out, h, w;
    int kernel;
    nn_conv p;
    bool normed;
    float *x, *y, *norm;
    nn_weight weight, bias;
} conv_case;

static void conv_body(nn *c, void *user, float *out)
{
    const conv_case *k = user;
    nn_tensor x = put_picture(c, k->x, k->height, k->width, k->in);
    nn_tensor y = put_picture(c, k->y, k->h, k->w, k->out);
    nn_tensor norm = put_float(c, k->norm, 2, k->in);
    nn_conv p = k->p;
    p.norm = k->normed ? &norm : NULL;
    nn_conv2d(c, &y, &x, &k->weight, &k->bias, &p);
    nn_download_planes(c, &y, out);
}

static nn_weight conv_weight(int64_t out, int64_t in, int kernel)
{
    nn_weight w = weight(DTYPE_BF16, 0, 2, out, in * kernel * kernel);
    w.rank = 4;
    w.n[1] = in;
    w.n[2] = w.n[3] = kernel;
    return w;
}

static void test_conv(void)
{
    for (int i = 0; i < 30; i++) {
        conv_case k = {.height = between(2, 40),
                       .width = between(2, 40),
                       .in = i % 5 == 0 ? 3 : 8 * between(1, 20),
                       .out = i % 7 == 0 ? 3 : 8 * between(1, 20),
                       .kernel = i % 4 == 0 ? 1 : 3,
                       .normed = random32() & 1};
        k.p.add = random32() & 1;
        k.p.upsample = k.kernel == 3 && i % 3 == 1;
        if (k.kernel == 3 && i % 6 == 2) {
            k.p.stride = 2;
            k.p.pad_bottom_right = true;
            k.height *= 2;
            k.width *= 2;
        }
        k.h = k.p.upsample ? 2 * k.height : k.p.stride == 2 ? k.height / 2 : k.height;
        k.w = k.p.upsample ? 2 * k.width : k.p.stride == 2 ? k.width / 2 : k.width;
        if (k.kernel == 3 && i % 6 == 5) { /* a band */
            k.height = 4 * between(2, 6) + 2;
            k.p.above = k.p.below = 1;
            k.h = (k.height - 2) * (k.p.upsample ? 2 : 1);
        }
        k.weight = conv_weight(k.out, k.in, k.kernel);
        k.bias = weight(DTYPE_F32, 0, 1, k.out, 1);
        k.x = numbers(k.height * k.width * k.in, 1);
        k.y = numbers(k.h * k.w * k.out, 1);
        k.norm = numbers(2 * k.in, 1);
        char name[96];
        snprintf(name, sizeof name, "conv %d %dx%d %d>%d%s%s%s%s%s", k.kernel, (int)k.height,
                 (int)k.width, (int)k.in, (int)k.out, k.normed ? " norm" : "",
                 k.p.add ? " add" : "", k.p.upsample ? " up" : "", k.p.stride == 2 ? " /2" : "",
                 k.p.above ? " band" : "");
        run(&(test){name, {1e-5, 2e-2}, k.h * k.w * k.out, conv_body, &k});
        free(k.x);
        free(k.y);
        free(k.norm);
    }
}

/* Convolutions as the VAE chains them: the sums of a norm come with the result, and the bias of
 * one that is only read through its norm comes late. x [H, W, in] -> conv1 (doubling, or not) ->
 * norm -> conv2 added to y -> norm -> out. */
typedef struct chain_case {
    int64_t height, width, in, out;
    int groups;
    bool doubled, late;
    float *x, *y;
    nn_weight conv[2], bias[2], w[2], b[2];
} chain_case;

static void chain_body(nn *c, void *user, float *out)
{
    const chain_case *k = user;
    const int64_t h = k->height << k->doubled, w = k->width << k->doubled;
    nn_tensor x = put_picture(c, k->x, k->height, k->width, k->in);
    nn_tensor y = put_picture(c, k->y, h, w, k->out), t = nn_new_work3(c, h, w, k->out);
    nn_tensor sums = nn_new_sums(c, h, k->groups), norm = nn_new2(c, 2, k->out);
    nn_conv2d(c, &t, &x, &k->conv[0], &k->bias[0],
              &(nn_conv){.upsample = k->doubled, .sums = &sums, .late_bias = k->late});
    nn_group_factors(c, &norm, &sums, w, &k->w[0], &k->b[0], 1e-6, k->late ? &k->bias[0] : NULL);
    nn_conv2d(c, &y, &t, &k->conv[1], &k->bias[1],
              &(nn_conv){.norm = &norm, .add = true, .sums = &sums});
    nn_group_factors(c, &norm, &sums, w, &k->w[1], &k->b[1], 1e-6, NULL);
    nn_apply_norm(c, &y, &y, &norm);
    nn_download_planes(c, &y, out);
}

static void test_chains(void)
{
    for (int i = 0; i < 10; i++) {
        chain_case k = {.height = between(1, 30),
                        .width = between(1, 30),
                        .in = i == 9 ? 12 : 16 * between(1, 8), /* 12 fit no vector */
                        .groups = 4,
                        .doubled = i % 2 == 0,
                        .late = i % 3 != 0};
        k.out = i == 8 ? 12 : 16 * between(1, 8);
        const int64_t count = (k.height * k.width * k.out) << 2 * k.doubled;
        k.x = numbers(k.height * k.width * k.in, 1);
        k.y = numbers(count, 1);
        for (int j = 0; j < 2; j++) {
            k.conv[j] = conv_weight(k.out, j ? k.out : k.in, 3);
            k.bias[j] = weight(DTYPE_F32, 0, 1, k.out, 1);
            k.w[j] = weight(DTYPE_F32, 0, 1, k.out, 1);
            k.b[j] = weight(DTYPE_BF16, 0, 1, k.out, 1);
        }
        char name[96];
        snprintf(name, sizeof name, "convs and norms %dx%d %d>%d%s%s", (int)k.height, (int)k.width,
                 (int)k.in, (int)k.out, k.doubled ? " up" : "", k.late ? " late bias" : "");
        run(&(test){name, {2e-5, 3e-2}, count, chain_body, &k});
        free(k.x);
        free(k.y);
    }
}

/* To a few channels, by the kernel that norms while it reads: tiles that end within the picture and
 * at its edge, bands. */
static void test_few(void)
{
    for (int i = 0; i < 8; i++) {
        conv_case k = {.height = between(1, 40),
                       .width = i % 2 ? 32 * between(1, 3) : between(1, 70),
                       .in = 32 * between(1, 4),
                       .out = i % 3 == 0 ? 3 : between(1, 8),
                       .kernel = 3,
                       .normed = i % 4 != 3};
        k.h = k.height;
        k.w = k.width;
        if (i >= 6) {
            k.height = 4 * between(2, 6) + 2;
            k.p.above = k.p.below = 1;
            k.h = k.height - 2;
        }
        k.weight = conv_weight(k.out, k.in, 3);
        k.bias = weight(DTYPE_F32, 0, 1, k.out, 1);
        k.x = numbers(k.height * k.width * k.in, 1);
        k.y = numbers(k.h * k.w * k.out, 1);
        k.norm = numbers(2 * k.in, 1);
        char name[96];
        snprintf(name, sizeof name, "conv to few, %dx%d %d>%d%s%s", (int)k.height, (int)k.width,
                 (int)k.in, (int)k.out, k.normed ? " norm" : "", k.p.above ? " band" : "");
        run(&(test){name, {1e-5, 2e-2}, k.h * k.w * k.out, conv_body, &k});
        free(k.x);
        free(k.y);
        free(k.norm);
    }
}

/* Convolutions as Qwen's VAE has them, of pixels that are normed: x -> conv1, whose bias may come
 * late -> norm, conv2, added to y -> norm, conv3. Bands, and few outputs at the end. */
typedef struct pixel_case {
    int64_t height, width, in, middle, out;
    bool late, floats;
    float *x, *y;
    nn_weight conv[3], bias[3], gamma[3];
} pixel_case;

/* Rows first .. end-1 of y by conv i of x. */
static void pixel_conv(nn *c, const pixel_case *k, int i, const nn_tensor *y, const nn_tensor *x,
                       int64_t first, int64_t end)
{
    const int64_t above = first > 0, below = end < k->height;
    const nn_pixel_norm norm = {&k->gamma[i], 1e-5, i == 1 && k->late ? &k->bias[0] : NULL};
    nn_tensor to = nn_rows(y, first, end - first);
    nn_tensor from = nn_rows(x, first - above, end - first + above + below);
    nn_conv2d(c, &to, &from, &k->conv[i], &k->bias[i],
              &(nn_conv){.pixel_norm = &norm,
                         .late_bias = i == 0 && k->late,
                         .add = i == 1,
                         .above = above,
                         .below = below});
}

static void pixel_body(nn *c, void *user, float *out)
{
    const pixel_case *k = user;
    const int64_t h = k->height, w = k->width, half = h > 8 ? 8 : h;
    nn_tensor x = put_picture(c, k->x, h, w, k->in), y = put_picture(c, k->y, h, w, k->middle);
    nn_tensor t = nn_new_work3(c, h, w, k->middle), z = nn_new_work3(c, h, w, k->out);
    if (k->floats) { /* of another type than the convolution's, on a GPU */
        nn_tensor wide = nn_new3(c, h, w, k->in);
        nn_upload(c, &wide, k->x, h * w * k->in);
        x = wide;
    }
    pixel_conv(c, k, 0, &t, &x, 0, h);
    pixel_conv(c, k, 1, &y, &t, 0, half);
    if (half < h)
        pixel_conv(c, k, 1, &y, &t, half, h);
    pixel_conv(c, k, 2, &z, &y, 0, half);
    if (half < h)
        pixel_conv(c, k, 2, &z, &y, half, h);
    nn_download_planes(c, &z, out);
}

static void test_pixels(void)
{
    static const int64_t channels[][3] = {/* in, middle, out */
                                          {96, 96, 3},   {192, 384, 3}, {16, 24, 8}, {384, 192, 96},
                                          {12, 40, 5},   {8, 768, 16},  {776, 8, 3}, {96, 192, 3},
                                          {128, 512, 3}, {32, 96, 8}};
    for (int i = 0; i < 10; i++) {
        pixel_case k = {.height = between(1, 30),
                        .width = i % 2 ? between(1, 70) : 8 * between(1, 8),
                        .in = channels[i][0],
                        .middle = channels[i][1],
                        .out = channels[i][2],
                        .late = i % 3 != 1,
                        .floats = i == 3};
        const int64_t sides[4] = {k.in, k.middle, k.middle, k.out};
        k.x = numbers(k.height * k.width * k.in, 1);
        k.y = numbers(k.height * k.width * k.middle, 1);
        for (int j = 0; j < 3; j++) {
            k.conv[j] = conv_weight(sides[j + 1], sides[j], 3);
            k.bias[j] = weight(DTYPE_F32, 0, 1, sides[j + 1], 1);
            k.gamma[j] = weight(DTYPE_BF16, 0, 1, sides[j], 1);
        }
        char name[96];
        snprintf(name, sizeof name, "convs and norms of pixels %dx%d %d>%d>%d%s", (int)k.height,
                 (int)k.width, (int)k.in, (int)k.middle, (int)k.out, k.late ? " late bias" : "");
        run(&(test){name, {2e-5, 3e-2}, k.height * k.width * k.out, pixel_body, &k});
        free(k.x);
        free(k.y);
    }
}

typedef struct group_case {
    int64_t height, width, channels;
    int groups;
    float *x;
    nn_weight w, b;
} group_case;

static void group_body(nn *c, void *user, float *out)
{
    const group_case *g = user;
    nn_tensor x = put_picture(c, g->x, g->height, g->width, g->channels);
    nn_tensor norm = nn_new2(c, 2, g->channels), sums = nn_new_sums(c, g->height, g->groups);
    nn_tensor y = nn_new_work3(c, g->height, g->width, g->channels);
    const int64_t first = g->height / 2;
    nn_tensor top = nn_rows(&x, 0, first), rest = nn_rows(&x, first, g->height - first);
    if (first)
        nn_group_sums(c, &sums, 0, &top);
    nn_group_sums(c, &sums, first, &rest);
    nn_group_factors(c, &norm, &sums, g->width, &g->w, &g->b, 1e-6, NULL);
    nn_apply_norm(c, &y, &x, &norm);
    nn_download_planes(c, &y, out);
}

static void test_groups(void)
{
    for (int i = 0; i < 8; i++) {
        group_case g = {
            .height = between(1, 50), .width = between(1, 50), .groups = i & 1 ? 32 : 4};
        g.channels = g.groups * between(1, 16);
        g.x = numbers(g.height * g.width * g.channels, 3);
        g.w = weight(DTYPE_F32, 0, 1, g.channels, 1);
        g.b = weight(DTYPE_BF16, 0, 1, g.channels, 1);
        run(&(test){"group norm", {1e-5, 1e-2}, g.height * g.width * g.channels, group_body, &g});
        free(g.x);
    }
}

void test_pictures(void)
{
    test_groups();
    test_conv();
    test_chains();
    test_few();
    test_pixels();
}
