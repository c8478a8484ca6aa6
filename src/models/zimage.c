/* Z-Image (https://arxiv.org/abs/2511.22699; diffusers ZImageTransformer2DModel).
 *
 * latents  -> patches      -> noise refiner (image tokens alone) \
 *                                                                  layers -> final layer
 * features -> norm, linear -> context refiner (caption alone)    /
 */
#include "models/zimage.h"

#include "core/mem.h"
#include "io/names.h"
#include "models/batch.h"

#include <math.h>

#define PATCH 2              /* all_patch_size; other sizes are not published */
#define GROUP 32             /* token counts are padded to multiples of this */
#define MODULATION_WIDTH 256 /* of the timestep embedding, at most dim */
#define FREQUENCIES 128      /* of the sinusoidal timestep embedding, half its width */
#define TIME_HIDDEN 1024

static int64_t padded(int64_t length)
{
    return (length + GROUP - 1) / GROUP * GROUP;
}

/* ---- Loading --------------------------------------------------------------------------------- */

/* What the shapes of the tensors tell; read_config has the values of the published models for the
 * rest. How a head is divided among the axes cannot be seen: only heads of 128 are known. */
static void infer(const weights *w, json_writer *out)
{
    const int64_t dim = tensor_size(w, "layers.0.attention_norm1.weight", 0);
    const int64_t head = tensor_size(w, "layers.0.attention.norm_q.weight", 0);
    infer_integer(out, "dim", dim);
    infer_integer(out, "n_heads", head > 0 ? dim / head : 0);
    infer_integer(out, "n_layers", names_parts(w, "layers", "attention_norm1.weight"));
    infer_integer(out, "n_refiner_layers",
                  names_parts(w, "noise_refiner", "attention_norm1.weight"));
    infer_integer(out, "cap_feat_dim", tensor_size(w, "cap_embedder.0.weight", 0));
    infer_integer(out, "in_channels",
                  tensor_size(w, "all_final_layer.2-1.linear.bias", 0) / (PATCH * PATCH));
    const int64_t dims[ZIMAGE_AXES] = {32, 48, 48}, lens[ZIMAGE_AXES] = {1536, 512, 512};
    json_write_key(out, "axes_dims");
    json_write_array(out);
    for (int i = 0; i < ZIMAGE_AXES; i++)
        json_write_integer(out, dims[i]);
    json_write_array_end(out);
    json_write_key(out, "axes_lens");
    json_write_array(out);
    for (int i = 0; i < ZIMAGE_AXES; i++)
        json_write_integer(out, lens[i]);
    json_write_array_end(out);
}

static ct_status check_patch(const config *c, ct_error *error)
{
    int64_t patch[8] = {PATCH}, frame[8] = {1};
    int patches = 1, frames = 1;
    ct_status s = CT_OK;
    if (config_has(c, "all_patch_size"))
        s = config_integers(c, "all_patch_size", 1, 64, 8, patch, &patches, error);
    if (s == CT_OK && config_has(c, "all_f_patch_size"))
        s = config_integers(c, "all_f_patch_size", 1, 64, 8, frame, &frames, error);
    if (s != CT_OK)
        return s;
    for (int i = 0; i < patches && i < frames; i++)
        if (patch[i] == PATCH && frame[i] == 1)
            return CT_OK;
    return error_set(error, CT_EUNSUPPORTED, "%s: all_patch_size has no 2 with all_f_patch_size 1",
                     c->path);
}

