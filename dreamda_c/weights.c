#include "weights.h"

#include "arena.h"
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

/* One slice of a pack, in the list of what is made of its parameter: a configuration may ask for 20,000 packs, and to go through
   them all for every parameter would take that many steps squared. */
typedef struct use {
    dd_pack *pack;
    int index;
    struct use *next;
} use;

struct dd_pack {
    dd_slice *slices;
    bool *filled; /* one a slice */
    use *uses;    /* one a slice; in the lists once the pack is complete */
    int count, waiting;
    int64_t rows, cols;
    dd_layout *layout; /* NULL: plain f32 */
    float *plain;      /* the rows gathered so far; freed once packed, and the data itself where layout is NULL */
    void *packed;
    size_t bytes;
};

struct dd_weights {
    dd_engine *engine;
    dd_parameter *parameters;
    int *sorted; /* indices of the parameters, by name */
    use **uses;  /* by parameter: the slices that are made of it, the latest first */
    int count, capacity;
    dd_pack **packs;
    int npacks, packs_capacity;
};

dd_status dd_weights_create(dd_weights **out)
{
    dd_status status = DD_OK;
    dd_weights *w = dd_calloc(1, sizeof *w);
    if (!w) {
        DD_FAIL(DD_NOMEM, "out of memory for a model");
    }
    DD_TRY(dd_engine_create(&w->engine));
    *out = w;
    return DD_OK;
fail:
    dd_weights_destroy(w);
    return status;
}

static void destroy_pack(dd_pack *p)
{
    if (!p) {
        return;
    }
    dd_free(p->slices);
    dd_free(p->filled);
    dd_free(p->uses);
    dd_layout_destroy(p->layout);
    dd_free(p->plain);
    dd_free(p->packed);
    dd_free(p);
}

void dd_weights_destroy(dd_weights *w)
{
    if (!w) {
        return;
    }
    for (int i = 0; i < w->npacks; i++) {
        destroy_pack(w->packs[i]);
    }
    dd_free(w->packs);
    for (int i = 0; i < w->count; i++) {
        dd_free((char *)(uintptr_t)w->parameters[i].name);
    }
    dd_free(w->parameters);
    dd_free(w->sorted);
    dd_free(w->uses);
    dd_engine_destroy(w->engine);
    dd_free(w);
}

dd_engine *dd_weights_engine(dd_weights *w)
{
    return w->engine;
}

int dd_weights_count(const dd_weights *w)
{
    return w->count;
}

const dd_parameter *dd_weights_get(const dd_weights *w, int parameter)
{
    return &w->parameters[parameter];
}

