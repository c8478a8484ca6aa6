/* What files hold becomes weights: codes, scales and factors, checked and decoded; and the names
 * that tensors have in the layouts of other programs. */
#include "test_support.h"

#include "core/affine.h"
#include "core/folder.h"
#include "core/mem.h"
#include "io/names.h"
#include "io/safetensors.h"
#include "models/bind.h"
#include "models/zimage.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Binding --------------------------------------------------------------------------------- */

typedef struct stored {
    const char *name;
    dtype type;
    int rank;
    int64_t shape[4];
} stored;

/* A file of these tensors, filled with bytes that are small numbers in every type. */
static weights *write_tensors(const test_folder *folder, const stored *tensors)
{
    static unsigned char bytes[1 << 16];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = i % 4 == 3 ? 0x3c : (unsigned char)(i * 37 % 48);
    const char *path = test_path(folder, "t.safetensors");
    safetensors_writer *out = NULL;
    weights *w = NULL;
    ct_error error;
    test_ok(safetensors_writer_open(&out, &mem_default, path, &error), &error);
    for (; tensors->name; tensors++)
        test_ok(safetensors_writer_add(out, tensors->name, tensors->type, tensors->rank,
                                       tensors->shape, bytes, &error),
                &error);
    test_ok(safetensors_writer_commit(out, &error), &error);
    test_ok(weights_open_file(&w, &mem_default, path, &error), &error);
    return w;
}

