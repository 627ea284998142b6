/* mix.c -- mix skills for every group (kernels/mix.h), threads split groups, and in backward rows of the bank. */
#ifndef DT
#define PM_SELF "../ops/mix.c"
#include "dtypes.h"
#else

struct FN(mix) {
    ptrdiff_t G, Q, S, R, D;
    const real *weights, *bank, *dout;
    real scale;
    real *out, *dweights, *dbank;
};

static void FN(mix_fwd_item)(void *ctx, ptrdiff_t g)
{
    const struct FN(mix) *c = ctx;
    K->mix_fwd(c->Q, c->S, c->R, c->D, c->weights + g * c->Q * c->S, c->bank, c->scale, c->out + g * c->R * c->D);
}

void FN(pm_mix_fwd)(ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, ptrdiff_t R, ptrdiff_t D, const real *weights, const real *bank, real scale,
                    real *out)
{
    struct FN(mix) c = { .G = G, .Q = Q, .S = S, .R = R, .D = D, .weights = weights, .bank = bank, .scale = scale, .out = out };
    pm_parallel(G, 2.0 * G * S * R * D, FN(mix_fwd_item), &c);
}

static void FN(mix_bwd_weights_item)(void *ctx, ptrdiff_t g)
{
    const struct FN(mix) *c = ctx;
    K->mix_bwd_weights(c->Q, c->S, c->R, c->D, c->dout + g * c->R * c->D, c->bank, c->scale, 0, c->dweights + g * c->Q * c->S);
}

static void FN(mix_bwd_bank_item)(void *ctx, ptrdiff_t r)
{
    const struct FN(mix) *c = ctx;
    K->mix_bwd_bank(c->G, c->Q, c->S, c->R, c->D, r, c->dout, c->R * c->D, c->weights, c->scale, c->dbank);
}

void FN(pm_mix_bwd)(ptrdiff_t G, ptrdiff_t Q, ptrdiff_t S, ptrdiff_t R, ptrdiff_t D, const real *dout, const real *weights,
                    const real *bank, real scale, real *dweights, real *dbank)
{
    struct FN(mix) c = { .G = G, .Q = Q, .S = S, .R = R, .D = D, .weights = weights, .bank = bank, .dout = dout, .scale = scale,
                         .dweights = dweights, .dbank = dbank };
    pm_parallel(G, 2.0 * G * S * R * D, FN(mix_bwd_weights_item), &c);
    pm_parallel(R, 2.0 * G * S * R * D, FN(mix_bwd_bank_item), &c);
}
#endif
