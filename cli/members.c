#include "cli/members.h"
#include "core/mem.h"

#include <inttypes.h>

#define LINE_MAXIMUM ((size_t)64 << 20)

void member_string(json_writer *w, const char *key, const char *value)
{
    json_write_key(w, key);
    json_write_string(w, value);
}

void member_integer(json_writer *w, const char *key, int64_t value)
{
    json_write_key(w, key);
    json_write_integer(w, value);
}

void member_unsigned(json_writer *w, const char *key, uint64_t value)
{
    json_write_key(w, key);
    json_write_unsigned(w, value);
}

void member_seed(json_writer *w, const char *key, uint64_t seed)
{
    if (seed <= (uint64_t)1 << 53) {
        member_unsigned(w, key, seed);
        return;
    }
    char digits[32];
    snprintf(digits, sizeof digits, "%" PRIu64, seed);
    member_string(w, key, digits);
}

void member_number(json_writer *w, const char *key, double value)
{
    json_write_key(w, key);
    json_write_number(w, value);
}

void member_boolean(json_writer *w, const char *key, bool value)
{
    json_write_key(w, key);
    json_write_boolean(w, value);
}

void members_open(json_writer *w, strbuf *s)
{
    strbuf_init(s, &mem_default, LINE_MAXIMUM);
    json_write_init(w, s);
    json_write_object(w);
}

void members_close(FILE *out, json_writer *w, strbuf *s)
{
    json_write_object_end(w);
    strbuf_puts(s, "\n");
    if (strbuf_ok(s))
        fwrite(s->data, 1, s->length, out);
    else
        fputs("{\"event\":\"error\",\"code\":-2,\"name\":\"out of memory\",\"message\":"
              "\"out of memory while a line was written\"}\n",
              out);
    fflush(out);
    strbuf_free(s);
}

void member_raw(json_writer *w, const char *key, const char *json)
{
    json_write_key(w, key);
    if (!json || !*json) {
        json_write_null(w);
        return;
    }
    strbuf_puts(w->out, json);
    w->comma = true; /* as the writer does behind a value of its own */
}

static void write_lora(json_writer *w, const ct_lora_info *l)
{
    json_write_object(w);
    member_string(w, "path", l->path);
    member_string(w, "hash", l->hash);
    member_number(w, "scale", l->scale);
    json_write_key(w, "ranks");
    json_write_array(w);
    json_write_integer(w, l->least_rank);
    json_write_integer(w, l->most_rank);
    json_write_array_end(w);
    member_unsigned(w, "modules", l->modules);
    member_unsigned(w, "matched", l->matched);
    member_unsigned(w, "ignored", l->ignored);
    json_write_key(w, "unmatched");
    json_write_array(w);
    for (size_t i = 0; i < l->unmatched; i++)
        json_write_string(w, l->unmatched_name[i]);
    json_write_array_end(w);
    json_write_object_end(w);
}

void member_loras(json_writer *w, const ct_model_info *model)
{
    json_write_key(w, "loras");
    json_write_array(w);
    for (int i = 0; i < model->loras; i++)
        write_lora(w, &model->lora[i]);
    json_write_array_end(w);
}
