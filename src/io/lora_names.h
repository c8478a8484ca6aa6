/* What LoRA files call the matrices of our models: the names that the trainers' own versions of the
 * networks have, where some matrices are one that are several here. */
#ifndef IO_LORA_NAMES_H
#define IO_LORA_NAMES_H

#include "io/names.h"

/* Which rows a module of a file changes. */
typedef enum lora_rows {
    LORA_ROWS_ALL,   /* those of the matrix */
    LORA_ROWS_PART,  /* its own are those of `parts` matrices of one size; ours is number `part` */
    LORA_ROWS_BLOCK, /* ours are rows of several modules: the square block number `part`, */
    LORA_ROWS_REST,  /* or what is behind so many square blocks */
    LORA_ROWS_SWAP   /* the matrix's two halves in the other order */
} lora_rows;

typedef struct lora_name {
    char text[NAMES_LENGTH]; /* flattened */
    lora_rows rows;
    int part, parts;
} lora_name;

#define LORA_NAMES_MAXIMUM 32

/* Dots become underscores, in place, as kohya's trainers write names. */
void lora_names_flatten(char *name);

/* All names under which a file may have the matrix that HF calls name ("module.weight"), its own
 * first. Returns how many there are: 0 for what is no matrix of a module. */
int lora_names_list(lora_name out[LORA_NAMES_MAXIMUM], const char *name);

#endif
