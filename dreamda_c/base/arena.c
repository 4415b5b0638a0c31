/* Each block carries its size in the 64 bytes in front of it, so that dd_free can count without a table. */
#define _GNU_SOURCE
#include "base/arena.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)
#define HUGE_FROM ((size_t)4 << 20)

typedef struct {
    size_t bytes;
    void *base;
} block_head;

_Static_assert(sizeof(block_head) <= DD_ALIGN, "the head must fit in front of a block");

static _Atomic int64_t live_bytes;
static _Atomic int64_t fail_after = -1;

static bool injected_failure(void)
{
    if (atomic_load(&fail_after) < 0) {
        return false;
    }
    return atomic_fetch_sub(&fail_after, 1) == 0;
}

void *dd_alloc(size_t bytes)
{
    if (injected_failure() || bytes > PTRDIFF_MAX - 2 * HUGE_PAGE) {
        return NULL;
    }
    size_t align = bytes >= HUGE_FROM ? HUGE_PAGE : DD_ALIGN;
    size_t total = (bytes + DD_ALIGN + align - 1) / align * align;
    char *base = aligned_alloc(align, total);
    if (!base) {
        return NULL;
    }
    if (align == HUGE_PAGE) {
        madvise(base, total, MADV_HUGEPAGE);
    }
    block_head head = {bytes, base};
    char *p = base + DD_ALIGN;
    memcpy(p - DD_ALIGN, &head, sizeof head);
    atomic_fetch_add(&live_bytes, (int64_t)bytes);
    return p;
}

void *dd_calloc(size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) {
        return NULL;
    }
    void *p = dd_alloc(bytes);
    if (p) {
        memset(p, 0, bytes);
    }
    return p;
}

void *dd_realloc(void *p, size_t bytes)
{
    void *q = dd_alloc(bytes);
    if (q && p) {
        block_head head;
        memcpy(&head, (char *)p - DD_ALIGN, sizeof head);
        memcpy(q, p, head.bytes < bytes ? head.bytes : bytes);
        dd_free(p);
    }
    return q;
}

bool dd_grow(void *array, int count, int *capacity, size_t size)
{
    if (count < *capacity) {
        return true;
    }
    void *old;
    memcpy(&old, array, sizeof old);
    const int wanted = *capacity ? 2 * *capacity : 64;
    void *bigger = dd_realloc(old, (size_t)wanted * size);
    if (!bigger) {
        return false;
    }
    memcpy(array, &bigger, sizeof bigger);
    *capacity = wanted;
    return true;
}

char *dd_strdup(const char *s)
{
    size_t bytes = strlen(s) + 1;
    char *p = dd_alloc(bytes);
    if (p) {
        memcpy(p, s, bytes);
    }
    return p;
}

void dd_free(void *p)
{
    if (!p) {
        return;
    }
    block_head head;
    memcpy(&head, (char *)p - DD_ALIGN, sizeof head);
    atomic_fetch_sub(&live_bytes, (int64_t)head.bytes);
    free(head.base);
}

bool dd_headroom(size_t bytes)
{
    if (injected_failure()) {
        return false;
    }
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p != MAP_FAILED && munmap(p, bytes) == 0;
}

bool dd_size_mul(size_t *out, int count, ...)
{
    size_t product = 1;
    bool fits = true;
    va_list args;
    va_start(args, count);
    for (int i = 0; i < count; i++) {
        int64_t factor = va_arg(args, int64_t);
        if (factor < 0 || __builtin_mul_overflow(product, (size_t)factor, &product) || product > PTRDIFF_MAX) {
            fits = false;
            break;
        }
    }
    va_end(args);
    if (fits) {
        *out = product;
    }
    return fits;
}

int64_t dd_live_bytes(void)
{
    return atomic_load(&live_bytes);
}

void dd_alloc_fail_after(int64_t n)
{
    atomic_store(&fail_after, n);
}
