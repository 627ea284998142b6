/* attention.h -- attention over packed sequences: what a binding hands to ops/attention.c.
 *
 * The rows of example b are cu_seqlens[b] .. of q and cu_seqlens_k[b] .. of k and v, of which key_lengths[b] hold keys (all where
 * NULL): the rest is room for later tokens. position_bias [H, 2 W + 1] or NULL. */
#ifndef PM_ATTENTION_H
#define PM_ATTENTION_H
#include "ops.h"

struct pm_attention {
    ptrdiff_t B, N, Nk, H, Hkv, d, W; /* N, Nk: rows of q, and of k and v */
    const int64_t *cu_seqlens, *cu_seqlens_k, *key_lengths; /* [B+1] [B+1] [B] or NULL */
    const void *q, *k, *v, *position_bias; /* [N,H*d] [Nk,Hkv*d] */
    double scale;
    int causal;
};

/* lse [H,N]: the log-sum-exp of the scores. Both return -1 when memory is out. */
#define PM_DECLARE_ATTENTION(real, DT)                                                         \
    int pm_attention_fwd_##DT(const struct pm_attention *a, real *out, real *lse);             \
    int pm_attention_bwd_##DT(const struct pm_attention *a, const real *dout, const real *out, \
                              const real *lse, real *dq, real *dk, real *dv);
PM_DECLARE_ATTENTION(float, f32)
PM_DECLARE_ATTENTION(double, f64)
#endif
