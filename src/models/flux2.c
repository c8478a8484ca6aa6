/* FLUX.2 (https://bfl.ai/blog/flux-2; diffusers Flux2Transformer2DModel).
 *
 * features -> linear \
 *                     double blocks: two streams, one attention -> single blocks -> final layer
 * latents  -> linear /
 *
 * No linear layer has a bias. Every block of a kind has the same modulation. */
#include "models/flux2.h"

#include "core/mem.h"
#include "io/names.h"
#include "models/batch.h"

#include <math.h>

#define MFLUX_GROUP 64

/* ---- Loading --------------------------------------------------------------------------------- */

/* What the shapes of the tensors tell; read_config has the values of the published models for the
 * rest. */
static void infer(const weights *w, json_writer *out)
{
    const int64_t dim = tensor_size(w, "x_embedder.weight", 0);
    const int64_t head = tensor_size(w, "transformer_blocks.0.attn.norm_q.weight", 0);
    infer_integer(out, "in_channels", tensor_size(w, "proj_out.weight", 0));
    infer_integer(out, "num_layers", names_parts(w, "transformer_blocks", "attn.norm_q.weight"));
    infer_integer(out, "num_single_layers",
                  names_parts(w, "single_transformer_blocks", "attn.norm_q.weight"));
    infer_integer(out, "attention_head_dim", head);
    infer_integer(out, "num_attention_heads", head > 0 ? dim / head : 0);
    /* Of codes the groups tell, of which mflux knows but one size. */
    const int64_t groups = tensor_size(w, "context_embedder.scales", 1);
    infer_integer(out, "joint_attention_dim",
                  groups ? groups * MFLUX_GROUP : tensor_size(w, "context_embedder.weight", 1));
    json_write_key(out, "guidance_embeds");
    json_write_boolean(
        out, names_find(w, "time_guidance_embed.guidance_embedder.linear_1.weight") != NULL);
}

/* What no published model of this kind has. */
static ct_status check_variant(const config *c, ct_error *error)
{
    int64_t patch = 1;
    bool guidance = true;
    ct_status s = config_integer(c, "patch_size", 1, 64, false, 1, &patch, error);
    if (s == CT_OK)
        s = config_boolean(c, "guidance_embeds", true, &guidance, error);
    if (s == CT_OK && patch != 1)
        return error_set(error, CT_EUNSUPPORTED, "%s: patch_size must be 1", c->path);
    if (s == CT_OK && guidance)
        return error_set(error, CT_EUNSUPPORTED,
                         "%s: guidance_embeds is set; FLUX.2-dev is not supported, FLUX.2-klein is",
                         c->path);
    return s;
}

static ct_status read_config(flux2 *m, const config *c, ct_error *error)
{
    int64_t heads = 0, doubles = 0, singles = 0, out = 0, axes = 0;
    int dims = 0;
    double ratio = 3;
    ct_status s = check_variant(c, error);
    if (s == CT_OK)
        s = config_integer(c, "in_channels", 4, 4096, false, 128, &m->channels, error);
    if (s == CT_OK)
        s = config_integer(c, "out_channels", 4, 4096, false, m->channels, &out, error);
    if (s == CT_OK)
        s = config_integer(c, "num_layers", 0, 1000, false, 8, &doubles, error);
    if (s == CT_OK)
        s = config_integer(c, "num_single_layers", 0, 1000, false, 48, &singles, error);
    if (s == CT_OK)
        s = config_integer(c, "attention_head_dim", 2, 4096, false, 128, &m->head_dim, error);
    if (s == CT_OK)
        s = config_integer(c, "num_attention_heads", 1, 4096, false, 48, &heads, error);
    if (s == CT_OK)
        s = config_integer(c, "joint_attention_dim", 1, 1 << 20, false, 15360, &m->text_dim, error);
    if (s == CT_OK)
        s = config_integer(c, "timestep_guidance_channels", 2, 1 << 16, false, 256,
                           &m->time_channels, error);
    if (s == CT_OK)
        s = config_number(c, "mlp_ratio", 0.01, 64, false, 3, &ratio, error);
    if (s == CT_OK)
        s = config_number(c, "rope_theta", 1e-3, 1e12, false, 2000, &m->theta, error);
    if (s == CT_OK)
        s = config_number(c, "eps", 0, 1, false, 1e-6, &m->eps, error);
    for (int i = 0; i < FLUX2_AXES; i++)
        m->axes_dims[i] = 32;
    dims = FLUX2_AXES;
    if (s == CT_OK && config_has(c, "axes_dims_rope"))
        s = config_integers(c, "axes_dims_rope", 2, 4096, FLUX2_AXES, m->axes_dims, &dims, error);
    if (s != CT_OK)
        return s;
    for (int i = 0; i < dims; i++)
        axes += m->axes_dims[i] % 2 == 0 ? m->axes_dims[i] : INT32_MAX;
    m->dim = heads * m->head_dim;
    m->ffn_dim = (int64_t)((double)m->dim * ratio);
    if (dims != FLUX2_AXES || axes != m->head_dim)
        return error_set(error, CT_EFORMAT,
                         "%s: axes_dims_rope must have four entries, which are even and add up to "
                         "attention_head_dim (%d)",
                         c->path, (int)m->head_dim);
    if (out != m->channels || m->channels % 4 != 0 || m->time_channels % 2 != 0)
        return error_set(error, CT_EUNSUPPORTED,
                         "%s: in_channels must be a multiple of 4 and equal to out_channels, and "
                         "timestep_guidance_channels must be even",
                         c->path);
    m->heads = (int)heads;
    m->doubles = (int)doubles;
    m->singles = (int)singles;
    return CT_OK;
}

