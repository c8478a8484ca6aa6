#include "pipeline/reference.h"

#include "core/mem.h"
#include "io/resample.h"
#include "pipeline/cache.h"
#include "pipeline/job.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_SIDE 16384

/* ---- Checks ---------------------------------------------------------------------------------- */

static ct_status check_count(const ct_model *m, const ct_generate_params *p, ct_error *error)
{
    const int most = m->parts.family->max_references;
    if (p->reference_count == 0 && m->parts.family->needs_reference)
        return error_set(error, CT_EINVAL,
                         "%s %s makes pictures from others; give it a reference picture",
                         m->info.family, m->info.variant);
    if (p->reference_count == 0)
        return p->keep_size ? error_set(error, CT_EINVAL, "keep_size needs a reference picture")
                            : CT_OK;
    if (most == 0)
        return error_set(error, CT_EUNSUPPORTED,
                         "%s makes pictures from text alone; leave out the reference pictures",
                         m->info.family);
    if (p->reference_count < 0 || p->reference_count > most || !p->references)
        return error_set(error, CT_EINVAL, "there are %d reference pictures; %s %s takes %s%d",
                         p->reference_count, m->info.family, m->info.variant,
                         most > 1 ? "1 to " : "only ", most);
    if (p->keep_size && (p->width || p->height))
        return error_set(error, CT_EINVAL,
                         "keep_size takes the size of the first reference picture; leave out width "
                         "and height");
    return CT_OK;
}

static ct_status check_sides(const ct_model *m, int number, const ct_image *image, ct_error *error)
{
    const family *f = m->parts.family;
    const int width = image->width, height = image->height;
    const int longer = width > height ? width : height, shorter = width < height ? width : height;
    char what[320] = "";
    if (image->path)
        snprintf(what, sizeof what, " (%.300s)", image->path);
    if (longer > MAX_SIDE)
        return error_set(error, CT_EINVAL,
                         "reference %d%s has %d x %d pixels; a side may have at most %d", number,
                         what, width, height, MAX_SIDE);
    if (shorter < f->min_reference_side)
        return error_set(
            error, CT_EINVAL,
            "reference %d%s has %d x %d pixels, which is too small: both sides must have "
            "at least %d",
            number, what, width, height, f->min_reference_side);
    if ((double)longer / shorter > f->max_reference_aspect)
        return error_set(
            error, CT_EINVAL,
            "reference %d%s has %d x %d pixels; one side may be at most %d times as long "
            "as the other: cut off some of it",
            number, what, width, height, f->max_reference_aspect);
    return CT_OK;
}

/* ---- Sizes ----------------------------------------------------------------------------------- */

/* Part of a picture that begins at left, top. Where it ends outside, the last pixels go on. */
static ct_status take_part(const ct_allocator *a, reference *r, const uint8_t *rgb, int width,
                           int height, int left, int top, ct_error *error)
{
    const size_t bytes = (size_t)r->width * (size_t)r->height * 3;
    r->pixels = mem_alloc(a, bytes);
    if (!r->pixels)
        return error_memory(error, bytes, "a reference picture");
    for (int y = 0; y < r->height; y++) {
        const int row = top + y < height ? top + y : height - 1;
        for (int x = 0; x < r->width; x++) {
            const int column = left + x < width ? left + x : width - 1;
            memcpy(r->pixels + 3 * ((size_t)y * (size_t)r->width + (size_t)x),
                   rgb + 3 * ((size_t)row * (size_t)width + (size_t)column), 3);
        }
    }
    return CT_OK;
}

/* Sides of about this area in the shape of a picture, to the nearest multiples. */
static void rounded_sides(double area, int multiple, int width, int height, int *new_width,
                          int *new_height)
{
    const double ratio = (double)width / height, across = sqrt(area * ratio);
    *new_width = (int)rint(across / multiple) * multiple;
    *new_height = (int)rint(across / ratio / multiple) * multiple;
    if (*new_width < multiple)
        *new_width = multiple;
    if (*new_height < multiple)
        *new_height = multiple;
}

/* What the vision tower's own processor makes of a size: the nearest multiples, unless that is too
 * large or too small. */
