/* Qwen2.5-VL (https://arxiv.org/abs/2502.13923; transformers Qwen2_5_VLForConditionalGeneration):
 * the language model. Other than in Qwen3, queries, keys and values have biases, and there is no
 * norm of queries and keys. */
#include "models/qwen25vl.h"

#include "core/mem.h"
#include "io/names.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- Loading --------------------------------------------------------------------------------- */

/* What stands before embed_tokens, layers and norm: in published files, and in those that
 * transformers 5 has in memory. */
static const char *find_prefix(const weights *w)
{
    static const char *const prefixes[] = {"model.", "model.language_model."};
    char name[NAMES_LENGTH];
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        snprintf(name, sizeof name, "%sembed_tokens.weight", prefixes[i]);
        if (names_find(w, name))
            return prefixes[i];
    }
    return prefixes[0];
}

/* The shape of the tensors, and what is the same in all published models. */
static void infer(const weights *w, json_writer *out)
{
    const char *prefix = find_prefix(w);
    char name[NAMES_LENGTH];
#define SIZE(tensor, axis)                                                                         \
    (snprintf(name, sizeof name, "%s%s", prefix, tensor), tensor_size(w, name, axis))
    const int64_t hidden = SIZE("norm.weight", 0), head = 128;
    infer_integer(out, "hidden_size", hidden);
    infer_integer(out, "intermediate_size", SIZE("layers.0.mlp.gate_proj.weight", 0));
    infer_integer(out, "vocab_size", SIZE("embed_tokens.weight", 0));
    infer_integer(out, "num_attention_heads", hidden / head);
    infer_integer(out, "num_key_value_heads", SIZE("layers.0.self_attn.k_proj.bias", 0) / head);
#undef SIZE
    snprintf(name, sizeof name, "%slayers", prefix);
    infer_integer(out, "num_hidden_layers", names_parts(w, name, "input_layernorm.weight"));
    infer_integer(out, "max_position_embeddings", 128000);
    infer_integer(out, "rope_theta", 1000000);
    json_write_key(out, "rope_scaling");
    json_write_object(out);
    json_write_key(out, "mrope_section");
    json_write_array(out);
    json_write_integer(out, 16);
    json_write_integer(out, 24);
    json_write_integer(out, 24);
    json_write_array_end(out);
    json_write_object_end(out);
}

/* A token has three positions: picture (or film's time), row, column; for words they are equal. The
 * angles of a head are divided among them. */
static ct_status read_sections(qwen25vl *m, const config *c, const json_value *scaling,
                               ct_error *error)
{
    const json_value *sections = json_get(scaling, "mrope_section");
    int64_t sum = 0;
    m->sections[0] = m->head_dim / 2;
    if (!sections)
        return CT_OK;
    for (size_t i = 0; i < 3; i++) {
        m->sections[i] = -1;
        json_get_integer(json_at(sections, i), &m->sections[i]);
        sum += m->sections[i] >= 0 && m->sections[i] <= m->head_dim ? m->sections[i] : m->head_dim;
    }
    return json_size(sections) == 3 && sum == m->head_dim / 2
               ? CT_OK
               : error_set(error, CT_EFORMAT,
                           "%s: mrope_section must have three numbers that add up to half of the "
                           "dimension of a head (%" PRId64 ")",
                           c->path, m->head_dim);
}

static ct_status read_rope(qwen25vl *m, const config *c, ct_error *error)
{
    double *theta = &m->theta;
    *theta = 1000000;
    const json_value *theta_value = json_get(c->root, "rope_theta");
    const json_value *scaling = json_get(c->root, "rope_parameters");
    if (!scaling || json_get_kind(scaling) == JSON_KIND_NULL)
        scaling = json_get(c->root, "rope_scaling");
    if (json_get(scaling, "rope_theta"))
        theta_value = json_get(scaling, "rope_theta");
    if (theta_value && (!json_get_number(theta_value, theta) || !(*theta > 0)))
        return error_set(error, CT_EFORMAT, "%s: rope_theta must be a number above 0", c->path);
    const char *type = json_get_string(json_get(scaling, "rope_type"), NULL);
    if (!type)
        type = json_get_string(json_get(scaling, "type"), NULL);
    if (type && strcmp(type, "default") != 0 && strcmp(type, "mrope") != 0)
        return error_set(error, CT_EUNSUPPORTED, "%s: rope type \"%s\" is not supported", c->path,
                         type);
    return read_sections(m, c, scaling, error);
}