/* Each is bound as the matrix m.weight [4, 64]. */
static const struct {
    ct_status status;
    const char *message;
    stored tensors[5];
} refused[] = {
    {CT_ENOTFOUND, "m.weight is missing", {{"x.weight", DTYPE_F32, 2, {4, 64}}}},
    {CT_EFORMAT, "must be [4, 64]", {{"m.weight", DTYPE_BF16, 2, {64, 4}}}},
    {CT_EUNSUPPORTED, "is I32", {{"m.weight", DTYPE_I32, 2, {4, 64}}}},
    {CT_ENOTFOUND, "no .scales", {{"m.weight", DTYPE_U32, 2, {4, 8}}}},
    {CT_ENOTFOUND,
     "no .biases",
     {{"m.weight", DTYPE_U32, 2, {4, 8}}, {"m.scales", DTYPE_F16, 2, {4, 2}}}},
    {CT_EUNSUPPORTED,
     "mxfp4",
     {{"m.weight", DTYPE_U32, 2, {4, 8}}, {"m.scales", DTYPE_U8, 2, {4, 2}}}},
    {CT_EUNSUPPORTED,
     "mxfp8",
     {{"m.weight", DTYPE_U32, 2, {4, 16}}, {"m.scales", DTYPE_U8, 2, {4, 2}}}},
    {CT_EUNSUPPORTED,
     "nvfp4",
     {{"m.weight", DTYPE_U32, 2, {4, 8}}, {"m.scales", DTYPE_U8, 2, {4, 4}}}},
    {CT_EFORMAT,
     "14 words",
     {{"m.weight", DTYPE_U32, 2, {4, 14}}, /* 7 bits */
      {"m.scales", DTYPE_F16, 2, {4, 2}},
      {"m.biases", DTYPE_F16, 2, {4, 2}}}},
    {CT_EFORMAT,
     "9 words",
     {{"m.weight", DTYPE_U32, 2, {4, 9}}, /* no whole number of bits */
      {"m.scales", DTYPE_F16, 2, {4, 2}},
      {"m.biases", DTYPE_F16, 2, {4, 2}}}},
    {CT_EFORMAT,
     "0 words",
     {{"m.weight", DTYPE_U32, 2, {4, 0}},
      {"m.scales", DTYPE_F16, 2, {4, 2}},
      {"m.biases", DTYPE_F16, 2, {4, 2}}}},
    {CT_EFORMAT,
     "m.weight has shape [5, 8]",
     {{"m.weight", DTYPE_U32, 2, {5, 8}},
      {"m.scales", DTYPE_F16, 2, {5, 2}},
      {"m.biases", DTYPE_F16, 2, {5, 2}}}},
    {CT_EFORMAT,
     "m.weight has shape [4, 8, 1]",
     {{"m.weight", DTYPE_U32, 3, {4, 8, 1}},
      {"m.scales", DTYPE_F16, 2, {4, 2}},
      {"m.biases", DTYPE_F16, 2, {4, 2}}}},
    {CT_EFORMAT,
     "m.scales must have",
     {{"m.weight", DTYPE_U32, 2, {4, 8}},
      {"m.scales", DTYPE_F16, 2, {3, 2}},
      {"m.biases", DTYPE_F16, 2, {3, 2}}}},
    {CT_EFORMAT,
     "m.scales must have",
     {{"m.weight", DTYPE_U32, 2, {4, 8}},
      {"m.scales", DTYPE_F16, 2, {4, 3}},
      {"m.biases", DTYPE_F16, 2, {4, 3}}}},
    {CT_EFORMAT,
     "m.scales must have",
     {{"m.weight", DTYPE_U32, 2, {4, 8}},
      {"m.scales", DTYPE_F16, 2, {4, 0}},
      {"m.biases", DTYPE_F16, 2, {4, 0}}}},
    {CT_EFORMAT,
     "m.scales must have",
     {{"m.weight", DTYPE_U32, 2, {4, 8}},
      {"m.scales", DTYPE_F16, 1, {4}},
      {"m.biases", DTYPE_F16, 1, {4}}}},
    {CT_EFORMAT,
     "one dtype and shape",
     {{"m.weight", DTYPE_U32, 2, {4, 8}},
      {"m.scales", DTYPE_F16, 2, {4, 2}},
      {"m.biases", DTYPE_BF16, 2, {4, 2}}}},
    {CT_EFORMAT,
     "one dtype and shape",
     {{"m.weight", DTYPE_U32, 2, {4, 8}},
      {"m.scales", DTYPE_F16, 2, {4, 2}},
      {"m.biases", DTYPE_F16, 2, {4, 4}}}},
    {CT_EUNSUPPORTED,
     "m.scales is I32",
     {{"m.weight", DTYPE_U32, 2, {4, 8}},
      {"m.scales", DTYPE_I32, 2, {4, 2}},
      {"m.biases", DTYPE_I32, 2, {4, 2}}}},
    {CT_EUNSUPPORTED,
     "m.scales is F8_E4M3",
     {{"m.weight", DTYPE_U32, 2, {4, 8}},
      {"m.scales", DTYPE_F8_E4M3, 2, {4, 2}},
      {"m.biases", DTYPE_F8_E4M3, 2, {4, 2}}}},
    {CT_EUNSUPPORTED,
     "single number",
     {{"m.weight", DTYPE_F8_E4M3, 2, {4, 64}}, {"m.weight_scale", DTYPE_F32, 2, {4, 1}}}},
    {CT_EUNSUPPORTED,
     "single number",
     {{"m.weight", DTYPE_F8_E5M2, 2, {4, 64}}, {"m.scale_weight", DTYPE_I32, 0, {0}}}},
};

static void test_refused(void **state)
{
    (void)state;
    const load_options options = {.allocator = &mem_default};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        test_folder folder;
        test_folder_create(&folder);
        weights *w = write_tensors(&folder, refused[i].tensors);
        ct_error error = {0};
        binder b = {.source = w, .options = &options, .error = &error};
        nn_weight bound = bind2(&b, 4, 64, "m.weight");
        test_error(b.status, refused[i].status, &error, refused[i].message);
        assert_false(nn_has(&bound));
        weights_close(w);
        test_folder_remove(&folder);
    }
}

static void test_factor_of_zero(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    const float zero = 0;
    unsigned char numbers[256] = {0};
    const char *path = test_path(&folder, "t.safetensors");
    safetensors_writer *out = NULL;
    weights *w = NULL;
    ct_error error = {0};
    test_ok(safetensors_writer_open(&out, &mem_default, path, &error), &error);
    test_ok(safetensors_writer_add(out, "m.weight", DTYPE_F8_E4M3, 2, (int64_t[]){4, 64}, numbers,
                                   &error),
            &error);
    test_ok(safetensors_writer_add(out, "m.weight_scale", DTYPE_F32, 0, NULL, &zero, &error),
            &error);
    test_ok(safetensors_writer_commit(out, &error), &error);
    test_ok(weights_open_file(&w, &mem_default, path, &error), &error);
    const load_options options = {.allocator = &mem_default};
    binder b = {.source = w, .options = &options, .error = &error};
    bind2(&b, 4, 64, "m.weight");
    test_error(b.status, CT_EFORMAT, &error, "m.weight_scale");
    weights_close(w);
    test_folder_remove(&folder);
}

