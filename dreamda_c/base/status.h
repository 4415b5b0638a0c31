/* Status codes, and one sentence a thread about the last failure. Nothing here prints, exits or throws.
 *
 *     dd_status dd_thing_create(dd_thing **out)
 *     {
 *         dd_status status = DD_OK;
 *         dd_thing *t = dd_calloc(1, sizeof *t);
 *         if (!t) {
 *             DD_FAIL(DD_NOMEM, "a thing of %zu bytes", sizeof *t);
 *         }
 *         DD_TRY(dd_part_create(&t->part));
 *         *out = t;
 *         return DD_OK;
 *     fail:
 *         dd_thing_destroy(t);
 *         return status;
 *     }
 */
#ifndef DD_STATUS_H
#define DD_STATUS_H

typedef enum {
    DD_OK,
    DD_NOMEM,   /* -> MemoryError */
    DD_INVALID, /* -> ValueError: an argument or a configuration */
    DD_SHAPE,   /* -> ValueError: shapes that do not fit together */
    DD_ONEDNN,  /* -> dreamda.Error: oneDNN refused */
    DD_FORKED,  /* -> dreamda.Error: the engine was used before the process was forked */
    DD_TEAM     /* -> dreamda.Error: OpenMP gives fewer threads than were planned for */
} dd_status;

/* Stores the message (printf style, cut at 500 characters) for this thread and returns `status`. */
dd_status dd_fail(dd_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The last failure's sentence of this thread; valid until its next dd_fail. Never NULL. */
const char *dd_message(void);

/* Both need a local `status` and a label `fail`. */
#define DD_TRY(x)                     \
    do {                              \
        if ((status = (x)) != DD_OK) { \
            goto fail;                \
        }                             \
    } while (0)
#define DD_FAIL(...)                   \
    do {                               \
        status = dd_fail(__VA_ARGS__); \
        goto fail;                     \
    } while (0)

#endif
