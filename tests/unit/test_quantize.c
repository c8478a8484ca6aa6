/* Quantized models: writing them, reading them back, also where they have no configuration. What
 * affine_encode makes is what MLX makes (test_affine.c), so files are compared with that. */
#define _XOPEN_SOURCE 700
#include "test_support.h"

#include "core/affine.h"
#include "core/folder.h"
#include "core/mem.h"
#include "io/names.h"
#include "io/safetensors.h"
#include "models/bind.h"
#include "models/vae_kl.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static ct_context *new_context(int threads, const ct_callbacks *callbacks)
{
    ct_context_params p;
    ct_context_params_init(&p);
    p.device = "cpu";
    p.threads = threads;
    if (callbacks)
        p.callbacks = *callbacks;
    ct_context *context = NULL;
    ct_error error;
    test_ok(ct_context_create(&p, &context, &error), &error);
    return context;
}

static ct_status quantize(ct_context *context, const char *model, const char *output, int bits,
                          int group, ct_error *error)
{
    ct_quantize_params p;
    ct_quantize_params_init(&p);
    p.output = output;
    p.bits = bits;
    p.group_size = group;
    return ct_quantize(context, model, &p, NULL, error);
}

static weights *open_part(const char *model, const char *part)
{
    char path[1100];
    weights *w = NULL;
    ct_error error;
    const bool encoder = !strcmp(part, "text_encoder");
    snprintf(path, sizeof path, "%s/%s", model, part);
    test_ok(weights_open_directory(&w, &mem_default, path,
                                   encoder ? "model" : "diffusion_pytorch_model", &error),
            &error);
    return w;
}

static const weight_view *need(const weights *w, const char *name)
{
    const weight_view *v = weights_find(w, name);
    if (!v)
        fail_msg("%s has no %s", weights_source(w), name);
    return v;
}

static void remove_tree(test_folder *folder)
{
    folder_remove(&mem_default, folder->path);
}

/* ---- Writing and reading back ---------------------------------------------------------------- */

/* The quantized copy of a matrix against affine_encode; returns the relative error. */
static double check_matrix(const weights *to, const weight_view *from, const char *name, int bits,
                           int64_t group)
{
    char part[NAMES_LENGTH];
    const int stem = (int)(strlen(name) - strlen("weight"));
    const weight_view *codes = need(to, name);
    snprintf(part, sizeof part, "%.*sscales", stem, name);
    const weight_view *scales = need(to, part);
    snprintf(part, sizeof part, "%.*sbiases", stem, name);
    const weight_view *biases = need(to, part);
    const int64_t rows = from->shape[0], columns = from->shape[1];
    const size_t size = dtype_size(from->type), row_bytes = (size_t)(columns * bits / 8);
    const size_t scale_bytes = (size_t)(columns / group) * size;
    assert_int_equal(codes->type, DTYPE_U32);
    assert_int_equal(scales->type, from->type);
    assert_int_equal(codes->bytes, (size_t)rows * row_bytes);
    assert_int_equal(scales->bytes, (size_t)rows * scale_bytes);
    float *in = malloc((size_t)columns * 2 * sizeof *in), *back = in + columns;
    unsigned char *expected = malloc(row_bytes + 2 * scale_bytes);
    assert_true(in && expected);
    double error = 0, norm = 0;
    for (size_t r = 0; r < (size_t)rows; r++) {
        dtype_to_float(in, from->data + r * (size_t)columns * size, from->type, (size_t)columns);
        unsigned char *s = expected + row_bytes, *b = s + scale_bytes;
        affine_encode(expected, s, b, from->type, in, columns, bits, group);
        test_bytes_equal(codes->data + r * row_bytes, expected, row_bytes);
        test_bytes_equal(scales->data + r * scale_bytes, s, scale_bytes);
        test_bytes_equal(biases->data + r * scale_bytes, b, scale_bytes);
        affine_decode(back, expected, bits, group, s, b, from->type, 0, columns);
        for (int64_t i = 0; i < columns; i++) {
            error += ((double)back[i] - (double)in[i]) * ((double)back[i] - (double)in[i]);
            norm += (double)in[i] * (double)in[i];
        }
    }
    free(in);
    free(expected);
    return norm > 0 ? sqrt(error / norm) : 0;
}

