/* The weight side of the distance kernels on a CPU, in single precision.
 *
 * K[o][i] of some columns i, and its derivatives, made strip by strip: a strip is STRIP columns by
 * all outputs, a line of it one output. Columns beyond the matrix are padded with factors of zero.
 * K comes from the same code wherever it is made, so forward and backward agree bit for bit; what is
 * summed over strips is left per strip, so no result depends on who works on which strips.
 * Nothing here may assume that numbers are finite: a run that diverged has to show NaN.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#define STRIP 64  /* columns of a strip */
#define PADDED 16 /* features of a factor are padded to a multiple */
#define PAIR 2    /* strips whose sums by output are made together */
#define ROWS 8    /* outputs that are looked at together */
/* LANES: floats of a vector; GROUP: outputs whose sums stay in registers, of which there are 32 with
 * AVX-512, else 16 or more. */
#ifdef __AVX512F__
#define LANES 16
#define GROUP 8
#else
#define LANES 8
#define GROUP 4
#endif
#define VECTORS (STRIP / LANES)
#define BESIDE 4 /* vectors of columns whose distances stay in registers */
#define LINE static inline __attribute__((always_inline)) void
#define EACH for (int j = 0; j < STRIP; j++)

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

enum { PLAIN, MIXED, CENTRED };

/* A matrix, and which of its columns are made; mirrored in library.py. */
typedef struct {
    int64_t heads, width, outs, columns; /* of the matrix, but the columns made */
    int64_t kind;
    float scale, alpha, gamma, beta;
    const float *p;         /* (heads, columns, width) */
    const float *q;         /* (heads, outs, width) */
    float *by_column[2];    /* MIXED: peak and 1 / sum of the softmax; CENTRED: mean over outputs */
    float *by_output;       /* CENTRED: mean over inputs */
} matrix;

typedef struct {
    const matrix *m;
    int64_t first, count, padded; /* columns, and width up to a multiple of PADDED */
    float by_column[2][STRIP];
    float *across; /* (heads, width, STRIP): factors of the columns, a column a lane */
    float *along;  /* (heads, STRIP, padded): the same, a column a line */
    const float *q; /* (heads, outs, padded) */
} strip;

static int64_t padded_width(const matrix *m) { return (m->width + PADDED - 1) / PADDED * PADDED; }

static int64_t strip_size(const matrix *m) {
    int64_t w = padded_width(m);
    return m->heads * (m->width * STRIP + w * (STRIP + (w == m->width ? 0 : m->outs)));
}

static void start(strip *s, const matrix *m, float *room) {
    int64_t w = padded_width(m);
    s->m = m;
    s->padded = w;
    s->across = room;
    s->along = s->across + m->heads * m->width * STRIP;
    s->q = m->q;
    if (w == m->width) return;
    float *q = s->along + m->heads * STRIP * w;
    memset(q, 0, 4 * m->heads * m->outs * w);
    for (int64_t n = 0; n < m->heads * m->outs; n++)
        memcpy(q + n * w, m->q + n * m->width, 4 * m->width);
    s->q = q;
}

static void move(strip *s, int64_t index, int common) {
    const matrix *m = s->m;
    s->first = index * STRIP;
    s->count = m->columns - s->first < STRIP ? m->columns - s->first : STRIP;
    memset(s->across, 0, 4 * m->heads * m->width * STRIP);
    memset(s->along, 0, 4 * m->heads * STRIP * s->padded);
    memset(s->by_column, 0, sizeof s->by_column);
    for (int side = 0; side < 2; side++)
        if (common && m->by_column[side])
            memcpy(s->by_column[side], m->by_column[side] + s->first, 4 * s->count);
    for (int64_t h = 0; h < m->heads; h++)
        for (int64_t j = 0; j < s->count; j++) {
            const float *from = m->p + (h * m->columns + s->first + j) * m->width;
            memcpy(s->along + (h * STRIP + j) * s->padded, from, 4 * m->width);
            for (int64_t k = 0; k < m->width; k++)
                s->across[(h * m->width + k) * STRIP + j] = from[k];
        }
}

