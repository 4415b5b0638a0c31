#define _GNU_SOURCE
#include "graph/weights.h"

#include "base/arena.h"
#include "base/team.h"
#include "kernels/kernels.h"
#include "kernels/train.h"

#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A parameter is read, converted and packed one part at a time: a part is still in the cache when it is packed, and
   only the packs use new memory, whose page faults take more time than everything else here. */
#define PART_BYTES (4 << 20)
/* The number of rows of a part is a multiple of this: whole blocks of every packed layout. */
#define PART_ROWS 192

/* One slice of a pack, in the list of its parameter's slices. Without these lists, loading would search all packs (up
   to 20,000) for every parameter. */
typedef struct use {
    dd_pack *pack;
    int index;
    struct use *next;
} use;

struct dd_pack {
    dd_slice *slices;
    bool *filled; /* one per slice */
    use *uses;    /* one per slice; in the lists once the pack is complete */
    int count, waiting, users;
    int64_t rows, cols;
    dd_layout *layout; /* NULL: plain f32 */
    bool direct;       /* parts are packed as they come; else they are gathered first */
    float *plain;      /* the rows gathered so far; freed once packed, and the data itself where layout is NULL */
    void *packed;
    size_t bytes;
    bool folded;       /* slices: weight, gamma, beta, mean, variance */
    float eps;         /* the batch norm's */
    int kernel, first, places;
    size_t bias_at; /* in packed */
};