/* The feed-forward network's two projections are stored as one matrix, gate above up. */
static void bind_stream(binder *b, const flux2 *m, flux2_stream *s, int i, bool image)
{
    const int64_t d = m->dim, f = m->ffn_dim;
    const char *part = image ? "ff" : "ff_context", *norm = image ? "" : "added_";
    const char *const in[] = {image ? "to_q" : "add_q_proj", image ? "to_k" : "add_k_proj",
                              image ? "to_v" : "add_v_proj"};
    nn_weight *const to[] = {&s->q, &s->k, &s->v};
    for (int j = 0; j < 3; j++)
        *to[j] = bind2(b, d, d, "transformer_blocks.%d.attn.%s.weight", i, in[j]);
    s->out = bind2(b, d, d, "transformer_blocks.%d.attn.%s.weight", i,
                   image ? "to_out.0" : "to_add_out");
    s->norm_q = bind1(b, m->head_dim, "transformer_blocks.%d.attn.norm_%sq.weight", i, norm);
    s->norm_k = bind1(b, m->head_dim, "transformer_blocks.%d.attn.norm_%sk.weight", i, norm);
    const nn_weight both = bind2(b, 2 * f, d, "transformer_blocks.%d.%s.linear_in.weight", i, part);
    s->gate = nn_weight_rows(&both, 0, f);
    s->up = nn_weight_rows(&both, f, f);
    s->down = bind2(b, d, f, "transformer_blocks.%d.%s.linear_out.weight", i, part);
    s->down.outliers = true; /* a product of two projections */
}

static void bind_single(binder *b, const flux2 *m, flux2_single *s, int i)
{
    const int64_t d = m->dim, f = m->ffn_dim;
    const nn_weight all =
        bind2(b, 3 * d + 2 * f, d, "single_transformer_blocks.%d.attn.to_qkv_mlp_proj.weight", i);
    s->q = nn_weight_rows(&all, 0, d);
    s->k = nn_weight_rows(&all, d, d);
    s->v = nn_weight_rows(&all, 2 * d, d);
    s->gate = nn_weight_rows(&all, 3 * d, f);
    s->up = nn_weight_rows(&all, 3 * d + f, f);
    s->norm_q = bind1(b, m->head_dim, "single_transformer_blocks.%d.attn.norm_q.weight", i);
    s->norm_k = bind1(b, m->head_dim, "single_transformer_blocks.%d.attn.norm_k.weight", i);
    s->out = bind2(b, d, d + f, "single_transformer_blocks.%d.attn.to_out.weight", i);
    s->out.outliers = true; /* most of its inputs are such products */
}

/* What stays in bfloat16 when the blocks are computed in 8 bits: small layers at the ends, through
 * which everything passes, and the modulation, which is a factor of everything. */
static nn_weight bind_sensitive(binder *b, int64_t n0, int64_t n1, const char *name)
{
    nn_weight w = bind2(b, n0, n1, "%s", name);
    w.sensitive = true;
    return w;
}