static ct_status read_config(zimage *m, const config *c, ct_error *error)
{
    int64_t heads = 0, kv_heads = 0, layers = 0, refiners = 0, axes = 0;
    int dims = 0, lens = 0;
    ct_status s = check_patch(c, error);
    if (s == CT_OK)
        s = config_integer(c, "in_channels", 1, 4096, false, 16, &m->channels, error);
    if (s == CT_OK)
        s = config_integer(c, "dim", 2, 1 << 20, false, 3840, &m->dim, error);
    if (s == CT_OK)
        s = config_integer(c, "n_layers", 0, 1000, false, 30, &layers, error);
    if (s == CT_OK)
        s = config_integer(c, "n_refiner_layers", 0, 1000, false, 2, &refiners, error);
    if (s == CT_OK)
        s = config_integer(c, "n_heads", 1, 4096, false, 30, &heads, error);
    if (s == CT_OK)
        s = config_integer(c, "n_kv_heads", 1, 4096, false, heads, &kv_heads, error);
    if (s == CT_OK)
        s = config_integer(c, "cap_feat_dim", 1, 1 << 20, false, 2560, &m->caption_dim, error);
    if (s == CT_OK)
        s = config_number(c, "norm_eps", 0, 1, false, 1e-5, &m->eps, error);
    if (s == CT_OK)
        s = config_number(c, "rope_theta", 1e-3, 1e12, false, 256, &m->theta, error);
    if (s == CT_OK)
        s = config_number(c, "t_scale", -1e9, 1e9, false, 1000, &m->t_scale, error);
    if (s == CT_OK)
        s = config_boolean(c, "qk_norm", true, &m->qk_norm, error);
    if (s == CT_OK)
        s = config_integers(c, "axes_dims", 2, 4096, ZIMAGE_AXES, m->axes_dims, &dims, error);
    if (s == CT_OK)
        s = config_integers(c, "axes_lens", 1, 1 << 24, ZIMAGE_AXES, m->axes_lens, &lens, error);
    if (s != CT_OK)
        return s;
    for (int i = 0; i < dims; i++)
        axes += m->axes_dims[i] % 2 == 0 ? m->axes_dims[i] : INT32_MAX;
    m->head_dim = m->dim / heads;
    if (dims != ZIMAGE_AXES || lens != ZIMAGE_AXES || m->dim % heads != 0 || axes != m->head_dim)
        return error_set(error, CT_EFORMAT,
                         "%s: axes_dims and axes_lens must have three entries, and axes_dims be "
                         "even and add up to dim / n_heads (%d / %d)",
                         c->path, (int)m->dim, (int)heads);
    if (config_has(c, "siglip_feat_dim"))
        return error_set(error, CT_EUNSUPPORTED,
                         "%s: siglip_feat_dim is set; the Omni variant is not supported", c->path);
    m->heads = (int)heads;
    m->layers = (int)layers;
    m->refiners = (int)refiners;
    m->embed_dim = m->dim < MODULATION_WIDTH ? m->dim : MODULATION_WIDTH;
    m->ffn_dim = (int64_t)((double)m->dim / 3 * 8);
    return CT_OK;
}

static void bind_block(binder *b, const zimage *m, zimage_block *k, const char *stack, int i,
                       bool modulated)
{
    const int64_t d = m->dim, f = m->ffn_dim;
    k->q = bind2(b, d, d, "%s.%d.attention.to_q.weight", stack, i);
    k->k = bind2(b, d, d, "%s.%d.attention.to_k.weight", stack, i);
    k->v = bind2(b, d, d, "%s.%d.attention.to_v.weight", stack, i);
    k->out = bind2(b, d, d, "%s.%d.attention.to_out.0.weight", stack, i);
    if (m->qk_norm) {
        k->norm_q = bind1(b, m->head_dim, "%s.%d.attention.norm_q.weight", stack, i);
        k->norm_k = bind1(b, m->head_dim, "%s.%d.attention.norm_k.weight", stack, i);
    }
    k->attention_norm1 = bind1(b, d, "%s.%d.attention_norm1.weight", stack, i);
    k->attention_norm2 = bind1(b, d, "%s.%d.attention_norm2.weight", stack, i);
    k->w1 = bind2(b, f, d, "%s.%d.feed_forward.w1.weight", stack, i);
    k->w2 = bind2(b, d, f, "%s.%d.feed_forward.w2.weight", stack, i);
    k->w2.outliers = true; /* a product of two projections */
    k->w3 = bind2(b, f, d, "%s.%d.feed_forward.w3.weight", stack, i);
    k->ffn_norm1 = bind1(b, d, "%s.%d.ffn_norm1.weight", stack, i);
    k->ffn_norm2 = bind1(b, d, "%s.%d.ffn_norm2.weight", stack, i);
    if (modulated) {
        k->modulation = bind2(b, 4 * d, m->embed_dim, "%s.%d.adaLN_modulation.0.weight", stack, i);
        k->modulation.sensitive = true;
        k->modulation_bias = bind1(b, 4 * d, "%s.%d.adaLN_modulation.0.bias", stack, i);
    }
}

/* What stays in bfloat16 when the blocks are computed in 8 bits: small layers at the ends, through
 * which everything passes, and the modulation, which is a factor of everything. */
static nn_weight sensitive(nn_weight w)
{
    w.sensitive = true;
    return w;
}

