/* segments.c -- see segments.h. Adjacent examples of one group share segments. */
#include "segments.h"

int pm_segments_make(struct pm_segments *s, ptrdiff_t N, ptrdiff_t B, ptrdiff_t G, const int64_t *cu_seqlens,
                     const int64_t *adapter_ids)
{
    const ptrdiff_t n_chunks = (N + PM_CHUNK - 1) / PM_CHUNK, most = B + n_chunks;    /* segments */
    struct {
        ptrdiff_t slot, chunk;
    } *last;                                         /* [G] where a group was seen last */
    const size_t bytes =
        most * sizeof *s->at + G * sizeof *last + (n_chunks + 1 + G + most) * sizeof *s->next;
    s->at = pm_block_get(bytes);
    if (!s->at) return -1;
    last = (void *)(s->at + most);
    s->first = (ptrdiff_t *)(last + G);
    s->next = s->first + n_chunks + 1;
    s->n_chunks = n_chunks;
    s->n_slots = G;
    for (ptrdiff_t g = 0; g < G; g++) {
        last[g].slot = -1;
        s->next[g] = PM_UNUSED;
    }
    ptrdiff_t n = 0;
    for (ptrdiff_t b = 0, t = 0; b < B; b++) {
        const ptrdiff_t end = cu_seqlens ? cu_seqlens[b + 1] : N, group = adapter_ids ? adapter_ids[b] : 0;
        while (t < end) {
            const ptrdiff_t chunk = t / PM_CHUNK, border = (chunk + 1) * PM_CHUNK,
                            stop = end < border ? end : border;
            if (t % PM_CHUNK && s->at[n - 1].group == group) {
                s->at[n - 1].end = stop;
            } else {
                if (t % PM_CHUNK == 0) s->first[chunk] = n;
                const ptrdiff_t seen = last[group].slot;
                const int opens = seen < 0 || last[group].chunk != chunk;
                if (opens) {
                    last[group].slot = seen < 0 ? group : s->n_slots++;
                    last[group].chunk = chunk;
                    if (seen >= 0) s->next[seen] = last[group].slot;
                    s->next[last[group].slot] = -1;
                }
                s->at[n++] = (struct pm_segment){ t, stop, group, last[group].slot, opens };
            }
            t = stop;
        }
    }
    s->first[n_chunks] = n;
    return 0;
}

void pm_segments_free(struct pm_segments *s) { pm_block_put(s->at); }