/* The number that a bound matrix has at a place, by the definition. */
static float number(const nn_weight *w, int64_t row, int64_t column)
{
    float value = 0;
    const size_t at = (size_t)(row * w->n[1] + column), size = dtype_size(w->type);
    if (!w->bits) {
        dtype_to_float(&value, (const char *)w->data + at * size, w->type, 1);
        return w->factor != 0 ? value * w->factor : value;
    }
    const size_t groups = (size_t)(w->n[1] / w->group);
    affine_decode(&value, (const char *)w->data + (size_t)(row * w->n[1] * w->bits / 8), w->bits,
                  w->group, (const char *)w->scales + (size_t)row * groups * size,
                  (const char *)w->biases + (size_t)row * groups * size, w->type, column, 1);
    return value;
}

/* A matrix with and without being decoded to bfloat16. */
static void check_bound(const stored *tensors, int bits, int64_t group, bool scaled)
{
    test_folder folder;
    test_folder_create(&folder);
    weights *w = write_tensors(&folder, tensors);
    ct_error error = {0};
    load_options options = {.allocator = &mem_default};
    binder b = {.source = w, .options = &options, .error = &error};
    nn_weight bound = bind2(&b, 4, 64, "m.weight");
    test_ok(b.status, &error);
    assert_int_equal(bound.bits, bits);
    assert_int_equal(bound.group, group);
    assert_int_equal(bound.factor != 0, scaled);
    assert_int_equal(b.parameters, 4 * 64);
    assert_int_equal(weights_allocated(w), 0);
    assert_int_equal(weights_find(w, "m.weight")->bits, bits);
    options.dequantize = true;
    nn_weight decoded = bind2(&b, 4, 64, "m.weight");
    test_ok(b.status, &error);
    assert_int_equal(decoded.type, DTYPE_BF16);
    assert_int_equal(decoded.bits, 0);
    assert_true(decoded.factor == 0);
    assert_int_equal(weights_allocated(w), 4 * 64 * 2);
    bool varies = false;
    for (int64_t row = 0; row < 4; row++)
        for (int64_t column = 0; column < 64; column++) {
            float value = number(&bound, row, column);
            assert_true(bf16_to_float(bf16_from_float(value)) == number(&decoded, row, column));
            varies = varies || value != number(&bound, 0, 0);
        }
    assert_true(varies);
    weights_close(w);
    test_folder_remove(&folder);
}

static void test_bound(void **state)
{
    (void)state;
    static const int all_bits[] = {2, 3, 4, 5, 6, 8};
    static const dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    for (size_t i = 0; i < 6; i++)
        for (size_t t = 0; t < 3; t++)
            for (int64_t groups = 1; groups <= 64; groups *= 2) {
                const stored tensors[] = {
                    {"m.weight", DTYPE_U32, 2, {4, 2 * all_bits[i]}},
                    {"m.scales", types[t], 2, {4, groups}},
                    {"m.biases", types[t], 2, {4, groups}},
                    {0},
                };
                check_bound(tensors, all_bits[i], 64 / groups, false);
            }
    const stored plain[] = {{"m.weight", DTYPE_F8_E4M3, 2, {4, 64}}, {0}};
    const stored legacy[] = {{"m.weight", DTYPE_F8_E5M2, 2, {4, 64}},
                             {"m.scale_weight", DTYPE_F32, 0, {0}},
                             {"m.scale_input", DTYPE_F32, 0, {0}},
                             {0}};
    const stored current[] = {
        {"m.weight", DTYPE_F8_E4M3, 2, {4, 64}}, {"m.weight_scale", DTYPE_F32, 1, {1}}, {0}};
    check_bound(plain, 0, 0, false);
    check_bound(legacy, 0, 0, true);
    check_bound(current, 0, 0, true);
}

/* ---- Decoded while loading ------------------------------------------------------------------- */

