#include "io/lora_names.h"

#include <stdio.h>
#include <string.h>

/* Another name: one beginning and one end are replaced, either of which may be empty. */
typedef struct alias {
    const char *begin, *other_begin, *end, *other_end;
    lora_rows rows;
    int part, parts;
} alias;

static const alias aliases[] = {
    /* Z-Image as its authors publish it. */
    {"", "", ".attention.to_q", ".attention.qkv", LORA_ROWS_PART, 0, 3},
    {"", "", ".attention.to_k", ".attention.qkv", LORA_ROWS_PART, 1, 3},
    {"", "", ".attention.to_v", ".attention.qkv", LORA_ROWS_PART, 2, 3},
    {"", "", ".attention.to_out.0", ".attention.out", LORA_ROWS_ALL, 0, 0},
    {"all_x_embedder.2-1", "x_embedder", "", "", LORA_ROWS_ALL, 0, 0},
    {"all_final_layer.2-1.", "final_layer.", "", "", LORA_ROWS_ALL, 0, 0},
    /* All families, where the trainer has a plain linear layer. */
    {"", "", ".to_out.0", ".to_out", LORA_ROWS_ALL, 0, 0},
    /* FLUX.2 as its authors publish it. */
    {"transformer_blocks.", "double_blocks.", ".attn.to_q", ".img_attn.qkv", LORA_ROWS_PART, 0, 3},
    {"transformer_blocks.", "double_blocks.", ".attn.to_k", ".img_attn.qkv", LORA_ROWS_PART, 1, 3},
    {"transformer_blocks.", "double_blocks.", ".attn.to_v", ".img_attn.qkv", LORA_ROWS_PART, 2, 3},
    {"transformer_blocks.", "double_blocks.", ".attn.add_q_proj", ".txt_attn.qkv", LORA_ROWS_PART,
     0, 3},
    {"transformer_blocks.", "double_blocks.", ".attn.add_k_proj", ".txt_attn.qkv", LORA_ROWS_PART,
     1, 3},
    {"transformer_blocks.", "double_blocks.", ".attn.add_v_proj", ".txt_attn.qkv", LORA_ROWS_PART,
     2, 3},
    {"transformer_blocks.", "double_blocks.", ".attn.to_out.0", ".img_attn.proj", LORA_ROWS_ALL, 0,
     0},
    {"transformer_blocks.", "double_blocks.", ".attn.to_add_out", ".txt_attn.proj", LORA_ROWS_ALL,
     0, 0},
    {"transformer_blocks.", "double_blocks.", ".ff.linear_in", ".img_mlp.0", LORA_ROWS_ALL, 0, 0},
    {"transformer_blocks.", "double_blocks.", ".ff.linear_out", ".img_mlp.2", LORA_ROWS_ALL, 0, 0},
    {"transformer_blocks.", "double_blocks.", ".ff_context.linear_in", ".txt_mlp.0", LORA_ROWS_ALL,
     0, 0},
    {"transformer_blocks.", "double_blocks.", ".ff_context.linear_out", ".txt_mlp.2", LORA_ROWS_ALL,
     0, 0},
    {"single_transformer_blocks.", "single_blocks.", ".attn.to_qkv_mlp_proj", ".linear1",
     LORA_ROWS_ALL, 0, 0},
    {"single_transformer_blocks.", "single_blocks.", ".attn.to_out", ".linear2", LORA_ROWS_ALL, 0,
     0},
    {"x_embedder", "img_in", "", "", LORA_ROWS_ALL, 0, 0},
    {"context_embedder", "txt_in", "", "", LORA_ROWS_ALL, 0, 0},
    {"time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer", "", "", LORA_ROWS_ALL, 0,
     0},
    {"time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer", "", "", LORA_ROWS_ALL,
     0, 0},
    {"double_stream_modulation_", "double_stream_modulation_", ".linear", ".lin", LORA_ROWS_ALL, 0,
     0},
    {"single_stream_modulation", "single_stream_modulation", ".linear", ".lin", LORA_ROWS_ALL, 0,
     0},
    {"proj_out", "final_layer.linear", "", "", LORA_ROWS_ALL, 0, 0},
    /* Shift first there, scale first here. */
    {"norm_out.linear", "final_layer.adaLN_modulation.1", "", "", LORA_ROWS_SWAP, 0, 0},
    /* What is one matrix in FLUX.2's single blocks may be trained as four. */
    {"single_transformer_blocks.", "single_transformer_blocks.", ".attn.to_qkv_mlp_proj",
     ".attn.to_q", LORA_ROWS_BLOCK, 0, 0},
    {"single_transformer_blocks.", "single_transformer_blocks.", ".attn.to_qkv_mlp_proj",
     ".attn.to_k", LORA_ROWS_BLOCK, 1, 0},
    {"single_transformer_blocks.", "single_transformer_blocks.", ".attn.to_qkv_mlp_proj",
     ".attn.to_v", LORA_ROWS_BLOCK, 2, 0},
    {"single_transformer_blocks.", "single_transformer_blocks.", ".attn.to_qkv_mlp_proj",
     ".proj_mlp", LORA_ROWS_REST, 3, 0},
};

void lora_names_flatten(char *name)
{
    for (; *name; name++)
        if (*name == '.')
            *name = '_';
}

static bool spell(char out[NAMES_LENGTH], const alias *a, const char *module)
{
    const size_t length = strlen(module), begin = strlen(a->begin), end = strlen(a->end);
    if (length < begin + end || strncmp(module, a->begin, begin) != 0 ||
        strcmp(module + length - end, a->end) != 0)
        return false;
    /* Without an end it is the beginning of a longer name only where that is at a dot. */
    if (!end && begin < length && a->begin[begin - 1] != '.')
        return false;
    snprintf(out, NAMES_LENGTH, "%s%.*s%s", a->other_begin, (int)(length - begin - end),
             module + begin, a->other_end);
    return true;
}

/* Adds a name that is not there yet. */
static void add(lora_name *list, int *count, const char *text, const alias *a)
{
    lora_name *n = &list[*count];
    if (*count == LORA_NAMES_MAXIMUM)
        return;
    *n = (lora_name){
        .rows = a ? a->rows : LORA_ROWS_ALL, .part = a ? a->part : 0, .parts = a ? a->parts : 0};
    snprintf(n->text, sizeof n->text, "%s", text);
    lora_names_flatten(n->text);
    for (int i = 0; i < *count; i++)
        if (!strcmp(list[i].text, n->text))
            return;
    ++*count;
}

int lora_names_list(lora_name out[LORA_NAMES_MAXIMUM], const char *name)
{
    static const char end[] = ".weight";
    char module[NAMES_LENGTH], other[NAMES_LENGTH];
    const size_t length = strlen(name), tail = sizeof end - 1;
    int count = 0;
    if (length <= tail || length >= NAMES_LENGTH || strcmp(name + length - tail, end) != 0)
        return 0;
    snprintf(module, sizeof module, "%.*s", (int)(length - tail), name);
    add(out, &count, module, NULL);
    for (size_t i = 0; i < sizeof aliases / sizeof *aliases; i++)
        if (spell(other, &aliases[i], module))
            add(out, &count, other, &aliases[i]);
    /* Programs around MLX save what they train under the names of their own layouts. */
    for (int layout = NAMES_HF + 1; layout < NAMES_COUNT; layout++) {
        names_spell(other, (name_layout)layout, name);
        if (strlen(other) > tail)
            other[strlen(other) - tail] = 0;
        add(out, &count, other, NULL);
    }
    return count;
}
