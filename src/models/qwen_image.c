/* Qwen-Image (https://arxiv.org/abs/2508.02324; diffusers QwenImageTransformer2DModel).
 *
 * features -> norm, linear \
 *                           blocks: two streams, one attention -> final layer
 * latents  -> linear       /
 *
 * Every linear layer has a bias. Latents come as 2 x 2 patches with features [channel, row,
 * column]. References are more image tokens, with positions of their own. */
#include "models/qwen_image.h"

#include "core/mem.h"
#include "io/names.h"
#include "models/batch.h"

#include <inttypes.h>
#include <math.h>

#define EPS 1e-6 /* of every norm */
#define PATCH 2
#define FREQUENCIES 128 /* of the embedding of the noise level */
#define THETA 10000.0f

/* ---- Loading --------------------------------------------------------------------------------- */

/* What the shapes of the tensors tell; read_config has the values of the published models for the
 * rest. */
static void infer(const weights *w, json_writer *out)
{
    const int64_t dim = tensor_size(w, "img_in.weight", 0);
    const int64_t head = tensor_size(w, "transformer_blocks.0.attn.norm_q.weight", 0);
    infer_integer(out, "in_channels", tensor_size(w, "proj_out.bias", 0));
    infer_integer(out, "out_channels", tensor_size(w, "proj_out.bias", 0) / (PATCH * PATCH));
    infer_integer(out, "num_layers", names_parts(w, "transformer_blocks", "attn.norm_q.weight"));
    infer_integer(out, "attention_head_dim", head);
    infer_integer(out, "num_attention_heads", head > 0 ? dim / head : 0);
    infer_integer(out, "joint_attention_dim", tensor_size(w, "txt_norm.weight", 0));
    json_write_key(out, "zero_cond_t");
    json_write_boolean(out, weights_find(w, "__index_timestep_zero__") != NULL);
}

/* What published models of this kind do not have, or only Qwen-Image-Layered. */
static ct_status check_variant(const config *c, ct_error *error)
{
    static const char *const refused[] = {"guidance_embeds", "use_additional_t_cond",
                                          "use_layer3d_rope"};
    int64_t patch = PATCH;
    ct_status s = config_integer(c, "patch_size", 1, 64, false, PATCH, &patch, error);
    if (s == CT_OK && patch != PATCH)
        return error_set(error, CT_EUNSUPPORTED, "%s: patch_size must be %d", c->path, PATCH);
    for (size_t i = 0; s == CT_OK && i < sizeof refused / sizeof *refused; i++) {
        bool on = false;
        s = config_boolean(c, refused[i], false, &on, error);
        if (s == CT_OK && on)
            return error_set(error, CT_EUNSUPPORTED, "%s: %s is not supported%s", c->path,
                             refused[i], i ? "; the model is of the kind Qwen-Image-Layered" : "");
    }
    return s;
}

