/* Offsets for buffers with known lifetimes: the smallest arena that best-fit finds. Pure; no oneDNN, no Python.
 *
 *     dd_buffer b[2] = {{.bytes = 4096, .first = 0, .last = 3}, {.bytes = 4096, .first = 4, .last = 5}};
 *     size_t arena;
 *     dd_planner_assign(b, 2, &arena);       // b[0].offset == b[1].offset == 0, arena == 4096
 */
#ifndef DD_PLANNER_H
#define DD_PLANNER_H

#include "base/status.h"

#include <stddef.h>

typedef struct {
    size_t bytes;    /* 0: takes no memory */
    int first, last; /* steps at which it is alive, both included; first <= last */
    size_t offset;   /* out: a multiple of 64 */
} dd_buffer;

/* Two buffers that are alive at the same step never overlap. DD_NOMEM, or DD_INVALID where sizes overflow. */
dd_status dd_planner_assign(dd_buffer *buffers, int count, size_t *arena_bytes);

#endif
