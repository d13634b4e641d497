/* Products g^T x of two matrices of tokens of which only chosen entries are wanted.
 *
 * A strip is STRIP columns of the result by all its rows, with 64 bits a row that say which entries
 * are wanted. Tokens are the lanes: both operands are turned so that a feature's tokens lie side by
 * side, and cut into chunks of at most DEPTH vectors of tokens, so that a strip's chunk stays in the
 * innermost cache and a row's in registers. A wanted entry has a vector of partial sums, and is
 * made in the same order whoever works on which rows and whatever else is wanted.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#define STRIP 64  /* columns of a strip, bits of a mask */
#define DEPTH 8   /* vectors of tokens that stay in registers at most */
#define BLOCK 128 /* rows that are turned, and whose partial sums are kept, together */
#ifdef __AVX512F__
#define LANES 16 /* floats of a vector */
#else
#define LANES 8
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float half __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
typedef int32_t lanes __attribute__((vector_size(4 * LANES)));

#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (lanes){__VA_ARGS__})
#endif
#define LOW(n, j) ((j) / (2 * (n)) * 2 * (n) + (j) % (n) + ((j) / (n) % 2 ? LANES : 0))
#define EIGHT(n, j, by)                                                                     \
    LOW(n, j) + by, LOW(n, j + 1) + by, LOW(n, j + 2) + by, LOW(n, j + 3) + by,             \
    LOW(n, j + 4) + by, LOW(n, j + 5) + by, LOW(n, j + 6) + by, LOW(n, j + 7) + by
#if LANES == 16
#define ALL(n, by) EIGHT(n, 0, by), EIGHT(n, 8, by)
#define BY_TURNS 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15
#else
#define ALL(n, by) EIGHT(n, 0, by)
#define BY_TURNS 0, 4, 1, 5, 2, 6, 3, 7
#endif
/* In every 2n lanes the first n of a, then the first n of b; and likewise their second n. */
#define FIRST(a, b, n) PICK(a, b, ALL(n, 0))
#define SECOND(a, b, n) PICK(a, b, ALL(n, n))

static int64_t vectors_of(int64_t tokens) { return (tokens + LANES - 1) / LANES; }
static int64_t chunks_of(int64_t vectors) { return (vectors + DEPTH - 1) / DEPTH; }
static int64_t chunk_start(int64_t vectors, int64_t chunk) {
    return vectors * chunk / chunks_of(vectors);
}

/* Turn LANES rows of LANES floats. */
static inline void turn_tile(vec *t) {
#define STAGE(n)                                               \
    for (int i = 0; i < LANES; i++)                            \
        if (!(i & n)) {                                        \
            vec a = FIRST(t[i], t[i + n], n);                  \
            t[i + n] = SECOND(t[i], t[i + n], n);              \
            t[i] = a;                                          \
        }
#if LANES == 16
    STAGE(8)
#endif
    STAGE(4)
    STAGE(2)
    STAGE(1)
#undef STAGE
}

/* Turn from (tokens, count) to chunks, each (room, its tokens); tokens are padded with zeros, and
 * of `room` features the first `count`, up to a multiple of LANES, are written. */
static void turn(const float *from, int64_t stride, int64_t tokens, int64_t count, int64_t room,
                 float *to) {
    int64_t vectors = vectors_of(tokens);
    for (int64_t chunk = 0; chunk < chunks_of(vectors); chunk++) {
        int64_t start = chunk_start(vectors, chunk);
        int64_t depth = chunk_start(vectors, chunk + 1) - start;
        float *there = to + start * LANES * room;
        for (int64_t v = 0; v < depth; v++)
            for (int64_t feature = 0; feature < count; feature += LANES) {
                vec tile[LANES];
                int64_t token = (start + v) * LANES;
                int64_t high = tokens - token < LANES ? tokens - token : LANES;
                int64_t wide = count - feature < LANES ? count - feature : LANES;
                const float *at = from + token * stride + feature;
                if (high == LANES && wide == LANES) {
                    for (int i = 0; i < LANES; i++) tile[i] = *(const vec *)(at + i * stride);
                } else {
                    memset(tile, 0, sizeof tile);
                    for (int64_t i = 0; i < high; i++) memcpy(tile + i, at + i * stride, 4 * wide);
                }
                turn_tile(tile);
                for (int64_t j = 0; j < LANES; j++)
                    *(vec *)(there + ((feature + j) * depth + v) * LANES) = tile[j];
            }
    }
}