static ct_status read_config(qwen_image *m, const config *c, ct_error *error)
{
    int64_t heads = 0, blocks = 0, in = 0, axes = 0;
    int dims = QWEN_IMAGE_AXES;
    m->axes_dims[0] = 16;
    m->axes_dims[1] = m->axes_dims[2] = 56;
    ct_status s = check_variant(c, error);
    if (s == CT_OK)
        s = config_integer(c, "in_channels", 4, 4096, false, 64, &in, error);
    if (s == CT_OK)
        s = config_integer(c, "out_channels", 1, 4096, false, 16, &m->channels, error);
    if (s == CT_OK)
        s = config_integer(c, "num_layers", 0, 1000, false, 60, &blocks, error);
    if (s == CT_OK)
        s = config_integer(c, "attention_head_dim", 2, 4096, false, 128, &m->head_dim, error);
    if (s == CT_OK)
        s = config_integer(c, "num_attention_heads", 1, 4096, false, 24, &heads, error);
    if (s == CT_OK)
        s = config_integer(c, "joint_attention_dim", 1, 1 << 20, false, 3584, &m->text_dim, error);
    if (s == CT_OK)
        s = config_boolean(c, "zero_cond_t", false, &m->zero_cond_t, error);
    if (s == CT_OK && config_has(c, "axes_dims_rope"))
        s = config_integers(c, "axes_dims_rope", 2, 4096, QWEN_IMAGE_AXES, m->axes_dims, &dims,
                            error);
    if (s != CT_OK)
        return s;
    for (int i = 0; i < dims; i++)
        axes += m->axes_dims[i] % 2 == 0 ? m->axes_dims[i] : INT32_MAX;
    if (dims != QWEN_IMAGE_AXES || axes != m->head_dim)
        return error_set(error, CT_EFORMAT,
                         "%s: axes_dims_rope must have three entries, which are even and add up to "
                         "attention_head_dim (%d)",
                         c->path, (int)m->head_dim);
    if (in != m->channels * PATCH * PATCH)
        return error_set(error, CT_EUNSUPPORTED, "%s: in_channels must be four times out_channels",
                         c->path);
    m->dim = heads * m->head_dim;
    m->ffn_dim = 4 * m->dim;
    m->heads = (int)heads;
    m->blocks = (int)blocks;
    return CT_OK;
}

static void bind_stream(binder *b, const qwen_image *m, qwen_image_stream *s, int i, bool image)
{
    const int64_t d = m->dim, f = m->ffn_dim;
    const char *part = image ? "img" : "txt", *norm = image ? "" : "added_";
    const char *const in[] = {image ? "to_q" : "add_q_proj", image ? "to_k" : "add_k_proj",
                              image ? "to_v" : "add_v_proj", image ? "to_out.0" : "to_add_out"};
    nn_weight *const to[] = {&s->q, &s->k, &s->v, &s->out};
    nn_weight *const bias[] = {&s->q_bias, &s->k_bias, &s->v_bias, &s->out_bias};
    for (int j = 0; j < 4; j++) {
        *to[j] = bind2(b, d, d, "transformer_blocks.%d.attn.%s.weight", i, in[j]);
        *bias[j] = bind1(b, d, "transformer_blocks.%d.attn.%s.bias", i, in[j]);
    }
    s->norm_q = bind1(b, m->head_dim, "transformer_blocks.%d.attn.norm_%sq.weight", i, norm);
    s->norm_k = bind1(b, m->head_dim, "transformer_blocks.%d.attn.norm_%sk.weight", i, norm);
    s->modulation = bind2(b, 6 * d, d, "transformer_blocks.%d.%s_mod.1.weight", i, part);
    s->modulation.sensitive = true; /* a factor of everything */
    s->modulation_bias = bind1(b, 6 * d, "transformer_blocks.%d.%s_mod.1.bias", i, part);
    s->up = bind2(b, f, d, "transformer_blocks.%d.%s_mlp.net.0.proj.weight", i, part);
    s->up_bias = bind1(b, f, "transformer_blocks.%d.%s_mlp.net.0.proj.bias", i, part);
    s->down = bind2(b, d, f, "transformer_blocks.%d.%s_mlp.net.2.weight", i, part);
    s->down.outliers = true; /* GELU cuts off one side */
    s->down_bias = bind1(b, d, "transformer_blocks.%d.%s_mlp.net.2.bias", i, part);
}

/* What stays in bfloat16 when the blocks are computed in 8 bits: small layers at the ends, through
 * which everything passes. */
static void bind_sensitive(binder *b, nn_weight *w, nn_weight *bias, int64_t n0, int64_t n1,
                           const char *name)
{
    *w = bind2(b, n0, n1, "%s.weight", name);
    w->sensitive = true;
    *bias = bind1(b, n0, "%s.bias", name);
}

