/* Primitives of every kind: their memory objects, arguments and life. */
#include "onednn/internal.h"

#include "base/arena.h"
#include "base/team.h"

dd_status dd_onednn_add_argument(dd_primitive *p, dd_arg arg, int dnnl_arg, const_dnnl_memory_desc_t md)
{
    dd_status status = dd_onednn_result(dnnl_memory_create(&p->memory[arg], md, p->engine, DNNL_MEMORY_NONE),
                                        "a memory object");
    if (status == DD_OK) {
        p->exec[p->nexec++] = (dnnl_exec_arg_t){dnnl_arg, p->memory[arg]};
    }
    return status;
}

static const struct {
    dd_arg arg;
    int dnnl_arg;
    dnnl_query_t query;
} training_arguments[] = {
    {DD_ARG_SRC, DNNL_ARG_SRC, dnnl_query_src_md},
    {DD_ARG_WEIGHTS, DNNL_ARG_WEIGHTS, dnnl_query_weights_md},
    {DD_ARG_DST, DNNL_ARG_DST, dnnl_query_dst_md},
    {DD_ARG_DIFF_SRC, DNNL_ARG_DIFF_SRC, dnnl_query_diff_src_md},
    {DD_ARG_DIFF_WEIGHTS, DNNL_ARG_DIFF_WEIGHTS, dnnl_query_diff_weights_md},
    {DD_ARG_DIFF_DST, DNNL_ARG_DIFF_DST, dnnl_query_diff_dst_md},
    {DD_ARG_WORKSPACE, DNNL_ARG_WORKSPACE, dnnl_query_workspace_md},
    {DD_ARG_SCRATCH, DNNL_ARG_SCRATCHPAD, dnnl_query_scratchpad_md},
};

/* *out = a primitive of `pd` (owned from here on, also on failure) with every argument that the descriptor knows of. */
dd_status dd_onednn_make_primitive(dd_primitive **out, dd_engine *engine, dnnl_primitive_desc_t pd)
{
    dd_status status = DD_OK;
    dd_primitive *p = dd_calloc(1, sizeof *p);
    if (!p) {
        dnnl_primitive_desc_destroy(pd);
        DD_FAIL(DD_NOMEM, "out of memory for a primitive");
    }
    p->engine = engine->engine;
    p->stream = engine->stream;
    p->pd = pd;
    DD_TRY(dd_onednn_team(&p->threads));
    p->weights.convolution = true;
    CHECK(dnnl_primitive_create(&p->primitive, pd));
    CHECK(dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, (void *)&p->implementation));
    for (size_t i = 0; i < sizeof training_arguments / sizeof *training_arguments; i++) {
        dd_arg arg = training_arguments[i].arg;
        const_dnnl_memory_desc_t md = dnnl_primitive_desc_query_md(pd, training_arguments[i].query, 0);
        size_t bytes = md ? dnnl_memory_desc_get_size(md) : 0;
        if (!bytes) {
            continue;
        }
        DD_TRY(dd_onednn_add_argument(p, arg, training_arguments[i].dnnl_arg, md));
        if (arg == DD_ARG_WEIGHTS || arg == DD_ARG_DIFF_WEIGHTS) {
            CHECK(dnnl_memory_desc_clone(&p->weights.md, md));
        } else if (arg == DD_ARG_WORKSPACE) {
            p->workspace = bytes;
        } else if (arg == DD_ARG_SCRATCH) {
            p->scratch = bytes;
        }
    }
    *out = p;
    return DD_OK;
fail:
    dd_primitive_destroy(p);
    return status;
}

dd_status dd_onednn_user_scratch(dnnl_primitive_attr_t *attr)
{
    dd_status status = DD_OK;
    CHECK(dnnl_primitive_attr_create(attr));
    CHECK(dnnl_primitive_attr_set_scratchpad_mode(*attr, dnnl_scratchpad_mode_user));
fail:
    return status;
}

size_t dd_primitive_workspace(const dd_primitive *p)
{
    return p->workspace;
}

void dd_primitive_destroy(dd_primitive *p)
{
    if (!p) {
        return;
    }
    for (int i = 0; i < DD_ARG_COUNT; i++) {
        if (p->memory[i]) {
            dnnl_memory_destroy(p->memory[i]);
        }
    }
    dd_onednn_destroy_md(p->weights.md);
    if (p->primitive) {
        dnnl_primitive_destroy(p->primitive);
    }
    if (p->pd) {
        dnnl_primitive_desc_destroy(p->pd);
    }
    dd_free(p);
}

void dd_primitive_bind(dd_primitive *p, dd_arg arg, void *data)
{
    if (p->memory[arg]) {
        dnnl_memory_set_data_handle(p->memory[arg], data);
    }
}

dd_status dd_primitive_run(dd_primitive *p)
{
    if (dd_team_exact() != p->threads) {
        return dd_fail(DD_TEAM, "oneDNN's %s was created for %d threads, but would run on %d", p->implementation,
                       p->threads, dd_team_exact());
    }
    return dd_onednn_result(dnnl_primitive_execute(p->primitive, p->stream, p->nexec, p->exec), p->implementation);
}

size_t dd_primitive_scratch(const dd_primitive *p)
{
    return p->scratch;
}

const char *dd_primitive_implementation(const dd_primitive *p)
{
    return p->implementation;
}

const dd_layout *dd_primitive_weights(const dd_primitive *p)
{
    return &p->weights;
}