struct dd_weights {
    dd_engine *engine;
    dd_parameter *parameters;
    int *sorted; /* indices of the parameters, by name */
    use **uses;  /* by parameter: its slices, the latest first */
    int count, capacity;
    dd_pack **packs;
    int npacks, packs_capacity, pending; /* packs that wait for something */
    char *part;                          /* of the parameter that is being loaded; kept while packs wait */
    size_t part_bytes;
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
    dd_free(w->part);
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

/* The position of `name` in w->sorted, or the position at which to insert it. */
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
    if (!copy || !dd_grow(&w->sorted, w->count, &sorted_capacity, sizeof *w->sorted) ||
        !dd_grow(&w->uses, w->count, &uses_capacity, sizeof *w->uses) ||
        !dd_grow(&w->parameters, w->count, &w->capacity, sizeof *w->parameters)) {
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

static int64_t part_rows(const dd_parameter *p)
{
    int64_t blocks = PART_BYTES / (int64_t)sizeof(float) / parameter_cols(p) / PART_ROWS;
    return (blocks ? blocks : 1) * PART_ROWS;
}

/* Whether every part of every slice of the pack begins and ends between blocks of the layout. */
static bool packs_parts(const dd_weights *w, const dd_pack *p)
{
    const int granule = dd_layout_granule(p->layout);
    int64_t row = 0;
    for (int i = 0; i < p->count; i++) {
        const dd_slice *s = &p->slices[i];
        const dd_parameter *q = &w->parameters[s->parameter];
        const bool parts = part_rows(q) < q->dims[0], dense = s->cols == parameter_cols(q);
        if (!granule || !(dense || dd_layout_strided(p->layout)) || row % granule ||
            (i + 1 < p->count && s->rows % granule) || (parts && (PART_ROWS % granule || s->row % granule))) {
            return false;
        }
        row += s->rows;
    }
    return true;
}

static bool same_pack(const dd_pack *p, const dd_slice *slices, int count, const dd_layout *layout, const dd_fold *fold)
{
    if (p->count != count || !p->layout != !layout || p->folded != (fold != NULL) ||
        memcmp(p->slices, slices, (size_t)count * sizeof *slices) != 0) {
        return false;
    }
    if (fold && (p->eps != fold->eps || p->first != fold->first || p->places != fold->places)) {
        return false;
    }
    return !layout || dd_layout_equal(p->layout, layout);
}

static dd_status find_or_make_pack(dd_weights *w, const dd_slice *slices, int count, const dd_layout *layout,
                                   const dd_fold *fold, dd_pack **out)
{
    dd_status status = DD_OK;
    dd_pack *p = NULL;
    for (const use *u = w->uses[slices[0].parameter]; u; u = u->next) {
        if (same_pack(u->pack, slices, count, layout, fold)) {
            u->pack->users++;
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
    if (!p->slices || !p->filled || !p->uses || !dd_grow(&w->packs, w->npacks, &w->packs_capacity, sizeof *w->packs)) {
        DD_FAIL(DD_NOMEM, "out of memory for packed weights");
    }
    memcpy(p->slices, slices, (size_t)count * sizeof *slices);
    p->count = p->waiting = count;
    p->cols = slices[0].cols;
    for (int i = 0; i < count; i++) {
        const dd_parameter *q = &w->parameters[slices[i].parameter];
        const bool fits = fold ? slices[i].rows == slices[0].rows && (i == 0 || slices[i].cols == 1)
                               : slices[i].cols == p->cols;
        if (!fits || slices[i].row + slices[i].rows > q->dims[0] ||
            slices[i].col + slices[i].cols > parameter_cols(q)) {
            DD_FAIL(DD_SHAPE, "a slice of parameter '%s' does not fit", q->name);
        }
        p->rows += slices[i].rows;
    }
    if (fold) {
        p->rows = slices[0].rows;
        p->folded = true;
        p->eps = fold->eps;
        p->kernel = fold->kernel;
        p->first = fold->first;
        p->places = fold->places;
    }
    if (layout) {
        DD_TRY(dd_layout_copy(&p->layout, layout));
        p->bytes = dd_layout_bytes(layout);
        p->direct = !fold && packs_parts(w, p);
        if (fold) {
            p->bias_at = (p->bytes + DD_ALIGN - 1) / DD_ALIGN * DD_ALIGN;
            p->bytes = p->bias_at + (size_t)p->rows * sizeof(float);
        }
    } else if (!dd_size_mul(&p->bytes, 3, p->rows, p->cols, (int64_t)sizeof(float))) {
        DD_FAIL(DD_INVALID, "parameter '%s' is too large", w->parameters[slices[0].parameter].name);
    }
    for (int i = 0; i < count; i++) {
        use **first = &w->uses[slices[i].parameter];
        p->uses[i] = (use){.pack = p, .index = i, .next = *first};
        *first = &p->uses[i];
    }
    w->packs[w->npacks++] = p;
    w->pending++;
    p->users = 1;
    *out = p;
    return DD_OK;
fail:
    destroy_pack(p);
    return status;
}

dd_status dd_weights_pack(dd_weights *w, const dd_slice *slices, int count, const dd_layout *layout, dd_pack **out)
{
    return find_or_make_pack(w, slices, count, layout, NULL, out);
}

dd_status dd_weights_pack_folded(dd_weights *w, const dd_fold *fold, const dd_layout *layout, dd_pack **out)
{
    const dd_slice slices[] = {fold->weight, fold->gamma, fold->beta, fold->mean, fold->variance};
    return find_or_make_pack(w, slices, (int)(sizeof slices / sizeof *slices), layout, fold, out);
}

void dd_pack_release(dd_pack *p)
{
    if (p) {
        p->users--;
    }
}

/* If no pack waits for a parameter, the buffer for loading is unused. */
static void free_part_if_idle(dd_weights *w)
{
    if (!w->pending) {
        dd_free(w->part);
        w->part = NULL;
        w->part_bytes = 0;
    }
}

void dd_weights_trim(dd_weights *w)
{
    int kept = 0;
    for (int i = 0; i < w->count; i++) {
        for (use **place = &w->uses[i]; *place;) {
            if ((*place)->pack->users) {
                place = &(*place)->next;
            } else {
                *place = (*place)->next;
            }
        }
    }
    for (int i = 0; i < w->npacks; i++) {
        dd_pack *p = w->packs[i];
        if (p->users) {
            w->packs[kept++] = p;
        } else {
            w->pending -= p->waiting > 0;
            destroy_pack(p);
        }
    }
    w->npacks = kept;
    free_part_if_idle(w);
}

const void *dd_pack_data(const dd_pack *p)
{
    return p->layout ? p->packed : p->plain;
}

const float *dd_pack_bias(const dd_pack *p)
{
    return p->folded && p->packed ? (const float *)(const void *)((const char *)p->packed + p->bias_at) : NULL;
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

/* Offset in `plain` at which the rows of slice `index` begin; for index `count`, the end of all rows. */
static size_t gathered_at(const dd_pack *p, int index)
{
    size_t at = 0;
    for (int i = 0; i < index; i++) {
        at += (size_t)p->slices[i].rows * (size_t)p->slices[i].cols;
    }
    return at;
}

static dd_status allocate_plain(dd_pack *p, const char *name)
{
    size_t bytes;
    if (!p->plain && (!dd_size_mul(&bytes, 2, (int64_t)gathered_at(p, p->count), (int64_t)sizeof(float)) ||
                      !(p->plain = dd_alloc(bytes)))) {
        return dd_fail(DD_NOMEM, "out of memory for parameter '%s'", name);
    }
    return DD_OK;
}

static dd_status allocate_packed(dd_pack *p, const char *name)
{
    const bool padded = dd_layout_cols(p->layout) > p->cols; /* by weights of zero */
    if (!p->packed && !(p->packed = padded ? dd_calloc(p->bytes, 1) : dd_alloc(p->bytes))) {
        return dd_fail(DD_NOMEM, "out of memory for parameter '%s' (%zu bytes)", name, p->bytes);
    }
    return DD_OK;
}

/* Copies rows [first, first + rows) of a parameter to their place in the slice: in the pack, or in the rows gathered so
   far. */
static dd_status fill(dd_weights *w, dd_pack *p, int index, const float *values, int64_t first, int64_t rows)
{
    dd_status status = DD_OK;
    const dd_slice *s = &p->slices[index];
    const int64_t ld = parameter_cols(&w->parameters[s->parameter]), cols = s->cols;
    const int64_t begin = first > s->row ? first : s->row,
                  end = first + rows < s->row + s->rows ? first + rows : s->row + s->rows;
    const float *src = values + (begin - first) * ld + s->col;
    if (begin >= end) {
        return DD_OK;
    }
    if (p->direct) {
        int64_t row = begin - s->row;
        for (int i = 0; i < index; i++) {
            row += p->slices[i].rows;
        }
        DD_TRY(allocate_packed(p, w->parameters[s->parameter].name));
        DD_TRY(dd_layout_pack(p->layout, w->engine, src, cols, (size_t)ld, row, end - begin, p->packed));
        return DD_OK;
    }
    DD_TRY(allocate_plain(p, w->parameters[s->parameter].name));
    float *dst = p->plain + gathered_at(p, index) + (size_t)((begin - s->row) * cols);
#pragma omp parallel for schedule(static) if ((end - begin) * cols > 1 << 16)
    for (int64_t r = 0; r < end - begin; r++) {
        memcpy(dst + r * cols, src + r * ld, (size_t)cols * sizeof(float));
    }
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

/* Packs a convolution and its batch norm, whose parameters are all gathered. */
static dd_status pack_folded(dd_weights *w, dd_pack *p)
{
    dd_status status = DD_OK;
    const size_t rows = (size_t)p->rows, cols = (size_t)p->cols, places = (size_t)p->places, kernel = (size_t)p->kernel;
    const size_t filters = rows * cols / (kernel * kernel), corner = (size_t)p->first * (kernel + 1);
    float *bias = (float *)(void *)((char *)p->packed + p->bias_at), *vectors = p->plain + rows * cols;
    float *weights = dd_alloc(rows * cols * sizeof *weights);
    const dd_batch_norm n = {.gamma = vectors,
                             .beta = vectors + rows,
                             .mean = vectors + 2 * rows,
                             .variance = vectors + 3 * rows,
                             .c = (int)rows,
                             .eps = p->eps};
    if (!weights) {
        DD_FAIL(DD_NOMEM, "out of memory for parameter '%s'", w->parameters[p->slices[0].parameter].name);
    }
    dd_fold_batch_norm(weights, bias, p->plain, &n, (int)rows, cols);
    if (!all_finite(weights, rows * cols) || !all_finite(bias, rows)) {
        DD_FAIL(DD_INVALID, "parameter '%s' is negative, or too large: the file is damaged, fetch it again",
                w->parameters[p->slices[4].parameter].name);
    }
    for (size_t f = 0; f < filters && places < kernel;
         f++) { /* moves to the front, never over what is still to be read */
        for (size_t y = 0; y < places; y++) {
            memmove(weights + (f * places + y) * places, weights + f * kernel * kernel + corner + y * kernel,
                    places * sizeof *weights);
        }
    }
    const int64_t packed_cols = (int64_t)(cols / (kernel * kernel) * places * places);
    DD_TRY(dd_layout_pack(p->layout, w->engine, weights, packed_cols, (size_t)packed_cols, 0, p->rows, p->packed));
fail:
    dd_free(weights);
    return status;
}

/* Called after all rows of a slice. If the slice was the last, packs the gathered rows. */
static dd_status finish(dd_weights *w, dd_pack *p, int index)
{
    dd_status status = DD_OK;
    if (p->waiting == 1 && p->layout && !p->direct) {
        DD_TRY(allocate_packed(p, w->parameters[p->slices[index].parameter].name));
        DD_TRY(p->folded
                   ? pack_folded(w, p)
                   : dd_layout_pack(p->layout, w->engine, p->plain, p->cols, (size_t)p->cols, 0, p->rows, p->packed));
        dd_free(p->plain);
        p->plain = NULL;
    }
    p->filled[index] = true;
    w->pending -= --p->waiting == 0;
fail:
    return status;
}

/* The source of a parameter's elements. */
typedef struct {
    dd_dtype dtype;
    const char *data; /* NULL: a file */
    const char *path;
    int file;
    int64_t offset;
} source;

/* Bytes at the source's element `start`, in `buffer` or where they are; NULL where the file ends too early. */
static const void *take(const source *from, size_t start, size_t count, char *buffer)
{
    const size_t size = dd_dtype_size(from->dtype), bytes = count * size;
    if (from->data) {
        return from->data + start * size;
    }
    for (size_t done = 0; done < bytes;) {
        const uint64_t place = (uint64_t)from->offset + start * size + done; /* out of range: pread refuses it */
        ssize_t got = pread(from->file, buffer + done, bytes - done, (off_t)place);
        if (got == 0 || (got < 0 && errno != EINTR)) {
            return NULL;
        }
        done += got > 0 ? (size_t)got : 0;
    }
    return buffer;
}

enum { ENDS_EARLY = 1, NOT_FINITE = 2 };

/* Elements [start, start + count) as f32: in w->part, which is large enough, or in the caller's memory. Returns the
   problem with them. */
static int fetch(const dd_weights *w, const source *from, size_t start, size_t count, const float **values)
{
    const size_t piece = 1 << 16;
    const ptrdiff_t pieces = (ptrdiff_t)((count + piece - 1) / piece);
    float *converted = (float *)(void *)w->part;
    char *raw = from->dtype == DD_F32 ? w->part : w->part + count * sizeof(float);
    const bool in_place = from->data && from->dtype == DD_F32;
    int wrong = 0;
    *values = in_place ? (const float *)(const void *)from->data + start : converted;
#pragma omp parallel for schedule(static) reduction(| : wrong) if (pieces > 1)
    for (ptrdiff_t k = 0; k < pieces; k++) {
        const size_t at = (size_t)k * piece, some = count - at < piece ? count - at : piece;
        const void *bytes = take(from, start + at, some, raw + at * dd_dtype_size(from->dtype));
        if (!bytes) {
            wrong |= ENDS_EARLY;
            continue;
        }
        if (from->dtype != DD_F32) {
            dd_convert(DD_F32, converted + at, from->dtype, bytes, some);
        }
        wrong |= all_finite(*values + at, some) ? 0 : NOT_FINITE;
    }
    return wrong;
}

static dd_status load(dd_weights *w, int parameter, const source *from)
{
    dd_status status = DD_OK;
    const dd_parameter *q = &w->parameters[parameter];
    const int64_t cols = parameter_cols(q), most = part_rows(q) < q->dims[0] ? part_rows(q) : q->dims[0];
    size_t count, bytes, part;
    dd_team team;
    if ((status = dd_team_begin(&team, dd_team_given(omp_get_max_threads()))) != DD_OK) {
        return status;
    }
    if (!dd_size_mul(&count, 2, q->dims[0], cols) || !dd_size_mul(&bytes, 2, (int64_t)count, (int64_t)sizeof(float)) ||
        !dd_size_mul(&part, 3, most, cols, (int64_t)(sizeof(float) + sizeof(uint16_t)))) {
        DD_FAIL(DD_INVALID, "parameter '%s' is too large", q->name);
    }
    if (w->part_bytes < part) {
        dd_free(w->part);
        w->part = dd_alloc(part);
        w->part_bytes = w->part ? part : 0;
        if (!w->part) {
            DD_FAIL(DD_NOMEM, "out of memory for parameter '%s'", q->name);
        }
    }
    for (int64_t first = 0; first < q->dims[0]; first += most) {
        const int64_t rows = q->dims[0] - first < most ? q->dims[0] - first : most;
        const float *values;
        const int wrong = fetch(w, from, (size_t)(first * cols), (size_t)(rows * cols), &values);
        if (wrong & ENDS_EARLY) {
            DD_FAIL(DD_INVALID, "%s: tensor '%s' ends early: the file is truncated, fetch it again", from->path,
                    q->name);
        }
        if (wrong) {
            DD_FAIL(DD_INVALID, "%s%sparameter '%s' holds NaN or infinite values: the file is damaged, fetch it again",
                    from->path ? from->path : "", from->path ? ": " : "", q->name);
        }
        for (use *u = w->uses[parameter]; u; u = u->next) {
            if (!u->pack->filled[u->index]) {
                DD_TRY(fill(w, u->pack, u->index, values, first, rows));
            }
        }
    }
    for (use *u = w->uses[parameter]; u; u = u->next) {
        if (!u->pack->filled[u->index]) {
            DD_TRY(finish(w, u->pack, u->index));
        }
    }
    free_part_if_idle(w);
fail:
    dd_team_end(&team);
    return status;
}

dd_status dd_weights_load(dd_weights *w, int parameter, dd_dtype dtype, const void *data)
{
    return load(w, parameter, &(source){.dtype = dtype, .data = data});
}

dd_status dd_weights_read(dd_weights *w, int parameter, dd_dtype dtype, const char *path, int64_t offset)
{
    source from = {.dtype = dtype, .path = path, .file = open(path, O_RDONLY | O_CLOEXEC), .offset = offset};
    if (from.file < 0) {
        return dd_fail(
            DD_INVALID,
            "%s: it cannot be opened (%s); weights are read when a plan is made, so leave their file in its place",
            path, strerror(errno));
    }
    dd_status status = load(w, parameter, &from);
    close(from.file);
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