static ct_status bind_weights(zimage *m, const load_options *options, ct_error *error)
{
    binder b = {.source = m->weights, .options = options, .error = error};
    const int64_t d = m->dim, e = m->embed_dim, patch = PATCH * PATCH * m->channels;
    m->t_mlp0 = sensitive(bind2(&b, TIME_HIDDEN, 2 * FREQUENCIES, "t_embedder.mlp.0.weight"));
    m->t_mlp0_bias = bind1(&b, TIME_HIDDEN, "t_embedder.mlp.0.bias");
    m->t_mlp2 = sensitive(bind2(&b, e, TIME_HIDDEN, "t_embedder.mlp.2.weight"));
    m->t_mlp2_bias = bind1(&b, e, "t_embedder.mlp.2.bias");
    m->x_embedder = sensitive(bind2(&b, d, patch, "all_x_embedder.2-1.weight"));
    m->x_embedder_bias = bind1(&b, d, "all_x_embedder.2-1.bias");
    m->x_pad_token = bind2(&b, 1, d, "x_pad_token");
    m->caption_norm = bind1(&b, m->caption_dim, "cap_embedder.0.weight");
    m->caption_embedder = sensitive(bind2(&b, d, m->caption_dim, "cap_embedder.1.weight"));
    m->caption_embedder_bias = bind1(&b, d, "cap_embedder.1.bias");
    m->caption_pad_token = bind2(&b, 1, d, "cap_pad_token");
    for (int i = 0; i < m->refiners; i++) {
        bind_block(&b, m, &m->noise_refiner[i], "noise_refiner", i, true);
        bind_block(&b, m, &m->context_refiner[i], "context_refiner", i, false);
    }
    for (int i = 0; i < m->layers; i++)
        bind_block(&b, m, &m->layer[i], "layers", i, true);
    m->final_modulation =
        sensitive(bind2(&b, d, e, "all_final_layer.2-1.adaLN_modulation.1.weight"));
    m->final_modulation_bias = bind1(&b, d, "all_final_layer.2-1.adaLN_modulation.1.bias");
    m->final = sensitive(bind2(&b, patch, d, "all_final_layer.2-1.linear.weight"));
    m->final_bias = bind1(&b, patch, "all_final_layer.2-1.linear.bias");
    return b.status;
}

ct_status zimage_load(zimage **out, const load_options *options, const char *directory,
                      ct_error *error)
{
    static const component_format format = {"diffusion_pytorch_model", "ZImageTransformer2DModel",
                                            infer};
    const ct_allocator *a = options->allocator;
    *out = NULL;
    zimage *m = mem_zero_array(a, 1, sizeof *m);
    if (!m)
        return error_memory(error, sizeof *m, "the transformer");
    m->allocator = a;
    config c;
    ct_status status = component_open(&c, &m->weights, &format, options, directory, error);
    if (status == CT_OK) {
        status = read_config(m, &c, error);
        config_close(&c);
    }
    if (status == CT_OK) {
        m->noise_refiner = mem_zero_array(a, (size_t)m->refiners, sizeof *m->noise_refiner);
        m->context_refiner = mem_zero_array(a, (size_t)m->refiners, sizeof *m->context_refiner);
        m->layer = mem_zero_array(a, (size_t)m->layers, sizeof *m->layer);
        status = m->noise_refiner && m->context_refiner && m->layer
                     ? bind_weights(m, options, error)
                     : error_memory(error, sizeof *m->layer, "the transformer");
    }
    if (status != CT_OK) {
        zimage_free(m);
        return status;
    }
    *out = m;
    return CT_OK;
}

void zimage_free(zimage *m)
{
    if (!m)
        return;
    weights_close(m->weights);
    mem_free(m->allocator, m->noise_refiner);
    mem_free(m->allocator, m->context_refiner);
    mem_free(m->allocator, m->layer);
    mem_free(m->allocator, m);
}

int64_t zimage_max_side(const zimage *m, int axis)
{
    return m->axes_lens[1 + axis] * PATCH;
}

int64_t zimage_max_caption(const zimage *m)
{
    /* The image stands at time Lc' + 1, which must be below the length of the table. */
    return (m->axes_lens[0] - 2) / GROUP * GROUP;
}

/* ---- Once for a schedule ------------------------------------------------------------------------
 * values[4 * block + i] are 1 + scale_msa, tanh(gate_msa), 1 + scale_mlp, tanh(gate_mlp) of the
 * noise refiner blocks and then of the layers; the last entry is 1 + scale of the final layer. */

