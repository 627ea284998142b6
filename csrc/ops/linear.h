/* linear.h -- linear layers with a low-rank term: what a binding hands to ops/linear.c. */
#ifndef PM_LINEAR_H
#define PM_LINEAR_H
#include "ops.h"

/* A frozen weight, packed by pm_pack (bf16: by pm_pack_bf16). panels NULL: none, the low-rank term is alone. */
struct pm_weight {
    const void *panels;
    int bf16;
};

/* What a linear layer reads instead of x: activation(x) times, formed as rows are staged. times NULL: 1. */
struct pm_reading {
    enum pm_activation activation;
    const void *times; /* [N,D] */
};

/* How S experts (lora_A[s], lora_B[s]) make the term. "Side by side": their ranks are the columns of one wide h = x A^T. */
enum pm_form {
    PM_MIX, /* factors, weights [G,Q,S]: those of a group are mixed, then multiplied. Without weights pair g is expert g */
    PM_CONCAT, /* the same value with weights [G,1,S]: all experts side by side, weighted and summed on both sides of h */
    PM_OUTPUTS, /* sum_s weights[g,0,s] (x A_s^T) B_s: all experts side by side, h weighted once */
    PM_GATHER, /* the same with weights, ids [G,K]: side by side are the experts ids[g,:] of a group; no other is touched */
    PM_TOKENS, /* as PM_OUTPUTS with weights [N,S] of every token, or weights, ids [N,K]; A may be shared */
    PM_BUCKETS, /* the same with weights, ids [N,K], expert by expert: each takes the tokens that chose it, no other is touched */
};

struct pm_term {
    enum pm_form form;
    ptrdiff_t B, G, Q, S, S_A, k,
        R; /* S_A: of lora_A, 1 where it is shared, else S   k: choices, the extent K   R: of one expert, 0 for no term */
    const void *lora_A, *lora_B, *weights; /* [S_A,R,D] [S,R,O] */
    const void
        *panels; /* of lora_A, packed by pm_factor_pack, or NULL. Forward, PM_MIX, without weights, scale 1 */
    const int64_t *ids, *adapter_ids, *cu_seqlens;
    double scale;
};

/* Columns of the saved h: the ranks that lie side by side. */
static inline ptrdiff_t pm_ranks(const struct pm_term *t)
{
    switch (t->form) {
    case PM_MIX:
        return t->R;
    case PM_GATHER:
    case PM_BUCKETS:
        return t->R * t->k;
    case PM_TOKENS:
        return t->R * t->S_A;
    default:
        return t->R * t->S;
    }
}

/* One of the layers that read the same x [N,D]: y = x W^T + bias + the term. Backward reads dy, h, the transposed weight and the term, and
 * writes the gradients. */
struct pm_layer {
    ptrdiff_t O;
    struct pm_weight weight; /* [O,D], backward [D,O] */
    const void *bias; /* [O] or NULL */
    struct pm_term term;
    void *y, *h; /* [N,O]   [N, ranks side by side] or NULL */
    const void *dy; /* [N,O] */
    void *dlora_A, *dlora_B, *dweights; /* each may be NULL */
};
#define PM_LAYERS 8 /* of one x at most */

/* They return -1 when memory is out. bwd: the sum of what n layers bring to dx, and onto [N,D] or NULL (not where x is activated). dx may
 * be NULL; x may be where no layer learns and it is not activated, h too unless experts lie side by side. */
#define PM_DECLARE_LAYERS(real, DT)                                                                         \
    void pm_factor_pack_##DT(ptrdiff_t G, ptrdiff_t R, ptrdiff_t D, const real *factor, real *panels);      \
    int pm_linear_fwd_##DT(ptrdiff_t N, ptrdiff_t D, const real *x, struct pm_reading reading, ptrdiff_t n, \
                           const struct pm_layer *layers);                                                  \
    int pm_linear_bwd_##DT(ptrdiff_t N, ptrdiff_t D, const real *x, struct pm_reading reading, ptrdiff_t n, \
                           const struct pm_layer *layers, const real *onto, real *dx, real *dtimes);
PM_DECLARE_LAYERS(float, f32)
PM_DECLARE_LAYERS(double, f64)
#endif
