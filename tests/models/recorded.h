/* Runs that the reference recorded (tests/fixtures, tools/reference/make_fixtures.py), made again
 * by the library on any device and held to them. */
#ifndef RECORDED_H
#define RECORDED_H

#include "test_support.h"

#include "io/weights.h"

/* The file of a run, "turbo/small". */
weights *recorded_open(const char *run);
/* What the run was asked for, in float32. Points into w. */
ct_generate_params recorded_params(const weights *w);
/* The model of the run. */
ct_model *recorded_model(ct_context *context, const char *run);
/* The picture, with the run's references. The status is for the caller to look at. */
ct_status recorded_generate(ct_model *model, const char *run, const ct_generate_params *params,
                            ct_image **out, ct_error *error);

/* The picture of these parameters; fails the test where there is none. */
ct_image *picture_of(ct_model *model, const ct_generate_params *p);
/* Fails the test unless a job is refused like this; part: of the message. */
void expect_refusal(ct_model *model, const ct_generate_params *p, ct_status status,
                    const char *part);
/* Whether two pictures, which must be of one size, have the same pixels. */
bool same_pixels(const ct_image *a, const ct_image *b);

/* Relative L2 of x; NaN where x has one. */
double recorded_difference(const float *x, const float *truth, size_t n);

/* How far a run is from its record. */
typedef struct recorded_errors {
    double modules, outputs;     /* relative L2, the largest of all tensors: of modules; of noise,
                              * sigmas, what each step estimates, latents and the picture */
    int pixels;                  /* the largest difference of a byte of the picture */
    int compared;                /* tensors */
    char module[64], output[64]; /* where the errors are */
} recorded_errors;

/* Fails the test where a tensor is missing or has another size, or where integers differ. params:
 * as recorded_params, perhaps of another precision; its trace is set here. */
recorded_errors recorded_compare(ct_model *model, const char *run,
                                 const ct_generate_params *params);

#endif