/* The place of `name` in w->sorted, or where it would go. */
static int search(const dd_weights *w, const char *name)
{
    int low = 0, high = w->count;
    while (low < high) {
        int mid = (low + high) / 2;
        if (strcmp(w->parameters[w->sorted[mid]].name, name) < 0) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low;
}

int dd_weights_find(const dd_weights *w, const char *name)
{
    int place = search(w, name);
    bool found = place < w->count && strcmp(w->parameters[w->sorted[place]].name, name) == 0;
    return found ? w->sorted[place] : -1;
}

/* Makes room for one more element of `size` bytes; *array may move. */
static bool grow(void *array_pointer, int count, int *capacity, size_t size)
{
    void **array = array_pointer;
    if (count < *capacity) {
        return true;
    }
    int wanted = *capacity ? 2 * *capacity : 64;
    void *bigger = dd_realloc(*array, (size_t)wanted * size);
    if (!bigger) {
        return false;
    }
    *array = bigger;
    *capacity = wanted;
    return true;
}

dd_status dd_weights_parameter(dd_weights *w, const char *name, int ndim, const int64_t *dims, int *out)
{
    int known = dd_weights_find(w, name);
    if (known >= 0) {
        const dd_parameter *p = &w->parameters[known];
        if (p->ndim != ndim || memcmp(p->dims, dims, (size_t)ndim * sizeof *dims) != 0) {
            return dd_fail(DD_SHAPE, "parameter '%s' is declared twice with different shapes", name);
        }
        *out = known;
        return DD_OK;
    }
    int sorted_capacity = w->capacity, uses_capacity = w->capacity;
    char *copy = dd_strdup(name);
    if (!copy || !grow(&w->sorted, w->count, &sorted_capacity, sizeof *w->sorted) ||
        !grow(&w->uses, w->count, &uses_capacity, sizeof *w->uses) || !grow(&w->parameters, w->count, &w->capacity, sizeof *w->parameters)) {
        dd_free(copy);
        return dd_fail(DD_NOMEM, "out of memory for parameter '%s'", name);
    }
    int place = search(w, name), id = w->count;
    dd_parameter *p = &w->parameters[id];
    *p = (dd_parameter){.name = copy, .ndim = ndim};
    memcpy(p->dims, dims, (size_t)ndim * sizeof *dims);
    memmove(w->sorted + place + 1, w->sorted + place, (size_t)(w->count - place) * sizeof *w->sorted);
    w->sorted[place] = id;
    w->uses[id] = NULL;
    w->count++;
    *out = id;
    return DD_OK;
}

static int64_t parameter_cols(const dd_parameter *p)
{
    int64_t cols = 1;
    for (int i = 1; i < p->ndim; i++) {
        cols *= p->dims[i];
    }
    return cols;
}

static bool same_pack(const dd_pack *p, const dd_slice *slices, int count, const dd_layout *layout)
{
    if (p->count != count || !p->layout != !layout || memcmp(p->slices, slices, (size_t)count * sizeof *slices) != 0) {
        return false;
    }
    return !layout || dd_layout_equal(p->layout, layout);
}

dd_status dd_weights_pack(dd_weights *w, const dd_slice *slices, int count, const dd_layout *layout, dd_pack **out)
{
    dd_status status = DD_OK;
    dd_pack *p = NULL;
    for (const use *u = w->uses[slices[0].parameter]; u; u = u->next) {
        if (same_pack(u->pack, slices, count, layout)) {
            *out = u->pack;
            return DD_OK;
        }
    }
    p = dd_calloc(1, sizeof *p);
    if (!p) {
        DD_FAIL(DD_NOMEM, "out of memory for packed weights");
    }
    p->slices = dd_alloc((size_t)count * sizeof *slices);
    p->filled = dd_calloc((size_t)count, sizeof *p->filled);
    p->uses = dd_calloc((size_t)count, sizeof *p->uses);
    if (!p->slices || !p->filled || !p->uses || !grow(&w->packs, w->npacks, &w->packs_capacity, sizeof *w->packs)) {
        DD_FAIL(DD_NOMEM, "out of memory for packed weights");
    }
    memcpy(p->slices, slices, (size_t)count * sizeof *slices);
    p->count = p->waiting = count;
    p->cols = slices[0].cols;
    for (int i = 0; i < count; i++) {
        const dd_parameter *q = &w->parameters[slices[i].parameter];
        if (slices[i].cols != p->cols || slices[i].row + slices[i].rows > q->dims[0] ||
            slices[i].col + slices[i].cols > parameter_cols(q)) {
            DD_FAIL(DD_SHAPE, "a slice of parameter '%s' does not fit", q->name);
        }
        p->rows += slices[i].rows;
    }
    if (layout) {
        DD_TRY(dd_layout_copy(&p->layout, layout));
        p->bytes = dd_layout_bytes(layout);
    } else if (!dd_size_mul(&p->bytes, 3, p->rows, p->cols, (int64_t)sizeof(float))) {
        DD_FAIL(DD_INVALID, "parameter '%s' is too large", w->parameters[slices[0].parameter].name);
    }
    for (int i = 0; i < count; i++) {
        use **first = &w->uses[slices[i].parameter];
        p->uses[i] = (use){.pack = p, .index = i, .next = *first};
        *first = &p->uses[i];
    }
    w->packs[w->npacks++] = p;
    *out = p;
    return DD_OK;
fail:
    destroy_pack(p);
    return status;
}

const void *dd_pack_data(const dd_pack *p)
{
    return p->layout ? p->packed : p->plain;
}

bool dd_pack_pending(const dd_pack *p)
{
    return p->waiting > 0;
}

bool dd_weights_pending(const dd_weights *w, int parameter)
{
    for (const use *u = w->uses[parameter]; u; u = u->next) {
        if (!u->pack->filled[u->index]) {
            return true;
        }
    }
    return false;
}

/* Copies the slice's rectangle of `values` (whole parameter, f32) to its rows of the pack, and packs once complete. */
static dd_status fill(dd_weights *w, dd_pack *p, int index, const float *values)
{
    dd_status status = DD_OK;
    const dd_slice *s = &p->slices[index];
    int64_t ld = parameter_cols(&w->parameters[s->parameter]), first_row = 0;
    const float *src = values + s->row * ld + s->col;
    for (int i = 0; i < index; i++) {
        first_row += p->slices[i].rows;
    }
    /* The usual case, one whole parameter, is packed straight from the caller's memory. */
    bool direct = p->layout && p->count == 1 && s->cols == ld;
    size_t plain_bytes;
    if (!direct && !p->plain) {
        if (!dd_size_mul(&plain_bytes, 3, p->rows, p->cols, (int64_t)sizeof(float)) || !(p->plain = dd_alloc(plain_bytes))) {
            DD_FAIL(DD_NOMEM, "out of memory for parameter '%s'", w->parameters[s->parameter].name);
        }
    }
    if (p->layout && !p->packed && p->waiting == 1) {
        p->packed = dd_alloc(p->bytes);
        if (!p->packed) {
            DD_FAIL(DD_NOMEM, "out of memory for parameter '%s' (%zu bytes)", w->parameters[s->parameter].name, p->bytes);
        }
    }
    for (int64_t r = 0; !direct && r < s->rows; r++) {
        memcpy(p->plain + (first_row + r) * p->cols, src + r * ld, (size_t)p->cols * sizeof(float));
    }
    if (p->layout && p->waiting == 1) {
        DD_TRY(dd_layout_pack(p->layout, w->engine, direct ? src : p->plain, p->packed));
        dd_free(p->plain);
        p->plain = NULL;
    }
    p->filled[index] = true;
    p->waiting--;
fail:
    return status;
}

/* Sums of x * 0 are 0 unless an element is NaN or infinite: one pass, no branch. */
static bool all_finite(const float *x, size_t count)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < count; i++) {
        sum += x[i] * 0.f;
    }
    return sum == 0;
}

