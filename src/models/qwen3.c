/* Qwen3 (https://arxiv.org/abs/2505.09388). Reads like the paper: embed, then for each layer
 * attention with normalised queries and keys, then a gated feed-forward network. */
#include "models/qwen3.h"

#include "core/mem.h"
#include "io/names.h"

#include <inttypes.h>
#include <math.h>

/* What the shapes of the tensors tell, and what is the same in all published models. */
static void infer(const weights *w, json_writer *out)
{
    const int64_t head = tensor_size(w, "model.layers.0.self_attn.q_norm.weight", 0);
    const int64_t q = tensor_size(w, "model.layers.0.self_attn.q_proj.weight", 0);
    const int64_t k = tensor_size(w, "model.layers.0.self_attn.k_proj.weight", 0);
    infer_integer(out, "hidden_size", tensor_size(w, "model.layers.0.input_layernorm.weight", 0));
    infer_integer(out, "intermediate_size",
                  tensor_size(w, "model.layers.0.mlp.gate_proj.weight", 0));
    infer_integer(out, "vocab_size", tensor_size(w, "model.embed_tokens.weight", 0));
    infer_integer(out, "num_hidden_layers",
                  names_parts(w, "model.layers", "input_layernorm.weight"));
    infer_integer(out, "num_attention_heads", head > 0 ? q / head : 0);
    infer_integer(out, "num_key_value_heads", head > 0 ? k / head : 0);
    infer_integer(out, "head_dim", head);
    infer_integer(out, "max_position_embeddings", 40960);
    infer_integer(out, "rope_theta", 1000000);
}

/* transformers before 5 has rope_theta on top, from 5 on it is inside rope_parameters. */
static ct_status read_rope(const config *c, double *theta, ct_error *error)
{
    *theta = 10000;
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
    if (type && strcmp(type, "default") != 0)
        return error_set(error, CT_EUNSUPPORTED, "%s: rope type \"%s\" is not supported", c->path,
                         type);
    return CT_OK;
}

static ct_status read_config(qwen3 *m, const config *c, ct_error *error)
{
    int64_t heads = 0, kv_heads = 0, layers = 0;
    bool bias = false, window = false;
    const char *activation = NULL;
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
        s = config_integer(c, "head_dim", 2, 4096, false, 128, &m->head_dim, error);
    if (s == CT_OK)
        s = config_integer(c, "max_position_embeddings", 1, INT32_MAX, false, 32768,
                           &m->max_positions, error);
    if (s == CT_OK)
        s = config_number(c, "rms_norm_eps", 0, 1, false, 1e-6, &m->eps, error);
    if (s == CT_OK)
        s = config_boolean(c, "attention_bias", false, &bias, error);
    if (s == CT_OK)
        s = config_boolean(c, "use_sliding_window", false, &window, error);
    if (s == CT_OK)
        s = config_string(c, "hidden_act", false, &activation, error);
    if (s == CT_OK)
        s = read_rope(c, &m->theta, error);
    if (s != CT_OK)
        return s;
    if (heads % kv_heads != 0)
        return error_set(error, CT_EFORMAT,
                         "%s: num_attention_heads (%d) is not a multiple of num_key_value_heads "
                         "(%d)",
                         c->path, (int)heads, (int)kv_heads);
    if (m->head_dim % 2 != 0)
        return error_set(error, CT_EFORMAT, "%s: head_dim (%d) must be even", c->path,
                         (int)m->head_dim);
    if (bias || window || (activation && strcmp(activation, "silu") != 0))
        return error_set(error, CT_EUNSUPPORTED,
                         "%s: attention_bias, use_sliding_window and a hidden_act other than "
                         "\"silu\" are not supported",
                         c->path);
    m->heads = (int)heads;
    m->kv_heads = (int)kv_heads;
    m->layers = (int)layers;
    return CT_OK;
}

