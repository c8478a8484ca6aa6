/* FlowMatchEulerDiscreteScheduler: the noise levels of a run, and the Euler step. */
#ifndef SAMPLING_FLOW_MATCH_H
#define SAMPLING_FLOW_MATCH_H

#include "core/error.h"
#include "io/json.h"

typedef struct flow_match {
    double train_timesteps, shift, base_shift, max_shift, base_length, max_length, shift_terminal;
    bool dynamic, linear_shift;
    double
        power; /* of a dynamic shift: e^mu, where mu is not what the other members say; 0: it is */
} flow_match;

/* A fixed shift and the defaults of diffusers for everything else. */
void flow_match_init(flow_match *f, double shift);
/* Reads scheduler_config.json. Refuses what it cannot do (Karras, exponential, beta, inverted and
 * stochastic schedules), naming the key. */
ct_status flow_match_read(flow_match *f, const ct_allocator *a, const char *directory,
                          ct_error *error);

/* e^mu of a dynamic shift for so many image tokens; mu where it is linear. */
double flow_match_power(const flow_match *f, double length);
/* sigmas [steps + 1] from 1 down to the final 0, in float32 as diffusers computes them from the
 * explicit ladder linspace(1, 1/steps, steps). length: image tokens, for dynamic shifting. */
void flow_match_sigmas(const flow_match *f, int steps, double length, float *sigmas);

#endif