/* The root, and the inverse with 0 for that of 0, to about 1e-7; NaN stays NaN. */
#ifdef __AVX512F__ /* by an estimate and a step of Newton's: a fourth of the time */
static inline vec root(vec x) {
    __mmask16 some = _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    vec inverse = (vec)_mm512_maskz_rsqrt14_ps(some, (__m512)x), found = x * inverse;
    return found + (inverse * 0.5f) * (x - found * found);
}
static inline vec inverse(vec x) {
    __mmask16 some = _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    vec found = (vec)_mm512_maskz_rcp14_ps(some, (__m512)x);
    return found + found * (1.0f - x * found);
}
#else /* over arrays, since compilers take loops over a vector's lanes one by one */
static inline vec root(vec x) {
    float lanes[LANES];
    memcpy(lanes, &x, sizeof x);
    for (int j = 0; j < LANES; j++) lanes[j] = sqrtf(lanes[j]);
    memcpy(&x, lanes, sizeof x);
    return x;
}
static inline vec inverse(vec x) {
    float lanes[LANES];
    memcpy(lanes, &x, sizeof x);
    for (int j = 0; j < LANES; j++) lanes[j] = lanes[j] == 0.0f ? 0.0f : 1.0f / lanes[j];
    memcpy(&x, lanes, sizeof x);
    return x;
}
#endif

/* Distances of ROWS outputs from `row` on, (heads, ROWS, STRIP); rows beyond the last repeat it. */
static __attribute__((noinline)) void distances(const strip *s, int64_t row, float *restrict to) {
    const matrix *m = s->m;
    for (int64_t h = 0; h < m->heads; h++)
        for (int64_t r = 0; r < ROWS; r += 2) {
            int64_t a = row + r < m->outs ? row + r : m->outs - 1;
            int64_t b = row + r + 1 < m->outs ? row + r + 1 : m->outs - 1;
            const float *qa = s->q + (h * m->outs + a) * s->padded;
            const float *qb = s->q + (h * m->outs + b) * s->padded;
            for (int64_t first = 0; first < STRIP; first += BESIDE * LANES) {
                const float *p = s->across + h * m->width * STRIP + first;
                vec sum[2][BESIDE] = {{{0}}};
                for (int64_t k = 0; k < m->width; k++, p += STRIP)
                    for (int v = 0; v < BESIDE; v++) {
                        vec column = *(const vec *)(p + v * LANES);
                        vec x = column - qa[k], y = column - qb[k];
                        sum[0][v] += x * x;
                        sum[1][v] += y * y;
                    }
                float *line = to + (h * ROWS + r) * STRIP + first;
                for (int v = 0; v < BESIDE; v++) {
                    *(vec *)(line + v * LANES) = root(sum[0][v]) * m->scale;
                    *(vec *)(line + STRIP + v * LANES) = root(sum[1][v]) * m->scale;
                }
            }
        }
}

LINE difference(const matrix *m, const float *d, float *restrict to) {
    EACH to[j] = d[j];
    for (int64_t h = 1; h < m->heads; h++) {
        const float *other = d + h * ROWS * STRIP;
        if (h & 1)
            EACH to[j] -= other[j];
        else
            EACH to[j] += other[j];
    }
}

/* exp, to about 1e-7; NaN stays NaN. Its arguments are at most 0 but for rounding. */
LINE exponential(const float *x, float *restrict to) {
    EACH {
        float v = x[j] < -87.0f ? -87.0f : x[j];
        float n = (v * 1.44269504f + 12582912.0f) - 12582912.0f;
        float r = (v - n * 0.693359375f) + n * 2.12194440e-4f;
        float e = 1.9875691500e-4f;
        e = e * r + 1.3981999507e-3f;
        e = e * r + 8.3334519073e-3f;
        e = e * r + 4.1665795894e-2f;
        e = e * r + 1.6666665459e-1f;
        e = e * r + 5.0000001201e-1f;
        e = (e * r * r + r) + 1.0f;
        union { float f; int32_t i; } shifted = {.f = n + 12582912.0f}, power;
        power.i = (int32_t)((uint32_t)(shifted.i - 0x4B400000 + 127) << 23);
        to[j] = e * power.f;
    }
}