static int64_t modulated_blocks(const zimage *m)
{
    return m->refiners + m->layers;
}

/* Of all steps: [steps, dim]. */
static nn_tensor schedule_entry(nn *c, const zimage_schedule *s, int64_t entry)
{
    nn_tensor values = nn_rows(&s->values, entry, 1);
    return nn_as2(c, &values, s->steps, s->values.n[2]);
}

/* t_embedder: sinusoids of t_scale * time, cosines first, then two linear layers. */
static nn_tensor embed_times(nn *c, const zimage *m, const float *times, int64_t steps)
{
    nn_tensor embedding = nn_new2(c, steps, m->embed_dim);
    size_t mark = nn_mark(c);
    nn_tensor waves = nn_new2(c, steps, 2 * FREQUENCIES), hidden = nn_new2(c, steps, TIME_HIDDEN);
    float *wave = nn_begin_write(c, &waves);
    for (int64_t s = 0; wave && s < steps; s++, wave += 2 * FREQUENCIES)
        for (int k = 0; k < FREQUENCIES; k++) {
            float frequency = expf((float)-log(10000) * (float)k / FREQUENCIES);
            float angle = times[s] * (float)m->t_scale * frequency;
            wave[k] = cosf(angle);
            wave[FREQUENCIES + k] = sinf(angle);
        }
    nn_end_write(c, &waves);
    nn_linear(c, &hidden, &waves, &m->t_mlp0,
              &(nn_epilogue){.bias = &m->t_mlp0_bias, .activation = NN_SILU});
    nn_linear(c, &embedding, &hidden, &m->t_mlp2, &(nn_epilogue){.bias = &m->t_mlp2_bias});
    nn_release(c, mark);
    return embedding;
}

zimage_schedule zimage_begin_schedule(nn *c, const zimage *m, int64_t steps)
{
    const int64_t entries = 4 * modulated_blocks(m) + 1;
    return (zimage_schedule){steps, nn_new3(c, entries, steps, m->dim),
                             nn_new2(c, entries, m->dim)};
}

void zimage_fill_schedule(nn *c, const zimage *m, const zimage_schedule *s, const float *times)
{
    size_t mark = nn_mark(c);
    nn_tensor embedding = embed_times(c, m, times, s->steps);
    for (int64_t i = 0; i < s->steps; i++) {
        nn_tensor row = nn_rows(&embedding, i, 1);
        nn_trace_tensor(c, &row, "step.%02d.t_embedder", (int)i);
    }
    for (int64_t b = 0; b < modulated_blocks(m); b++) {
        const zimage_block *k = b < m->refiners ? &m->noise_refiner[b] : &m->layer[b - m->refiners];
        nn_block(c);
        for (int i = 0; i < 4; i++) {
            nn_weight w = nn_weight_rows(&k->modulation, i * m->dim, m->dim);
            nn_weight bias = nn_weight_rows(&k->modulation_bias, i * m->dim, m->dim);
            nn_tensor value = schedule_entry(c, s, 4 * b + i);
            nn_linear(c, &value, &embedding, &w, &(nn_epilogue){.bias = &bias});
            if (i == 0 || i == 2)
                nn_add_scalar(c, &value, 1);
            else
                nn_tanh(c, &value);
        }
    }
    nn_block(c);
    nn_tensor final = schedule_entry(c, s, 4 * modulated_blocks(m));
    nn_silu(c, &embedding, &embedding);
    nn_linear(c, &final, &embedding, &m->final_modulation,
              &(nn_epilogue){.bias = &m->final_modulation_bias});
    nn_add_scalar(c, &final, 1);
    nn_release(c, mark);
}

void zimage_set_step(nn *c, const zimage_schedule *schedule, int64_t step)
{
    nn_take(c, &schedule->now, &schedule->values, step);
}

/* ---- A block ------------------------------------------------------------------------------------
 * x += gate_msa * norm2(attention(norm1(x) * scale_msa))
 * x += gate_mlp * norm2(w2(silu(w1 h) * w3 h)), h = norm1(x) * scale_mlp
 *
 * norm1(x) * scale_msa is made by the sum in front of it, where that is another block's. */

/* One of several blocks in a row, and what it needs of the one behind it. */
typedef struct turn {
    const zimage_block *block, *after; /* after: NULL behind the last */
    nn_tensor modulation[4], after_scale;
    bool modulated;
} turn;

