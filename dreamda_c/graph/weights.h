/* A model's parameters: their names and shapes, and the packed copies that primitives read. They are loaded once,
 * packed once, and shared by all plans of the model.
 *
 *     dd_weights *w;
 *     DD_TRY(dd_weights_create(&w));
 *     int id;
 *     DD_TRY(dd_weights_parameter(w, "conv_in.weight", 4, (int64_t[]){320, 4, 3, 3}, &id));   // while a graph is built
 *     dd_pack *pack;
 *     DD_TRY(dd_weights_pack(w, &(dd_slice){.parameter = id, .rows = 320, .cols = 36}, 1, layout, &pack));
 *     DD_TRY(dd_weights_load(w, id, DD_F16, data));            // fills every pack that needs it; `data` is not kept
 *     const float *packed = dd_pack_data(pack);                // what the primitive reads
 *     dd_pack_release(pack);                                   // when this user no longer needs it
 *     dd_weights_trim(w);                                      // frees packs that all users have released
 *
 * Not thread-safe: one caller at a time (the binding holds the GIL). Reading packed data needs no lock.
 */
#ifndef DD_WEIGHTS_H
#define DD_WEIGHTS_H

#include "onednn/onednn.h"

typedef struct dd_weights dd_weights;
typedef struct dd_pack dd_pack;

enum { DD_MAX_PARAMETER_DIMS = 4 };

typedef struct {
    const char *name; /* as in the PyTorch state dict; owned by the weights */
    int ndim;
    int64_t dims[DD_MAX_PARAMETER_DIMS];
} dd_parameter;

/* A rectangle of a parameter seen as a matrix (dims[0] rows, the rest as columns): rows are output channels. */
typedef struct {
    int64_t parameter, row, rows, col, cols;
} dd_slice;

dd_status dd_weights_create(dd_weights **out);
void dd_weights_destroy(dd_weights *w);
dd_engine *dd_weights_engine(dd_weights *w);

/* *out = index of the parameter, added if it is new. DD_SHAPE if it is known with another shape. */
dd_status dd_weights_parameter(dd_weights *w, const char *name, int ndim, const int64_t *dims, int *out);
int dd_weights_count(const dd_weights *w);
const dd_parameter *dd_weights_get(const dd_weights *w, int parameter);
int dd_weights_find(const dd_weights *w, const char *name); /* -1: no such parameter */

/* The packed form of slices stacked by rows, found or made (then pending until every slice's parameter is loaded).
   layout NULL: plain f32 (vectors and tables). The weights own the pack; each successful call counts as one user of it,
   until dd_pack_release. */
dd_status dd_weights_pack(dd_weights *w, const dd_slice *slices, int count, const dd_layout *layout, dd_pack **out);

/* The packed form of a convolution and the batch norm behind it, folded into one convolution: weights scaled by the
   norm's running statistics, and a bias. All slices have the same number of rows. Of a window of kernel x kernel
   places, `places` x `places` are packed, from place (first, first) on. The layout is that of the smaller window. */
typedef struct {
    dd_slice weight, gamma, beta, mean, variance;
    float eps;
    int kernel, first, places;
} dd_fold;
dd_status dd_weights_pack_folded(dd_weights *w, const dd_fold *fold, const dd_layout *layout, dd_pack **out);

/* Counts one user less. The pack stays available for later calls until dd_weights_trim. May be NULL. */
void dd_pack_release(dd_pack *pack);
void dd_weights_trim(dd_weights *w); /* frees the packs without users */

const void *dd_pack_data(const dd_pack *pack);
const float *dd_pack_bias(const dd_pack *pack); /* of a folded pack; else NULL */
bool dd_pack_pending(const dd_pack *pack);

/* Whether some pack still waits for this parameter. */
bool dd_weights_pending(const dd_weights *w, int parameter);

/* Converts and packs a parameter (C order, whole). Refuses NaN and infinite values by name: DD_INVALID. */
dd_status dd_weights_load(dd_weights *w, int parameter, dd_dtype dtype, const void *data);

/* The same from a file, whose bytes begin at `offset`. It is read one part at a time, so that the whole parameter is
   never in memory. */
dd_status dd_weights_read(dd_weights *w, int parameter, dd_dtype dtype, const char *path, int64_t offset);

size_t dd_weights_bytes(const dd_weights *w); /* of all packs */

#endif