static void check_convolution(const weight_view *to, const weight_view *from)
{
    const size_t size = dtype_size(from->type), in = (size_t)from->shape[1];
    const size_t pixels = (size_t)(from->shape[2] * from->shape[3]);
    assert_int_equal(to->type, from->type);
    assert_int_equal(to->shape[0], from->shape[0]);
    assert_int_equal(to->shape[1], from->shape[2]);
    assert_int_equal(to->shape[3], from->shape[1]);
    for (size_t o = 0; o < (size_t)from->shape[0]; o++)
        for (size_t i = 0; i < in; i++)
            for (size_t p = 0; p < pixels; p++)
                test_bytes_equal(to->data + ((o * pixels + p) * in + i) * size,
                                 from->data + ((o * in + i) * pixels + p) * size, size);
}

/* Every tensor of a component; returns how many are quantized. */
static int check_part(const char *model, const char *output, const char *part, int bits,
                      int64_t group)
{
    weights *from = open_part(model, part), *to = open_part(output, part);
    const bool mflux = group == 64, vae = !strcmp(part, "vae");
    const char *text = weights_metadata(to, "relative_l2");
    json_value *errors = NULL;
    ct_error error;
    assert_non_null(text);
    test_ok(json_parse(&errors, text, strlen(text), "relative_l2", &error), &error);
    size_t expected = 0;
    int quantized = 0;
    for (size_t i = 0; i < weights_count(from); i++) {
        const weight_view *v = weights_at(from, i);
        char name[NAMES_LENGTH], module[NAMES_LENGTH];
        names_spell(name, mflux ? NAMES_MFLUX : NAMES_MLX_Z_IMAGE, v->name);
        const weight_view *w = need(to, name);
        const char *end = strrchr(name, '.');
        expected++;
        if (v->rank == 2 && end && !strcmp(end, ".weight") && v->shape[1] % group == 0 &&
            (mflux || !vae)) {
            double told = 0, actual = check_matrix(to, v, name, bits, group);
            snprintf(module, sizeof module, "%.*s", (int)(end - name), name);
            assert_true(json_get_number(json_get(errors, module), &told));
            assert_true(fabs(told - actual) <= 0.5000001e-8);
            expected += 2;
            quantized++;
        } else if (v->rank == 4 && mflux) {
            check_convolution(w, v);
        } else {
            assert_int_equal(w->type, v->type);
            assert_int_equal(w->bytes, v->bytes);
            test_bytes_equal(w->data, v->data, v->bytes);
        }
    }
    assert_int_equal(weights_count(to), expected);
    assert_int_equal(json_size(errors), quantized);
    json_free(errors);
    weights_close(from);
    weights_close(to);
    return quantized;
}

/* The same bytes; for MLX-z-image with a key of its own. */
static void check_configuration(const char *model, const char *output, int group)
{
    char from[1100], to[1100];
    size_t size, copied;
    snprintf(from, sizeof from, "%s/transformer/config.json", model);
    snprintf(to, sizeof to, "%s/transformer/config.json", output);
    char *a = (char *)test_read_file(from, &size), *b = (char *)test_read_file(to, &copied);
    if (group == 64) {
        assert_string_equal(a, b);
    } else {
        const char *key = strstr(b, "\"nheads\": ");
        assert_non_null(key);
        assert_int_equal(atoi(key + 10), atoi(strstr(a, "\"n_heads\": ") + 11));
        assert_string_equal(strchr(a, '{') + 1, strchr(key, ',') + 1);
    }
    free(a);
    free(b);
}