static ct_image *generate(ct_context *context, const char *model, bool dequantize)
{
    ct_model_params params;
    ct_model_params_init(&params);
    params.dequantize = dequantize;
    ct_generate_params p;
    ct_generate_params_init(&p);
    p.prompt = "A red fox.";
    p.width = p.height = 32;
    p.steps = 2;
    p.seed = 7;
    ct_model *m = NULL;
    ct_image *image = NULL;
    ct_error error = {0};
    test_ok(ct_model_load_with(context, model, &params, &m, &error), &error);
    test_ok(ct_generate(m, &p, &image, &error), &error);
    const ct_component_info *transformer = &ct_model_get_info(m)->component[1];
    assert_int_equal(transformer->decoded_bytes > 0, dequantize);
    ct_model_free(&m);
    return image;
}

static void test_dequantize(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    const char *model = test_fixture("head128/model"), *output = test_path(&folder, "out");
    ct_error error = {0};
    ct_context_params p;
    ct_context_params_init(&p);
    p.device = "cpu";
    p.threads = 3;
    ct_context *context = NULL;
    test_ok(ct_context_create(&p, &context, &error), &error);
    ct_quantize_params q;
    ct_quantize_params_init(&q);
    q.output = output;
    q.bits = 8;
    q.group_size = 32;
    test_ok(ct_quantize(context, model, &q, NULL, &error), &error);
    ct_image *a = generate(context, model, false), *b = generate(context, output, true);
    const uint8_t *x = ct_image_pixels(a), *y = ct_image_pixels(b);
    double sum = 0;
    for (int i = 0; i < 32 * 32 * 3; i++)
        sum += (x[i] - y[i]) * (x[i] - y[i]);
    /* 8 bits leave a relative error of 0.006 in each matrix, bfloat16 one of 0.002: a few grey
     * levels. Anything wrong in names, groups or rows gives noise, at 70. */
    assert_true(sqrt(sum / (32 * 32 * 3)) < 8);
    ct_image_free(&a);
    ct_image_free(&b);

    /* The memory of a matrix holds what the codes mean, row by row. */
    char path[1100];
    snprintf(path, sizeof path, "%s/transformer", output);
    load_options options = {.allocator = &mem_default};
    zimage *codes = NULL, *decoded = NULL;
    test_ok(zimage_load(&codes, &options, path, &error), &error);
    options.dequantize = true;
    test_ok(zimage_load(&decoded, &options, path, &error), &error);
    const nn_weight *from = &codes->layer[0].modulation, *to = &decoded->layer[0].modulation;
    assert_int_equal(from->bits, 8);
    assert_int_equal(to->type, DTYPE_BF16);
    for (int64_t row = 0; row < from->n[0]; row += 7)
        for (int64_t column = 0; column < from->n[1]; column++)
            assert_true(bf16_to_float(bf16_from_float(number(from, row, column))) ==
                        number(to, row, column));
    zimage_free(codes);
    zimage_free(decoded);
    ct_context_free(&context);
    folder_remove(&mem_default, folder.path);
}

/* ---- Names ----------------------------------------------------------------------------------- */