static void seen_sides(const family_model *m, int width, int height, int *new_width,
                       int *new_height)
{
    const double multiple = m->see_multiple, pixels = (double)width * height;
    double w = rint(width / multiple) * multiple, h = rint(height / multiple) * multiple;
    if (w * h > (double)m->see_most) {
        const double beta = sqrt(pixels / (double)m->see_most);
        w = fmax(1, floor(width / beta / multiple)) * multiple;
        h = fmax(1, floor(height / beta / multiple)) * multiple;
    } else if (w * h < (double)m->see_least) {
        const double beta = sqrt((double)m->see_least / pixels);
        w = ceil(width * beta / multiple) * multiple;
        h = ceil(height * beta / multiple) * multiple;
    }
    *new_width = (int)w;
    *new_height = (int)h;
}

/* The picture that the text encoder is given: made of an area as the pipeline does, then of sides
 * that can be seen as the processor does. */
static ct_status show(ct_job *job, reference *r, const ct_image *image, ct_error *error)
{
    const family_model *m = &job->model->parts;
    int width, height;
    uint8_t *shown = NULL;
    rounded_sides(m->family->see_area, m->family->reference_multiple, image->width, image->height,
                  &width, &height);
    seen_sides(m, width, height, &r->seen_width, &r->seen_height);
    ct_status status = resample_lanczos(job->allocator, image->pixels, image->width, image->height,
                                        width, height, &shown, error);
    if (status == CT_OK)
        status = resample_bicubic(job->allocator, shown, width, height, r->seen_width,
                                  r->seen_height, &r->seen, error);
    mem_free(job->allocator, shown);
    return status;
}

/* As the reference does: larger pictures shrink to an area, keeping their shape; then the middle is
 * taken, so that the sides are multiples. To keep the size nothing is lost: a picture grows to the
 * right and below. */
static ct_status prepare(ct_job *job, reference *r, const ct_image *image, bool keep_size,
                         ct_error *error)
{
    const ct_model *m = job->model;
    const int multiple = m->info.size_multiple, area = m->parts.family->reference_area;
    const uint8_t *rgb = image->pixels;
    int width = image->width, height = image->height;
    if (keep_size) {
        r->width = (width + multiple - 1) / multiple * multiple;
        r->height = (height + multiple - 1) / multiple * multiple;
        return take_part(job->allocator, r, rgb, width, height, 0, 0, error);
    }
    const int rounded = m->parts.family->reference_multiple;
    if (rounded) {
        rounded_sides(area, rounded, width, height, &r->width, &r->height);
        return resample_lanczos(job->allocator, rgb, width, height, r->width, r->height, &r->pixels,
                                error);
    }
    uint8_t *small = NULL;
    if ((int64_t)width * height > area) {
        const double scale = sqrt((double)area / ((double)width * height));
        width = (int)(image->width * scale);
        height = (int)(image->height * scale);
        ct_status status = resample_lanczos(job->allocator, rgb, image->width, image->height, width,
                                            height, &small, error);
        if (status != CT_OK)
            return status;
        rgb = small;
    }
    r->width = width / multiple * multiple;
    r->height = height / multiple * multiple;
    ct_status status = take_part(job->allocator, r, rgb, width, height, (width - r->width) / 2,
                                 (height - r->height) / 2, error);
    mem_free(job->allocator, small);
    return status;
}

/* For the recipe. */
static ct_status take_identity(const ct_allocator *a, reference *r, const char *path,
                               ct_error *error)
{
    fingerprint f;
    fingerprint_begin(&f);
    fingerprint_add(&f, r->pixels, (size_t)r->width * (size_t)r->height * 3);
    fingerprint_hex(&f, r->hash);
    if (!path)
        return CT_OK;
    const char *slash = strrchr(path, '/');
    r->name = mem_strdup(a, slash ? slash + 1 : path);
    return r->name ? CT_OK : error_memory(error, strlen(path), "a path");
}