static ct_status bind_weights(flux2 *m, const load_options *options, ct_error *error)
{
    binder b = {.source = m->weights, .options = options, .error = error};
    const int64_t d = m->dim;
    m->time1 = bind_sensitive(&b, d, m->time_channels,
                              "time_guidance_embed.timestep_embedder.linear_1.weight");
    m->time2 = bind_sensitive(&b, d, d, "time_guidance_embed.timestep_embedder.linear_2.weight");
    m->image_modulation =
        bind_sensitive(&b, 6 * d, d, "double_stream_modulation_img.linear.weight");
    m->text_modulation = bind_sensitive(&b, 6 * d, d, "double_stream_modulation_txt.linear.weight");
    m->single_modulation = bind_sensitive(&b, 3 * d, d, "single_stream_modulation.linear.weight");
    m->final_modulation = bind_sensitive(&b, 2 * d, d, "norm_out.linear.weight");
    m->x_embedder = bind_sensitive(&b, d, m->channels, "x_embedder.weight");
    m->context_embedder = bind_sensitive(&b, d, m->text_dim, "context_embedder.weight");
    m->final = bind_sensitive(&b, m->channels, d, "proj_out.weight");
    for (int i = 0; i < m->doubles; i++) {
        bind_stream(&b, m, &m->double_block[i].image, i, true);
        bind_stream(&b, m, &m->double_block[i].text, i, false);
    }
    for (int i = 0; i < m->singles; i++)
        bind_single(&b, m, &m->single_block[i], i);
    return b.status;
}

ct_status flux2_load(flux2 **out, const load_options *options, const char *directory,
                     ct_error *error)
{
    static const component_format format = {"diffusion_pytorch_model", "Flux2Transformer2DModel",
                                            infer};
    const ct_allocator *a = options->allocator;
    *out = NULL;
    flux2 *m = mem_zero_array(a, 1, sizeof *m);
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
        m->double_block = mem_zero_array(a, (size_t)m->doubles, sizeof *m->double_block);
        m->single_block = mem_zero_array(a, (size_t)m->singles, sizeof *m->single_block);
        status = m->double_block && m->single_block
                     ? bind_weights(m, options, error)
                     : error_memory(error, sizeof *m->double_block, "the transformer");
    }
    if (status != CT_OK) {
        flux2_free(m);
        return status;
    }
    *out = m;
    return CT_OK;
}

void flux2_free(flux2 *m)
{
    if (!m)
        return;
    weights_close(m->weights);
    mem_free(m->allocator, m->double_block);
    mem_free(m->allocator, m->single_block);
    mem_free(m->allocator, m);
}

/* ---- Once for a schedule ------------------------------------------------------------------------
 * values[part] are shift, 1 + scale and gate of what the part modulates. Those of the final layer
 * are stored the other way round. */

enum {
    IMAGE_ATTENTION = 0,
    IMAGE_MLP = 3,
    TEXT_ATTENTION = 6,
    TEXT_MLP = 9,
    SINGLE = 12,
    FINAL = 15, /* without a gate */
    PARTS = 17
};
enum { SHIFT, SCALE, GATE };

/* Of all steps: [steps, dim]. */
static nn_tensor schedule_part(nn *c, const flux2_schedule *s, int part)
{
    nn_tensor values = nn_rows(&s->values, part, 1);
    return nn_as2(c, &values, s->steps, s->values.n[2]);
}

/* Sinusoids of 1000 sigma, cosines first, then two linear layers. */
static nn_tensor embed_times(nn *c, const flux2 *m, const float *sigmas, int64_t steps)
{
    const int64_t half = m->time_channels / 2;
    nn_tensor embedding = nn_new2(c, steps, m->dim);
    size_t mark = nn_mark(c);
    nn_tensor waves = nn_new2(c, steps, 2 * half), hidden = nn_new2(c, steps, m->dim);
    float *wave = nn_begin_write(c, &waves);
    for (int64_t s = 0; wave && s < steps; s++, wave += 2 * half)
        for (int64_t k = 0; k < half; k++) {
            const float frequency = expf((float)-log(10000) * (float)k / (float)half);
            /* The reference divides and multiplies by 1000 in this order. */
            const float angle = sigmas[s] * 1000.0f / 1000.0f * 1000.0f * frequency;
            wave[k] = cosf(angle);
            wave[half + k] = sinf(angle);
        }
    nn_end_write(c, &waves);
    nn_linear(c, &hidden, &waves, &m->time1, &(nn_epilogue){.activation = NN_SILU});
    nn_linear(c, &embedding, &hidden, &m->time2, NULL);
    nn_release(c, mark);
    return embedding;
}

static void modulate(nn *c, const flux2 *m, const flux2_schedule *s, const nn_tensor *embedding,
                     const nn_weight *w, int part, int index, int kind)
{
    const nn_weight rows = nn_weight_rows(w, index * m->dim, m->dim);
    nn_tensor value = schedule_part(c, s, part + kind);
    nn_linear(c, &value, embedding, &rows, NULL);
    if (kind == SCALE)
        nn_add_scalar(c, &value, 1);
}

