/* LoRA files and what they do to matrices, on models of a few matrices that are made here. Whole
 * models with LoRAs: tests/models/test_lora_models.c. Other formats of weights, and files that are
 * refused: test_lora_files.c. */
#include "toy_lora.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "io/lora_names.h"
#include "io/safetensors.h"

/* ---- Numbers --------------------------------------------------------------------------------- */

/* Sums of at most 5 products in float32: a relative error of some 1e-7. */
static void test_numbers(void **state)
{
    (void)state;
    static const int64_t sizes[][2] = {{1, 1}, {3, 7}, {4, 8}, {37, 19}, {64, 24}, {70, 33}};
    static const dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int type = 0; type < 3; type++) {
            const toy_tensors base = toy_matrix(sizes[i][0], sizes[i][1]);
            toy_tensors file = {.count = 0};
            toy_tensor *a = toy_add_pair(&file, TOY_MODULE, sizes[i][0], sizes[i][1], 5);
            a[0].type = a[1].type = types[type];
            toy_model m;
            toy_with_lora(&m, &base, toy_write(&file, "l.safetensors"), -1.5);
            const double bound = type == 0 ? 1e-6 : type == 1 ? 2e-3 : 1.2e-2; /* of A and B */
            assert_true(toy_distance(&m.w[0], &base.list[0], &a[0], &a[1], -1.5) < bound);
            assert_int_equal(m.w[0].type, DTYPE_F32);
            toy_close(&m, &mem_default);
        }
}

/* alpha / rank, in every type that an alpha has; what PEFT writes into the metadata. */
static void test_alpha(void **state)
{
    (void)state;
    const toy_tensors base = toy_matrix(8, 16);
    toy_model m;
    for (int form = 0; form < 3; form++) {
        toy_tensors file = {.count = 0};
        toy_tensor *a = toy_add_pair(&file, TOY_MODULE, 8, 16, 5),
                   *alpha = toy_add_number(&file, TOY_MODULE ".alpha", 2);
        alpha->type = form == 1 ? DTYPE_BF16 : DTYPE_F32;
        alpha->rank = form == 2 ? 1 : 0;
        alpha->shape[0] = 1;
        toy_with_lora(&m, &base, toy_write(&file, "l.safetensors"), 1);
        double factor = 2.0 / TOY_RANK;
        if (form == 2) {
            float *number = toy_numbers(alpha);
            factor = (double)*number / TOY_RANK;
            free(number);
        }
        assert_true(toy_distance(&m.w[0], &base.list[0], &a[0], &a[1], factor) < 1e-6);
        toy_close(&m, &mem_default);
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
        toy_tensors file = {.count = 0};
        toy_tensor *a = toy_add_pair(&file, TOY_MODULE, 8, 16, 5);
        toy_with_lora(&m, &base, toy_write_with(&file, "l.safetensors", metadata[i].text), 1);
        assert_true(toy_distance(&m.w[0], &base.list[0], &a[0], &a[1], metadata[i].factor) < 1e-6);
        toy_close(&m, &mem_default);
    }
}

static void test_threads(void **state)
{
    (void)state;
    const toy_tensors base = toy_matrix(301, 77);
    toy_tensors file = {.count = 0};
    toy_add_pair(&file, TOY_MODULE, 301, 77, 5);
    const ct_lora lora = {toy_write(&file, "l.safetensors"), 0.7};
    const char *path = toy_write(&base, "model.safetensors");
    toy_model alone, m;
    ct_error error;
    test_ok(toy_open(&alone, &mem_default, path, &base, &lora, 1, NULL, &error), &error);
    for (int count = 1; count <= 5; count++) {
        pool *threads = NULL;
        test_ok(pool_create(&threads, &mem_default, count, &error), &error);
        test_ok(toy_open(&m, &mem_default, path, &base, &lora, 1, threads, &error), &error);
        toy_assert_same(&m, &alone);
        toy_close(&m, &mem_default);
        pool_free(threads);
    }
    toy_close(&alone, &mem_default);
}