/* From the distances' sum D of one output, (STRIP,), to K, in place; and the softmax of MIXED. */
static __attribute__((noinline)) void dense_line(const strip *s, int64_t row, float *restrict dense,
                                                 float *restrict soft) {
    const matrix *m = s->m;
    const float *a = s->by_column[0], *b = s->by_column[1];
    if (m->kind == MIXED) {
        float inverse = 1.0f / m->gamma, z[STRIP];
        EACH z[j] = dense[j] * inverse - a[j];
        exponential(z, soft);
        EACH soft[j] *= b[j];
        EACH dense[j] = (dense[j] + m->alpha * soft[j]) + m->beta;
    } else if (m->kind == CENTRED) {
        float mean = m->by_output[row];
        EACH dense[j] = (dense[j] - a[j]) - mean;
    }
}

LINE load(float *restrict to, const float *from, int64_t count) {
    if (count == STRIP) {
        memcpy(to, from, 4 * STRIP);
    } else {
        memset(to, 0, 4 * STRIP);
        memcpy(to, from, 4 * count);
    }
}

LINE store(float *restrict to, const float *from, int64_t count) {
    if (count == STRIP)
        memcpy(to, from, 4 * STRIP);
    else
        memcpy(to, from, 4 * count);
}

/* Have rows of a strip brought near that will be read or written soon: they lie too far apart for the
 * processor to foresee. */
static inline void fetch(const float *at, int64_t stride, int64_t rows) {
    for (int64_t r = 0; r < rows; r++, at += stride)
        for (int j = 0; j < STRIP; j += 16) __builtin_prefetch(at + j);
}

static double total(const float *line, int64_t count) {
    double sum = 0;
    for (int64_t j = 0; j < count; j++) sum += line[j];
    return sum;
}

static float line_sum(const float *line) { /* of a whole line, in a fixed order */
    vec sum = *(const vec *)line;
    for (int v = 1; v < VECTORS; v++) sum += *(const vec *)(line + v * LANES);
    float parts[LANES];
    memcpy(parts, &sum, sizeof parts);
    for (int n = LANES / 2; n; n /= 2)
        for (int j = 0; j < n; j++) parts[j] += parts[j + n];
    return parts[0];
}

/* A bit for each of `count` values of a line that is not at most `threshold` in size. */
static inline uint64_t above(const float *k, float threshold, int64_t count) {
    uint64_t bits = 0;
#ifdef __AVX512F__
    for (int v = 0; v < VECTORS; v++) {
        __m512 size = _mm512_abs_ps(_mm512_loadu_ps(k + v * LANES)), limit = _mm512_set1_ps(threshold);
        bits |= (uint64_t)_mm512_cmp_ps_mask(size, limit, _CMP_NLE_UQ) << v * LANES;
    }
#elif defined __AVX__
    __m256 limit = _mm256_set1_ps(threshold), sign = _mm256_set1_ps(-0.0f);
    for (int v = 0; v < VECTORS; v++) {
        __m256 size = _mm256_andnot_ps(sign, _mm256_loadu_ps(k + v * LANES));
        uint64_t over = (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(size, limit, _CMP_NLE_UQ));
        bits |= over << v * LANES;
    }
#else
    uint8_t over[STRIP];
    uint64_t eight[STRIP / 8];
    EACH over[j] = !(fabsf(k[j]) <= threshold);
    memcpy(eight, over, sizeof eight);
    for (int n = 0; n < STRIP / 8; n++) /* the product gathers eight bytes of 0 or 1 in its highest */
        bits |= (eight[n] * 0x0102040810204080) >> 56 << 8 * n;
#endif
    return bits & (~(uint64_t)0 >> (STRIP - count));
}

/* to = base + scale * k |k| where |k| > threshold, of a line; base may be NULL. */
static __attribute__((noinline)) void masked(const float *k, const float *base, float *restrict to,
                                             float threshold, float scale) {
    if (base)
        EACH {
            float size = fabsf(k[j]);
            to[j] = base[j] + (size <= threshold ? 0.0f : scale * (k[j] * size));
        }
    else
        EACH {
            float size = fabsf(k[j]);
            to[j] = size <= threshold ? 0.0f : scale * (k[j] * size);
        }
}

/* Where a threshold is expected, and what is seen of a strip: how many of |K| are at most `low` and
 * at most `high`, and those between, of which `capacity` are collected, with their places. */
