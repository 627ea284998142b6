/* expert_dense.h -- whole experts with trainable weights: what a binding hands to ops/expert_dense.c. */
#ifndef PM_EXPERT_DENSE_H
#define PM_EXPERT_DENSE_H
#include "ops.h"

struct pm_experts {
    ptrdiff_t N, D, O, B, G, S, k; /* k: experts of a token, the extent K */
    int apart; /* x is [N,K,D], a row for each of them; else [N,D], one for all */
    const void *weight, *bias,
        *weights; /* [S,O,D] [S,O] or NULL; [G,K] of the sum, NULL: outputs stay apart */
    const int64_t *ids, *adapter_ids, *cu_seqlens; /* [G,K]; groups as in linear.h */
};
#endif