ct_status references_prepare(ct_job *job, const ct_generate_params *p, ct_error *error)
{
    ct_status status = check_count(job->model, p, error);
    for (int i = 0; status == CT_OK && i < p->reference_count; i++) {
        const ct_image *image = p->references[i];
        if (!image)
            return error_set(error, CT_EINVAL, "reference %d is NULL", i + 1);
        status = check_sides(job->model, i + 1, image, error);
        if (status == CT_OK)
            status = prepare(job, &job->reference[i], image, p->keep_size, error);
        if (status == CT_OK && job->model->parts.family->see_area)
            status = show(job, &job->reference[i], image, error);
        if (status == CT_OK)
            status = take_identity(job->allocator, &job->reference[i], image->path, error);
        job->references = i + 1;
    }
    if (status == CT_OK && p->keep_size) {
        job->keep_width = p->references[0]->width;
        job->keep_height = p->references[0]->height;
    }
    return status;
}

void references_free(ct_job *job)
{
    for (int i = 0; i < job->references; i++) {
        mem_free(job->allocator, job->reference[i].pixels);
        mem_free(job->allocator, job->reference[i].latents);
        mem_free(job->allocator, job->reference[i].seen);
        mem_free(job->allocator, job->reference[i].sight);
        mem_free(job->allocator, job->reference[i].name);
    }
    job->references = 0;
}

/* ---- Encoding -------------------------------------------------------------------------------- */

static size_t latent_count(const ct_job *job, const reference *r)
{
    const family_model *m = &job->model->parts;
    return (size_t)m->channels * (size_t)(r->width / m->factor) * (size_t)(r->height / m->factor);
}

int64_t reference_tokens(const ct_job *job, const reference *r)
{
    const int64_t multiple = job->model->parts.see_multiple;
    return r->seen ? r->seen_width / multiple * (r->seen_height / multiple) : 0;
}

static size_t sight_count(const ct_job *job, const reference *r)
{
    return (size_t)reference_tokens(job, r) * (size_t)job->model->parts.feature_width;
}

/* Numbers that encoding needs: a picture in float32, then twice its latents. */
static size_t encoding_count(const ct_job *job, const reference *r)
{
    return 3 * (size_t)r->width * (size_t)r->height + 2 * latent_count(job, r);
}

uint64_t references_kept_bytes(const ct_job *job, uint64_t most)
{
    uint64_t bytes = 0;
    for (int i = 0; i < job->references; i++) {
        const reference *r = &job->reference[i];
        const uint64_t latents = latent_count(job, r) * sizeof(float);
        const uint64_t sight = sight_count(job, r) * sizeof(float);
        bytes += (latents <= most ? latents : 0) + (sight <= most ? sight : 0);
    }
    return bytes;
}

uint64_t references_bytes(const ct_job *job)
{
    return references_kept_bytes(job, UINT64_MAX);
}