typedef struct {
    float low, high;
    int64_t capacity;
    float *values;
    int32_t *places; /* row times STRIP, and column; may be NULL */
    int64_t *counts; /* at most low, at most high, between */
} view;

/* Look at a line; a bit for each of its values that is not at most `high`. */
static inline uint64_t look(const view *v, const float *k, int64_t row, int64_t count) {
    uint64_t over = above(k, v->high, count), between = above(k, v->low, count) & ~over;
    v->counts[1] += count - __builtin_popcountll(over);
    v->counts[0] += count - __builtin_popcountll(over | between);
    for (; between; between &= between - 1) {
        int64_t j = __builtin_ctzll(between), found = v->counts[2]++;
        if (found >= v->capacity) continue;
        v->values[found] = k[j];
        if (v->places) v->places[found] = (int32_t)(row * STRIP + j);
    }
    return over;
}

/* With what a delta is written before its threshold is known; mirrored in library.py. */
typedef struct {
    float low, high, scale;
    const float *base; /* may be NULL */
    int64_t base_stride, capacity;
    int64_t *counts;   /* (strips, 3), as of snella_look */
    float *values;     /* (strips, capacity) */
    int32_t *places;
    uint64_t *masks;   /* (strips, outs): who takes part, a bit each */
} guess;

/* Write K, (outs, columns), of a CENTRED kernel without its means over outputs alone; and what
 * columns have in common into by_column. MIXED: peak and 1 / sum. CENTRED: means over outputs, and
 * per strip sums (strips, outs) over columns of what is left. With a guess, write base + scale *
 * delta for a threshold of `high` instead; what lies from `low` to that is for snella_settle. */
int snella_dense(const matrix *m, int64_t begin, int64_t end, float *to, float *sums,
                 const guess *ahead) {
    float *room = malloc(4 * strip_size(m)), *all = malloc(4 * STRIP * m->outs);
    float d[m->heads * ROWS * STRIP];
    if (!room || !all) { free(room); free(all); return 1; }
    strip s;
    start(&s, m, room);
    for (int64_t index = begin; index < end; index++) {
        float line[STRIP], soft[STRIP], inverse = 1.0f / m->gamma;
        float *first = s.by_column[0], *second = s.by_column[1];
        move(&s, index, 0);
        EACH first[j] = m->kind == MIXED ? -INFINITY : 0;
        EACH second[j] = 0;
        for (int64_t row = 0; row < m->outs; row += ROWS) {
            distances(&s, row, d);
            for (int64_t r = 0; r < ROWS && row + r < m->outs; r++) {
                float *out = all + (row + r) * STRIP;
                difference(m, d + r * STRIP, out);
                if (m->kind == MIXED) {
                    EACH line[j] = out[j] * inverse;
                    EACH first[j] = line[j] > first[j] ? line[j] : first[j];
                } else if (m->kind == CENTRED) {
                    EACH first[j] += out[j];
                }
            }
        }
        if (m->kind == CENTRED) EACH first[j] /= (float)m->outs;
        for (int64_t row = 0; m->kind == MIXED && row < m->outs; row++) {
            EACH line[j] = all[row * STRIP + j] * inverse - first[j];
            exponential(line, soft);
            EACH second[j] += soft[j];
        }
        EACH second[j] = 1.0f / second[j];
        view seen = {0};
        if (ahead) {
            int64_t from = index * ahead->capacity, *counts = ahead->counts + 3 * index;
            memset(counts, 0, 3 * sizeof *counts);
            seen = (view){ahead->low, ahead->high, ahead->capacity, ahead->values + from,
                          ahead->places + from, counts};
        }
        for (int64_t row = 0; row < m->outs; row++) {
            float *out = all + row * STRIP;
            int64_t soon = row + ROWS < m->outs ? row + ROWS : row;
            fetch(to + soon * m->columns + s.first, 0, 1);
            if (ahead && ahead->base) fetch(ahead->base + soon * ahead->base_stride + s.first, 0, 1);
            if (m->kind == CENTRED) {
                EACH out[j] = j < s.count ? out[j] - first[j] : 0.0f;
                sums[index * m->outs + row] = line_sum(out);
            } else {
                dense_line(&s, row, out, soft);
            }
            if (ahead) {
                const float *base = ahead->base;
                ahead->masks[index * m->outs + row] = look(&seen, out, row, s.count);
                if (base) load(line, base + row * ahead->base_stride + s.first, s.count);
                masked(out, base ? line : NULL, soft, seen.high, ahead->scale);
                out = soft;
            }
            store(to + row * m->columns + s.first, out, s.count);
        }
        if (m->by_column[0]) memcpy(m->by_column[0] + s.first, first, 4 * s.count);
        if (m->by_column[1]) memcpy(m->by_column[1] + s.first, second, 4 * s.count);
    }
    free(room);
    free(all);
    return 0;
}

