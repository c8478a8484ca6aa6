#include "families/registry.h"

#include "io/names.h"

#include <stdio.h>
#include <string.h>

extern const family family_flux2_klein, family_qwen_edit, family_qwen_edit_plus, family_qwen_image,
    family_zimage;

/* What needs more evidence stands before what needs less. */
static const family *const families[] = {&family_zimage, &family_flux2_klein,
                                         &family_qwen_edit_plus, &family_qwen_image,
                                         &family_qwen_edit};
enum { FAMILIES = sizeof families / sizeof *families };

/* Pipelines of diffusers that this version cannot run but knows, and a tensor that tells them. */
static const struct {
    const char *pipeline, *evidence;
} planned[] = {
    {"Flux2Pipeline", NULL},
    {"QwenImageLayeredPipeline", NULL},
};
enum { PLANNED = sizeof planned / sizeof *planned };

/* "ZImagePipeline and Flux2KleinPipeline" */
static void list_supported(char *out, size_t size)
{
    size_t at = 0;
    for (int i = 0; i < FAMILIES; i++)
        for (const char *const *name = families[i]->pipelines; *name && at < size; name++) {
            const bool last = i + 1 == FAMILIES && !name[1];
            const int n = snprintf(out + at, size - at, "%s%s",
                                   at == 0 ? ""
                                   : last  ? " and "
                                           : ", ",
                                   *name);
            at += n > 0 ? (size_t)n : 0;
        }
}

ct_status registry_find(family_model *out, const char *pipeline, const char *source,
                        ct_error *error)
{
    for (int i = 0; i < FAMILIES; i++)
        for (const char *const *name = families[i]->pipelines; *name; name++)
            if (!strcmp(pipeline, *name)) {
                out->family = families[i];
                out->pipeline = *name;
                return CT_OK;
            }
    const char *why = "is unknown";
    for (int i = 0; i < PLANNED; i++)
        if (!strcmp(pipeline, planned[i].pipeline))
            why = "is not supported yet";
    char names[256];
    list_supported(names, sizeof names);
    return error_set(error, CT_EUNSUPPORTED, "%s: the pipeline %s %s; this version runs %s", source,
                     pipeline, why, names);
}

static bool proven(const family *f, const weights *w, const weights *text_encoder)
{
    if (f->sight_evidence && !(text_encoder && weights_find(text_encoder, f->sight_evidence)))
        return false;
    for (const char *const *name = f->evidence; *name; name++)
        if (names_find(w, *name))
            return true;
    return false;
}

ct_status registry_recognize(family_model *out, const weights *w, const weights *text_encoder,
                             ct_error *error)
{
    for (int i = 0; i < FAMILIES; i++)
        if (proven(families[i], w, text_encoder)) {
            out->family = families[i];
            out->pipeline = families[i]->pipelines[0];
            return CT_OK;
        }
    for (int i = 0; i < PLANNED; i++)
        if (planned[i].evidence && names_find(w, planned[i].evidence))
            return registry_find(out, planned[i].pipeline, weights_source(w), error);
    return error_set(error, CT_EUNSUPPORTED,
                     "%s: there is no model_index.json, and the names of the tensors belong to no "
                     "model that is known",
                     weights_source(w));
}