static ct_status bind_weights(qwen_image *m, const load_options *options, ct_error *error)
{
    binder b = {.source = m->weights, .options = options, .error = error};
    const int64_t d = m->dim, in = m->channels * PATCH * PATCH;
    bind_sensitive(&b, &m->time1, &m->time1_bias, d, 2 * FREQUENCIES,
                   "time_text_embed.timestep_embedder.linear_1");
    bind_sensitive(&b, &m->time2, &m->time2_bias, d, d,
                   "time_text_embed.timestep_embedder.linear_2");
    bind_sensitive(&b, &m->img_in, &m->img_in_bias, d, in, "img_in");
    bind_sensitive(&b, &m->txt_in, &m->txt_in_bias, d, m->text_dim, "txt_in");
    m->txt_norm = bind1(&b, m->text_dim, "txt_norm.weight");
    bind_sensitive(&b, &m->final_modulation, &m->final_modulation_bias, 2 * d, d,
                   "norm_out.linear");
    bind_sensitive(&b, &m->final, &m->final_bias, in, d, "proj_out");
    for (int i = 0; i < m->blocks; i++) {
        bind_stream(&b, m, &m->block[i].image, i, true);
        bind_stream(&b, m, &m->block[i].text, i, false);
    }
    return b.status;
}

ct_status qwen_image_load(qwen_image **out, const load_options *options, const char *directory,
                          ct_error *error)
{
    static const component_format format = {"diffusion_pytorch_model",
                                            "QwenImageTransformer2DModel", infer};
    const ct_allocator *a = options->allocator;
    *out = NULL;
    qwen_image *m = mem_zero_array(a, 1, sizeof *m);
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
        m->block = mem_zero_array(a, (size_t)m->blocks, sizeof *m->block);
        status = m->block ? bind_weights(m, options, error)
                          : error_memory(error, sizeof *m->block, "the transformer");
    }
    if (status != CT_OK) {
        qwen_image_free(m);
        return status;
    }
    *out = m;
    return CT_OK;
}

void qwen_image_free(qwen_image *m)
{
    if (!m)
        return;
    weights_close(m->weights);
    mem_free(m->allocator, m->block);
    mem_free(m->allocator, m);
}

void qwen_image_describe(const qwen_image *m, strbuf *out)
{
    strbuf_printf(out,
                  "%d blocks, dim %" PRId64 ", %d heads, head dim %" PRId64 ", %" PRId64
                  " latent channels",
                  m->blocks, m->dim, m->heads, m->head_dim, m->channels);
}

/* ---- Once for a schedule ------------------------------------------------------------------------
 * values[part]: of each block shift, 1 + scale and gate of what the part modulates, then 1 + scale
 * and shift of the final layer. */

enum { IMAGE_ATTENTION = 0, IMAGE_MLP = 3, TEXT_ATTENTION = 6, TEXT_MLP = 9, BLOCK_PARTS = 12 };
enum { SHIFT, SCALE, GATE };
enum { FINAL_SCALE, FINAL_SHIFT, FINAL_PARTS };

/* [levels, dim] of values [parts, levels, dim]. */
static nn_tensor level_rows(nn *c, const nn_tensor *values, int64_t part)
{
    nn_tensor one = nn_rows(values, part, 1);
    return nn_as2(c, &one, values->n[1], values->n[2]);
}

/* Sinusoids of 1000 sigma, cosines first, then two linear layers. Levels behind the steps are 0. */
static nn_tensor embed_levels(nn *c, const qwen_image *m, const float *sigmas, int64_t steps,
                              int64_t levels)
{
    nn_tensor embedding = nn_new2(c, levels, m->dim);
    size_t mark = nn_mark(c);
    nn_tensor waves = nn_new2(c, levels, 2 * FREQUENCIES), hidden = nn_new2(c, levels, m->dim);
    float *wave = nn_begin_write(c, &waves);
    for (int64_t s = 0; wave && s < levels; s++, wave += 2 * FREQUENCIES)
        for (int64_t k = 0; k < FREQUENCIES; k++) {
            const float frequency = expf((float)-log(10000) * (float)k / (float)FREQUENCIES);
            /* The reference multiplies and divides by 1000 in this order. */
            const float sigma = s < steps ? sigmas[s] : 0;
            const float angle = 1000.0f * (sigma * 1000.0f / 1000.0f * frequency);
            wave[k] = cosf(angle);
            wave[FREQUENCIES + k] = sinf(angle);
        }
    nn_end_write(c, &waves);
    nn_linear(c, &hidden, &waves, &m->time1,
              &(nn_epilogue){.bias = &m->time1_bias, .activation = NN_SILU});
    nn_linear(c, &embedding, &hidden, &m->time2, &(nn_epilogue){.bias = &m->time2_bias});
    nn_release(c, mark);
    return embedding;
}