static const struct {
    const char *model;
    int bits, group;
    int quantized[3]; /* text encoder, transformer, VAE */
} runs[] = {
    {"turbo/model", 4, 32, {0, 9, 0}},
    {"base/model", 5, 64, {4, 3, 0}},
    {"head128/model", 3, 64, {0, 11, 0}},
    {"head128/model", 8, 32, {11, 12, 0}},
    {"../../models/emoji-256", 4, 32, {29, 69, 0}},
    {"../../models/emoji-256", 8, 64, {29, 20, 0}},
};

static void test_read_back(void **state)
{
    (void)state;
    ct_context *context = new_context(2, NULL);
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        test_folder folder;
        test_folder_create(&folder);
        const char *model = test_fixture(runs[i].model), *output = test_path(&folder, "out");
        ct_error error = {0};
        test_ok(quantize(context, model, output, runs[i].bits, runs[i].group, &error), &error);
        assert_int_equal(check_part(model, output, "text_encoder", runs[i].bits, runs[i].group),
                         runs[i].quantized[0]);
        assert_int_equal(check_part(model, output, "transformer", runs[i].bits, runs[i].group),
                         runs[i].quantized[1]);
        assert_int_equal(check_part(model, output, "vae", runs[i].bits, runs[i].group),
                         runs[i].quantized[2]);
        assert_int_equal(test_folder_count(&folder), 1);
        check_configuration(model, output, runs[i].group);

        ct_model *original = NULL, *quantized = NULL;
        test_ok(ct_model_load(context, model, &original, &error), &error);
        test_ok(ct_model_load(context, output, &quantized, &error), &error);
        const ct_model_info *a = ct_model_get_info(original), *b = ct_model_get_info(quantized);
        char expected[64];
        snprintf(expected, sizeof expected, "%d-bit, groups of %d", runs[i].bits, runs[i].group);
        for (int c = 0; c < 3; c++) {
            assert_string_equal(a->component[c].summary, b->component[c].summary);
            assert_int_equal(a->component[c].parameters, b->component[c].parameters);
            assert_string_equal(a->component[c].quantization, "");
            assert_string_equal(b->component[c].quantization, runs[i].quantized[c] ? expected : "");
        }
        assert_true(a->default_shift == b->default_shift);
        ct_model_free(&original);
        ct_model_free(&quantized);
        remove_tree(&folder);
    }
    ct_context_free(&context);
}

/* Convolutions of a saved copy are those of the original; three input channels and a 3 x 3 window
 * look the same in both orders. */
static void test_channels_last(void **state)
{
    (void)state;
    ct_context *context = new_context(1, NULL);
    test_folder folder;
    test_folder_create(&folder);
    const char *output = test_path(&folder, "out");
    ct_error error = {0};
    test_ok(quantize(context, test_fixture("turbo/model"), output, 4, 64, &error), &error);
    char path[1100];
    snprintf(path, sizeof path, "%s/vae", output);
    const load_options options = {.allocator = &mem_default};
    vae_kl *a = NULL, *b = NULL;
    test_ok(vae_kl_load(&a, &options, test_fixture("turbo/model/vae"), &error), &error);
    test_ok(vae_kl_load(&b, &options, path, &error), &error);
    const nn_weight *pairs[][2] = {
        {&a->encoder.conv_in, &b->encoder.conv_in},
        {&a->encoder.conv_out, &b->encoder.conv_out},
        {&a->decoder.conv_in, &b->decoder.conv_in},
        {&a->decoder.block[1].resnet[0].shortcut, &b->decoder.block[1].resnet[0].shortcut},
        {&a->decoder.block[0].resize, &b->decoder.block[0].resize},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        const nn_weight *x = pairs[i][0], *y = pairs[i][1];
        const int64_t count = x->n[0] * x->n[1] * x->n[2] * x->n[3];
        assert_true(nn_has(x) && nn_has(y));
        assert_int_equal(x->type, y->type);
        test_bytes_equal(y->data, x->data, (size_t)count * dtype_size(x->type));
    }
    vae_kl_free(a);
    vae_kl_free(b);
    ct_context_free(&context);
    remove_tree(&folder);
}

/* ---- A model without configuration ----------------------------------------------------------- */

