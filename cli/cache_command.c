/* calotype cache: what is kept from run to run, and how to be rid of it. */
#include "cli/cache.h"
#include "cli/commands.h"
#include "app/format.h"
#include "cli/members.h"

#include <string.h>

static void print_json(const char *folder, bool clears, const ct_cache_kind *kinds)
{
    strbuf s;
    json_writer w;
    members_open(&w, &s);
    member_string(&w, "folder", folder);
    member_boolean(&w, "cleared", clears);
    json_write_key(&w, "kinds");
    json_write_array(&w);
    for (int i = 0; i < CT_CACHE_KINDS; i++) {
        json_write_object(&w);
        member_string(&w, "kind", kinds[i].name);
        member_integer(&w, "files", kinds[i].files);
        member_unsigned(&w, "bytes", kinds[i].bytes);
        json_write_object_end(&w);
    }
    json_write_array_end(&w);
    members_close(stdout, &w, &s);
}

static void print_human(const terminal *t, const char *folder, bool clears,
                        const ct_cache_kind *kinds)
{
    char bytes[FORMAT_SIZE];
    uint64_t all = 0;
    int files = 0;
    for (int i = 0; i < CT_CACHE_KINDS; i++) {
        all += kinds[i].bytes;
        files += kinds[i].files;
    }
    terminal_clean(t, folder, false, 0);
    fprintf(t->stream, ": %s%s in %d file%s\n", clears ? "deleted " : "", format_bytes(bytes, all),
            files, files == 1 ? "" : "s");
    for (int i = 0; i < CT_CACHE_KINDS; i++)
        if (kinds[i].files)
            fprintf(t->stream, "  %-9s %9s  %6d  %s\n", kinds[i].name,
                    format_bytes(bytes, kinds[i].bytes), kinds[i].files, kinds[i].summary);
}

int cache_run(const options *o, report *r)
{
    ct_error error;
    char buffer[4096];
    ct_cache_kind kinds[CT_CACHE_KINDS];
    const char *folder = cache_from_options(buffer, sizeof buffer, o);
    const bool clears = o->arguments > 0;
    ct_status status = CT_OK;
    if (clears && strcmp(o->argument[0], "clear") != 0)
        status =
            error_set(&error, CT_EINVAL, "\"calotype cache\" can do \"clear\", but not \"%.60s\"",
                      o->argument[0]);
    else if (!folder || !*folder)
        status = error_set(&error, CT_EINVAL,
                           "there is no cache: CALOTYPE_CACHE is empty, or HOME is not set; give "
                           "--cache DIR");
    else
        status =
            clears ? ct_cache_clear(folder, kinds, &error) : ct_cache_usage(folder, kinds, &error);
    if (status != CT_OK)
        return report_error(r, &error);
    if (r->mode == REPORT_JSON)
        print_json(folder, clears, kinds);
    else
        print_human(&r->out, folder, clears, kinds);
    return EXIT_OK;
}