/* Block i of `count`; schedule: NULL without modulation, which begins at that of `first`. */
static turn turn_of(const zimage_block *blocks, int i, int count, const zimage_schedule *schedule,
                    int first)
{
    turn t = {.block = &blocks[i], .after = i + 1 < count ? &blocks[i + 1] : NULL};
    const int64_t row = 4 * ((int64_t)first + i);
    t.modulated = schedule != NULL;
    for (int k = 0; k < 4 && schedule; k++)
        t.modulation[k] = nn_rows(&schedule->now, row + k, 1);
    if (schedule && t.after)
        t.after_scale = nn_rows(&schedule->now, row + 4, 1);
    return t;
}

/* The input of the first of several blocks. */
static nn_tensor begin_blocks(nn *c, const zimage *m, const turn *t, const nn_tensor *x)
{
    nn_tensor input = nn_new_operand(c, x->n[0], m->dim);
    nn_rms_norm(c, &input, x, &t->block->attention_norm1, m->eps,
                t->modulated ? &t->modulation[0] : NULL);
    return input;
}

static void block(nn *c, const zimage *m, const turn *t, const nn_tensor *x, const batch *b,
                  const nn_tensor *input)
{
    if (nn_stopped(c))
        return;
    const zimage_block *k = t->block;
    const nn_tensor *gate_msa = t->modulated ? &t->modulation[1] : NULL;
    const nn_tensor *scale_mlp = t->modulated ? &t->modulation[2] : NULL;
    const nn_tensor *gate_mlp = t->modulated ? &t->modulation[3] : NULL;
    const nn_weight *norm_q = m->qk_norm ? &k->norm_q : NULL;
    const nn_weight *norm_k = m->qk_norm ? &k->norm_k : NULL;
    const int64_t s = x->n[0], d = m->dim;
    size_t mark = nn_mark(c);
    nn_tensor h = nn_new_work2(c, s, d);
    size_t inner = nn_mark(c);

    nn_tensor qkv = nn_new_work2(c, s, 3 * d);
    nn_tensor q = nn_columns(&qkv, 0, d), key = nn_columns(&qkv, d, d);
    nn_linears(c, &qkv, input, (const nn_weight *const[]){&k->q, &k->k, &k->v}, NULL, 3);
    /* The reference's attention class has its own eps for these, whatever norm_eps says. */
    batch_head_norm_rope(c, b, &q, m->heads, &norm_q, 1e-5);
    batch_head_norm_rope(c, b, &key, m->heads, &norm_k, 1e-5);
    batch_attention(c, b, &h, &qkv, m->heads);
    nn_release(c, inner);
    nn_tensor attended = nn_new_wide2(c, s, d);
    nn_linear(c, &attended, &h, &k->out, NULL);
    nn_add_rms_norm(
        c, x, &attended, &k->attention_norm2, m->eps, gate_msa,
        &(nn_next_norm){.out = input, .w = &k->ffn_norm1, .eps = m->eps, .scale = scale_mlp});
    nn_release(c, mark);
    nn_tensor hidden = nn_new_input(c, s, &k->w2), y = nn_new_wide2(c, s, d);
    nn_linear(c, &hidden, input, &k->w1, &(nn_epilogue){.activation = NN_SILU, .up = &k->w3});
    nn_linear(c, &y, &hidden, &k->w2, NULL);
    const nn_next_norm next = {.out = input,
                               .w = t->after ? &t->after->attention_norm1 : NULL,
                               .eps = m->eps,
                               .scale = t->modulated ? &t->after_scale : NULL};
    nn_add_rms_norm(c, x, &y, &k->ffn_norm2, m->eps, gate_mlp, t->after ? &next : NULL);
    nn_release(c, mark);
}

/* One sequence of so many tokens, whose angles begin at a row of the tables. */
static batch rows_alone(const zimage_caption *p, int64_t first, int64_t count)
{
    batch b = {0};
    const nn_tensor cosine = nn_rows(&p->cosine, first, count);
    const nn_tensor sine = nn_rows(&p->sine, first, count);
    batch_add(&b,
              &(batch_tokens){.count = {[BATCH_TARGET] = count}, .cosine = &cosine, .sine = &sine});
    return b;
}

/* ---- Once for a prompt and size -------------------------------------------------------------- */