static ct_status bind_weights(qwen3 *m, const load_options *options, ct_error *error)
{
    binder b = {.source = m->weights, .options = options, .error = error};
    const int64_t d = m->hidden, f = m->intermediate;
    const int64_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    m->embed = bind2(&b, m->vocab, d, "model.embed_tokens.weight");
    for (int i = 0; i < m->used_layers; i++) {
        qwen3_layer *l = &m->layer[i];
        l->input_norm = bind1(&b, d, "model.layers.%d.input_layernorm.weight", i);
        l->q = bind2(&b, q, d, "model.layers.%d.self_attn.q_proj.weight", i);
        l->k = bind2(&b, kv, d, "model.layers.%d.self_attn.k_proj.weight", i);
        l->v = bind2(&b, kv, d, "model.layers.%d.self_attn.v_proj.weight", i);
        l->q_norm = bind1(&b, m->head_dim, "model.layers.%d.self_attn.q_norm.weight", i);
        l->k_norm = bind1(&b, m->head_dim, "model.layers.%d.self_attn.k_norm.weight", i);
        l->o = bind2(&b, d, q, "model.layers.%d.self_attn.o_proj.weight", i);
        l->post_norm = bind1(&b, d, "model.layers.%d.post_attention_layernorm.weight", i);
        l->gate = bind2(&b, f, d, "model.layers.%d.mlp.gate_proj.weight", i);
        l->up = bind2(&b, f, d, "model.layers.%d.mlp.up_proj.weight", i);
        l->down = bind2(&b, d, f, "model.layers.%d.mlp.down_proj.weight", i);
    }
    return b.status;
}

/* Counts taps from the beginning, and the layers that they need. */
static ct_status place_taps(qwen3 *m, const qwen3_taps *taps, const char *directory,
                            ct_error *error)
{
    m->taps = *taps;
    for (int i = 0; i < taps->count; i++) {
        int *layer = &m->taps.layer[i];
        if (*layer < 0)
            *layer = m->layers + *layer > 0 ? m->layers + *layer : 0;
        if (*layer >= m->layers)
            return error_set(error, CT_EFORMAT,
                             "%s: num_hidden_layers is %d, but features are taken behind layer %d",
                             directory, m->layers, *layer);
        m->used_layers = *layer;
    }
    return CT_OK;
}

ct_status qwen3_load(qwen3 **out, const load_options *options, const char *directory,
                     const qwen3_taps *taps, ct_error *error)
{
    static const component_format format = {"model", "Qwen3", infer};
    const ct_allocator *a = options->allocator;
    *out = NULL;
    qwen3 *m = mem_zero_array(a, 1, sizeof *m);
    if (!m)
        return error_memory(error, sizeof *m, "the text encoder");
    m->allocator = a;
    config c;
    ct_status status = component_open(&c, &m->weights, &format, options, directory, error);
    if (status == CT_OK) {
        status = read_config(m, &c, error);
        config_close(&c);
    }
    if (status == CT_OK)
        status = place_taps(m, taps, directory, error);
    if (status == CT_OK) {
        m->layer = mem_zero_array(a, (size_t)m->used_layers, sizeof *m->layer);
        status = m->layer ? bind_weights(m, options, error)
                          : error_memory(error, sizeof *m->layer, "the text encoder");
    }
    if (status != CT_OK) {
        qwen3_free(m);
        return status;
    }
    *out = m;
    return CT_OK;
}

void qwen3_free(qwen3 *m)
{
    if (!m)
        return;
    weights_close(m->weights);
    mem_free(m->allocator, m->layer);
    mem_free(m->allocator, m);
}

void qwen3_describe(const qwen3 *m, strbuf *out)
{
    strbuf_printf(out,
                  "%d layers (%d used), hidden %" PRId64 ", %d heads, %d key heads, head dim "
                  "%" PRId64 ", vocabulary %" PRId64,
                  m->layers, m->used_layers, m->hidden, m->heads, m->kv_heads, m->head_dim,
                  m->vocab);
}

/* cos and sin of position * theta^(-2k/D), [S, D/2]; angles in float32 as the reference has
 * them. */
static void rope_table(nn *c, const qwen3 *m, int64_t count, nn_tensor *cosine, nn_tensor *sine)
{
    int64_t half = m->head_dim / 2;
    *cosine = nn_new2(c, count, half);
    *sine = nn_new2(c, count, half);
    float *cosines = nn_begin_write(c, cosine), *sines = nn_begin_write(c, sine);
    for (int64_t k = 0; cosines && sines && k < half; k++) {
        float frequency = 1.0f / powf((float)m->theta, (float)(2 * k) / (float)m->head_dim);
        for (int64_t s = 0; s < count; s++) {
            float angle = (float)s * frequency;
            cosines[s * half + k] = cosf(angle);
            sines[s * half + k] = sinf(angle);
        }
    }
    nn_end_write(c, cosine);
    nn_end_write(c, sine);
}