flux2_schedule flux2_begin_schedule(nn *c, const flux2 *m, int64_t steps)
{
    return (flux2_schedule){steps, nn_new3(c, PARTS, steps, m->dim), nn_new2(c, PARTS, m->dim)};
}

static void fill_schedule(nn *c, const flux2 *m, const flux2_schedule *s, const float *sigmas,
                          bool traced)
{
    size_t mark = nn_mark(c);
    nn_tensor embedding = embed_times(c, m, sigmas, s->steps);
    for (int64_t i = 0; traced && i < s->steps; i++) {
        nn_tensor row = nn_rows(&embedding, i, 1);
        nn_trace_tensor(c, &row, "step.%02d.t_embedder", (int)i);
    }
    nn_silu(c, &embedding, &embedding);
    nn_block(c);
    for (int i = 0; i < 6; i++)
        modulate(c, m, s, &embedding, &m->image_modulation, IMAGE_ATTENTION + i - i % 3, i, i % 3);
    nn_block(c);
    for (int i = 0; i < 6; i++)
        modulate(c, m, s, &embedding, &m->text_modulation, TEXT_ATTENTION + i - i % 3, i, i % 3);
    nn_block(c);
    for (int i = 0; i < 3; i++)
        modulate(c, m, s, &embedding, &m->single_modulation, SINGLE, i, i);
    modulate(c, m, s, &embedding, &m->final_modulation, FINAL, 0, SCALE);
    modulate(c, m, s, &embedding, &m->final_modulation, FINAL, 1, SHIFT);
    nn_release(c, mark);
}

void flux2_fill_schedule(nn *c, const flux2 *m, const flux2_schedule *s, const float *sigmas)
{
    fill_schedule(c, m, s, sigmas, true);
}

void flux2_set_step(nn *c, const flux2_schedule *schedule, int64_t step)
{
    nn_take(c, &schedule->now, &schedule->values, step);
}

/* ---- Once for a prompt, size and references -------------------------------------------------- */

/* Word j stands at (0, 0, 0, j), the image token of row y and column x at (0, y, x, 0), that of
 * reference k at (10 + 10k, y, x, 0). Angles, their cosines and sines are computed in double, as in
 * the reference. */
static void add_words(rope_layout *to, int64_t words)
{
    rope_add(to, &(rope_run){.right = {0, 0, 0, 1}, .rows = 1, .columns = words});
}

static void add_picture(rope_layout *to, int64_t picture, int64_t rows, int64_t columns)
{
    rope_add(to, &(rope_run){.first = {picture},
                             .down = {0, 1},
                             .right = {0, 0, 1},
                             .rows = rows,
                             .columns = columns});
}

static void add_references(rope_layout *to, const vae_latents *references, int count)
{
    for (int i = 0; i < count; i++)
        add_picture(to, 10 + 10 * (int64_t)i, references[i].height, references[i].width);
}

static void rope_angles(nn *c, const flux2 *m, flux2_condition *p, int64_t words,
                        const vae_latents *references, int count, const rope_memory *tables)
{
    rope_layout to = {
        .axes = FLUX2_AXES, .dims = m->axes_dims, .theta = m->theta, .rounding = ROPE_RESULTS};
    if (p->pictures_first)
        add_references(&to, references, count);
    else
        add_words(&to, words);
    add_picture(&to, 0, p->rows, p->columns);
    if (p->pictures_first)
        add_words(&to, words);
    else
        add_references(&to, references, count);
    rope_make(c, &to, tables, &p->cosine, &p->sine);
}

/* out [height * width, dim] = the embedded tokens of latents [channels, height, width]. */
static void embed_latents(nn *c, const flux2 *m, const nn_tensor *out, const nn_tensor *latents)
{
    size_t mark = nn_mark(c);
    nn_tensor tokens = nn_new2(c, out->n[0], m->channels);
    nn_patches(c, &tokens, latents, 1);
    nn_linear(c, out, &tokens, &m->x_embedder, NULL);
    nn_release(c, mark);
}

static void embed_references(nn *c, const flux2 *m, const nn_tensor *out,
                             const vae_latents *references, int count)
{
    int64_t at = 0;
    for (int i = 0; i < count; i++) {
        const vae_latents *r = &references[i];
        size_t mark = nn_mark(c);
        nn_tensor rows = nn_rows(out, at, r->height * r->width);
        nn_tensor latents = nn_new3(c, m->channels, r->height, r->width);
        nn_upload(c, &latents, r->latents, nn_count(&latents));
        embed_latents(c, m, &rows, &latents);
        nn_release(c, mark);
        at += rows.n[0];
    }
}