/* Two files add up, in their order; a file twice is its double but for one rounding. */
static void test_several(void **state)
{
    (void)state;
    const toy_tensors base = toy_matrix(24, 40);
    toy_tensors first = {.count = 0}, second = {.count = 0};
    toy_add_pair(&first, TOY_MODULE, 24, 40, 5);
    toy_add_pair(&second, TOY_MODULE, 24, 40, 9)[0].scale = 0.25f;
    const ct_lora list[] = {{toy_write(&first, "1.safetensors"), 1},
                            {toy_write(&second, "2.safetensors"), 1},
                            {toy_write(&first, "1.safetensors"), 0}};
    toy_model both, one, two;
    toy_with_loras(&both, &base, list, 3);
    toy_with_loras(&one, &base, list, 1);
    toy_with_loras(&two, &base, list + 1, 1);
    float *x = toy_decoded(&both.w[0]), *a = toy_decoded(&one.w[0]), *b = toy_decoded(&two.w[0]);
    float *w = toy_numbers(&base.list[0]);
    for (int i = 0; i < 24 * 40; i++)
        assert_true(fabsf(x[i] - (a[i] + b[i] - w[i])) < 2e-6f);
    free(x);
    free(a);
    free(b);
    free(w);
    toy_close(&both, &mem_default);
    toy_close(&one, &mem_default);
    toy_close(&two, &mem_default);
}

