/* A model that is being quantized: quantize.c lays out its files, quantize_tensor.c fills them. */
#ifndef PIPELINE_QUANTIZE_H
#define PIPELINE_QUANTIZE_H

#include "core/folder.h"
#include "io/names.h"
#include "io/safetensors.h"
#include "pipeline/internal.h"

typedef enum quantize_action {
    QUANTIZE_COPY,
    QUANTIZE_CHANNELS_LAST, /* a convolution [out, in, h, w] becomes [out, h, w, in] */
    QUANTIZE_CODES
} quantize_action;

typedef struct quantize_item {
    const weights *source; /* which holds from */
    const weight_view *from;
    quantize_action action;
    int shard;
    const lora_target *target; /* what LoRAs add to it; NULL: nothing */
    double relative_l2;
    char name[NAMES_LENGTH]; /* in the new file */
} quantize_item;

typedef struct quantize_part {
    const char *folder;
    const weights *source;
    quantize_item *items;
    size_t count;
    int shards;
} quantize_part;

#define QUANTIZE_PARTS 3

typedef struct quantize_work {
    ct_context *context;
    const ct_allocator *allocator;
    const ct_quantize_params *params;
    ct_model *model;
    int bits;
    int64_t group;
    bool mflux; /* the layout; otherwise that of MLX-z-image */
    quantize_part parts[QUANTIZE_PARTS];
    folder_output out;
    int done;
    double began;
    double error_sum, norm_sum; /* of squares, over all matrices */
    ct_quantize_result result;
} quantize_work;

/* Bytes of a tensor in the new file, scales and biases included. */
uint64_t quantize_item_bytes(const quantize_work *w, const quantize_item *i);
/* "module.weight" -> "module.last" */
void quantize_beside(char out[NAMES_LENGTH], const char *weight, const char *last);
/* Tells a file that is begun of a tensor's type and shape; and writes it, when all are told. Asks
 * for cancel, and reports. */
ct_status quantize_declare(const quantize_work *w, const quantize_item *t, safetensors_writer *out,
                           ct_error *error);
ct_status quantize_write(quantize_work *w, const quantize_part *p, quantize_item *t,
                         safetensors_writer *out, ct_error *error);

#endif
