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

static flux2_schedule compute_schedule(nn *c, const flux2 *m, const float *sigmas, int64_t steps,
                                       bool traced)
{
    flux2_schedule s = {steps, nn_new3(c, PARTS, steps, m->dim), nn_new2(c, PARTS, m->dim)};
    size_t mark = nn_mark(c);
    nn_tensor embedding = embed_times(c, m, sigmas, steps);
    for (int64_t i = 0; traced && i < steps; i++) {
        nn_tensor row = nn_rows(&embedding, i, 1);
        nn_trace_tensor(c, &row, "step.%02d.t_embedder", (int)i);
    }
    nn_silu(c, &embedding, &embedding);
    nn_block(c);
    for (int i = 0; i < 6; i++)
        modulate(c, m, &s, &embedding, &m->image_modulation, IMAGE_ATTENTION + i - i % 3, i, i % 3);
    nn_block(c);
    for (int i = 0; i < 6; i++)
        modulate(c, m, &s, &embedding, &m->text_modulation, TEXT_ATTENTION + i - i % 3, i, i % 3);
    nn_block(c);
    for (int i = 0; i < 3; i++)
        modulate(c, m, &s, &embedding, &m->single_modulation, SINGLE, i, i);
    modulate(c, m, &s, &embedding, &m->final_modulation, FINAL, 0, SCALE);
    modulate(c, m, &s, &embedding, &m->final_modulation, FINAL, 1, SHIFT);
    nn_release(c, mark);
    return s;
}

flux2_schedule flux2_prepare_schedule(nn *c, const flux2 *m, const float *sigmas, int64_t steps)
{
    return compute_schedule(c, m, sigmas, steps, true);
}

void flux2_set_step(nn *c, const flux2_schedule *schedule, int64_t step)
{
    nn_take(c, &schedule->now, &schedule->values, step);
}

/* ---- Once for a prompt, size and references -------------------------------------------------- */

/* Word j stands at (0, 0, 0, j), the image token of row y and column x at (0, y, x, 0), that of
 * reference k at (10 + 10k, y, x, 0). Angles, their cosines and sines are computed in double, as in
 * the reference; the axes follow one another in the features of a head. */
static void fill_angles(const flux2 *m, const int64_t position[FLUX2_AXES], float *cosine,
                        float *sine)
{
    int64_t at = 0;
    for (int axis = 0; axis < FLUX2_AXES; axis++)
        for (int64_t k = 0; k < m->axes_dims[axis]; k += 2, at++) {
            double frequency = 1 / pow(m->theta, (double)k / (double)m->axes_dims[axis]);
            double angle = (double)position[axis] * frequency;
            cosine[at] = (float)cos(angle);
            sine[at] = (float)sin(angle);
        }
}

static void fill_table(const flux2 *m, const flux2_condition *p, int64_t words,
                       const vae_latents *references, int count, float *cosine, float *sine)
{
    const int64_t half = m->head_dim / 2;
    for (int64_t j = 0; j < words; j++, cosine += half, sine += half)
        fill_angles(m, (const int64_t[]){0, 0, 0, j}, cosine, sine);
    for (int i = -1; i < count; i++) {
        const int64_t rows = i < 0 ? p->rows : references[i].height;
        const int64_t columns = i < 0 ? p->columns : references[i].width;
        const int64_t picture = i < 0 ? 0 : 10 + 10 * (int64_t)i;
        for (int64_t y = 0; y < rows; y++)
            for (int64_t x = 0; x < columns; x++, cosine += half, sine += half)
                fill_angles(m, (const int64_t[]){picture, y, x, 0}, cosine, sine);
    }
}