/* values[first + i], i < parts, = row block i of the layer. scales: a bit for each part that is a
 * scale, to which 1 is added. */
static void modulate(nn *c, const nn_tensor *values, const nn_tensor *embedding, const nn_weight *w,
                     const nn_weight *bias, int64_t first, int parts, unsigned scales)
{
    const int64_t d = values->n[2];
    for (int i = 0; i < parts; i++) {
        const nn_weight rows = nn_weight_rows(w, i * d, d), some = nn_weight_rows(bias, i * d, d);
        nn_tensor value = level_rows(c, values, first + i);
        nn_linear(c, &value, embedding, &rows, &(nn_epilogue){.bias = &some});
        if (scales >> i & 1)
            nn_add_scalar(c, &value, 1);
    }
}

/* The modulation of all levels; the weights of a block are read once and not needed again. */
static void fill_modulation(nn *c, const qwen_image *m, const nn_tensor *values,
                            const nn_tensor *embedding)
{
    const unsigned scales = 1u << SCALE | 1u << (3 + SCALE);
    for (int i = 0; i < m->blocks && !nn_stopped(c); i++) {
        const qwen_image_stream *image = &m->block[i].image, *text = &m->block[i].text;
        const int64_t first = (int64_t)BLOCK_PARTS * i;
        nn_block(c);
        modulate(c, values, embedding, &image->modulation, &image->modulation_bias,
                 first + IMAGE_ATTENTION, 6, scales);
        modulate(c, values, embedding, &text->modulation, &text->modulation_bias,
                 first + TEXT_ATTENTION, 6, scales);
    }
    nn_block(c);
    modulate(c, values, embedding, &m->final_modulation, &m->final_modulation_bias,
             (int64_t)BLOCK_PARTS * m->blocks, FINAL_PARTS, 1u << FINAL_SCALE);
}

qwen_image_schedule qwen_image_begin_schedule(nn *c, const qwen_image *m, int64_t steps)
{
    qwen_image_schedule s = {.steps = steps};
    const int64_t parts = (int64_t)BLOCK_PARTS * m->blocks + FINAL_PARTS;
    s.now = nn_new2(c, parts, m->dim);
    if (m->zero_cond_t)
        s.zero = nn_new2(c, parts, m->dim);
    s.values = nn_new3(c, parts, steps + m->zero_cond_t, m->dim);
    return s;
}

void qwen_image_fill_schedule(nn *c, const qwen_image *m, const qwen_image_schedule *s,
                              const float *sigmas)
{
    size_t mark = nn_mark(c);
    nn_tensor embedding = embed_levels(c, m, sigmas, s->steps, s->values.n[1]);
    for (int64_t i = 0; i < s->steps; i++) {
        nn_tensor row = nn_rows(&embedding, i, 1);
        nn_trace_tensor(c, &row, "step.%02d.t_embedder", (int)i);
    }
    nn_silu(c, &embedding, &embedding);
    fill_modulation(c, m, &s->values, &embedding);
    nn_release(c, mark);
}

void qwen_image_set_step(nn *c, const qwen_image_schedule *s, int64_t step)
{
    nn_take(c, &s->now, &s->values, step);
    if (s->zero.rank)
        nn_take(c, &s->zero, &s->values, s->steps);
}

/* ---- Once for a prompt ----------------------------------------------------------------------- */

static void add_words(rope_layout *to, int64_t words, int64_t behind)
{
    rope_add(to, &(rope_run){.first = {behind, behind, behind},
                             .right = {1, 1, 1},
                             .rows = 1,
                             .columns = words});
}