/* Finish what snella_dense wrote into `to` (outs, columns) with a guess, now that the threshold is
 * known: add those of the collected values that are above it. */
int snella_settle(const guess *ahead, int64_t outs, int64_t columns, int64_t begin, int64_t end,
                  float threshold, float *to) {
    for (int64_t index = begin; index < end; index++) {
        const float *values = ahead->values + index * ahead->capacity;
        const int32_t *places = ahead->places + index * ahead->capacity;
        for (int64_t from = 0, found = ahead->counts[3 * index + 2]; from < found; from += STRIP) {
            int64_t some = found - from < STRIP ? found - from : STRIP;
            float k[STRIP], w[STRIP], out[STRIP];
            load(k, values + from, some);
            for (int64_t n = 0; n < STRIP; n++) {
                int64_t place = places[from + (n < some ? n : 0)];
                int64_t row = place / STRIP, column = index * STRIP + place % STRIP;
                w[n] = ahead->base ? ahead->base[row * ahead->base_stride + column] : 0.0f;
            }
            masked(k, ahead->base ? w : NULL, out, threshold, ahead->scale);
            for (int64_t n = 0; n < some; n++) {
                int64_t row = places[from + n] / STRIP, column = places[from + n] % STRIP;
                if (fabsf(k[n]) <= threshold) continue;
                to[row * columns + index * STRIP + column] = out[n];
                ahead->masks[index * outs + row] |= (uint64_t)1 << column;
            }
        }
    }
    return 0;
}

/* Look at K (outs, columns) less its means over inputs, if any. Of |K| count what is at most `low`
 * and at most `high`, and collect what lies between, at most `capacity` values a strip; per strip
 * the two counts and how many lie between, (strips, 3), and the sum of squares. */
int snella_look(const float *k, int64_t outs, int64_t columns, int64_t begin, int64_t end,
                const float *means, float low, float high, int64_t *counts, float *inside,
                int64_t capacity, double *squares) {
    for (int64_t index = begin; index < end; index++) {
        int64_t first = index * STRIP, count = columns - first < STRIP ? columns - first : STRIP;
        view seen = {low, high, capacity, inside + index * capacity, NULL, counts + 3 * index};
        float line[STRIP], sum[STRIP];
        double size = 0;
        memset(seen.counts, 0, 3 * sizeof *seen.counts);
        EACH sum[j] = 0;
        for (int64_t row = 0; row < outs; row++) {
            float mean = means ? means[row] : 0.0f;
            fetch(k + (row + ROWS < outs ? row + ROWS : row) * columns + first, 0, 1);
            load(line, k + row * columns + first, count);
            EACH line[j] -= mean;
            EACH sum[j] += line[j] * line[j];
            look(&seen, line, row, count);
            if (row % ROWS == ROWS - 1 || row == outs - 1) { /* short sums keep their digits */
                size += total(sum, count);
                EACH sum[j] = 0;
            }
        }
        squares[index] = size;
    }
    return 0;
}

/* From K in `to` (outs, columns) to base + scale * delta, in place, strips begin:end, K less its
 * means over inputs, if any. Per strip and output a bit for each column whose entry takes part,
 * masks (strips, outs). */