static void rope_table(nn *c, const flux2 *m, flux2_condition *p, int64_t words,
                       const vae_latents *references, int count)
{
    const int64_t half = m->head_dim / 2;
    int64_t total = words + p->rows * p->columns;
    for (int i = 0; i < count; i++)
        total += references[i].height * references[i].width;
    p->cosine = nn_new2(c, total, half);
    p->sine = nn_new2(c, total, half);
    float *cosine = nn_begin_write(c, &p->cosine), *sine = nn_begin_write(c, &p->sine);
    if (cosine && sine)
        fill_table(m, p, words, references, count, cosine, sine);
    nn_end_write(c, &p->cosine);
    nn_end_write(c, &p->sine);
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
 * All tokens lie in one matrix, text first, so both kinds of block read the same memory. */

/* Keys and values of a block, [tokens, 2 dim], that come from elsewhere or go there; either may be
 * NULL. */
typedef struct shared_keys {
    const nn_tensor *more; /* are seen, too */
    const nn_tensor *keep; /* those of the block's own tokens go here */
} shared_keys;

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

static void attend(nn *c, const flux2 *m, const nn_tensor *out, const nn_tensor *qkv,
                   const shared_keys *shared)
{
    const int64_t s = out->n[0], d = m->dim;
    nn_tensor own = nn_rows(qkv, 0, s), q = nn_columns(&own, 0, d);
    nn_tensor k = nn_columns(qkv, d, d), v = nn_columns(qkv, 2 * d, d);
    if (shared->keep) {
        nn_tensor kv = nn_columns(&own, d, 2 * d);
        nn_copy(c, shared->keep, &kv);
    }
    nn_attention(c, out, &q, &k, &v, m->heads, m->heads, false);
}

/* Of which the rows of one stream begin at first. */
typedef struct stream_rows {
    const flux2_stream *weights;
    int64_t first, count;
    int64_t position;               /* of the first, in the table of angles */
    nn_tensor attention[3], mlp[3]; /* shift, 1 + scale, gate */
} stream_rows;

/* Norm and rotation of queries and keys. */
static void rotate(nn *c, const flux2 *m, const nn_tensor *q, const nn_tensor *k,
                   const nn_weight *norm_q, const nn_weight *norm_k, const flux2_condition *p,
                   int64_t first)
{
    nn_tensor cosine = nn_rows(&p->cosine, first, q->n[0]);
    nn_tensor sine = nn_rows(&p->sine, first, q->n[0]);
    nn_head_norm_rope(c, q, m->heads, norm_q, m->eps, &cosine, &sine, NN_ROPE_INTERLEAVED);
    nn_head_norm_rope(c, k, m->heads, norm_k, m->eps, &cosine, &sine, NN_ROPE_INTERLEAVED);
}

/* For each stream:
 *     x += gate * out(attention(norm(x) * (1 + scale) + shift)), attention over both streams
 *     x += gate * down(silu(gate h) * up h), h = norm(x) * (1 + scale) + shift */
static void double_block(nn *c, const flux2 *m, const stream_rows *streams, int count,
                         const nn_tensor *x, const shared_keys *shared, const flux2_condition *p)
{
    if (nn_stopped(c))
        return;
    const int64_t s = x->n[0], d = m->dim;
    size_t mark = nn_mark(c);
    nn_tensor attended = nn_new_work2(c, s, d);
    size_t inner = nn_mark(c);
    nn_tensor qkv = new_qkv(c, m, s, shared);
    for (int i = 0; i < count; i++) {
        const stream_rows *r = &streams[i];
        const flux2_stream *w = r->weights;
        size_t here = nn_mark(c);
        nn_tensor rows = nn_rows(x, r->first, r->count), all = nn_rows(&qkv, r->first, r->count);
        nn_tensor q = nn_columns(&all, 0, d), k = nn_columns(&all, d, d);
        nn_tensor input = nn_new_operand(c, r->count, d);
        nn_layer_norm(c, &input, &rows, m->eps, &r->attention[SCALE], &r->attention[SHIFT]);
        nn_linears(c, &all, &input, (const nn_weight *const[]){&w->q, &w->k, &w->v}, NULL, 3);
        rotate(c, m, &q, &k, &w->norm_q, &w->norm_k, p, r->position);
        nn_release(c, here);
    }
    attend(c, m, &attended, &qkv, shared);
    nn_release(c, inner);
    for (int i = 0; i < count; i++) {
        const stream_rows *r = &streams[i];
        const flux2_stream *w = r->weights;
        nn_tensor rows = nn_rows(x, r->first, r->count), o = nn_rows(&attended, r->first, r->count);
        nn_linear(c, &rows, &o, &w->out, &(nn_epilogue){.gate = &r->attention[GATE], .add = true});
    }
    nn_release(c, mark);
    for (int i = 0; i < count; i++) {
        const stream_rows *r = &streams[i];
        const flux2_stream *w = r->weights;
        nn_tensor rows = nn_rows(x, r->first, r->count),
                  hidden = nn_new_input(c, r->count, &w->down);
        size_t behind = nn_mark(c);
        nn_tensor input = nn_new_operand(c, r->count, d);
        nn_layer_norm(c, &input, &rows, m->eps, &r->mlp[SCALE], &r->mlp[SHIFT]);
        nn_linear(c, &hidden, &input, &w->gate,
                  &(nn_epilogue){.activation = NN_SILU, .up = &w->up});
        nn_release(c, behind);
        nn_linear(c, &rows, &hidden, &w->down, &(nn_epilogue){.gate = &r->mlp[GATE], .add = true});
        nn_release(c, mark);
    }
}

/* x += gate * out([attention(h) | silu(gate h) * up h]), h = norm(x) * (1 + scale) + shift */
static void single_block(nn *c, const flux2 *m, const flux2_single *w, const nn_tensor *x,
                         const nn_tensor modulation[3], const shared_keys *shared,
                         const flux2_condition *p, int64_t position)
{
    if (nn_stopped(c))
        return;
    const int64_t s = x->n[0], d = m->dim;
    size_t mark = nn_mark(c);
    nn_tensor both = nn_new_work2(c, s, d + m->ffn_dim);
    nn_tensor attended = nn_columns(&both, 0, d), hidden = nn_columns(&both, d, m->ffn_dim);
    size_t inner = nn_mark(c);
    nn_tensor qkv = new_qkv(c, m, s, shared), own = nn_rows(&qkv, 0, s);
    nn_tensor q = nn_columns(&own, 0, d), k = nn_columns(&own, d, d);
    size_t behind = nn_mark(c);
    nn_tensor input = nn_new_operand(c, s, d);
    nn_layer_norm(c, &input, x, m->eps, &modulation[SCALE], &modulation[SHIFT]);
    nn_linears(c, &own, &input, (const nn_weight *const[]){&w->q, &w->k, &w->v}, NULL, 3);
    nn_linear(c, &hidden, &input, &w->gate, &(nn_epilogue){.activation = NN_SILU, .up = &w->up});
    nn_release(c, behind);
    rotate(c, m, &q, &k, &w->norm_q, &w->norm_k, p, position);
    attend(c, m, &attended, &qkv, shared);
    nn_release(c, inner);
    nn_linear(c, x, &both, &w->out, &(nn_epilogue){.gate = &modulation[GATE], .add = true});
    nn_release(c, mark);
}

static void take_parts(nn_tensor out[3], const flux2_schedule *s, int part)
{
    for (int i = 0; i < 3; i++)
        out[i] = nn_rows(&s->now, part + i, 1);
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
    nn_tensor x = nn_new2(c, tokens, m->dim), modulation[3];
    embed_references(c, m, &x, references, count);
    flux2_schedule schedule = compute_schedule(c, m, &now, 1, false);
    flux2_set_step(c, &schedule, 0);
    stream_rows stream = {.count = tokens, .position = position};
    take_parts(stream.attention, &schedule, IMAGE_ATTENTION);
    take_parts(stream.mlp, &schedule, IMAGE_MLP);
    take_parts(modulation, &schedule, SINGLE);
    for (int b = 0; b < m->doubles + m->singles; b++) {
        nn_tensor kept = kept_of(c, m, p, b);
        const shared_keys shared = {.keep = &kept};
        nn_block(c);
        if (b < m->doubles) {
            stream.weights = &m->double_block[b].image;
            double_block(c, m, &stream, 1, &x, &shared, p);
        } else {
            single_block(c, m, &m->single_block[b - m->doubles], &x, modulation, &shared, p,
                         position);
        }
    }
    nn_release(c, mark);
}

flux2_condition flux2_prepare_condition(nn *c, const flux2 *m, const float *features,
                                        int64_t length, int64_t height, int64_t width,
                                        const vae_latents *references, int count)
{
    flux2_condition p = {.rows = height, .columns = width};
    rope_table(c, m, &p, length, references, count);
    trace_rope(c, &p, "text", 0, length);
    trace_rope(c, &p, "image", length, p.cosine.n[0] - length);
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
    nn_tensor tokens = nn_new2(c, image->n[0], m->channels);
    nn_layer_norm(c, image, image, m->eps, &scale, &shift);
    nn_linear(c, &tokens, image, &m->final, NULL);
    nn_from_patches(c, output, &tokens, 1);
}

void flux2_forward(nn *c, const flux2 *m, const flux2_schedule *schedule, const flux2_condition *p,
                   const nn_tensor *latents, const nn_tensor *output)
{
    const int64_t words = p->text.n[0], tokens = p->rows * p->columns;
    const bool references = p->references.rank > 0, kept = p->kept.rank > 0;
    const int64_t total = words + tokens + (references ? p->references.n[0] : 0);
    size_t mark = nn_mark(c);
    nn_tensor x = nn_new2(c, total, m->dim);
    nn_tensor text = nn_rows(&x, 0, words), image = nn_rows(&x, words, total - words);
    nn_tensor target = nn_rows(&image, 0, tokens);
    stream_rows streams[2] = {{.first = words, .count = total - words, .position = words},
                              {.count = words}};
    take_parts(streams[0].attention, schedule, IMAGE_ATTENTION);
    take_parts(streams[0].mlp, schedule, IMAGE_MLP);
    take_parts(streams[1].attention, schedule, TEXT_ATTENTION);
    take_parts(streams[1].mlp, schedule, TEXT_MLP);
    nn_tensor modulation[3];
    take_parts(modulation, schedule, SINGLE);

    nn_copy(c, &text, &p->text);
    embed_latents(c, m, &target, latents);
    if (references) {
        nn_tensor rest = nn_rows(&image, tokens, p->references.n[0]);
        nn_copy(c, &rest, &p->references);
    }
    nn_trace_tensor(c, &image, "transformer.x_embedder");
    for (int i = 0; i < m->doubles; i++) {
        streams[0].weights = &m->double_block[i].image;
        streams[1].weights = &m->double_block[i].text;
        const nn_tensor more = kept ? kept_of(c, m, p, i) : (nn_tensor){0};
        nn_block(c);
        double_block(c, m, streams, 2, &x, &(shared_keys){.more = kept ? &more : NULL}, p);
        nn_trace_tensor(c, &image, "transformer.transformer_blocks.%d", i);
        nn_trace_tensor(c, &text, "transformer.transformer_blocks.%d.text", i);
    }
    for (int i = 0; i < m->singles; i++) {
        const nn_tensor more = kept ? kept_of(c, m, p, m->doubles + i) : (nn_tensor){0};
        nn_block(c);
        single_block(c, m, &m->single_block[i], &x, modulation,
                     &(shared_keys){.more = kept ? &more : NULL}, p, 0);
        nn_trace_tensor(c, &x, "transformer.single_transformer_blocks.%d", i);
    }
    nn_block(c);
    final_layer(c, m, schedule, &target, output);
    nn_release(c, mark);
}