static void trace_rope(nn *c, const flux2_condition *p, const char *part, int64_t first,
                       int64_t count)
{
    nn_tensor cosine = nn_rows(&p->cosine, first, count), sine = nn_rows(&p->sine, first, count);
    nn_trace_tensor(c, &cosine, "transformer.rope.%s.cos", part);
    nn_trace_tensor(c, &sine, "transformer.rope.%s.sin", part);
}

/* ---- Blocks ------------------------------------------------------------------------------------
 * All tokens lie in one matrix, so both kinds of block read the same memory. */

enum { IMAGE_STREAM, TEXT_STREAM, STREAMS };

/* Keys and values of a block, [tokens, 2 dim], that come from elsewhere or go there; either may be
 * NULL. Of a single sequence only. */
typedef struct shared_keys {
    const nn_tensor *more; /* are seen, too */
    const nn_tensor *keep; /* those of the block's own tokens go here */
} shared_keys;

/* What all blocks of an evaluation share. */
typedef struct pass {
    batch rows;
    nn_tensor attention[STREAMS][3], mlp[STREAMS][3], single[3]; /* shift, 1 + scale, gate */
    /* Normed rows for the next product: of each run, then of all. */
    nn_tensor input[BATCH_MAX * BATCH_KINDS], all;
    size_t mark; /* before them */
} pass;

static void take_parts(nn_tensor out[3], const flux2_schedule *s, int part)
{
    for (int i = 0; i < 3; i++)
        out[i] = nn_rows(&s->now, part + i, 1);
}

static pass begin_pass(const flux2_schedule *s)
{
    pass a = {0};
    take_parts(a.attention[IMAGE_STREAM], s, IMAGE_ATTENTION);
    take_parts(a.mlp[IMAGE_STREAM], s, IMAGE_MLP);
    take_parts(a.attention[TEXT_STREAM], s, TEXT_ATTENTION);
    take_parts(a.mlp[TEXT_STREAM], s, TEXT_MLP);
    take_parts(a.single, s, SINGLE);
    return a;
}

/* Room for queries, keys and values of s tokens [s + more, 3 dim]; those that come from elsewhere
 * are in their place, behind the others. */
static nn_tensor new_qkv(nn *c, const flux2 *m, int64_t s, const shared_keys *shared)
{
    const int64_t d = m->dim, more = shared->more ? shared->more->n[0] : 0;
    nn_tensor qkv = nn_new_work2(c, s + more, 3 * d);
    if (more) {
        nn_tensor behind = nn_rows(&qkv, s, more), kv = nn_columns(&behind, d, 2 * d);
        nn_copy(c, &kv, shared->more);
    }
    return qkv;
}

static void attend(nn *c, const flux2 *m, const batch *b, const nn_tensor *out,
                   const nn_tensor *qkv, const shared_keys *shared)
{
    if (shared->keep) {
        nn_tensor own = nn_rows(qkv, 0, b->count), kv = nn_columns(&own, m->dim, 2 * m->dim);
        nn_copy(c, shared->keep, &kv);
    }
    batch_attention(c, b, out, qkv, m->heads);
}

/* norm(x) * (1 + scale) + shift, to where the next product reads it. */
static nn_next_norm norm_behind(const flux2 *m, const nn_tensor *out, const nn_tensor modulation[3])
{
    return (nn_next_norm){.out = out,
                          .eps = m->eps,
                          .scale = &modulation[SCALE],
                          .layer = true,
                          .shift = &modulation[SHIFT]};
}

/* x += gate * down(silu(gate h) * up h), h = norm(x) * (1 + scale) + shift */
static void feed_forward(nn *c, const flux2 *m, const flux2_stream *w, const nn_tensor *x,
                         const pass *a, int run, bool last)
{
    const int stream = a->rows.run[run].stream;
    const nn_tensor *input = &a->input[run];
    const nn_next_norm next = norm_behind(m, input, a->attention[stream]);
    size_t mark = nn_mark(c);
    nn_tensor hidden = nn_new_input(c, x->n[0], &w->down);
    nn_linear(c, &hidden, input, &w->gate, &(nn_epilogue){.activation = NN_SILU, .up = &w->up});
    nn_linear(
        c, x, &hidden, &w->down,
        &(nn_epilogue){.gate = &a->mlp[stream][GATE], .add = true, .next = last ? NULL : &next});
    nn_release(c, mark);
}