/* Caption token j (padding included) stands at (1 + j, 0, 0), the image token of row y and column x
 * at (Lc' + 1, y, x), image padding at (0, 0, 0). Angles are computed in double and rounded to
 * float, as the reference does. */
static void rope_angles(nn *c, const zimage *m, zimage_caption *p, int64_t caption_length,
                        const rope_memory *tables)
{
    rope_layout l = {
        .axes = ZIMAGE_AXES, .dims = m->axes_dims, .theta = m->theta, .rounding = ROPE_ANGLES};
    rope_add(&l, &(rope_run){.first = {caption_length + 1},
                             .down = {0, 1},
                             .right = {0, 0, 1},
                             .rows = p->rows,
                             .columns = p->columns});
    rope_add(&l, &(rope_run){.rows = 1, .columns = p->image_length - p->rows * p->columns});
    rope_add(&l, &(rope_run){.first = {1}, .right = {1}, .rows = 1, .columns = caption_length});
    rope_make(c, &l, tables, &p->cosine, &p->sine);
}

zimage_caption zimage_prepare_caption(nn *c, const zimage *m, const float *features, int64_t length,
                                      int64_t height, int64_t width, const rope_memory *tables)
{
    zimage_caption p = {.rows = height / PATCH, .columns = width / PATCH};
    const int64_t caption_length = padded(length);
    p.image_length = padded(p.rows * p.columns);
    rope_angles(c, m, &p, caption_length, tables);
    p.tokens = nn_new2(c, caption_length, m->dim);
    size_t mark = nn_mark(c);
    nn_tensor cosine = nn_rows(&p.cosine, p.image_length, caption_length);
    nn_tensor sine = nn_rows(&p.sine, p.image_length, caption_length);
    nn_trace_tensor(c, &cosine, "transformer.rope.caption.cos");
    nn_trace_tensor(c, &sine, "transformer.rope.caption.sin");

    nn_tensor x = nn_new2(c, length, m->caption_dim);
    nn_upload(c, &x, features, length * m->caption_dim);
    nn_rms_norm(c, &x, &x, &m->caption_norm, m->eps, NULL);
    nn_tensor words = nn_rows(&p.tokens, 0, length);
    nn_linear(c, &words, &x, &m->caption_embedder,
              &(nn_epilogue){.bias = &m->caption_embedder_bias});
    if (caption_length > length) {
        nn_tensor rest = nn_rows(&p.tokens, length, caption_length - length);
        nn_fill_rows(c, &rest, &m->caption_pad_token);
    }
    nn_trace_tensor(c, &p.tokens, "transformer.cap_embedder");
    const batch alone = rows_alone(&p, p.image_length, caption_length);
    nn_tensor input;
    for (int i = 0; i < m->refiners; i++) {
        const turn t = turn_of(m->context_refiner, i, m->refiners, NULL, 0);
        nn_block(c);
        if (i == 0)
            input = begin_blocks(c, m, &t, &p.tokens);
        block(c, m, &t, &p.tokens, &alone, &input);
        nn_trace_tensor(c, &p.tokens, "transformer.context_refiner.%d", i);
    }
    nn_release(c, mark);
    return p;
}

/* ---- One evaluation -------------------------------------------------------------------------- */

/* Latents to embedded image tokens, into the first rows of x; padding behind them. */
static void embed_image(nn *c, const zimage *m, const zimage_caption *p, const nn_tensor *x,
                        const nn_tensor *latents)
{
    const int64_t tokens = p->rows * p->columns;
    size_t mark = nn_mark(c);
    nn_tensor patches = nn_new2(c, tokens, PATCH * PATCH * m->channels);
    nn_patches(c, &patches, latents, PATCH);
    nn_tensor image = nn_rows(x, 0, tokens);
    nn_linear(c, &image, &patches, &m->x_embedder, &(nn_epilogue){.bias = &m->x_embedder_bias});
    if (p->image_length > tokens) {
        nn_tensor rest = nn_rows(x, tokens, p->image_length - tokens);
        nn_fill_rows(c, &rest, &m->x_pad_token);
    }
    nn_release(c, mark);
}

/* How many of the sequences have image tokens of their own in front of the layers. Their angles
 * depend on the length of the caption, and on nothing else of it. */
static int refined_apart(const zimage_caption *const *captions, int count)
{
    for (int i = 1; i < count; i++)
        if (captions[i]->tokens.n[0] != captions[0]->tokens.n[0])
            return count;
    return 1;
}