static void test_names(void **state)
{
    (void)state;
    static const struct {
        const char *hf, *mflux, *mlx_z_image;
    } names[] = {
        {"t_embedder.mlp.0.weight", "t_embedder.linear1.weight", "t_embedder.linear1.weight"},
        {"t_embedder.mlp.2.bias", "t_embedder.linear2.bias", "t_embedder.linear2.bias"},
        {"all_x_embedder.2-1.weight", "all_x_embedder.2-1.weight", "x_embedder.weight"},
        {"all_final_layer.2-1.adaLN_modulation.1.weight",
         "all_final_layer.2-1.adaLN_modulation.0.weight",
         "final_layer.adaLN_modulation.layers.1.weight"},
        {"all_final_layer.2-1.linear.bias", "all_final_layer.2-1.linear.bias",
         "final_layer.linear.bias"},
        {"cap_embedder.0.weight", "cap_embedder.0.weight", "cap_embedder.layers.0.weight"},
        {"layers.12.attention.to_out.0.weight", "layers.12.attention.to_out.0.weight",
         "layers.12.attention.to_out.weight"},
        {"noise_refiner.1.adaLN_modulation.0.bias", "noise_refiner.1.adaLN_modulation.0.bias",
         "noise_refiner.1.adaLN_modulation.bias"},
        {"x_pad_token", "x_pad_token", "x_pad_token"},
        {"model.layers.3.self_attn.q_proj.weight", "layers.3.self_attn.q_proj.weight",
         "model.layers.3.self_attn.q_proj.weight"},
        {"encoder.conv_in.weight", "encoder.conv_in.conv2d.weight", "encoder.conv_in.weight"},
        {"decoder.conv_out.bias", "decoder.conv_out.conv.bias", "decoder.conv_out.bias"},
        {"decoder.conv_norm_out.weight", "decoder.conv_norm_out.norm.weight",
         "decoder.conv_norm_out.weight"},
        {"decoder.mid_block.attentions.0.to_out.0.weight",
         "decoder.mid_block.attentions.0.to_out.0.weight",
         "decoder.mid_block.attentions.0.to_out.0.weight"},
    };
    char spelled[NAMES_LENGTH];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        names_spell(spelled, NAMES_HF, names[i].hf);
        assert_string_equal(spelled, names[i].hf);
        names_spell(spelled, NAMES_MFLUX, names[i].hf);
        assert_string_equal(spelled, names[i].mflux);
        names_spell(spelled, NAMES_MLX_Z_IMAGE, names[i].hf);
        assert_string_equal(spelled, names[i].mlx_z_image);
    }
    char endless[1000] = ".attention.to_out.0.";
    memset(endless + 20, 'x', sizeof endless - 21);
    names_spell(spelled, NAMES_MLX_Z_IMAGE, endless);
    assert_true(strlen(spelled) < NAMES_LENGTH);
}

/* Two rules may change one name. */
static void test_names_of_qwen(void **state)
{
    (void)state;
    static const char *const names[][2] = {
        {"model.embed_tokens.weight", "encoder.embed_tokens.weight"},
        {"visual.merger.mlp.2.bias", "encoder.visual.merger.mlp_1.bias"},
        {"visual.blocks.3.attn.qkv.weight", "encoder.visual.blocks.3.attn.qkv.weight"},
        {"transformer_blocks.7.attn.to_out.0.bias", "transformer_blocks.7.attn.attn_to_out.0.bias"},
        {"transformer_blocks.7.attn.to_add_out.bias", "transformer_blocks.7.attn.to_add_out.bias"},
        {"transformer_blocks.0.txt_mod.1.weight", "transformer_blocks.0.txt_mod_linear.weight"},
        {"transformer_blocks.0.img_mlp.net.0.proj.weight",
         "transformer_blocks.0.img_ff.mlp_in.weight"},
        {"encoder.down_blocks.1.norm2.gamma", "encoder.down_blocks.0.resnets.1.norm2.weight"},
        {"encoder.down_blocks.3.conv_shortcut.weight",
         "encoder.down_blocks.1.resnets.0.skip_conv.conv3d.weight"},
        {"encoder.down_blocks.8.resample.1.bias",
         "encoder.down_blocks.2.downsamplers.0.resample_conv.bias"},
        {"encoder.down_blocks.10.conv1.bias", "encoder.down_blocks.3.resnets.1.conv1.conv3d.bias"},
        {"decoder.up_blocks.2.resnets.0.conv2.weight",
         "decoder.up_block2.resnets.0.conv2.conv3d.weight"},
        {"decoder.up_blocks.0.upsamplers.0.resample.1.weight",
         "decoder.up_block0.upsamplers.0.resample_conv.weight"},
        {"decoder.mid_block.attentions.0.to_qkv.weight",
         "decoder.mid_block.attentions.0.to_qkv.weight"},
        {"encoder.norm_out.gamma", "encoder.norm_out.weight"},
        {"encoder.conv_in.weight", "encoder.conv_in.conv3d.weight"},
        {"post_quant_conv.bias", "post_quant_conv.conv3d.bias"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char spelled[NAMES_LENGTH];
        names_spell(spelled, NAMES_MFLUX_QWEN, names[i][0]);
        assert_string_equal(spelled, names[i][1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dequantize),     cmocka_unit_test(test_refused),
        cmocka_unit_test(test_factor_of_zero), cmocka_unit_test(test_bound),
        cmocka_unit_test(test_names),          cmocka_unit_test(test_names_of_qwen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
