/* Greedy by size: the largest buffer first, each into the smallest gap between those already placed that live at the
 * same time, or behind them all. */
#include "base/planner.h"

#include "base/arena.h"

#include <stdlib.h>

static int larger_first(const void *a, const void *b)
{
    const dd_buffer *x = *(dd_buffer *const *)a, *y = *(dd_buffer *const *)b;
    if (x->bytes != y->bytes) {
        return x->bytes < y->bytes ? 1 : -1;
    }
    return x < y ? -1 : x > y; /* equal sizes keep their order: the same plan every time */
}

static int lower_first(const void *a, const void *b)
{
    const dd_buffer *x = *(dd_buffer *const *)a, *y = *(dd_buffer *const *)b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

dd_status dd_planner_assign(dd_buffer *buffers, int count, size_t *arena_bytes)
{
    dd_status status = DD_OK;
    dd_buffer **order = dd_calloc((size_t)count + 1, sizeof *order);
    dd_buffer **rivals = dd_calloc((size_t)count + 1, sizeof *rivals);
    size_t arena = 0;
    if (!order || !rivals) {
        DD_FAIL(DD_NOMEM, "out of memory while planning %d buffers", count);
    }
    for (int i = 0; i < count; i++) {
        order[i] = &buffers[i];
        if (buffers[i].bytes > (size_t)1 << 46) {
            DD_FAIL(DD_INVALID, "a buffer of %zu bytes is too large", buffers[i].bytes);
        }
        buffers[i].bytes = (buffers[i].bytes + DD_ALIGN - 1) / DD_ALIGN * DD_ALIGN;
    }
    qsort(order, (size_t)count, sizeof *order, larger_first);
    for (int i = 0; i < count; i++) {
        dd_buffer *b = order[i];
        int nrivals = 0;
        for (int j = 0; j < i; j++) {
            if (order[j]->first <= b->last && b->first <= order[j]->last && order[j]->bytes) {
                rivals[nrivals++] = order[j];
            }
        }
        qsort(rivals, (size_t)nrivals, sizeof *rivals, lower_first);
        size_t end = 0, best = 0, best_gap = (size_t)-1;
        for (int j = 0; j < nrivals; j++) {
            if (rivals[j]->offset > end) {
                size_t gap = rivals[j]->offset - end;
                if (gap >= b->bytes && gap < best_gap) {
                    best_gap = gap;
                    best = end;
                }
            }
            size_t rival_end = rivals[j]->offset + rivals[j]->bytes;
            end = rival_end > end ? rival_end : end;
        }
        b->offset = best_gap != (size_t)-1 ? best : end;
        arena = b->offset + b->bytes > arena ? b->offset + b->bytes : arena;
    }
    *arena_bytes = arena;
fail:
    dd_free(order);
    dd_free(rivals);
    return status;
}
