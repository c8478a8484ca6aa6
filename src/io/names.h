/* The names of tensors in the layouts that models are published in.
 *
 * The rest of the code knows one name for each tensor, that of the diffusers and transformers
 * libraries ("HF"). Other layouts rename parts of it; names.c has a table for each. */
#ifndef IO_NAMES_H
#define IO_NAMES_H

#include "io/weights.h"

typedef enum name_layout {
    NAMES_HF,
    NAMES_MFLUX,       /* as mflux saves Z-Image */
    NAMES_MFLUX_FLUX2, /* as mflux saves FLUX.2-klein */
    NAMES_MFLUX_QWEN,  /* as mflux saves Qwen-Image */
    NAMES_MLX_Z_IMAGE, /* MLX-z-image, the 4-bit Z-Image checkpoints with groups of 32 */
    NAMES_COUNT
} name_layout;

#define NAMES_LENGTH 256 /* of a name, with the zero byte */

/* What layout calls the tensor that HF calls name. Longer names than fit are cut short. */
void names_spell(char out[NAMES_LENGTH], name_layout layout, const char *name);

/* The tensor of this HF name, under whatever name it has; NULL when there is none. */
const weight_view *names_find(const weights *w, const char *name);

/* Whether the tensors of a component have their HF names. */
bool names_are_hf(const weights *w);

/* How many of the numbered parts stem.0., stem.1., ... have a tensor of this HF name behind the
 * number: names_parts(w, "layers", "attention_norm1.weight"). */
int names_parts(const weights *w, const char *stem, const char *name);

/* Whether convolutions are stored as [out, height, width, in] instead of [out, in, height, width]:
 * so in mflux's layouts, which are told by their names or by the shape of a convolution that has
 * more than 3 inputs. */
bool names_channels_last(const weights *w);

#endif