/* Only the image tokens are needed behind the last layer. */
static void final_layer(nn *c, const zimage *m, const zimage_schedule *schedule, int64_t tokens,
                        const nn_tensor *image, const nn_tensor *output, bool traced)
{
    size_t mark = nn_mark(c);
    nn_tensor scale = nn_rows(&schedule->now, 4 * modulated_blocks(m), 1);
    nn_tensor last = nn_rows(image, 0, tokens);
    nn_tensor patches = nn_new2(c, tokens, PATCH * PATCH * m->channels);
    nn_layer_norm(c, &last, &last, 1e-6, &scale, NULL);
    nn_linear(c, &patches, &last, &m->final, &(nn_epilogue){.bias = &m->final_bias});
    if (traced)
        nn_trace_tensor(c, &patches, "transformer.final_layer");
    nn_from_patches(c, output, &patches, PATCH);
    nn_release(c, mark);
}

/* The noise refiner, over the image tokens of the first `apart` sequences. */
static void refine(nn *c, const zimage *m, const zimage_schedule *schedule, const batch *b,
                   const batch *alone, int apart, const nn_tensor *x)
{
    size_t mark = nn_mark(c);
    nn_tensor input[BATCH_MAX], image = batch_part(x, &b->sequence[0], BATCH_TARGET);
    for (int k = 0; k < m->refiners; k++) {
        const turn t = turn_of(m->noise_refiner, k, m->refiners, schedule, 0);
        nn_block(c);
        for (int i = 0; i < apart; i++) {
            nn_tensor rows = batch_part(x, &b->sequence[i], BATCH_TARGET);
            if (k == 0)
                input[i] = begin_blocks(c, m, &t, &rows);
            block(c, m, &t, &rows, &alone[i], &input[i]);
        }
        nn_trace_tensor(c, &image, "transformer.noise_refiner.%d", k);
    }
    nn_release(c, mark);
}

/* What is traced is of the first sequence. */
void zimage_forward(nn *c, const zimage *m, const zimage_schedule *schedule,
                    const zimage_caption *const *captions, int count, const nn_tensor *latents,
                    const nn_tensor *outputs)
{
    const zimage_caption *p = captions[0];
    const int64_t image_length = p->image_length;
    const int apart = refined_apart(captions, count);
    batch b = {0}, alone[BATCH_MAX];
    for (int i = 0; i < count; i++) {
        const zimage_caption *caption = captions[i];
        batch_add(&b,
                  &(batch_tokens){
                      .count = {[BATCH_TEXT] = caption->tokens.n[0], [BATCH_TARGET] = image_length},
                      .pictures_first = true,
                      .cosine = &caption->cosine,
                      .sine = &caption->sine});
        alone[i] = rows_alone(caption, 0, image_length);
    }
    size_t mark = nn_mark(c);
    nn_tensor x = nn_new2(c, b.count, m->dim), first = nn_rows(&x, 0, b.sequence[0].count);
    nn_tensor image = batch_part(&x, &b.sequence[0], BATCH_TARGET);
    nn_trace_tensor(c, &alone[0].sequence[0].cosine, "transformer.rope.image.cos");
    nn_trace_tensor(c, &alone[0].sequence[0].sine, "transformer.rope.image.sin");

    embed_image(c, m, p, &image, latents);
    nn_trace_tensor(c, &image, "transformer.x_embedder");
    if (apart > 1)
        batch_share(c, &b, &x, BATCH_TARGET, 1);
    refine(c, m, schedule, &b, alone, apart, &x);
    batch_share(c, &b, &x, BATCH_TARGET, apart);
    for (int i = 0; i < count; i++)
        batch_fill(c, &b.sequence[i], &x, BATCH_TEXT, &captions[i]->tokens);
    nn_tensor input;
    for (int k = 0; k < m->layers; k++) {
        const turn t = turn_of(m->layer, k, m->layers, schedule, m->refiners);
        nn_block(c);
        if (k == 0)
            input = begin_blocks(c, m, &t, &x);
        block(c, m, &t, &x, &b, &input);
        nn_trace_tensor(c, &first, "transformer.layers.%d", k);
    }
    nn_block(c);
    for (int i = 0; i < count; i++) {
        image = batch_part(&x, &b.sequence[i], BATCH_TARGET);
        final_layer(c, m, schedule, p->rows * p->columns, &image, &outputs[i], i == 0);
    }
    nn_release(c, mark);
}