/* For each stream:
 *     x += gate * out(attention(norm(x) * (1 + scale) + shift)), attention over both streams
 *     x += gate * down(silu(gate h) * up h), h = norm(x) * (1 + scale) + shift
 * Every norm is made by the sum in front of it, the first by the block before. */
static void double_block(nn *c, const flux2 *m, const flux2_double *k, const nn_tensor *x,
                         const pass *a, const shared_keys *shared, bool last)
{
    if (nn_stopped(c))
        return;
    const flux2_stream *const parts[STREAMS] = {&k->image, &k->text};
    const nn_weight *const norm_q[STREAMS] = {&k->image.norm_q, &k->text.norm_q};
    const nn_weight *const norm_k[STREAMS] = {&k->image.norm_k, &k->text.norm_k};
    const batch *b = &a->rows;
    const int64_t s = x->n[0], d = m->dim;
    size_t mark = nn_mark(c);
    nn_tensor attended = nn_new_work2(c, s, d);
    size_t inner = nn_mark(c);
    nn_tensor qkv = new_qkv(c, m, s, shared);
    nn_tensor q = nn_columns(&qkv, 0, d), key = nn_columns(&qkv, d, d);
    for (int i = -1; batch_next(c, b, &i);) {
        const flux2_stream *w = parts[b->run[i].stream];
        nn_tensor all = nn_rows(&qkv, b->run[i].first, b->run[i].count);
        nn_linears(c, &all, &a->input[i], (const nn_weight *const[]){&w->q, &w->k, &w->v}, NULL, 3);
    }
    batch_head_norm_rope(c, b, &q, m->heads, norm_q, m->eps);
    batch_head_norm_rope(c, b, &key, m->heads, norm_k, m->eps);
    attend(c, m, b, &attended, &qkv, shared);
    nn_release(c, inner);
    for (int i = -1; batch_next(c, b, &i);) {
        const batch_rows *r = &b->run[i];
        const nn_next_norm next = norm_behind(m, &a->input[i], a->mlp[r->stream]);
        nn_tensor rows = nn_rows(x, r->first, r->count), o = nn_rows(&attended, r->first, r->count);
        nn_linear(
            c, &rows, &o, &parts[r->stream]->out,
            &(nn_epilogue){.gate = &a->attention[r->stream][GATE], .add = true, .next = &next});
    }
    nn_release(c, mark);
    for (int i = -1; batch_next(c, b, &i);) {
        const batch_rows *r = &b->run[i];
        nn_tensor rows = nn_rows(x, r->first, r->count);
        feed_forward(c, m, parts[r->stream], &rows, a, i, last);
    }
}

/* x += gate * out([attention(h) | silu(gate h) * up h]), h = norm(x) * (1 + scale) + shift, made as
 * in a double block */
static void single_block(nn *c, const flux2 *m, const flux2_single *w, const nn_tensor *x,
                         const pass *a, const shared_keys *shared, bool last)
{
    if (nn_stopped(c))
        return;
    /* Text and pictures have the same weights here. */
    const nn_weight *const norm_q[STREAMS] = {&w->norm_q, &w->norm_q};
    const nn_weight *const norm_k[STREAMS] = {&w->norm_k, &w->norm_k};
    const nn_next_norm next = norm_behind(m, &a->all, a->single);
    const int64_t s = x->n[0], d = m->dim;
    size_t mark = nn_mark(c);
    nn_tensor both = nn_new_work2(c, s, d + m->ffn_dim);
    nn_tensor attended = nn_columns(&both, 0, d), hidden = nn_columns(&both, d, m->ffn_dim);
    size_t inner = nn_mark(c);
    nn_tensor qkv = new_qkv(c, m, s, shared), own = nn_rows(&qkv, 0, s);
    nn_tensor q = nn_columns(&own, 0, d), k = nn_columns(&own, d, d);
    nn_linears(c, &own, &a->all, (const nn_weight *const[]){&w->q, &w->k, &w->v}, NULL, 3);
    nn_linear(c, &hidden, &a->all, &w->gate, &(nn_epilogue){.activation = NN_SILU, .up = &w->up});
    batch_head_norm_rope(c, &a->rows, &q, m->heads, norm_q, m->eps);
    batch_head_norm_rope(c, &a->rows, &k, m->heads, norm_k, m->eps);
    attend(c, m, &a->rows, &attended, &qkv, shared);
    nn_release(c, inner);
    nn_linear(c, x, &both, &w->out,
              &(nn_epilogue){.gate = &a->single[GATE], .add = true, .next = last ? NULL : &next});
    nn_release(c, mark);
}

