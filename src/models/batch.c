#include "models/batch.h"

/* Rows of a stream behind the others; returns how many runs there are. */
static int append(batch_rows *runs, int count, const batch_rows *rows)
{
    batch_rows *last = count ? &runs[count - 1] : NULL;
    if (last && last->stream == rows->stream && last->first + last->count == rows->first) {
        last->count += rows->count;
        return count;
    }
    runs[count] = *rows;
    return count + 1;
}

void batch_add(batch *b, const batch_tokens *tokens)
{
    if (b->sequences == BATCH_MAX)
        return;
    batch_sequence *s = &b->sequence[b->sequences++];
    const int *stream = tokens->stream;
    *s = (batch_sequence){.first = b->count};
    b->text_stream = stream[BATCH_TEXT] == stream[BATCH_TARGET] ? -1 : stream[BATCH_TEXT];
    for (int i = 0; i < BATCH_KINDS; i++) {
        const int kind = tokens->pictures_first ? BATCH_KINDS - 1 - i : i;
        const batch_rows rows = {b->count, tokens->count[kind], tokens->stream[kind]};
        s->part[kind] = rows;
        if (rows.count == 0)
            continue;
        s->runs = append(s->run, s->runs, &rows);
        b->runs = append(b->run, b->runs, &rows);
        b->count += rows.count;
    }
    s->count = b->count - s->first;
    s->cosine = nn_rows(tokens->cosine, 0, s->count);
    s->sine = nn_rows(tokens->sine, 0, s->count);
}

/* The next run of the text, or of all others; -1: none. */
static int run_behind(const batch *b, int run, bool text)
{
    for (int i = run + 1; i < b->runs; i++)
        if ((b->run[i].stream == b->text_stream) == text)
            return i;
    return -1;
}

bool batch_next(nn *c, const batch *b, int *run)
{
    const bool begins = *run < 0, text = begins || b->run[*run].stream == b->text_stream;
    if (begins)
        nn_fork(c);
    *run = run_behind(b, *run, text);
    if (*run < 0 && text) {
        nn_meanwhile(c);
        *run = run_behind(b, -1, false);
    }
    if (*run < 0)
        nn_join(c);
    return *run >= 0;
}

nn_tensor batch_part(const nn_tensor *x, const batch_sequence *s, int kind)
{
    return nn_rows(x, s->part[kind].first, s->part[kind].count);
}

void batch_fill(nn *c, const batch_sequence *s, const nn_tensor *x, int kind, const nn_tensor *from)
{
    if (s->part[kind].count == 0)
        return;
    nn_tensor rows = batch_part(x, s, kind);
    nn_copy(c, &rows, from);
}

void batch_share(nn *c, const batch *b, const nn_tensor *x, int kind, int first)
{
    const nn_tensor from = batch_part(x, &b->sequence[0], kind);
    for (int i = first; i < b->sequences; i++)
        batch_fill(c, &b->sequence[i], x, kind, &from);
}

void batch_head_norm_rope(nn *c, const batch *b, const nn_tensor *x, int heads,
                          const nn_weight *const *norm, double eps)
{
    for (int i = 0; i < b->sequences; i++) {
        const batch_sequence *s = &b->sequence[i];
        for (int k = 0; k < s->runs; k++) {
            const nn_weight *w = norm[s->run[k].stream];
            const int64_t first = s->run[k].first;
            int64_t count = s->run[k].count;
            for (; k + 1 < s->runs && norm[s->run[k + 1].stream] == w; k++) /* streams may share */
                count += s->run[k + 1].count;
            nn_tensor rows = nn_rows(x, first, count);
            nn_tensor cosine = nn_rows(&s->cosine, first - s->first, count);
            nn_tensor sine = nn_rows(&s->sine, first - s->first, count);
            nn_head_norm_rope(c, &rows, heads, w, eps, &cosine, &sine, NN_ROPE_INTERLEAVED);
        }
    }
}

void batch_attention(nn *c, const batch *b, const nn_tensor *out, const nn_tensor *qkv, int heads)
{
    const int64_t d = out->n[1], more = qkv->n[0] - b->count;
    for (int i = 0; i < b->sequences; i++) {
        const batch_sequence *s = &b->sequence[i];
        nn_tensor own = nn_rows(qkv, s->first, s->count), q = nn_columns(&own, 0, d);
        nn_tensor seen = nn_rows(qkv, s->first, s->count + more);
        nn_tensor k = nn_columns(&seen, d, d), v = nn_columns(&seen, 2 * d, d);
        nn_tensor rows = nn_rows(out, s->first, s->count);
        nn_attention(c, &rows, &q, &k, &v, heads, heads, false);
    }
}
