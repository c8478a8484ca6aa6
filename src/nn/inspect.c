/* Finding the operation whose results are the first that are not finite. */
#include "nn/nn_internal.h"

#include <inttypes.h>
#include <stdio.h>

void nn_check_numbers(nn *c, const char *when)
{
    snprintf(c->checking, sizeof c->checking, "%s", when ? when : "");
    c->behind = NULL;
}

/* The name of a precision to its user, and what else to try. */
static const char *precision_name(const nn *c, const char **advice)
{
    const dtype type = c->device->work_type ? c->device->work_type(c) : DTYPE_F32;
    *advice = "The weights may be damaged, or be no weights of this model; try another checkpoint";
    if (c->params.precision == NN_F32)
        return "fp32";
    *advice = "Try --precision fp32; where that fails too the weights are damaged, or no weights "
              "of this model";
    if (c->params.precision == NN_INT8)
        return "int8";
    if (c->params.precision == NN_FP8)
        return "fp8";
    return type == DTYPE_F16 ? "fp16" : "bf16";
}

void nn_inspect(nn *c, const char *operation, const nn_weight *w, const nn_tensor *t)
{
    if (!c->checking[0] || c->params.dry || c->error.code != CT_OK)
        return;
    if (w && w->name)
        c->behind = w->name;
    const int64_t broken = c->device->count_broken(c, t);
    if (broken == 0 || c->error.code != CT_OK)
        return;
    const char *advice, *precision = precision_name(c, &advice);
    const char *with = w && w->name ? " with " : c->behind ? " behind " : "";
    nn_fail(c, c->params.precision == NN_F32 ? CT_EFORMAT : CT_EUNSUPPORTED,
            "%s: %s%s%s, computed in %s, made %" PRId64 " of %" PRId64
            " numbers that are not finite. %s",
            c->checking, operation, with, c->behind ? c->behind : "", precision, broken,
            t->operand ? t->n[0] : nn_count(t), advice);
}
