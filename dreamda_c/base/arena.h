/* All memory of the core: counted, 64-byte aligned, with size arithmetic that cannot overflow and a hook that makes the
 * Nth allocation fail (for the fault-injection tests).
 *
 *     size_t bytes;
 *     if (!dd_size_mul(&bytes, 4, n, h, w, (int64_t)sizeof(float))) {
 *         return dd_fail(DD_INVALID, "an image is too large");
 *     }
 *     float *x = dd_alloc(bytes); // NULL: out of memory
 *     dd_free(x);
 */
#ifndef DD_ARENA_H
#define DD_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DD_ALIGN 64

/* Uninitialised memory, or NULL. Blocks of 4 MiB and more ask for huge pages. The caller frees with dd_free. */
void *dd_alloc(size_t bytes);

/* Zeroed memory, or NULL (also when count * size overflows). */
void *dd_calloc(size_t count, size_t size);

/* Grows `p` (may be NULL) to `bytes` and keeps the contents. NULL on failure: then `p` is still valid and still the
   caller's. */
void *dd_realloc(void *p, size_t bytes);

/* Grows the array that `array` points to, if it is full, so that one more element of `size` bytes fits: the capacity is
   doubled, and the array may move. False on failure: then nothing has changed. */
bool dd_grow(void *array, int count, int *capacity, size_t size);

char *dd_strdup(const char *s);
void dd_free(void *p); /* may be NULL */

/* Whether `bytes` more could be allocated now; nothing is kept. For libraries that allocate by themselves and crash if
   an allocation fails. */
bool dd_headroom(size_t bytes);

/* *out = product of `count` factors; false if a factor is negative or the product does not fit. */
bool dd_size_mul(size_t *out, int count, ...); /* every factor an int64_t */

/* Bytes handed out and not yet freed, over all threads. */
int64_t dd_live_bytes(void);

/* The (n+1)th allocation (or question for headroom) from now fails, once; a negative n switches that off. For tests. */
void dd_alloc_fail_after(int64_t n);

#endif