static ct_status read_config(qwen25vl *m, const config *whole, ct_error *error)
{
    int64_t heads = 0, kv_heads = 0, layers = 0;
    bool window = false;
    const char *activation = NULL;
    /* transformers 4 writes the members of the language model on top, 5 into text_config. */
    config text = *whole;
    const config *c = &text;
    if (config_has(whole, "text_config"))
        text.root = (json_value *)json_get(whole->root, "text_config");
    ct_status s = config_integer(c, "hidden_size", 1, 1 << 20, true, 0, &m->hidden, error);
    if (s == CT_OK)
        s = config_integer(c, "intermediate_size", 1, 1 << 22, true, 0, &m->intermediate, error);
    if (s == CT_OK)
        s = config_integer(c, "vocab_size", 1, 1 << 24, true, 0, &m->vocab, error);
    if (s == CT_OK)
        s = config_integer(c, "num_hidden_layers", 1, 1000, true, 0, &layers, error);
    if (s == CT_OK)
        s = config_integer(c, "num_attention_heads", 1, 4096, true, 0, &heads, error);
    if (s == CT_OK)
        s = config_integer(c, "num_key_value_heads", 1, 4096, false, heads, &kv_heads, error);
    if (s == CT_OK)
        s = config_integer(c, "max_position_embeddings", 1, INT32_MAX, false, 32768,
                           &m->max_positions, error);
    if (s == CT_OK)
        s = config_number(c, "rms_norm_eps", 0, 1, false, 1e-6, &m->eps, error);
    if (s == CT_OK)
        s = config_boolean(c, "use_sliding_window", false, &window, error);
    if (s == CT_OK)
        s = config_string(c, "hidden_act", false, &activation, error);
    if (s == CT_OK)
        s = config_integer(whole, "image_token_id", 0, INT32_MAX, false, 151655, &m->image_token,
                           error);
    if (s != CT_OK)
        return s;
    if (heads % kv_heads != 0 || m->hidden % heads != 0 || m->hidden / heads % 2 != 0)
        return error_set(error, CT_EFORMAT,
                         "%s: num_attention_heads (%d) must be a multiple of num_key_value_heads "
                         "(%d), and hidden_size (%" PRId64 ") an even multiple of it",
                         c->path, (int)heads, (int)kv_heads, m->hidden);
    if (window || (activation && strcmp(activation, "silu") != 0))
        return error_set(error, CT_EUNSUPPORTED,
                         "%s: use_sliding_window and a hidden_act other than \"silu\" are not "
                         "supported",
                         c->path);
    m->heads = (int)heads;
    m->kv_heads = (int)kv_heads;
    m->layers = (int)layers;
    m->head_dim = m->hidden / heads;
    return read_rope(m, c, error);
}

static ct_status bind_weights(qwen25vl *m, const load_options *options, ct_error *error)
{
    binder b = {.source = m->weights, .options = options, .error = error};
    const int64_t d = m->hidden, f = m->intermediate, kv = m->kv_heads * m->head_dim;
    const char *p = find_prefix(m->weights);
    m->embed = bind2(&b, m->vocab, d, "%sembed_tokens.weight", p);
    m->norm = bind1(&b, d, "%snorm.weight", p);
    for (int i = 0; i < m->layers; i++) {
        qwen25vl_layer *l = &m->layer[i];
        l->input_norm = bind1(&b, d, "%slayers.%d.input_layernorm.weight", p, i);
        l->q = bind2(&b, d, d, "%slayers.%d.self_attn.q_proj.weight", p, i);
        l->q_bias = bind1(&b, d, "%slayers.%d.self_attn.q_proj.bias", p, i);
        l->k = bind2(&b, kv, d, "%slayers.%d.self_attn.k_proj.weight", p, i);
        l->k_bias = bind1(&b, kv, "%slayers.%d.self_attn.k_proj.bias", p, i);
        l->v = bind2(&b, kv, d, "%slayers.%d.self_attn.v_proj.weight", p, i);
        l->v_bias = bind1(&b, kv, "%slayers.%d.self_attn.v_proj.bias", p, i);
        l->o = bind2(&b, d, d, "%slayers.%d.self_attn.o_proj.weight", p, i);
        l->post_norm = bind1(&b, d, "%slayers.%d.post_attention_layernorm.weight", p, i);
        l->gate = bind2(&b, f, d, "%slayers.%d.mlp.gate_proj.weight", p, i);
        l->up = bind2(&b, f, d, "%slayers.%d.mlp.up_proj.weight", p, i);
        l->down = bind2(&b, d, f, "%slayers.%d.mlp.down_proj.weight", p, i);
    }
    return b.status;
}