dd_status dd_weights_load(dd_weights *w, int parameter, dd_dtype dtype, const void *data)
{
    dd_status status = DD_OK;
    const dd_parameter *q = &w->parameters[parameter];
    float *converted = NULL;
    size_t count, bytes;
    if (!dd_size_mul(&count, 2, q->dims[0], parameter_cols(q)) || !dd_size_mul(&bytes, 2, (int64_t)count, (int64_t)sizeof(float))) {
        DD_FAIL(DD_INVALID, "parameter '%s' is too large", q->name);
    }
    const float *values = data;
    if (dtype != DD_F32) {
        converted = dd_alloc(bytes);
        if (!converted) {
            DD_FAIL(DD_NOMEM, "out of memory for parameter '%s'", q->name);
        }
        dd_convert(DD_F32, converted, dtype, data, count);
        values = converted;
    }
    if (!all_finite(values, count)) {
        DD_FAIL(DD_INVALID, "parameter '%s' holds NaN or infinite values: the file is damaged, fetch it again", q->name);
    }
    for (use *u = w->uses[parameter]; u; u = u->next) {
        if (!u->pack->filled[u->index]) {
            DD_TRY(fill(w, u->pack, u->index, values));
        }
    }
fail:
    dd_free(converted);
    return status;
}

size_t dd_weights_bytes(const dd_weights *w)
{
    size_t bytes = 0;
    for (int i = 0; i < w->npacks; i++) {
        bytes += w->packs[i]->bytes;
    }
    return bytes;
}