/* Words see the words before them and themselves, padding sees all words. */
static void attend(nn *c, const qwen3 *m, const nn_tensor *out, const nn_tensor *q,
                   const nn_tensor *k, const nn_tensor *v, int64_t words)
{
    const int64_t padding = q->n[0] - words;
    nn_tensor keys = nn_rows(k, 0, words), values = nn_rows(v, 0, words);
    nn_tensor first = nn_rows(q, 0, words), result = nn_rows(out, 0, words);
    nn_attention(c, &result, &first, &keys, &values, m->heads, m->kv_heads, true);
    if (padding == 0)
        return;
    nn_tensor rest = nn_rows(q, words, padding);
    result = nn_rows(out, words, padding);
    nn_attention(c, &result, &rest, &keys, &values, m->heads, m->kv_heads, false);
}

static void attention(nn *c, const qwen3 *m, const qwen3_layer *l, const nn_tensor *x,
                      int64_t words, const nn_tensor *cosine, const nn_tensor *sine)
{
    size_t mark = nn_mark(c);
    int64_t s = x->n[0];
    nn_tensor h = nn_new_operand(c, s, m->hidden);
    const int64_t width = m->heads * m->head_dim, kv_width = m->kv_heads * m->head_dim;
    nn_tensor qkv = nn_new_work2(c, s, width + 2 * kv_width), a = nn_new_work2(c, s, width);
    nn_tensor q = nn_columns(&qkv, 0, width), k = nn_columns(&qkv, width, kv_width);
    nn_tensor v = nn_columns(&qkv, width + kv_width, kv_width);
    nn_rms_norm(c, &h, x, &l->input_norm, m->eps, NULL);
    nn_linears(c, &qkv, &h, (const nn_weight *const[]){&l->q, &l->k, &l->v}, NULL, 3);
    nn_head_norm_rope(c, &q, m->heads, &l->q_norm, m->eps, cosine, sine, NN_ROPE_HALVES);
    nn_head_norm_rope(c, &k, m->kv_heads, &l->k_norm, m->eps, cosine, sine, NN_ROPE_HALVES);
    attend(c, m, &a, &q, &k, &v, words);
    nn_linear(c, x, &a, &l->o, &(nn_epilogue){.add = true});
    nn_release(c, mark);
}

static void feed_forward(nn *c, const qwen3 *m, const qwen3_layer *l, const nn_tensor *x)
{
    size_t mark = nn_mark(c);
    nn_tensor h = nn_new_operand(c, x->n[0], m->hidden);
    nn_tensor hidden = nn_new_input(c, x->n[0], &l->down);
    nn_rms_norm(c, &h, x, &l->post_norm, m->eps, NULL);
    nn_linear(c, &hidden, &h, &l->gate, &(nn_epilogue){.activation = NN_SILU, .up = &l->up});
    nn_linear(c, x, &hidden, &l->down, &(nn_epilogue){.add = true});
    nn_release(c, mark);
}

int64_t qwen3_width(const qwen3 *m)
{
    return m->taps.count * m->hidden;
}

/* The stream behind so many layers goes into the features, unless it is them. */
static void tap(nn *c, const qwen3 *m, const nn_tensor *features, const nn_tensor *x, int layers)
{
    for (int i = 0; i < m->taps.count && m->taps.count > 1; i++) {
        if (m->taps.layer[i] != layers)
            continue;
        nn_tensor part = nn_columns(features, i * m->hidden, m->hidden);
        nn_copy(c, &part, x);
    }
}

nn_tensor qwen3_forward(nn *c, const qwen3 *m, const int32_t *ids, int64_t count, int64_t words,
                        void (*layer_done)(void *, int), void *user)
{
    nn_tensor features = nn_new2(c, count, qwen3_width(m));
    size_t mark = nn_mark(c);
    nn_tensor x = m->taps.count > 1 ? nn_new2(c, count, m->hidden) : features;
    nn_tensor cosine, sine;
    rope_table(c, m, count, &cosine, &sine);
    nn_trace_tensor(c, &cosine, "text_encoder.rope.cos");
    nn_trace_tensor(c, &sine, "text_encoder.rope.sin");
    nn_embed(c, &x, &m->embed, ids, count);
    nn_trace_tensor(c, &x, "text_encoder.embed_tokens");
    const int64_t key[] = {NN_PLACE_ENCODE, count, words};
    const bool run = nn_repeat_begin(c, key, 3);
    for (int i = 0; i < m->used_layers && !nn_stopped(c); i++) {
        if (run) {
            nn_block(c);
            attention(c, m, &m->layer[i], &x, words, &cosine, &sine);
            feed_forward(c, m, &m->layer[i], &x);
            nn_trace_tensor(c, &x, "text_encoder.layers.%d", i);
            tap(c, m, &features, &x, i + 1);
        }
        if (layer_done)
            layer_done(user, i);
    }
    if (run)
        nn_repeat_end(c);
    nn_release(c, mark);
    return features;
}