ct_status qwen25vl_load(qwen25vl **out, const load_options *options, const char *directory,
                        ct_error *error)
{
    static const component_format format = {"model", "Qwen2_5_VL", infer};
    const ct_allocator *a = options->allocator;
    *out = NULL;
    qwen25vl *m = mem_zero_array(a, 1, sizeof *m);
    if (!m)
        return error_memory(error, sizeof *m, "the text encoder");
    m->allocator = a;
    config c;
    ct_status status = component_open(&c, &m->weights, &format, options, directory, error);
    if (status == CT_OK) {
        status = read_config(m, &c, error);
        config_close(&c);
    }
    if (status == CT_OK) {
        m->layer = mem_zero_array(a, (size_t)m->layers, sizeof *m->layer);
        status = m->layer ? bind_weights(m, options, error)
                          : error_memory(error, sizeof *m->layer, "the text encoder");
    }
    if (status != CT_OK) {
        qwen25vl_free(m);
        return status;
    }
    *out = m;
    return CT_OK;
}

void qwen25vl_free(qwen25vl *m)
{
    if (!m)
        return;
    weights_close(m->weights);
    mem_free(m->allocator, m->layer);
    mem_free(m->allocator, m);
}

void qwen25vl_describe(const qwen25vl *m, strbuf *out)
{
    strbuf_printf(out,
                  "%d layers, hidden %" PRId64 ", %d heads, %d key heads, head dim %" PRId64
                  ", vocabulary %" PRId64,
                  m->layers, m->hidden, m->heads, m->kv_heads, m->head_dim, m->vocab);
}

/* ---- Forward --------------------------------------------------------------------------------- */

/* The next token's positions. Words count on from the largest before them; the cells of a picture
 * all begin there, and count their rows and columns. */
typedef struct place {
    const qwen25vl *m;
    const qwen25vl_picture *pictures;
    int picture_count, picture; /* the next one */
    int64_t cell;               /* of it */
    int64_t next;               /* position */
} place;

static void next_place(place *p, int32_t id, int64_t position[3])
{
    position[0] = position[1] = position[2] = p->next;
    if (id != p->m->image_token || p->picture >= p->picture_count) {
        p->next++;
        return;
    }
    const qwen25vl_picture *picture = &p->pictures[p->picture];
    position[1] += p->cell / picture->columns;
    position[2] += p->cell % picture->columns;
    if (++p->cell < picture->rows * picture->columns)
        return;
    p->next += picture->rows > picture->columns ? picture->rows : picture->columns;
    p->cell = 0;
    p->picture++;
}

/* cos and sin of position * theta^(-2k/D), [S, D/2]; angles in float32 as the reference has
 * them. */
static void rope_table(nn *c, const qwen25vl *m, place p, const int32_t *ids, int64_t count,
                       nn_tensor *cosine, nn_tensor *sine)
{
    const int64_t half = m->head_dim / 2;
    *cosine = nn_new2(c, count, half);
    *sine = nn_new2(c, count, half);
    float *cosines = nn_begin_write(c, cosine), *sines = nn_begin_write(c, sine);
    for (int64_t s = 0; cosines && sines && s < count; s++) {
        int64_t position[3];
        next_place(&p, ids[s], position);
        for (int64_t k = 0; k < half; k++) {
            const int axis = k < m->sections[0] ? 0 : k < m->sections[0] + m->sections[1] ? 1 : 2;
            float frequency = 1.0f / powf((float)m->theta, (float)(2 * k) / (float)m->head_dim);
            float angle = (float)position[axis] * frequency;
            *cosines++ = cosf(angle);
            *sines++ = sinf(angle);
        }
    }
    nn_end_write(c, cosine);
    nn_end_write(c, sine);
}

