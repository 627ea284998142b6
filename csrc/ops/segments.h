/* segments.h -- the packed axis, cut every PM_CHUNK tokens (where sums are split) and wherever the group changes: by examples, or sorted
 * by group within a chunk, where groups take turns every few tokens and where every token has choices of its own. */
#ifndef PM_SEGMENTS_H
#define PM_SEGMENTS_H
#include "ops.h"

struct pm_segment {
    ptrdiff_t start,
        end; /* tokens (choices: places in `order`), all of one chunk and one group, PM_CHUNK at most */
    ptrdiff_t group, slot; /* slot: where this chunk sums the gradient of this group */
    int opens; /* the first segment that writes to its slot */
};
struct pm_segments {
    ptrdiff_t n_chunks, n_slots;
    ptrdiff_t *first; /* [n_chunks+1] first segment of a chunk */
    ptrdiff_t *
        next; /* [n_slots] next slot of the same group in order of tokens, -1 at the end. Group g starts at slot
                                 g; next[g] is PM_UNUSED when it has no tokens */
    struct pm_segment *at;
    ptrdiff_t *order,
        *rows; /* sorted: [N*k] choices n*k+i, a token's group being its one choice; their n, counted from the first one of the
                  chunk. Else NULL */
};
#define PM_UNUSED (-2)

/* The group of every token: ids [N]. cu_seqlens NULL: one example; adapter_ids NULL: group 0 for all. */
void pm_token_groups(ptrdiff_t N, ptrdiff_t B, const int64_t *cu_seqlens, const int64_t *adapter_ids,
                     int64_t *ids);

/* Where groups take turns of fewer than `few` tokens and come back within a chunk, they are sorted. -1 when memory is out. */
int pm_segments_make(struct pm_segments *s, ptrdiff_t N, ptrdiff_t B, ptrdiff_t G, const int64_t *cu_seqlens,
                     const int64_t *adapter_ids, ptrdiff_t few);

/* Token n is of the groups ids[n,:] of G. -1 when memory is out. */
int pm_segments_choose(struct pm_segments *s, ptrdiff_t N, ptrdiff_t G, ptrdiff_t k, const int64_t *ids);
void pm_segments_free(struct pm_segments *s);
#endif