/* Nothing is touched: the matrix stays in the file. */
static void test_scale_0(void **state)
{
    (void)state;
    const toy_tensors base = toy_matrix(8, 16);
    toy_tensors file = {.count = 0};
    toy_add_pair(&file, TOY_MODULE, 8, 16, 5);
    toy_model m;
    toy_with_lora(&m, &base, toy_write(&file, "l.safetensors"), 0);
    assert_int_equal(m.memory.count, 0);
    assert_int_equal(weights_allocated(m.source), 0);
    assert_ptr_equal(m.w[0].data, weights_at(m.source, 0)->data);
    assert_int_equal(m.loras->files[0].matched, 1);
    toy_close(&m, &mem_default);
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
    toy_tensors base = {.count = 0};
    for (int i = 0; i < 5; i++) {
        char name[200];
        snprintf(name, sizeof name, "%s.weight", modules[i]);
        toy_add(&base, name, 12, 20, 100 + (uint32_t)i);
    }
    toy_model truth = {0};
    for (size_t k = 0; k < sizeof forms / sizeof *forms; k++) {
        toy_tensors file = {.count = 0};
        for (uint32_t i = 0; i < 5; i++) {
            char module[100], name[200];
            snprintf(module, sizeof module, "%s", modules[i]);
            if (forms[k].flat)
                lora_names_flatten(module);
            snprintf(name, sizeof name, "%s%s%s", forms[k].prefix, module, forms[k].down);
            toy_add(&file, name, TOY_RANK, 20, 10 * i);
            snprintf(name, sizeof name, "%s%s%s", forms[k].prefix, module, forms[k].up);
            toy_add(&file, name, 12, TOY_RANK, 10 * i + 1);
            snprintf(name, sizeof name, "%s%s.alpha", forms[k].prefix, module);
            toy_add_number(&file, name, 1.5f);
        }
        toy_model m;
        toy_with_lora(&m, &base, toy_write(&file, "l.safetensors"), 1);
        assert_int_equal(m.memory.count, 5);
        assert_int_equal(m.loras->files[0].matched, 5);
        if (k == 0)
            truth = m;
        else {
            toy_assert_same(&m, &truth);
            toy_close(&m, &mem_default);
        }
    }
    toy_close(&truth, &mem_default);
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
        toy_tensors base = {.count = 0}, file = {.count = 0};
        char name[200];
        for (int i = 0; i < 4 && l->ours[i]; i++) {
            snprintf(name, sizeof name, "%s.weight", l->ours[i]);
            toy_add(&base, name, l->rows[i], COLUMNS, 0)->scale = 0; /* zeros */
        }
        /* Row i of all B is (i, 0, 0), A begins with ones: row i of the matrices becomes i. */
        int64_t all = 0;
        for (int i = 0; i < 4 && l->theirs[i]; i++) {
            snprintf(name, sizeof name, "diffusion_model.%s", l->theirs[i]);
            toy_add_pair(&file, name, l->their_rows[i], COLUMNS, 5);
            all += l->their_rows[i];
        }
        const char *path = test_path(&toy_folder, "rows.safetensors");
        safetensors_writer *out = NULL;
        ct_error error;
        test_ok(safetensors_writer_open(&out, &mem_default, path, &error), &error);
        float next = 0;
        for (int i = 0; i < file.count; i++) {
            const toy_tensor *t = &file.list[i];
            float *numbers = toy_numbers(t);
            for (int64_t n = 0; n < toy_count(t); n++)
                numbers[n] =
                    i % 2 == 0 ? (n < COLUMNS ? 1 : numbers[n]) : (n % TOY_RANK == 0 ? next++ : 0);
            test_ok(safetensors_writer_add(out, t->name, t->type, 2, t->shape, numbers, &error),
                    &error);
            free(numbers);
        }
        test_ok(safetensors_writer_commit(out, &error), &error);
        toy_model m;
        toy_with_lora(&m, &base, path, 1);
        float expected = 0;
        for (int i = 0; i < m.count; i++) {
            float *numbers = toy_decoded(&m.w[i]);
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
        toy_close(&m, &mem_default);
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

    toy_tensors base = {.count = 0}, file = {.count = 0};
    toy_add(&base, "layers.0.attention.to_q.weight", 8, 16, 1);
    toy_add(&base, "layers.0.attention.to_k.weight", 8, 16, 2);
    toy_add(&base, "layers.0.attention.to_v.weight", 8, 16, 3);
    for (int i = 0; i < 3; i++) {
        char name[64];
        snprintf(name, sizeof name, "layers.0.attention.to.%c", "qkv"[i]);
        toy_add_pair(&file, name, 8, 16, 10 + (uint32_t)i);
    }
    toy_add_pair(&file, "layers.0.attention.qkv", 24, 16, 40);
    toy_model m;
    toy_with_lora(&m, &base, toy_write(&file, "l.safetensors"), 1);
    for (int i = 0; i < 3; i++)
        assert_true(toy_distance(&m.w[i], &base.list[i], &file.list[2 * i], &file.list[2 * i + 1],
                                 1) < 1e-6);
    assert_int_equal(m.loras->files[0].matched, 4);
    toy_close(&m, &mem_default);
}

static void test_text_encoder(void **state)
{
    (void)state;
    const toy_tensors base = toy_matrix(8, 16);
    toy_tensors file = {.count = 0}, other = {.count = 0};
    toy_add_pair(&file, TOY_MODULE, 8, 16, 5);
    toy_add_pair(&file, "text_encoder.model.layers.0.self_attn.q_proj", 99, 7, 6);
    toy_add_pair(&file, "lora_te_layers_0_mlp", 3, 4, 6);
    toy_model m;
    toy_with_lora(&m, &base, toy_write(&file, "l.safetensors"), 1);
    assert_int_equal(m.loras->files[0].ignored, 2);
    assert_int_equal(m.loras->files[0].count, 1);
    assert_int_equal(m.loras->files[0].unknown_count, 0);
    toy_close(&m, &mem_default);
    toy_add_pair(&other, "text_encoder.model.layers.0.self_attn.q_proj", 99, 7, 6);
    toy_refused(&base, &(ct_lora){toy_write(&other, "l.safetensors"), 1}, CT_EUNSUPPORTED,
                "changes the text encoder alone");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers),      cmocka_unit_test(test_alpha),
        cmocka_unit_test(test_threads),      cmocka_unit_test(test_several),
        cmocka_unit_test(test_scale_0),      cmocka_unit_test(test_keys),
        cmocka_unit_test(test_layouts),      cmocka_unit_test(test_name_list),
        cmocka_unit_test(test_text_encoder),
    };
    return cmocka_run_group_tests(tests, toy_set_up, toy_tear_down);
}
