#include "kernels/losses.h"

#include <math.h>
#include <string.h>

/* Fewer multiplications than this are done by the calling thread alone: waking the others costs more. */
enum { PARALLEL_WORK = 1 << 16 };

static float dot(const float *a, const float *b, size_t count)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < count; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}

static void add_scaled(float *dst, const float *src, float scale, size_t count)
{
#pragma omp simd
    for (size_t i = 0; i < count; i++) {
        dst[i] += scale * src[i];
    }
}

void dd_affine(float *y, const float *x, const float *w, const float *b, size_t n, size_t f, size_t c)
{
#pragma omp parallel for collapse(2) schedule(static) if (n * c * f > PARALLEL_WORK)
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < c; k++) {
            y[i * c + k] = b[k] + dot(x + i * f, w + k * f, f);
        }
    }
}

void dd_affine_backward(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w, size_t n,
                        size_t f, size_t c)
{
#pragma omp parallel if (n * c * f > PARALLEL_WORK)
    {
#pragma omp for schedule(static) nowait
        for (size_t i = 0; i < n; i++) {
            memset(dx + i * f, 0, f * sizeof *dx);
            for (size_t k = 0; k < c; k++) {
                add_scaled(dx + i * f, w + k * f, dy[i * c + k], f);
            }
        }
#pragma omp for schedule(static)
        for (size_t k = 0; k < c; k++) {
            for (size_t i = 0; i < n; i++) {
                add_scaled(dw + k * f, x + i * f, dy[i * c + k], f);
                db[k] += dy[i * c + k];
            }
        }
    }
}

/* The largest value's index (the lowest of equals); *ties says that it is not alone. A NaN anywhere: returns c. */
static size_t argmax(const float *z, size_t c, bool *ties)
{
    size_t best = 0;
    *ties = false;
    for (size_t k = 0; k < c; k++) {
        if (isnan(z[k])) {
            return c;
        }
        if (z[k] > z[best]) {
            best = k;
            *ties = false;
        } else if (k != best && z[k] == z[best]) {
            *ties = true;
        }
    }
    return best;
}

/* p = exp(z - max) and their sum. NaN and infinite maxima give NaN. */
static double exponentials(float *p, const float *z, size_t c, float *top)
{
    float largest = z[0];
    for (size_t k = 1; k < c; k++) {
        largest = z[k] > largest || isnan(z[k]) ? z[k] : largest;
    }
    double sum = 0;
    for (size_t k = 0; k < c; k++) {
        p[k] = expf(z[k] - largest);
        sum += p[k];
    }
    *top = largest;
    return sum;
}

/* The largest probability of a row without NaN: 1 / sum exp(z - max). */
static double top_probability(const float *z, size_t c, size_t best)
{
    double sum = 0;
    for (size_t k = 0; k < c; k++) {
        sum += expf(z[k] - z[best]);
    }
    return 1 / sum;
}

void dd_softmax(float *p, const float *z, size_t n, size_t c)
{
#pragma omp parallel for schedule(static) if (16 * n * c > PARALLEL_WORK)
    for (size_t i = 0; i < n; i++) {
        float top, scale = (float)(1 / exponentials(p + i * c, z + i * c, c, &top));
        for (size_t k = 0; k < c; k++) {
            p[i * c + k] *= scale;
        }
    }
}

/* One row: its loss, and d = scale * gradient. */
static double row_cross_entropy(float *d, const float *z, size_t label, size_t c, float smoothing, float scale)
{
    float top;
    double sum = exponentials(d, z, c, &top), share = (double)smoothing / (double)c;
    /* logl: as in dd_timestep_embedding, log would ask for glibc 2.29. */
    double loss = (double)logl((long double)sum) - (1 - (double)smoothing) * ((double)z[label] - top);
    if (smoothing > 0) {
        double all = 0;
        for (size_t k = 0; k < c; k++) {
            all += (double)z[k] - top;
        }
        loss -= share * all;
    }
    float inverse = (float)(1 / sum);
    for (size_t k = 0; k < c; k++) {
        d[k] = scale * (d[k] * inverse - (float)share);
    }
    d[label] -= scale * (1 - smoothing);
    return loss;
}

static double mean(const double *rows, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += rows[i];
    }
    return sum / (double)n;
}

double dd_softmax_cross_entropy(float *dz, double *rows, const float *z, const int64_t *labels, const float *weights,
                                size_t n, size_t c, float smoothing)
{
#pragma omp parallel for schedule(static) if (16 * n * c > PARALLEL_WORK)
    for (size_t i = 0; i < n; i++) {
        float weight = weights ? weights[i] : 1;
        if (weight == 0) { /* also where the row holds NaN: a padding row */
            memset(dz + i * c, 0, c * sizeof *dz);
            rows[i] = 0;
        } else {
            rows[i] = weight *
                      row_cross_entropy(dz + i * c, z + i * c, (size_t)labels[i], c, smoothing, weight / (float)n);
        }
    }
    return mean(rows, n);
}

double dd_consistency(float *dz, double *rows, size_t *used, const float *strong, const float *weak, size_t n, size_t c,
                      float threshold)
{
    size_t count = 0;
#pragma omp parallel for schedule(static) reduction(+ : count) if (16 * n * c > PARALLEL_WORK)
    for (size_t i = 0; i < n; i++) {
        bool ties;
        size_t best = argmax(weak + i * c, c, &ties);
        if (best < c && !ties && top_probability(weak + i * c, c, best) >= threshold) {
            rows[i] = row_cross_entropy(dz + i * c, strong + i * c, best, c, 0, 1 / (float)n);
            count++;
        } else {
            memset(dz + i * c, 0, c * sizeof *dz);
            rows[i] = 0;
        }
    }
    *used = count;
    return mean(rows, n);
}

void dd_pseudo_label(int32_t *labels, float *confidence, const float *z, size_t heads, size_t n, size_t c,
                     float threshold)
{
#pragma omp parallel for schedule(static) if (16 * heads * n * c > PARALLEL_WORK)
    for (size_t i = 0; i < n; i++) {
        size_t first = 0;
        bool consistent = true, valid = true;
        double sum = 0;
        for (size_t h = 0; h < heads; h++) {
            const float *row = z + (h * n + i) * c;
            bool ties;
            size_t best = argmax(row, c, &ties);
            double top = best < c ? top_probability(row, c, best) : NAN;
            if (isnan(top)) {
                valid = false;
                break;
            }
            first = h == 0 ? best : first;
            consistent = consistent && !ties && best == first;
            sum += top;
        }
        confidence[i] = valid ? (float)(sum / (double)heads) : 0;
        labels[i] = valid && consistent && confidence[i] >= threshold ? (int32_t)first : -1;
    }
}