/* Features of pictures instead of the embeddings of the tokens that stand for them. */
static void place_pictures(nn *c, const qwen25vl *m, const nn_tensor *x, const int32_t *ids,
                           int64_t count, const qwen25vl_picture *pictures, int picture_count)
{
    int64_t at = 0;
    for (int i = 0; i < picture_count; i++) {
        const int64_t cells = pictures[i].rows * pictures[i].columns;
        while (at < count && ids[at] != m->image_token)
            at++;
        if (at + cells > count)
            return; /* a plan, whose words are assumed */
        nn_tensor rows = nn_rows(x, at, cells);
        nn_upload(c, &rows, pictures[i].features, cells * m->hidden);
        at += cells;
    }
}

static void attention(nn *c, const qwen25vl *m, const qwen25vl_layer *l, const nn_tensor *x,
                      const nn_tensor *cosine, const nn_tensor *sine)
{
    size_t mark = nn_mark(c);
    const int64_t s = x->n[0], width = m->hidden, kv_width = m->kv_heads * m->head_dim;
    nn_tensor h = nn_new_operand(c, s, m->hidden);
    nn_tensor qkv = nn_new_work2(c, s, width + 2 * kv_width), a = nn_new_work2(c, s, width);
    nn_tensor q = nn_columns(&qkv, 0, width), k = nn_columns(&qkv, width, kv_width);
    nn_tensor v = nn_columns(&qkv, width + kv_width, kv_width);
    nn_rms_norm(c, &h, x, &l->input_norm, m->eps, NULL);
    nn_linears(c, &qkv, &h, (const nn_weight *const[]){&l->q, &l->k, &l->v},
               (const nn_weight *const[]){&l->q_bias, &l->k_bias, &l->v_bias}, 3);
    nn_head_norm_rope(c, &q, m->heads, NULL, m->eps, cosine, sine, NN_ROPE_HALVES);
    nn_head_norm_rope(c, &k, m->kv_heads, NULL, m->eps, cosine, sine, NN_ROPE_HALVES);
    nn_attention(c, &a, &q, &k, &v, m->heads, m->kv_heads, true);
    nn_linear(c, x, &a, &l->o, &(nn_epilogue){.add = true});
    nn_release(c, mark);
}

static void feed_forward(nn *c, const qwen25vl *m, const qwen25vl_layer *l, const nn_tensor *x)
{
    size_t mark = nn_mark(c);
    nn_tensor h = nn_new_operand(c, x->n[0], m->hidden);
    nn_tensor hidden = nn_new_work2(c, x->n[0], m->intermediate);
    nn_rms_norm(c, &h, x, &l->post_norm, m->eps, NULL);
    nn_linear(c, &hidden, &h, &l->gate, &(nn_epilogue){.activation = NN_SILU, .up = &l->up});
    nn_linear(c, x, &hidden, &l->down, &(nn_epilogue){.add = true});
    nn_release(c, mark);
}

nn_tensor qwen25vl_forward(nn *c, const qwen25vl *m, const int32_t *ids, int64_t count,
                           int64_t dropped, const qwen25vl_picture *pictures, int picture_count,
                           void (*layer_done)(void *, int), void *user)
{
    nn_tensor features = nn_new2(c, count - dropped, m->hidden);
    size_t mark = nn_mark(c);
    nn_tensor x = nn_new2(c, count, m->hidden), cosine, sine;
    const place first = {.m = m, .pictures = pictures, .picture_count = picture_count};
    rope_table(c, m, first, ids, count, &cosine, &sine);
    nn_trace_tensor(c, &cosine, "text_encoder.rope.cos");
    nn_trace_tensor(c, &sine, "text_encoder.rope.sin");
    nn_embed(c, &x, &m->embed, ids, count);
    place_pictures(c, m, &x, ids, count, pictures, picture_count);
    nn_trace_tensor(c, &x, "text_encoder.embed_tokens");
    for (int i = 0; i < m->layers && !nn_stopped(c); i++) {
        nn_block(c);
        attention(c, m, &m->layer[i], &x, &cosine, &sine);
        feed_forward(c, m, &m->layer[i], &x);
        nn_trace_tensor(c, &x, "text_encoder.layers.%d", i);
        if (layer_done)
            layer_done(user, i);
    }
    nn_tensor kept = nn_rows(&x, dropped, count - dropped);
    nn_rms_norm(c, &features, &kept, &m->norm, m->eps, NULL);
    nn_release(c, mark);
    return features;
}