typedef struct maker {
    safetensors_writer *out;
    name_layout layout;
    const char *left_out; /* a tensor; NULL: none */
} maker;

CORE_PRINTF(5, 6)
static void make(maker *m, int64_t n0, int64_t n1, int64_t kernel, const char *format, ...)
{
    static float numbers[1 << 18];
    char name[NAMES_LENGTH], spelled[NAMES_LENGTH];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    if (m->left_out && !strcmp(name, m->left_out))
        return;
    names_spell(spelled, m->layout, name);
    const int64_t shape[4] = {n0, kernel ? kernel : n1, kernel, n1};
    assert_true(n0 * (n1 ? n1 : 1) * (kernel ? kernel * kernel : 1) <= 1 << 18);
    ct_error error;
    test_ok(safetensors_writer_add(m->out, spelled, DTYPE_F32,
                                   kernel ? 4
                                   : n1   ? 2
                                          : 1,
                                   shape, numbers, &error),
            &error);
}

static void make_block(maker *m, const char *stack, bool modulated)
{
    static const char *const linear[] = {"to_q", "to_k", "to_v", "to_out.0"};
    static const char *const norms[] = {"attention_norm1", "attention_norm2", "ffn_norm1",
                                        "ffn_norm2"};
    for (int i = 0; i < 4; i++) {
        make(m, 128, 128, 0, "%s.0.attention.%s.weight", stack, linear[i]);
        make(m, 128, 0, 0, "%s.0.%s.weight", stack, norms[i]);
    }
    make(m, 128, 0, 0, "%s.0.attention.norm_q.weight", stack);
    make(m, 128, 0, 0, "%s.0.attention.norm_k.weight", stack);
    make(m, 341, 128, 0, "%s.0.feed_forward.w1.weight", stack);
    make(m, 128, 341, 0, "%s.0.feed_forward.w2.weight", stack);
    make(m, 341, 128, 0, "%s.0.feed_forward.w3.weight", stack);
    if (modulated) {
        make(m, 512, 128, 0, "%s.0.adaLN_modulation.0.weight", stack);
        make(m, 512, 0, 0, "%s.0.adaLN_modulation.0.bias", stack);
    }
}

static void make_transformer(maker *m)
{
    make(m, 1024, 128 * 2, 0, "t_embedder.mlp.0.weight");
    make(m, 1024, 0, 0, "t_embedder.mlp.0.bias");
    make(m, 128, 1024, 0, "t_embedder.mlp.2.weight");
    make(m, 128, 0, 0, "t_embedder.mlp.2.bias");
    make(m, 128, 64, 0, "all_x_embedder.2-1.weight");
    make(m, 128, 0, 0, "all_x_embedder.2-1.bias");
    make(m, 1, 128, 0, "x_pad_token");
    make(m, 1, 128, 0, "cap_pad_token");
    make(m, 48, 0, 0, "cap_embedder.0.weight");
    make(m, 128, 48, 0, "cap_embedder.1.weight");
    make(m, 128, 0, 0, "cap_embedder.1.bias");
    make_block(m, "noise_refiner", true);
    make_block(m, "context_refiner", false);
    make_block(m, "layers", true);
    make(m, 128, 128, 0, "all_final_layer.2-1.adaLN_modulation.1.weight");
    make(m, 128, 0, 0, "all_final_layer.2-1.adaLN_modulation.1.bias");
    make(m, 64, 128, 0, "all_final_layer.2-1.linear.weight");
    make(m, 64, 0, 0, "all_final_layer.2-1.linear.bias");
}

