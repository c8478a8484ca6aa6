/* ct_image: pixels and the recipe that made them. */
#include "core/file.h"
#include "core/mem.h"
#include "io/json.h"
#include "io/picture.h"
#include "pipeline/internal.h"

#include <string.h>

#define KEY_JSON "calotype"
#define KEY_TEXT "parameters"

ct_status image_create(ct_image **out, ct_context *context, int width, int height, ct_error *error)
{
    *out = NULL;
    const ct_allocator *a = &context->allocator;
    size_t bytes = (size_t)width * (size_t)height * 3;
    ct_image *image = mem_zero_array(a, 1, sizeof *image);
    uint8_t *pixels = mem_alloc(a, bytes);
    if (!image || !pixels) {
        mem_free(a, image);
        mem_free(a, pixels);
        return error_memory(error, bytes, "the picture");
    }
    image->allocator = *a;
    image->threads = context->threads;
    image->width = width;
    image->height = height;
    image->pixels = pixels;
    *out = image;
    return CT_OK;
}

void ct_image_free(ct_image **image)
{
    if (!image || !*image)
        return;
    ct_allocator a = (*image)->allocator;
    mem_free(&a, (*image)->pixels);
    mem_free(&a, (*image)->recipe_json);
    mem_free(&a, (*image)->recipe_text);
    mem_free(&a, (*image)->path);
    mem_free(&a, *image);
    *image = NULL;
}

int ct_image_width(const ct_image *image)
{
    return image->width;
}

int ct_image_height(const ct_image *image)
{
    return image->height;
}

const uint8_t *ct_image_pixels(const ct_image *image)
{
    return image->pixels;
}

uint64_t ct_image_seed(const ct_image *image)
{
    return image->seed;
}

const char *ct_image_recipe_json(const ct_image *image)
{
    return image->recipe_json ? image->recipe_json : "";
}

const char *ct_image_recipe_text(const ct_image *image)
{
    return image->recipe_text ? image->recipe_text : "";
}

ct_status ct_image_save(const ct_image *image, const char *path, ct_error *error)
{
    if (!image || !path)
        return error_set(error, CT_EINVAL, "ct_image_save: image or path is NULL");
    const png_note texts[] = {{KEY_TEXT, image->recipe_text}, {KEY_JSON, image->recipe_json}};
    int count = image->recipe_json && image->recipe_text ? 2 : 0;
    return png_write(&image->allocator, image->threads, path, image->pixels, image->width,
                     image->height, texts, count, error);
}

/* Whether text is what ct_image_recipe_json promises: one line, an object. Any program can have
 * written the file. */
static bool is_recipe(const char *text)
{
    json_value *root = NULL;
    if (!text || strpbrk(text, "\r\n") ||
        json_parse(&root, text, strlen(text), "the recipe", NULL) != CT_OK)
        return false;
    bool object = json_get_kind(root) == JSON_KIND_OBJECT;
    json_free(root);
    return object;
}

ct_status ct_image_load(ct_context *context, const char *path, ct_image **out, ct_error *error)
{
    if (!context || !path || !out)
        return error_set(error, CT_EINVAL, "ct_image_load: an argument is NULL");
    *out = NULL;
    const ct_allocator *a = &context->allocator;
    file_map map;
    ct_status status = file_map_open(&map, path, error);
    if (status != CT_OK)
        return status;
    static const char *const keys[] = {KEY_JSON, KEY_TEXT};
    char *found[2] = {NULL, NULL};
    uint8_t *pixels = NULL;
    int width = 0, height = 0;
    status = picture_read_memory(a, map.data, map.size, path, &pixels, &width, &height, keys, 2,
                                 found, error);
    file_map_close(&map);
    if (status != CT_OK)
        return status;
    if (!is_recipe(found[0])) {
        mem_free(a, found[0]);
        found[0] = NULL;
    }
    ct_image *image = mem_zero_array(a, 1, sizeof *image);
    char *name = mem_strdup(a, path);
    if (!image || !name) {
        mem_free(a, image);
        mem_free(a, name);
        mem_free(a, pixels);
        mem_free(a, found[0]);
        mem_free(a, found[1]);
        return error_memory(error, sizeof *image, "the picture");
    }
    *image = (ct_image){*a, context->threads, width, height, pixels, 0, found[0], found[1], name};
    *out = image;
    return CT_OK;
}

ct_status ct_image_from_pixels(ct_context *context, int width, int height, const uint8_t *pixels,
                               ct_image **out, ct_error *error)
{
    if (!context || !pixels || !out)
        return error_set(error, CT_EINVAL, "ct_image_from_pixels: an argument is NULL");
    *out = NULL;
    if (width < 1 || height < 1)
        return error_set(error, CT_EINVAL, "a picture of %d x %d pixels is not possible", width,
                         height);
    ct_status status = picture_check_sides("the picture", (uint64_t)width, (uint64_t)height, error);
    if (status == CT_OK)
        status = image_create(out, context, width, height, error);
    if (status == CT_OK)
        memcpy((*out)->pixels, pixels, 3 * (size_t)width * (size_t)height);
    return status;
}