/* Parts begin:end of from (tokens, columns), `width` columns each, turned to (parts, width times
 * padded tokens). */
int snella_turn(int64_t begin, int64_t end, const float *from, int64_t stride, int64_t tokens,
                int64_t columns, int64_t width, float *to) {
    for (int64_t first = begin * width; first < end * width && first < columns; first += width) {
        int64_t count = columns - first < width ? columns - first : width;
        turn(from + first, stride, tokens, count, width, to + first * vectors_of(tokens) * LANES);
    }
    return 0;
}

/* The sum of each of LANES halves of a vector. */
static inline vec sums(const half *from) {
    vec v[LANES / 2];
    memcpy(v, from, sizeof v);
#define ADDED(a, b, n) (FIRST(a, b, n) + SECOND(a, b, n))
#if LANES == 16
    for (int i = 0; i < 4; i++) v[i] = ADDED(v[i], v[i + 4], 4);
#endif
    for (int i = 0; i < 2; i++) v[i] = ADDED(v[i], v[i + 2], 2);
    vec sum = ADDED(v[0], v[1], 1);
#undef ADDED
    return PICK(sum, sum, BY_TURNS);
}

#ifdef __AVX512F__
static inline vec widened(half sum) { return (vec)_mm512_zextps256_ps512((__m256)sum); }
static inline half folded(vec sum) {
    return (half)_mm512_castps512_ps256((__m512)sum) +
           (half)_mm512_castps512_ps256((__m512)_mm512_shuffle_f32x4((__m512)sum, (__m512)sum, 0xEE));
}
#elif defined __AVX__
static inline vec widened(half sum) { return (vec)_mm256_zextps128_ps256((__m128)sum); }
static inline half folded(vec sum) {
    return (half)_mm256_castps256_ps128((__m256)sum) +
           (half)_mm256_extractf128_ps((__m256)sum, 1);
}
#else
static inline vec widened(half sum) {
    union { half part[2]; vec whole; } both = {.part = {sum, {0}}};
    return both.whole;
}
static inline half folded(vec sum) {
    union { vec whole; half part[2]; } both = {.whole = sum};
    return both.part[0] + both.part[1];
}
#endif

/* The wanted entries of a strip and some rows, rows with equally many side by side: then the loops
 * over them can be foreseen by the processor. */
typedef struct {
    int64_t rows, entries;
    uint16_t row[BLOCK], count[BLOCK];
    uint8_t column[BLOCK * STRIP];
} entries;

static void list(const uint64_t *masks, int64_t rows, entries *to) {
    int64_t next[STRIP + 2] = {0};
    for (int64_t row = 0; row < rows; row++) next[__builtin_popcountll(masks[row]) + 1]++;
    to->rows = rows - next[1];
    next[1] = 0;
    for (int n = 2; n < STRIP + 2; n++) next[n] += next[n - 1];
    for (int64_t row = 0; row < rows; row++) {
        int count = __builtin_popcountll(masks[row]);
        if (count) to->row[next[count]++] = (uint16_t)row;
    }
    uint8_t *column = to->column;
    for (int64_t n = 0; n < to->rows; n++) {
        uint64_t bits = masks[to->row[n]];
        to->count[n] = (uint16_t)__builtin_popcountll(bits);
        for (; bits; bits &= bits - 1) *column++ = (uint8_t)__builtin_ctzll(bits);
    }
    to->entries = column - to->column;
}

/* Partial sums of the entries over the tokens of a chunk. */
static inline __attribute__((always_inline)) void partial(const float *g, const float *x,
                                                          const int depth, const entries *wanted,
                                                          half *sum) {
    const uint8_t *column = wanted->column;
    for (int64_t n = 0; n < wanted->rows; n++) {
        const vec *row = (const vec *)g + wanted->row[n] * depth;
        const vec *next = (const vec *)g + wanted->row[n + 1 < wanted->rows ? n + 1 : n] * depth;
        vec here[DEPTH];
        for (int v = 0; v < depth; v++) here[v] = row[v];
        for (int v = 0; v < depth; v += 16 / LANES) __builtin_prefetch(next + v);
        for (int count = wanted->count[n]; count; count--, sum++) {
            const vec *there = (const vec *)x + *column++ * depth;
            vec even = widened(*sum), odd = {0};
            for (int v = 0; v < depth; v += 2) even += here[v] * there[v];
            if (depth > 1) odd = here[1] * there[1];
            for (int v = 3; v < depth; v += 2) odd += here[v] * there[v];
            *sum = folded(even + odd);
        }
    }
}