static void make_text_encoder(maker *m)
{
    make(m, 700, 48, 0, "model.embed_tokens.weight");
    for (int i = 0; i < 3; i++) {
        const char *p = "model.layers";
        make(m, 48, 0, 0, "%s.%d.input_layernorm.weight", p, i);
        make(m, 48, 0, 0, "%s.%d.post_attention_layernorm.weight", p, i);
        make(m, 64, 48, 0, "%s.%d.self_attn.q_proj.weight", p, i);
        make(m, 32, 48, 0, "%s.%d.self_attn.k_proj.weight", p, i);
        make(m, 32, 48, 0, "%s.%d.self_attn.v_proj.weight", p, i);
        make(m, 48, 64, 0, "%s.%d.self_attn.o_proj.weight", p, i);
        make(m, 16, 0, 0, "%s.%d.self_attn.q_norm.weight", p, i);
        make(m, 16, 0, 0, "%s.%d.self_attn.k_norm.weight", p, i);
        make(m, 80, 48, 0, "%s.%d.mlp.gate_proj.weight", p, i);
        make(m, 80, 48, 0, "%s.%d.mlp.up_proj.weight", p, i);
        make(m, 48, 80, 0, "%s.%d.mlp.down_proj.weight", p, i);
    }
}

CORE_PRINTF(4, 5)
static void make_resnet(maker *m, int64_t in, int64_t out, const char *format, ...)
{
    char p[128];
    va_list args;
    va_start(args, format);
    vsnprintf(p, sizeof p, format, args);
    va_end(args);
    make(m, in, 0, 0, "%s.norm1.weight", p);
    make(m, in, 0, 0, "%s.norm1.bias", p);
    make(m, out, in, 3, "%s.conv1.weight", p);
    make(m, out, 0, 0, "%s.conv1.bias", p);
    make(m, out, 0, 0, "%s.norm2.weight", p);
    make(m, out, 0, 0, "%s.norm2.bias", p);
    make(m, out, out, 3, "%s.conv2.weight", p);
    make(m, out, 0, 0, "%s.conv2.bias", p);
    if (in != out) {
        make(m, out, in, 1, "%s.conv_shortcut.weight", p);
        make(m, out, 0, 0, "%s.conv_shortcut.bias", p);
    }
}

/* Two levels of 32 and 64 channels. */
static void make_vae(maker *m, int64_t latent)
{
    static const char *const linear[] = {"to_q", "to_k", "to_v", "to_out.0"};
    for (int s = 0; s < 2; s++) {
        const char *p = s ? "decoder" : "encoder";
        const int64_t last = s ? 32 : 64, out = s ? 3 : 2 * latent;
        make(m, s ? 64 : 32, s ? latent : 3, 3, "%s.conv_in.weight", p);
        make(m, s ? 64 : 32, 0, 0, "%s.conv_in.bias", p);
        make_resnet(m, 64, 64, "%s.mid_block.resnets.0", p);
        make_resnet(m, 64, 64, "%s.mid_block.resnets.1", p);
        make(m, 64, 0, 0, "%s.mid_block.attentions.0.group_norm.weight", p);
        make(m, 64, 0, 0, "%s.mid_block.attentions.0.group_norm.bias", p);
        for (int i = 0; i < 4; i++) {
            make(m, 64, 64, 0, "%s.mid_block.attentions.0.%s.weight", p, linear[i]);
            make(m, 64, 0, 0, "%s.mid_block.attentions.0.%s.bias", p, linear[i]);
        }
        make(m, last, 0, 0, "%s.conv_norm_out.weight", p);
        make(m, last, 0, 0, "%s.conv_norm_out.bias", p);
        make(m, out, last, 3, "%s.conv_out.weight", p);
        make(m, out, 0, 0, "%s.conv_out.bias", p);
    }
    make_resnet(m, 32, 32, "encoder.down_blocks.0.resnets.0");
    make(m, 32, 32, 3, "encoder.down_blocks.0.downsamplers.0.conv.weight");
    make(m, 32, 0, 0, "encoder.down_blocks.0.downsamplers.0.conv.bias");
    make_resnet(m, 32, 64, "encoder.down_blocks.1.resnets.0");
    for (int i = 0; i < 2; i++) {
        make_resnet(m, 64, 64, "decoder.up_blocks.0.resnets.%d", i);
        make_resnet(m, i ? 32 : 64, 32, "decoder.up_blocks.1.resnets.%d", i);
    }
    make(m, 64, 64, 3, "decoder.up_blocks.0.upsamplers.0.conv.weight");
    make(m, 64, 0, 0, "decoder.up_blocks.0.upsamplers.0.conv.bias");
}

