/* Runs that the reference recorded, made again. */
#include "recorded.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"

#define REFERENCES 10

weights *recorded_open(const char *run)
{
    char name[256];
    snprintf(name, sizeof name, "%s.safetensors", run);
    weights *w = NULL;
    ct_error error;
    test_ok(weights_open_file(&w, &mem_default, test_fixture(name), &error), &error);
    return w;
}

static double number(const weights *w, const char *key)
{
    const char *text = weights_metadata(w, key);
    assert_non_null(text);
    return strtod(text, NULL);
}

/* What only some families have. */
static double number_or(const weights *w, const char *key, double otherwise)
{
    return weights_metadata(w, key) ? number(w, key) : otherwise;
}

ct_generate_params recorded_params(const weights *w)
{
    ct_generate_params p;
    ct_generate_params_init(&p);
    p.prompt = weights_metadata(w, "prompt");
    p.negative_prompt = weights_metadata(w, "negative_prompt");
    p.width = (int)number(w, "width");
    p.height = (int)number(w, "height");
    p.steps = (int)number(w, "steps");
    p.seed = strtoull(weights_metadata(w, "seed"), NULL, 10);
    p.guidance = number(w, "guidance_scale");
    p.cfg_truncation = number_or(w, "cfg_truncation", 1);
    const char *normalization = weights_metadata(w, "cfg_normalization");
    p.cfg_normalization = normalization && !strcmp(normalization, "true");
    p.precision = CT_PRECISION_FP32;
    return p;
}

ct_model *recorded_model(ct_context *context, const char *run)
{
    char name[128];
    snprintf(name, sizeof name, "%.*s/model", (int)strcspn(run, "/"), run);
    ct_model *model = NULL;
    ct_error error;
    test_ok(ct_model_load(context, test_fixture(name), &model, &error), &error);
    return model;
}

/* What the run was given, RUN.N.png. */
static int open_references(const weights *w, const char *run, ct_image *references[REFERENCES])
{
    const int count = (int)number_or(w, "references", 0);
    assert_in_range(count, 0, REFERENCES);
    if (count == 0)
        return 0;
    ct_context *context = NULL; /* a picture needs one to be read, but no device */
    ct_context_params params;
    ct_error error;
    ct_context_params_init(&params);
    params.device = "cpu";
    params.threads = 1;
    test_ok(ct_context_create(&params, &context, &error), &error);
    for (int i = 0; i < count; i++) {
        char name[256];
        snprintf(name, sizeof name, "%s.%d.png", run, i);
        test_ok(ct_image_load(context, test_fixture(name), &references[i], &error), &error);
    }
    ct_context_free(&context);
    return count;
}

ct_status recorded_generate(ct_model *model, const char *run, const ct_generate_params *params,
                            ct_image **out, ct_error *error)
{
    ct_image *references[REFERENCES] = {NULL};
    ct_generate_params p = *params;
    weights *truth = recorded_open(run);
    p.reference_count = open_references(truth, run, references);
    p.references = (const ct_image *const *)references;
    const ct_status status = ct_generate(model, &p, out, error);
    for (int i = 0; i < p.reference_count; i++)
        ct_image_free(&references[i]);
    weights_close(truth);
    return status;
}

ct_image *picture_of(ct_model *model, const ct_generate_params *p)
{
    ct_image *image = NULL;
    ct_error error;
    test_ok(ct_generate(model, p, &image, &error), &error);
    return image;
}

void expect_refusal(ct_model *model, const ct_generate_params *p, ct_status status,
                    const char *part)
{
    ct_job *job = (ct_job *)1;
    ct_error error;
    test_error(ct_job_create(model, p, &job, &error), status, &error, part);
    assert_null(job);
}

bool same_pixels(const ct_image *a, const ct_image *b)
{
    const int width = ct_image_width(a), height = ct_image_height(a);
    assert_int_equal(width, ct_image_width(b));
    assert_int_equal(height, ct_image_height(b));
    return !memcmp(ct_image_pixels(a), ct_image_pixels(b), (size_t)(3 * width * height));
}

double recorded_difference(const float *x, const float *truth, size_t n)
{
    double error = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        error += ((double)x[i] - (double)truth[i]) * ((double)x[i] - (double)truth[i]);
        norm += (double)truth[i] * (double)truth[i];
    }
    return sqrt(error / (norm > 0 ? norm : 1));
}

/* Elements of the recorded tensor that we have too. The final layer is recorded for all tokens;
 * ours is not computed for those of the caption, which come last. */
static size_t common_size(const weight_view *truth, const weight_view *ours)
{
    if (strcmp(truth->name, "transformer.final_layer") != 0)
        assert_int_equal(truth->bytes, ours->bytes);
    return ours->bytes / 4;
}

static bool is_module(const char *name)
{
    return !strncmp(name, "transformer.", 12) || !strncmp(name, "text_encoder.", 13) ||
           !strncmp(name, "vae.", 4);
}

static void compare_tensor(recorded_errors *e, const weight_view *truth, const weight_view *ours)
{
    e->compared++;
    if (truth->type == DTYPE_I32) {
        assert_int_equal(truth->bytes, ours->bytes);
        assert_memory_equal(truth->data, ours->data, truth->bytes);
        return;
    }
    const size_t n = common_size(truth, ours);
    const double d = recorded_difference((const float *)ours->data, (const float *)truth->data, n);
    const bool module = is_module(truth->name);
    double *most = module ? &e->modules : &e->outputs;
    if (d <= *most || *most != *most) /* NaN stays the worst */
        return;
    *most = d;
    snprintf(module ? e->module : e->output, sizeof e->module, "%s", truth->name);
}

static void compare_pixels(recorded_errors *e, const ct_image *image, const weight_view *truth)
{
    const uint8_t *pixels = ct_image_pixels(image);
    assert_int_equal(truth->bytes, ct_image_width(image) * ct_image_height(image) * 3);
    for (size_t i = 0; i < truth->bytes; i++) {
        const int d = abs((int)pixels[i] - (int)truth->data[i]);
        e->pixels = d > e->pixels ? d : e->pixels;
    }
}

/* Not traced: the norm before the decoder's last convolution, because it is one pass with SiLU. */
static bool is_untraced(const char *name)
{
    return !strcmp(name, "vae.decoder.conv_norm_out") || !strcmp(name, "transformer.t_embedder");
}

recorded_errors recorded_compare(ct_model *model, const char *run, const ct_generate_params *params)
{
    recorded_errors e = {0};
    test_folder folder;
    test_folder_create(&folder);
    weights *truth = recorded_open(run), *ours = NULL;
    ct_generate_params p = *params;
    p.trace_path = test_path(&folder, "trace.safetensors");
    p.trace_modules = true;
    ct_image *image = NULL;
    ct_error error;
    test_ok(recorded_generate(model, run, &p, &image, &error), &error);
    test_ok(weights_open_file(&ours, &mem_default, p.trace_path, &error), &error);
    for (size_t i = 0; i < weights_count(truth); i++) {
        const weight_view *v = weights_at(truth, i);
        if (!strcmp(v->name, "image.u8")) {
            compare_pixels(&e, image, v);
            continue;
        }
        const weight_view *mine = weights_find(ours, v->name);
        if (!mine && is_untraced(v->name))
            continue;
        if (!mine)
            fail_msg("%s: the trace has no %s", run, v->name);
        compare_tensor(&e, v, mine);
    }
    ct_image_free(&image);
    weights_close(ours);
    weights_close(truth);
    test_folder_remove(&folder);
    return e;
}