/* Rows and columns are counted from the middle; the half before it is the larger one. */
static void add_picture(rope_layout *to, int64_t picture, int64_t rows, int64_t columns)
{
    const int64_t above = rows - rows / 2, left = columns - columns / 2;
    rope_add(to, &(rope_run){.first = {picture, -above, -left},
                             .down = {0, 1},
                             .right = {0, 0, 1},
                             .rows = rows,
                             .columns = columns});
}

static void add_references(rope_layout *to, const vae_latents *references, int count)
{
    for (int i = 0; i < count; i++)
        add_picture(to, i + 1, references[i].height / PATCH, references[i].width / PATCH);
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Words come behind all pictures, on every axis. */
static void lay_out(const qwen_image_condition *p, int64_t words, const vae_latents *references,
                    int count, rope_layout *to)
{
    int64_t behind = larger(p->rows / 2, p->columns / 2);
    for (int i = 0; i < count; i++)
        behind = larger(behind,
                        larger(references[i].height / PATCH / 2, references[i].width / PATCH / 2));
    if (p->pictures_first)
        add_references(to, references, count);
    else
        add_words(to, words, behind);
    add_picture(to, 0, p->rows, p->columns);
    if (p->pictures_first)
        add_words(to, words, behind);
    else
        add_references(to, references, count);
}

static int64_t reference_tokens(const vae_latents *references, int count)
{
    int64_t tokens = 0;
    for (int i = 0; i < count; i++)
        tokens += references[i].height / PATCH * (references[i].width / PATCH);
    return tokens;
}

/* Angles in float32, as in the reference. */
static void rope_angles(nn *c, const qwen_image *m, qwen_image_condition *p, int64_t words,
                        const vae_latents *references, int count, const rope_memory *tables)
{
    rope_layout to = {
        .axes = QWEN_IMAGE_AXES, .dims = m->axes_dims, .theta = THETA, .rounding = ROPE_FLOAT};
    lay_out(p, words, references, count, &to);
    rope_make(c, &to, tables, &p->cosine, &p->sine);
}

static void trace_rope(nn *c, const qwen_image_condition *p, const char *part, int64_t first,
                       int64_t count)
{
    nn_tensor cosine = nn_rows(&p->cosine, first, count), sine = nn_rows(&p->sine, first, count);
    nn_trace_tensor(c, &cosine, "transformer.rope.%s.cos", part);
    nn_trace_tensor(c, &sine, "transformer.rope.%s.sin", part);
}

/* out [height / 2 * width / 2, dim] = the embedded tokens of latents [channels, height, width]. */
static void embed_latents(nn *c, const qwen_image *m, const nn_tensor *out,
                          const nn_tensor *latents)
{
    size_t mark = nn_mark(c);
    nn_tensor tokens = nn_new2(c, out->n[0], m->channels * PATCH * PATCH);
    nn_pack(c, &tokens, latents, PATCH);
    nn_linear(c, out, &tokens, &m->img_in, &(nn_epilogue){.bias = &m->img_in_bias});
    nn_release(c, mark);
}

static void embed_references(nn *c, const qwen_image *m, const nn_tensor *out,
                             const vae_latents *references, int count)
{
    int64_t at = 0;
    for (int i = 0; i < count; i++) {
        const vae_latents *r = &references[i];
        size_t mark = nn_mark(c);
        nn_tensor rows = nn_rows(out, at, reference_tokens(r, 1));
        nn_tensor latents = nn_new3(c, m->channels, r->height, r->width);
        nn_upload(c, &latents, r->latents, nn_count(&latents));
        embed_latents(c, m, &rows, &latents);
        nn_release(c, mark);
        at += rows.n[0];
    }
}

qwen_image_condition qwen_image_prepare_condition(nn *c, const qwen_image *m, const float *features,
                                                  int64_t length, int64_t height, int64_t width,
                                                  const vae_latents *references, int count,
                                                  int index, const rope_memory *tables)
{
    qwen_image_condition p = {
        .rows = height / PATCH, .columns = width / PATCH, .pictures_first = index % 2 == 1};
    const int64_t rest = reference_tokens(references, count);
    rope_angles(c, m, &p, length, references, count, tables);
    const int64_t pictures = p.cosine.n[0] - length;
    trace_rope(c, &p, "text", p.pictures_first ? pictures : 0, length);
    trace_rope(c, &p, "image", p.pictures_first ? 0 : length, pictures);
    p.text = nn_new2(c, length, m->dim);
    nn_block(c);
    if (rest > 0) {
        p.references = nn_new2(c, rest, m->dim);
        embed_references(c, m, &p.references, references, count);
    }
    size_t mark = nn_mark(c);
    nn_tensor x = nn_new2(c, length, m->text_dim);
    nn_upload(c, &x, features, length * m->text_dim);
    nn_rms_norm(c, &x, &x, &m->txt_norm, EPS, NULL);
    nn_linear(c, &p.text, &x, &m->txt_in, &(nn_epilogue){.bias = &m->txt_in_bias});
    nn_trace_tensor(c, &p.text, "transformer.txt_in");
    nn_release(c, mark);
    return p;
}

/* ---- Blocks ------------------------------------------------------------------------------------
 * All tokens lie in one matrix, so that attention sees those of a sequence as one. */

/* What has weights or modulation of its own; references have that of the image, unless they are
 * modulated as at noise level 0. */
enum { IMAGE_STREAM, TEXT_STREAM, ZERO_STREAM, STREAMS };

/* What the blocks of an evaluation are given. */
typedef struct pass {
    batch rows;
    const qwen_image_stream *weights[STREAMS];
    nn_tensor attention[STREAMS][3], mlp[STREAMS][3]; /* shift, 1 + scale, gate */
    nn_tensor after[STREAMS][3]; /* attention of the next block; rank 0 behind the last */
    nn_tensor input[BATCH_MAX * BATCH_KINDS]; /* normed rows of each run, for the next product */
} pass;

/* norm(x) * (1 + scale) + shift, to where the next product reads it. */
static nn_next_norm norm_behind(const nn_tensor *out, const nn_tensor modulation[3])
{
    return (nn_next_norm){.out = out,
                          .eps = EPS,
                          .scale = &modulation[SCALE],
                          .layer = true,
                          .shift = &modulation[SHIFT]};
}

/* q, k and v of some rows. */
static void project(nn *c, const pass *a, int run, const nn_tensor *qkv)
{
    const batch_rows *r = &a->rows.run[run];
    const qwen_image_stream *w = a->weights[r->stream];
    nn_tensor all = nn_rows(qkv, r->first, r->count);
    nn_linears(c, &all, &a->input[run], (const nn_weight *const[]){&w->q, &w->k, &w->v},
               (const nn_weight *const[]){&w->q_bias, &w->k_bias, &w->v_bias}, 3);
}

/* Norm and rotation of queries and keys. */
static void rotate(nn *c, const qwen_image *m, const pass *a, const nn_tensor *qkv)
{
    const nn_weight *norm_q[STREAMS], *norm_k[STREAMS];
    nn_tensor q = nn_columns(qkv, 0, m->dim), k = nn_columns(qkv, m->dim, m->dim);
    for (int i = 0; i < STREAMS; i++) {
        norm_q[i] = &a->weights[i]->norm_q;
        norm_k[i] = &a->weights[i]->norm_k;
    }
    batch_head_norm_rope(c, &a->rows, &q, m->heads, norm_q, EPS);
    batch_head_norm_rope(c, &a->rows, &k, m->heads, norm_k, EPS);
}

/* x += gate * down(gelu(up h)), h = norm(x) * (1 + scale) + shift */
static void feed_forward(nn *c, const pass *a, int run, const nn_tensor *x)
{
    const batch_rows *r = &a->rows.run[run];
    const qwen_image_stream *w = a->weights[r->stream];
    const nn_tensor *after = a->after[r->stream];
    const nn_next_norm next = norm_behind(&a->input[run], after);
    size_t mark = nn_mark(c);
    nn_tensor rows = nn_rows(x, r->first, r->count), hidden = nn_new_input(c, r->count, &w->down);
    nn_linear(c, &hidden, &a->input[run], &w->up,
              &(nn_epilogue){.bias = &w->up_bias, .activation = NN_GELU_TANH});
    nn_linear(c, &rows, &hidden, &w->down,
              &(nn_epilogue){.bias = &w->down_bias,
                             .gate = &a->mlp[r->stream][GATE],
                             .add = true,
                             .next = after->rank ? &next : NULL});
    nn_release(c, mark);
}

/* x += gate * out(attention(h)), h = norm(x) * (1 + scale) + shift, attention over all of a
 * sequence; then the feed-forward network of each stream. Every norm is made by the sum in front of
 * it, the first by the block before. */
static void block(nn *c, const qwen_image *m, const pass *a, const nn_tensor *x)
{
    if (nn_stopped(c))
        return;
    const batch *b = &a->rows;
    const int64_t s = x->n[0], d = m->dim;
    size_t mark = nn_mark(c);
    nn_tensor attended = nn_new_work2(c, s, d);
    size_t inner = nn_mark(c);
    nn_tensor qkv = nn_new_work2(c, s, 3 * d);
    for (int i = -1; batch_next(c, b, &i);)
        project(c, a, i, &qkv);
    rotate(c, m, a, &qkv);
    batch_attention(c, b, &attended, &qkv, m->heads);
    nn_release(c, inner);
    for (int i = -1; batch_next(c, b, &i);) {
        const batch_rows *r = &b->run[i];
        const qwen_image_stream *w = a->weights[r->stream];
        const nn_next_norm next = norm_behind(&a->input[i], a->mlp[r->stream]);
        nn_tensor rows = nn_rows(x, r->first, r->count), o = nn_rows(&attended, r->first, r->count);
        nn_linear(c, &rows, &o, &w->out,
                  &(nn_epilogue){.bias = &w->out_bias,
                                 .gate = &a->attention[r->stream][GATE],
                                 .add = true,
                                 .next = &next});
    }
    nn_release(c, mark);
    for (int i = -1; batch_next(c, b, &i);)
        feed_forward(c, a, i, x);
}

/* ---- One evaluation -------------------------------------------------------------------------- */

/* shift, 1 + scale and gate */
static void take_parts(nn_tensor out[3], const nn_tensor *values, int64_t first)
{
    for (int i = 0; i < 3; i++)
        out[i] = nn_rows(values, first + i, 1);
}

static void set_modulation(pass *a, const qwen_image *m, int stream, const nn_tensor *values,
                           int64_t first, int block)
{
    take_parts(a->attention[stream], values, first);
    take_parts(a->mlp[stream], values, first + 3);
    if (block + 1 < m->blocks)
        take_parts(a->after[stream], values, first + BLOCK_PARTS);
    else
        a->after[stream][0].rank = 0;
}

/* Weights and modulation of a block. */
static void set_block(pass *a, const qwen_image *m, const qwen_image_schedule *schedule, int block)
{
    const int64_t first = (int64_t)BLOCK_PARTS * block;
    a->weights[TEXT_STREAM] = &m->block[block].text;
    a->weights[IMAGE_STREAM] = a->weights[ZERO_STREAM] = &m->block[block].image;
    set_modulation(a, m, TEXT_STREAM, &schedule->now, first + TEXT_ATTENTION, block);
    set_modulation(a, m, IMAGE_STREAM, &schedule->now, first + IMAGE_ATTENTION, block);
    if (m->zero_cond_t)
        set_modulation(a, m, ZERO_STREAM, &schedule->zero, first + IMAGE_ATTENTION, block);
}

/* The norms that the first block finds. */
static void begin_blocks(nn *c, const qwen_image *m, pass *a, const nn_tensor *x)
{
    for (int i = 0; i < a->rows.runs; i++) {
        const batch_rows *r = &a->rows.run[i];
        const nn_tensor *modulation = a->attention[r->stream];
        nn_tensor rows = nn_rows(x, r->first, r->count);
        a->input[i] = nn_new_operand(c, r->count, m->dim);
        nn_layer_norm(c, &a->input[i], &rows, EPS, &modulation[SCALE], &modulation[SHIFT]);
    }
}

static void add_sequence(pass *a, const qwen_image *m, const qwen_image_condition *p)
{
    batch_add(&a->rows,
              &(batch_tokens){
                  .count = {[BATCH_TEXT] = p->text.n[0],
                            [BATCH_TARGET] = p->rows * p->columns,
                            [BATCH_REFERENCES] = p->references.rank ? p->references.n[0] : 0},
                  .stream = {[BATCH_TEXT] = TEXT_STREAM,
                             [BATCH_REFERENCES] = m->zero_cond_t ? ZERO_STREAM : IMAGE_STREAM},
                  .pictures_first = p->pictures_first,
                  .cosine = &p->cosine,
                  .sine = &p->sine});
}

/* Only the tokens of the picture are needed. */
static void final_layer(nn *c, const qwen_image *m, const qwen_image_schedule *schedule,
                        const nn_tensor *image, const nn_tensor *output)
{
    const int64_t first = (int64_t)BLOCK_PARTS * m->blocks;
    nn_tensor scale = nn_rows(&schedule->now, first + FINAL_SCALE, 1);
    nn_tensor shift = nn_rows(&schedule->now, first + FINAL_SHIFT, 1);
    size_t mark = nn_mark(c);
    nn_tensor tokens = nn_new2(c, image->n[0], m->channels * PATCH * PATCH);
    nn_layer_norm(c, image, image, EPS, &scale, &shift);
    nn_linear(c, &tokens, image, &m->final, &(nn_epilogue){.bias = &m->final_bias});
    nn_unpack(c, output, &tokens, PATCH);
    nn_release(c, mark);
}

/* What is traced is of the first sequence. */
void qwen_image_forward(nn *c, const qwen_image *m, const qwen_image_schedule *schedule,
                        const qwen_image_condition *const *conditions, int count,
                        const nn_tensor *latents, const nn_tensor *outputs)
{
    pass a = {0};
    for (int i = 0; i < count; i++)
        add_sequence(&a, m, conditions[i]);
    const batch_sequence *s = a.rows.sequence;
    size_t mark = nn_mark(c);
    nn_tensor x = nn_new2(c, a.rows.count, m->dim);
    nn_tensor text = batch_part(&x, s, BATCH_TEXT), target = batch_part(&x, s, BATCH_TARGET);
    nn_tensor image =
        nn_rows(&x, conditions[0]->pictures_first ? 0 : text.n[0], s->count - text.n[0]);
    embed_latents(c, m, &target, latents);
    batch_share(c, &a.rows, &x, BATCH_TARGET, 1);
    for (int i = 0; i < count; i++) {
        batch_fill(c, &s[i], &x, BATCH_TEXT, &conditions[i]->text);
        batch_fill(c, &s[i], &x, BATCH_REFERENCES, &conditions[i]->references);
    }
    nn_trace_tensor(c, &image, "transformer.img_in");
    for (int i = 0; i < m->blocks; i++) {
        set_block(&a, m, schedule, i);
        if (i == 0)
            begin_blocks(c, m, &a, &x);
        nn_block(c);
        block(c, m, &a, &x);
        nn_trace_tensor(c, &image, "transformer.transformer_blocks.%d", i);
        nn_trace_tensor(c, &text, "transformer.transformer_blocks.%d.text", i);
    }
    nn_block(c);
    for (int i = 0; i < count; i++) {
        target = batch_part(&x, &s[i], BATCH_TARGET);
        final_layer(c, m, schedule, &target, &outputs[i]);
    }
    nn_release(c, mark);
}