/* A folder as mflux saves it: weights and tokenizer alone. */
static void make_model(const char *path, const char *left_out, int64_t latent)
{
    static const char *const parts[] = {"transformer", "text_encoder", "vae", "tokenizer"};
    char name[1100];
    ct_error error;
    assert_int_equal(mkdir(path, 0777), 0);
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "%s/%s", path, parts[i]);
        assert_int_equal(mkdir(name, 0777), 0);
        if (i == 3)
            break;
        maker m = {.layout = NAMES_MFLUX, .left_out = left_out};
        snprintf(name, sizeof name, "%s/%s/0.safetensors", path, parts[i]);
        test_ok(safetensors_writer_open(&m.out, &mem_default, name, &error), &error);
        if (i == 0)
            make_transformer(&m);
        else if (i == 1)
            make_text_encoder(&m);
        else
            make_vae(&m, latent);
        test_ok(safetensors_writer_commit(m.out, &error), &error);
    }
    static const char *const files[] = {"tokenizer.json", "tokenizer_config.json"};
    for (int i = 0; i < 2; i++) {
        char from[256];
        snprintf(from, sizeof from, "turbo/model/tokenizer/%s", files[i]);
        snprintf(name, sizeof name, "%s/tokenizer/%s", path, files[i]);
        assert_int_equal(symlink(test_fixture(from), name), 0);
    }
}

static void test_inferred(void **state)
{
    (void)state;
    ct_context *context = new_context(1, NULL);
    test_folder folder;
    test_folder_create(&folder);
    ct_error error = {0};
    ct_model *model = NULL;
    const char *path = test_path(&folder, "saved");
    make_model(path, NULL, 16);
    test_ok(ct_model_load(context, path, &model, &error), &error);
    const ct_model_info *info = ct_model_get_info(model);
    assert_string_equal(info->class_name, "ZImagePipeline");
    assert_string_equal(info->variant, "Turbo");
    assert_true(info->default_shift == 3);
    assert_string_equal(info->component[0].summary,
                        "3 layers (2 used), hidden 48, 4 heads, 2 key heads, head dim 16, "
                        "vocabulary 700");
    assert_string_equal(info->component[1].summary,
                        "1 layers and 2 x 1 refiners, dim 128, 1 heads, head dim 128, 16 latent "
                        "channels");
    assert_string_equal(info->component[2].summary,
                        "2 levels, channels 32 to 64, 16 latent channels, factor 2");
    ct_model_free(&model);
    /* Quantized from there, the copy has no configuration either. Its names stay. */
    for (int group = 32; group <= 64; group += 32) {
        const char *output = test_path(&folder, group == 32 ? "out32" : "out64");
        char expected[64];
        snprintf(expected, sizeof expected, "6-bit, groups of %d", group);
        test_ok(quantize(context, path, output, 6, group, &error), &error);
        test_ok(ct_model_load(context, output, &model, &error), &error);
        info = ct_model_get_info(model);
        assert_string_equal(info->component[1].quantization, expected);
        assert_string_equal(info->component[2].quantization, group == 64 ? expected : "");
        ct_model_free(&model);
    }
    ct_context_free(&context);
    remove_tree(&folder);
}

