#include "sampling/flow_match.h"

#include "core/file.h"
#include "core/mem.h"

#include <math.h>
#include <string.h>

static ct_status read_config(flow_match *f, const config *c, ct_error *error)
{
    static const char *const refused[] = {"use_karras_sigmas", "use_exponential_sigmas",
                                          "use_beta_sigmas", "invert_sigmas",
                                          "stochastic_sampling"};
    const char *name = NULL, *type = NULL;
    ct_status s = config_string(c, "_class_name", true, &name, error);
    if (s == CT_OK && strcmp(name, "FlowMatchEulerDiscreteScheduler") != 0)
        return error_set(error, CT_EUNSUPPORTED,
                         "%s: the scheduler %s is not supported; FlowMatchEulerDiscreteScheduler "
                         "is",
                         c->path, name);
    for (size_t i = 0; s == CT_OK && i < sizeof refused / sizeof *refused; i++) {
        bool on = false;
        s = config_boolean(c, refused[i], false, &on, error);
        if (s == CT_OK && on)
            return error_set(error, CT_EUNSUPPORTED, "%s: %s is not supported", c->path,
                             refused[i]);
    }
    if (s == CT_OK)
        s = config_number(c, "num_train_timesteps", 1, 1e9, false, 1000, &f->train_timesteps,
                          error);
    if (s == CT_OK)
        s = config_number(c, "shift", 1e-6, 1e6, false, 1, &f->shift, error);
    if (s == CT_OK)
        s = config_boolean(c, "use_dynamic_shifting", false, &f->dynamic, error);
    if (s == CT_OK)
        s = config_number(c, "base_shift", -1e6, 1e6, false, 0.5, &f->base_shift, error);
    if (s == CT_OK)
        s = config_number(c, "max_shift", -1e6, 1e6, false, 1.15, &f->max_shift, error);
    if (s == CT_OK)
        s = config_number(c, "base_image_seq_len", 1, 1e9, false, 256, &f->base_length, error);
    if (s == CT_OK)
        s = config_number(c, "max_image_seq_len", 1, 1e9, false, 4096, &f->max_length, error);
    if (s == CT_OK)
        s = config_number(c, "shift_terminal", 0, 0.999999, false, 0, &f->shift_terminal, error);
    if (s == CT_OK)
        s = config_string(c, "time_shift_type", false, &type, error);
    if (s != CT_OK)
        return s;
    if (type && strcmp(type, "exponential") != 0 && strcmp(type, "linear") != 0)
        return error_set(error, CT_EUNSUPPORTED, "%s: time_shift_type \"%s\" is not supported",
                         c->path, type);
    f->linear_shift = type && !strcmp(type, "linear");
    if (f->dynamic && f->max_length == f->base_length)
        return error_set(error, CT_EFORMAT,
                         "%s: base_image_seq_len and max_image_seq_len must differ", c->path);
    return CT_OK;
}

void flow_match_init(flow_match *f, double shift)
{
    *f = (flow_match){.train_timesteps = 1000,
                      .shift = shift,
                      .base_shift = 0.5,
                      .max_shift = 1.15,
                      .base_length = 256,
                      .max_length = 4096};
}

ct_status flow_match_read(flow_match *f, const ct_allocator *a, const char *directory,
                          ct_error *error)
{
    *f = (flow_match){0};
    char *path = path_join(a, directory, "scheduler_config.json");
    if (!path)
        return error_memory(error, strlen(directory), "a path");
    config c;
    ct_status status = config_open(&c, a, path, error);
    mem_free(a, path);
    if (status != CT_OK)
        return status;
    status = read_config(f, &c, error);
    config_close(&c);
    return status;
}

/* torch.linspace in float32: from both ends towards the middle, with fused multiply-add. */
static float ladder(int steps, int i)
{
    float end = (float)(1.0 / steps);
    if (steps == 1)
        return 1;
    float step = (end - 1.0f) / (float)(steps - 1);
    return i < steps / 2 ? fmaf(step, (float)i, 1.0f) : fmaf(-step, (float)(steps - 1 - i), end);
}

double flow_match_power(const flow_match *f, double length)
{
    double slope = (f->max_shift - f->base_shift) / (f->max_length - f->base_length);
    double mu = length * slope + (f->base_shift - slope * f->base_length);
    return f->linear_shift ? mu : exp(mu);
}

void flow_match_sigmas(const flow_match *f, int steps, double length, float *sigmas)
{
    float shift = (float)f->shift, shift_less = (float)(f->shift - 1);
    float power = (float)(f->power > 0 || !f->dynamic ? f->power : flow_match_power(f, length));
    for (int i = 0; i < steps; i++) {
        float s = ladder(steps, i);
        sigmas[i] =
            f->dynamic ? power / (power + (1.0f / s - 1.0f)) : shift * s / (1.0f + shift_less * s);
    }
    if (f->shift_terminal > 0) {
        float scale = (1.0f - sigmas[steps - 1]) / (float)(1 - f->shift_terminal);
        for (int i = 0; i < steps && scale != 0; i++)
            sigmas[i] = 1.0f - (1.0f - sigmas[i]) / scale;
    }
    sigmas[steps] = 0;
}
