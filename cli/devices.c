/* calotype devices: what there is to compute on. */
#include "cli/cache.h"
#include "cli/commands.h"
#include "app/format.h"
#include "cli/members.h"

static void device_json(json_writer *w, const ct_device_info *d)
{
    json_write_object(w);
    member_string(w, "id", d->id);
    member_string(w, "name", d->name);
    member_string(w, "summary", *d->summary ? d->summary : NULL);
    if (d->memory_bytes)
        member_unsigned(w, "memory_bytes", d->memory_bytes);
    else
        member_raw(w, "memory_bytes", "");
    member_boolean(w, "usable", !d->problem);
    member_string(w, "problem", d->problem);
    member_string(w, "note", d->note);
    json_write_object_end(w);
}

static void list_json(const ct_device_list *list)
{
    strbuf s;
    json_writer w;
    members_open(&w, &s);
    json_write_key(&w, "devices");
    json_write_array(&w);
    for (int i = 0; i < list->count; i++)
        device_json(&w, &list->device[i]);
    json_write_array_end(&w);
    members_close(stdout, &w, &s);
}

/* A text in a colour below the name of a device. */
static void remark(const terminal *t, terminal_style style, const char *before, const char *text)
{
    fprintf(t->stream, "%8s%s%s", "", terminal_escape(t, style), before);
    terminal_clean(t, text, false, 0);
    fprintf(t->stream, "%s\n", terminal_escape(t, STYLE_PLAIN));
}

static void print_device(const terminal *t, const ct_device_info *d)
{
    fprintf(t->stream, "%s%-7s%s ", terminal_escape(t, STYLE_BOLD), d->id,
            terminal_escape(t, STYLE_PLAIN));
    terminal_clean(t, d->name, false, 0);
    if (d->memory_bytes) {
        char bytes[FORMAT_SIZE];
        fprintf(t->stream, ", %s", format_bytes(bytes, d->memory_bytes));
    }
    fputs("\n", t->stream);
    if (*d->summary)
        remark(t, STYLE_DIM, "", d->summary);
    if (d->problem)
        remark(t, STYLE_RED, "cannot be used: ", d->problem);
    if (d->note)
        remark(t, STYLE_YELLOW, "", d->note);
}

int devices_run(const options *o, report *r)
{
    ct_error error;
    ct_context *context = NULL;
    ct_device_list *list = NULL;
    char cache[4096];
    ct_context_params params;
    ct_context_params_init(&params);
    params.device = "cpu";
    params.threads = (int)o->value[OPTION_THREADS].integer;
    params.cpu = o->value[OPTION_CPU].text;
    params.callbacks = report_callbacks(r);
    params.cache = cache_folder(cache, sizeof cache);
    ct_status status = ct_context_create(&params, &context, &error);
    if (status == CT_OK)
        status = ct_devices(context, &list, &error);
    if (status == CT_OK && r->mode == REPORT_JSON)
        list_json(list);
    for (int i = 0; status == CT_OK && r->mode != REPORT_JSON && i < list->count; i++)
        print_device(&r->out, &list->device[i]);
    ct_devices_free(&list);
    ct_context_free(&context);
    return status == CT_OK ? EXIT_OK : report_error(r, &error);
}
