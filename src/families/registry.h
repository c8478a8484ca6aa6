/* The families that this program knows. */
#ifndef FAMILIES_REGISTRY_H
#define FAMILIES_REGISTRY_H

#include "families/family.h"

/* By the class of the pipeline in model_index.json; source says where the name is from. Sets family
 * and pipeline of a model. */
ct_status registry_find(family_model *out, const char *pipeline, const char *source,
                        ct_error *error);
/* By the tensors of a transformer and a text encoder, which may be NULL. */
ct_status registry_recognize(family_model *out, const weights *w, const weights *text_encoder,
                             ct_error *error);

#endif