static __attribute__((noinline)) void partial_of(int64_t depth, const float *g, const float *x,
                                                 const entries *wanted, half *sum) {
    switch (depth) {
#define CASE(n) case n: partial(g, x, n, wanted, sum); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
    }
}

/* What a call works with. */
typedef struct {
    int64_t vectors, outs, columns, stride;
    const uint64_t *masks;
    float *to;
    half *partials;
    entries wanted;
} work;

/* The entries of one block of rows and one strip, of their turned operands. */
static void make(work *w, const float *g, const float *x, int64_t row, int64_t first) {
    int64_t rows = w->outs - row < BLOCK ? w->outs - row : BLOCK;
    int64_t width = w->columns - first < STRIP ? w->columns - first : STRIP;
    entries *wanted = &w->wanted;
    list(w->masks + first / STRIP * w->outs + row, rows, wanted);
    memset(w->partials, 0, sizeof(half) * wanted->entries);
    for (int64_t chunk = 0; chunk < chunks_of(w->vectors); chunk++) {
        int64_t start = chunk_start(w->vectors, chunk);
        partial_of(chunk_start(w->vectors, chunk + 1) - start, g + start * LANES * BLOCK,
                   x + start * LANES * STRIP, wanted, w->partials);
    }
    float *to = w->to + row * w->stride + first, ready[LANES];
    for (int64_t r = 0; r < rows; r++) memset(to + r * w->stride, 0, 4 * width);
    const uint8_t *column = wanted->column;
    for (int64_t n = 0, done = 0; n < wanted->rows; n++) {
        float *line = to + wanted->row[n] * w->stride;
        for (int count = wanted->count[n]; count; count--, done++) {
            if (done % LANES == 0) *(vec *)ready = sums(w->partials + done);
            line[*column++] = ready[done % LANES];
        }
    }
}

/* to (outs, columns): g^T x where masks (strips, outs) say so, else 0; g is (tokens, outs), x
 * (tokens, columns). Of the two the one whose stride is negative is turned already, in blocks or strips;
 * begin:end count the parts of the other, which is turned here, part by part. */
int snella_sample(int64_t begin, int64_t end, const float *g, int64_t g_stride, int64_t outs,
                  const float *x, int64_t x_stride, int64_t tokens, int64_t columns,
                  const uint64_t *masks, float *to, int64_t stride) {
    int64_t size = vectors_of(tokens) * LANES; /* of a turned feature */
    float *turned = aligned_alloc(64, 4 * size * (x_stride >= 0 ? STRIP : BLOCK));
    half *partials = aligned_alloc(64, sizeof(half) * (BLOCK * STRIP + LANES));
    work *w = malloc(sizeof(work));
    if (!turned || !partials || !w) { free(turned); free(partials); free(w); return 1; }
    w->vectors = vectors_of(tokens);
    w->outs = outs;
    w->columns = columns;
    w->stride = stride;
    w->masks = masks;
    w->to = to;
    w->partials = partials;
    for (int64_t first = begin * STRIP; x_stride >= 0 && first < end * STRIP && first < columns;
         first += STRIP) {
        snella_turn(0, 1, x + first, x_stride, tokens, columns - first, STRIP, turned);
        for (int64_t row = 0; row < outs; row += BLOCK) make(w, g + row * size, turned, row, first);
    }
    for (int64_t row = begin * BLOCK; g_stride >= 0 && row < end * BLOCK && row < outs;
         row += BLOCK) {
        snella_turn(0, 1, g + row, g_stride, tokens, outs - row, BLOCK, turned);
        for (int64_t first = 0; first < columns; first += STRIP)
            make(w, turned, x + first * size, row, first);
    }
    free(turned);
    free(partials);
    free(w);
    return 0;
}
