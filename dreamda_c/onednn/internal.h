/* What the files of this folder share; the only header that knows dnnl.h.
 *
 *     dd_status status = DD_OK;
 *     DD_TRY(dd_onednn_ask_for_memory());       // before every creation
 *     CHECK(dnnl_memory_desc_create_with_tag(&md, 4, dims, dnnl_f32, dnnl_nhwc));
 * fail:
 *     dd_onednn_destroy_md(md);
 */
#ifndef DD_ONEDNN_INTERNAL_H
#define DD_ONEDNN_INTERNAL_H

#include "kernels/kernels.h"
#include "onednn/onednn.h"

#include <oneapi/dnnl/dnnl.h>

#if DNNL_VERSION_MAJOR != 3
#error "dreamda needs oneDNN 3"
#endif

struct dd_engine {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
};

struct dd_layout {
    dnnl_memory_desc_t md; /* NULL: dd_winograd's, described by the rest */
    bool convolution;      /* plain weights are oihw; otherwise (n, k) rows */
    dd_isa isa;
    dd_dtype dtype;
    int ic, oc;
    dd_winograd_kind winograd;
};

struct dd_primitive {
    dnnl_engine_t engine;
    dnnl_stream_t stream; /* the engine's */
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t primitive;
    dd_layout weights;
    dnnl_memory_t memory[DD_ARG_COUNT]; /* NULL: the primitive has no such argument */
    dnnl_exec_arg_t exec[DD_ARG_COUNT];
    int nexec;
    const char *implementation;
    size_t scratch, workspace;
    int threads; /* that its work is split for */
};

/* DD_OK, or the failure of `what` as a sentence. */
dd_status dd_onednn_result(dnnl_status_t code, const char *what);

#define CHECK(call) DD_TRY(dd_onednn_result((call), #call))

/* DD_NOMEM unless there is far more memory than the creation of a primitive takes. oneDNN 3.2 does not survive a failed
   allocation there: its classes are constructed on the NULL that their operator new returned, and std::bad_alloc leaves
   through its C functions. */
dd_status dd_onednn_ask_for_memory(void);

/* *threads = those of the team that a primitive is created for: its work is split for them, and only that team does all
   of it. */
dd_status dd_onednn_team(int *threads);

dnnl_data_type_t dd_onednn_data_type(dd_dtype t);
void dd_onednn_destroy_md(dnnl_memory_desc_t md); /* NULL is fine */

dd_status dd_onednn_user_scratch(dnnl_primitive_attr_t *attr); /* new attributes: scratchpads are the caller's */
dd_status dd_onednn_add_argument(dd_primitive *p, dd_arg arg, int dnnl_arg, const_dnnl_memory_desc_t md);

/* *out = a primitive of `pd` (owned from here on, also on failure) with every argument that the descriptor knows of. */
dd_status dd_onednn_make_primitive(dd_primitive **out, dd_engine *engine, dnnl_primitive_desc_t pd);

#endif