int snella_merge(float *to, int64_t outs, int64_t columns, int64_t begin, int64_t end,
                 const float *means, const float *base, int64_t base_stride, float threshold,
                 float scale, uint64_t *masks) {
    for (int64_t index = begin; index < end; index++) {
        int64_t first = index * STRIP, count = columns - first < STRIP ? columns - first : STRIP;
        float k[STRIP], w[STRIP], out[STRIP];
        for (int64_t row = 0; row < outs; row++) {
            float *at = to + row * columns + first, mean = means ? means[row] : 0.0f;
            int64_t soon = row + ROWS < outs ? ROWS : 0;
            fetch(at + soon * columns, 0, 1);
            if (base) fetch(base + (row + soon) * base_stride + first, 0, 1);
            load(k, at, count);
            EACH k[j] -= mean;
            if (base) load(w, base + row * base_stride + first, count);
            masked(k, base ? w : NULL, out, threshold, scale);
            store(at, out, count);
            masks[index * outs + row] = above(k, threshold, count);
        }
    }
    return 0;
}

/* Sums over a strip of ratio * (p - q), into by_p (STRIP, padded) and -by_q (ROWS lines). */
static __attribute__((noinline)) void steps(const strip *s, int64_t h, int64_t row,
                                            const float *ratios, float *by_p, float *by_q) {
    const matrix *m = s->m;
    int64_t w = s->padded;
    for (int64_t k = 0; k < w; k += LANES)
        for (int64_t first = row; first < row + ROWS; first += GROUP) {
            const float *p = s->along + h * STRIP * w + k, *of = ratios + (first - row) * STRIP;
            vec q[GROUP], sum[GROUP];
            for (int r = 0; r < GROUP; r++) {
                int64_t o = first + r < m->outs ? first + r : m->outs - 1;
                q[r] = *(const vec *)(s->q + (h * m->outs + o) * w + k);
                sum[r] = (vec){0};
            }
            for (int j = 0; j < STRIP; j++) {
                vec column = *(const vec *)(p + j * w), *to = (vec *)(by_p + j * w + k), there = *to;
                for (int r = 0; r < GROUP; r++) {
                    vec change = (column - q[r]) * of[r * STRIP + j];
                    there += change;
                    sum[r] += change;
                }
                *to = there;
            }
            for (int r = 0; r < GROUP && first + r < m->outs; r++) {
                vec *to = (vec *)(by_q + (h * m->outs + first + r) * w + k);
                *to -= sum[r];
            }
        }
}

/* What is kept of ROWS outputs of a strip: their distances, then the gradient by K. */
static int64_t kept_size(const matrix *m) { return (m->heads + 1) * ROWS * STRIP; }

/* Make K again: to = base + scale * delta, (outs, columns), where `to` is given; base may be NULL.
 * With `grad`, the gradient of the loss by that, which may lie where `to` does: the gradients by
 * factors and scalars. begin and end count pairs of strips. by_p: (heads, columns, width), is added
 * to. Per pair: by_q (pairs, heads, outs, padded). Per strip: sums (strips, 3): the gradients by
 * beta, by alpha, and by gamma times -gamma^2 / alpha; CENTRED: left (strips, outs), sums over
 * columns of the gradient by K. by_p and by_q lack a factor scale^2. With `means` (outs,) instead,
 * these are the gradient by the distances' sum in every column. */
