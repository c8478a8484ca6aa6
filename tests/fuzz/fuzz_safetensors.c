/* A file image through the reader of safetensors files. Every byte that a view names is touched. */
#include "core/mem.h"
#include "io/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct sum {
    const uint8_t *begin, *end;
    unsigned value;
} sum;

static ct_status touch(void *user, const weight_view *view, ct_error *error)
{
    (void)error;
    sum *s = user;
    size_t elements = 1;
    for (int i = 0; i < view->rank; i++)
        elements *= (size_t)view->shape[i];
    if (elements * dtype_size(view->type) != view->bytes || view->data < s->begin ||
        view->data > s->end || (size_t)(s->end - view->data) < view->bytes)
        abort();
    for (size_t i = 0; i < view->bytes; i++)
        s->value += view->data[i];
    s->value += (unsigned)strlen(view->name);
    return CT_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_value *root;
    ct_error error = {0};
    sum s = {data, data + size, 0};
    ct_status status = safetensors_parse(data, size, "input", &mem_default, &root, touch, &s,
                                         &error);
    if ((status == CT_OK) != (root != NULL) || status != error.code)
        abort();
    json_free(root);
    return 0;
}
