/* memory.c -- aligned blocks, reused by size class. A block put back is warm: its pages are mapped already. */
#include "ops.h"
#include <pthread.h>
#include <stdlib.h>

#define CLASSES 256

struct header { /* sits in the 64 bytes before the block */
    struct header *next;
    size_t bytes;
    int class;
};
static struct header *idle[CLASSES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Classes grow by a quarter of a power of two, so that packed batches of slightly different length share blocks. */
static int size_class(size_t bytes, size_t *rounded)
{
    size_t step = 1024;
    int class = 0;
    for (size_t base = 4096;; base *= 2, step *= 2)
        for (int quarter = 0; quarter < 4; quarter++, class ++)
            if (bytes <= base + quarter * step) {
                *rounded = base + quarter * step;
                return class;
            }
}

void *pm_block_get(size_t bytes)
{
    size_t rounded;
    if (bytes > PTRDIFF_MAX / 2) return NULL;
    const int class = size_class(bytes, &rounded);
    pthread_mutex_lock(&lock);
    struct header *h = idle[class];
    if (h) idle[class] = h->next;
    pthread_mutex_unlock(&lock);
    if (!h) {
        h = aligned_alloc(PM_ALIGN, rounded + PM_ALIGN);
        if (!h && pm_block_release() > 0) h = aligned_alloc(PM_ALIGN, rounded + PM_ALIGN);
        if (!h) return NULL;
        h->bytes = rounded + PM_ALIGN;
        h->class = class;
    }
    return (char *)h + PM_ALIGN;
}

void pm_block_put(void *block)
{
    if (!block) return;
    struct header *h = (struct header *)((char *)block - PM_ALIGN);
    pthread_mutex_lock(&lock);
    h->next = idle[h->class];
    idle[h->class] = h;
    pthread_mutex_unlock(&lock);
}

size_t pm_block_release(void)
{
    size_t bytes = 0;
    pthread_mutex_lock(&lock);
    for (int c = 0; c < CLASSES; c++)
        while (idle[c]) {
            struct header *h = idle[c];
            idle[c] = h->next;
            bytes += h->bytes;
            free(h);
        }
    pthread_mutex_unlock(&lock);
    return bytes;
}
