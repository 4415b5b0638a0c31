/* The library and its engine: whether the right oneDNN was loaded, what it may use, what its status codes mean. */
#include "onednn/internal.h"

#include "base/arena.h"
#include "base/team.h"

#include <stdio.h>

dd_status dd_onednn_result(dnnl_status_t code, const char *what)
{
    switch (code) {
    case dnnl_success:
        return DD_OK;
    case dnnl_out_of_memory:
        return dd_fail(DD_NOMEM, "oneDNN ran out of memory at %s", what);
    case dnnl_unimplemented:
        return dd_fail(DD_ONEDNN, "oneDNN has no implementation of %s on this processor", what);
    default:
        return dd_fail(DD_ONEDNN, "oneDNN refused %s (status %d)", what, (int)code);
    }
}

dd_status dd_onednn_ask_for_memory(void)
{
    const size_t bytes = (size_t)64 << 20;
    return dd_headroom(bytes)
               ? DD_OK
               : dd_fail(DD_NOMEM, "out of memory: oneDNN needs %zu MiB to make a primitive", bytes >> 20);
}

dd_status dd_onednn_team(int *threads)
{
    *threads = dd_team_exact();
    return *threads ? DD_OK : dd_fail(DD_TEAM, "oneDNN was called outside of a team of threads");
}

dd_status dd_onednn_check(void)
{
    const dnnl_version_t *v = dnnl_version();
    if (v->major != DNNL_VERSION_MAJOR || v->minor < DNNL_VERSION_MINOR) {
        return dd_fail(DD_ONEDNN,
                       "dreamda was built for oneDNN %d.%d but found %d.%d: pip install onednn-cpu-gomp==2023.2.0",
                       DNNL_VERSION_MAJOR, DNNL_VERSION_MINOR, v->major, v->minor);
    }
    if (v->cpu_runtime != DNNL_RUNTIME_OMP) {
        return dd_fail(DD_ONEDNN,
                       "this oneDNN has CPU runtime %u, not OpenMP (%u): pip install onednn-cpu-gomp==2023.2.0",
                       v->cpu_runtime, DNNL_RUNTIME_OMP);
    }
    return DD_OK;
}

void dd_onednn_version(int version[3])
{
    const dnnl_version_t *v = dnnl_version();
    version[0] = v->major;
    version[1] = v->minor;
    version[2] = v->patch;
}

static const struct {
    dnnl_cpu_isa_t isa;
    const char *name;
} isa_names[] = {
    {dnnl_cpu_isa_sse41, "SSE4.1"},
    {dnnl_cpu_isa_avx, "AVX"},
    {dnnl_cpu_isa_avx2, "AVX2"},
    {dnnl_cpu_isa_avx2_vnni, "AVX2_VNNI"},
    {dnnl_cpu_isa_avx2_vnni_2, "AVX2_VNNI_2"},
    {dnnl_cpu_isa_avx512_core, "AVX512_CORE"},
    {dnnl_cpu_isa_avx512_core_vnni, "AVX512_CORE_VNNI"},
    {dnnl_cpu_isa_avx512_core_bf16, "AVX512_CORE_BF16"},
    {dnnl_cpu_isa_avx512_core_fp16, "AVX512_CORE_FP16"},
    {dnnl_cpu_isa_avx512_core_amx, "AVX512_CORE_AMX"},
    {dnnl_cpu_isa_avx512_core_amx_fp16, "AVX512_CORE_AMX_FP16"},
};

const char *dd_onednn_isa_name(void)
{
    dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    for (size_t i = 0; i < sizeof isa_names / sizeof *isa_names; i++) {
        if (isa_names[i].isa == isa) {
            return isa_names[i].name;
        }
    }
    return "unknown";
}

static bool isa_includes(dnnl_cpu_isa_t isa, dnnl_cpu_isa_t part)
{
    return ((unsigned)isa & (unsigned)part) == (unsigned)part;
}

dd_isa dd_onednn_isa(void)
{
    dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    dd_isa allowed = isa_includes(isa, dnnl_cpu_isa_avx512_core_amx)    ? DD_ISA_AMX
                     : isa_includes(isa, dnnl_cpu_isa_avx512_core_bf16) ? DD_ISA_AVX512_BF16
                     : isa_includes(isa, dnnl_cpu_isa_avx512_core)      ? DD_ISA_AVX512
                                                                        : DD_ISA_AVX2;
    dd_isa best = dd_best_isa();
    return allowed < best ? allowed : best;
}

dd_status dd_onednn_check_dtype(dd_dtype dtype)
{
    if (dtype == DD_BF16 && dd_onednn_isa() < DD_ISA_AVX512_BF16) {
        return dd_fail(DD_INVALID, "dtype bf16 needs a processor with AVX512-BF16 or AMX (this one: %s): use f32",
                       dd_onednn_isa_name());
    }
    return DD_OK;
}

dd_status dd_engine_create(dd_engine **out)
{
    dd_status status = DD_OK;
    dd_engine *e = dd_calloc(1, sizeof *e);
    if (!e) {
        DD_FAIL(DD_NOMEM, "out of memory for an engine");
    }
    DD_TRY(dd_onednn_ask_for_memory());
    CHECK(dnnl_engine_create(&e->engine, dnnl_cpu, 0));
    CHECK(dnnl_stream_create(&e->stream, e->engine, dnnl_stream_default_flags));
    *out = e;
    return DD_OK;
fail:
    dd_engine_destroy(e);
    return status;
}

void dd_engine_destroy(dd_engine *e)
{
    if (!e) {
        return;
    }
    if (e->stream) {
        dnnl_stream_destroy(e->stream);
    }
    if (e->engine) {
        dnnl_engine_destroy(e->engine);
    }
    dd_free(e);
}

dnnl_data_type_t dd_onednn_data_type(dd_dtype t)
{
    switch (t) {
    case DD_BF16:
        return dnnl_bf16;
    case DD_F16:
        return dnnl_f16;
    case DD_S32:
    case DD_U32:
        return dnnl_s32;
    default:
        return dnnl_f32;
    }
}

void dd_onednn_destroy_md(dnnl_memory_desc_t md)
{
    if (md) {
        dnnl_memory_desc_destroy(md);
    }
}
