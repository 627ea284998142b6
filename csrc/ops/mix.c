/* mix.c -- mix skills for every group (kernels/mix.h); threads share out the rows of the factor. */
#ifndef DT
#define PM_SELF "../ops/mix.c"
#include "dtypes.h"
#else

struct FN(mix) {
    ptrdiff_t G, Q, S, R, D;
    const real *weights, *bank, *dout;
    real scale;
    real *out, *dweights_parts, *dbank;
};

static void FN(mix_fwd_item)(void *ctx, ptrdiff_t r)
{
    const struct FN(mix) *c = ctx;
    K->mix_fwd(c->G, c->Q, c->S, c->R, c->D, r, c->weights, c->bank, c->scale, c->out, c->R * c->D);
}

void FN(pm_mix_fwd)(ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, ptrdiff_t R, ptrdiff_t D, const real *weights,
                    const real *bank, real scale, real *out)
{
    struct FN(mix) c = {
        .G = G, .Q = Q, .S = S, .R = R, .D = D, .weights = weights, .bank = bank, .scale = scale, .out = out
    };
    pm_parallel(R, 2.0 * G * S * R * D, FN(mix_fwd_item), &c);
}

static void FN(mix_bwd_item)(void *ctx, ptrdiff_t r)
{
    const struct FN(mix) *c = ctx;
    const ptrdiff_t ldout = c->R * c->D;
    K->mix_bwd_bank(c->G, c->Q, c->S, c->R, c->D, r, c->weights, c->dout, ldout, c->scale, c->dbank);
    K->mix_bwd_weights(c->G, c->Q, c->S, c->R, c->D, r, c->bank, c->dout, ldout, c->scale,
                       c->dweights_parts + r * c->G * c->Q * c->S);
}

int FN(pm_mix_bwd)(ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, ptrdiff_t R, ptrdiff_t D, const real *dout,
                   const real *weights, const real *bank, real scale, real *dweights, real *dbank)
{
    const ptrdiff_t n = G * Q * S;
    struct FN(mix) c = { .G = G,
                         .Q = Q,
                         .S = S,
                         .R = R,
                         .D = D,
                         .weights = weights,
                         .bank = bank,
                         .dout = dout,
                         .scale = scale,
                         .dweights_parts = pm_block_get(sizeof(real) * R * n),
                         .dbank = dbank };
    if (!c.dweights_parts) return -1;
    pm_parallel(R, 4.0 * G * S * R * D, FN(mix_bwd_item), &c);
    memset(dweights, 0, sizeof(real) * n);
    K->add_rows(R, n, c.dweights_parts, n, dweights);
    pm_block_put(c.dweights_parts);
    return 0;
}
#endif
