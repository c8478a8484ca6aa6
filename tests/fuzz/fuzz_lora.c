/* A file image as a LoRA of a model of a few matrices: every change that is found is added. */
#define _GNU_SOURCE
#include "core/mem.h"
#include "io/lora.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define ROWS 12
#define COLUMNS 8

static const char *const names[] = {
    "layers.0.attention.to_k.weight", "img_in.weight", "transformer_blocks.0.attn.to_out.0.weight",
    "norm_out.linear.weight", "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight"};

static ct_status match(lora_set *s, ct_error *error)
{
    static const weight_view views[sizeof names / sizeof *names];
    float numbers[ROWS * COLUMNS] = {0};
    ct_status status = CT_OK;
    for (size_t i = 0; status == CT_OK && i < sizeof names / sizeof *names; i++) {
        const lora_target *t = NULL;
        lora_product p;
        status = lora_match(s, names[i], &views[i], ROWS, COLUMNS, &t, error);
        if (status != CT_OK || !t)
            continue;
        if (lora_find(s, &views[i]) != t)
            abort();
        status = lora_product_open(&p, &mem_default, t, error);
        for (int64_t row = 0; status == CT_OK && row < ROWS; row += 5)
            lora_product_add(&p, row, ROWS - row < 5 ? ROWS - row : 5, numbers + row * COLUMNS);
        lora_product_close(&p);
    }
    return status == CT_OK ? lora_check(s, "the model", error) : status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    const int file = memfd_create("lora", 0);
    if (file < 0 || write(file, data, size) != (ssize_t)size)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    lora_set *s = NULL;
    ct_error error = {0};
    ct_status status = lora_open(&s, &mem_default, NULL, &(ct_lora){path, 1}, 1, &error);
    if ((status == CT_OK) != (s != NULL) || status != error.code)
        abort();
    if (s && match(s, &error) != error.code)
        abort();
    lora_close(s);
    close(file);
    return 0;
}
