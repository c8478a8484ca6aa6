/* One picture from a prompt: minimal MODEL PROMPT OUT.png */
#include <calotype/calotype.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: %s MODEL PROMPT OUT.png\n", argv[0]);
        return 2;
    }
    ct_context *context = NULL;
    ct_model *model = NULL;
    ct_image *image = NULL;
    ct_error error;
    ct_generate_params params;
    ct_generate_params_init(&params);
    params.prompt = argv[2];
    params.seed = 42;

    ct_status status = ct_context_create(NULL, &context, &error);
    if (status == CT_OK)
        status = ct_model_load(context, argv[1], &model, &error);
    if (status == CT_OK)
        status = ct_generate(model, &params, &image, &error);
    if (status == CT_OK)
        status = ct_image_save(image, argv[3], &error);
    if (status == CT_OK)
        printf("%s: %d x %d\n", argv[3], ct_image_width(image), ct_image_height(image));
    else
        fprintf(stderr, "%s\n", error.message);
    ct_image_free(&image);
    ct_model_free(&model);
    ct_context_free(&context);
    return status == CT_OK ? 0 : 1;
}
