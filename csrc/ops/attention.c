/* attention.c -- attention over packed sequences (attention.h, kernels/attention.h); an item is one head of keys of one example,
 * with the H / Hkv heads of queries that share it: it owns its part of every output, so nothing is summed across threads. */
#ifndef DT
#define PM_SELF "../ops/attention.c"
#include "attention.h"
#include <stdatomic.h>
#include "dtypes.h"
#else

struct FN(attention) {
    const struct pm_attention *a;
    const real *dout, *out_saved, *lse_saved; /* backward */
    real *out, *lse, *dq, *dk, *dv;
    atomic_int failed; /* memory ran out in some item */
};

static void FN(attention_item)(void *ctx, ptrdiff_t item)
{
    struct FN(attention) *c = ctx;
    const struct pm_attention *a = c->a;
    const ptrdiff_t b = item / a->Hkv, h = item % a->Hkv, n0 = a->cu_seqlens[b], k0 = a->cu_seqlens_k[b];
    const ptrdiff_t L = a->cu_seqlens[b + 1] - n0, room = a->cu_seqlens_k[b + 1] - k0;
    const ptrdiff_t Lk = a->key_lengths ? a->key_lengths[b] : room;
    const ptrdiff_t M = a->H / a->Hkv, d = a->d, W = a->W, ld = a->H * d, ldkv = a->Hkv * d;
    const ptrdiff_t at = n0 * ld + h * M * d, kv = k0 * ldkv + h * d, row = h * M * a->N + n0;
    const real *q = (const real *)a->q + at, *k = (const real *)a->k + kv, *v = (const real *)a->v + kv,
               *bias = a->position_bias;
    if (bias) bias += h * M * (2 * W + 1);
    for (ptrdiff_t j = L ? Lk : 0; c->dout && j < room; j++) { /* keys that no query looks at */
        memset(c->dk + kv + j * ldkv, 0, (size_t)d * sizeof(real));
        memset(c->dv + kv + j * ldkv, 0, (size_t)d * sizeof(real));
    }
    ptrdiff_t values;
    if (L == 0) return;
    K->attention_scratch(Lk, d, c->dout != NULL, &values);
    real *scratch = pm_block_get((size_t)values * sizeof(real));
    if (!scratch) {
        atomic_store(&c->failed, 1);
        return;
    }
    if (c->dout)
        K->attention_bwd(L, Lk, d, M, W, ld, ldkv, a->N, q, k, v, bias, c->out_saved + at, c->lse_saved + row,
                         c->dout + at, (real)a->scale, a->causal, scratch, c->dq + at, c->dk + kv,
                         c->dv + kv);
    else
        K->attention_fwd(L, Lk, d, M, W, ld, ldkv, a->N, q, k, v, bias, (real)a->scale, a->causal, scratch,
                         c->out + at, c->lse + row);
    pm_block_put(scratch);
}

/* -1 when memory is out. */
static int FN(attention_run)(struct FN(attention) * c)
{
    const struct pm_attention *a = c->a;
    double work = 0; /* flops of the forward products; backward has five in the place of two */
    for (ptrdiff_t b = 0; b < a->B; b++)
        work += 4 * (double)(a->cu_seqlens[b + 1] - a->cu_seqlens[b]) *
                (double)(a->cu_seqlens_k[b + 1] - a->cu_seqlens_k[b]) * (double)(a->H * a->d);
    pm_parallel(a->B * a->Hkv, (c->dout ? 2.5 : 1) * work, FN(attention_item), c);
    return -atomic_load(&c->failed);
}

int FN(pm_attention_fwd)(const struct pm_attention *a, real *out, real *lse)
{
    struct FN(attention) c = { .a = a, .out = out, .lse = lse };
    return FN(attention_run)(&c);
}

int FN(pm_attention_bwd)(const struct pm_attention *a, const real *dout, const real *out, const real *lse,
                         real *dq, real *dk, real *dv)
{
    struct FN(attention)
        c = { .a = a, .dout = dout, .out_saved = out, .lse_saved = lse, .dq = dq, .dk = dk, .dv = dv };
    return FN(attention_run)(&c);
}
#endif