/* The norms that the first double block finds. */
static void begin_doubles(nn *c, const flux2 *m, pass *a, const nn_tensor *x)
{
    a->mark = nn_mark(c);
    for (int i = 0; i < a->rows.runs; i++) {
        const batch_rows *r = &a->rows.run[i];
        const nn_tensor *modulation = a->attention[r->stream];
        nn_tensor rows = nn_rows(x, r->first, r->count);
        a->input[i] = nn_new_operand(c, r->count, m->dim);
        nn_layer_norm(c, &a->input[i], &rows, m->eps, &modulation[SCALE], &modulation[SHIFT]);
    }
}

/* And the first single block. */
static void begin_singles(nn *c, const flux2 *m, pass *a, const nn_tensor *x)
{
    nn_release(c, a->mark);
    a->all = nn_new_operand(c, x->n[0], m->dim);
    nn_layer_norm(c, &a->all, x, m->eps, &a->single[SCALE], &a->single[SHIFT]);
}

/* Block b, in the order in which they run. What the first makes stays in memory behind the last. */
static void run_block(nn *c, const flux2 *m, pass *a, const nn_tensor *x, int b,
                      const shared_keys *shared)
{
    nn_block(c);
    if (b == 0)
        begin_doubles(c, m, a, x);
    if (b == m->doubles)
        begin_singles(c, m, a, x);
    if (b < m->doubles)
        double_block(c, m, &m->double_block[b], x, a, shared, b + 1 == m->doubles);
    else
        single_block(c, m, &m->single_block[b - m->doubles], x, a, shared,
                     b + 1 == m->doubles + m->singles);
}

/* ---- References apart --------------------------------------------------------------------------
 * Where references see only one another, and always at time 0, nothing about them depends on the
 * prompt or the step: what other tokens see of them, their keys and values in each block, is
 * computed once. */

/* Of block b, in the order in which they run. */
static nn_tensor kept_of(nn *c, const flux2 *m, const flux2_condition *p, int b)
{
    nn_tensor one = nn_rows(&p->kept, b, 1);
    return nn_as2(c, &one, p->kept.n[1], 2 * m->dim);
}

static void keep_references(nn *c, const flux2 *m, flux2_condition *p, int64_t tokens,
                            const vae_latents *references, int count)
{
    const float now = 0;
    const int64_t position = p->cosine.n[0] - tokens;
    p->kept = nn_new_work3(c, m->doubles + m->singles, tokens, 2 * m->dim);
    size_t mark = nn_mark(c);
    nn_tensor x = nn_new2(c, tokens, m->dim);
    embed_references(c, m, &x, references, count);
    flux2_schedule schedule = flux2_begin_schedule(c, m, 1);
    fill_schedule(c, m, &schedule, &now, false);
    flux2_set_step(c, &schedule, 0);
    pass a = begin_pass(&schedule);
    const nn_tensor cosine = nn_rows(&p->cosine, position, tokens);
    const nn_tensor sine = nn_rows(&p->sine, position, tokens);
    batch_add(&a.rows, &(batch_tokens){.count = {[BATCH_REFERENCES] = tokens},
                                       .stream = {[BATCH_REFERENCES] = IMAGE_STREAM},
                                       .cosine = &cosine,
                                       .sine = &sine});
    for (int b = 0; b < m->doubles + m->singles; b++) {
        nn_tensor kept = kept_of(c, m, p, b);
        const shared_keys shared = {.keep = &kept};
        run_block(c, m, &a, &x, b, &shared);
    }
    nn_release(c, mark);
}

flux2_condition flux2_prepare_condition(nn *c, const flux2 *m, const float *features,
                                        int64_t length, int64_t height, int64_t width,
                                        const vae_latents *references, int count, int index,
                                        const rope_memory *tables)
{
    /* Keys of references apart lie behind the others, as their angles do. */
    flux2_condition p = {
        .rows = height, .columns = width, .pictures_first = index % 2 == 1 && !m->references_apart};
    rope_angles(c, m, &p, length, references, count, tables);
    const int64_t pictures = p.cosine.n[0] - length;
    trace_rope(c, &p, "text", p.pictures_first ? pictures : 0, length);
    trace_rope(c, &p, "image", p.pictures_first ? 0 : length, pictures);
    p.text = nn_new2(c, length, m->dim);
    const int64_t rest = p.cosine.n[0] - length - height * width;
    if (rest > 0 && m->references_apart)
        keep_references(c, m, &p, rest, references, count);
    else if (rest > 0) {
        p.references = nn_new2(c, rest, m->dim);
        embed_references(c, m, &p.references, references, count);
    }
    size_t mark = nn_mark(c);
    nn_tensor x = nn_new2(c, length, m->text_dim);
    nn_upload(c, &x, features, length * m->text_dim);
    nn_block(c);
    nn_linear(c, &p.text, &x, &m->context_embedder, NULL);
    nn_trace_tensor(c, &p.text, "transformer.context_embedder");
    nn_release(c, mark);
    return p;
}