int snella_again(const matrix *m, int64_t begin, int64_t end, float threshold, float scale,
                 const float *base, int64_t base_stride, float *to, int64_t stride,
                 const float *grad, int64_t grad_stride, const float *means, float *by_p,
                 float *by_q, double *sums, float *left) {
    int64_t w = padded_width(m), size = kept_size(m), blocks = (m->outs + ROWS - 1) / ROWS;
    int64_t strips = (m->columns + STRIP - 1) / STRIP;
    float *room = malloc(4 * strip_size(m)), *near = malloc(4 * m->heads * STRIP * w);
    float *kept = malloc(4 * size * (grad ? blocks : 1)), ratios[m->heads * ROWS * STRIP];
    if (!room || !near || !kept) { free(room); free(near); free(kept); return 1; }
    strip s;
    start(&s, m, room);
    for (int64_t index = PAIR * begin; index < PAIR * end && index < strips; index++) {
        float dense[STRIP], soft[STRIP], g[STRIP], inner[STRIP], plain[STRIP], along[STRIP];
        float sum[STRIP], out[STRIP];
        float *q_here = by_q + index / PAIR * m->heads * m->outs * w;
        move(&s, index, 1);
        EACH inner[j] = plain[j] = along[j] = 0;
        for (int64_t row = 0; (to || grad) && row < m->outs; row += ROWS) {
            float *there = kept + (grad ? row / ROWS * size : 0);
            float *by_k = there + m->heads * ROWS * STRIP;
            int64_t rows = m->outs - row < ROWS ? m->outs - row : ROWS;
            if (grad) fetch(grad + row * grad_stride + s.first, grad_stride, rows);
            if (base) fetch(base + row * base_stride + s.first, base_stride, rows);
            if (to) fetch(to + row * stride + s.first, stride, rows);
            distances(&s, row, there);
            for (int64_t r = 0; r < ROWS && row + r < m->outs; r++, by_k += STRIP) {
                difference(m, there + r * STRIP, dense);
                dense_line(&s, row + r, dense, soft);
                if (grad) load(g, grad + (row + r) * grad_stride + s.first, s.count);
                if (to) {
                    if (base) load(sum, base + (row + r) * base_stride + s.first, s.count);
                    masked(dense, base ? sum : NULL, out, threshold, scale);
                    store(to + (row + r) * stride + s.first, out, s.count);
                }
                if (!grad) continue;
                EACH {
                    float size = fabsf(dense[j]);
                    by_k[j] = g[j] = size <= threshold ? 0.0f : g[j] * (size * scale);
                }
                EACH plain[j] += g[j];
                if (m->kind == MIXED) EACH inner[j] += g[j] * soft[j];
            }
        }
        if (!grad && !means) continue;
        memset(near, 0, 4 * m->heads * STRIP * w);
        if (index % PAIR == 0) memset(q_here, 0, 4 * m->heads * m->outs * w);
        if (m->kind == CENTRED) EACH inner[j] = plain[j] / (float)m->outs;
        for (int64_t row = 0; row < m->outs; row += ROWS) {
            float *there = kept + (grad ? row / ROWS * size : 0);
            if (!grad) distances(&s, row, there);
            for (int64_t r = 0; r < ROWS; r++) {
                if (row + r >= m->outs) {
                    for (int64_t h = 0; h < m->heads; h++)
                        memset(ratios + (h * ROWS + r) * STRIP, 0, 4 * STRIP);
                    continue;
                }
                if (!grad) {
                    float mean = means[row + r];
                    EACH g[j] = j < s.count ? mean : 0.0f;
                } else {
                    memcpy(g, there + (m->heads * ROWS + r) * STRIP, sizeof g);
                }
                if (grad && m->kind == MIXED) {
                    float slope = m->alpha / m->gamma;
                    difference(m, there + r * STRIP, sum);
                    memcpy(dense, sum, sizeof sum);
                    dense_line(&s, row + r, dense, soft);
                    EACH soft[j] *= g[j] - inner[j];
                    EACH along[j] += soft[j] * sum[j];
                    EACH g[j] += slope * soft[j];
                } else if (grad && m->kind == CENTRED) {
                    EACH g[j] = j < s.count ? g[j] - inner[j] : 0.0f;
                    left[index * m->outs + row + r] = line_sum(g);
                }
                for (int64_t h = 0; h < m->heads; h++) {
                    const float *distance = there + (h * ROWS + r) * STRIP;
                    float *ratio = ratios + (h * ROWS + r) * STRIP, sign = h & 1 ? -1.0f : 1.0f;
                    for (int j = 0; j < STRIP; j += LANES)
                        *(vec *)(ratio + j) =
                            sign * *(const vec *)(g + j) * inverse(*(const vec *)(distance + j));
                }
            }
            for (int64_t h = 0; h < m->heads; h++)
                steps(&s, h, row, ratios + h * ROWS * STRIP, near + h * STRIP * w, q_here);
        }
        for (int64_t h = 0; h < m->heads; h++)
            for (int64_t j = 0; j < s.count; j++) {
                float *to_p = by_p + (h * m->columns + s.first + j) * m->width;
                for (int64_t k = 0; k < m->width; k++) to_p[k] += near[(h * STRIP + j) * w + k];
            }
        if (!grad) continue;
        sums[3 * index] = total(plain, s.count);
        sums[3 * index + 1] = total(inner, s.count);
        sums[3 * index + 2] = total(along, s.count);
    }
    free(room);
    free(near);
    free(kept);
    return 0;
}
