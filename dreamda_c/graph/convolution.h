/* How a convolution of a graph is computed, for plans and trainers alike: its window, and whether by Winograd's
 * algorithm or by oneDNN.
 *
 *     int first;
 *     dd_conv_desc d = dd_convolution_cropped(graph, op, DD_F32, &first);
 *     if (!dd_convolution_by_winograd(&d, isa, DD_PER_BATCH, false)) {
 *         DD_TRY(dd_conv_create(&primitive, engine, &d));
 *     }
 */
#ifndef DD_CONVOLUTION_H
#define DD_CONVOLUTION_H

#include "graph/graph.h"

/* The convolution of `op` on the source `src`, with its whole window and without an epilogue. */
dd_conv_desc dd_convolution(const dd_graph *g, const dd_op *op, dd_value src, dd_dtype dtype);

/* The same with a smaller window if the image is smaller than the window and its outer places see only the border (3 x
   3 on one position is 1 x 1). The window begins at place (*first, *first) of the plain weights. */
dd_conv_desc dd_convolution_cropped(const dd_graph *g, const dd_op *op, dd_dtype dtype, int *first);

/* How the algorithm is chosen. PER_IMAGE: by the shape of one image, so that a row of a batch is bitwise identical for
   any number of rows, and by memory, because transformed weights are 16 / 9 as large. PER_BATCH: by the whole batch,
   which must be large enough to make up for the transformation of the weights. */
typedef enum { DD_PER_IMAGE, DD_PER_BATCH } dd_convolution_rule;

/* `up`: the source is enlarged twice before the convolution. */
bool dd_convolution_by_winograd(const dd_conv_desc *d, dd_isa isa, dd_convolution_rule rule, bool up);

#endif
