/* attention.c -- attention over packed sequences (kernels/attention.h); an item is one head of keys of one
 * example, with the H / Hkv heads of queries that share it: it owns its part of every output, so nothing is summed across threads.
 * The rows of example b are cu_seqlens[b] .. of q and cu_seqlens_k[b] .. of k and v, of which key_lengths[b] hold keys (all where
 * NULL): the rest is room for later tokens. position_bias [H, 2 W + 1] or NULL. */
#ifndef DT
#define PM_SELF "../ops/attention.c"
#include <stdatomic.h>
#include "dtypes.h"
#else

struct FN(attention) {
    ptrdiff_t N, H, Hkv, d, W;
    const int64_t *cu_seqlens, *cu_seqlens_k, *key_lengths;
    const real *q, *k, *v, *position_bias, *dout, *out_saved, *lse_saved;
    real scale, *out, *lse, *dq, *dk, *dv;
    int causal;
    atomic_int failed;    /* memory ran out in some item */
};

static void FN(attention_item)(void *ctx, ptrdiff_t item)
{
    struct FN(attention) *c = ctx;
    const ptrdiff_t b = item / c->Hkv, h = item % c->Hkv, n0 = c->cu_seqlens[b], k0 = c->cu_seqlens_k[b];
    const ptrdiff_t L = c->cu_seqlens[b + 1] - n0, room = c->cu_seqlens_k[b + 1] - k0;
    const ptrdiff_t Lk = c->key_lengths ? c->key_lengths[b] : room;
    const ptrdiff_t M = c->H / c->Hkv, ld = c->H * c->d, ldkv = c->Hkv * c->d;
    const ptrdiff_t at = n0 * ld + h * M * c->d, kv = k0 * ldkv + h * c->d, row = h * M * c->N + n0;
    for (ptrdiff_t j = L ? Lk : 0; c->dout && j < room; j++) { /* keys that no query looks at */
        memset(c->dk + kv + j * ldkv, 0, (size_t)c->d * sizeof(real));
        memset(c->dv + kv + j * ldkv, 0, (size_t)c->d * sizeof(real));
    }
    const real *bias = c->position_bias ? c->position_bias + h * M * (2 * c->W + 1) : NULL;
    ptrdiff_t values;
    if (L == 0) return;
    K->attention_scratch(Lk, c->d, c->dout != NULL, &values);
    real *scratch = pm_block_get((size_t)values * sizeof(real));
    if (!scratch) {
        atomic_store(&c->failed, 1);
        return;
    }
    if (c->dout)
        K->attention_bwd(L, Lk, c->d, M, c->W, ld, ldkv, c->N, c->q + at, c->k + kv, c->v + kv, bias,
                         c->out_saved + at, c->lse_saved + row, c->dout + at, c->scale, c->causal, scratch,
                         c->dq + at, c->dk + kv, c->dv + kv);
    else
        K->attention_fwd(L, Lk, c->d, M, c->W, ld, ldkv, c->N, c->q + at, c->k + kv, c->v + kv, bias,
                         c->scale, c->causal, scratch, c->out + at, c->lse + row);
    pm_block_put(scratch);
}

/* flops of the forward products */
static double FN(attention_work)(ptrdiff_t B, const int64_t *cu_seqlens, const int64_t *cu_seqlens_k,
                                 ptrdiff_t D)
{
    double work = 0;
    for (ptrdiff_t b = 0; b < B; b++)
        work += 4 * (double)(cu_seqlens[b + 1] - cu_seqlens[b]) *
                (double)(cu_seqlens_k[b + 1] - cu_seqlens_k[b]) * (double)D;
    return work;
}

/* Both return -1 when memory is out. */
int FN(pm_attention_fwd)(ptrdiff_t B, ptrdiff_t N, ptrdiff_t H, ptrdiff_t Hkv, ptrdiff_t d, ptrdiff_t W,
                         const int64_t *cu_seqlens, const int64_t *cu_seqlens_k, const int64_t *key_lengths,
                         const real *q, const real *k, const real *v, const real *position_bias, double scale,
                         int causal, real *out, real *lse)
{
    struct FN(attention) c = { .N = N,
                               .H = H,
                               .Hkv = Hkv,
                               .d = d,
                               .W = W,
                               .cu_seqlens = cu_seqlens,
                               .cu_seqlens_k = cu_seqlens_k,
                               .key_lengths = key_lengths,
                               .q = q,
                               .k = k,
                               .v = v,
                               .position_bias = position_bias,
                               .scale = (real)scale,
                               .causal = causal,
                               .out = out,
                               .lse = lse };
    pm_parallel(B * Hkv, FN(attention_work)(B, cu_seqlens, cu_seqlens_k, H * d), FN(attention_item), &c);
    return -atomic_load(&c.failed);
}

int FN(pm_attention_bwd)(ptrdiff_t B, ptrdiff_t N, ptrdiff_t H, ptrdiff_t Hkv, ptrdiff_t d, ptrdiff_t W,
                         const int64_t *cu_seqlens, const int64_t *cu_seqlens_k, const int64_t *key_lengths,
                         const real *dout, const real *q, const real *k, const real *v,
                         const real *position_bias, const real *out, const real *lse, double scale,
                         int causal, real *dq, real *dk, real *dv)
{
    struct FN(attention) c = { .N = N,
                               .H = H,
                               .Hkv = Hkv,
                               .d = d,
                               .W = W,
                               .cu_seqlens = cu_seqlens,
                               .cu_seqlens_k = cu_seqlens_k,
                               .key_lengths = key_lengths,
                               .q = q,
                               .k = k,
                               .v = v,
                               .position_bias = position_bias,
                               .scale = (real)scale,
                               .causal = causal,
                               .out_saved = out,
                               .lse_saved = lse,
                               .dout = dout,
                               .dq = dq,
                               .dk = dk,
                               .dv = dv };
    pm_parallel(B * Hkv, 2.5 * FN(attention_work)(B, cu_seqlens, cu_seqlens_k, H * d), FN(attention_item),
                &c);
    return -atomic_load(&c.failed);
}
#endif