static void test_not_inferred(void **state)
{
    (void)state;
    static const struct {
        const char *left_out;
        int64_t latent;
        ct_status status;
        const char *message;
    } cases[] = {
        {"cap_embedder.1.weight", 16, CT_EUNSUPPORTED, "no model that is known"},
        {"layers.0.attention.norm_q.weight", 16, CT_EFORMAT, "no config.json"},
        {"layers.0.attention_norm1.weight", 16, CT_EFORMAT, "no config.json"},
        {"model.layers.0.self_attn.q_norm.weight", 16, CT_EFORMAT, "no config.json"},
        {"model.embed_tokens.weight", 16, CT_EFORMAT, "no config.json"},
        {"encoder.down_blocks.0.resnets.0.conv1.bias", 16, CT_EFORMAT, "no config.json"},
        {NULL, 4, CT_EFORMAT, "latent_channels"},
    };
    ct_context *context = new_context(1, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        test_folder folder;
        test_folder_create(&folder);
        ct_error error = {0};
        ct_model *model = NULL;
        make_model(test_path(&folder, "saved"), cases[i].left_out, cases[i].latent);
        ct_status status = ct_model_load(context, test_path(&folder, "saved"), &model, &error);
        test_error(status, cases[i].status, &error, cases[i].message);
        remove_tree(&folder);
    }
    ct_context_free(&context);
}

/* ---- What goes wrong ------------------------------------------------------------------------- */

static void test_parameters(void **state)
{
    (void)state;
    ct_context *context = new_context(1, NULL);
    test_folder folder;
    test_folder_create(&folder);
    const char *model = test_fixture("turbo/model"), *output = test_path(&folder, "out");
    static const int wrong[][2] = {{0, 64},  {1, 64}, {7, 64},  {9, 64},
                                   {16, 64}, {4, 16}, {4, -64}, {4, 48}};
    ct_error error = {0};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        ct_status status = quantize(context, model, output, wrong[i][0], wrong[i][1], &error);
        test_error(status, CT_EINVAL, &error, wrong[i][0] == 4 ? "group_size" : "bits");
    }
    test_error(quantize(context, model, NULL, 4, 64, &error), CT_EINVAL, &error, "output");
    test_error(quantize(context, model, "", 4, 64, &error), CT_EINVAL, &error, "empty");
    test_error(quantize(context, model, test_path(&folder, "no/where"), 4, 64, &error),
               CT_ENOTFOUND, &error, "no folder");
    test_error(quantize(context, test_path(&folder, "none"), output, 4, 64, &error), CT_ENOTFOUND,
               &error, "none");
    test_error(quantize(context, model, folder.path, 4, 64, &error), CT_EIO, &error,
               "exists already");
    assert_int_equal(test_folder_count(&folder), 0);
    test_ok(quantize(context, model, output, 4, 64, &error), &error);
    test_error(quantize(context, output, test_path(&folder, "again"), 8, 64, &error),
               CT_EUNSUPPORTED, &error, "quantized already");
    assert_int_equal(test_folder_count(&folder), 1);
    ct_context_free(&context);
    remove_tree(&folder);
}

/* A model with one weight that is not a number. */
static void test_not_a_number(void **state)
{
    (void)state;
    ct_context *context = new_context(1, NULL);
    test_folder folder;
    test_folder_create(&folder);
    const char *path = test_path(&folder, "saved");
    make_model(path, NULL, 16);
    char name[1100];
    snprintf(name, sizeof name, "%s/transformer/0.safetensors", path);
    ct_error error = {0};
    weights *w = open_part(path, "transformer");
    const weight_view *v = need(w, "layers.0.attention.to_q.weight");
    size_t header, size, at;
    const char *data = weights_header(w, 0, &header);
    at = (size_t)(v->data - (const unsigned char *)data) + 8 + v->bytes - 3;
    weights_close(w);
    unsigned char *file = test_read_file(name, &size);
    file[at] = file[at + 1] = file[at + 2] = 0x7f;
    file[at + 1] = 0xff;
    test_write_file(name, file, size);
    free(file);
    ct_status status = quantize(context, path, test_path(&folder, "out"), 4, 64, &error);
    test_error(status, CT_EFORMAT, &error, "layers.0.attention.to_q.weight holds NaN");
    assert_int_equal(test_folder_count(&folder), 1);
    ct_context_free(&context);
    remove_tree(&folder);
}

typedef struct countdown {
    int left;
    int warnings;
} countdown;

static bool stop_after(void *user)
{
    countdown *c = user;
    return c->left-- == 0;
}