uint64_t references_encoding_bytes(const ct_job *job)
{
    uint64_t most = 0;
    for (int i = 0; i < job->references; i++) {
        const uint64_t bytes = encoding_count(job, &job->reference[i]) * sizeof(float);
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* Bytes to planes in -1..1, in the reference's order of operations. */
static void to_planes(float *planes, const reference *r)
{
    const size_t pixels = (size_t)r->width * (size_t)r->height;
    for (size_t i = 0; i < pixels; i++)
        for (size_t c = 0; c < 3; c++)
            planes[c * pixels + i] = 2.0f * ((float)r->pixels[3 * i + c] / 255.0f) - 1.0f;
}

/* Numbers that another job has computed; NULL where there are none. */
static float *recall(const ct_job *job, const blob_name *name, size_t count, const char *what)
{
    float *numbers = mem_array(job->allocator, count, sizeof *numbers);
    const char *place = numbers ? cache_load_floats(job, name, numbers, count) : NULL;
    if (!place) {
        mem_free(job->allocator, numbers);
        return NULL;
    }
    cache_keep_floats(job, name, numbers, count, place);
    log_message(&job->callbacks, CT_LOG_INFO, "cache: %s of a reference picture are in %s", what,
                place);
    return numbers;
}

static void encode(ct_job *job, nn *c, reference *r)
{
    const family_model *m = &job->model->parts;
    if (nn_is_dry(c)) {
        m->family->encode_picture(c, m, NULL, r->height, r->width, NULL, NULL);
        return;
    }
    float *latents = mem_array(job->allocator, latent_count(job, r), sizeof *latents);
    float *planes = mem_array(job->allocator, encoding_count(job, r), sizeof *planes);
    if (!latents || !planes) {
        nn_fail(c, CT_ENOMEM, "out of memory: %zu bytes for a reference picture",
                encoding_count(job, r) * sizeof *planes);
    } else {
        to_planes(planes, r);
        m->family->encode_picture(c, m, planes, r->height, r->width,
                                  planes + 3 * (size_t)r->width * (size_t)r->height, latents);
    }
    mem_free(job->allocator, planes);
    if (nn_stopped(c)) {
        mem_free(job->allocator, latents);
        return;
    }
    r->latents = latents;
    const blob_name name = cache_latents_name(job, r);
    cache_keep_floats(job, &name, latents, latent_count(job, r), NULL);
}

static void recall_latents(const ct_job *job, reference *r)
{
    const blob_name name = cache_latents_name(job, r);
    r->latents = recall(job, &name, latent_count(job, r), "latents");
}

void references_encode(ct_job *job, nn *c, void (*unit_done)(void *user, int unit), void *user)
{
    const family_model *m = &job->model->parts;
    for (int i = 0; i < job->references && !nn_stopped(c); i++) {
        reference *r = &job->reference[i];
        if (!r->latents) {
            if (!nn_is_dry(c))
                recall_latents(job, r);
            if (!r->latents) {
                job_begin_section(job, c, SECTION_REFERENCES);
                encode(job, c, r);
            }
            unit_done(user, i);
        }
        if (!r->latents)
            continue;
        char name[48];
        const int64_t shape[] = {m->channels, r->height / m->factor, r->width / m->factor};
        snprintf(name, sizeof name, "reference.%d.latents", i);
        trace_floats(&job->trace, name, 3, shape, r->latents);
    }
}

/* ---- Seeing ---------------------------------------------------------------------------------- */

static void see(ct_job *job, nn *c, reference *r)
{
    const family_model *m = &job->model->parts;
    float *sight = NULL;
    if (!nn_is_dry(c)) {
        sight = mem_array(job->allocator, sight_count(job, r), sizeof *sight);
        if (!sight) {
            nn_fail(c, CT_ENOMEM,
                    "out of memory: %zu bytes for what is seen of a reference picture",
                    sight_count(job, r) * sizeof *sight);
            return;
        }
    }
    m->family->see(c, m, r->seen, r->seen_height, r->seen_width, sight);
    if (nn_stopped(c) || !sight) {
        mem_free(job->allocator, sight);
        return;
    }
    r->sight = sight;
    const blob_name name = cache_sight_name(job, r);
    cache_keep_floats(job, &name, sight, sight_count(job, r), NULL);
}

static void recall_sight(const ct_job *job, reference *r)
{
    const blob_name name = cache_sight_name(job, r);
    r->sight = recall(job, &name, sight_count(job, r), "features");
}

void references_see(ct_job *job, nn *c, void (*unit_done)(void *user, int unit), void *user)
{
    for (int i = 0; i < job->references && !nn_stopped(c); i++) {
        reference *r = &job->reference[i];
        if (!r->seen || r->sight)
            continue;
        if (!nn_is_dry(c))
            recall_sight(job, r);
        if (!r->sight) {
            job_begin_section(job, c, SECTION_SEE);
            job->trace.active = i == 0;
            see(job, c, r);
            job->trace.active = false;
        }
        unit_done(user, i);
    }
}

void references_sights(const ct_job *job, family_sight sights[MAX_REFERENCES])
{
    const int multiple = job->model->parts.see_multiple;
    for (int i = 0; i < job->references; i++) {
        const reference *r = &job->reference[i];
        sights[i] = (family_sight){.features = r->sight};
        if (r->seen) {
            sights[i].rows = r->seen_height / multiple;
            sights[i].columns = r->seen_width / multiple;
        }
    }
}
