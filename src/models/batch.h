/* Several sequences in one pass through a transformer, so that every weight is read once for all of
 * them: a prompt and its negative.
 *
 * Their rows lie in one matrix, one sequence behind the other, without padding. Products and norms
 * run over all rows that have the same weights, attention over each sequence alone. Where text and
 * pictures have weights of their own, every other sequence has its pictures in front: then the
 * pictures of two sequences are neighbours, and one product does for both. Attention does not care
 * about the order of its keys but for rounding, so a sequence has the same order when it runs
 * alone. */
#ifndef MODELS_BATCH_H
#define MODELS_BATCH_H

#include "nn/nn.h"

#define BATCH_MAX 2 /* sequences */

/* The tokens of a sequence. */
enum { BATCH_TEXT, BATCH_TARGET, BATCH_REFERENCES, BATCH_KINDS };

/* Neighbouring rows that have the same weights and modulation. */
typedef struct batch_rows {
    int64_t first, count;
    int stream; /* of those that the model tells apart */
} batch_rows;

typedef struct batch_sequence {
    int64_t first, count;
    batch_rows part[BATCH_KINDS]; /* count 0: none */
    batch_rows run[BATCH_KINDS];  /* the same, neighbours of one stream together */
    int runs;
    nn_tensor cosine, sine; /* [count, head_dim / 2], in the order of the rows */
} batch_sequence;

typedef struct batch {
    int64_t count; /* rows of all */
    batch_sequence sequence[BATCH_MAX];
    int sequences;
    batch_rows run[BATCH_MAX * BATCH_KINDS]; /* of all sequences */
    int runs;
    int text_stream; /* -1: that of the pictures */
} batch;

/* What batch_add is told of a sequence. */
typedef struct batch_tokens {
    int64_t count[BATCH_KINDS];
    int stream[BATCH_KINDS];
    bool pictures_first; /* [references | target | text] instead of [text | target | references] */
    const nn_tensor *cosine, *sine; /* of at least as many rows; what is behind them is left out */
} batch_tokens;

/* Adds a sequence behind those that are there; b begins as zeros. */
void batch_add(batch *b, const batch_tokens *tokens);

/* All runs of all sequences, `for (int i = -1; batch_next(c, b, &i);)`: those of the text first,
 * which may be computed while the others are (nn_fork). What is done with a run reads and writes
 * its own rows alone. False behind the last. */
bool batch_next(nn *c, const batch *b, int *run);

/* The rows of a sequence that are of a kind. x has the rows of all. */
nn_tensor batch_part(const nn_tensor *x, const batch_sequence *s, int kind);
/* Fills them; where the sequence has none, from may be anything. */
void batch_fill(nn *c, const batch_sequence *s, const nn_tensor *x, int kind,
                const nn_tensor *from);
/* Copies those of the first sequence to sequences first .. of b. */
void batch_share(nn *c, const batch *b, const nn_tensor *x, int kind, int first);

/* nn_head_norm_rope on x [rows of all, heads * D]; norm: by stream; entries may be NULL. */
void batch_head_norm_rope(nn *c, const batch *b, const nn_tensor *x, int heads,
                          const nn_weight *const *norm, double eps);

/* nn_attention of each sequence. qkv [rows of all, 3 D], which may have more rows behind the only
 * sequence, to be seen by it; out [rows of all, D]. */
void batch_attention(nn *c, const batch *b, const nn_tensor *out, const nn_tensor *qkv, int heads);

#endif