/* ---- One evaluation -------------------------------------------------------------------------- */

/* Only the tokens of the picture are needed. */
static void final_layer(nn *c, const flux2 *m, const flux2_schedule *schedule,
                        const nn_tensor *image, const nn_tensor *output)
{
    nn_tensor shift = nn_rows(&schedule->now, FINAL + SHIFT, 1);
    nn_tensor scale = nn_rows(&schedule->now, FINAL + SCALE, 1);
    size_t mark = nn_mark(c);
    nn_tensor tokens = nn_new2(c, image->n[0], m->channels);
    nn_layer_norm(c, image, image, m->eps, &scale, &shift);
    nn_linear(c, &tokens, image, &m->final, NULL);
    nn_from_patches(c, output, &tokens, 1);
    nn_release(c, mark);
}

static void add_sequence(pass *a, const flux2_condition *p)
{
    batch_add(&a->rows, &(batch_tokens){.count = {[BATCH_TEXT] = p->text.n[0],
                                                  [BATCH_TARGET] = p->rows * p->columns,
                                                  [BATCH_REFERENCES] =
                                                      p->references.rank ? p->references.n[0] : 0},
                                        .stream = {[BATCH_TEXT] = TEXT_STREAM},
                                        .pictures_first = p->pictures_first,
                                        .cosine = &p->cosine,
                                        .sine = &p->sine});
}

/* What is traced is of the first sequence. */
void flux2_forward(nn *c, const flux2 *m, const flux2_schedule *schedule,
                   const flux2_condition *const *conditions, int count, const nn_tensor *latents,
                   const nn_tensor *outputs)
{
    const flux2_condition *p = conditions[0];
    const bool kept = p->kept.rank > 0;
    if (kept && count > 1) { /* no such model is used with guidance: not worth an own layout */
        for (int i = 0; i < count; i++)
            flux2_forward(c, m, schedule, &conditions[i], 1, latents, &outputs[i]);
        return;
    }
    pass a = begin_pass(schedule);
    for (int i = 0; i < count; i++)
        add_sequence(&a, conditions[i]);
    const batch_sequence *s = a.rows.sequence;
    size_t mark = nn_mark(c);
    nn_tensor x = nn_new2(c, a.rows.count, m->dim), first = nn_rows(&x, 0, s->count);
    nn_tensor text = batch_part(&x, s, BATCH_TEXT), target = batch_part(&x, s, BATCH_TARGET);
    nn_tensor image = nn_rows(&x, p->pictures_first ? 0 : text.n[0], s->count - text.n[0]);

    embed_latents(c, m, &target, latents);
    batch_share(c, &a.rows, &x, BATCH_TARGET, 1);
    for (int i = 0; i < count; i++) {
        batch_fill(c, &s[i], &x, BATCH_TEXT, &conditions[i]->text);
        batch_fill(c, &s[i], &x, BATCH_REFERENCES, &conditions[i]->references);
    }
    nn_trace_tensor(c, &image, "transformer.x_embedder");
    for (int i = 0; i < m->doubles + m->singles; i++) {
        const nn_tensor more = kept ? kept_of(c, m, p, i) : (nn_tensor){0};
        run_block(c, m, &a, &x, i, &(shared_keys){.more = kept ? &more : NULL});
        if (i < m->doubles) {
            nn_trace_tensor(c, &image, "transformer.transformer_blocks.%d", i);
            nn_trace_tensor(c, &text, "transformer.transformer_blocks.%d.text", i);
        } else {
            nn_trace_tensor(c, &first, "transformer.single_transformer_blocks.%d", i - m->doubles);
        }
    }
    nn_block(c);
    for (int i = 0; i < count; i++) {
        target = batch_part(&x, &s[i], BATCH_TARGET);
        final_layer(c, m, schedule, &target, &outputs[i]);
    }
    nn_release(c, mark);
}