static void count_warnings(void *user, ct_log_level level, const char *message)
{
    countdown *c = user;
    if (level == CT_LOG_WARNING && strstr(message, "was killed"))
        c->warnings++;
}

static void test_cancel(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    for (int n = 0; n < 400; n = n * 3 / 2 + 1) {
        countdown c = {.left = n};
        const ct_callbacks callbacks = {.user = &c, .cancel = stop_after};
        ct_context *context = new_context(2, &callbacks);
        ct_error error = {0};
        ct_status status = quantize(context, test_fixture("turbo/model"), test_path(&folder, "out"),
                                    4, 32, &error);
        ct_context_free(&context);
        if (status == CT_OK) {
            assert_int_equal(test_folder_count(&folder), 1);
            remove_tree(&folder);
            return;
        }
        test_error(status, CT_ECANCELLED, &error, "cancelled");
        assert_int_equal(test_folder_count(&folder), 0);
    }
    fail_msg("never done");
}

/* What a killed run leaves beside its output is told, and does no harm. */
static void test_stale(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    static const char *const names[] = {"out.999999999.part", "out.5.partial", "out.part",
                                        "other.999999999.part", "out.x.part"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_int_equal(mkdir(test_path(&folder, names[i]), 0777), 0);
    countdown c = {.left = -1};
    const ct_callbacks callbacks = {.user = &c, .log = count_warnings};
    ct_context *context = new_context(1, &callbacks);
    ct_error error = {0};
    test_ok(
        quantize(context, test_fixture("turbo/model"), test_path(&folder, "out"), 4, 32, &error),
        &error);
    assert_int_equal(c.warnings, 1);
    assert_int_equal(test_folder_count(&folder), 6);
    ct_context_free(&context);
    remove_tree(&folder);
}

/* Some of the allocations fail, spread over the whole run. */
static void test_memory(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    for (long n = 1; n < 100000; n += 1 + n / 16) {
        test_heap heap;
        test_heap_init(&heap, 0);
        ct_context_params p;
        ct_context_params_init(&p);
        p.device = "cpu";
        p.threads = 1;
        p.allocator = heap.allocator;
        ct_context *context = NULL;
        ct_error error = {0};
        test_ok(ct_context_create(&p, &context, &error), &error);
        heap.fail_at = heap.calls + n;
        ct_status status = quantize(context, test_fixture("turbo/model"), test_path(&folder, "out"),
                                    4, 32, &error);
        const bool reached = heap.calls >= heap.fail_at;
        ct_context_free(&context);
        assert_int_equal(heap.live, 0);
        if (!reached) {
            test_ok(status, &error);
            remove_tree(&folder);
            return;
        }
        test_error(status, CT_ENOMEM, &error, "memory");
        assert_int_equal(test_folder_count(&folder), 0);
    }
    fail_msg("never succeeds");
}

static void test_threads(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    static const int threads[] = {1, 2, 7};
    unsigned char *first = NULL;
    size_t first_size = 0;
    for (int i = 0; i < 3; i++) {
        char name[32], file[1100];
        snprintf(name, sizeof name, "out%d", i);
        const char *output = test_path(&folder, name);
        ct_context *context = new_context(threads[i], NULL);
        ct_error error = {0};
        test_ok(quantize(context, test_fixture("head128/model"), output, 4, 64, &error), &error);
        ct_context_free(&context);
        snprintf(file, sizeof file, "%s/transformer/0.safetensors", output);
        size_t size;
        unsigned char *data = test_read_file(file, &size);
        if (first) {
            assert_int_equal(size, first_size);
            test_bytes_equal(data, first, size);
            free(data);
        } else {
            first = data;
            first_size = size;
        }
    }
    free(first);
    remove_tree(&folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_back),  cmocka_unit_test(test_channels_last),
        cmocka_unit_test(test_inferred),   cmocka_unit_test(test_not_inferred),
        cmocka_unit_test(test_parameters), cmocka_unit_test(test_not_a_number),
        cmocka_unit_test(test_cancel),     cmocka_unit_test(test_stale),
        cmocka_unit_test(test_memory),     cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
